//! Reading: any part of any tensor, from whichever files hold it.

use super::manifest::{self, Digest, Manifest};
use super::runs::{Line, expand, total};
use super::write::PIECES;
use super::{CheckpointError, DTYPES, elements};
use moe_core::{DType, StateTensor};
use safetensors::tensor::Metadata;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A checkpoint on the disk. Opening it reads headers alone, and finds out whether every tensor is there once; a file's contents
/// are checked when something is first read from it.
#[derive(Debug)]
pub struct Checkpoint {
    metadata: BTreeMap<String, String>,
    files: Vec<StoredFile>,
    tensors: BTreeMap<String, Tensor>,
    unread: BTreeSet<String>,
}

#[derive(Debug)]
struct StoredFile {
    path: PathBuf,
    digest: Digest,
    checked: bool,
}

#[derive(Debug)]
struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    /// sorted by place in the tensor
    stored: Vec<Stored>,
}

/// Elements that stand together in the tensor and in a file.
#[derive(Clone, Debug)]
struct Stored {
    run: Range<usize>,
    file: usize,
    /// first byte in the file
    at: u64,
}

impl Checkpoint {
    /// Opens the checkpoint in `folder`.
    ///
    /// # Errors
    /// [`CheckpointError`]: a file that is missing, torn or too many; a tensor of which something is missing or there twice.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let manifest = Manifest::read(folder)?;
        let mut checkpoint = Self {
            metadata: manifest.metadata,
            files: Vec::new(),
            tensors: BTreeMap::new(),
            unread: BTreeSet::new(),
        };
        for (rank, digest) in manifest.files.into_iter().enumerate() {
            checkpoint.add_file(manifest::file(folder, rank), digest)?;
        }
        checkpoint.no_other_file(folder)?;
        for (name, tensor) in &mut checkpoint.tensors {
            tensor.stored.sort_by_key(|stored| stored.run.start);
            tensor.check(name)?;
        }
        checkpoint.unread = checkpoint.tensors.keys().cloned().collect();
        Ok(checkpoint)
    }

    /// What the writer wanted to remember.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Ranks that wrote it.
    pub fn ranks(&self) -> usize {
        self.files.len()
    }

    /// Names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A whole tensor.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_whole(&mut self, name: &str) -> Result<StateTensor, CheckpointError> {
        let tensor = self.tensor(name)?;
        let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
        let bytes = self.read(name, dtype, &shape, std::iter::once(0..elements(&shape)))?;
        Ok(StateTensor { name: name.to_owned(), shape, dtype, bytes })
    }

    /// The elements of some runs of a tensor, which must have this type and shape.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`]; [`CheckpointError::Shape`]; [`CheckpointError::Damaged`] if a file is not what was written; [`CheckpointError::Io`].
    pub fn read(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        runs: impl IntoIterator<Item = Range<usize>>,
    ) -> Result<Vec<u8>, CheckpointError> {
        let tensor = self.tensor(name)?;
        if tensor.dtype != dtype || tensor.shape != shape {
            return Err(CheckpointError::Shape {
                name: name.to_owned(),
                want: shape.to_vec(),
                want_dtype: dtype,
                got: tensor.shape.clone(),
                got_dtype: tensor.dtype,
            });
        }
        let (size, len) = (dtype.size(), elements(shape));
        let (mut bytes, mut reads) = (Vec::new(), Vec::new());
        for run in runs {
            if run.end > len {
                let problem = "these runs are not inside it";
                return Err(CheckpointError::Piece { name: name.to_owned(), problem });
            }
            let mut from = run.start;
            while from < run.end {
                let stored = tensor.at(from);
                let to = stored.run.end.min(run.end);
                let at = stored.at + ((from - stored.run.start) * size) as u64;
                reads.push((stored.file, at, (to - from) * size));
                from = to;
            }
        }
        let mut open: Option<(usize, File)> = None;
        for (file, at, len) in reads {
            if open.as_ref().is_none_or(|(opened, _)| *opened != file) {
                open = Some((file, self.checked_file(file)?));
            }
            let Some((_, handle)) = &mut open else { continue };
            let start = bytes.len();
            bytes.resize(start + len, 0);
            handle
                .seek(SeekFrom::Start(at))
                .and_then(|_| handle.read_exact(&mut bytes[start..]))
                .map_err(CheckpointError::io(&self.files[file].path))?;
        }
        self.unread.remove(name);
        Ok(bytes)
    }

    /// Every tensor must have been read.
    ///
    /// # Errors
    /// [`CheckpointError::SurplusTensor`] with the first that was not.
    pub fn expect_all_read(&self) -> Result<(), CheckpointError> {
        self.unread.first().map_or(Ok(()), |name| Err(CheckpointError::SurplusTensor(name.clone())))
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, CheckpointError> {
        self.tensors.get(name).ok_or_else(|| CheckpointError::MissingTensor(name.to_owned()))
    }

    /// A file whose contents are what was written.
    fn checked_file(&mut self, file: usize) -> Result<File, CheckpointError> {
        let StoredFile { path, digest, checked } = &mut self.files[file];
        let mut handle = File::open(&*path).map_err(CheckpointError::io(&*path))?;
        if !*checked {
            let (mut hasher, mut buffer) = (crc32fast::Hasher::new(), vec![0; 1 << 20]);
            loop {
                match handle.read(&mut buffer).map_err(CheckpointError::io(&*path))? {
                    0 => break,
                    read => hasher.update(&buffer[..read]),
                }
            }
            if hasher.finalize() != digest.crc32 {
                return Err(CheckpointError::damaged(&*path, "its checksum is not the manifest's"));
            }
            *checked = true;
        }
        Ok(handle)
    }

    /// Takes in what a file's header says.
    fn add_file(&mut self, path: PathBuf, digest: Digest) -> Result<(), CheckpointError> {
        let file = self.files.len();
        let (data, header) = match header(&path, digest) {
            Err(CheckpointError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(CheckpointError::MissingFile(path));
            }
            header => header?,
        };
        let damaged = |problem: String| CheckpointError::damaged(&path, problem);
        let described = header.metadata().as_ref().and_then(|metadata| metadata.get(PIECES));
        let described: Value = described
            .and_then(|text| serde_json::from_str(text).ok())
            .ok_or_else(|| damaged(format!("its header has no entry `{PIECES}`")))?;
        for (name, info) in header.tensors() {
            let dtype = DTYPES.iter().find(|(_, theirs)| *theirs == info.dtype).map(|(core, _)| *core);
            let dtype = dtype.ok_or_else(|| damaged(format!("{name} has the type {:?}", info.dtype)))?;
            let place = place(&described[&name]).filter(|(_, runs)| total(runs) == elements(&info.shape));
            let (shape, runs) = place.ok_or_else(|| damaged(format!("nothing says where {name} stands")))?;
            let tensor = self.tensors.entry(name.clone()).or_insert_with(|| Tensor {
                dtype,
                shape: shape.clone(),
                stored: Vec::new(),
            });
            if (tensor.dtype, &tensor.shape) != (dtype, &shape) {
                return Err(damaged(format!("{name} is {dtype} {shape:?} here, but not in other files")));
            }
            let (start, end) = info.data_offsets;
            let inside = (data as u64).checked_add(end as u64).is_some_and(|end| end <= digest.bytes);
            if !inside || end.checked_sub(start) != Some(total(&runs) * dtype.size()) {
                return Err(damaged(format!("{name} has not the bytes of its shape")));
            }
            let mut at = (data + start) as u64;
            for run in runs {
                let len = (run.len() * dtype.size()) as u64;
                tensor.stored.push(Stored { run, file, at });
                at += len;
            }
        }
        self.files.push(StoredFile { path, digest, checked: false });
        Ok(())
    }

    fn no_other_file(&self, folder: &Path) -> Result<(), CheckpointError> {
        for entry in fs::read_dir(folder).map_err(CheckpointError::io(folder))? {
            let path = entry.map_err(CheckpointError::io(folder))?.path();
            let of_a_rank = path.extension().is_some_and(|extension| extension == "safetensors");
            if of_a_rank && self.files.iter().all(|file| file.path != path) {
                return Err(CheckpointError::SurplusFile(path));
            }
        }
        Ok(())
    }
}

