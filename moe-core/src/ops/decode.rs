//! Decode: inference for few tokens as one op: Route, Sort, ExpertUp, ExpertDown and Combine.
//!
//! Its definition is those five, one after the other, without capacity: `out[t] = sum over k of
//! weights[t, k] * expert(ids[t, k])(x[t]) + base[t]`, every value rounded to the storage type where the five round it. With a
//! few tokens each of the five takes little longer than a launch; a device that computes them together, which it says in
//! [`Device::decodes`], saves launches, and fetches the weights of the second product while the first is computed. Other
//! devices launch [`apart`].

use super::{
    Base, Combine, CombineArgs, CombineDims, ExpertDims, ExpertDown, ExpertDownArgs, ExpertUp, ExpertUpArgs,
    Route, RouteArgs, RouteDims, RouteRule, Sort, SortArgs, SortDims, Weight,
};
use crate::device::{Device, Kernel, Op, Path};
use crate::error::{OpId, ShapeError, expect};
use crate::host::Host;
use crate::scalar::Scalar;
use crate::view::{In, Out};
use core::marker::PhantomData;

/// Inference for few tokens, for storage type `T`.
pub struct Decode<T>(PhantomData<T>);

/// Sizes of [`Decode`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeDims {
    /// as for ExpertUp: fan is K, rows is tokens * K
    pub experts: ExpertDims,
    /// the router
    pub rule: RouteRule,
    /// whether the weights are applied before the experts instead of after them
    pub scores_first: bool,
}

impl DecodeDims {
    /// Sizes of the router.
    pub fn route(&self) -> RouteDims {
        let ExpertDims { tokens, fan, experts, width, .. } = self.experts;
        RouteDims { tokens, width, experts, top_k: fan, rule: self.rule }
    }

    /// Sizes of the sort.
    pub fn sort(&self) -> SortDims {
        SortDims { slots: self.experts.slots(), experts: self.experts.experts, capacity: None }
    }

    /// Sizes of the sum.
    pub fn combine(&self) -> CombineDims {
        let ExpertDims { tokens, fan, rows, width, .. } = self.experts;
        CombineDims { tokens, top_k: fan, width, rows }
    }
}

/// Views of [`Decode`].
pub struct DecodeArgs<'a, D: Device, T: Scalar> {
    /// the router's, x among them, which the experts read too
    pub route: RouteArgs<'a, D, T>,
    /// (experts, up_width, width): gate half, then up half
    pub w13: Weight<'a, D, T>,
    /// (experts, up_width)
    pub b13: Option<In<'a, D, T>>,
    /// (experts, width, hidden)
    pub w2: Weight<'a, D, T>,
    /// (experts, width)
    pub b2: Option<In<'a, D, T>>,
    /// terms added last: the shared experts' output
    pub base: [Option<Base<'a, D, T>>; 3],
    /// (experts), overwritten: slots per expert
    pub counts: Out<'a, D, u32>,
    /// (1), overwritten: slots without a row
    pub dropped: Out<'a, D, u32>,
    /// (tokens, width), overwritten
    pub out: Out<'a, D, T>,
    /// what lies between the parts
    pub room: DecodeRoom<'a, D, T>,
}

/// Room for what lies between the parts. What it holds afterwards is left open.
pub struct DecodeRoom<'a, D: Device, T: Scalar> {
    /// (experts + 1)
    pub offsets: Out<'a, D, u32>,
    /// (rows)
    pub row_of_slot: Out<'a, D, u32>,
    /// (rows)
    pub slot_of_row: Out<'a, D, u32>,
    /// (rows, hidden)
    pub a: Out<'a, D, T>,
    /// (rows, width)
    pub y: Out<'a, D, T>,
}

impl<T: Scalar> Op for Decode<T> {
    const ID: OpId = OpId("decode");
    type Dims = DecodeDims;
    type Args<'a, D: Device> = DecodeArgs<'a, D, T>;

    fn check<D: Device>(dims: &DecodeDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        let (of, room) = (&dims.experts, &args.room);
        of.check(Self::ID, Some(of.rows), room.offsets.len())?;
        expect(Self::ID, "rows", &[of.tokens, of.fan], of.rows)?;
        dims.route().check(Self::ID, &args.route)?;
        args.w13.check(Self::ID, "w13", &[of.experts, of.up_width(), of.width])?;
        args.w2.check(Self::ID, "w2", &[of.experts, of.width, of.hidden])?;
        if let Some(b13) = &args.b13 {
            expect(Self::ID, "b13", &[of.experts, of.up_width()], b13.len())?;
        }
        if let Some(b2) = &args.b2 {
            expect(Self::ID, "b2", &[of.experts, of.width], b2.len())?;
        }
        for base in args.base.iter().flatten() {
            expect(Self::ID, "base", &[of.tokens, of.width], base.rows.len())?;
            if let Some(scale) = &base.scale {
                expect(Self::ID, "base scale", &[of.tokens], scale.len())?;
            }
        }
        expect(Self::ID, "counts", &[of.experts], args.counts.len())?;
        expect(Self::ID, "dropped", &[1], args.dropped.len())?;
        expect(Self::ID, "out", &[of.tokens, of.width], args.out.len())?;
        expect(Self::ID, "row_of_slot", &[of.rows], room.row_of_slot.len())?;
        expect(Self::ID, "slot_of_row", &[of.rows], room.slot_of_row.len())?;
        expect(Self::ID, "a", &[of.rows, of.hidden], room.a.len())?;
        expect(Self::ID, "y", &[of.rows, of.width], room.y.len())
    }

