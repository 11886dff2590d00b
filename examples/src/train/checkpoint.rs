//! Checkpoints: one safetensors file that holds a whole run.
//!
//! Tensors: weights under their names, the optimizer's moments, the expert biases, and the run's history
//! (`history.loss`, `history.load`). Metadata: the settings as a command line, the steps done and planned, and
//! the fingerprint of the text. The text's order is a function of seed and step, so nothing else is needed to
//! go on exactly.

use super::options::Settings;
use crate::model::tensors::TensorMap;
use anyhow::{Context, Result, anyhow, bail, ensure};
use moe_core::{DType, StateTensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::HashMap;
use std::path::Path;

/// What the metadata entry `format` of our files says.
const FORMAT: &str = "moe-train-1";

/// A run, as far as it went.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// what the run is
    pub settings: Settings,
    /// steps of the whole run
    pub steps: u64,
    /// steps done
    pub step: u64,
    /// fingerprint of the text
    pub text: u64,
    /// model, optimizer and history
    pub tensors: TensorMap,
}

impl Checkpoint {
    /// Writes the file beside its place, then moves it there: a run that is stopped in between leaves the old
    /// file whole.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let metadata = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("settings".to_owned(), self.settings.to_line()),
            ("steps".to_owned(), self.steps.to_string()),
            ("step".to_owned(), self.step.to_string()),
            ("text".to_owned(), self.text.to_string()),
        ]);
        let mut views = Vec::new();
        for tensor in self.tensors.iter() {
            let dtype = DTYPES.iter().find(|(core, _)| *core == tensor.dtype);
            let (_, dtype) =
                dtype.with_context(|| format!("{}: no place for {}", tensor.name, tensor.dtype))?;
            views.push((&tensor.name, TensorView::new(*dtype, tensor.shape.clone(), &tensor.bytes)?));
        }
        let unfinished = path.with_extension("unfinished");
        safetensors::serialize_to_file(views, Some(metadata), &unfinished)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(std::fs::rename(&unfinished, path)?))
            .with_context(|| format!("cannot write the checkpoint {}", path.display()))
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or is no checkpoint of this program.
    pub fn read(path: &Path) -> Result<Self> {
        std::fs::read(path)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| Self::parse(&bytes))
            .with_context(|| format!("cannot resume from {}", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |name: &str| {
            metadata
                .get(name)
                .ok_or_else(|| anyhow!("it is no checkpoint of `train`: it has no entry `{name}`"))
        };
        let number = |name: &str| -> Result<u64> {
            entry(name)?.parse().with_context(|| format!("its entry `{name}` is no number"))
        };
        let format = entry("format")?;
        ensure!(format == FORMAT, "its format is `{format}`, but `{FORMAT}` is wanted");
        let mut tensors = TensorMap::default();
        for (name, view) in SafeTensors::deserialize(bytes)?.iter() {
            let Some((dtype, _)) = DTYPES.iter().find(|(_, theirs)| *theirs == view.dtype()) else {
                bail!("its tensor {name} has the unknown type {:?}", view.dtype());
            };
            let (shape, bytes) = (view.shape().to_vec(), view.data().to_vec());
            tensors.insert(StateTensor { name: name.to_owned(), dtype: *dtype, shape, bytes });
        }
        Ok(Self {
            settings: Settings::from_line(entry("settings")?)?,
            steps: number("steps")?,
            step: number("step")?,
            text: number("text")?,
            tensors,
        })
    }
}

/// The element types that a state can have, and the file format's names for them.
const DTYPES: [(DType, Dtype); 4] = [
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
    (DType::Bf16, Dtype::BF16),
    (DType::U32, Dtype::U32),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let mut tensors = TensorMap::default();
        tensors.insert_values("a", &[2, 2], &[1.0_f32, 2.0, 3.0, 4.0]);
        tensors.insert_values("b", &[3], &[1_u32, 2, 3]);
        let settings = Settings::from_line("--width 32 --seed 9").unwrap();
        Checkpoint { settings, steps: 100, step: 40, text: u64::MAX, tensors }
    }

    fn file(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("moe-{name}-{}.safetensors", std::process::id()))
    }

    #[test]
    fn a_checkpoint_comes_back_as_it_was() {
        let path = file("checkpoint");
        checkpoint().write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), checkpoint());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn every_truncation_is_an_error() {
        let path = file("truncated");
        checkpoint().write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        for length in 0..bytes.len() {
            assert!(Checkpoint::parse(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let path = file("other");
        std::fs::write(&path, b"no tensors here").unwrap();
        let error = Checkpoint::read(&path).unwrap_err().to_string();
        assert!(error.contains("cannot resume from") && error.contains("moe-other"), "{error}");
        std::fs::remove_file(path).unwrap();
    }
}
