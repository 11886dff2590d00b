//! Backward: experts, router, gate, and the input gradient that brings them together.

use super::backward_ops::Step;
use super::saved::Stage;
use super::{Backward, INFERENCE_ONLY, Rows, Runner, Saved};
use crate::collective::Collective;
use crate::error::{Error, OpId, expect};
use crate::layer::{Grads, MoeLayer};
use crate::ops::{Base, Combine, CombineArgs, MoeDevice, SumSquares, SumSquaresArgs, SumSquaresDims};
use crate::scalar::{Accum, Scalar};
use crate::view::{In, first, whole, whole_mut};

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// Gradients of a training forward: `dx` (T, D) overwritten, `grads` overwritten or added to. x is the forward's. Uses
    /// `saved` up. Losses enter at the scores.
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
        Ok(first::<D, T::Acc>(&space.ds, saved.routing.tokens * saved.routing.config.top_k)?)
    }

    /// Sum of squares of all gradients of a layer; waits for the device. Its root is the gradient's norm.
    ///
    /// # Errors
    /// [`Error::State`] if the gradients are empty or the runner was made for inference; [`Error::Device`].
    pub fn sum_squares(&mut self, grads: &Grads<D, T>) -> Result<f64, Error<D::Error>> {
        if !grads.filled {
            return Err(Error::State("these gradients are empty: run backward first"));
        }
        let device = self.session.device().clone();
        device.enter(|| {
            let Some(space) = &mut self.backward else {
                return Err(Error::State(INFERENCE_ONLY));
            };
            let mut accumulate = false;
            for buffer in grads.weights.list().into_iter().flatten() {
                let values = whole::<D, T::Acc>(buffer);
                let dims = SumSquaresDims { len: values.len(), accumulate };
                let args = SumSquaresArgs { values, sum: whole_mut::<D, T::Acc>(&mut space.norm) };
                self.session.run::<SumSquares<T>>(&dims, args)?;
                accumulate = true;
            }
            let mut sum = [T::Acc::ZERO];
            self.session.download(whole::<D, T::Acc>(&space.norm), &mut sum)?;
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
        let device = self.session.device().clone();
        device.enter(|| {
            let plan = self.resume(layer, x, saved, Stage::Forward)?;
            if with_router && saved.adopted {
                return Err(Error::State(
                    "another router decided here: use experts_backward, and its own backward",
                ));
            }
            let Some(mut space) = self.backward.take() else {
                return Err(Error::State(INFERENCE_ONLY));
            };
            let step = Step { layer, x, dy, plan, accumulate: grads.filled, with_router };
            saved.stage = Stage::Empty;
            grads.filled = false;
            let result = self.step_ops(&step, &mut space, saved, dx, grads);
            self.backward = Some(space);
            result?;
            grads.filled = true;
            Ok(())
        })
    }

    fn step_ops(
        &mut self,
        step: &Step<'_, D, T>,
        space: &mut Backward<D, T>,
        saved: &mut Saved<D, T>,
        dx: &mut Rows<D, T>,
        grads: &mut Grads<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let width = step.plan.config.width;
        for (what, rows) in [("dy", step.dy), ("dx", &*dx)] {
            expect(OpId("backward"), what, &[step.plan.tokens, width], rows.view().len())?;
        }
        self.routed_backward(step, space, saved, grads)?;
        self.shared_backward(step, space, saved, grads)?;
        if step.with_router {
            self.router_backward(step, space, saved, grads)?;
        } else if !step.accumulate {
            self.router_absent(step, space, saved, grads)?;
        }
        let len = step.plan.tokens * width;
        let shared_gate = space.shared.as_ref().and_then(|shared| shared.gate.as_ref());
        let terms = [
            step.with_router.then_some(space.gate_dx.as_ref().unwrap_or(&self.a)),
            self.shared.as_ref().filter(|_| step.layer.config.shared.is_some()).map(|shared| &shared.y),
            shared_gate.filter(|_| step.layer.config.shared.is_some_and(|s| s.gated)).map(|gate| &gate.dx),
        ];
        let mut base = [None, None, None];
        for (base, term) in base.iter_mut().zip(terms) {
            if let Some(term) = term {
                *base = Some(Base { rows: first::<D, T>(term, len)?, scale: None });
            }
        }
        let args = CombineArgs {
            y: first::<D, T>(&self.y, step.plan.slots * width)?,
            row_of_slot: saved.routing.row_of_slot()?,
            weights: None,
            base,
            out: dx.view_mut(),
        };
        self.session.run::<Combine<T>>(&step.plan.combine(), args)
    }
}
