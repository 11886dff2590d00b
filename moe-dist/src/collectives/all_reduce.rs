//! All-reduce: short messages go whole from every member to every other; of longer ones each member reduces a slice and sends
//! the result to the others. Either way every element is reduced in rank order and rounded once, so the length changes
//! no bits.

use super::{one, one_mut, piece, room, segment, take};
use crate::member::{Call, Lane};
use crate::reduce::reduce;
use crate::staging::Staging;
use crate::transport::Stop;
use bytemuck::{cast_slice, cast_slice_mut};
use moe_core::{Reduce, Reducible};
use std::ops::Range;

/// Bytes up to which one round with n - 1 whole messages is faster than two with slices.
const WHOLE: usize = 32 << 10;

/// `values` become the reduction of all members' values.
pub(crate) fn all_reduce<T: Reducible>(
    call: &mut Call<'_>,
    how: Reduce,
    values: &mut [T],
    scratch: &mut Staging,
) -> Result<(), Stop> {
    if size_of_val(values) <= WHOLE {
        return whole(call, how, values, scratch);
    }
    let (size, me, len) = (call.size(), call.me(), segment::<T>());
    let total = values.len();
    let slices: Vec<Range<usize>> = (0..size).map(|r| total * r / size..total * (r + 1) / size).collect();
    let longest = slices.iter().map(Range::len).max().unwrap_or(0);
    // Round `at` carries segment `at` of the slices to their members, and the reduced segment before it to all.
    for at in 0..=longest.div_ceil(len) {
        let own = piece(&slices[me], at, len);
        let mut received = room::<T>(scratch, size, own.len());
        let mut rest = &mut *values;
        let mut pieces = Vec::with_capacity(size);
        for slice in &slices {
            let next = piece(slice, at, len);
            let done = if at == 0 { next.start..next.start } else { piece(slice, at - 1, len) };
            take(&mut rest, done.start - slice.start);
            let (sent, fresh) = (take(&mut rest, done.len()), take(&mut rest, next.len()));
            take(&mut rest, slice.end - next.end);
            pieces.push((sent, fresh));
        }
        let reduced = std::mem::take(&mut pieces[me].0);
        let lanes = pieces.into_iter().zip(&mut received).map(|((done, next), receive)| Lane {
            send: [cast_slice(next), cast_slice(reduced)],
            receive: [cast_slice_mut(receive), cast_slice_mut(done)],
        });
        call.round(lanes.collect())?;
        reduce_own(how, me, &received, &mut values[own]);
    }
    Ok(())
}

fn whole<T: Reducible>(
    call: &mut Call<'_>,
    how: Reduce,
    values: &mut [T],
    scratch: &mut Staging,
) -> Result<(), Stop> {
    let mut received = room::<T>(scratch, call.size(), values.len());
    let lanes =
        received.iter_mut().map(|receive| Lane { send: one(values), receive: one_mut(receive) }).collect();
    call.round(lanes)?;
    reduce_own(how, call.me(), &received, values);
    Ok(())
}

/// Reduces what came from the others with what this member has in `values`.
fn reduce_own<T: Reducible>(how: Reduce, me: usize, received: &[&mut [T]], values: &mut [T]) {
    let parts: Vec<_> =
        received.iter().enumerate().map(|(rank, part)| (rank != me).then_some(&**part)).collect();
    reduce(how, &parts, values);
}
