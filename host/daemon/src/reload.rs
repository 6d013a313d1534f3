//! The watched folder: events are hints, reconciliation is the truth.
//!
//! A candidate is taken only when it is whole: its manifest's `sha256` matches, or it has been quiet for two seconds and two
//! reads gave the same bytes. A bad one leaves the live version where it is, and is not tried again until its bytes change. A
//! file that is gone, twice looked for, pauses its plugin.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_streams::Pin;

use cofferdam_sandbox::Digest;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};

use crate::approval::Asks;
use crate::clock;
use crate::commands::deploy::short;
use crate::compile::Compiler;
use crate::config::Config;
use crate::manifest::Manifest;
use crate::mutants::planted;
use crate::supervisor::Supervisor;
use crate::version::{Candidate, Refusal, Version, WASM_BYTES_MAX, admit};
use crate::versions::Versions;

/// After an event, so that a burst of them is one look.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Without any event: file systems that give none exist, and so do lost ones.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// While something is not yet known to be whole.
const LOOK_SOON: Duration = Duration::from_millis(200);
/// Everything is read and hashed again this often: a copy may keep the time of a file whose content it changes.
const REHASH_EVERY: Duration = Duration::from_secs(60);
/// How long bytes must stay the same when the manifest vouches for the wasm, and when nothing does.
const QUIET_SEALED: Duration = Duration::from_millis(150);
const QUIET: Duration = Duration::from_secs(2);
/// Looks without the file after which its plugin pauses: one may fall between the two steps of a replacement.
const MISSING_LOOKS: u8 = 2;

/// A plugin's files, as found in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Files {
    wasm: PathBuf,
    manifest: Option<PathBuf>,
}

/// What a file system tells of a file without reading it.
type Stat = (u64, u64, u64, i64, i64, i64, i64);

fn stat(path: &Path) -> Option<Stat> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
}

/// What is remembered of one plugin's files.
#[derive(Default)]
struct Memory {
    stats: Option<(Option<Stat>, Option<Stat>)>,
    /// The bytes last read, by their hash, and since when they are the same.
    bytes: Option<(Digest, Instant)>,
    read_at: Option<Instant>,
    /// The bytes that were admitted or refused; they are not tried again.
    tried: Option<Digest>,
    missing: u8,
    /// The plugin's name, once a manifest gave one.
    plugin: Option<String>,
    /// The digest of the version that waits for approval.
    awaits: Option<String>,
}

/// What a pin says to a candidate.
enum Held {
    /// Nothing: it is the candidate's turn.
    No,
    /// Another version was put in its place; of the one that was found, by its digest, that is said.
    Instead { found: String, text: String },
    /// Whatever runs goes on.
    Already { found: String, text: String },
}

/// Watches a folder for as long as the host lives.
pub(crate) struct Folder {
    dir: PathBuf,
    config: Arc<Config>,
    compiler: Arc<Compiler>,
    supervisor: Arc<Supervisor>,
    versions: Arc<Versions>,
    /// The pins that the last look went by.
    pins: BTreeMap<String, Pin>,
    memory: BTreeMap<String, Memory>,
    /// Status files, by plugin: what was written last.
    written: BTreeMap<String, String>,
    /// The folder could not be read at the last look, and the log says so.
    unreadable: bool,
}

impl Folder {
    pub(crate) fn new(
        config: Arc<Config>,
        compiler: Arc<Compiler>,
        supervisor: Arc<Supervisor>,
        versions: Arc<Versions>,
    ) -> Self {
        let dir = config.plugins_dir.clone();
        let (memory, written, pins) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Folder { dir, config, compiler, supervisor, versions, pins, memory, written, unreadable: false }
    }

