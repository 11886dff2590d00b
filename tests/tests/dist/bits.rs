//! Contract 3: with experts spread over ranks, and nothing else, a step has the bits of one process.

use crate::alone::Step;
use crate::cases::{Case, case};
use crate::layout::{Layout, Shape};
use crate::part::{Part, part, placed};
use crate::ranks::on_ranks;
use half::bf16;
use moe_core::{Accum, Balance, BalanceLoss, MemoryPolicy, MoeDevice, Scalar, ScoreOrder, SharedExperts};
use moe_cpu::Cpu;
use moe_dist::mesh::{Degrees, Mesh};

fn wide(change: impl FnOnce(&mut Case)) -> Case {
    case("wide", |case| {
        let config = &mut case.config;
        (config.width, config.hidden) = (72, 40);
        (config.expert_bias, config.gate_bias) = (true, true);
        config.shared = Some(SharedExperts { hidden: 24, gated: true });
        config.balance = Balance { loss: Some(BalanceLoss::Sequence(0.5)), z_loss: 0.1, bias_rate: 0.0 };
        case.shape = Shape::Many;
        change(case);
    })
}

/// Outputs, input gradients and the routed experts' gradients bit for bit; gates and shared experts, whose gradients are sums
/// over ranks, to 1e-6.
fn has_the_bits_of_one_process<T: Scalar>(case: &Case, ranks: usize)
where
    Cpu: MoeDevice<T>,
{
    let mesh =
        Mesh::new(ranks, Degrees { dp_shard: ranks, ep: ranks, ..Degrees::default() }).expect("a mesh");
    let layout = Layout::new(mesh, case.shape, case.sequence_parallel);
    let device = Cpu::with_threads(2).expect("threads");
    let step = Step::<T>::new(&device, case, &layout);
    let want = step.alone(&device, case, &layout);
    let parts = on_ranks(ranks, |world| {
        let device = Cpu::with_threads(1 + world.rank() % 2).expect("threads");
        part(&device, &world, case, &layout, &step, None)
    });
    let width = case.config.width;
    for (rank, Part { out, .. }) in parts.iter().enumerate() {
        for (what, got, want) in [("y", &out.y, &want.y), ("dx", &out.dx, &want.dx)] {
            for (row, token) in got.chunks(width).zip(layout.local(rank)) {
                assert!(row == &want[token * width..][..width], "{ranks} ranks: {what} of token {token}");
            }
        }
        assert_eq!(out.load, want.load);
        let specs = placed(case, &layout, rank).tensors();
        for ((spec, got), want) in specs.iter().zip(&out.grads).zip(&want.grads) {
            let (Some(spec), Some(got), Some(want)) = (spec, got, want) else { continue };
            let part: Vec<T::Acc> = spec.runs().flatten().map(|at| want[at]).collect();
            if matches!(spec.name, "w13" | "b13" | "w2" | "b2") {
                assert!(*got == part, "{ranks} ranks: gradient of {} on rank {rank}", spec.name);
                continue;
            }
            let largest = want.iter().fold(0.0_f64, |most, value| most.max(value.to_f64().abs()));
            for (got, want) in got.iter().zip(part) {
                let apart = (got.to_f64() - want.to_f64()).abs();
                assert!(apart <= 1e-6 * largest, "{}: {got:?}, wanted {want:?}", spec.name);
            }
        }
    }
}

fn in_every_way<T: Scalar>()
where
    Cpu: MoeDevice<T>,
{
    for ranks in [2, 4, 8] {
        for order in [ScoreOrder::AfterExperts, ScoreOrder::BeforeExperts] {
            has_the_bits_of_one_process::<T>(&wide(|case| case.config.score_order = order), ranks);
            let other = wide(|case| {
                case.config.score_order = order;
                case.config.memory = MemoryPolicy::Recompute;
                case.padded = true;
            });
            has_the_bits_of_one_process::<T>(&other, ranks);
        }
    }
}

#[test]
fn experts_over_ranks_have_the_bits_of_one_process_in_f32() {
    in_every_way::<f32>();
}

#[test]
fn experts_over_ranks_have_the_bits_of_one_process_in_bf16() {
    in_every_way::<bf16>();
}
