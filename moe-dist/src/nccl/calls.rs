//! Calls: which of NCCL's calls a collective is made of.
//!
//! Parts that differ in length go as one group: all-gather as a broadcast from each rank, reduce-scatter as a reduction to each rank,
//! all-to-all as sends and receives. An empty part is no call; both sides know its length. What only moves goes as bytes.
//!
//! NCCL chooses the order of sums by size and topology: the same on every run, and one result that all ranks get. In bf16 and f16
//! it rounds after every rank, which for two ranks is once.

use super::communicator::{Communicator, Failure};
use super::library::{Code, Handle, Library};
use moe_core::{DType, Elem, In, Out, Reduce, Reducible};
use moe_cuda::{Cuda, CudaError, Lent};
use std::ffi::{c_int, c_void};

/// Why a collective's calls were not made.
#[derive(Debug)]
pub(super) enum Trouble {
    Cuda(CudaError),
    Nccl(Failure),
}

impl From<CudaError> for Trouble {
    fn from(error: CudaError) -> Self {
        Self::Cuda(error)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Nccl(failure)
    }
}

/// NCCL's number of bytes as an element type.
const BYTES: c_int = 1;

fn dtype<T: Elem>() -> c_int {
    match T::DTYPE {
        DType::U8 => BYTES,
        DType::U32 => 3,
        DType::F16 => 6,
        DType::F32 => 7,
        DType::F64 => 8,
        DType::Bf16 => 9,
        // NCCL refuses it.
        _ => -1,
    }
}

fn number(how: Reduce) -> c_int {
    match how {
        Reduce::Max => 2,
        _ => 0,
    }
}

/// Makes the calls that `call` returns the answer of for each item, up to the first that is refused.
fn each<I>(mut items: impl Iterator<Item = I>, mut call: impl FnMut(I) -> Code) -> Code {
    let fine = |code: &Code| matches!(*code, Code::SUCCESS | Code::IN_PROGRESS);
    items.find_map(|item| Some(call(item)).filter(|code| !fine(code))).unwrap_or(Code::SUCCESS)
}

/// Each rank that has elements, with their place and number, in bytes or elements as `counts` is.
fn parts(counts: &[usize], size: usize) -> impl Iterator<Item = (c_int, usize, usize)> {
    let mut end = 0;
    let place = move |(rank, &count): (usize, &usize)| {
        end += count;
        (rank as c_int, (end - count) * size, count)
    };
    counts.iter().enumerate().map(place).filter(|&(_, _, count)| count > 0)
}

fn equal(counts: &[usize]) -> bool {
    counts.iter().all(|&count| count == counts[0])
}

/// `values` become their reduction over the ranks.
pub(super) fn all_reduce<T: Reducible>(
    communicator: &Communicator,
    lent: &Lent<'_>,
    how: Reduce,
    values: Out<'_, Cuda, T>,
) -> Result<(), Trouble> {
    let count = values.len();
    let at = lent.write("values", values)?;
    let stream = lent.stream();
    // SAFETY: `count` elements lie at the address until the stream has done this.
    let call = |nccl: &Library, to: Handle| unsafe {
        (nccl.all_reduce)(at, at, count, dtype::<T>(), number(how), to, stream)
    };
    Ok(communicator.group(call)?)
}

/// `target` becomes the ranks' elements in rank order, `counts[r]` of rank r; this rank, `me`, has `source`.
pub(super) fn all_gather<T: Elem>(
    communicator: &Communicator,
    lent: &Lent<'_>,
    me: usize,
    source: In<'_, Cuda, T>,
    target: Out<'_, Cuda, T>,
    counts: &[usize],
) -> Result<(), Trouble> {
    let from = lent.read("source", source)?;
    let to = lent.write("target", target)?;
    let (stream, size) = (lent.stream(), size_of::<T>());
    // SAFETY: the source has `counts[me]` elements and the target the sum of all, as was checked, until the stream has done this.
    let call = |nccl: &Library, handle: Handle| unsafe {
        if equal(counts) {
            return (nccl.all_gather)(from, to, counts[me] * size, BYTES, handle, stream);
        }
        each(parts(counts, size), |(rank, place, count)| {
            let to = to.byte_add(place);
            let from = if rank as usize == me { from } else { to };
            (nccl.broadcast)(from, to, count * size, BYTES, rank, handle, stream)
        })
    };
    Ok(communicator.group(call)?)
}

