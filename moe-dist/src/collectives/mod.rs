//! The collectives on host memory: which bytes go where in which round, and the order of sums. The same for every transport.
//!
//! In the first round every member hears from every other, so a mismatch is seen by all before one returns.

mod all_gather;
mod all_reduce;
mod all_to_all;
mod broadcast;
mod reduce_scatter;

pub(crate) use all_gather::all_gather;
pub(crate) use all_reduce::all_reduce;
pub(crate) use all_to_all::all_to_all;
pub(crate) use broadcast::broadcast;
pub(crate) use reduce_scatter::reduce_scatter;

use crate::member::{Call, Lane};
use crate::staging::{self, Staging};
use crate::transport::Stop;
use bytemuck::{cast_slice, cast_slice_mut};
use moe_core::Elem;
use std::ops::Range;

/// Bytes that a rank sends to one other in a round of a reduction: parts that are being summed stay in the cache, and scratch
/// memory does not grow with the message.
const SEGMENT: usize = 256 << 10;

/// `parts` times `len` elements of memory for what is received and then summed.
fn room<T: Elem>(scratch: &mut Staging, parts: usize, len: usize) -> Vec<&mut [T]> {
    cut(staging::room(scratch, parts * len), std::iter::repeat_n(len, parts))
}

/// Elements of a segment.
fn segment<T>() -> usize {
    SEGMENT / size_of::<T>()
}

/// Part `at` of `range` in segments of `len` elements; empty behind its end.
fn piece(range: &Range<usize>, at: usize, len: usize) -> Range<usize> {
    let place = |at: usize| range.end.min(range.start + at * len);
    place(at)..place(at + 1)
}

/// Where each rank's elements lie, one after the other.
fn ranges(counts: &[usize]) -> Vec<Range<usize>> {
    let mut end = 0;
    counts.iter().map(|count| (end..end + count, end += count).0).collect()
}

/// Cuts `len` elements off the front of `values`, which has them.
fn take<'a, T>(values: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (part, rest) = std::mem::take(values).split_at_mut(len);
    *values = rest;
    part
}

/// Cuts parts of the given lengths off the front of `values`.
fn cut<T>(mut values: &mut [T], counts: impl IntoIterator<Item = usize>) -> Vec<&mut [T]> {
    counts.into_iter().map(|count| take(&mut values, count)).collect()
}

fn one<T: Elem>(part: &[T]) -> [&[u8]; 2] {
    [cast_slice(part), &[]]
}

fn one_mut<T: Elem>(part: &mut [T]) -> [&mut [u8]; 2] {
    [cast_slice_mut(part), &mut []]
}

/// Nothing but fingerprints.
pub(crate) fn barrier(call: &mut Call<'_>) -> Result<(), Stop> {
    let lanes = (0..call.size()).map(|_| Lane::default()).collect();
    call.round(lanes)
}