    /// Runs until `stop` is set.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let (hints, mut hinted) = mpsc::channel::<()>(1);
        let mut watcher = None;
        let mut watched = None;
        let mut pins = self.versions.pins();
        loop {
            // A folder that was deleted and made again gives no event to a watcher of the old one.
            let now = fs::metadata(&self.dir).ok().map(|meta| (meta.dev(), meta.ino()));
            if now.is_none() {
                // The next one may have the number of this one.
                (watcher, watched) = (None, None);
            }
            if now.is_some() && (watcher.is_none() || watched != now) {
                watcher = watch_folder(&self.dir, hints.clone());
                watched = now;
            }
            self.follow(&pins.borrow_and_update().clone());
            let settled = self.reconcile().await;
            self.write_status_files();
            let pause = if settled { LOOK_EVERY } else { LOOK_SOON };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Some(()) = hinted.recv() => {
                    tokio::time::sleep(DEBOUNCE).await;
                    let _ = hinted.try_recv();
                }
                Ok(()) = pins.changed() => {}
                changed = stop.changed() => if changed.is_err() || *stop.borrow() { return },
            }
        }
    }

    /// What a pin that came or went is about is looked at again, though its bytes are the same.
    fn follow(&mut self, pins: &BTreeMap<String, Pin>) {
        for memory in self.memory.values_mut() {
            let changed = |plugin: &String| self.pins.get(plugin) != pins.get(plugin);
            if memory.plugin.as_ref().is_some_and(changed) {
                memory.tried = None;
            }
        }
        self.pins.clone_from(pins);
    }

    /// Compares the folder with what is known of it. Gives back whether everything in it is settled.
    pub(crate) async fn reconcile(&mut self) -> bool {
        let found = match scan(&self.dir) {
            Ok(found) => found,
            Err(error) => {
                if !std::mem::replace(&mut self.unreadable, true) {
                    tracing::error!(dir = %self.dir.display(), %error, "cannot read the plugins folder; what is live goes on");
                }
                // No event says that it is there again.
                return false;
            }
        };
        self.unreadable = false;
        let gone: Vec<String> = self.memory.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        let mut settled = true;
        for name in gone {
            settled &= self.miss(&name);
        }
        for (name, files) in found {
            settled &= self.look(&name, &files).await;
        }
        settled
    }

    /// A plugin's files were not found.
    fn miss(&mut self, name: &str) -> bool {
        let Some(memory) = self.memory.get_mut(name) else { return true };
        memory.missing += 1;
        if memory.missing < MISSING_LOOKS {
            return false;
        }
        match memory.plugin.clone() {
            Some(plugin) => {
                tracing::warn!(plugin, "its file is gone from the folder: paused, nothing is dropped");
                self.supervisor.pause(&plugin);
            }
            None => self.supervisor.forget(name),
        }
        self.memory.remove(name);
        // Whoever was refused because the name was taken may have it now.
        self.memory.values_mut().filter(|memory| memory.plugin.is_none()).for_each(|memory| memory.tried = None);
        false
    }

    /// Looks at one plugin's files. Gives back whether they are settled.
    async fn look(&mut self, name: &str, files: &Files) -> bool {
        let now = Instant::now();
        let memory = self.memory.entry(name.to_owned()).or_default();
        memory.missing = 0;
        let stats = Some((stat(&files.wasm), files.manifest.as_deref().map(stat).unwrap_or_default()));
        let unchanged = memory.stats == stats;
        let fresh = memory.read_at.is_some_and(|at| now - at < REHASH_EVERY);
        let done = memory.tried.is_some() && memory.tried == memory.bytes.map(|(digest, _)| digest);
        if unchanged && fresh && done {
            if !self.was_approved(name).await {
                return true;
            }
            let memory = self.memory.entry(name.to_owned()).or_default();
            (memory.tried, memory.awaits) = (None, None);
            return false;
        }
        memory.stats = stats;
        let candidate = match read(name, files) {
            Ok(candidate) => candidate,
            Err(text) => {
                // Perhaps it is just being replaced; if not, the next look says the same.
                self.supervisor.note(name, true, text, String::new());
                return false;
            }
        };
        let memory = self.memory.entry(name.to_owned()).or_default();
        memory.read_at = Some(now);
        let bytes = bytes_digest(&candidate);
        let since = match memory.bytes {
            Some((known, since)) if known == bytes => since,
            _ => {
                memory.bytes = Some((bytes, now));
                if !planted("no-whole-file") {
                    return memory.tried == Some(bytes);
                }
                now
            }
        };
        if memory.tried == Some(bytes) {
            return true;
        }
        let quiet = if sealed(&candidate) { QUIET_SEALED } else { QUIET };
        if now - since < quiet && !planted("no-whole-file") {
            return false;
        }
        memory.tried = Some(bytes);
        memory.awaits = None;
        self.admit(name, candidate, files.manifest.is_some()).await;
        true
    }

    async fn admit(&mut self, name: &str, mut candidate: Candidate, has_manifest: bool) {
        let (compiler, config) = (self.compiler.clone(), self.config.clone());
        let live_before = |name: &str| self.supervisor.live_digest(name).is_some();
        if !has_manifest {
            let text = missing_manifest(name);
            tracing::warn!(plugin = name, "{text}");
            // What ran under the manifest that is gone reads nothing new without it.
            if let Some(plugin) = self.memory.get(name).and_then(|memory| memory.plugin.clone()) {
                self.supervisor.pause(&plugin);
            }
            self.supervisor.note(name, true, text, Digest::of(&candidate.wasm).to_string());
            return;
        }
        let plugin_name =
            Manifest::parse(&candidate.manifest, name).map_or_else(|_| name.to_owned(), |(manifest, _)| manifest.name);
        if let Some(other) =
            self.memory.iter().find(|(file, memory)| *file != name && memory.plugin.as_ref() == Some(&plugin_name))
        {
            let text = format!(
                "its manifest says name = {plugin_name:?}, and so does that of {}; give one another name",
                other.0
            );
            self.supervisor.note(&plugin_name, false, text, candidate_digest(&candidate));
            return;
        }
        let held = match self.held(&plugin_name, &mut candidate).await {
            Held::No => None,
            Held::Instead { found, text } => Some((found, text)),
            Held::Already { found, text } => return self.supervisor.note(&plugin_name, false, text, found),
        };
        let parsed = Manifest::parse(&candidate.manifest, name);
        if let Some(text) = parsed.ok().and_then(|(manifest, _)| self.supervisor.conflict(&manifest)) {
            tracing::error!(plugin = plugin_name, "refused: {text}");
            self.supervisor.note(&plugin_name, false, text, candidate_digest(&candidate));
            return;
        }
        let task = tokio::task::spawn_blocking(move || {
            let admitted = admit(&compiler, &config, &candidate);
            (admitted, candidate)
        });
        let (admitted, candidate) = match task.await {
            Ok(done) => done,
            Err(error) => {
                self.supervisor.note(name, false, format!("load: the host failed on it: {error}"), String::new());
                return;
            }
        };
        match admitted {
            Ok(version) => {
                // What is held to by a pin has run before.
                if held.is_none() && !self.allowed(name, &version).await {
                    return;
                }
                let version = self.versions.adopt(version, &candidate).await;
                self.install(name, version).await;
                if let Some((found, text)) = held {
                    self.supervisor.note(&plugin_name, false, text, found);
                }
            }
            Err(refusal) => {
                let digest = candidate_digest(&candidate);
                let kept = live_before(&plugin_name);
                tracing::error!(plugin = plugin_name, step = refusal.step, kept, "refused: {}", refusal.text);
                self.refuse(name, &plugin_name, &refusal, digest);
            }
        }
    }

    /// Whether the plugin is held to another version than the one found, which then takes the candidate's place.
    async fn held(&self, plugin: &str, candidate: &mut Candidate) -> Held {
        if self.versions.pin(plugin).is_some()
            && let Err(error) = self.versions.hear_pins().await
        {
            tracing::debug!(%error, "cannot ask for pins; the last known hold");
        }
        let found = candidate_digest(candidate);
        let Some(pin) = self.versions.pin(plugin).filter(|pin| pin.digest != found) else { return Held::No };
        let text = format!(
            "held to version {} since {} by {}{}; what stands in the folder is not run. Let it run: cofferdam unpin {plugin}; or deploy a better one",
            short(&pin.digest),
            clock::short(pin.at_ms),
            pin.by,
            if pin.why.is_empty() { String::new() } else { format!(" ({})", pin.why) },
        );
        if self.supervisor.live_digest(plugin).is_some_and(|live| live == pin.digest) {
            return Held::Already { found, text };
        }
        match self.versions.fetch(&pin.digest).await {
            Ok(pinned) => {
                *candidate = pinned;
                Held::Instead { found, text }
            }
            Err(error) => Held::Already { found, text: format!("{text}. That version cannot be had here: {error:#}") },
        }
    }

    /// Whether a version asks for no more than its plugin has been allowed, or is approved by name. If not, it waits.
    async fn allowed(&mut self, name: &str, version: &Version) -> bool {
        let (plugin, digest) = (version.manifest.name.as_str(), version.terms.stamp.digest.as_str());
        let asks = Asks::of(&version.manifest);
        let known = match self.versions.store().approvals(plugin, digest).await {
            Ok(known) => known,
            Err(error) => {
                // What was allowed cannot be known now; a version that waits loses nothing, and the next look asks again.
                tracing::warn!(plugin, %error, "cannot ask what this plugin has been allowed; tried again");
                if let Some(memory) = self.memory.get_mut(name) {
                    memory.tried = None;
                }
                return false;
            }
        };
        let allowed = known.allowed.as_deref().and_then(|text| serde_json::from_str::<Asks>(text).ok());
        let more = allowed.as_ref().map(|allowed| asks.beyond(allowed)).unwrap_or_default();
        if !more.is_empty() && !known.approved {
            let text = format!(
                "approval: version {} asks for more than {plugin} has been allowed:\n    {}\nlet it run: cofferdam approve {plugin} --digest {}",
                short(digest),
                more.join("\n    "),
                short(digest)
            );
            tracing::warn!(
                plugin,
                digest,
                asks = more.join(", "),
                "waits: cofferdam approve {plugin} --digest {}",
                short(digest)
            );
            if let Some(memory) = self.memory.get_mut(name) {
                memory.plugin.get_or_insert_with(|| plugin.to_owned());
                memory.awaits = Some(digest.to_owned());
            }
            self.supervisor.await_approval(plugin, text, digest.to_owned());
            return false;
        }
        // The first version is approved by its manifest, which is the operator's own word.
        let now = allowed.as_ref().map_or_else(|| asks.clone(), |allowed| asks.with(allowed));
        if allowed.as_ref() != Some(&now) {
            let text = serde_json::to_string(&now).expect("strings and numbers always serialize");
            if let Err(error) = self.versions.store().allow(plugin, &text).await {
                tracing::warn!(plugin, %error, "cannot note what this plugin is allowed");
            }
        }
        true
    }

    /// Whether what waited in this file has been approved since.
    async fn was_approved(&self, name: &str) -> bool {
        let memory = self.memory.get(name);
        let Some((plugin, digest)) = memory.and_then(|memory| memory.plugin.as_ref().zip(memory.awaits.as_ref()))
        else {
            return false;
        };
        self.versions.store().approvals(plugin, digest).await.is_ok_and(|known| known.approved)
    }

    async fn install(&mut self, name: &str, version: Version) {
        let plugin = version.manifest.name.clone();
        tracing::info!(plugin, digest = version.terms.stamp.digest, "live");
        let before = self.memory.get_mut(name).and_then(|memory| memory.plugin.replace(plugin.clone()));
        if let Some(before) = before.filter(|before| *before != plugin) {
            tracing::warn!(
                plugin = before,
                "its manifest gives it the name {plugin} now: what ran under the old name is paused"
            );
            self.supervisor.pause(&before);
        }
        self.supervisor.install(version).await;
    }

    fn refuse(&mut self, name: &str, plugin: &str, refusal: &Refusal, digest: String) {
        if let Some(memory) = self.memory.get_mut(name) {
            memory.plugin.get_or_insert_with(|| plugin.to_owned());
        }
        self.supervisor.note(plugin, false, refusal.to_string(), digest);
    }

    /// `<name>.status.txt` beside the files says what the log says, for whoever dropped them there.
    fn write_status_files(&mut self) {
        for report in self.supervisor.report() {
            let digest = if report.digest.is_empty() { "none" } else { report.digest.as_str() };
            let state =
                serde_json::to_value(report.state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
            let detail = if report.detail.is_empty() { String::new() } else { format!("{}\n", report.detail) };
            let text = format!("{}: {state}\nlive version: {digest}\n{detail}", report.name);
            if self.written.get(&report.name) == Some(&text) {
                continue;
            }
            let path = self.dir.join(format!("{}.status.txt", report.name));
            match write_here(&path, &text) {
                Ok(()) => drop(self.written.insert(report.name, text)),
                Err(error) => tracing::debug!(path = %path.display(), %error, "cannot write the status file"),
            }
        }
    }
}