/// `target` becomes the reduction of all ranks' part `me` of `source`; part r has `counts[r]` elements.
pub(super) fn reduce_scatter<T: Reducible>(
    communicator: &Communicator,
    lent: &Lent<'_>,
    how: Reduce,
    source: In<'_, Cuda, T>,
    target: Out<'_, Cuda, T>,
    counts: &[usize],
) -> Result<(), Trouble> {
    let count = target.len();
    let from = lent.read("source", source)?;
    let to = lent.write("target", target)?;
    let stream = lent.stream();
    // SAFETY: the source has the sum of the counts and the target this rank's, as was checked, until the stream has done this. Only the
    // root of a reduction writes, and the root of a part is the rank whose target it is.
    let call = |nccl: &Library, handle: Handle| unsafe {
        if equal(counts) {
            return (nccl.reduce_scatter)(from, to, count, dtype::<T>(), number(how), handle, stream);
        }
        each(parts(counts, size_of::<T>()), |(rank, place, count)| {
            (nccl.reduce)(from.byte_add(place), to, count, dtype::<T>(), number(how), rank, handle, stream)
        })
    };
    Ok(communicator.group(call)?)
}

/// `send[r]` elements of `source` go to rank r, and `receive[r]` elements of `target` come from it, both in rank order.
pub(super) fn all_to_all<T: Elem>(
    communicator: &Communicator,
    lent: &Lent<'_>,
    source: In<'_, Cuda, T>,
    send: &[usize],
    target: Out<'_, Cuda, T>,
    receive: &[usize],
) -> Result<(), Trouble> {
    let from = lent.read("source", source)?;
    let to = lent.write("target", target)?;
    let (stream, size) = (lent.stream(), size_of::<T>());
    // SAFETY: source and target have the sums of their counts, as was checked, until the stream has done this.
    let call = |nccl: &Library, handle: Handle| unsafe {
        let sent = each(parts(send, size), |(rank, place, count)| {
            (nccl.send)(from.byte_add(place), count * size, BYTES, rank, handle, stream)
        });
        if sent != Code::SUCCESS {
            return sent;
        }
        each(parts(receive, size), |(rank, place, count)| {
            (nccl.receive)(to.byte_add(place), count * size, BYTES, rank, handle, stream)
        })
    };
    Ok(communicator.group(call)?)
}

/// `values` become those of rank `root`.
pub(super) fn broadcast<T: Elem>(
    communicator: &Communicator,
    lent: &Lent<'_>,
    root: usize,
    values: Out<'_, Cuda, T>,
) -> Result<(), Trouble> {
    let bytes = values.len() * size_of::<T>();
    let at: *mut c_void = lent.write("values", values)?;
    let stream = lent.stream();
    // SAFETY: so many bytes lie at the address until the stream has done this.
    let call = |nccl: &Library, handle: Handle| unsafe {
        (nccl.broadcast)(at, at, bytes, BYTES, root as c_int, handle, stream)
    };
    Ok(communicator.group(call)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_parts_are_no_calls_but_count_ranks() {
        assert_eq!(parts(&[2, 0, 3], 4).collect::<Vec<_>>(), [(0, 0, 2), (2, 8, 3)]);
        assert_eq!(parts(&[0, 0], 8).count(), 0);
    }

    #[test]
    fn calls_end_at_the_first_that_is_refused() {
        let mut made = 0;
        let code = each(0..5, |at| {
            made += 1;
            if at == 2 { Code::REMOTE } else { Code::SUCCESS }
        });
        assert_eq!((code, made), (Code::REMOTE, 3));
    }
}
