//! How far a rank on one device may be from one process on another: the ops' own bounds, with room for sums over ranks.

use crate::alone::Outcome;
use crate::cases::Case;
use crate::layout::Layout;
use crate::part::{Part, placed};
use moe_core::{Accum, DType, Scalar};

/// Of the largest value of a tensor.
fn bound<T: Scalar>() -> f64 {
    match T::DTYPE {
        DType::F32 => 2e-5,
        _ => 2e-2,
    }
}

/// Every rank has, within the type's bound, what one process has of its tokens and its part of the layer; the routing is
/// equal bit for bit, and so are loads.
pub(crate) fn near_one_process<T: Scalar>(
    case: &Case,
    layout: &Layout,
    want: &Outcome<T>,
    parts: &[Part<T>],
) {
    let name = |rank: usize, what: &str| {
        let (order, split) = (case.config.score_order, case.sequence_parallel);
        let degrees = layout.mesh.degrees();
        format!("{}, {order:?}, sequence parallel {split}, {degrees:?}, rank {rank}: {what}", case.name)
    };
    let width = case.config.width;
    for (rank, Part { out, .. }) in parts.iter().enumerate() {
        for (what, got, want) in [("y", &out.y, &want.y), ("dx", &out.dx, &want.dx)] {
            let rows = layout.local(rank).into_iter().flat_map(|token| &want[token * width..][..width]);
            let wide = |values: &T| values.widen().to_f64();
            near::<T>(&name(rank, what), got.iter().map(wide), rows.map(wide), want.iter().map(wide));
        }
        let specs = placed(case, layout, rank).tensors();
        for ((spec, got), want) in specs.iter().zip(&out.grads).zip(&want.grads) {
            let (Some(spec), Some(got), Some(want)) = (spec, got, want) else { continue };
            let part = spec.runs().flatten().map(|at| want[at].to_f64());
            let wide = |values: &T::Acc| values.to_f64();
            near::<T>(&name(rank, spec.name), got.iter().map(wide), part, want.iter().map(wide));
        }
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for token in layout.routed(rank) {
            let slots = token * case.config.top_k..(token + 1) * case.config.top_k;
            ids.extend_from_slice(&want.ids[slots.clone()]);
            weights.extend_from_slice(&want.weights[slots]);
        }
        assert_eq!(out.ids, ids, "{}", name(rank, "ids"));
        assert!(out.weights == weights, "{}", name(rank, "weights"));
        assert_eq!(out.load, want.load, "{}", name(rank, "the load"));
    }
}

fn near<T: Scalar>(
    what: &str,
    got: impl ExactSizeIterator<Item = f64>,
    want: impl Iterator<Item = f64>,
    scale: impl Iterator<Item = f64>,
) {
    let largest = scale.fold(1e-3_f64, |most, value| most.max(value.abs()));
    let want: Vec<f64> = want.collect();
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (got, want)) in got.zip(want).enumerate() {
        // A NaN is near nothing.
        let fits = (got - want).abs() <= bound::<T>() * largest;
        assert!(fits, "{what}: element {at} is {got}, wanted {want}, of {largest} at most");
    }
}
