//! What processes have after their reductions, and before: the names of a file, with values to compare.

use super::layout::{Layout, Process};
use super::process::{FIRST_SHARED, Share, add};
use crate::verify::check::Check;
use crate::verify::layer_spec::{LayerSpec, TensorList, named};
use anyhow::Result;
use moe_core::Scalar;

/// Compares every process's tensors with those that the file has.
///
/// # Errors
/// Fixture errors.
pub(super) fn compare<T: Scalar<Acc = f32>>(
    check: &mut Check<'_>,
    spec: &LayerSpec<T>,
    layout: &Layout,
    shares: &[Share<T>],
) -> Result<()> {
    for (process, share) in layout.processes.iter().zip(shares) {
        let name = |name: &str| format!("{}{name}", process.prefix);
        check.same(&name("out.topk_ids"), &share.run.ids)?;
        check.same(&name("out.counts"), &share.run.counts)?;
        check.close_if_any(&name("out.topk_scores"), &share.run.weights)?;
        check.close_if_any(&name("out.logits"), &share.run.logits)?;
        check.close_if_any(&name("out.routed_partial"), &share.routed_y)?;
        if let Some(shared) = &share.shared_y {
            check.close_if_any(&name("out.shared_partial"), shared)?;
        }
        check.close_if_any(&name("out.aux_loss"), &share.balance_loss.map_or(vec![], |loss| vec![loss]))?;
        check.close_if_any(&name("out.z_loss"), &share.z_loss.map_or(vec![], |loss| vec![loss]))?;
        let peers = || pairs(layout, shares).filter(|(peer, _)| peer.data == process.data);
        let (mut y, mut dx) = (vec![0.0; share.dx.len()], vec![0.0; share.dx.len()]);
        for (_, peer) in peers() {
            add(&mut y, &peer.routed_y);
            add(&mut y, peer.shared_y.as_deref().unwrap_or_default());
            add(&mut dx, &peer.dx);
        }
        check.close(&name("out.y"), &y)?;
        check.close(&name("grad.x"), &dx)?;
        check.close_if_any(&name("grad_partial.x"), &share.dx)?;
        check.close_if_any(&name("grad_partial.topk_scores"), &share.run.dweights)?;

        let partial = partial(spec, layout, shares, process);
        for (tensor, values) in named(&share.spec, &partial)? {
            check.close_if_any(&name(&format!("grad_partial.{tensor}")), &values)?;
        }
        for (tensor, values) in named(&share.spec, &reduced(spec, layout, shares, process))? {
            check.close_if_any(&name(&format!("grad.{tensor}")), &values)?;
        }
    }
    Ok(())
}

fn pairs<'a, T>(
    layout: &'a Layout,
    shares: &'a [Share<T>],
) -> impl Iterator<Item = (&'a Process, &'a Share<T>)> {
    layout.processes.iter().zip(shares)
}

/// Gradients of one process before any reduction: routed experts have seen the rows that all processes of its exchange sent.
fn partial<T: Scalar<Acc = f32>>(
    spec: &LayerSpec<T>,
    layout: &Layout,
    shares: &[Share<T>],
    process: &Process,
) -> TensorList {
    let senders = pairs(layout, shares)
        .filter(|(sender, _)| sender.edp == process.edp && sender.etp == process.etp)
        .map(|(_, sender)| &sender.gradients);
    let own = pairs(layout, shares)
        .filter(|(other, _)| other.prefix == process.prefix)
        .map(|(_, own)| &own.gradients);
    joined(sums(own), experts_of(spec, process, sums(senders)))
}

/// Gradients of one process after all reductions.
fn reduced<T: Scalar<Acc = f32>>(
    spec: &LayerSpec<T>,
    layout: &Layout,
    shares: &[Share<T>],
    process: &Process,
) -> TensorList {
    let of = |keep: &dyn Fn(&Process) -> bool| {
        sums(pairs(layout, shares).filter(|(other, _)| keep(other)).map(|(_, share)| &share.gradients))
    };
    // All rows of its experts, whoever sent them: the sum over edp of what each copy has received.
    let routed = of(&|other| other.etp == process.etp);
    let mut all = joined(of(&|_| true), experts_of(spec, process, routed));
    let same_tp = of(&|other| other.tp == process.tp);
    for (at, shared) in same_tp.into_iter().enumerate().skip(FIRST_SHARED) {
        if at != SHARED_GATE {
            all[at] = shared;
        }
    }
    all
}

/// Where the shared experts' gate stands in `MoeConfig::tensors`.
const SHARED_GATE: usize = 8;
/// Where the routed experts' tensors stand in `MoeConfig::tensors`.
const ROUTED: std::ops::Range<usize> = 2..FIRST_SHARED;

fn sums<'a>(lists: impl Iterator<Item = &'a TensorList>) -> TensorList {
    let mut sum: TensorList = [const { None }; moe_core::TENSORS];
    for list in lists {
        for (sum, more) in sum.iter_mut().zip(list) {
            match (sum, more) {
                (Some(sum), Some(more)) => add(sum, more),
                (sum, more) => sum.clone_from(more),
            }
        }
    }
    sum
}

/// `list` with the routed experts' tensors of `routed`.
fn joined(mut list: TensorList, routed: TensorList) -> TensorList {
    for (at, routed) in routed.into_iter().enumerate() {
        if ROUTED.contains(&at) {
            list[at] = routed;
        }
    }
    list
}

/// The routed experts' tensors cut to the experts of `process`.
fn experts_of<T>(spec: &LayerSpec<T>, process: &Process, mut list: TensorList) -> TensorList {
    for values in list[ROUTED].iter_mut().flatten() {
        let one = values.len() / spec.experts.experts;
        *values = values[process.experts.start * one..process.experts.end * one].to_vec();
    }
    list
}
