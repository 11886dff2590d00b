//! Packed weights: the device's own layouts, made again whenever weights change.

use super::Tensors;
use crate::config::MoeConfig;
use crate::device::Device;
use crate::error::Error;
use crate::ops::{ExpertDims, MoeDevice, PackDims, PackUse, PackWeights, PackWeightsArgs, Weight};
use crate::runner::Plan;
use crate::scalar::Scalar;
use crate::session::Session;
use crate::view::{whole, whole_mut};

/// One weight in the layout of one op; absent where the device reads weights as they are.
pub(crate) struct Layout<D: Device> {
    dims: PackDims,
    bytes: Option<D::Owned<u8>>,
}

/// The layouts of a gate and two products.
pub(crate) struct Packed<D: Device> {
    pub(crate) gate: Layout<D>,
    pub(crate) up: Layout<D>,
    pub(crate) down: Layout<D>,
    pub(crate) up_bwd: Layout<D>,
    pub(crate) down_bwd: Layout<D>,
}

impl<D: Device> Layout<D> {
    fn new<T: Scalar>(session: &Session<D>, dims: PackDims, wanted: bool) -> Result<Self, Error<D::Error>> {
        let len = if wanted { session.device().packed_len::<T>(&dims) } else { 0 };
        let bytes = if len > 0 { Some(session.alloc(len)?) } else { None };
        Ok(Self { dims, bytes })
    }

    fn pack<T: Scalar>(
        &mut self,
        session: &mut Session<D>,
        plain: &D::Owned<T>,
    ) -> Result<(), Error<D::Error>>
    where
        D: MoeDevice<T>,
    {
        match &mut self.bytes {
            Some(bytes) => {
                let args = PackWeightsArgs { plain: whole::<D, T>(plain), packed: whole_mut::<D, u8>(bytes) };
                session.run::<PackWeights<T>>(&self.dims, args)
            }
            None => Ok(()),
        }
    }

    /// The weight as its op reads it.
    pub(crate) fn weight<'a, T: Scalar>(&'a self, plain: &'a D::Owned<T>) -> Weight<'a, D, T> {
        match &self.bytes {
            Some(bytes) => Weight::Packed(whole::<D, u8>(bytes)),
            None => Weight::Plain(whole::<D, T>(plain)),
        }
    }

    pub(crate) fn exists(&self) -> bool {
        self.bytes.is_some()
    }
}

impl<D: Device> Packed<D> {
    fn new<T: Scalar>(
        session: &Session<D>,
        gate: PackDims,
        dims: ExpertDims,
        gated: bool,
    ) -> Result<Self, Error<D::Error>> {
        let layout = |dims, wanted| Layout::new::<T>(session, dims, wanted);
        Ok(Self {
            gate: layout(gate, gated)?,
            up: layout(dims.pack(PackUse::Up), true)?,
            down: layout(dims.pack(PackUse::Down), true)?,
            up_bwd: layout(dims.pack(PackUse::UpBwd), true)?,
            down_bwd: layout(dims.pack(PackUse::DownBwd), true)?,
        })
    }

    /// Layouts for the routed experts and, where there are any, the shared ones.
    pub(crate) fn of<T: Scalar>(
        session: &Session<D>,
        config: &MoeConfig,
    ) -> Result<(Self, Option<Self>), Error<D::Error>> {
        let plan = Plan::empty(config);
        let routed = Self::new::<T>(session, plan.route().pack(), plan.routed(), true)?;
        let shared = match config.shared {
            Some(shared) => {
                let gate = plan.shared_gate().route().pack();
                Some(Self::new::<T>(session, gate, plan.shared(), shared.gated)?)
            }
            None => None,
        };
        Ok((routed, shared))
    }

    fn pack<T: Scalar>(
        &mut self,
        session: &mut Session<D>,
        gate: Option<&D::Owned<T>>,
        w13: &D::Owned<T>,
        w2: &D::Owned<T>,
    ) -> Result<(), Error<D::Error>>
    where
        D: MoeDevice<T>,
    {
        if let Some(gate) = gate {
            self.gate.pack(session, gate)?;
        }
        self.up.pack(session, w13)?;
        self.down.pack(session, w2)?;
        self.up_bwd.pack(session, w13)?;
        self.down_bwd.pack(session, w2)
    }

    /// Frees what only backward reads.
    pub(crate) fn keep_forward(&mut self) {
        self.up_bwd.bytes = None;
        self.down_bwd.bytes = None;
    }
}

/// Packs every weight.
pub(crate) fn pack_all<T: Scalar, D: MoeDevice<T>>(
    session: &mut Session<D>,
    packed: &mut (Packed<D>, Option<Packed<D>>),
    weights: &Tensors<D, T>,
) -> Result<(), Error<D::Error>> {
    packed.0.pack(session, Some(&weights.gate), &weights.w13, &weights.w2)?;
    match (&mut packed.1, &weights.shared) {
        (Some(packed), Some(shared)) => packed.pack(session, shared.gate.as_ref(), &shared.w13, &shared.w2),
        _ => Ok(()),
    }
}
