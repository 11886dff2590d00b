//! All-to-all: every member sends each other its own part.

use super::{cut, one, one_mut, ranges};
use crate::member::{Call, Lane};
use crate::transport::Stop;
use moe_core::Elem;

/// `send[r]` elements of `source` go to rank r, `receive[r]` elements of `target` come from it, both in rank order.
pub(crate) fn all_to_all<T: Elem>(
    call: &mut Call<'_>,
    source: &[T],
    send: &[usize],
    target: &mut [T],
    receive: &[usize],
) -> Result<(), Stop> {
    let (sent, mut parts) = (ranges(send), cut(target, receive.iter().copied()));
    let me = call.me();
    parts[me].copy_from_slice(&source[sent[me].clone()]);
    let lanes = sent.into_iter().zip(parts);
    call.round(lanes.map(|(sent, part)| Lane { send: one(&source[sent]), receive: one_mut(part) }).collect())
}
