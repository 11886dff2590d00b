//! A rank for the tests of faults: runs every operation in turn until one fails, and says how.
//!
//! Prints `error`, `cause`, the milliseconds that the failing call took, and how many threads and sockets are left of those that the
//! world brought, a line each. A rank that comes to the end prints `done`.

use moe_core::{Collective, CollectiveError, Host, Reduce, View, ViewMut};
use moe_dist::{ConnectError, Group, Launch, World};
use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

/// Elements of each operation: several segments of a reduction, and more than a socket's buffer.
const LEN: usize = 1 << 21;

fn main() -> Result<(), Box<dyn Error>> {
    let launch = Launch::from_env()?.ok_or("not started by a test")?;
    let timeout = Duration::from_millis(std::env::var("MOE_TEST_TIMEOUT")?.parse()?);
    let before = resources()?;
    let begin = Instant::now();
    let (error, took) = match World::connect(&launch, timeout) {
        Ok(world) => {
            let ranks: Vec<_> = (0..world.size()).collect();
            let mut group = world.group(&Host, "all", &ranks)?;
            group.set_timeout(timeout);
            match operations(&mut group) {
                Ok(()) => {
                    println!("done");
                    return Ok(());
                }
                Err(failed) => failed,
            }
        }
        Err(ConnectError::Collective(error)) => (error, begin.elapsed()),
        Err(error) => return Err(error.into()),
    };
    println!("{error}");
    println!("{}", error.source().map_or(String::new(), ToString::to_string));
    println!("{}", took.as_millis());
    let after = resources()?;
    println!("{} {}", after[0] - before[0], after[1] - before[1]);
    Ok(())
}

/// Numbers of threads and of sockets.
fn resources() -> Result<[i64; 2], Box<dyn Error>> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    let links = fs::read_dir("/proc/self/fd")?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let sockets = links.filter(|link| link.to_string_lossy().starts_with("socket:")).count();
    Ok([threads as i64, sockets as i64])
}

/// Every operation, twice or as often as `MOE_TEST_TIMES` says; the first that fails, and how long that call took.
fn operations(group: &mut Group<Host>) -> Result<(), (CollectiveError, Duration)> {
    let (me, size) = (Collective::<Host>::rank(group), Collective::<Host>::size(group));
    let part = vec![LEN / size; size];
    let (mut long, mut short) = (vec![me as f32; LEN / size * size], [1.0_f32; 16]);
    let source = long.clone();
    let own = &source[..LEN / size];
    let mut target = own.to_vec();
    let mut timed = |operation: &mut dyn FnMut(&mut Group<Host>) -> Result<(), CollectiveError>| {
        let begin = Instant::now();
        operation(group).map_err(|error| (error, begin.elapsed()))
    };
    let times = std::env::var("MOE_TEST_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(2);
    for _ in 0..times {
        timed(&mut |group| group.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut long[..])))?;
        timed(&mut |group| group.all_gather(&(), View::of(own), ViewMut::of(&mut long[..]), &part))?;
        timed(&mut |group| {
            let target = ViewMut::of(&mut target[..]);
            group.reduce_scatter(&(), Reduce::Max, View::of(&source[..]), target, &part)
        })?;
        timed(&mut |group| {
            group.all_to_all(&(), View::of(&source[..]), &part, ViewMut::of(&mut long[..]), &part)
        })?;
        timed(&mut |group| group.broadcast(&(), 1, ViewMut::of(&mut long[..])))?;
        timed(&mut |group| Collective::<Host>::barrier(group, &()))?;
        timed(&mut |group| group.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut short[..])))?;
    }
    Ok(())
}
