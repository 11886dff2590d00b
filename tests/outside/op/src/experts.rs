//! The experts of a layer with ReGlu between the layer's own products: the unfused path.
//!
//! ExpertUp with [`Activation::Linear`] gives z, [`ReGlu`] makes a, ExpertDown goes on. To the linear product the 2F columns of w13
//! are one hidden width.

use crate::{ReGlu, ReGluArgs, ReGluBwd, ReGluBwdArgs, ReGluDims};
use moe_core::ops::*;
use moe_core::{
    Device, Error, Kernel, MoeConfig, MoeDevice, MoeLayer, Rows, Runner, Saved, Scalar, first, first_mut,
    whole, whole_mut,
};

/// Buffers of the experts, and their gradients. One per micro-batch in flight.
pub struct Experts<D: Device, T: Scalar> {
    config: MoeConfig,
    /// (R, 2F): z, after backward dz
    z: D::Owned<T>,
    /// (R, F): a, after backward da
    a: D::Owned<T>,
    /// (R, F): a'
    scaled: D::Owned<T>,
    /// (R, D): y, in backward dx
    rows: D::Owned<T>,
    /// (E, 2F, D)
    pub dw13: D::Owned<T::Acc>,
    /// (E, D, F)
    pub dw2: D::Owned<T::Acc>,
    /// (N): gradients of the routing weights
    pub dweights: D::Owned<T::Acc>,
}

impl<T: Scalar, D: MoeDevice<T> + Kernel<ReGlu<T>> + Kernel<ReGluBwd<T>>> Experts<D, T> {
    /// Buffers for calls of at most as many tokens as the runner's. The configuration must have gated experts without biases.
    pub fn new(runner: &mut Runner<D, T>, config: &MoeConfig) -> Result<Self, Error<D::Error>> {
        let MoeConfig { width, hidden, experts, top_k, .. } = *config;
        let slots = runner.limits().tokens * top_k;
        let session = runner.session_mut();
        Ok(Self {
            config: *config,
            z: session.alloc(slots * 2 * hidden)?,
            a: session.alloc(slots * hidden)?,
            scaled: session.alloc(slots * hidden)?,
            rows: session.alloc(slots * width)?,
            dw13: session.alloc(experts * 2 * hidden * width)?,
            dw2: session.alloc(experts * width * hidden)?,
            dweights: session.alloc(slots)?,
        })
    }

    /// The products' sizes: up to 2F columns, and down from F.
    fn dims(&self, tokens: usize) -> (ExpertDims, ReGluDims, ExpertDims) {
        let MoeConfig { width, hidden, experts, top_k: fan, .. } = self.config;
        let rows = tokens * fan;
        let down = ExpertDims {
            tokens,
            fan,
            rows,
            experts,
            width,
            hidden,
            activation: Activation::Linear,
            bias_shares: 1,
        };
        (ExpertDims { hidden: 2 * hidden, ..down }, ReGluDims { rows, experts, hidden }, down)
    }

    /// `y` from `x` and the routing in `saved`.
    pub fn forward(
        &mut self,
        runner: &mut Runner<D, T>,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &Saved<D, T>,
        y: &mut Rows<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let (routing, weights) = (saved.routing(), layer.weights()?);
        let (up, middle, down) = self.dims(routing.tokens());
        let session = runner.session_mut();
        let args = ExpertUpArgs {
            x: x.view(),
            index: Some(routing.slot_of_row()?),
            offsets: routing.offsets()?,
            w13: Weight::Plain(whole::<D, T>(&weights.w13)),
            b13: None,
            weights: None,
            h: None,
            a: first_mut::<D, T>(&mut self.z, up.rows * up.hidden)?,
        };
        session.run::<ExpertUp<T>>(&up, args)?;
        let args = ReGluArgs {
            z: first::<D, T>(&self.z, up.rows * up.hidden)?,
            offsets: routing.offsets()?,
            a: first_mut::<D, T>(&mut self.a, down.rows * down.hidden)?,
        };
        session.run::<ReGlu<T>>(&middle, args)?;
        let args = ExpertDownArgs {
            a: first::<D, T>(&self.a, down.rows * down.hidden)?,
            offsets: routing.offsets()?,
            w2: Weight::Plain(whole::<D, T>(&weights.w2)),
            b2: None,
            out_index: None,
            y: first_mut::<D, T>(&mut self.rows, down.rows * down.width)?,
        };
        session.run::<ExpertDown<T>>(&down, args)?;
        let args = CombineArgs {
            y: first::<D, T>(&self.rows, down.rows * down.width)?,
            row_of_slot: routing.row_of_slot()?,
            weights: Some(routing.weights()?),
            base: [None, None, None],
            out: y.view_mut(),
        };
        session.run::<Combine<T>>(&combine(&down), args)
    }