/// Writes a file of ours, and never through a link that somebody else put there.
fn write_here(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).custom_flags(no_links).open(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes())
}

/// The text for a wasm without a manifest, with a manifest to start from.
fn missing_manifest(name: &str) -> String {
    format!(
        "waiting for a manifest: write {name}.toml beside {name}.wasm, at least\n    subscribe = [\"stream:attacks\"]\n    emit = [\"stream:alerts\"]"
    )
}

fn watch_folder(dir: &Path, hints: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    // Whatever the event says, even an error, it means: look. A full channel means that somebody is about to.
    let watcher = notify::recommended_watcher(move |_| {
        let _ = hints.try_send(());
    });
    let watched = watcher.and_then(|mut watcher| watcher.watch(dir, RecursiveMode::Recursive).map(|()| watcher));
    match watched {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "no events from the folder; it is looked at every 5 s instead");
            None
        }
    }
}

/// The plugins of a folder: `<name>.wasm` with `<name>.toml`, or a folder `<name>/` that holds such a pair. Of both under
/// one name the folder counts, being what `deploy` makes.
fn scan(dir: &Path) -> std::io::Result<BTreeMap<String, Files>> {
    let mut found = BTreeMap::new();
    let mut folders = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.')) else {
            continue;
        };
        if path.is_dir() {
            if let Some(files) = folder_files(&path, name) {
                folders.insert(name.to_owned(), files);
            }
        } else if let Some(stem) = name.strip_suffix(".wasm") {
            let manifest = Some(path.with_extension("toml")).filter(|path| path.is_file());
            // A pipe or a device under this name would be read for ever.
            if path.is_file() {
                found.insert(stem.to_owned(), Files { wasm: path.clone(), manifest });
            }
        }
    }
    found.extend(folders);
    Ok(found)
}

