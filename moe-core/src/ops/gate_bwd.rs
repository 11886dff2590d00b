//! GateBwd: the gate's part of the input gradient, and the gradients of gate and gate bias.
//!
//! `dx[t] = sum over e, in order, of dlogits[t, e] * gate[e]`, `dgate[e] = sum over t of dlogits[t, e] * x[t]`,
//! `dbias[e] = sum over t of dlogits[t, e]`; sums over tokens in chunks of 1024, each chunk in order from +0, then chunk to
//! chunk from +0, and the whole added to the gradient once (or overwriting it). With jitter, x is what the router
//! saw, and dx carries its factor.

use super::jitter::{check_stamp, read_stamp};
use super::{CHUNK, Jitter, Weight, jittered};
use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, expect};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out, View, ViewMut};
use core::marker::PhantomData;

/// Gradients of the gate, for storage type `T`.
pub struct GateBwd<T>(PhantomData<T>);

/// Sizes and settings of [`GateBwd`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GateBwdDims {
    /// T
    pub tokens: usize,
    /// D
    pub width: usize,
    /// E
    pub experts: usize,
    /// noise that the forward pass put on x
    pub jitter: Option<Jitter>,
    /// add to the gradients instead of overwriting them
    pub accumulate: bool,
}

/// Views of [`GateBwd`].
pub struct GateBwdArgs<'a, D: Device, T: Scalar> {
    /// (tokens, experts)
    pub dlogits: In<'a, D, T::Acc>,
    /// (tokens, width)
    pub x: In<'a, D, T>,
    /// (experts, width)
    pub gate: Weight<'a, D, T>,
    /// ([`STAMP`](super::STAMP)) of the forward pass, with jitter
    pub stamp: Option<In<'a, D, u32>>,
    /// (tokens, width), overwritten
    pub dx: Out<'a, D, T>,
    /// (experts, width), overwritten or added to
    pub dgate: Out<'a, D, T::Acc>,
    /// (experts), overwritten or added to
    pub dbias: Option<Out<'a, D, T::Acc>>,
}

impl<T: Scalar> Op for GateBwd<T> {
    const ID: OpId = OpId("gate_bwd");
    type Dims = GateBwdDims;
    type Args<'a, D: Device> = GateBwdArgs<'a, D, T>;

    fn check<D: Device>(dims: &GateBwdDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        let GateBwdDims { tokens, width, experts, .. } = *dims;
        expect(Self::ID, "dlogits", &[tokens, experts], args.dlogits.len())?;
        expect(Self::ID, "x", &[tokens, width], args.x.len())?;
        args.gate.check(Self::ID, "gate", &[experts, width])?;
        check_stamp(Self::ID, dims.jitter.is_some(), args.stamp.map(|s| s.len()))?;
        expect(Self::ID, "dx", &[tokens, width], args.dx.len())?;
        expect(Self::ID, "dgate", &[experts, width], args.dgate.len())?;
        match &args.dbias {
            Some(dbias) => expect(Self::ID, "dbias", &[experts], dbias.len()),
            None => Ok(()),
        }
    }

    fn reference(dims: &GateBwdDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let GateBwdDims { tokens, width, experts, jitter, accumulate } = *dims;
        let (dlogits, x, gate) = (args.dlogits.host(), args.x.host(), args.gate.host());
        let stamp = read_stamp(args.stamp.map(View::host));
        let seen = |token, d| jittered(jitter, Jitter::key(&stamp, token), d, x[token * width + d].widen());
        for (at, dx) in args.dx.host().iter_mut().enumerate() {
            let (token, d) = (at / width, at % width);
            let mut sum = T::Acc::ZERO;
            for expert in 0..experts {
                let gate: T::Acc = gate[expert * width + d].widen();
                sum = dlogits[token * experts + expert].fused(gate, sum);
            }
            *dx = T::narrow(jittered(jitter, Jitter::key(&stamp, token), d, sum));
        }
        let store = |out: &mut T::Acc, sum| *out = if accumulate { *out + sum } else { sum };
        for (at, dgate) in args.dgate.host().iter_mut().enumerate() {
            let (expert, d) = (at / width, at % width);
            store(dgate, over_tokens(tokens, |t, sum| dlogits[t * experts + expert].fused(seen(t, d), sum)));
        }
        for (expert, dbias) in args.dbias.map(ViewMut::host).into_iter().flatten().enumerate() {
            store(dbias, over_tokens(tokens, |t, sum| dlogits[t * experts + expert] + sum));
        }
        Ok(())
    }
}

/// A sum over tokens by chunks; `term` adds a token's term to the chunk's sum.
fn over_tokens<A: Accum>(tokens: usize, term: impl Fn(usize, A) -> A) -> A {
    let mut sum = A::ZERO;
    for start in (0..tokens).step_by(CHUNK) {
        sum += (start..tokens.min(start + CHUNK)).fold(A::ZERO, |part, token| term(token, part));
    }
    sum
}
