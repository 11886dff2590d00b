//! A step in the steady state allocates nothing on the host: memory is made when values are made.

use moe_core::ndarray::Array2;
use moe_core::ops::{Jitter, MoeDevice, RouteRule, ScoreFunction};
use moe_core::{
    AdamW, Balance, BalanceLoss, Batch, Capacity, DropPolicy, MemoryPolicy, MoeConfig, MoeLayer, Runner,
    Scalar, SharedExperts, Sizes,
};
use moe_cpu::Cpu;
use moe_cuda::Cuda;
use moe_tests::available;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, counting what it is asked for by any thread.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc`, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn changed(mut config: MoeConfig, change: impl FnOnce(&mut MoeConfig)) -> MoeConfig {
    change(&mut config);
    config
}

fn configs() -> [MoeConfig; 4] {
    let base = MoeConfig::new(Sizes { width: 48, hidden: 40, experts: 8, top_k: 2 }).expect("a good layer");
    let full = changed(base, |c| {
        c.rule = RouteRule {
            score: ScoreFunction::Sigmoid,
            jitter: Some(Jitter { amplitude: 0.1 }),
            groups: 4,
            groups_kept: 2,
            ..base.rule
        };
        c.gate_bias = true;
        c.selection_bias = true;
        c.expert_bias = true;
        c.shared = Some(SharedExperts { hidden: 32, gated: true });
        c.capacity = Some(Capacity { factor: 1.0, drop: DropPolicy::ByScore });
        c.balance = Balance { loss: Some(BalanceLoss::Sequence(0.01)), z_loss: 0.01, bias_rate: 0.01 };
    });
    let batch = Balance { loss: Some(BalanceLoss::Batch(0.01)), ..Balance::default() };
    let recomputing = changed(full, |c| c.memory = MemoryPolicy::Recompute);
    [base, full, recomputing, changed(base, |c| c.balance = batch)]
}

/// Allocations of one whole step after two others.
fn allocations<T: Scalar, D: MoeDevice<T>>(device: &D, config: &MoeConfig) -> u64 {
    const TOKENS: usize = 96;
    let mut layer = MoeLayer::<_, T>::init(device, config, 0).expect("a layer");
    let mut runner = Runner::new(device, config, TOKENS).expect("a runner");
    let mut saved = runner.saved(config).expect("room");
    let (mut grads, mut adam) =
        (layer.grads().expect("gradients"), AdamW::new(&layer).expect("an optimizer"));
    let host = Array2::from_elem((TOKENS, config.width), T::narrow(<T::Acc as moe_core::Accum>::ONE));
    let mut x = runner.upload(host.view()).expect("x");
    let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
    let batch =
        Batch { sequences: &[32, 64], step_tokens: Some(192), step_sequences: Some(4), ..Batch::default() };
    let mut step = || {
        runner.set_batch(&batch)?;
        for _ in 0..2 {
            runner.write(host.view(), &mut x)?;
            runner.forward_train(&layer, &x, &mut saved, &mut y)?;
            runner.backward(&layer, &x, &mut saved, &y, &mut dx, &mut grads)?;
        }
        adam.step(&mut runner, &mut layer, &mut grads, 1e-3)?;
        runner.forward(&layer, &x, &mut y)
    };
    device.enter(|| {
        step().and_then(|()| step()).expect("a step");
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        step().expect("a step");
        ALLOCATIONS.load(Ordering::Relaxed) - before
    })
}

fn allocates_nothing<D: MoeDevice<f32> + MoeDevice<half::bf16>>(device: &D) {
    for config in configs() {
        assert_eq!(allocations::<f32, D>(device, &config), 0, "f32, {config:?}");
        assert_eq!(allocations::<half::bf16, D>(device, &config), 0, "bf16, {config:?}");
    }
}

/// One test, so that no other runs beside it and is counted.
#[test]
fn a_steady_step_allocates_nothing() {
    allocates_nothing(&Cpu::with_threads(2).expect("threads start"));
    let opened = Cuda::new();
    if let Some(device) = available("a_steady_step_allocates_nothing", "cuda", &opened) {
        allocates_nothing(device);
    }
    #[cfg(feature = "opencl")]
    {
        let opened = moe_opencl::OpenCl::open_all();
        let devices = available("a_steady_step_allocates_nothing", "opencl", &opened);
        devices.into_iter().flatten().for_each(allocates_nothing);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    drop(std::hint::black_box(Box::new(7)));
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > before, "the count counts");
}
