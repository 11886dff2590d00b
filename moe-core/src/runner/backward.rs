//! Backward: experts, router, gate, and the input gradient that brings them together.

use super::backward_ops::Step;
use super::edge::{self, Gathered, Terms};
use super::exchange::Exchange;
use super::saved::Stage;
use super::{Backward, INFERENCE_ONLY, Rows, Runner, Saved};
use crate::collective::Collective;
use crate::error::{Error, OpId, expect};
use crate::layer::{Grads, MoeLayer};
use crate::ops::{Base, MoeDevice, SumSquares, SumSquaresArgs, SumSquaresDims};
use crate::scalar::{Accum, Scalar};
use crate::view::{In, first, whole, whole_mut};
use alloc::vec::Vec;

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// Gradients of a training forward: `dx` (T, D) overwritten, `grads` overwritten or added to. x is the forward's. Uses
    /// `saved` up. Losses enter at the scores. With other ranks `dx` is whole, and `grads` are this rank's part of a sum.
    ///
    /// # Errors
    /// [`Error::State`] if `saved` holds no forward pass of these tokens; [`Error::Stale`]; [`Error::Shape`];
    /// [`Error::Device`]. After an error the gradients are empty: the step must begin again.
    pub fn backward(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        dy: &Rows<D, T>,
        dx: &mut Rows<D, T>,
        grads: &mut Grads<D, T>,
    ) -> Result<(), Error<D::Error>> {
        self.backward_parts(layer, x, saved, dy, dx, grads, true)
    }

    /// Backward of [`experts`](Self::experts) alone: gradients of experts and shared experts, `dx` without the router's part.
    /// The gradients of the weights (T, K) are then in [`dweights`](Self::dweights). The gate's gradients
    /// are not touched.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn experts_backward(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        dy: &Rows<D, T>,
        dx: &mut Rows<D, T>,
        grads: &mut Grads<D, T>,
    ) -> Result<(), Error<D::Error>> {
        self.backward_parts(layer, x, saved, dy, dx, grads, false)
    }

    /// Gradients of the routing weights (T, K) after a backward. A slot without a row holds no meaning: its gradient is 0.
    ///
    /// # Errors
    /// [`Error::State`] for a runner made for inference; [`Error::Shape`] for a routing of more slots than the runner's.
    pub fn dweights(&self, saved: &Saved<D, T>) -> Result<In<'_, D, T::Acc>, Error<D::Error>> {
        let Some(space) = &self.backward else {
            return Err(Error::State(INFERENCE_ONLY));
        };
        Ok(first::<D, T::Acc>(&space.ds, saved.routing.tokens() * saved.routing.config.top_k)?)
    }

    /// Sum of squares of all gradients of a layer; waits for the device. Its root is the gradient's norm.
    ///
    /// # Errors
    /// [`Error::State`] if the gradients are empty or the runner was made for inference; [`Error::Device`].
    pub fn sum_squares(&mut self, grads: &Grads<D, T>) -> Result<f64, Error<D::Error>> {
        if !grads.filled {
            return Err(Error::State("these gradients are empty: run backward first"));
        }
        self.enter(|runner| {
            let Some(space) = &mut runner.backward else {
                return Err(Error::State(INFERENCE_ONLY));
            };
            let mut accumulate = false;
            for buffer in grads.weights.list().into_iter().flatten() {
                let values = whole::<D, T::Acc>(buffer);
                let dims = SumSquaresDims { len: values.len(), accumulate };
                let args = SumSquaresArgs { values, sum: whole_mut::<D, T::Acc>(&mut space.norm) };
                runner.session.run::<SumSquares<T>>(&dims, args)?;
                accumulate = true;
            }
            let mut sum = [T::Acc::ZERO];
            runner.session.download(whole::<D, T::Acc>(&space.norm), &mut sum)?;
            Ok(sum[0].to_f64())
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_parts(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        dy: &Rows<D, T>,
        dx: &mut Rows<D, T>,
        grads: &mut Grads<D, T>,
        with_router: bool,
    ) -> Result<(), Error<D::Error>> {
        self.enter(|runner| {
            let plan = runner.resume(layer, x, saved, Stage::Forward)?;
            if with_router && saved.adopted {
                return Err(Error::State(
                    "another router decided here: use experts_backward, and its own backward",
                ));
            }
            let len = plan.share.local.len() * plan.config.width;
            for (what, rows) in [("dy", dy), ("dx", &*dx)] {
                expect(OpId("backward"), what, &[len], rows.view().len())?;
            }
            let Some(mut space) = runner.backward.take() else {
                return Err(Error::State(INFERENCE_ONLY));
            };
            let (mut gathered, mut exchange) = (runner.gathered.take(), runner.exchange.take());
            let accumulate = grads.filled;
            saved.stage = Stage::Empty;
            grads.filled = false;
            let (x_buffer, dy_buffer, counts) = match &mut gathered {
                Some(Gathered { x, dy, counts }) => (Some(x), Some(dy), counts),
                None => (None, None, &mut Vec::new()),
            };
            let split = &saved.routing.batch.split;
            let (session, tp) = (&runner.session, &mut runner.groups.tp);
            let x = edge::enter(session, tp, x_buffer.map(|b| (b, &mut *counts)), &plan, split, x);
            let dy = edge::enter(session, tp, dy_buffer.map(|b| (b, &mut *counts)), &plan, split, dy);
            let result = x.and_then(|x| {
                let step = Step { layer, x, dy: dy?, plan, accumulate, with_router };
                runner.step_ops(&step, &mut space, exchange.as_mut(), saved, dx, grads)
            });
            runner.backward = Some(space);
            runner.gathered = gathered;
            runner.exchange = exchange;
            result?;
            grads.filled = true;
            Ok(())
        })
    }

    fn step_ops(
        &mut self,
        step: &Step<'_, D, T>,
        space: &mut Backward<D, T>,
        mut exchange: Option<&mut Exchange<D, T>>,
        saved: &mut Saved<D, T>,
        dx: &mut Rows<D, T>,
        grads: &mut Grads<D, T>,
    ) -> Result<(), Error<D::Error>> {
        self.routed_backward(step, space, exchange.as_deref_mut(), saved, grads)?;
        self.shared_backward(step, space, saved, grads)?;
        if step.with_router {
            self.router_backward(step, space, saved, grads)?;
        } else if !step.accumulate {
            self.router_absent(step, space, saved, grads)?;
        }
        let (plan, width) = (&step.plan, step.plan.config.width);
        let rows = match (exchange, &saved.arrived) {
            (Some(exchange), Some(arrived)) => exchange.returned(&arrived.splits, &self.y),
            _ => &self.y,
        };
        let gate_dx = space.gate_dx.as_ref().unwrap_or(&self.a);
        let shared = self.shared.as_ref().filter(|_| step.layer.config.shared.is_some());
        let shared_gate = space.shared.as_ref().and_then(|shared| shared.gate.as_ref());
        let shared_gate = shared_gate.filter(|_| step.layer.config.shared.is_some_and(|s| s.gated));
        let mut parts = [None, None];
        let buffers = [shared.map(|shared| &shared.y), shared_gate.map(|gate| &gate.dx)];
        for (part, buffer) in parts.iter_mut().zip(buffers) {
            if let Some(buffer) = buffer {
                *part = Some(Base { rows: first::<D, T>(buffer, plan.share.total * width)?, scale: None });
            }
        }
        let terms = Terms {
            y: first::<D, T>(rows, plan.slots * width)?,
            row_of_slot: saved.routing.row_of_slot()?,
            weights: None,
            router: if step.with_router { Some(first::<D, T>(gate_dx, plan.tokens * width)?) } else { None },
            shared: parts,
        };
        let (split, tp) = (&saved.routing.batch.split, &mut self.groups.tp);
        edge::leave(&mut self.session, tp, self.edge.as_mut(), plan, split, &terms, dx.view_mut())
    }
}
