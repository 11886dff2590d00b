//! Gradients over a mesh: what backward has left on each rank is summed once per optimizer step.
//!
//! ```
//! use moe_core::ndarray::Array2;
//! use moe_core::{AdamW, Host, Limits, MoeConfig, MoeLayer, Runner, Sizes};
//! use moe_dist::World;
//! use moe_dist::gradients::{Replicated, clip};
//! use moe_dist::mesh::{Degrees, Mesh};
//!
//! type Failed = Box<dyn std::error::Error + Send + Sync>;
//!
//! /// A step of one of two ranks, which have four of the eight experts each; returns the gradients' norm.
//! fn step(world: World) -> Result<f64, Failed> {
//!     let mesh = Mesh::new(world.size(), Degrees { dp_shard: 2, ep: 2, ..Degrees::default() })?;
//!     let mut config = MoeConfig::new(Sizes { width: 16, hidden: 32, experts: 8, top_k: 2 })?;
//!     config.place = mesh.place(&mesh.seat(world.rank())?, false); // this rank's part
//!     let mut make = |name, ranks: &[usize]| world.group(&Host, name, ranks);
//!     let groups = mesh.groups_of(world.rank(), &mut make)?;
//!
//!     let mut layer = MoeLayer::<_, f32>::init(&Host, &config, 0)?; // seed
//!     let mut runner = Runner::with_groups(&Host, &config, Limits::training(64), groups)?;
//!     let (mut saved, mut grads) = (runner.saved(&config)?, layer.grads()?);
//!     let mut adam = AdamW::new(&layer)?;
//!     let mut sums = Replicated::new(runner.session(), &mesh, world.rank(), &[config], &mut make)?;
//!
//!     let x = runner.upload(Array2::from_elem((64, 16), world.rank() as f32 - 0.5).view())?; // its tokens
//!     let (mut y, mut dx) = (runner.like(&x)?, runner.like(&x)?);
//!     runner.forward_train(&layer, &x, &mut saved, &mut y)?;
//!     let dy = runner.upload(runner.download(&y)?.view())?; // loss = |y|^2 / 2
//!     runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads)?;
//!     sums.reduce(runner.session(), &mut [&mut grads])?;
//!     let norm = sums.norm(runner.session_mut(), &[&grads], 0.0)?;
//!     adam.step_scaled(&mut runner, &mut layer, &mut grads, 3e-4, clip(norm, 1.0))?;
//!     Ok(norm)
//! }
//!
//! let norms = std::thread::scope(|scope| {
//!     // Over sockets: World::connect(&launch, timeout), with moe_dist::Launch::from_env.
//!     let ranks: Vec<_> = moe_dist::channel::world(2).into_iter().map(|world| scope.spawn(|| step(world))).collect();
//!     ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Result<Vec<f64>, Failed>>()
//! })?;
//! assert_eq!(norms[0], norms[1]); // the same bits
//! # Ok::<(), Failed>(())
//! ```
//!
//! With [`Fsdp`](crate::fsdp::Fsdp) in the place of [`Replicated`] and of `AdamW`, ranks keep shards.

mod norm;
mod replicated;
mod rules;

pub use norm::clip;
pub use replicated::Replicated;
pub use rules::{RULES, Rule, load_span};

pub(crate) use norm::Norm;
pub(crate) use replicated::{filled, reduce_loads};

/// Tensors of fewer elements travel together: below this a message's fixed cost is the larger part of it. Sums are made element
/// by element in rank order, so that what travels together has no influence on the bits.
pub(crate) const SMALL: usize = 1 << 14;
