//! Fully sharded parameters (FSDP; with dp_replicate, HSDP): a rank keeps a part of each parameter and of its optimizer.
//!
//! Weights are gathered into the layer after each step, and packed again; backward leaves whole gradients, which are
//! reduce-scattered in the accumulation type over the shards, then all-reduced over the copies of a shard; AdamW works on the
//! shard alone. Gates, routed and shared experts follow [`RULES`](crate::gradients::RULES); cut and order are those of torchtitan.
//!
//! What is kept whole: the layer's weights in their storage type with their packed forms, and the gradients of the
//! micro-batches. What is sharded: masters, both moments, reduced gradients, and a copy of the weights.

mod cut;
mod layout;
mod shards;

pub use shards::Shards;

use crate::gradients::{Norm, filled, load_span, reduce_loads};
use crate::mesh::{Mesh, Span};
use layout::{Layout, Pack};
use moe_core::{
    AdamWOptions, Collective, Device, Error, Grads, MoeConfig, MoeDevice, MoeLayer, Reduce, Runner, Scalar,
    Session, TENSORS, Tensors, whole, whole_mut,
};
use std::ops::Range;

/// Shards layers of one size over a mesh.
///
/// The order of a step: backward of all micro-batches, [`reduce`](Self::reduce) for all layers, [`norm`](Self::norm), then [`step`](Self::step) for each.
pub struct Fsdp<D: Device, T: Scalar, C> {
    config: MoeConfig,
    layout: Layout,
    fsdp: C,
    efsdp: C,
    replicate: C,
    replicate_tp: C,
    world: C,
    load: C,
    staged: D::Owned<T>,
    staged_sums: D::Owned<T::Acc>,
    loads: D::Owned<u32>,
    norm: Norm<D, T>,
}

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Fsdp<D, T, C> {
    /// For `layers` layers of this description on `rank` of `mesh`. `make` as in [`Mesh::group`].
    ///
    /// # Errors
    /// [`Error::Config`] if the mesh has no such rank, or from `make`; [`Error::Device`] if memory runs out.
    pub fn new<E: Into<Error<D::Error>>>(
        session: &Session<D>,
        mesh: &Mesh,
        rank: usize,
        config: &MoeConfig,
        layers: usize,
        make: &mut impl FnMut(&'static str, &[usize]) -> Result<C, E>,
    ) -> Result<Self, Error<D::Error>> {
        config.validate()?;
        let at = mesh.seat(rank)?;
        let size_and_rank = |span| (mesh.members(span, rank).len(), mesh.place_in(span, &at));
        let layout = Layout::new(config, size_and_rank);
        let mut group = |span| mesh.group(span, rank, make).map_err(Into::into);
        Ok(Self {
            config: *config,
            fsdp: group(Span::Fsdp)?,
            efsdp: group(Span::Efsdp)?,
            replicate: group(Span::DpReplicate)?,
            replicate_tp: group(Span::ReplicateTp)?,
            world: group(Span::World)?,
            load: group(load_span(mesh))?,
            staged: session.alloc(layout.staging())?,
            staged_sums: session.alloc(layout.staging())?,
            loads: session.alloc(layers * config.experts)?,
            norm: Norm::new(session, mesh, &at, true)?,
            layout,
        })
    }

    /// This rank's shards of a layer whose weights are equal on all ranks where they should be.
    ///
    /// # Errors
    /// [`Error::State`] if the layer has another size, or was made for inference; [`Error::Device`].
    pub fn shard(
        &self,
        session: &Session<D>,
        layer: &MoeLayer<D, T>,
        options: AdamWOptions,
    ) -> Result<Shards<D, T>, Error<D::Error>> {
        self.accepts(layer.config())?;
        let shards = Shards::new(session, &self.layout, |at| self.rank_of(at), layer.weights()?, options)?;
        session.sync()?;
        Ok(shards)
    }

    /// Sums the gradients of all layers over the mesh: each rank gets its shards' sums. Loads are summed in place.
    ///
    /// # Errors
    /// [`Error::State`] if some are empty, or of layers of another size; [`Error::Collective`]; [`Error::Device`].
    pub fn reduce(
        &mut self,
        session: &Session<D>,
        shards: &mut [&mut Shards<D, T>],
        grads: &mut [&mut Grads<D, T>],
    ) -> Result<(), Error<D::Error>> {
        if shards.len() != grads.len() {
            return Err(Error::State("there must be gradients for each layer's shards"));
        }
        filled(grads.iter().map(|grads| grads.filled()))?;
        for (shards, grads) in shards.iter_mut().zip(grads.iter()) {
            self.scatter(session, shards, grads)?;
        }
        let loads = grads.iter_mut().map(|grads| &mut grads.load);
        reduce_loads(session, &mut self.load, &mut self.loads, self.config.experts, loads)?;
        shards.iter_mut().for_each(|shards| shards.reduced = true);
        Ok(())
    }

    /// The norm of the reduced gradients of all layers over the mesh, each parameter once, the same bits on every rank. `own` are squares
    /// of gradients elsewhere that this rank counts.
    ///
    /// # Errors
    /// [`Error::State`] before [`reduce`](Self::reduce); [`Error::Collective`]; [`Error::Device`].
    pub fn norm(
        &mut self,
        session: &mut Session<D>,
        layers: &[&Shards<D, T>],
        own: f64,
    ) -> Result<f64, Error<D::Error>> {
        let mut squares = own;
        for shards in layers {
            reduced(shards)?;
            let mut views = [const { None }; TENSORS];
            for (view, tensor) in views.iter_mut().zip(&self.layout.tensors) {
                if let Some((_, own)) = tensor {
                    *view = Some(whole::<D, T::Acc>(&shards.grads).slice(own.clone())?);
                }
            }
            squares += self.norm.squares_of(session, views)?;
        }
        self.norm.over(session, &mut self.world, squares)
    }

    /// One step of AdamW on this rank's shards with gradients times `scale`, then the layer's new weights, packed, and its
    /// selection bias. Empties `grads`.
    ///
    /// # Errors
    /// [`Error::State`] before [`reduce`](Self::reduce); [`Error::Collective`]; [`Error::Device`]. After an error in the middle the layer is stale.
    pub fn step<G: Collective<D>>(
        &mut self,
        runner: &mut Runner<D, T, G>,
        layer: &mut MoeLayer<D, T>,
        shards: &mut Shards<D, T>,
        grads: &mut Grads<D, T>,
        lr: f64,
        scale: f64,
    ) -> Result<(), Error<D::Error>> {
        self.accepts(layer.config())?;
        reduced(shards)?;
        layer.update(runner, |weights, session| {
            shards.step(session, lr, scale)?;
            self.gather_weights(session, shards, weights)
        })?;
        layer.balance(runner, grads)?;
        grads.clear();
        Ok(())
    }

    /// Puts the weights of all ranks' shards into a layer, and packs them.
    ///
    /// # Errors
    /// [`Error::State`] if the layer has another size; [`Error::Collective`]; [`Error::Device`]. After an error the layer is stale.
    pub fn gather<G: Collective<D>>(
        &mut self,
        runner: &mut Runner<D, T, G>,
        layer: &mut MoeLayer<D, T>,
        shards: &Shards<D, T>,
    ) -> Result<(), Error<D::Error>> {
        self.accepts(layer.config())?;
        layer.update(runner, |weights, session| self.gather_weights(session, shards, weights))
    }

    fn gather_weights(
        &mut self,
        session: &Session<D>,
        shards: &Shards<D, T>,
        weights: &mut Tensors<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let (device, stream) = (session.device(), session.stream());
        let Self { layout, fsdp, efsdp, staged, .. } = self;
        for pack in &layout.packs {
            let group = if pack.shards == Span::Fsdp { &mut *fsdp } else { &mut *efsdp };
            let own = whole::<D, T>(&shards.w).slice(pack.own.clone())?;
            if !pack.staged {
                let tensor = there(weights.list_mut()[pack.tensors[0]].take())?;
                group.all_gather(stream, own, whole_mut::<D, T>(tensor), &pack.counts)?;
                continue;
            }
            let all = whole_mut::<D, T>(staged).slice(0..pack.counts.iter().sum())?;
            group.all_gather(stream, own, all, &pack.counts)?;
            let mut tensors = weights.list_mut();
            for (at, piece, place) in layout.moves(pack) {
                let tensor = there(tensors[at].as_mut())?;
                let source = whole::<D, T>(staged).slice(place)?;
                device
                    .copy(stream, source, whole_mut::<D, T>(tensor).slice(piece)?)
                    .map_err(Error::Device)?;
            }
        }
        Ok(())
    }

    fn scatter(
        &mut self,
        session: &Session<D>,
        shards: &mut Shards<D, T>,
        grads: &Grads<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let (device, stream) = (session.device(), session.stream());
        let Self { layout, fsdp, efsdp, replicate, replicate_tp, staged_sums, .. } = self;
        let tensors = grads.weights.list();
        for pack in &layout.packs {
            let group = if pack.shards == Span::Fsdp { &mut *fsdp } else { &mut *efsdp };
            let all = match pack {
                Pack { staged: false, tensors: alone, .. } => whole::<D, T::Acc>(there(tensors[alone[0]])?),
                pack => {
                    for (at, piece, place) in layout.moves(pack) {
                        let source = whole::<D, T::Acc>(there(tensors[at])?).slice(piece)?;
                        let target = whole_mut::<D, T::Acc>(staged_sums).slice(place)?;
                        device.copy(stream, source, target).map_err(Error::Device)?;
                    }
                    whole::<D, T::Acc>(staged_sums).slice(0..pack.counts.iter().sum())?
                }
            };
            let own = whole_mut::<D, T::Acc>(&mut shards.grads).slice(pack.own.clone())?;
            group.reduce_scatter(stream, Reduce::Sum, all, own, &pack.counts)?;
        }
        for (span, stretch) in &layout.copies {
            let group = if *span == Span::ReplicateTp { &mut *replicate_tp } else { &mut *replicate };
            let sums = whole_mut::<D, T::Acc>(&mut shards.grads).slice(stretch.clone())?;
            group.all_reduce(stream, Reduce::Sum, sums)?;
        }
        Ok(())
    }

    /// The elements of the layer's tensor that this rank's shard consists of, and the shard's place in the buffers of [`Shards`].
    pub(crate) fn shard_of(
        &self,
        tensor: usize,
    ) -> Option<(impl Iterator<Item = Range<usize>> + use<T, D, C>, Range<usize>)> {
        let (cut, own) = self.layout.tensors[tensor].as_ref()?;
        Some((cut.pieces(self.rank_of(tensor)), own.clone()))
    }

    /// This rank's place in the group of a tensor's shards.
    fn rank_of(&self, tensor: usize) -> usize {
        let group = match crate::gradients::RULES[tensor].shards {
            Span::Fsdp => &self.fsdp,
            _ => &self.efsdp,
        };
        group.rank()
    }

    fn accepts(&self, config: &MoeConfig) -> Result<(), Error<D::Error>> {
        if config.tensors() == self.config.tensors() { Ok(()) } else { Err(Error::State(SIZE)) }
    }
}

const SIZE: &str = "this layer has other sizes, or another place, than those that the shards were made for";
/// A tensor that the layout has; a layer of another size may not have it.
fn there<R, B: moe_core::BackendError>(tensor: Option<R>) -> Result<R, Error<B>> {
    tensor.ok_or(Error::State(SIZE))
}

fn reduced<D: Device, T: Scalar>(shards: &Shards<D, T>) -> Result<(), Error<D::Error>> {
    match shards.reduced {
        true => Ok(()),
        false => Err(Error::State("the gradients of these shards are not reduced: call reduce first")),
    }
}
