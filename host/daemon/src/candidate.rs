//! A plugin as it was found: its files, read once and whole, and hashed as read. Nothing here decides whether it may run.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cofferdam_sandbox::{Digest, embedded_manifest};
use rustix::fs::OFlags;

use crate::manifest::{Manifest, ManifestError};
use crate::version;

/// The largest wasm file that is looked at: the largest interpreters bundled into a guest have 20 MB.
pub(crate) const WASM_BYTES_MAX: u64 = 64 << 20;
/// The largest manifest, signature or file of cases that is looked at; a manifest inside the wasm too.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// A plugin's files, by where they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    /// The name that it has when its manifest gives none.
    pub(crate) name: String,
    pub(crate) wasm: PathBuf,
    pub(crate) manifest: Option<PathBuf>,
    /// `NAME.wasm.minisig`.
    pub(crate) signature: Option<PathBuf>,
    /// `NAME.test.toml`.
    pub(crate) cases: Option<PathBuf>,
}

impl Files {
    /// Those that belong to a wasm file: its manifest, its signature and its cases beside it.
    pub(crate) fn beside(name: &str, wasm: PathBuf) -> Files {
        let there = |ending: &str| Some(wasm.with_extension(ending)).filter(|path| path.is_file());
        let (manifest, cases) = (there("toml"), there("test.toml"));
        Files { name: name.to_owned(), manifest, signature: there("wasm.minisig"), cases, wasm }
    }

    /// All of them, the wasm first.
    pub(crate) fn all(&self) -> [Option<&Path>; 4] {
        [Some(&self.wasm), self.manifest.as_deref(), self.signature.as_deref(), self.cases.as_deref()]
    }

    /// Reads them, each once and whole.
    ///
    /// # Errors
    /// Which file cannot be read, or is too large.
    pub(crate) fn read(&self) -> Result<Candidate, String> {
        let text = |path: &Option<PathBuf>| match path {
            None => Ok(None),
            Some(path) => String::from_utf8(bounded(path, TEXT_BYTES_MAX)?)
                .map(Some)
                .map_err(|_| format!("{} is not UTF-8", path.display())),
        };
        let wasm = bounded(&self.wasm, WASM_BYTES_MAX)?;
        // A manifest beside the file is the operator's own word, and replaces the one inside.
        let (manifest, embedded) = match text(&self.manifest)? {
            Some(manifest) => (manifest, false),
            None => {
                let inside = embedded_manifest(&wasm);
                let bytes = inside.as_ref().map_or(0, String::len);
                if bytes as u64 > TEXT_BYTES_MAX {
                    let wasm = self.wasm.display();
                    return Err(format!("the manifest inside {wasm} has {bytes} bytes, more than {TEXT_BYTES_MAX}"));
                }
                (inside.clone().unwrap_or_default(), inside.is_some())
            }
        };
        Ok(Candidate {
            file_name: self.name.clone(),
            wasm: wasm.into(),
            manifest,
            embedded,
            from_files: true,
            signature: text(&self.signature)?,
            cases: text(&self.cases)?,
            ..Candidate::default()
        })
    }
}

/// A plugin as it was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Candidate {
    /// The name of its file or folder.
    pub(crate) file_name: String,
    pub(crate) wasm: Arc<[u8]>,
    /// The text of its manifest; empty when it has none.
    pub(crate) manifest: String,
    /// Whether the manifest came in the wasm and not beside it.
    pub(crate) embedded: bool,
    /// Whether these are files as somebody wrote them, and not what a host has kept of a version.
    pub(crate) from_files: bool,
    pub(crate) signature: Option<String>,
    pub(crate) cases: Option<String>,
    /// What its manifest says, once [`parsed`](Self::parsed) was asked.
    pub(crate) parsed: OnceLock<Arc<Parsed>>,
    /// Of the wasm, once [`wasm_digest`](Self::wasm_digest) was asked.
    pub(crate) wasm_digest: OnceLock<Digest>,
}

/// What to do about a file without a manifest.
pub(crate) fn how_to_write_one(name: &str) -> String {
    format!(
        "write {name}.toml beside {name}.wasm, at least\n    subscribe = [\"stream:attacks\"]\n    emit = [\"stream:alerts\"]"
    )
}

/// A manifest, and the sha256 of the wasm when it gives one.
pub(crate) type Parsed = Result<(Manifest, Option<String>), ManifestError>;

