//! The launches of a training step and of an optimizer step, with arguments as a layer has them.

use super::Clock;
use super::plan::Plan;
use crate::bench::fill;
use anyhow::Result;
use moe_core::ops::*;
use moe_core::{Elem, MoeDevice, Scalar, first_mut, whole, whole_mut};

/// Times every op.
pub(super) fn time_all<D: MoeDevice<T>, T: Scalar>(plan: &Plan, clock: &mut Clock<D>) -> Result<()> {
    let Plan { route, stats, sort, product, combine, wgrad_down, wgrad_up, .. } = *plan;
    let Plan { route_bwd, gate_bwd, adamw, squares, gather, merge, bias, .. } = *plan;
    let ExpertDims { tokens, rows: slots, experts, width, hidden, .. } = product;
    let (up, weights) = (product.up_width(), adamw.len);
    let session = &clock.session;
    let random = |len, scale, seed| -> Result<D::Owned<T>> {
        let mut buffer = session.alloc::<T>(len)?;
        session.upload(&fill::values::<T>(len, scale, seed), whole_mut::<D, T>(&mut buffer))?;
        Ok(buffer)
    };
    let (fan_d, fan_f) = (1.0 / (width as f64).sqrt(), 1.0 / (hidden as f64).sqrt());
    let (x, dy) = (random(tokens * width, 1.0, 1)?, random(tokens * width, 1.0, 2)?);
    let gate = random(experts * width, fan_d, 3)?;
    let (mut w13, w2) = (random(weights, fan_d, 4)?, random(experts * width * hidden, fan_f, 5)?);
    let (mut h, mut a) = (session.alloc::<T>(slots * up)?, session.alloc::<T>(slots * hidden)?);
    let (mut y, mut out) = (session.alloc::<T>(slots * width)?, session.alloc::<T>(tokens * width)?);
    let (mut logits, mut dlogits) =
        (session.alloc::<T::Acc>(tokens * experts)?, session.alloc(tokens * experts)?);
    let (mut scores, mut ds) = (session.alloc::<T::Acc>(slots)?, session.alloc::<T::Acc>(slots)?);
    let (mut ids, mut row_of_slot, mut slot_of_row) =
        (session.alloc::<u32>(slots)?, session.alloc::<u32>(slots)?, session.alloc::<u32>(slots)?);
    let (mut offsets, mut counts) = (session.alloc::<u32>(experts + 1)?, session.alloc::<u32>(experts)?);
    let (mut merged, mut index) = (session.alloc::<u32>(experts + 1)?, session.alloc::<u32>(slots)?);
    let (mut count, mut bounds) = (session.alloc::<u32>(1)?, session.alloc::<u32>(2)?);
    session.upload(&[0, tokens as u32], whole_mut::<D, u32>(&mut bounds))?;
    let (mut sums, mut sum) = (session.alloc::<T::Acc>(experts)?, session.alloc::<T::Acc>(1)?);
    let (mut dgate, mut dw) = (session.alloc::<T::Acc>(experts * width)?, session.alloc::<T::Acc>(weights)?);
    let (mut m, mut v) = (session.alloc::<T::Acc>(weights)?, session.alloc::<T::Acc>(weights)?);
    let mut master = session.alloc::<T::Acc>(weights)?;
    let mut settings = session.alloc::<T::Acc>(ADAMW_SETTINGS)?;
    let words = AdamWSettings {
        lr: 1e-6,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 1,
        scale: 1.0,
    };
    session.upload(&words.words::<T::Acc>(), whole_mut::<D, T::Acc>(&mut settings))?;

    let flops = |factors: [usize; 3]| 2.0 * factors.iter().map(|n| *n as f64).product::<f64>();
    let (up_flops, down_flops) = (flops([slots, width, up]), flops([slots, width, hidden]));
    macro_rules! time {
        ($name:literal, $op:ty, $dims:ident, $work:expr, $args:expr) => {
            clock.time($name, $work, |session| Ok(session.run::<$op>(&$dims, $args)?))?
        };
    }
    time!(
        "route",
        Route<T>,
        route,
        flops([tokens, width, experts]),
        RouteArgs {
            x: whole::<D, T>(&x),
            gate: Weight::Plain(whole::<D, T>(&gate)),
            gate_bias: None,
            selection_bias: None,
            forced_ids: None,
            stamp: None,
            logits: whole_mut::<D, T::Acc>(&mut logits),
            ids: whole_mut::<D, u32>(&mut ids),
            weights: whole_mut::<D, T::Acc>(&mut scores),
            non_finite: whole_mut::<D, u32>(&mut count),
        }
    );
    time!(
        "route_stats",
        RouteStats<T>,
        stats,
        0.0,
        RouteStatsArgs {
            logits: whole::<D, T::Acc>(&logits),
            ids: whole::<D, u32>(&ids),
            sequences: whole::<D, u32>(&bounds),
            counts: whole_mut::<D, u32>(&mut counts),
            prob_sums: whole_mut::<D, T::Acc>(&mut sums),
            z_sum: whole_mut::<D, T::Acc>(&mut sum),
        }
    );
    time!(
        "sort",
        Sort<T>,
        sort,
        0.0,
        SortArgs {
            ids: whole::<D, u32>(&ids),
            weights: None,
            offsets: whole_mut::<D, u32>(&mut offsets),
            row_of_slot: whole_mut::<D, u32>(&mut row_of_slot),
            slot_of_row: whole_mut::<D, u32>(&mut slot_of_row),
            counts: whole_mut::<D, u32>(&mut counts),
            dropped: whole_mut::<D, u32>(&mut count),
        }
    );
    time!(
        "gather",
        Gather<T>,
        gather,
        0.0,
        GatherArgs {
            source: whole::<D, T>(&x),
            index: whole::<D, u32>(&slot_of_row),
            offsets: whole::<D, u32>(&offsets),
            out: whole_mut::<D, T>(&mut y),
        }
    );
    time!(
        "merge",
        Merge,
        merge,
        0.0,
        MergeArgs {
            counts: whole::<D, u32>(&counts),
            offsets: whole_mut::<D, u32>(&mut merged).slice(0..merge.experts + 1)?,
            index: whole_mut::<D, u32>(&mut index),
            overflow: whole_mut::<D, u32>(&mut count),
        }
    );
    time!(
        "expert_up",
        ExpertUp<T>,
        product,
        up_flops,
        ExpertUpArgs {
            x: whole::<D, T>(&x),
            index: Some(whole::<D, u32>(&slot_of_row)),
            offsets: whole::<D, u32>(&offsets),
            w13: Weight::Plain(whole::<D, T>(&w13)),
            b13: None,
            weights: None,
            h: Some(whole_mut::<D, T>(&mut h)),
            a: whole_mut::<D, T>(&mut a),
        }
    );
    time!(
        "expert_down",
        ExpertDown<T>,
        product,
        down_flops,
        ExpertDownArgs {
            a: whole::<D, T>(&a),
            offsets: whole::<D, u32>(&offsets),
            w2: Weight::Plain(whole::<D, T>(&w2)),
            b2: None,
            out_index: None,
            y: whole_mut::<D, T>(&mut y),
        }
    );
    time!(
        "combine",
        Combine<T>,
        combine,
        0.0,
        CombineArgs {
            y: whole::<D, T>(&y),
            row_of_slot: whole::<D, u32>(&row_of_slot),
            weights: Some(whole::<D, T::Acc>(&scores)),
            base: [None, None, None],
            out: whole_mut::<D, T>(&mut out),
        }
    );
    time!(
        "expert_down_bwd",
        ExpertDownBwd<T>,
        product,
        down_flops,
        ExpertDownBwdArgs {
            dout: whole::<D, T>(&dy),
            index: Some(whole::<D, u32>(&slot_of_row)),
            offsets: whole::<D, u32>(&offsets),
            w2: Weight::Plain(whole::<D, T>(&w2)),
            b2: None,
            b13: None,
            weights: Some(whole::<D, T::Acc>(&scores)),
            scores_first: false,
            h: whole_mut::<D, T>(&mut h),
            a: whole_mut::<D, T>(&mut a),
            ds: Some(whole_mut::<D, T::Acc>(&mut ds)),
        }
    );
    // What is left after so many gradients over h is nothing to time a product with.
    let values = fill::values::<T>(slots * up, 1.0, 6);
    clock.session.upload(&values, whole_mut::<D, T>(&mut h))?;
    clock.session.upload(&values[..slots * hidden], whole_mut::<D, T>(&mut a))?;
    time!(
        "expert_wgrad down",
        ExpertWgrad<T>,
        wgrad_down,
        down_flops,
        ExpertWgradArgs {
            left: whole::<D, T>(&dy),
            right: whole::<D, T>(&a),
            index: Some(whole::<D, u32>(&slot_of_row)),
            offsets: whole::<D, u32>(&offsets),
            right_weights: None,
            bias_weights: None,
            dw: whole_mut::<D, T::Acc>(&mut dw).slice(0..experts * width * hidden)?,
            dbias: None,
        }
    );
    time!(
        "expert_wgrad up",
        ExpertWgrad<T>,
        wgrad_up,
        up_flops,
        ExpertWgradArgs {
            left: whole::<D, T>(&h),
            right: whole::<D, T>(&x),
            index: Some(whole::<D, u32>(&slot_of_row)),
            offsets: whole::<D, u32>(&offsets),
            right_weights: None,
            bias_weights: None,
            dw: whole_mut::<D, T::Acc>(&mut dw),
            dbias: None,
        }
    );
    time!(
        "expert_up_bwd",
        ExpertUpBwd<T>,
        product,
        up_flops,
        ExpertUpBwdArgs {
            dz: whole::<D, T>(&h),
            offsets: whole::<D, u32>(&offsets),
            w13: Weight::Plain(whole::<D, T>(&w13)),
            weights: None,
            index: Some(whole::<D, u32>(&slot_of_row)),
            out_index: None,
            dx: whole_mut::<D, T>(&mut y),
        }
    );
    time!(
        "route_bwd",
        RouteBwd<T>,
        route_bwd,
        0.0,
        RouteBwdArgs {
            logits: whole::<D, T::Acc>(&logits),
            ids: whole::<D, u32>(&ids),
            dweights: whole::<D, T::Acc>(&ds),
            row_of_slot: Some(whole::<D, u32>(&row_of_slot)),
            aux: None,
            z_factor: None,
            load: Some(whole_mut::<D, u32>(&mut counts)),
            dlogits: whole_mut::<D, T::Acc>(&mut dlogits),
        }
    );
    time!(
        "gate_bwd",
        GateBwd<T>,
        gate_bwd,
        2.0 * flops([tokens, width, experts]),
        GateBwdArgs {
            dlogits: whole::<D, T::Acc>(&dlogits),
            x: whole::<D, T>(&x),
            gate: Weight::Plain(whole::<D, T>(&gate)),
            stamp: None,
            dx: first_mut::<D, T>(&mut y, tokens * width)?,
            dgate: whole_mut::<D, T::Acc>(&mut dgate),
            dbias: None,
        }
    );
    time!(
        "sum_squares",
        SumSquares<T>,
        squares,
        0.0,
        SumSquaresArgs { values: whole::<D, T::Acc>(&dw), sum: whole_mut::<D, T::Acc>(&mut sum) }
    );
    time!(
        "bias_update",
        BiasUpdate<T>,
        bias,
        0.0,
        BiasUpdateArgs {
            counts: whole::<D, u32>(&counts),
            rate: whole::<D, T::Acc>(&sum),
            bias: whole_mut::<D, T::Acc>(&mut sums),
        }
    );
    let narrow = T::DTYPE != T::Acc::DTYPE;
    time!(
        "adamw",
        AdamW<T>,
        adamw,
        0.0,
        AdamWArgs {
            settings: whole::<D, T::Acc>(&settings),
            grad: whole::<D, T::Acc>(&dw),
            w: whole_mut::<D, T>(&mut w13),
            master: narrow.then(|| whole_mut::<D, T::Acc>(&mut master)),
            m: whole_mut::<D, T::Acc>(&mut m),
            v: whole_mut::<D, T::Acc>(&mut v),
        }
    );
    Ok(())
}
