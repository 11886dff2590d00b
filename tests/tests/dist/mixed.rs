//! Ranks on devices of different kinds, in one group over sockets.

use crate::alone::Step;
use crate::apart::near_one_process;
use crate::cases::{Case, case};
use crate::layout::{Layout, Shape};
use crate::part::part;
use half::bf16;
use moe_core::{MoeDevice, Scalar, ScoreOrder, SharedExperts};
use moe_cpu::Cpu;
use moe_cuda::Cuda;
use moe_dist::mesh::{Degrees, Mesh};
use moe_dist::{Launch, World};
#[cfg(feature = "opencl")]
use moe_opencl::OpenCl;
use moe_tests::available;
use std::thread;
use std::time::Duration;

fn equals_one_process<T: Scalar, D: MoeDevice<T>>(device: &D, case: &Case)
where
    Cpu: MoeDevice<T>,
{
    let mesh = Mesh::new(2, Degrees { dp_shard: 2, ep: 2, ..Degrees::default() }).expect("a mesh");
    let layout = Layout::new(mesh, case.shape, case.sequence_parallel);
    let cpu = Cpu::with_threads(2).expect("threads");
    let step = Step::<T>::new(&cpu, case, &layout);
    let want = step.alone(&cpu, case, &layout);
    let launches = Launch::local(2).expect("two ranks");
    let (step, layout_of) = (&step, &layout);
    let meet = |at: usize| World::connect(&launches[at], Duration::from_secs(60)).expect("the other rank");
    let parts = thread::scope(|scope| {
        let first = scope.spawn(|| part(device, &meet(0), case, layout_of, step, None));
        let second = scope.spawn(|| part(&cpu, &meet(1), case, layout_of, step, None));
        [first, second].map(|rank| rank.join().expect("the rank's own panic is above"))
    });
    near_one_process(case, &layout, &want, &parts);
}

fn equals_one_process_beside_a_cpu<D: MoeDevice<f32> + MoeDevice<bf16>>(device: &D) {
    for order in [ScoreOrder::AfterExperts, ScoreOrder::BeforeExperts] {
        let case = case("mixed", |case| {
            (case.config.width, case.config.hidden, case.config.score_order) = (64, 32, order);
            case.config.expert_bias = true;
            case.config.shared = Some(SharedExperts { hidden: 24, gated: true });
            case.shape = Shape::Many;
        });
        equals_one_process::<f32, D>(device, &case);
        equals_one_process::<bf16, D>(device, &case);
    }
}

#[test]
fn a_rank_on_cuda_and_a_rank_on_the_cpu_equal_one_process() {
    let opened = Cuda::new();
    let test = "a_rank_on_cuda_and_a_rank_on_the_cpu_equal_one_process";
    if let Some(cuda) = available(test, "cuda", &opened) {
        equals_one_process_beside_a_cpu(cuda);
    }
}

#[cfg(feature = "opencl")]
#[test]
fn a_rank_on_opencl_and_a_rank_on_the_cpu_equal_one_process() {
    let opened = OpenCl::open_all();
    let test = "a_rank_on_opencl_and_a_rank_on_the_cpu_equal_one_process";
    for device in available(test, "opencl", &opened).into_iter().flatten() {
        equals_one_process_beside_a_cpu(device);
    }
}