impl Candidate {
    /// What its manifest says: the manifest, and the sha256 of the wasm when it gives one. Slow at the first call.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parsed(&self) -> Result<&(Manifest, Option<String>), &ManifestError> {
        let read = if self.from_files { Manifest::written } else { Manifest::parse };
        let parse = || Arc::new(read(&self.manifest, &self.file_name));
        self.parsed.get_or_init(parse).as_ref().as_ref()
    }

    /// The digest of its wasm. Slow at the first call.
    pub(crate) fn wasm_digest(&self) -> Digest {
        *self.wasm_digest.get_or_init(|| Digest::of(&self.wasm))
    }

    /// The plugin's name, as far as its manifest can be read.
    pub(crate) fn plugin(&self) -> String {
        self.parsed().map_or_else(|_| self.file_name.clone(), |(manifest, _)| manifest.name.clone())
    }

    /// The digest of the version that it would be; empty when its manifest cannot be read.
    pub(crate) fn digest(&self) -> String {
        match self.parsed() {
            Ok((manifest, _)) => version::digest_of(&self.wasm_digest(), manifest).to_string(),
            Err(_) => String::new(),
        }
    }

    /// What tells these files from any others.
    pub(crate) fn bytes_digest(&self) -> Digest {
        let (signature, cases) = (self.signature.as_deref(), self.cases.as_deref());
        Digest::of(format!("{}\n{:?}", self.wasm_digest(), (&self.manifest, signature, cases)).as_bytes())
    }

    /// Whether the manifest proves the wasm whole: by its sha256, or by being its last section.
    pub(crate) fn is_sealed(&self) -> bool {
        if self.embedded {
            return true;
        }
        let Ok((_, Some(sha256))) = self.parsed() else { return false };
        sha256.eq_ignore_ascii_case(&self.wasm_digest().to_string())
    }
}

fn bounded(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    use std::os::unix::fs::OpenOptionsExt;
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    // A pipe would be waited for until somebody opens its other end.
    let no_waiting = OFlags::NONBLOCK.bits().cast_signed();
    let file = fs::OpenOptions::new().read(true).custom_flags(no_waiting).open(path).map_err(cannot)?;
    let meta = file.metadata().map_err(cannot)?;
    if meta.is_dir() {
        return Err(format!("{} is a folder; name the file in it", path.display()));
    }
    if !meta.is_file() {
        return Err(format!("{} is no file; take it away", path.display()));
    }
    if meta.len() > most {
        return Err(format!("{} has {} bytes, more than {most}", path.display(), meta.len()));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > most {
        return Err(format!("{} has more than {most} bytes", path.display()));
    }
    Ok(bytes)
}

/// Whether a file is a manifest, by its name: `NAME.test.toml` holds cases.
pub(crate) fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.ends_with(".toml") && !name.ends_with(".test.toml") && path.is_file()
}

/// The plugins of a folder, by name: `<name>.wasm` with what belongs to it beside it, or a folder `<name>/` that holds these. Of both
/// under one name the folder counts, being what `deploy` makes.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn scan(dir: &Path) -> std::io::Result<BTreeMap<String, Files>> {
    let mut found = BTreeMap::new();
    let mut folders = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.')) else {
            continue;
        };
        if path.is_dir() {
            if let Some(files) = in_folder(&path, name) {
                folders.insert(name.to_owned(), files);
            }
        } else if let Some(stem) = name.strip_suffix(".wasm") {
            // A pipe or a device under this name would be read for ever.
            if path.is_file() {
                found.insert(stem.to_owned(), Files::beside(stem, path.clone()));
            }
        }
    }
    found.extend(folders);
    Ok(found)
}

fn in_folder(dir: &Path, name: &str) -> Option<Files> {
    let first = |wanted: &dyn Fn(&Path) -> bool| {
        fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).find(|path| wanted(path))
    };
    let named = Some(dir.join(format!("{name}.wasm"))).filter(|path| path.is_file());
    let is_wasm = |path: &Path| path.is_file() && path.extension().is_some_and(|ending| ending == "wasm");
    let mut files = Files::beside(name, named.or_else(|| first(&is_wasm))?);
    files.manifest = files.manifest.or_else(|| first(&is_manifest));
    Some(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_not_waited_for_and_what_is_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(bounded(&pipe, 10).unwrap_err().contains("is no file"));
        assert!(bounded(dir.path(), 10).unwrap_err().contains("is a folder; name the file in it"));
        let file = dir.path().join("file");
        fs::write(&file, "eleven byte").unwrap();
        assert!(bounded(&file, 10).unwrap_err().contains("has 11 bytes, more than 10"));
        assert_eq!(bounded(&file, 11).unwrap(), b"eleven byte");
    }
}
