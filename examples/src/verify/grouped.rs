//! Grouped experts by ops, forward and backward: row r of the input is row r of the experts.

use super::rig::{Rig, view_if};
use super::weights::Experts;
use anyhow::Result;
use moe_core::ops::{
    ExpertDims, ExpertDown, ExpertDownArgs, ExpertDownBwd, ExpertDownBwdArgs, ExpertUp, ExpertUpArgs,
    ExpertUpBwd, ExpertUpBwdArgs, ExpertWgrad, ExpertWgradArgs, PackUse, WgradDims,
};
use moe_core::{MoeDevice, Scalar, whole, whole_mut};

/// What the experts made of their rows, and the gradients.
pub(crate) struct GroupedResult<T> {
    /// (rows, width)
    pub(crate) y: Vec<T>,
    /// (rows, width)
    pub(crate) dx: Vec<T>,
    /// (experts, 2 hidden, width)
    pub(crate) dw13: Vec<f32>,
    /// (experts, 2 hidden)
    pub(crate) db13: Vec<f32>,
    /// (experts, width, hidden)
    pub(crate) dw2: Vec<f32>,
    /// (experts, width)
    pub(crate) db2: Vec<f32>,
}

/// Runs the experts on the rows `x`, grouped by `offsets`, and back from `dout`.
///
/// # Errors
/// Shape errors and the device's.
pub(crate) fn run_experts<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    experts: &Experts<T>,
    offsets: &[u32],
    x: &[T],
    dout: &[T],
) -> Result<GroupedResult<T>> {
    let rows = offsets.last().map_or(0, |last| *last as usize);
    let dims = ExpertDims {
        tokens: rows,
        fan: 1,
        rows,
        experts: experts.experts,
        width: experts.width,
        hidden: experts.hidden,
        activation: experts.activation,
        bias_shares: 1,
    };
    let (up, width, hidden) = (dims.up_width(), dims.width, dims.hidden);
    let (x, dout, offsets) = (rig.put(x)?, rig.put(dout)?, rig.put(offsets)?);
    let (b13, b2) = (rig.put_if(experts.b13.as_deref())?, rig.put_if(experts.b2.as_deref())?);
    let w13 = rig.load(&experts.w13, dims.pack(PackUse::Up))?;
    let w2 = rig.load(&experts.w2, dims.pack(PackUse::Down))?;
    let mut h = rig.poisoned::<T>(rows * up)?;
    let mut a = rig.poisoned::<T>(rows * hidden)?;
    let mut y = rig.poisoned::<T>(rows * width)?;
    let args = ExpertUpArgs {
        x: whole::<D, T>(&x),
        index: None,
        offsets: whole::<D, u32>(&offsets),
        w13: w13.weight(),
        b13: view_if::<D, T>(&b13),
        weights: None,
        h: Some(whole_mut::<D, T>(&mut h)),
        a: whole_mut::<D, T>(&mut a),
    };
    rig.launch::<ExpertUp<T>>(&dims, args)?;
    let args = ExpertDownArgs {
        a: whole::<D, T>(&a),
        offsets: whole::<D, u32>(&offsets),
        w2: w2.weight(),
        b2: view_if::<D, T>(&b2),
        out_index: None,
        y: whole_mut::<D, T>(&mut y),
    };
    rig.launch::<ExpertDown<T>>(&dims, args)?;

    let w13 = rig.load(&experts.w13, dims.pack(PackUse::UpBwd))?;
    let w2 = rig.load(&experts.w2, dims.pack(PackUse::DownBwd))?;
    let mut dx = rig.poisoned::<T>(rows * width)?;
    let args = ExpertDownBwdArgs {
        dout: whole::<D, T>(&dout),
        index: None,
        offsets: whole::<D, u32>(&offsets),
        w2: w2.weight(),
        b2: view_if::<D, T>(&b2),
        b13: view_if::<D, T>(&b13),
        weights: None,
        scores_first: false,
        h: whole_mut::<D, T>(&mut h),
        a: whole_mut::<D, T>(&mut a),
        ds: None,
    };
    rig.launch::<ExpertDownBwd<T>>(&dims, args)?;
    let args = ExpertUpBwdArgs {
        dz: whole::<D, T>(&h),
        offsets: whole::<D, u32>(&offsets),
        w13: w13.weight(),
        weights: None,
        index: None,
        out_index: None,
        dx: whole_mut::<D, T>(&mut dx),
    };
    rig.launch::<ExpertUpBwd<T>>(&dims, args)?;
    let gradients = |left: &D::Owned<T>, left_width: usize, right: &D::Owned<T>, right_width: usize| {
        let dims = WgradDims {
            tokens: rows,
            fan: 1,
            rows,
            experts: dims.experts,
            left: left_width,
            right: right_width,
            gather_left: false,
            gather_right: false,
            accumulate: false,
        };
        let mut dw = rig.poisoned::<f32>(dims.experts * left_width * right_width)?;
        let mut dbias = rig.poisoned::<f32>(dims.experts * left_width)?;
        let args = ExpertWgradArgs {
            left: whole::<D, T>(left),
            right: whole::<D, T>(right),
            index: None,
            offsets: whole::<D, u32>(&offsets),
            right_weights: None,
            bias_weights: None,
            dw: whole_mut::<D, f32>(&mut dw),
            dbias: Some(whole_mut::<D, f32>(&mut dbias)),
        };
        rig.launch::<ExpertWgrad<T>>(&dims, args)?;
        anyhow::Ok((rig.get::<f32>(&dw)?, rig.get::<f32>(&dbias)?))
    };
    let (dw13, db13) = gradients(&h, up, &x, width)?;
    let (dw2, db2) = gradients(&dout, width, &a, hidden)?;
    Ok(GroupedResult { y: rig.get::<T>(&y)?, dx: rig.get::<T>(&dx)?, dw13, db13, dw2, db2 })
}
