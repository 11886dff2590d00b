//! Shards: what a rank keeps of a layer's parameters and of their optimizer.

use super::layout::Layout;
use moe_core::ops::{self, ADAMW_SETTINGS, AdamWArgs, AdamWDims, AdamWSettings};
use moe_core::{
    AdamWOptions, DType, Device, Elem, Error, MoeDevice, Scalar, Session, Tensors, whole, whole_mut,
};

/// A rank's shards of a layer: weights, f32 masters where weights are stored in a narrower type, moments, and reduced gradients,
/// each in one buffer. Made by [`Fsdp::shard`](super::Fsdp::shard).
pub struct Shards<D: Device, T: Scalar> {
    pub(crate) options: AdamWOptions,
    pub(crate) steps: u64,
    pub(crate) w: D::Owned<T>,
    pub(crate) master: Option<D::Owned<T::Acc>>,
    pub(crate) m: D::Owned<T::Acc>,
    pub(crate) v: D::Owned<T::Acc>,
    pub(crate) grads: D::Owned<T::Acc>,
    /// whether `grads` holds the sums of this step
    pub(crate) reduced: bool,
    settings: D::Owned<T::Acc>,
}

impl<T: Scalar, D: MoeDevice<T>> Shards<D, T> {
    /// This rank's part of `weights`, and moments of zero.
    pub(crate) fn new(
        session: &Session<D>,
        layout: &Layout,
        rank_of: impl Fn(usize) -> usize,
        weights: &Tensors<D, T>,
        options: AdamWOptions,
    ) -> Result<Self, Error<D::Error>> {
        let (device, stream, len) = (session.device(), session.stream(), layout.len);
        let mut w = session.alloc(len)?;
        for (at, buffer) in weights.list().into_iter().enumerate() {
            let (Some(buffer), Some((cut, own))) = (buffer, &layout.tensors[at]) else { continue };
            let mut start = own.start;
            for piece in cut.pieces(rank_of(at)) {
                let target = start..start + piece.len();
                start = target.end;
                let source = whole::<D, T>(buffer).slice(piece)?;
                let target = whole_mut::<D, T>(&mut w).slice(target)?;
                device.copy(stream, source, target).map_err(Error::Device)?;
            }
        }
        let mut master = None;
        if T::DTYPE != <T::Acc as Elem>::DTYPE {
            let mut narrow = vec![T::default(); len];
            session.download(whole::<D, T>(&w), &mut narrow)?;
            let wide: Vec<T::Acc> = narrow.into_iter().map(Scalar::widen).collect();
            let mut buffer = session.alloc(len)?;
            session.upload(&wide, whole_mut::<D, T::Acc>(&mut buffer))?;
            master = Some(buffer);
        }
        let (m, v, grads) = (session.alloc(len)?, session.alloc(len)?, session.alloc(len)?);
        let settings = session.alloc(ADAMW_SETTINGS)?;
        Ok(Self { options, steps: 0, w, master, m, v, grads, reduced: false, settings })
    }

    /// Optimizer steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Bytes of each element that a rank keeps in shards: weight, master, moments, gradient.
    pub fn bytes_per_element() -> usize {
        let masters = usize::from(T::DTYPE != <T::Acc as Elem>::DTYPE);
        T::DTYPE.size() + (3 + masters) * DType::size(<T::Acc as Elem>::DTYPE)
    }

    /// One step of AdamW over all shards, which are the weights of a launch that knows nothing of tensors.
    pub(crate) fn step(
        &mut self,
        session: &mut Session<D>,
        lr: f64,
        scale: f64,
    ) -> Result<(), Error<D::Error>> {
        let AdamWOptions { beta1, beta2, eps, weight_decay } = self.options;
        let step = self.steps + 1;
        let settings = AdamWSettings { lr, beta1, beta2, eps, weight_decay, step, scale };
        session.upload(&settings.words::<T::Acc>(), whole_mut::<D, T::Acc>(&mut self.settings))?;
        let args = AdamWArgs {
            settings: whole::<D, T::Acc>(&self.settings),
            grad: whole::<D, T::Acc>(&self.grads),
            w: whole_mut::<D, T>(&mut self.w),
            master: self.master.as_mut().map(whole_mut::<D, T::Acc>),
            m: whole_mut::<D, T::Acc>(&mut self.m),
            v: whole_mut::<D, T::Acc>(&mut self.v),
        };
        let len = args.w.len();
        session.run::<ops::AdamW<T>>(&AdamWDims { len }, args)?;
        self.steps = step;
        self.reduced = false;
        Ok(())
    }
}
