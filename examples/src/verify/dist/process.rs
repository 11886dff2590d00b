//! One process's share of a step, before anything is reduced.

use super::layout::{Layout, Process};
use super::losses::StepLosses;
use crate::verify::layer_run::{Call, LayerRun, SharedRun, run_layer, run_shared};
use crate::verify::layer_spec::{LayerSpec, TensorList};
use crate::verify::rig::Rig;
use crate::verify::weights::Experts;
use anyhow::Result;
use moe_core::{MemoryPolicy, MoeDevice, Scalar};
use std::ops::Range;

/// All tokens of the step.
pub(super) struct Tokens<T> {
    /// (tokens, width)
    pub(super) x: Vec<T>,
    /// (tokens, width): the gradient of the output
    pub(super) dout: Vec<T>,
}

/// The routed experts on some tokens, with a part of their hidden width.
pub(super) struct RoutedPart<T> {
    /// the layer with that part
    pub(super) spec: LayerSpec<T>,
    /// what came of it
    pub(super) run: LayerRun<T>,
}

/// What one process adds to the step.
pub(super) struct Share<T> {
    /// the layer with the process's part of the hidden widths
    pub(super) spec: LayerSpec<T>,
    /// of the tokens that it routes
    pub(super) run: LayerRun<T>,
    /// (tokens of its data rank, width): 0 where it does not route
    pub(super) routed_y: Vec<f32>,
    /// (tokens of its data rank, width)
    pub(super) shared_y: Option<Vec<f32>>,
    /// (tokens of its data rank, width): router, routed and shared parts
    pub(super) dx: Vec<f32>,
    /// gate and shared experts: gradients of its own tokens
    pub(super) gradients: TensorList,
    /// balancing loss of its own tokens
    pub(super) balance_loss: Option<f32>,
    /// z-loss of its own tokens
    pub(super) z_loss: Option<f32>,
}

/// Part `rank` of the hidden width of the routed experts, on `tokens`, the first of which is global token `first`.
///
/// # Errors
/// The library's.
pub(super) fn routed_part<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    spec: &LayerSpec<T>,
    layout: &Layout,
    rank: usize,
    tokens: &Tokens<T>,
    first: usize,
) -> Result<RoutedPart<T>> {
    let parts = layout.etp.max(layout.hidden_parts);
    let hidden = spec.experts.hidden / parts;
    let experts = spec.experts.hidden_part(rank * hidden..(rank + 1) * hidden, parts);
    let spec = LayerSpec { experts, shared: None, shared_gate: None, ..spec.clone() };
    let call = Call { x: &tokens.x, dout: &tokens.dout, sequences: &[], first_token: first };
    let run = run_layer(rig.device(), &spec, MemoryPolicy::Keep, &call)?;
    Ok(RoutedPart { spec, run })
}

/// The layer with a process's part of the hidden widths, and all experts.
pub(super) fn part_of<T: Scalar<Acc = f32>>(
    spec: &LayerSpec<T>,
    layout: &Layout,
    process: &Process,
) -> LayerSpec<T> {
    let part = |experts: &Experts<T>, rank: usize, parts: usize| {
        let hidden = experts.hidden / parts;
        experts.hidden_part(rank * hidden..(rank + 1) * hidden, parts)
    };
    LayerSpec {
        experts: part(&spec.experts, process.etp, layout.etp),
        shared: spec.shared.as_ref().map(|shared| part(shared, process.tp, layout.tp)),
        ..spec.clone()
    }
}

/// The share of one process.
///
/// # Errors
/// The library's.
pub(super) fn share<T, D>(
    rig: &Rig<D>,
    spec: &LayerSpec<T>,
    layout: &Layout,
    process: &Process,
    all: &Tokens<T>,
    losses: Option<&StepLosses>,
) -> Result<Share<T>>
where
    T: Scalar<Acc = f32>,
    D: MoeDevice<T> + MoeDevice<f32>,
{
    let width = spec.experts.width;
    let of = |range: &Range<usize>| Tokens {
        x: all.x[range.start * width..range.end * width].to_vec(),
        dout: all.dout[range.start * width..range.end * width].to_vec(),
    };
    // In a case by rank the ranks hold whole experts; `tpJ` stand beside them.
    let whole = Layout { processes: Vec::new(), hidden_parts: 0, ..*layout };
    let routed = of(&process.routed);
    let part = part_of(spec, layout, process);
    let run = routed_part(rig, spec, &whole, process.etp, &routed, process.routed.start)?.run;
    let len = process.tokens.len() * width;
    let at = |range: &Range<usize>| (range.start - process.tokens.start) * width;
    let (mut routed_y, mut dx) = (vec![0.0; len], vec![0.0; len]);
    add(&mut routed_y[at(&process.routed)..], &widened(&run.y));
    add(&mut dx[at(&process.routed)..], &widened(&run.dx));
    let mut gradients = run.gradients.clone();

    let mut shared_y = None;
    if part.shared.is_some() {
        let tokens = of(&process.tokens);
        let call = Call { x: &tokens.x, dout: &tokens.dout, sequences: &[], first_token: 0 };
        let SharedRun { y, dx: shared_dx, gradients: from_shared } = run_shared(rig.device(), &part, &call)?;
        shared_y = Some(widened(&y));
        add(&mut dx, &widened(&shared_dx));
        for (own, shared) in gradients.iter_mut().zip(from_shared).skip(FIRST_SHARED) {
            *own = shared;
        }
    }
    let (mut balance_loss, mut z_loss) = (None, None);
    if let Some(losses) = losses {
        let own = losses.part(rig, spec, &all.x, process.own.clone())?;
        (balance_loss, z_loss) = (own.balance, own.z);
        add(&mut dx[at(&process.own)..], &widened(&own.gate.dx));
        let from_losses = [Some(own.gate.dgate), own.gate.dbias];
        for (sum, more) in gradients.iter_mut().zip(&from_losses) {
            if let (Some(sum), Some(more)) = (sum, more) {
                add(sum, more);
            }
        }
    }
    Ok(Share { spec: part, run, routed_y, shared_y, dx, gradients, balance_loss, z_loss })
}

/// Where the shared experts' tensors start in `MoeConfig::tensors`.
pub(super) const FIRST_SHARED: usize = 6;

/// `sum += more`, as far as `more` reaches.
pub(super) fn add(sum: &mut [f32], more: &[f32]) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

fn widened<T: Scalar<Acc = f32>>(values: &[T]) -> Vec<f32> {
    values.iter().map(|value| value.widen()).collect()
}
