//! Forward: route, sort, up, down, combine.

use super::forward_ops::From;
use super::saved::Stage;
use super::{INFERENCE_ONLY, Plan, Rows, Runner, Saved, limit};
use crate::collective::Collective;
use crate::error::{Error, OpId, expect};
use crate::layer::MoeLayer;
use crate::ops::MoeDevice;
use crate::scalar::Scalar;

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// Inference: `y = layer(x)` for x and y of shape (T, D). Changes no balancing state.
    ///
    /// # Errors
    /// [`Error::Stale`] after a failed update; [`Error::Limit`] for more tokens or a larger layer than the runner was
    /// made for; [`Error::Shape`]; [`Error::Device`].
    pub fn forward(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        y: &mut Rows<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let device = self.session.device().clone();
        device.enter(|| {
            let Some(mut saved) = self.inference.take() else {
                return Err(Error::State("the runner's inference buffers are in use"));
            };
            let result = self
                .begin(layer, x, &mut saved)
                .and_then(|plan| self.route_ops(layer, x, &mut saved, &plan, From::Inference))
                .and_then(|plan| self.expert_ops(layer, x, &mut saved, y, &plan, false));
            self.inference = Some(saved);
            result
        })
    }

    /// Training forward: `y = layer(x)`, and in `saved` what backward needs.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::State`] if `saved` was made for another configuration, the batch does not fit,
    /// or the runner was made for inference; [`Error::Config`] for batch-wise balancing in a pipeline.
    pub fn forward_train(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        y: &mut Rows<D, T>,
    ) -> Result<(), Error<D::Error>> {
        self.route(layer, x, saved)?;
        self.experts(layer, x, saved, y)
    }

    /// First stage of a training forward: ids, weights, their rows, and the statistics of the losses.
    ///
    /// # Errors
    /// As [`forward_train`](Self::forward_train).
    pub fn route(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let device = self.session.device().clone();
        device.enter(|| {
            let plan = self.begin_training(layer, x, saved)?;
            self.route_ops(layer, x, saved, &plan, From::Training)?;
            saved.stage = Stage::Routed;
            Ok(())
        })
    }

    /// As [`route`](Self::route), with recorded ids (T, K) instead of a selection: weights, losses and gradients are those
    /// of this gate and these ids. An id of E or more is a dropped slot.
    ///
    /// # Errors
    /// As [`forward_train`](Self::forward_train); [`Error::Shape`] for a wrong number of ids.
    pub fn replay(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        ids: &[u32],
        saved: &mut Saved<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let device = self.session.device().clone();
        device.enter(|| {
            let plan = self.begin_training(layer, x, saved)?;
            self.session.upload(ids, saved.routing.recorded_mut()?)?;
            self.route_ops(layer, x, saved, &plan, From::Record)?;
            saved.stage = Stage::Routed;
            Ok(())
        })
    }

    /// Puts another router's decision in the place of [`route`](Self::route): ids (T, K), where E or more drops the slot,
    /// and weights (T, K). The layer's losses and gate take no part; `logits` keep what they held.
    ///
    /// # Errors
    /// As [`forward_train`](Self::forward_train); [`Error::Shape`] for wrong lengths.
    pub fn adopt(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        ids: &[u32],
        weights: &[T::Acc],
        saved: &mut Saved<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let device = self.session.device().clone();
        device.enter(|| {
            let plan = self.begin_training(layer, x, saved)?;
            self.session.upload(ids, saved.routing.ids_mut()?)?;
            self.session.upload(weights, saved.routing.weights_mut()?)?;
            self.sort_op(saved, &plan)?;
            saved.adopted = true;
            saved.stage = Stage::Routed;
            Ok(())
        })
    }

    /// Second stage of a training forward: experts and combine, by the routing in `saved`.
    ///
    /// # Errors
    /// As [`forward_train`](Self::forward_train); [`Error::State`] without a routing for these tokens.
    pub fn experts(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        y: &mut Rows<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let device = self.session.device().clone();
        device.enter(|| {
            let plan = self.resume(layer, x, saved, Stage::Routed)?;
            saved.stage = Stage::Empty;
            self.expert_ops(layer, x, saved, y, &plan, true)?;
            saved.stage = Stage::Forward;
            Ok(())
        })
    }

    /// Checks a call and sets everything that depends on its size.
    fn begin(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
    ) -> Result<Plan, Error<D::Error>> {
        layer.fresh()?;
        self.accepts(&layer.config)?;
        let (tokens, width) = x.dim();
        expect(OpId("forward"), "x's width", &[layer.config.width], width)?;
        limit("tokens", tokens, self.limits.tokens)?;
        self.set_whole(tokens)?;
        saved.stage = Stage::Empty;
        saved.adopted = false;
        saved.routing.tokens = tokens;
        saved.routing.config = layer.config;
        self.set_stamp(saved)?;
        Ok(Plan::new(&layer.config, tokens, self.batch.count_for(&layer.config)))
    }

    fn begin_training(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
    ) -> Result<Plan, Error<D::Error>> {
        layer.for_training()?;
        if !self.limits.training {
            return Err(Error::State(INFERENCE_ONLY));
        }
        if saved.routing.config != layer.config {
            return Err(Error::State(
                "`saved` was made for another configuration: use runner.saved(layer.config())",
            ));
        }
        self.batch.check(&layer.config, x.dim().0)?;
        let plan = self.begin(layer, x, saved)?;
        self.set_losses(saved)?;
        Ok(plan)
    }

    /// Checks that `saved` comes from these tokens and has reached `stage`.
    pub(super) fn resume(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &Saved<D, T>,
        stage: Stage,
    ) -> Result<Plan, Error<D::Error>> {
        layer.fresh()?;
        layer.for_training()?;
        if saved.stage != stage {
            return Err(Error::State(
                "`saved` holds no forward pass: each backward needs one forward_train before it",
            ));
        }
        if saved.routing.config != layer.config {
            return Err(Error::State("`saved` comes from a layer of another configuration"));
        }
        expect(OpId("saved"), "x", &[saved.routing.tokens, layer.config.width], x.view().len())?;
        self.accepts(&layer.config)?;
        self.set_whole(saved.routing.tokens)?;
        let sequences = saved.routing.batch.count_for(&layer.config);
        Ok(Plan::new(&layer.config, saved.routing.tokens, sequences))
    }
}
