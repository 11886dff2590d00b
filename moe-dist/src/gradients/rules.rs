//! Where each parameter's gradient is summed: the one table that all reductions, shards and norms follow.
//!
//! The loss is a sum over local tokens divided by the global count, so every reduction is a sum with scale 1. One axiom: for a
//! parameter that is on several ranks, sum its gradient over those that did disjoint work on it; do nothing over those that
//! did the same complete work; never mix both inside one gradient.
//!
//! * Gates see other tokens on each rank of dp and cp. Over tp they see other tokens (etp = 1), or the same tokens through other
//!   parts of the experts' width (etp = tp); the shared experts' gate always the latter. So they are summed over everything.
//! * Routed experts have the tokens of all ranks of ep already, by the exchange. Copies with other tokens are along edp.
//! * b2 enters every rank of etp, whose gradients of it are complete and equal: they are not summed.
//! * Shared experts are split over tp, where dout is complete: they are summed over dp and cp alone.

use crate::mesh::{Coordinates, Mesh, Span};
use moe_core::TENSORS;

/// How a parameter and its gradient lie on a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// the parameter
    pub name: &'static str,
    /// the ranks over which its gradient is summed
    pub sum: Span,
    /// those of them that hold its shards, if it is sharded
    pub shards: Span,
    /// the others: a shard's sum goes on over them. With `shards` they make up `sum`.
    pub copies: Span,
    /// ranks that have the same gradient without any sum
    pub same: Option<Span>,
}

const fn rule(name: &'static str, [sum, shards, copies]: [Span; 3], same: Option<Span>) -> Rule {
    Rule { name, sum, shards, copies, same }
}

const GATES: [Span; 3] = [Span::World, Span::Fsdp, Span::ReplicateTp];
const ROUTED: [Span; 3] = [Span::Edp, Span::Efsdp, Span::DpReplicate];
const SHARED: [Span; 3] = [Span::Data, Span::Fsdp, Span::DpReplicate];

/// The rule of each parameter, in the order of [`MoeConfig::tensors`](moe_core::MoeConfig::tensors).
pub const RULES: [Rule; TENSORS] = [
    rule("gate", GATES, None),
    rule("gate_bias", GATES, None),
    rule("w13", ROUTED, None),
    rule("b13", ROUTED, None),
    rule("w2", ROUTED, None),
    rule("b2", ROUTED, Some(Span::Etp)),
    rule("shared.w13", SHARED, None),
    rule("shared.w2", SHARED, None),
    rule("shared.gate", GATES, None),
];

impl Rule {
    /// Whether the rank at `at` counts the parameter, or its shard of it, in a norm over the mesh: each once.
    pub fn counts(&self, mesh: &Mesh, at: &Coordinates, sharded: bool) -> bool {
        let first = |span: Span| mesh.place_in(span, at) == 0;
        first(if sharded { self.copies } else { self.sum }) && self.same.is_none_or(first)
    }
}

/// The ranks over which slots per expert are summed before the selection bias moves: those that routed other tokens.
pub fn load_span(mesh: &Mesh) -> Span {
    if mesh.degrees().etp == 1 { Span::World } else { Span::Data }
}
