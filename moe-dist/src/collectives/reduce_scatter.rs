//! Reduce-scatter: every member sends each other its part, segment by segment, and each reduces its own part in rank order.

use super::{one, one_mut, piece, ranges, room, segment};
use crate::member::{Call, Lane};
use crate::reduce::reduce;
use crate::staging::Staging;
use crate::transport::Stop;
use moe_core::{Reduce, Reducible};

/// `target` becomes the reduction of all members' part `me` of `source`; part r has `counts[r]` elements.
pub(crate) fn reduce_scatter<T: Reducible>(
    call: &mut Call<'_>,
    how: Reduce,
    source: &[T],
    target: &mut [T],
    counts: &[usize],
    scratch: &mut Staging,
) -> Result<(), Stop> {
    let (parts, me, len) = (ranges(counts), call.me(), segment::<T>());
    let longest = counts.iter().copied().max().unwrap_or(0);
    for at in 0..longest.div_ceil(len).max(1) {
        let own = piece(&parts[me], at, len);
        let mut received = room::<T>(scratch, parts.len(), own.len());
        let lanes = received.iter_mut().zip(&parts).map(|(receive, part)| Lane {
            send: one(&source[piece(part, at, len)]),
            receive: one_mut(receive),
        });
        call.round(lanes.collect())?;
        received[me].copy_from_slice(&source[own.clone()]);
        let summed: Vec<_> = received.iter().map(|part| Some(&**part)).collect();
        let start = own.start - parts[me].start;
        reduce(how, &summed, &mut target[start..start + own.len()]);
    }
    Ok(())
}
