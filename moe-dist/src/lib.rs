//! Many ranks: a [`World`] of processes or threads, [`Group`]s of its ranks, and what they do together.
//!
//! A group implements [`Collective`](moe_core::Collective) for every [`Device`](moe_core::Device), whatever carries the
//! bytes. Every collective has one implementation, above the transports: reductions add in rank order in the accumulation
//! type and round once, so results have the same bits on every rank, on every run, over every transport.
//!
//! ```
//! use moe_core::{Collective, Host, Reduce, ViewMut};
//!
//! let sums = std::thread::scope(|scope| {
//!     let ranks: Vec<_> = moe_dist::channel::world(3)
//!         .into_iter()
//!         .map(|world| {
//!             scope.spawn(move || {
//!                 let mut all = world.group(&Host, "all", &[0, 1, 2])?;
//!                 let mut values = [world.rank() as f32, 1.0];
//!                 all.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut values))?;
//!                 Ok::<_, Box<dyn std::error::Error + Send + Sync>>(values)
//!             })
//!         })
//!         .collect();
//!     ranks.into_iter().map(|rank| rank.join().unwrap().unwrap()).collect::<Vec<_>>()
//! });
//! assert_eq!(sums, [[3.0, 3.0]; 3]);
//! ```
//!
//! # When something fails
//!
//! Each operation begins with a fingerprint (operation, type, shape, root, number) from every member to every other, so ranks
//! that call different things all get one error that lists them. Each has one deadline. The first failure is told to all
//! ranks of the world and closes it there: every later call on any of its groups returns that failure's
//! [`CollectiveError`](moe_core::CollectiveError), which names the group, rank, operation and number. A world is not repaired; make another.
//!
//! Groups of one world share its connections and take turns. Ranks must use groups that they have in common in the same order,
//! which one thread per rank does by itself.

mod called;
pub mod channel;
pub mod checkpoint;
mod collectives;
mod fault;
mod fingerprint;
mod frame;
pub mod fsdp;
#[doc(hidden)]
pub mod fuzz;
pub mod gradients;
mod group;
mod key;
mod launch;
mod link;
mod member;
pub mod mesh;
#[cfg(feature = "nccl")]
pub mod nccl;
mod notice;
mod reduce;
mod socket;
mod staging;
mod transport;
mod world;

pub use group::Group;
pub use key::Key;
pub use launch::Launch;
pub use link::Link;
pub use world::{ConnectError, World};
