//! Forward: route, sort, up, down, combine; or all of it at once, for few tokens.

use super::edge::{self, Tokens};
use super::forward_ops::From;
use super::saved::Stage;
use super::{INFERENCE_ONLY, Plan, Rows, Runner, Saved, limit};
use crate::collective::Collective;
use crate::error::{Error, OpId, expect};
use crate::layer::MoeLayer;
use crate::ops::MoeDevice;
use crate::scalar::Scalar;

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// Inference: `y = layer(x)` for x and y of shape (T, D), T being the tokens that enter and leave on this rank. Changes no
    /// balancing state. With other ranks, all of them call the same at the same point of their step.
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
        self.enter(|runner| {
            let Some(mut saved) = runner.inference.take() else {
                return Err(Error::State("the runner's inference buffers are in use"));
            };
            let result = runner.begin(layer, x, &mut saved).and_then(|plan| {
                runner.with_tokens(x, &mut saved, &plan, |runner, tokens, saved| {
                    if plan.decodes::<T, D>(runner.session.device()) {
                        return runner.decode_op(layer, tokens, saved, y, &plan);
                    }
                    runner.route_ops(layer, tokens, saved, &plan, From::Inference)?;
                    runner.expert_ops(layer, tokens, saved, y, &plan, false)
                })
            });
            runner.inference = Some(saved);
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
        self.enter(|runner| {
            let plan = runner.begin_training(layer, x, saved)?;
            runner.with_tokens(x, saved, &plan, |runner, tokens, saved| {
                runner.route_ops(layer, tokens, saved, &plan, From::Training)?;
                runner.expert_ops(layer, tokens, saved, y, &plan, true)
            })?;
            saved.stage = Stage::Forward;
            Ok(())
        })
    }

    /// First stage of a training forward, for the tokens that this rank routes: ids, weights, their rows, and the statistics of the losses.
    ///
    /// # Errors
    /// As [`forward_train`](Self::forward_train).
    pub fn route(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
    ) -> Result<(), Error<D::Error>> {
        self.enter(|runner| {
            let plan = runner.begin_training(layer, x, saved)?;
            runner.with_tokens(x, saved, &plan, |runner, tokens, saved| {
                runner.route_ops(layer, tokens, saved, &plan, From::Training)
            })?;
            saved.stage = Stage::Routed;
            Ok(())
        })
    }

    /// As [`route`](Self::route), with recorded ids (T, K) of the tokens that this rank routes instead of a selection: weights, losses and gradients are those
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
        self.enter(|runner| {
            let plan = runner.begin_training(layer, x, saved)?;
            runner.session.upload(ids, saved.routing.recorded_mut()?)?;
            runner.with_tokens(x, saved, &plan, |runner, tokens, saved| {
                runner.route_ops(layer, tokens, saved, &plan, From::Record)
            })?;
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
        self.enter(|runner| {
            let plan = runner.begin_training(layer, x, saved)?;
            runner.session.upload(ids, saved.routing.ids_mut()?)?;
            runner.session.upload(weights, saved.routing.weights_mut()?)?;
            runner.sort_op(saved, &plan)?;
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
        self.enter(|runner| {
            let plan = runner.resume(layer, x, saved, Stage::Routed)?;
            saved.stage = Stage::Empty;
            runner.with_tokens(x, saved, &plan, |runner, tokens, saved| {
                runner.expert_ops(layer, tokens, saved, y, &plan, true)
            })?;
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
        let share = self.batch.share(&layer.config.place, tokens)?;
        limit("tokens", share.total, self.limits.tokens)?;
        self.set_whole(share.total)?;
        saved.stage = Stage::Empty;
        saved.adopted = false;
        let plan = Plan::new(&layer.config, &share, self.batch.count_for(&layer.config));
        saved.routing.share = share;
        saved.routing.config = layer.config;
        saved.routing.batch.split.clone_from(&self.batch.split);
        self.set_stamp(saved)?;
        Ok(plan)
    }

    /// Runs a part of a step with the tokens that it works on.
    fn with_tokens<R>(
        &mut self,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        plan: &Plan,
        work: impl FnOnce(&mut Self, Tokens<'_, D, T>, &mut Saved<D, T>) -> Result<R, Error<D::Error>>,
    ) -> Result<R, Error<D::Error>> {
        let mut gathered = self.gathered.take();
        let buffer = gathered.as_mut().map(|gathered| (&mut gathered.x, &mut gathered.counts));
        let split = &saved.routing.batch.split;
        let result = edge::enter(&self.session, &mut self.groups.tp, buffer, plan, split, x)
            .and_then(|tokens| work(self, tokens, saved));
        self.gathered = gathered;
        result
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
        let total = self.batch.share::<D::Error>(&layer.config.place, x.dim().0)?.total;
        self.batch.check(&layer.config, total, self.spread())?;
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
        let share = &saved.routing.share;
        expect(OpId("saved"), "x", &[share.local.len(), layer.config.width], x.view().len())?;
        self.accepts(&layer.config)?;
        self.set_whole(share.total)?;
        let sequences = saved.routing.batch.count_for(&layer.config);
        let mut plan = Plan::new(&layer.config, share, sequences);
        if let (Some(arrived), Stage::Forward) = (&saved.arrived, stage) {
            plan.rows = arrived.splits.received();
        }
        Ok(plan)
    }
}
