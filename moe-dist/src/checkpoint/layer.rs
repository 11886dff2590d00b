//! Layers and their optimizers in a checkpoint: under a prefix, `moe.NAME` for parameters and the selection bias, and
//! `adam.SET.NAME` for the optimizer. Names and shapes are those of the whole layer, however it was spread.

use super::runs::joined;
use super::{Checkpoint, CheckpointError, Loaded, Piece};
use crate::gradients::RULES;
use crate::mesh::{Coordinates, Mesh, Span};
use moe_core::{
    AdamW, AdamWOptions, DType, Elem, MoeConfig, MoeDevice, MoeLayer, Scalar, StateTensor, TensorSpec,
};

/// Which part of a layer a rank has, and what the layer is called.
#[derive(Clone, Copy, Debug)]
pub struct LayerParts<'a> {
    /// before each name: `layers.3.`
    pub prefix: &'a str,
    /// the ranks
    pub mesh: &'a Mesh,
    /// this one
    pub at: &'a Coordinates,
    /// the layer, with this rank's place
    pub config: &'a MoeConfig,
}

/// What a rank keeps of a layer whose parameters are whole on their ranks.
///
/// # Errors
/// [`CheckpointError::Layer`] if the device fails.
pub fn save_layer<T: Scalar, D: MoeDevice<T>>(
    parts: &LayerParts<'_>,
    layer: &MoeLayer<D, T>,
    adam: &AdamW<D, T>,
) -> Result<Vec<Piece>, CheckpointError> {
    let weights = layer.state().map_err(CheckpointError::layer)?;
    let optimizer = adam.state(layer).map_err(CheckpointError::layer)?;
    let named =
        |set: &'static str, tensors: Vec<StateTensor>| tensors.into_iter().map(move |tensor| (set, tensor));
    let all = named(WEIGHTS, weights).chain(named(OPTIMIZER, optimizer));
    Ok(all.filter_map(|(set, tensor)| parts.piece(set, tensor)).collect())
}

/// The layer and its optimizer, whichever mesh they were saved on.
///
/// # Errors
/// [`CheckpointError`]: what is missing, or of another shape; [`CheckpointError::Layer`] if the device fails.
pub fn load_layer<T: Scalar, D: MoeDevice<T>>(
    parts: &LayerParts<'_>,
    checkpoint: &mut Checkpoint,
    device: &D,
    options: AdamWOptions,
) -> Loaded<D, T, AdamW<D, T>> {
    let layer = parts.load_weights(checkpoint, device)?;
    let mut state = vec![parts.load_steps(checkpoint)?];
    for set in sets::<T>() {
        for spec in parts.config.tensors().into_iter().flatten() {
            let (name, dtype) = (format!("{set}{}", spec.name), <T::Acc as Elem>::DTYPE);
            let bytes = parts.read(checkpoint, &format!("{OPTIMIZER}{name}"), dtype, &spec)?;
            state.push(StateTensor { name, shape: spec.shape().to_vec(), dtype, bytes });
        }
    }
    let adam = AdamW::from_state(&layer, options, state).map_err(CheckpointError::layer)?;
    Ok((layer, adam))
}

pub(super) const WEIGHTS: &str = "moe.";
pub(super) const OPTIMIZER: &str = "adam.";
pub(super) const STEPS: &str = "steps";
pub(super) const SELECTION_BIAS: &str = "selection_bias";
const SETS: [&str; 3] = ["m.", "v.", "master."];

/// The optimizer's sets of tensors; masters where weights are stored in a narrower type.
pub(super) fn sets<T: Scalar>() -> &'static [&'static str] {
    if T::DTYPE == <T::Acc as Elem>::DTYPE { &SETS[..2] } else { &SETS }
}

impl LayerParts<'_> {
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Whether this rank keeps what is equal on all.
    pub(super) fn is_first(&self) -> bool {
        self.mesh.place_in(Span::World, self.at) == 0
    }

    /// Shape of the whole tensor.
    pub(super) fn whole(&self, tensor: usize) -> Vec<usize> {
        self.config.whole().tensors()[tensor].map_or(Vec::new(), |spec| spec.shape().to_vec())
    }

    /// The rank's part of one of the layer's tensors; `None` if another rank keeps it.
    fn piece(&self, set: &str, mut tensor: StateTensor) -> Option<Piece> {
        let bare = SETS.iter().find_map(|set| tensor.name.strip_prefix(set)).unwrap_or(&tensor.name);
        let parameter = RULES.iter().position(|rule| rule.name == bare);
        tensor.name = self.name(&format!("{set}{}", tensor.name));
        match parameter {
            None => self.is_first().then(|| Piece::whole(tensor)),
            Some(at) => {
                let spec =
                    self.config.tensors()[at].filter(|_| RULES[at].counts(self.mesh, self.at, false))?;
                Some(Piece { tensor, whole: self.whole(at), runs: joined(spec.runs()) })
            }
        }
    }

    /// This rank's part of a parameter, or of something that goes with it.
    fn read(
        &self,
        checkpoint: &mut Checkpoint,
        name: &str,
        dtype: DType,
        spec: &TensorSpec,
    ) -> Result<Vec<u8>, CheckpointError> {
        let tensor = RULES.iter().position(|rule| rule.name == spec.name).unwrap_or(0);
        checkpoint.read(&self.name(name), dtype, &self.whole(tensor), spec.runs())
    }

    pub(super) fn load_steps(&self, checkpoint: &mut Checkpoint) -> Result<StateTensor, CheckpointError> {
        let name = self.name(&format!("{OPTIMIZER}{STEPS}"));
        let bytes = checkpoint.read(&name, DType::U32, &[2], std::iter::once(0..2))?;
        Ok(StateTensor { name: STEPS.to_owned(), shape: vec![2], dtype: DType::U32, bytes })
    }

    pub(super) fn load_weights<T: Scalar, D: MoeDevice<T>>(
        &self,
        checkpoint: &mut Checkpoint,
        device: &D,
    ) -> Result<MoeLayer<D, T>, CheckpointError> {
        let mut state = Vec::new();
        for spec in self.config.tensors().into_iter().flatten() {
            let bytes = self.read(checkpoint, &format!("{WEIGHTS}{}", spec.name), T::DTYPE, &spec)?;
            let (name, shape) = (spec.name.to_owned(), spec.shape().to_vec());
            state.push(StateTensor { name, shape, dtype: T::DTYPE, bytes });
        }
        if self.config.selection_bias {
            let (dtype, experts) = (<T::Acc as Elem>::DTYPE, self.config.experts);
            let name = self.name(&format!("{WEIGHTS}{SELECTION_BIAS}"));
            let bytes = checkpoint.read(&name, dtype, &[experts], std::iter::once(0..experts))?;
            state.push(StateTensor { name: SELECTION_BIAS.to_owned(), shape: vec![experts], dtype, bytes });
        }
        MoeLayer::from_state(device, self.config, state).map_err(CheckpointError::layer)
    }
}
