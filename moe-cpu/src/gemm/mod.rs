//! Grouped matrix products: the inner part of every expert op.
//!
//! ```text
//! Isa      which vector unit                 Simd     what kernels ask of it
//! Rows     the left operand, by index        Weights  the right operand, in panels or plain
//! Held     this thread's matrix unit
//! Tiles    rows times a panel, in registers  Product  one task's sums
//! Grid     tasks of a grouped product        share    tasks to threads
//! ```
//!
//! Each element of a product is one chain of fused multiply-adds over k in order, from +0, in f32; in a matrix unit's tiles it is a chain
//! over tiles of k. Its bits depend neither on other rows, nor on the task that it falls into, nor on the number of threads; they may
//! differ between units.

mod act;
mod dense;
mod fill;
mod float;
mod formula;
mod grouped;
mod isa;
mod left;
mod math;
mod matrix;
mod outer;
mod packing;
mod panel;
mod portable;
mod product;
mod rows;
mod scratch;
mod shared;
mod simd;
mod store;
pub(crate) mod swiglu;
mod tasks;
mod tile;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod units;

pub use float::Float;
pub use isa::Isa;

pub(crate) use act::{apply, gradient};
pub(crate) use grouped::{CHUNK, Crew, outer_path, path};
pub(crate) use isa::{Job, Unit};
pub(crate) use left::Rows;
pub(crate) use matrix::Held;
pub(crate) use outer::{Factors, Outer, OuterSpace, width};
pub(crate) use packing::{form, pack_all, packed_len, weights};
pub(crate) use panel::{Size, Weights};
pub(crate) use portable::Portable;
pub(crate) use product::{MAX_COLUMNS, Product, Space};
pub(crate) use rows::{dot, fence, narrow, round, scale, stream, widen};
pub(crate) use scratch::{SLACK, Scratch, bytes};
pub(crate) use shared::Shared;
pub(crate) use simd::{Ahead, Block, Simd, TILE};
pub(crate) use store::Store;
pub(crate) use tasks::{MAX_ROWS, Task, share};
pub(crate) use tile::Leave;
