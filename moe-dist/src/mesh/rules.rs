//! Which degrees go together.
//!
//! * The degrees of the dense axes multiply to the world.
//! * etp is 1 or tp.
//! * ep * etp divides dp_shard * cp * tp: experts are never spread over replicas.
//! * dp_replicate above 1 needs dp_shard above 1. Replicas without shards are the mesh with the two exchanged: its groups are
//!   the same, and whether parameters are sharded over dp_shard is a choice of its own.

use super::Degrees;

/// Degrees that clash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeshError {
    /// A degree is 0.
    #[error("{axis} is 0, but must be at least 1")]
    Zero {
        /// the axis
        axis: &'static str,
    },
    /// The dense axes do not make up the world.
    #[error(
        "dp_replicate {} * dp_shard {} * cp {} * tp {} is not the world of {world} ranks{}",
        .degrees.dp_replicate, .degrees.dp_shard, .degrees.cp, .degrees.tp, fitting_dp_shard(*.world, .degrees)
    )]
    World {
        /// ranks
        world: usize,
        /// the degrees
        degrees: Degrees,
    },
    /// An expert's width is split over another number of ranks than that of the dense parts.
    #[error("etp is {etp}, but must be 1 or tp, which is {tp}")]
    Etp {
        /// etp
        etp: usize,
        /// tp
        tp: usize,
    },
    /// Experts do not divide a replica.
    #[error(
        "ep {} * etp {} must divide dp_shard {} * cp {} * tp {}{}",
        .degrees.ep, .degrees.etp, .degrees.dp_shard, .degrees.cp, .degrees.tp, fitting_ep(.degrees)
    )]
    Experts {
        /// the degrees
        degrees: Degrees,
    },
    /// Replicas of nothing that is sharded.
    #[error(
        "dp_replicate is {dp_replicate}, but dp_shard is 1: dp_shard {dp_replicate} and dp_replicate 1 have the same groups; \
         whether parameters are sharded or whole does not depend on the mesh"
    )]
    Replicas {
        /// dp_replicate
        dp_replicate: usize,
    },
}

/// All rules, in the order of this page.
pub(super) fn check(world: usize, degrees: &Degrees) -> Result<(), MeshError> {
    let Degrees { dp_replicate, dp_shard, cp, tp, ep, etp } = *degrees;
    let named = [
        ("dp_replicate", dp_replicate),
        ("dp_shard", dp_shard),
        ("cp", cp),
        ("tp", tp),
        ("ep", ep),
        ("etp", etp),
    ];
    if let Some((axis, _)) = named.into_iter().find(|(_, degree)| *degree == 0) {
        return Err(MeshError::Zero { axis });
    }
    if product([dp_replicate, dp_shard, cp, tp]) != Some(world) {
        return Err(MeshError::World { world, degrees: *degrees });
    }
    if etp != 1 && etp != tp {
        return Err(MeshError::Etp { etp, tp });
    }
    if !product([ep, etp]).is_some_and(|experts| (dp_shard * cp * tp).is_multiple_of(experts)) {
        return Err(MeshError::Experts { degrees: *degrees });
    }
    if dp_replicate > 1 && dp_shard == 1 {
        return Err(MeshError::Replicas { dp_replicate });
    }
    Ok(())
}

fn product<const N: usize>(degrees: [usize; N]) -> Option<usize> {
    degrees.into_iter().try_fold(1_usize, usize::checked_mul)
}

/// The advice to a wrong product, where the other axes leave room for one that fits.
fn fitting_dp_shard(world: usize, degrees: &Degrees) -> String {
    match product([degrees.dp_replicate, degrees.cp, degrees.tp]) {
        Some(rest) if world > 0 && world.is_multiple_of(rest) => {
            format!(": dp_shard {} would fit", world / rest)
        }
        _ => ": dp_replicate * cp * tp does not divide it".to_owned(),
    }
}

/// What ep has to divide, given the others.
fn fitting_ep(degrees: &Degrees) -> String {
    // A legal etp divides tp.
    format!(": ep has to divide {}", degrees.dp_shard * degrees.cp * (degrees.tp / degrees.etp))
}