    /// The experts' part of `dx`, and the gradients of w13, w2 and the routing weights, all overwritten.
    pub fn backward(
        &mut self,
        runner: &mut Runner<D, T>,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &Saved<D, T>,
        dy: &Rows<D, T>,
        dx: &mut Rows<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let (routing, weights) = (saved.routing(), layer.weights()?);
        let (up, middle, down) = self.dims(routing.tokens());
        let session = runner.session_mut();
        // Behind a linear activation h is a, and the gradient at its input is da.
        let args = ExpertDownBwdArgs {
            dout: dy.view(),
            index: Some(routing.slot_of_row()?),
            offsets: routing.offsets()?,
            w2: Weight::Plain(whole::<D, T>(&weights.w2)),
            b2: None,
            b13: None,
            weights: Some(routing.weights()?),
            scores_first: false,
            h: first_mut::<D, T>(&mut self.a, down.rows * down.hidden)?,
            a: first_mut::<D, T>(&mut self.scaled, down.rows * down.hidden)?,
            ds: Some(first_mut::<D, T::Acc>(&mut self.dweights, down.slots())?),
        };
        session.run::<ExpertDownBwd<T>>(&down, args)?;
        let args = ReGluBwdArgs {
            da: first::<D, T>(&self.a, down.rows * down.hidden)?,
            offsets: routing.offsets()?,
            z: first_mut::<D, T>(&mut self.z, up.rows * up.hidden)?,
        };
        session.run::<ReGluBwd<T>>(&middle, args)?;
        let args = ExpertWgradArgs {
            left: dy.view(),
            right: first::<D, T>(&self.scaled, down.rows * down.hidden)?,
            index: Some(routing.slot_of_row()?),
            offsets: routing.offsets()?,
            right_weights: None,
            bias_weights: None,
            dw: whole_mut::<D, T::Acc>(&mut self.dw2),
            dbias: None,
        };
        session.run::<ExpertWgrad<T>>(&wgrad(&down, down.width, down.hidden, true), args)?;
        let args = ExpertWgradArgs {
            left: first::<D, T>(&self.z, up.rows * up.hidden)?,
            right: x.view(),
            index: Some(routing.slot_of_row()?),
            offsets: routing.offsets()?,
            right_weights: None,
            bias_weights: None,
            dw: whole_mut::<D, T::Acc>(&mut self.dw13),
            dbias: None,
        };
        session.run::<ExpertWgrad<T>>(&wgrad(&up, up.hidden, up.width, false), args)?;
        let args = ExpertUpBwdArgs {
            dz: first::<D, T>(&self.z, up.rows * up.hidden)?,
            offsets: routing.offsets()?,
            w13: Weight::Plain(whole::<D, T>(&weights.w13)),
            weights: None,
            index: None,
            out_index: None,
            dx: first_mut::<D, T>(&mut self.rows, up.rows * up.width)?,
        };
        session.run::<ExpertUpBwd<T>>(&ExpertDims { fan: 1, tokens: up.rows, ..up }, args)?;
        let args = CombineArgs {
            y: first::<D, T>(&self.rows, up.rows * up.width)?,
            row_of_slot: routing.row_of_slot()?,
            weights: None,
            base: [None, None, None],
            out: dx.view_mut(),
        };
        session.run::<Combine<T>>(&combine(&up), args)
    }
}

fn combine(dims: &ExpertDims) -> CombineDims {
    CombineDims { tokens: dims.tokens, top_k: dims.fan, width: dims.width, rows: dims.rows }
}

/// Sizes of a weight gradient; of its two operands the tokens' is gathered.
fn wgrad(dims: &ExpertDims, left: usize, right: usize, gather_left: bool) -> WgradDims {
    WgradDims {
        tokens: dims.tokens,
        fan: dims.fan,
        rows: dims.rows,
        experts: dims.experts,
        left,
        right,
        gather_left,
        gather_right: !gather_left,
        accumulate: false,
    }
}
