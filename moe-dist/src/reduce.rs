//! Reductions over ranks: in rank order, in the type that [`Reducible`] names, rounded once.

use moe_core::{Reduce, Reducible};

/// Elements that are reduced at a time: sums stay in the first-level cache.
const BLOCK: usize = 1024;

/// `out[i]` becomes the reduction of all `parts[r][i]`, r ascending. The part `None` is what `out` holds before.
/// Parts are as long as `out`; there is at least one.
pub(crate) fn reduce<T: Reducible>(how: Reduce, parts: &[Option<&[T]>], out: &mut [T]) {
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let range = block * BLOCK..block * BLOCK + out.len();
        let part = |rank: usize| parts[rank].map(|part| &part[range.clone()]);
        match how {
            Reduce::Max => largest(parts.len(), part, out),
            _ => sum(parts.len(), part, out),
        }
    }
}

fn sum<'a, T: Reducible>(ranks: usize, part: impl Fn(usize) -> Option<&'a [T]>, out: &mut [T]) {
    let mut sums = [T::Sum::default(); BLOCK];
    let sums = &mut sums[..out.len()];
    for rank in 0..ranks {
        let part = part(rank).unwrap_or(out);
        for (sum, value) in sums.iter_mut().zip(part) {
            *sum = if rank == 0 { value.begin() } else { value.add_to(*sum) };
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = T::end(*sum);
    }
}

fn largest<'a, T: Reducible>(ranks: usize, part: impl Fn(usize) -> Option<&'a [T]>, out: &mut [T]) {
    let mut largest = [T::default(); BLOCK];
    let largest = &mut largest[..out.len()];
    for rank in 0..ranks {
        let part = part(rank).unwrap_or(out);
        for (largest, value) in largest.iter_mut().zip(part) {
            *largest = if rank == 0 { *value } else { largest.larger(*value) };
        }
    }
    out.copy_from_slice(largest);
}
