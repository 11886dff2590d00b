//! Times all-reduce and the variable all-to-all of f32 between processes of this host: a line of JSON per operation and size.
//!
//!     cargo run --release -p moe-dist --example speed -- RANKS [BYTES...]
//!
//! `us` is the time of one operation, `cpu_us` what rank 0 spent of it on a processor: on a machine with other work the steadier
//! figure. `MOE_ENCRYPT=1` encrypts every frame. moe-dist/compare.py runs this beside gloo.

use moe_core::{Collective, Host, Reduce, View, ViewMut};
use moe_dist::{Group, Launch, World};
use std::error::Error;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long each operation is repeated.
const EACH: Duration = Duration::from_millis(300);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let ranks: usize = arguments.next().ok_or("usage: speed RANKS [BYTES...]")?.parse()?;
    let mut sizes = arguments.map(|bytes| bytes.parse()).collect::<Result<Vec<usize>, _>>()?;
    if sizes.is_empty() {
        sizes = vec![4 << 10, 1 << 20, 8 << 20, 64 << 20];
    }
    if let Some(launch) = Launch::from_env()? {
        return rank(&launch, &sizes);
    }
    let program = std::env::current_exe()?;
    let encrypt = std::env::var("MOE_ENCRYPT").is_ok();
    let mut started = Vec::new();
    for launch in Launch::local(ranks)? {
        let launch = Launch { encrypt, ..launch };
        started.push(Command::new(&program).args(std::env::args().skip(1)).envs(launch.variables()).spawn()?);
    }
    for mut process in started {
        if !process.wait()?.success() {
            return Err("a rank failed".into());
        }
    }
    Ok(())
}

fn rank(launch: &Launch, sizes: &[usize]) -> Result<(), Box<dyn Error>> {
    let world = World::connect(launch, Duration::from_secs(30))?;
    let ranks: Vec<_> = (0..world.size()).collect();
    let mut group = world.group(&Host, "all", &ranks)?;
    for &bytes in sizes {
        let mut values = vec![1.0_f32 / 1024.0; bytes / 4];
        report(&world, "all_reduce", bytes, &mut group, |group| {
            group.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut values))
        })?;
        let send = parts(bytes / 4, world.rank(), world.size());
        let receive: Vec<_> =
            ranks.iter().map(|&rank| parts(bytes / 4, rank, world.size())[world.rank()]).collect();
        let mut target = vec![0.0_f32; receive.iter().sum()];
        report(&world, "all_to_all", bytes, &mut group, |group| {
            group.all_to_all(&(), View::of(&values), &send, ViewMut::of(&mut target), &receive)
        })?;
    }
    Ok(())
}

/// Elements from `rank` to each: in the ratio 1, 2, ... from its right neighbour on.
fn parts(total: usize, rank: usize, ranks: usize) -> Vec<usize> {
    let whole = ranks * (ranks + 1) / 2;
    let mut parts: Vec<_> = (0..ranks).map(|to| total * (1 + (to + ranks - rank) % ranks) / whole).collect();
    parts[rank] += total - parts.iter().sum::<usize>();
    parts
}

fn report<E: Error + 'static>(
    world: &World,
    name: &str,
    bytes: usize,
    group: &mut Group<Host>,
    mut operation: impl FnMut(&mut Group<Host>) -> Result<(), E>,
) -> Result<(), Box<dyn Error>> {
    operation(group)?;
    // All ranks run as often as rank 0 finds fit for the time.
    let begin = Instant::now();
    operation(group)?;
    let once = begin.elapsed().max(Duration::from_micros(1));
    let mut count = [(EACH.as_nanos() / once.as_nanos()).clamp(3, 2000) as u32];
    group.broadcast(&(), 0, ViewMut::of(&mut count[..]))?;
    let (begin, cpu) = (Instant::now(), processor()?);
    for _ in 0..count[0] {
        operation(group)?;
    }
    let seconds = begin.elapsed().as_secs_f64() / f64::from(count[0]);
    let cpu = (processor()? - cpu) as f64 / f64::from(count[0]) / 1e3;
    if world.rank() == 0 {
        let rate = bytes as f64 / seconds / 1e9;
        println!(
            "{{\"op\":\"{name}\",\"ranks\":{},\"bytes\":{bytes},\"us\":{:.1},\"cpu_us\":{cpu:.1},\"gb_s\":{rate:.3}}}",
            world.size(),
            seconds * 1e6
        );
    }
    Ok(())
}

/// Nanoseconds that this thread has had a processor.
fn processor() -> Result<u64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split_whitespace().next().ok_or("no schedstat")?.parse()?)
}
