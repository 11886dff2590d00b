//! A rank for the tests of faults: runs every operation in turn until one fails, and says how.
//!
//! Prints `error`, `cause`, the milliseconds that the failing call took, and how many threads and sockets are left of those that the
//! world brought, a line each. A rank that comes to the end prints `done`.

use moe_core::{Collective, CollectiveError, Host, Reduce, View, ViewMut};
use moe_dist::{ConnectError, Group, Launch, World};
use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

/// One of the operations, with memory for what it writes.
type Operation<'a> = dyn FnMut(&mut Group<Host>, &mut [f32]) -> Result<(), CollectiveError> + 'a;

/// Elements of each operation: several segments of a reduction, and more than a socket's buffer.
const LEN: usize = 1 << 20;

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

/// Every operation in the order of `OPERATIONS` of the tests, twice or as often as `MOE_TEST_TIMES` says; the first that fails, and
/// how long that call took.
fn operations(group: &mut Group<Host>) -> Result<(), (CollectiveError, Duration)> {
    let (me, size) = (Collective::<Host>::rank(group), Collective::<Host>::size(group));
    let part = LEN / size;
    let equal = vec![part; size];
    // Rank 1 has no part where parts differ, and all_to_all has another length for each pair.
    let uneven: Vec<_> = (0..size).map(|rank| if rank == 1 { 0 } else { part - rank }).collect();
    let pair = |from: usize, to: usize| if from == to { 0 } else { part - 2 * from - to };
    let [send, receive] = [
        (0..size).map(|other| pair(me, other)).collect::<Vec<_>>(),
        (0..size).map(|other| pair(other, me)).collect(),
    ];
    let source = vec![me as f32; LEN];
    let (mut target, mut short) = (source.clone(), [1.0_f32; 16]);
    let mut timed = |operation: &mut Operation<'_>| {
        let begin = Instant::now();
        operation(group, &mut target).map_err(|error| (error, begin.elapsed()))
    };
    let times = std::env::var("MOE_TEST_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(2);
    for _ in 0..times {
        timed(&mut |group, target| group.all_reduce(&(), Reduce::Sum, ViewMut::of(target)))?;
        for parts in [&equal, &uneven] {
            let (own, total) = (parts[me], parts.iter().sum());
            timed(&mut |group, target| {
                group.all_gather(&(), View::of(&source[..own]), ViewMut::of(&mut target[..total]), parts)
            })?;
            timed(&mut |group, target| {
                let target = ViewMut::of(&mut target[..own]);
                group.reduce_scatter(&(), Reduce::Max, View::of(&source[..total]), target, parts)
            })?;
        }
        for (send, receive) in [(&equal, &equal), (&send, &receive)] {
            let (sent, received) = (send.iter().sum(), receive.iter().sum());
            timed(&mut |group, target| {
                let target = ViewMut::of(&mut target[..received]);
                group.all_to_all(&(), View::of(&source[..sent]), send, target, receive)
            })?;
        }
        for root in [1, 0] {
            timed(&mut |group, target| group.broadcast(&(), root, ViewMut::of(target)))?;
        }
        timed(&mut |group, _| Collective::<Host>::barrier(group, &()))?;
        timed(&mut |group, _| group.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut short[..])))?;
    }
    Ok(())
}
