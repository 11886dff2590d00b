//! Writing: each rank its file, then rank 0 the manifest, then one rename.

use super::manifest::{self, Digest, Manifest};
use super::runs::{lines, total};
use super::{CheckpointError, DTYPES, Piece, elements};
use moe_core::{Collective, Host, View, ViewMut};
use safetensors::tensor::TensorView;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the header entry that says where parts stand.
pub(super) const PIECES: &str = "pieces";

/// Writes a checkpoint to `folder`, which must not exist yet or be a checkpoint, which is then replaced. Every rank of `world` calls it with what it
/// keeps; `metadata` is rank 0's.
///
/// # Errors
/// [`CheckpointError::Io`]; [`CheckpointError::Piece`] if a piece's parts contradict each other; [`CheckpointError::Collective`] if another rank failed: a rank that
/// cannot write closes the group, so that no other waits for it.
pub fn write(
    folder: &Path,
    world: &mut impl Collective<Host>,
    pieces: &[Piece],
    metadata: &BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    let result = write_all(folder, world, pieces, metadata);
    if result.is_err() {
        world.abort();
    }
    result
}

fn write_all(
    folder: &Path,
    world: &mut impl Collective<Host>,
    pieces: &[Piece],
    metadata: &BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    let unfinished = beside(folder, ".unfinished");
    let (rank, size) = (world.rank(), world.size());
    if rank == 0 {
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(CheckpointError::io(&unfinished))?;
        }
        fs::create_dir_all(&unfinished).map_err(CheckpointError::io(&unfinished))?;
    }
    world.barrier(&())?;
    let own = write_file(&manifest::file(&unfinished, rank), pieces)?;
    let words = [own.bytes as u32, (own.bytes >> 32) as u32, own.crc32];
    let mut all = vec![0; 3 * size];
    world.all_gather(&(), View::of(&words), ViewMut::of(&mut all), &vec![3; size])?;
    if rank == 0 {
        let digest = |words: &[u32]| Digest {
            bytes: u64::from(words[0]) | u64::from(words[1]) << 32,
            crc32: words[2],
        };
        let manifest = Manifest { files: all.chunks(3).map(digest).collect(), metadata: metadata.clone() };
        put(&manifest::path(&unfinished), manifest.to_json().as_bytes())?;
        replace(&unfinished, folder)?;
    }
    world.barrier(&())?;
    Ok(())
}

/// The folder's path with something behind its name.
fn beside(folder: &Path, end: &str) -> PathBuf {
    let mut path = folder.as_os_str().to_owned();
    path.push(end);
    path.into()
}

/// The old checkpoint steps aside, so that at any moment one of the two is whole.
fn replace(unfinished: &Path, folder: &Path) -> Result<(), CheckpointError> {
    let old = beside(folder, ".old");
    if folder.exists() {
        fs::rename(folder, &old).map_err(CheckpointError::io(folder))?;
    }
    fs::rename(unfinished, folder).map_err(CheckpointError::io(folder))?;
    if old.exists() {
        fs::remove_dir_all(&old).map_err(CheckpointError::io(&old))?;
    }
    Ok(())
}

fn write_file(path: &Path, pieces: &[Piece]) -> Result<Digest, CheckpointError> {
    let mut described = serde_json::Map::new();
    let mut views = Vec::new();
    for piece in pieces {
        let tensor = &piece.tensor;
        let wrong = |problem| CheckpointError::Piece { name: tensor.name.clone(), problem };
        let (_, dtype) = DTYPES
            .iter()
            .find(|(core, _)| *core == tensor.dtype)
            .ok_or_else(|| wrong("has a type that the file format has no name for"))?;
        if total(&piece.runs) != elements(&tensor.shape)
            || piece.runs.iter().any(|run| run.end > elements(&piece.whole))
        {
            return Err(wrong("its runs are not those of its shape in the whole"));
        }
        let view = TensorView::new(*dtype, tensor.shape.clone(), &tensor.bytes)
            .map_err(|_| wrong("its bytes are not those of its shape"))?;
        let place = json!({ "whole": piece.whole, "runs": lines(&piece.runs) });
        if described.insert(tensor.name.clone(), place).is_some() {
            return Err(wrong("is there twice"));
        }
        views.push((&tensor.name, view));
    }
    let header = HashMap::from([(PIECES.to_owned(), serde_json::Value::Object(described).to_string())]);
    let bytes =
        safetensors::serialize(views, Some(header)).map_err(|error| CheckpointError::damaged(path, error))?;
    put(path, &bytes)?;
    Ok(Digest { bytes: bytes.len() as u64, crc32: crc32fast::hash(&bytes) })
}

/// Writes a file, and waits until it is on the disk.
fn put(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(CheckpointError::io(PathBuf::from(path)))
}
