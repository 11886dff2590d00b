//! The ops: each sends its arguments to the worker, which computes the reference and writes the results back.

use crate::device::Far;
use crate::error::FarError;
use crate::stream::Stream;
use crate::travel::{Parcel, Travel};
use moe_core::ops::*;
use moe_core::{Device, Elem, Kernel, Op, OpId, Out, Path, Scalar, ShapeError, expect};

impl From<FaultOf> for FarError {
    fn from(fault: FaultOf) -> Self {
        Self::Fault(fault.0)
    }
}

/// A shape error that the worker found, long after the launch.
struct FaultOf(ShapeError);

/// The size of weights in the device's layout, which only the device knows: it checks what the op's `check` cannot.
fn bytes<T: Scalar>(dims: &PackDims) -> usize {
    Far.packed_len::<T>(dims)
}

fn gate<T: Scalar>(experts: usize, width: usize) -> usize {
    bytes::<T>(&PackDims { groups: 1, rows: experts, cols: width, use_: PackUse::Gate })
}

fn products<T: Scalar>(use_: PackUse) -> impl Fn(&ExpertDims) -> usize {
    move |dims| bytes::<T>(&dims.pack(use_))
}

fn fits(what: &'static str, packed: Option<usize>, want: usize) -> Result<(), ShapeError> {
    packed.map_or(Ok(()), |got| expect(OpId("packed weights"), what, &[want], got))
}

/// An argument that may hold weights in the device's layout.
trait Layout {
    /// Its bytes, if it does.
    fn packed_len(&self) -> Option<usize>;
}

impl<T: Elem> Layout for Weight<'_, Far, T> {
    fn packed_len(&self) -> Option<usize> {
        match self {
            Self::Plain(_) => None,
            Self::Packed(packed) => Some(packed.len()),
        }
    }
}

impl Layout for Out<'_, Far, u8> {
    fn packed_len(&self) -> Option<usize> {
        Some(self.len())
    }
}

/// A kernel per op. All fields must be named, so an argument that is added to an op is missed here by the compiler.
macro_rules! kernels {
    ($(
        $op:ident $(<$t:ident>)? : $args:ident { $($field:ident),* }
        $([$weight:ident: $bytes:expr])?
    )*) => {$(
        impl $(<$t: Scalar>)? Kernel<$op $(<$t>)?> for Far {
            fn launch(
                &self,
                stream: &Stream,
                dims: &<$op $(<$t>)? as Op>::Dims,
                args: $args<'_, Self $(, $t)?>,
                _: Out<'_, Self, u8>,
            ) -> Result<Path, FarError> {
                let dims = *dims;
                $(fits(stringify!($weight), args.$weight.packed_len(), $bytes(&dims))?;)?
                $(let mut $field = args.$field.leave(stream)?;)*
                stream.put(move || {
                    $($field.arrive();)*
                    let args = $args { $($field: $field.here()),* };
                    <$op $(<$t>)?>::reference(&dims, args).map_err(FaultOf)?;
                    $($field.back();)*
                    Ok(())
                })?;
                Ok(Path("queued reference"))
            }
        }
    )*};
}

kernels! {
    Route<T>: RouteArgs {
        x, gate, gate_bias, selection_bias, forced_ids, stamp, logits, ids, weights, non_finite
    } [gate: |dims: &RouteDims| gate::<T>(dims.experts, dims.width)]
    RouteStats<T>: RouteStatsArgs { logits, ids, sequences, counts, prob_sums, z_sum }
    RouteBwd<T>: RouteBwdArgs { logits, ids, dweights, row_of_slot, aux, z_factor, load, dlogits }
    GateBwd<T>: GateBwdArgs { dlogits, x, gate, stamp, dx, dgate, dbias }
        [gate: |dims: &GateBwdDims| gate::<T>(dims.experts, dims.width)]
    Sort<T>: SortArgs { ids, weights, offsets, row_of_slot, slot_of_row, counts, dropped }
    Merge: MergeArgs { counts, offsets, index, overflow }
    Gather<T>: GatherArgs { source, index, offsets, out }
    ExpertUp<T>: ExpertUpArgs { x, index, offsets, w13, b13, weights, h, a }
        [w13: products::<T>(PackUse::Up)]
    ExpertDown<T>: ExpertDownArgs { a, offsets, w2, b2, out_index, y }
        [w2: products::<T>(PackUse::Down)]
    ExpertDownBwd<T>: ExpertDownBwdArgs {
        dout, index, offsets, w2, b2, b13, weights, scores_first, h, a, ds
    } [w2: products::<T>(PackUse::DownBwd)]
    ExpertUpBwd<T>: ExpertUpBwdArgs { dz, offsets, w13, weights, index, out_index, dx }
        [w13: products::<T>(PackUse::UpBwd)]
    ExpertWgrad<T>: ExpertWgradArgs {
        left, right, index, offsets, right_weights, bias_weights, dw, dbias
    }
    Combine<T>: CombineArgs { y, row_of_slot, weights, base, out }
    PackWeights<T>: PackWeightsArgs { plain, packed } [packed: bytes::<T>]
    AdamW<T>: AdamWArgs { settings, grad, w, master, m, v }
    SumSquares<T>: SumSquaresArgs { values, sum }
    BiasUpdate<T>: BiasUpdateArgs { counts, rate, bias }
}

/// Few tokens gain nothing from an op of their own here.
impl<T: Scalar> Kernel<Decode<T>> for Far {
    fn launch(
        &self,
        stream: &Stream,
        dims: &DecodeDims,
        args: DecodeArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, FarError> {
        apart(self, stream, dims, args, scratch)
    }
}
