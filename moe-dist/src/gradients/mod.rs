//! Gradients over a mesh: what backward has left on each rank is summed once per optimizer step.

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
