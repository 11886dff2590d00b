//! How long all-reduce and all-to-all over NCCL take on two GPUs, from memory of the GPU to memory of the GPU.
//!
//! Started by itself it has two threads; under a launcher (torchrun, mpirun) the two ranks are its processes. Each line is an operation, the MiB of
//! a rank, whether the ranks compare their calls, and microseconds per call: the median of 7 rounds of many calls, the host waiting
//! once per round. `compare_nccl.py` runs it beside PyTorch.

use moe_core::{Collective, Device, Reduce, whole, whole_mut};
use moe_cuda::Cuda;
use moe_dist::nccl::NcclGroup;
use moe_dist::{Launch, World, channel};
use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

const MIB: [usize; 4] = [1, 8, 64, 256];
const ROUNDS: usize = 7;

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    if let Some(launch) = Launch::from_env()? {
        return rank(World::connect(&launch, Duration::from_secs(60))?, launch.local_rank);
    }
    thread::scope(|scope| {
        let start = |(gpu, world)| scope.spawn(move || rank(world, gpu));
        let ranks: Vec<_> = channel::world(2).into_iter().enumerate().map(start).collect();
        ranks.into_iter().try_for_each(|rank| rank.join().unwrap_or_else(|_| Err("a rank panicked".into())))
    })
}

fn rank(world: World, gpu: usize) -> Outcome {
    let cuda = Cuda::open(gpu)?;
    let stream = cuda.stream()?;
    let mut group = NcclGroup::new(&world, &cuda, "all", &[0, 1])?;
    for checked in [true, false] {
        group.barrier(&stream)?;
        group.set_checked(checked);
        for mib in MIB {
            let len = mib << 18;
            let mut sums = cuda.alloc::<f32>(&stream, len)?;
            let (source, mut target) = (cuda.alloc::<f32>(&stream, len)?, cuda.alloc::<f32>(&stream, len)?);
            let report = |name: &str, call: &mut dyn FnMut() -> Outcome| -> Outcome {
                let wait = || cuda.sync(&stream);
                let micros = median(if mib < 64 { 100 } else { 20 }, call, wait)?;
                if world.rank() == 0 {
                    println!("{name} {mib} {checked} {micros:.1}");
                }
                Ok(())
            };
            report("all_reduce", &mut || {
                Ok(group.all_reduce(&stream, Reduce::Sum, whole_mut::<Cuda, f32>(&mut sums))?)
            })?;
            let half = [len / 2; 2];
            report("all_to_all", &mut || {
                let (from, to) = (whole::<Cuda, f32>(&source), whole_mut::<Cuda, f32>(&mut target));
                Ok(group.all_to_all(&stream, from, &half, to, &half)?)
            })?;
        }
    }
    Ok(())
}

/// Microseconds of a call.
fn median<E: Error + Send + Sync + 'static>(
    calls: usize,
    call: &mut dyn FnMut() -> Outcome,
    wait: impl Fn() -> Result<(), E>,
) -> Result<f64, Box<dyn Error + Send + Sync>> {
    let mut rounds = Vec::with_capacity(ROUNDS);
    for round in 0..=ROUNDS {
        let start = Instant::now();
        (0..calls).try_for_each(|_| call())?;
        wait()?;
        // The first round connects and warms up.
        if round > 0 {
            rounds.push(start.elapsed().as_secs_f64() * 1e6 / calls as f64);
        }
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[ROUNDS / 2])
}