    fn reference(dims: &DecodeDims, mut args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        Route::<T>::reference(&dims.route(), args.route.reborrow())?;
        Sort::<T>::reference(&dims.sort(), sort(&mut args))?;
        ExpertUp::<T>::reference(&dims.experts, up(dims, &mut args))?;
        ExpertDown::<T>::reference(&dims.experts, down(&mut args))?;
        Combine::<T>::reference(&dims.combine(), combine(dims, &mut args))
    }
}

fn sort<'a, T: Scalar, D: Device>(args: &'a mut DecodeArgs<'_, D, T>) -> SortArgs<'a, D, T> {
    SortArgs {
        ids: args.route.ids.read(),
        weights: None,
        offsets: args.room.offsets.reborrow(),
        row_of_slot: args.room.row_of_slot.reborrow(),
        slot_of_row: args.room.slot_of_row.reborrow(),
        counts: args.counts.reborrow(),
        dropped: args.dropped.reborrow(),
    }
}

fn up<'a, T: Scalar, D: Device>(
    dims: &DecodeDims,
    args: &'a mut DecodeArgs<'_, D, T>,
) -> ExpertUpArgs<'a, D, T> {
    ExpertUpArgs {
        x: args.route.x,
        index: Some(args.room.slot_of_row.read()),
        offsets: args.room.offsets.read(),
        w13: args.w13,
        b13: args.b13,
        weights: dims.scores_first.then_some(args.route.weights.read()),
        h: None,
        a: args.room.a.reborrow(),
    }
}

fn down<'a, T: Scalar, D: Device>(args: &'a mut DecodeArgs<'_, D, T>) -> ExpertDownArgs<'a, D, T> {
    ExpertDownArgs {
        a: args.room.a.read(),
        offsets: args.room.offsets.read(),
        w2: args.w2,
        b2: args.b2,
        out_index: None,
        y: args.room.y.reborrow(),
    }
}

fn combine<'a, T: Scalar, D: Device>(
    dims: &DecodeDims,
    args: &'a mut DecodeArgs<'_, D, T>,
) -> CombineArgs<'a, D, T> {
    let base =
        |base: &Option<Base<'a, D, T>>| base.as_ref().map(|base| Base { rows: base.rows, scale: base.scale });
    CombineArgs {
        y: args.room.y.read(),
        row_of_slot: args.room.row_of_slot.read(),
        weights: (!dims.scores_first).then_some(args.route.weights.read()),
        base: args.base.each_ref().map(base),
        out: args.out.reborrow(),
    }
}

/// Bytes of scratch memory for [`apart`].
pub fn apart_scratch<T: Scalar, D>(device: &D, dims: &DecodeDims) -> usize
where
    D: Kernel<Route<T>> + Kernel<Sort<T>> + Kernel<ExpertUp<T>> + Kernel<ExpertDown<T>> + Kernel<Combine<T>>,
{
    Kernel::<Route<T>>::scratch(device, &dims.route())
        .max(Kernel::<Sort<T>>::scratch(device, &dims.sort()))
        .max(Kernel::<ExpertUp<T>>::scratch(device, &dims.experts))
        .max(Kernel::<ExpertDown<T>>::scratch(device, &dims.experts))
        .max(Kernel::<Combine<T>>::scratch(device, &dims.combine()))
}

/// The launch of [`Decode`] on a device that has nothing better: its five parts.
///
/// # Errors
/// The device's own.
pub fn apart<T: Scalar, D>(
    device: &D,
    stream: &D::Stream,
    dims: &DecodeDims,
    mut args: DecodeArgs<'_, D, T>,
    mut scratch: Out<'_, D, u8>,
) -> Result<Path, D::Error>
where
    D: Kernel<Route<T>> + Kernel<Sort<T>> + Kernel<ExpertUp<T>> + Kernel<ExpertDown<T>> + Kernel<Combine<T>>,
{
    Kernel::<Route<T>>::launch(device, stream, &dims.route(), args.route.reborrow(), scratch.reborrow())?;
    Kernel::<Sort<T>>::launch(device, stream, &dims.sort(), sort(&mut args), scratch.reborrow())?;
    Kernel::<ExpertUp<T>>::launch(device, stream, &dims.experts, up(dims, &mut args), scratch.reborrow())?;
    Kernel::<ExpertDown<T>>::launch(device, stream, &dims.experts, down(&mut args), scratch.reborrow())?;
    Kernel::<Combine<T>>::launch(device, stream, &dims.combine(), combine(dims, &mut args), scratch)?;
    Ok(Path("apart"))
}
