//! The exchange of rows between the owners of different experts: splits, slots in order of arrival, expert-major order.

use super::layout::{Layout, Process};
use super::process::Share;
use crate::verify::check::Check;
use crate::verify::dispatch::{integers, lengths};
use crate::verify::layer_spec::LayerSpec;
use crate::verify::moving::{gather, merge, sort};
use crate::verify::rig::Rig;
use anyhow::{Result, ensure};
use moe_core::ops::GatherDims;
use moe_core::{MoeDevice, Scalar};

/// What one process sends: global slots, sorted by destination.
struct Sent {
    /// (ep + 1): where each destination's rows start
    offsets: Vec<u32>,
    /// (rows)
    slots: Vec<f32>,
}

/// Compares the exchange of every process with `exch.*` of the file.
///
/// # Errors
/// Fixture errors, shape errors and the device's.
pub(super) fn compare<T, D>(
    rig: &Rig<D>,
    check: &mut Check<'_>,
    spec: &LayerSpec<T>,
    layout: &Layout,
    shares: &[Share<T>],
) -> Result<()>
where
    T: Scalar<Acc = f32>,
    D: MoeDevice<T> + MoeDevice<f32>,
{
    if layout.ep == 1 {
        return Ok(());
    }
    let pairs: Vec<(&Process, &Share<T>)> = layout.processes.iter().zip(shares).collect();
    let sent: Vec<Sent> = pairs
        .iter()
        .map(|(process, share)| send::<T, D>(rig, spec, layout, process, share))
        .collect::<Result<_>>()?;
    for (process, _) in &pairs {
        let name = |name: &str| format!("{}exch.{name}", process.prefix);
        let group: Vec<usize> = (0..pairs.len())
            .filter(|other| pairs[*other].0.edp == process.edp && pairs[*other].0.etp == process.etp)
            .collect();
        let (mut received, mut counts, mut splits) = (Vec::new(), Vec::new(), Vec::new());
        for &sender in &group {
            let Sent { offsets, slots } = &sent[sender];
            let rows = offsets[process.ep] as usize..offsets[process.ep + 1] as usize;
            splits.push(u32::try_from(rows.len())?);
            received.extend_from_slice(&slots[rows]);
            counts.extend_from_slice(&pairs[sender].1.run.counts[process.experts.clone()]);
        }
        let own = group.iter().find(|other| pairs[**other].0.prefix == process.prefix);
        let Some(own) = own else { continue };
        check.same(&name("input_splits"), &lengths(&sent[*own].offsets))?;
        check.same(&name("output_splits"), &splits)?;
        check.same(&name("recv_counts"), &counts)?;
        check.exact(&name("recv_slots"), &integers(&received))?;
        let merged = merge::<T, D>(rig, &counts, group.len(), received.len())?;
        check.same(&name("permuted_indices"), &merged.index)?;
        check.same(&name("tokens_per_local_expert"), &lengths(&merged.offsets))?;
        let dims = rows_of_one(received.len(), process.experts.len());
        let sorted = gather(rig, dims, &received, &merged.index, &merged.offsets, -1.0)?;
        check.exact(&name("expert_slots"), &integers(&sorted))?;
    }
    Ok(())
}

/// The global slots that a process sends.
fn send<T, D>(
    rig: &Rig<D>,
    spec: &LayerSpec<T>,
    layout: &Layout,
    process: &Process,
    share: &Share<T>,
) -> Result<Sent>
where
    T: Scalar<Acc = f32>,
    D: MoeDevice<T> + MoeDevice<f32>,
{
    let experts = spec.experts.experts;
    let sorted = sort::<T, D>(rig, &share.run.ids, experts)?;
    let first = process.routed.start * spec.router.dims.top_k;
    let end = first + share.run.ids.len();
    ensure!(end < 1 << 24, "{end} slots are too many to be numbered in f32");
    let numbers: Vec<f32> = (first..end).map(|slot| slot as f32).collect();
    let offsets: Vec<u32> = sorted.offsets.iter().step_by(experts / layout.ep).copied().collect();
    let dims = rows_of_one(numbers.len(), layout.ep);
    let slots = gather(rig, dims, &numbers, &sorted.slot_of_row, &offsets, -1.0)?;
    Ok(Sent { offsets, slots })
}

/// Rows of one element in groups, end to end.
fn rows_of_one(rows: usize, groups: usize) -> GatherDims {
    GatherDims { sources: rows, fan: 1, rows, width: 1, groups, pitch: 0 }
}
