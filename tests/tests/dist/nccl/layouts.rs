//! The layer over two GPUs equals the layer on one, on every mesh of two ranks; what both ranks have has the same bits, and a step that is
//! repeated repeats its bits.

use super::rig::{Rank, on, two_gpus};
use crate::alone::Step;
use crate::apart::near_one_process;
use crate::cases::{Case, case, cases};
use crate::layout::{Layout, Shape};
use crate::part::{Part, part_in, placed};
use half::bf16;
use moe_core::{Balance, BalanceLoss, MoeDevice, Scalar, ScoreOrder, SharedExperts};
use moe_cuda::Cuda;
use moe_dist::mesh::{Mesh, Span};
use moe_dist::nccl::NcclGroup;

/// Runs a case twice on a mesh of both GPUs.
fn equals_one_gpu<T: Scalar>(gpus: &[Cuda; 2], mesh: Mesh, case: &Case)
where
    Cuda: MoeDevice<T>,
{
    let layout = Layout::new(mesh, case.shape, case.sequence_parallel);
    let step = Step::<T>::new(&gpus[0], case, &layout);
    let want = step.alone(&gpus[0], case, &layout);
    let twice = on(gpus, |Rank { world, cuda, .. }| {
        [(); 2].map(|()| {
            let mut make = |name, ranks: &[usize]| NcclGroup::new(&world, &cuda, name, ranks);
            part_in(&mut make, &cuda, world.rank(), case, &layout, &step, None)
        })
    });
    for [first, again] in &twice {
        assert!(first.out == again.out, "{}, {:?}: other bits the second time", case.name, mesh.degrees());
    }
    let parts: Vec<_> = twice.into_iter().map(|[first, _]| first).collect();
    near_one_process(case, &layout, &want, &parts);
    replicas(case, &layout, &parts);
}

/// What both ranks have has the same bits on both.
fn replicas<T: Scalar>(case: &Case, layout: &Layout, parts: &[Part<T>]) {
    let what = |name: &str| format!("{}, {:?}: {name}", case.name, layout.mesh.degrees());
    let [mine, other] = [0, 1].map(|rank| placed(case, layout, rank).tensors());
    for (at, (mine, other)) in mine.iter().zip(&other).enumerate() {
        let (Some(mine), Some(other)) = (mine, other) else { continue };
        if mine.runs().eq(other.runs()) {
            assert!(parts[0].out.grads[at] == parts[1].out.grads[at], "{}", what(mine.name));
        }
    }
    if layout.mesh.members(Span::Tp, 0).len() == 2 && !case.sequence_parallel {
        assert!(parts[0].out.y == parts[1].out.y && parts[0].out.dx == parts[1].out.dx, "{}", what("rows"));
    }
}

/// Widths that kernels for matrix units take.
fn wide() -> Case {
    case("wide", |case| {
        let config = &mut case.config;
        (config.width, config.hidden) = (128, 64);
        (config.expert_bias, config.gate_bias) = (true, true);
        config.shared = Some(SharedExperts { hidden: 48, gated: true });
        config.balance = Balance { loss: Some(BalanceLoss::Sequence(0.5)), z_loss: 0.1, bias_rate: 0.0 };
        case.shape = Shape::Many;
    })
}

#[test]
fn every_mesh_of_two_gpus_equals_one() {
    let Some(gpus) = two_gpus("every_mesh_of_two_gpus_equals_one") else { return };
    for mesh in Mesh::all(2) {
        for split in [false, true].into_iter().filter(|split| !split || mesh.degrees().tp == 2) {
            let wide = Case { sequence_parallel: split, ..wide() };
            equals_one_gpu::<f32>(&gpus, mesh, &wide);
            equals_one_gpu::<bf16>(&gpus, mesh, &wide);
        }
    }
}

#[test]
fn every_case_equals_one_gpu_in_f32() {
    let Some(gpus) = two_gpus("every_case_equals_one_gpu_in_f32") else { return };
    let meshes = Mesh::all(2);
    // The meshes take turns.
    for (at, mut case) in cases().into_iter().enumerate() {
        let mesh = meshes[at % meshes.len()];
        case.sequence_parallel = mesh.degrees().tp == 2 && at % 2 == 1;
        if at % 2 == 1 {
            case.config.score_order = ScoreOrder::BeforeExperts;
        }
        equals_one_gpu::<f32>(&gpus, mesh, &case);
    }
}