impl Tensor {
    /// Every element must be there once.
    fn check(&self, name: &str) -> Result<(), CheckpointError> {
        let (len, rows) = (elements(&self.shape), self.shape.first().copied().unwrap_or(1));
        let row = |at: usize| at / (len / rows.max(1)).max(1);
        let name = || name.to_owned();
        let mut end = 0;
        for Stored { run, .. } in &self.stored {
            if run.start > end {
                return Err(CheckpointError::MissingRow { name: name(), row: row(end), rows });
            }
            if run.start < end {
                return Err(CheckpointError::SurplusRow { name: name(), row: row(run.start), rows });
            }
            end = run.end;
        }
        if end < len {
            return Err(CheckpointError::MissingRow { name: name(), row: row(end), rows });
        }
        Ok(())
    }

    /// What holds the element; there is something, since the tensor is whole.
    fn at(&self, element: usize) -> &Stored {
        &self.stored[self.stored.partition_point(|stored| stored.run.end <= element)]
    }
}

/// Where the data begin in a file that has the length it should have, and what its header says.
fn header(path: &Path, digest: Digest) -> Result<(usize, Metadata), CheckpointError> {
    let damaged = |problem: String| CheckpointError::damaged(path, problem);
    let mut file = File::open(path).map_err(CheckpointError::io(path))?;
    let bytes = file.metadata().map_err(CheckpointError::io(path))?.len();
    if bytes != digest.bytes {
        return Err(damaged(format!("it has {bytes} bytes, but the manifest says {}", digest.bytes)));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(CheckpointError::io(path))?;
    let length = u64::from_le_bytes(length);
    if length > bytes - 8 {
        return Err(damaged("its header is longer than the file".to_owned()));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(CheckpointError::io(path))?;
    let header = serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;
    Ok((8 + length as usize, header))
}

/// Shape of the whole tensor, and where a part stands in it.
fn place(described: &Value) -> Option<(Vec<usize>, Vec<Range<usize>>)> {
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
    let numbers = |value: &Value| value.as_array()?.iter().map(number).collect::<Option<Vec<_>>>();
    let shape = numbers(&described["whole"])?;
    let len = shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim))?;
    let line = |value: &Value| Line::try_from(numbers(value)?).ok();
    let lines = described["runs"].as_array()?.iter().map(line).collect::<Option<Vec<_>>>()?;
    Some((shape, expand(&lines, len)?))
}
