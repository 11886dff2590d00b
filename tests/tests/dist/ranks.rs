//! Ranks as threads of this process.

use moe_core::MoeConfig;
use moe_dist::mesh::Mesh;
use moe_dist::{World, channel};

/// What each rank of a world returns, in rank order.
pub(crate) fn on_ranks<R: Send>(size: usize, work: impl Fn(World) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> =
            channel::world(size).into_iter().map(|world| scope.spawn(|| work(world))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("the rank's own panic is above")).collect()
    })
}

/// The layer at a rank's place.
pub(crate) fn placed(config: &MoeConfig, mesh: &Mesh, rank: usize) -> MoeConfig {
    let mut config = *config;
    config.place = mesh.place(&mesh.seat(rank).expect("a rank of the mesh"), false);
    config
}
