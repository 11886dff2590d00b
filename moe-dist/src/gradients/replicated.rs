//! Parameters that are whole on each rank: gradients are summed by all-reduce, and every copy takes the same step.

use super::SMALL;
use super::norm::Norm;
use super::rules::{RULES, load_span};
use crate::mesh::{Mesh, Span};
use moe_core::{
    Collective, Device, Error, Grads, MoeConfig, MoeDevice, Reduce, Scalar, Session, whole, whole_mut,
};
use std::ops::Range;

/// Sums gradients and loads of a model's layers over a mesh, once per optimizer step. Parameters are on each rank whole, but for the
/// parts of ep, etp and tp.
///
/// The order of a step: backward of all micro-batches, [`reduce`](Self::reduce), [`norm`](Self::norm), then
/// [`AdamW::step_scaled`](moe_core::AdamW::step_scaled) with [`clip`](super::clip) for each layer. Copies that were equal are equal afterwards, bit for bit.
pub struct Replicated<D: Device, T: Scalar, C> {
    sums: Vec<Sum<C>>,
    bucket: D::Owned<T::Acc>,
    loads: D::Owned<u32>,
    experts: usize,
    /// which of `sums` takes the loads
    load_sum: usize,
    norm: Norm<D, T>,
}

/// A group, and what is summed in it.
struct Sum<C> {
    span: Span,
    group: C,
    /// layer and tensor of what travels by itself
    large: Vec<(usize, usize)>,
    /// layer, tensor and place in the bucket of what travels together
    small: Vec<(usize, usize, Range<usize>)>,
}

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Replicated<D, T, C> {
    /// For layers of these descriptions, in this order, on `rank` of `mesh`. `make` as in [`Mesh::group`].
    ///
    /// # Errors
    /// [`Error::Config`] if the mesh has no such rank, or from `make`; [`Error::Device`] if memory runs out.
    pub fn new<E: Into<Error<D::Error>>>(
        session: &Session<D>,
        mesh: &Mesh,
        rank: usize,
        layers: &[MoeConfig],
        make: &mut impl FnMut(&'static str, &[usize]) -> Result<C, E>,
    ) -> Result<Self, Error<D::Error>> {
        let at = mesh.seat(rank)?;
        let mut sums = Vec::new();
        let mut bucket = 0;
        for span in [Span::World, Span::Data, Span::Edp] {
            let group = mesh.group(span, rank, make).map_err(Into::into)?;
            let (mut large, mut small, mut end) = (Vec::new(), Vec::new(), 0);
            for (layer, config) in layers.iter().enumerate() {
                for (tensor, spec) in config.tensors().iter().enumerate() {
                    let Some(spec) = spec.filter(|_| RULES[tensor].sum == span) else { continue };
                    if spec.len() < SMALL {
                        small.push((layer, tensor, end..end + spec.len()));
                        end += spec.len();
                    } else {
                        large.push((layer, tensor));
                    }
                }
            }
            bucket = bucket.max(end);
            sums.push(Sum { span, group, large, small });
        }
        let load_span = load_span(mesh);
        let experts = layers.iter().map(|config| config.experts).max().unwrap_or(0);
        Ok(Self {
            load_sum: sums.iter().position(|sum| sum.span == load_span).unwrap_or(0),
            sums,
            bucket: session.alloc(bucket)?,
            loads: session.alloc(layers.len() * experts)?,
            experts,
            norm: Norm::new(session, mesh, &at, false)?,
        })
    }

    /// Sums gradients and loads over the ranks, in place. `grads` are those of the layers that this was made for, in the same order.
    ///
    /// # Errors
    /// [`Error::State`] if some are empty; [`Error::Shape`] if they are of other layers; [`Error::Collective`];
    /// [`Error::Device`]. After an error in the middle the gradients mean nothing.
    pub fn reduce(
        &mut self,
        session: &Session<D>,
        grads: &mut [&mut Grads<D, T>],
    ) -> Result<(), Error<D::Error>> {
        filled(grads.iter().map(|grads| grads.filled()))?;
        for at in 0..self.sums.len() {
            self.reduce_small(session, grads, at)?;
            let Sum { group, large, .. } = &mut self.sums[at];
            for (layer, tensor) in &*large {
                let buffer = tensor_of(grads, *layer, *tensor)?;
                group.all_reduce(session.stream(), Reduce::Sum, whole_mut::<D, T::Acc>(buffer))?;
            }
        }
        self.reduce_loads(session, grads)
    }

    /// The norm of the reduced gradients of all layers over the mesh, each parameter once, the same bits on every rank. `own` are squares
    /// of gradients elsewhere that this rank counts.
    ///
    /// # Errors
    /// [`Error::Collective`]; [`Error::Device`].
    pub fn norm(
        &mut self,
        session: &mut Session<D>,
        grads: &[&Grads<D, T>],
        own: f64,
    ) -> Result<f64, Error<D::Error>> {
        let mut squares = own;
        for grads in grads {
            let views = grads.weights.list().map(|buffer| buffer.map(whole::<D, T::Acc>));
            squares += self.norm.squares_of(session, views)?;
        }
        self.norm.over(session, &mut self.sums[0].group, squares)
    }

    fn reduce_small(
        &mut self,
        session: &Session<D>,
        grads: &mut [&mut Grads<D, T>],
        at: usize,
    ) -> Result<(), Error<D::Error>> {
        let Sum { group, small, .. } = &mut self.sums[at];
        let Some((_, _, last)) = small.last().filter(|_| group.size() > 1) else {
            return Ok(());
        };
        let (device, stream, end) = (session.device(), session.stream(), last.end);
        for (layer, tensor, range) in &*small {
            let source = whole::<D, T::Acc>(tensor_of(grads, *layer, *tensor)?);
            let target = whole_mut::<D, T::Acc>(&mut self.bucket).slice(range.clone())?;
            device.copy(stream, source, target).map_err(Error::Device)?;
        }
        group.all_reduce(stream, Reduce::Sum, whole_mut::<D, T::Acc>(&mut self.bucket).slice(0..end)?)?;
        for (layer, tensor, range) in &*small {
            let source = whole::<D, T::Acc>(&self.bucket).slice(range.clone())?;
            let target = whole_mut::<D, T::Acc>(tensor_of(grads, *layer, *tensor)?);
            device.copy(stream, source, target).map_err(Error::Device)?;
        }
        Ok(())
    }

    fn reduce_loads(
        &mut self,
        session: &Session<D>,
        grads: &mut [&mut Grads<D, T>],
    ) -> Result<(), Error<D::Error>> {
        let group = &mut self.sums[self.load_sum].group;
        let loads = grads.iter_mut().map(|grads| &mut grads.load);
        reduce_loads(session, group, &mut self.loads, self.experts, loads)
    }
}

/// Sums the layers' loads, which travel together through `bucket`, `room` elements for each.
pub(crate) fn reduce_loads<'a, D: Device, C: Collective<D>>(
    session: &Session<D>,
    group: &mut C,
    bucket: &mut D::Owned<u32>,
    room: usize,
    loads: impl Iterator<Item = &'a mut D::Owned<u32>>,
) -> Result<(), Error<D::Error>> {
    if group.size() == 1 {
        return Ok(());
    }
    let (device, stream) = (session.device(), session.stream());
    let mut loads: Vec<_> = loads.collect();
    for (at, load) in loads.iter().enumerate() {
        let source = whole::<D, u32>(load);
        let target = whole_mut::<D, u32>(bucket).slice(at * room..at * room + source.len())?;
        device.copy(stream, source, target).map_err(Error::Device)?;
    }
    group.all_reduce(stream, Reduce::Sum, whole_mut::<D, u32>(bucket))?;
    for (at, load) in loads.iter_mut().enumerate() {
        let target = whole_mut::<D, u32>(load);
        let source = whole::<D, u32>(bucket).slice(at * room..at * room + target.len())?;
        device.copy(stream, source, target).map_err(Error::Device)?;
    }
    Ok(())
}

/// All gradients of a step must be there.
pub(crate) fn filled<B: moe_core::BackendError>(
    filled: impl IntoIterator<Item = bool>,
) -> Result<(), Error<B>> {
    match filled.into_iter().all(|filled| filled) {
        true => Ok(()),
        false => Err(Error::State("these gradients are empty: run backward before they are reduced")),
    }
}

fn tensor_of<'g, D: MoeDevice<T>, T: Scalar>(
    grads: &'g mut [&mut Grads<D, T>],
    layer: usize,
    tensor: usize,
) -> Result<&'g mut D::Owned<T::Acc>, Error<D::Error>> {
    let buffer = grads.get_mut(layer).and_then(|grads| grads.weights.list_mut()[tensor].take());
    buffer.ok_or(Error::State("these are not the gradients of the layers that the reduction was made for"))
}
