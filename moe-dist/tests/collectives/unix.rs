//! Ranks that speak over Unix sockets.

use moe_dist::{Launch, World};
use std::thread;
use std::time::Duration;

pub(super) fn ends(ranks: usize) -> Vec<World> {
    connect(Launch::local(ranks).unwrap())
}

pub(super) fn connect(launches: Vec<Launch>) -> Vec<World> {
    let start =
        |launch: Launch| thread::spawn(move || World::connect(&launch, Duration::from_secs(20)).unwrap());
    let threads: Vec<_> = launches.into_iter().map(start).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[path = "definition.rs"]
mod definition;
#[path = "device.rs"]
mod device;
#[path = "failures.rs"]
mod failures;
#[path = "rig.rs"]
mod rig;
