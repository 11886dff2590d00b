//! The manifest: which files make up a checkpoint, and what its writer wants to remember.

use super::CheckpointError;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the manifest says of itself.
const FORMAT: &str = "moe-checkpoint-1";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    /// by rank
    pub(super) files: Vec<Digest>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// By which a torn file is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) bytes: u64,
    pub(super) crc32: u32,
}

/// A rank's file.
pub(super) fn file(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("rank-{rank:05}.safetensors"))
}

pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("manifest.json")
}

impl Manifest {
    pub(super) fn to_json(&self) -> String {
        let files: Vec<Value> =
            self.files.iter().map(|file| json!({ "bytes": file.bytes, "crc32": file.crc32 })).collect();
        let all = json!({ "format": FORMAT, "files": files, "metadata": self.metadata });
        format!("{all:#}\n")
    }

    pub(super) fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let path = path(folder);
        let text = std::fs::read_to_string(&path).map_err(CheckpointError::io(&path))?;
        Self::parse(&text).map_err(|problem| CheckpointError::damaged(path, problem))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match value["format"].as_str() {
            Some(FORMAT) => {}
            Some(other) => return Err(format!("its format is {other}, but {FORMAT} is wanted")),
            None => return Err("it has no entry `format`".to_owned()),
        }
        let file = |value: &Value| {
            Some(Digest { bytes: value["bytes"].as_u64()?, crc32: value["crc32"].as_u64()?.try_into().ok()? })
        };
        let files =
            value["files"].as_array().and_then(|files| files.iter().map(file).collect::<Option<Vec<_>>>());
        let entry = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
        let metadata = value["metadata"].as_object().and_then(|all| all.iter().map(entry).collect());
        match (files, metadata) {
            (Some(files), Some(metadata)) => Ok(Self { files, metadata }),
            _ => Err("its entries `files` and `metadata` are not those of a manifest".to_owned()),
        }
    }
}
