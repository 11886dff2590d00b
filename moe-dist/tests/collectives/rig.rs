//! Ranks as threads, and values for them.

use moe_core::{CollectiveError, DType, Elem, Host};
use moe_dist::{Group, World};
use std::thread;

/// Runs `work` as every rank of a world, and returns what it returned, in rank order.
pub(crate) fn worlds<R: Send>(ranks: usize, work: impl Fn(World) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let start = |world| scope.spawn(|| work(world));
        let threads: Vec<_> = super::ends(ranks).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// As [`worlds`], with a group of all ranks.
pub(crate) fn groups<R: Send>(ranks: usize, work: impl Fn(Group<Host>) -> R + Sync) -> Vec<R> {
    let all: Vec<_> = (0..ranks).collect();
    worlds(ranks, |world| work(world.group(&Host, "all", &all).unwrap()))
}

/// `len` elements that differ by rank, of all magnitudes, some equal on all ranks.
pub(crate) fn values<T: Elem>(rank: usize, len: usize) -> Vec<T> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(rank as u64 + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut one = || {
        let bits = next();
        let float = ((bits >> 40) as f64 - 8e6) * 2_f64.powi((bits & 15) as i32 - 24);
        match T::DTYPE {
            DType::F32 => bytemuck::cast_slice(&[float as f32])[0],
            DType::F64 => bytemuck::cast_slice(&[float])[0],
            DType::Bf16 => bytemuck::cast_slice(&[half::bf16::from_f64(float)])[0],
            DType::F16 => bytemuck::cast_slice(&[half::f16::from_f64(float)])[0],
            DType::U32 => bytemuck::cast_slice(&[bits as u32])[0],
            _ => bytemuck::cast_slice(&[bits as u8])[0],
        }
    };
    (0..len).map(|_| one()).collect()
}

/// The error's kind of failure, rank, operation and number.
pub(crate) fn gist(error: &CollectiveError) -> String {
    format!("{error}")
}

/// What happened below.
pub(crate) fn cause(error: &CollectiveError) -> String {
    error.source.as_ref().map_or(String::new(), |source| source.to_string())
}
