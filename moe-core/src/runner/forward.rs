//! Forward: route, sort, up, down, combine.

use super::saved::Stage;
use super::{INFERENCE_ONLY, Plan, Rows, Runner, Saved, limit};
use crate::config::{BalanceLoss, Capacity, DropPolicy, MoeConfig, ScoreOrder};
use crate::error::{Error, OpId, expect};
use crate::layer::MoeLayer;
use crate::ops::{
    Base, Combine, CombineArgs, ExpertDown, ExpertDownArgs, ExpertUp, ExpertUpArgs, MoeDevice, Route,
    RouteArgs, RouteStats, RouteStatsArgs, Selection, Sort, SortArgs, Stamp,
};
use crate::scalar::{Accum, Scalar};
use crate::view::{first, first_mut, whole, whole_mut};

impl<T: Scalar, D: MoeDevice<T>> Runner<D, T> {
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
                .and_then(|plan| self.route_ops(layer, x, &mut saved, &plan, false))
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
            self.route_ops(layer, x, saved, &plan, true)?;
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
        Ok(Plan::new(
            &layer.config,
            tokens,
            self.batch.count_for(&layer.config),
        ))
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
            return Err(Error::State(
                "`saved` comes from a layer of another configuration",
            ));
        }
        expect(
            OpId("saved"),
            "x",
            &[saved.routing.tokens, layer.config.width],
            x.view().len(),
        )?;
        self.accepts(&layer.config)?;
        self.set_whole(saved.routing.tokens)?;
        let sequences = saved.routing.batch.count_for(&layer.config);
        Ok(Plan::new(&layer.config, saved.routing.tokens, sequences))
    }

    fn set_stamp(&mut self, saved: &mut Saved<D, T>) -> Result<(), Error<D::Error>> {
        let config = &saved.routing.config;
        let stamp = Stamp {
            layer: config.layer,
            ..self.batch.stamp
        };
        if config.rule.jitter.is_some() || config.rule.selection == Selection::RoundRobin {
            self.session
                .upload(&stamp.words(), whole_mut::<D, u32>(&mut saved.routing.stamp))?;
        }
        Ok(())
    }

    /// Sequence bounds and loss factors, uploaded where a loss reads them.
    fn set_losses(&mut self, saved: &mut Saved<D, T>) -> Result<(), Error<D::Error>> {
        let (session, batch) = (&self.session, &self.batch);
        let routing = &mut saved.routing;
        let (config, tokens) = (&routing.config, routing.tokens);
        routing.batch.copy_from(batch);
        let Some(losses) = &mut routing.losses else {
            return Err(Error::State(INFERENCE_ONLY));
        };
        let mut bound = 0;
        session.upload(&[0], first_mut::<D, u32>(&mut losses.sequences, 1)?)?;
        for s in 0..batch.count_for(config) {
            bound += batch.length(config, tokens, s) as u32;
            let place = whole_mut::<D, u32>(&mut losses.sequences).slice(s + 1..s + 2)?;
            session.upload(&[bound], place)?;
            let factor = [T::Acc::of(batch.factor(config, tokens, s))];
            session.upload(
                &factor,
                whole_mut::<D, T::Acc>(&mut losses.factors).slice(s..s + 1)?,
            )?;
        }
        let z_factor = [T::Acc::of(batch.z_factor(config, tokens))];
        session.upload(&z_factor, whole_mut::<D, T::Acc>(&mut losses.z_factor))?;
        if matches!(config.balance.loss, Some(BalanceLoss::Batch(_))) && !batch.step_counts.is_empty() {
            session.upload(
                &batch.step_counts,
                first_mut::<D, u32>(&mut losses.step_counts, config.experts)?,
            )?;
        }
        Ok(())
    }

    fn route_ops(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        plan: &Plan,
        training: bool,
    ) -> Result<Plan, Error<D::Error>> {
        let MoeConfig { experts, rule, .. } = layer.config;
        let routing = &mut saved.routing;
        let stamped = rule.jitter.is_some() || rule.selection == Selection::RoundRobin;
        let args = RouteArgs {
            x: x.view(),
            gate: layer.packed.0.gate.weight(&layer.weights.gate),
            gate_bias: layer.weights.gate_bias.as_ref().map(whole::<D, T>),
            selection_bias: layer.selection_bias.as_ref().map(whole::<D, T::Acc>),
            forced_ids: None,
            stamp: stamped.then(|| whole::<D, u32>(&routing.stamp)),
            logits: first_mut::<D, T::Acc>(&mut routing.logits, plan.tokens * experts)?,
            ids: first_mut::<D, u32>(&mut routing.ids, plan.slots)?,
            weights: first_mut::<D, T::Acc>(&mut routing.weights, plan.slots)?,
            non_finite: whole_mut::<D, u32>(&mut routing.non_finite),
        };
        self.session.run::<Route<T>>(&plan.route(), args)?;
        if let (true, Some(losses)) = (training, &mut routing.losses) {
            let sequences = plan.sequences;
            let args = RouteStatsArgs {
                logits: first::<D, T::Acc>(&routing.logits, plan.tokens * experts)?,
                ids: first::<D, u32>(&routing.ids, plan.slots)?,
                sequences: first::<D, u32>(&losses.sequences, sequences + 1)?,
                counts: first_mut::<D, u32>(&mut losses.counts, sequences * experts)?,
                prob_sums: first_mut::<D, T::Acc>(&mut losses.prob_sums, sequences * experts)?,
                z_sum: whole_mut::<D, T::Acc>(&mut losses.z_sum),
            };
            self.session.run::<RouteStats<T>>(&plan.stats(), args)?;
        }
        self.sort_op(saved, plan)?;
        Ok(*plan)
    }

    fn sort_op(&mut self, saved: &mut Saved<D, T>, plan: &Plan) -> Result<(), Error<D::Error>> {
        let routing = &mut saved.routing;
        let by_score = matches!(
            routing.config.capacity,
            Some(Capacity {
                drop: DropPolicy::ByScore,
                ..
            })
        );
        let experts = routing.config.experts;
        let weights = first::<D, T::Acc>(&routing.weights, plan.slots)?;
        let args = SortArgs {
            ids: first::<D, u32>(&routing.ids, plan.slots)?,
            weights: by_score.then_some(weights),
            offsets: first_mut::<D, u32>(&mut routing.offsets, experts + 1)?,
            row_of_slot: first_mut::<D, u32>(&mut routing.row_of_slot, plan.slots)?,
            slot_of_row: first_mut::<D, u32>(&mut routing.slot_of_row, plan.slots)?,
            counts: first_mut::<D, u32>(&mut routing.counts, experts)?,
            dropped: whole_mut::<D, u32>(&mut routing.dropped),
        };
        self.session.run::<Sort<T>>(&plan.sort(), args)
    }

    fn expert_ops(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        y: &mut Rows<D, T>,
        plan: &Plan,
        training: bool,
    ) -> Result<(), Error<D::Error>> {
        let dims = plan.routed();
        let first_scores = layer.config.score_order == ScoreOrder::BeforeExperts;
        expect(
            OpId("forward"),
            "y",
            &[plan.tokens, layer.config.width],
            y.view().len(),
        )?;
        let keep = training && !plan.recomputes();
        let h_len = dims.rows * dims.up_width();
        let h = match &mut saved.h {
            Some(h) if keep => Some(first_mut::<D, T>(h, h_len)?),
            _ => None,
        };
        let args = ExpertUpArgs {
            x: x.view(),
            index: Some(saved.routing.slot_of_row()?),
            offsets: saved.routing.offsets()?,
            w13: layer.packed.0.up.weight(&layer.weights.w13),
            b13: layer.weights.b13.as_ref().map(whole::<D, T>),
            weights: if first_scores {
                Some(saved.routing.weights()?)
            } else {
                None
            },
            h,
            a: first_mut::<D, T>(&mut self.a, dims.rows * dims.hidden)?,
        };
        self.session.run::<ExpertUp<T>>(&dims, args)?;
        let args = ExpertDownArgs {
            a: first::<D, T>(&self.a, dims.rows * dims.hidden)?,
            offsets: saved.routing.offsets()?,
            w2: layer.packed.0.down.weight(&layer.weights.w2),
            b2: layer.weights.b2.as_ref().map(whole::<D, T>),
            out_index: None,
            y: first_mut::<D, T>(&mut self.y, dims.rows * dims.width)?,
        };
        self.session.run::<ExpertDown<T>>(&dims, args)?;
        self.shared_forward(layer, x, saved, plan, keep)?;
        let shared = match (&self.shared, layer.config.shared) {
            (Some(shared), Some(config)) => Some(Base {
                rows: first::<D, T>(&shared.y, plan.tokens * dims.width)?,
                scale: match (&saved.shared_gate, config.gated) {
                    (Some(gate), true) => Some(first::<D, T::Acc>(&gate.weights, plan.tokens)?),
                    _ => None,
                },
            }),
            _ => None,
        };
        let args = CombineArgs {
            y: first::<D, T>(&self.y, dims.rows * dims.width)?,
            row_of_slot: saved.routing.row_of_slot()?,
            weights: if first_scores {
                None
            } else {
                Some(saved.routing.weights()?)
            },
            base: [shared, None, None],
            out: y.view_mut(),
        };
        self.session.run::<Combine<T>>(&plan.combine(), args)
    }

    /// The shared experts are one group of all tokens.
    fn shared_forward(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        plan: &Plan,
        keep: bool,
    ) -> Result<(), Error<D::Error>> {
        let (Some(weights), Some(packed), Some(space)) =
            (&layer.weights.shared, &layer.packed.1, &mut self.shared)
        else {
            return Ok(());
        };
        let dims = plan.shared();
        if let (Some(gate), Some(gate_weight)) = (&mut saved.shared_gate, &weights.gate) {
            let args = RouteArgs {
                x: x.view(),
                gate: packed.gate.weight(gate_weight),
                gate_bias: None,
                selection_bias: None,
                forced_ids: None,
                stamp: None,
                logits: first_mut::<D, T::Acc>(&mut gate.logits, plan.tokens)?,
                ids: first_mut::<D, u32>(&mut gate.ids, plan.tokens)?,
                weights: first_mut::<D, T::Acc>(&mut gate.weights, plan.tokens)?,
                non_finite: whole_mut::<D, u32>(&mut gate.non_finite),
            };
            self.session.run::<Route<T>>(&plan.shared_gate().route(), args)?;
        }
        let h = match &mut saved.shared_h {
            Some(h) if keep => Some(first_mut::<D, T>(h, dims.rows * dims.up_width())?),
            _ => None,
        };
        let args = ExpertUpArgs {
            x: x.view(),
            index: None,
            offsets: whole::<D, u32>(&self.whole.buffer),
            w13: packed.up.weight(&weights.w13),
            b13: None,
            weights: None,
            h,
            a: first_mut::<D, T>(&mut space.a, dims.rows * dims.hidden)?,
        };
        self.session.run::<ExpertUp<T>>(&dims, args)?;
        let args = ExpertDownArgs {
            a: first::<D, T>(&space.a, dims.rows * dims.hidden)?,
            offsets: whole::<D, u32>(&self.whole.buffer),
            w2: packed.down.weight(&weights.w2),
            b2: None,
            out_index: None,
            y: first_mut::<D, T>(&mut space.y, dims.rows * dims.width)?,
        };
        self.session.run::<ExpertDown<T>>(&dims, args)
    }
}
