//! Ranks that speak over the loopback in encrypted records.

use moe_dist::{Launch, World};

pub(super) fn ends(ranks: usize) -> Vec<World> {
    let encrypt = |launch| Launch { encrypt: true, ..launch };
    super::unix::connect(Launch::local(ranks).unwrap().into_iter().map(encrypt).collect())
}

#[path = "definition.rs"]
mod definition;
#[path = "device.rs"]
mod device;
#[path = "failures.rs"]
mod failures;
#[path = "rig.rs"]
mod rig;
