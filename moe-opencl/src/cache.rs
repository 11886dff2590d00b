//! The cache: machine code of programs, kept on disk from one start to the next.
//!
//! A file's name is a hash of all that the code depends on: source, options, platform, device and driver. The file repeats these
//! in full, so that neither an equal hash nor half a file can pass for a program. What cannot be read is compiled again, what
//! cannot be written is not kept.

use crate::error::OpenClError;
use crate::platform::{Listed, platform_version};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device's programs on disk.
pub(crate) struct Cache {
    /// `None`: there is no place to keep them
    folder: Option<PathBuf>,
    device: String,
}

impl Cache {
    /// In `folder`, or else where the user's caches are.
    pub(crate) fn new(listed: &Listed, folder: Option<PathBuf>) -> Result<Self, OpenClError> {
        let (facts, platform) = (&listed.facts, platform_version(listed.ids)?);
        let device = [&listed.platform_name, &platform, &facts.name, &facts.version, &facts.driver];
        let device = device.map(String::as_str).join("\n");
        Ok(Self { folder: folder.or_else(users_folder), device })
    }

    /// All that a program depends on.
    pub(crate) fn key(&self, source: &str, options: &str) -> String {
        format!("{}\n{options}\n{source}", self.device)
    }

    fn file(&self, key: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{:016x}.bin", hash(key.as_bytes()))))
    }

    pub(crate) fn load(&self, key: &str) -> Option<Vec<u8>> {
        let content = fs::read(self.file(key)?).ok()?;
        let (lengths, rest) = content.split_at_checked(16)?;
        let (key_len, binary_len) = lengths.split_at(8);
        let length = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?) as usize);
        let (stored, binary) = rest.split_at_checked(length(key_len)?)?;
        (stored == key.as_bytes() && binary.len() == length(binary_len)?).then(|| binary.to_vec())
    }

    pub(crate) fn store(&self, key: &str, binary: &[u8]) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let Some(file) = self.file(key) else { return };
        let lengths = [key.len(), binary.len()].map(|length| (length as u64).to_le_bytes());
        let content = [lengths.as_flattened(), key.as_bytes(), binary].concat();
        // Moved to its name when it is whole: another process may be reading.
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let part = file.with_extension(format!("{}.{nth}.part", std::process::id()));
        let folder = file.parent().map_or(Ok(()), fs::create_dir_all);
        let written = folder.and_then(|()| fs::write(&part, content)).and_then(|()| fs::rename(&part, &file));
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
    }
}

fn users_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(caches.join("moe").join("opencl"))
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(folder: Option<PathBuf>) -> Cache {
        Cache { folder, device: "a device".into() }
    }

    fn fresh(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("moe-opencl-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn what_was_stored_is_loaded_by_the_same_key_only() {
        let folder = fresh("stored");
        let cache = cache(Some(folder.clone()));
        let key = cache.key("source", "-O");
        assert_eq!(cache.load(&key), None);
        cache.store(&key, b"code");
        assert_eq!(cache.load(&key).as_deref(), Some(&b"code"[..]));
        assert_eq!(cache.load(&cache.key("source", "-O2")), None);
        assert_eq!(cache.load(&cache.key("other source", "-O")), None);
        fs::remove_dir_all(folder).expect("it was made");
    }

    #[test]
    fn a_file_that_is_cut_short_or_of_another_key_is_not_loaded() {
        let folder = fresh("short");
        let cache = cache(Some(folder.clone()));
        let (key, other) = (cache.key("source", ""), cache.key("other", ""));
        cache.store(&key, b"code");
        let file = cache.file(&key).expect("there is a folder");
        fs::copy(&file, cache.file(&other).expect("there is a folder")).expect("a copy");
        assert_eq!(cache.load(&other), None);
        let whole = fs::read(&file).expect("it was stored");
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).expect("it can be written");
            assert_eq!(cache.load(&key), None, "{length} bytes");
        }
        fs::remove_dir_all(folder).expect("it was made");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let file = fresh("file");
        fs::write(&file, b"no folder").expect("a temporary file");
        for folder in [Some(file.join("below")), None] {
            let cache = cache(folder);
            let key = cache.key("source", "");
            cache.store(&key, b"code");
            assert_eq!(cache.load(&key), None);
        }
        fs::remove_file(file).expect("it was made");
    }
}
