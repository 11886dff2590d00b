//! Ranks that speak over TCP in clear.

use moe_dist::{Launch, World};

pub(super) fn ends(ranks: usize) -> Vec<World> {
    let tcp = |launch| Launch { tcp: true, ..launch };
    super::unix::connect(Launch::local(ranks).unwrap().into_iter().map(tcp).collect())
}

#[path = "definition.rs"]
mod definition;
#[path = "device.rs"]
mod device;
#[path = "failures.rs"]
mod failures;
#[path = "rig.rs"]
mod rig;
