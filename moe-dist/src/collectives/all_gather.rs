//! All-gather: every member sends its elements to every other.

use super::{cut, one, one_mut};
use crate::member::{Call, Lane};
use crate::transport::Stop;
use moe_core::Elem;

/// `target` is the members' elements, `counts[r]` from rank r, in rank order.
pub(crate) fn all_gather<T: Elem>(
    call: &mut Call<'_>,
    source: &[T],
    target: &mut [T],
    counts: &[usize],
) -> Result<(), Stop> {
    let mut parts = cut(target, counts.iter().copied());
    parts[call.me()].copy_from_slice(source);
    call.round(parts.into_iter().map(|part| Lane { send: one(source), receive: one_mut(part) }).collect())
}