fn folder_files(dir: &Path, name: &str) -> Option<Files> {
    let with = |ending: &str| {
        let named = dir.join(format!("{name}.{ending}"));
        if named.is_file() {
            return Some(named);
        }
        let mut others = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
        others.find(|path| path.is_file() && path.extension().is_some_and(|found| found == ending))
    };
    Some(Files { wasm: with("wasm")?, manifest: with("toml") })
}

/// The plugins of a folder, by name: what stands there, or why it cannot be read.
pub(crate) fn candidates(dir: &Path) -> std::io::Result<Vec<(String, Result<Candidate, String>)>> {
    Ok(scan(dir)?.into_iter().map(|(name, files)| (name.clone(), read(&name, &files))).collect())
}

/// Reads a plugin's files, each once and whole.
fn read(name: &str, files: &Files) -> Result<Candidate, String> {
    let size = fs::metadata(&files.wasm).map_or(0, |meta| meta.len());
    if size > WASM_BYTES_MAX {
        return Err(format!("{} has {size} bytes, more than {WASM_BYTES_MAX}", files.wasm.display()));
    }
    let wasm = read_bounded(&files.wasm, WASM_BYTES_MAX)?;
    let manifest = match &files.manifest {
        None => String::new(),
        Some(path) => String::from_utf8(read_bounded(path, MANIFEST_BYTES_MAX)?)
            .map_err(|_| format!("{} is not UTF-8", path.display()))?,
    };
    Ok(Candidate { file_name: name.to_owned(), wasm: wasm.into(), manifest })
}

/// The largest manifest that is looked at.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = fs::File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    file.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if bytes.len() as u64 > most {
        return Err(format!("{} has more than {most} bytes", path.display()));
    }
    Ok(bytes)
}

fn bytes_digest(candidate: &Candidate) -> Digest {
    Digest::of(format!("{}\n{}", Digest::of(&candidate.wasm), candidate.manifest).as_bytes())
}

/// Whether the manifest vouches for the wasm.
fn sealed(candidate: &Candidate) -> bool {
    let Ok((_, Some(sha256))) = Manifest::parse(&candidate.manifest, &candidate.file_name) else { return false };
    sha256.eq_ignore_ascii_case(&Digest::of(&candidate.wasm).to_string())
}

/// The digest of a candidate, as far as its manifest can be read.
pub(crate) fn candidate_digest(candidate: &Candidate) -> String {
    match Manifest::parse(&candidate.manifest, &candidate.file_name) {
        Ok((manifest, _)) => crate::version::digest(&candidate.wasm, &manifest).to_string(),
        Err(_) => String::new(),
    }
}
