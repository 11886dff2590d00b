//! Sharded layers in a checkpoint. Names and shapes are those of whole layers, so that one may be loaded as the other.

use super::layer::{LayerParts, OPTIMIZER, SELECTION_BIAS, STEPS, WEIGHTS, sets};
use super::runs::joined;
use super::{Checkpoint, CheckpointError, Loaded, Piece};
use crate::fsdp::{Fsdp, Shards};
use crate::gradients::RULES;
use moe_core::{
    AdamWOptions, Collective, DType, Device, Elem, MoeDevice, MoeLayer, Scalar, Session, StateTensor,
    TensorSpec, whole, whole_mut,
};
use std::ops::Range;

/// What a rank keeps of a sharded layer.
///
/// # Errors
/// [`CheckpointError::Layer`] if the device fails.
pub fn save_shards<T: Scalar, D: MoeDevice<T>, C: Collective<D>>(
    parts: &LayerParts<'_>,
    session: &Session<D>,
    fsdp: &Fsdp<D, T, C>,
    layer: &MoeLayer<D, T>,
    shards: &Shards<D, T>,
) -> Result<Vec<Piece>, CheckpointError> {
    let mut pieces = Vec::new();
    let mut add = |set: &str, dtype: DType, bytes: &[u8]| {
        for (at, (runs, own)) in placed(parts, fsdp) {
            let name = parts.name(&format!("{set}{}", RULES[at].name));
            let (shape, size) = (vec![own.len()], dtype.size());
            let bytes = bytes[own.start * size..own.end * size].to_vec();
            let tensor = StateTensor { name, shape, dtype, bytes };
            if RULES[at].counts(parts.mesh, parts.at, true) && !own.is_empty() {
                pieces.push(Piece { tensor, whole: parts.whole(at), runs });
            }
        }
    };
    let acc = <T::Acc as Elem>::DTYPE;
    add(WEIGHTS, T::DTYPE, &bytes::<T, D>(session, &shards.w)?);
    let buffers = [Some(&shards.m), Some(&shards.v), shards.master.as_ref()];
    for (set, buffer) in sets::<T>().iter().zip(buffers.into_iter().flatten()) {
        add(&format!("{OPTIMIZER}{set}"), acc, &bytes::<T::Acc, D>(session, buffer)?);
    }
    if parts.is_first() {
        let whole = |name: &str, shape, dtype, bytes| {
            Piece::whole(StateTensor { name: parts.name(name), shape, dtype, bytes })
        };
        let steps = [shards.steps as u32, (shards.steps >> 32) as u32];
        let name = format!("{OPTIMIZER}{STEPS}");
        pieces.push(whole(&name, vec![2], DType::U32, bytemuck::cast_slice(&steps).to_vec()));
        if let Some(bias) = layer.selection_bias() {
            let (name, shape) = (format!("{WEIGHTS}{SELECTION_BIAS}"), vec![parts.config.experts]);
            pieces.push(whole(&name, shape, acc, bytes::<T::Acc, D>(session, bias)?));
        }
    }
    Ok(pieces)
}

/// The layer and this rank's shards of it, whichever mesh they were saved on, whole or sharded.
///
/// # Errors
/// [`CheckpointError`]: what is missing, or of another shape; [`CheckpointError::Layer`] if the device fails.
pub fn load_shards<T: Scalar, D: MoeDevice<T>, C: Collective<D>>(
    parts: &LayerParts<'_>,
    checkpoint: &mut Checkpoint,
    session: &Session<D>,
    fsdp: &Fsdp<D, T, C>,
    options: AdamWOptions,
) -> Loaded<D, T, Shards<D, T>> {
    let layer = parts.load_weights(checkpoint, session.device())?;
    let mut shards = fsdp.shard(session, &layer, options).map_err(CheckpointError::layer)?;
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(&parts.load_steps(checkpoint)?.bytes);
    shards.steps = u64::from(words[0]) | u64::from(words[1]) << 32;
    let buffers = [Some(&mut shards.m), Some(&mut shards.v), shards.master.as_mut()];
    for (set, buffer) in sets::<T>().iter().zip(buffers.into_iter().flatten()) {
        let mut all = vec![T::Acc::default(); whole::<D, T::Acc>(buffer).len()];
        for (at, (runs, own)) in placed(parts, fsdp) {
            let name = parts.name(&format!("{OPTIMIZER}{set}{}", RULES[at].name));
            let bytes = checkpoint.read(&name, <T::Acc as Elem>::DTYPE, &parts.whole(at), runs)?;
            all[own].copy_from_slice(&bytemuck::pod_collect_to_vec::<u8, T::Acc>(&bytes));
        }
        session.upload(&all, whole_mut::<D, T::Acc>(buffer)).map_err(CheckpointError::layer)?;
    }
    Ok((layer, shards))
}

/// Where this rank's shard of a tensor stands in the whole, and in the buffer of shards.
type Placed = (Vec<Range<usize>>, Range<usize>);

fn placed<T: Scalar, D: MoeDevice<T>, C: Collective<D>>(
    parts: &LayerParts<'_>,
    fsdp: &Fsdp<D, T, C>,
) -> Vec<(usize, Placed)> {
    let specs = parts.config.tensors();
    let shard = |at: usize| {
        let (pieces, own) = fsdp.shard_of(at)?;
        Some((at, (stretches(&specs[at]?, pieces), own)))
    };
    (0..RULES.len()).filter_map(shard).collect()
}

/// Where some of a rank's elements of a tensor stand in the whole. `pieces` ascend.
fn stretches(spec: &TensorSpec, pieces: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut runs = spec.runs().map(|run| run.start..run.end);
    let (mut run, mut passed) = (0..0, 0);
    let mut all = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            while passed + run.len() <= piece.start {
                passed += run.len();
                match runs.next() {
                    Some(next) => run = next,
                    None => return all,
                }
            }
            let skip = piece.start - passed;
            let len = (run.len() - skip).min(piece.len());
            all.push(run.start + skip..run.start + skip + len);
            piece.start += len;
        }
    }
    joined(all)
}

/// A buffer's bytes.
fn bytes<E: Elem, D: Device>(session: &Session<D>, buffer: &D::Owned<E>) -> Result<Vec<u8>, CheckpointError> {
    let view = whole::<D, E>(buffer);
    let mut values = vec![E::default(); view.len()];
    session.download(view, &mut values).map_err(CheckpointError::layer)?;
    Ok(bytemuck::cast_slice(&values).to_vec())
}
