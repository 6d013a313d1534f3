//! The cache of compiled code: `<data>/compiled/`, written by hosts on this data directory alone.
//!
//! Whoever can change a file here could run machine code in the host, so each one is sealed: HMAC-SHA256 over its name and its
//! bytes, with a key that stands beside them, 0600 like everything here. A file whose seal is wrong is thrown away and compiled again.
//! That is against a copy, a torn write or a backup put back by somebody who may not read the key, not against this user, who
//! could replace the program itself.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cofferdam_sandbox::Artifact;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// All files together, in bytes: some thirty of the largest, a thousand ordinary ones.
const CACHE_BYTES_MAX: u64 = 1 << 30;
/// A seal, in bytes: SHA-256's.
const SEAL_BYTES: usize = 32;
const ENDING: &str = "code";

/// The directory and its key.
pub(crate) struct Cache {
    dir: PathBuf,
    key: [u8; 32],
    bytes_max: u64,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Cache {
    /// Opens the cache of a data directory, or makes one.
    ///
    /// # Errors
    /// The directory cannot be made private or written to.
    pub(crate) fn open(data_dir: &Path) -> Result<Cache> {
        let dir = data_dir.join("compiled");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)))
            .with_context(|| format!("cannot make the private directory {}", dir.display()))?;
        let key = key(&dir)?;
        Ok(Cache { dir, key, bytes_max: CACHE_BYTES_MAX })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.{ENDING}"))
    }

    fn mac(&self, name: &str, code: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("any length of key is fine for HMAC");
        mac.update(&(name.len() as u64).to_le_bytes());
        mac.update(name.as_bytes());
        mac.update(code);
        mac
    }

    /// What was kept under this name, if its seal holds.
    pub(crate) fn get(&self, name: &str) -> Option<Artifact> {
        let path = self.path(name);
        let bytes = fs::read(&path).ok()?;
        let sealed = bytes.split_first_chunk::<SEAL_BYTES>();
        let code = sealed.filter(|(seal, code)| self.mac(name, code).verify_slice(*seal).is_ok()).map(|(_, code)| code);
        if code.is_none() {
            tracing::warn!(path = %path.display(), "this compiled code has a wrong seal: thrown away, and compiled again");
            let _ = fs::remove_file(&path);
        }
        code.map(|code| Artifact::from_own_compiler(code.to_vec()))
    }

    /// Keeps code under a name, and lets the oldest go where there is too much. A full disk costs a warning and no plugin.
    pub(crate) fn put(&self, name: &str, artifact: &Artifact) {
        let kept = (|| -> Result<()> {
            // Named after nobody: two hosts may write the same at once, and each rename is whole.
            let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.dir)?;
            file.write_all(&self.mac(name, artifact.bytes()).finalize().into_bytes())?;
            file.write_all(artifact.bytes())?;
            file.persist(self.path(name))?;
            self.shrink()
        })();
        if let Err(error) = kept {
            tracing::warn!(dir = %self.dir.display(), "cannot keep compiled code, so it is compiled again next time: {error:#}");
        }
    }

    fn shrink(&self) -> Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == ENDING) {
                let meta = entry.metadata()?;
                files.push(((meta.mtime(), meta.mtime_nsec()), meta.len(), path));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        // The newest stays, whatever its size: somebody is about to use it.
        files.pop();
        for (_, bytes, path) in files {
            if total <= self.bytes_max {
                break;
            }
            fs::remove_file(path)?;
            total -= bytes;
        }
        Ok(())
    }
}

/// The key beside the code. One that others may have read is replaced, which voids what it sealed.
fn key(dir: &Path) -> Result<[u8; 32]> {
    let path = dir.join("key");
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    if let Ok(mut file) = fs::OpenOptions::new().read(true).custom_flags(no_links).open(&path) {
        let mut key = [0; 32];
        let private = file.metadata().is_ok_and(|meta| meta.mode() & 0o077 == 0);
        if private && file.read_exact(&mut key).is_ok() {
            return Ok(key);
        }
        tracing::warn!(path = %path.display(), "this key is not whole or was open to others: a new one is made, and everything is compiled again");
    }
    let key: [u8; 32] = rand::random();
    // A temporary file is 0600 from its first moment.
    let mut file = tempfile::Builder::new().prefix(".key-").tempfile_in(dir)?;
    file.write_all(&key)?;
    file.as_file().sync_all()?;
    file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(byte: u8) -> Artifact {
        Artifact::from_own_compiler(vec![byte; 1_000])
    }

    #[test]
    fn what_was_kept_comes_back_and_what_was_changed_does_not() {
        let data = tempfile::tempdir().unwrap();
        let cache = Cache::open(data.path()).unwrap();
        cache.put("a", &artifact(1));
        assert_eq!(cache.get("a"), Some(artifact(1)));
        // One bit, a foreign name and a cut.
        let path = cache.path("a");
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[500] ^= 1;
        for (name, bytes) in [("a", &bad[..]), ("b", &good[..]), ("a", &good[..500]), ("a", &good[..10])] {
            fs::write(cache.path(name), bytes).unwrap();
            assert_eq!(cache.get(name), None);
            assert!(!cache.path(name).exists(), "it is thrown away");
        }
        // Another key, because others could read the first.
        cache.put("a", &artifact(1));
        fs::set_permissions(data.path().join("compiled/key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(Cache::open(data.path()).unwrap().get("a"), None);
    }

    #[test]
    fn only_the_user_can_read_it_and_the_oldest_goes_first() {
        let data = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(data.path()).unwrap();
        cache.bytes_max = 2_500;
        for (name, byte) in [("a", 1), ("b", 2), ("c", 3)] {
            cache.put(name, &artifact(byte));
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!((cache.get("a"), cache.get("c")), (None, Some(artifact(3))));
        assert_eq!(fs::metadata(&cache.dir).unwrap().mode() & 0o777, 0o700);
        for name in ["key", "c.code"] {
            assert_eq!(fs::metadata(cache.dir.join(name)).unwrap().mode() & 0o777, 0o600, "{name}");
        }
    }
}
