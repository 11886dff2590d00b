//! Coordinates: where a rank stands along every axis.

use super::{Degrees, Mesh};
use moe_core::ConfigError;

/// A rank's place along each axis, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Coordinates {
    /// along dp_replicate
    pub dp_replicate: usize,
    /// along dp_shard
    pub dp_shard: usize,
    /// along cp
    pub cp: usize,
    /// along tp
    pub tp: usize,
    /// along efsdp: which of the replica's ranks with the same experts
    pub efsdp: usize,
    /// along ep
    pub ep: usize,
    /// along etp
    pub etp: usize,
}

impl Mesh {
    /// Where `rank` stands; `None` if the world has no such rank.
    pub fn coordinates(&self, rank: usize) -> Option<Coordinates> {
        if rank >= self.world() {
            return None;
        }
        let Degrees { dp_shard, cp, tp, ep, etp, .. } = *self.degrees();
        let (dense, replica) = (rank / tp, dp_shard * cp * tp);
        Some(Coordinates {
            dp_replicate: rank / replica,
            dp_shard: dense / cp % dp_shard,
            cp: dense % cp,
            tp: rank % tp,
            efsdp: rank % replica / (ep * etp),
            ep: rank / etp % ep,
            etp: rank % etp,
        })
    }

    /// As [`coordinates`](Self::coordinates), for what belongs to one rank.
    ///
    /// # Errors
    /// [`ConfigError`] if the world has no such rank.
    pub fn seat(&self, rank: usize) -> Result<Coordinates, ConfigError> {
        let wanted = || format!("the mesh has ranks 0 to {}", self.world() - 1);
        self.coordinates(rank).ok_or_else(|| ConfigError {
            field: "rank",
            got: rank.to_string(),
            wanted: wanted(),
        })
    }

    /// Place along dp: dp_replicate and dp_shard together.
    pub fn dp_of(&self, at: &Coordinates) -> usize {
        at.dp_replicate * self.degrees().dp_shard + at.dp_shard
    }

    /// Place along edp: dp_replicate and efsdp together.
    pub fn edp_of(&self, at: &Coordinates) -> usize {
        at.dp_replicate * self.efsdp() + at.efsdp
    }
}
