//! Ranks that are threads.

use moe_dist::{World, channel};

pub(super) fn ends(ranks: usize) -> Vec<World> {
    channel::world(ranks)
}

#[path = "definition.rs"]
mod definition;
#[path = "device.rs"]
mod device;
#[path = "failures.rs"]
mod failures;
#[path = "rig.rs"]
mod rig;
