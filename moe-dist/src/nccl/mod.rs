//! NCCL: groups of GPUs that exchange without the host. Feature `nccl`.
//!
//! ```no_run
//! use moe_core::{Collective, Device, Reduce, whole_mut};
//! use moe_cuda::Cuda;
//! use moe_dist::{Launch, World, nccl::NcclGroup};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let launch = Launch::from_env()?.expect("start it with torchrun or mpirun");
//! let world = World::connect(&launch, Duration::from_secs(60))?;
//! let cuda = Cuda::open(launch.local_rank)?;
//! let stream = cuda.stream()?;
//! let mut all = NcclGroup::new(&world, &cuda, "all", &(0..world.size()).collect::<Vec<_>>())?;
//! let mut values = cuda.alloc::<f32>(&stream, 1 << 20)?;
//! all.all_reduce(&stream, Reduce::Sum, whole_mut::<Cuda, f32>(&mut values))?;
//! # Ok(())
//! # }
//! ```
//!
//! The library is looked for when the first group is made, as `libnccl.so.2` or `libnccl.so`, version 2.14.3 or newer.
//!
//! # What is different from [`Group`](crate::Group)
//!
//! Operations are put on the stream and return before they have run. An error in them comes with a later call on any group of the world, and
//! with whatever waits for the stream: `sync` and `download` return [`CudaError::Collective`], whose
//! source names group, rank, operation and number. Work behind the failed operation has run on unspecified values, so go on
//! from the last checkpoint, with a new world, new groups and a new stream.
//!
//! An operation's time runs from when its stream comes to it. NCCL does not tell which rank is late: in a group of two it is the other one,
//! in larger groups the error names this rank and says so. A rank whose process has ended is named
//! within a second or so.
//!
//! Before each operation the ranks compare, over the world's own transport, what they have called: operation, type, number of elements, counts,
//! root, reduction, and for an all-to-all the counts of each pair. That costs a round trip between the hosts, not between the GPUs, and is
//! what makes a mismatch an error on all ranks instead of a wait until the deadline, or worthless values.
//! [`set_checked`](NcclGroup::set_checked) turns it off.
//!
//! Sums are made in NCCL's order: the same on every run and equal on all ranks, but with more than two ranks not the bits that a
//! [`Group`](crate::Group) gives. An operation cannot be part of a captured graph; it is refused.

mod calls;
mod communicator;
mod group;
mod library;
mod line;
mod meet;
mod watch;

pub use group::NcclGroup;

use moe_core::{CollectiveError, CollectiveFault, ConfigError, Error};
use moe_cuda::CudaError;

/// Why a group was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NcclError {
    /// The ranks are wrong; nothing was sent.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A rank has no NCCL, or not one that can be used. All ranks have the same error, and the world can be used for other groups.
    #[error("rank {rank} of group {group}: {why}")]
    Unusable {
        /// the group's name
        group: &'static str,
        /// the first such rank of the group
        rank: usize,
        /// what is wrong, and what to do
        why: String,
    },
    /// A rank is gone, late, or was refused by NCCL. The operation is `connect`.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

impl From<NcclError> for Error<CudaError> {
    fn from(error: NcclError) -> Self {
        match error {
            NcclError::Config(error) => Self::Config(error),
            NcclError::Collective(error) => Self::Collective(error),
            NcclError::Unusable { group, rank, why } => {
                let error = CollectiveError::new(group, rank, "connect", 1, CollectiveFault::Device);
                Self::Collective(error.because(why))
            }
        }
    }
}
