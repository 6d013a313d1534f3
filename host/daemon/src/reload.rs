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

use cofferdam_sandbox::Digest;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};

use crate::admission::{Admission, Considered, Neighbours};
use crate::approval::Claim;
use crate::candidate::{Candidate, Files, scan};
use crate::commands::deploy::short;
use crate::escape::safe_lines;
use crate::mutants::planted;
use crate::steps::as_lines;
use crate::supervisor::{Note, Supervisor};
use crate::versions::{Pins, Versions};

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

/// What a file system tells of a file without reading it.
type Stat = (u64, u64, u64, i64, i64, i64, i64);

fn stat(path: &Path) -> Option<Stat> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
}

/// What is remembered of one plugin's files.
#[derive(Default)]
struct Memory {
    stats: Option<[Option<Stat>; 4]>,
    /// The bytes last read, by their hash, and since when they are the same.
    bytes: Option<(Digest, Instant)>,
    read_at: Option<Instant>,
    /// They could not be read, and are not until they change.
    unreadable: bool,
    /// The bytes that were admitted or refused; they are not tried again.
    tried: Option<Digest>,
    missing: u8,
    /// The plugin that it runs, and its claim to the name. What is not run holds no name.
    live: Option<(String, Claim)>,
    /// The plugin and the digest of the version that waits for approval.
    awaits: Option<(String, String)>,
    /// The name under which it was told what came of it.
    told: Option<String>,
    /// Whether another plugin has its name or its group.
    displaced: bool,
}

impl Memory {
    /// The name of the plugin that it runs.
    fn plugin(&self) -> Option<&str> {
        self.live.as_ref().map(|(plugin, _)| plugin.as_str())
    }

    /// Whether it has to do with what is called so.
    fn is_about(&self, name: &str) -> bool {
        self.plugin() == Some(name) || self.told.as_deref() == Some(name)
    }
}

/// Watches a folder for as long as the host lives.
pub(crate) struct Folder {
    dir: PathBuf,
    admission: Admission,
    supervisor: Arc<Supervisor>,
    versions: Arc<Versions>,
    /// The pins that the last look went by.
    pins: Pins,
    memory: BTreeMap<String, Memory>,
    /// Status files, by plugin: what was written last.
    written: BTreeMap<String, String>,
    /// The folder could not be read at the last look, and the log says so.
    unreadable: bool,
}

impl Folder {
    pub(crate) fn new(
        dir: PathBuf,
        admission: Admission,
        supervisor: Arc<Supervisor>,
        versions: Arc<Versions>,
    ) -> Self {
        let (memory, written, pins) = (BTreeMap::new(), BTreeMap::new(), Pins::default());
        Folder { dir, admission, supervisor, versions, pins, memory, written, unreadable: false }
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

    /// What a pin that came or went is about is looked at again, though its bytes are the same; everything when Redis has lost what it knew.
    fn follow(&mut self, pins: &Pins) {
        for memory in self.memory.values_mut() {
            let changed = |plugin: &str| self.pins.held.get(plugin) != pins.held.get(plugin);
            if self.pins.emptied != pins.emptied
                || memory.plugin().is_some_and(changed)
                || memory.told.as_deref().is_some_and(changed)
            {
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
        let Some(memory) = self.memory.remove(name) else { return true };
        if let Some(plugin) = memory.plugin() {
            tracing::warn!(plugin, "its file is gone from the folder: paused, nothing is dropped");
            self.supervisor.pause(plugin);
        }
        for told in memory.told.as_deref().into_iter().chain([name]) {
            self.unsay(told);
        }
        self.make_room();
        false
    }

    /// Nothing is said any more under a name that no file has to do with.
    fn unsay(&self, name: &str) {
        if !self.memory.values().any(|memory| memory.is_about(name)) {
            self.supervisor.forget(name);
        }
    }

    /// Whoever was refused because a name or a group was taken may have it now. Whether there is somebody.
    fn make_room(&mut self) -> bool {
        let displaced = self.memory.values_mut().filter(|memory| memory.displaced);
        displaced.map(|memory| (memory.displaced, memory.tried) = (false, None)).count() > 0
    }

    /// Looks at one plugin's files. Gives back whether they are settled.
    async fn look(&mut self, name: &str, files: &Files) -> bool {
        let now = Instant::now();
        let memory = self.memory.entry(name.to_owned()).or_default();
        memory.missing = 0;
        let stats = Some(files.all().map(|path| path.and_then(stat)));
        let unchanged = memory.stats == stats;
        let fresh = memory.read_at.is_some_and(|at| now - at < REHASH_EVERY);
        let done = memory.tried.is_some() && memory.tried == memory.bytes.map(|(digest, _)| digest);
        if unchanged && fresh && memory.unreadable {
            return true;
        }
        if unchanged && fresh && done {
            if !self.was_approved(name).await {
                return true;
            }
            let memory = self.memory.entry(name.to_owned()).or_default();
            (memory.tried, memory.awaits) = (None, None);
            return false;
        }
        memory.stats = stats;
        memory.read_at = Some(now);
        let read = read(files.clone()).await;
        let memory = self.memory.entry(name.to_owned()).or_default();
        memory.unreadable = read.is_err();
        let (candidate, bytes) = match read {
            Ok(read) => read,
            Err(text) => {
                // Perhaps it is just being replaced; if not, the next look finds it as it was.
                self.supervisor.note(name, Note { waiting: true, ..Note::about(String::new(), safe_lines(&text)) });
                return false;
            }
        };
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
        let quiet = if candidate.is_sealed() { QUIET_SEALED } else { QUIET };
        if now - since < quiet && !planted("no-whole-file") {
            return false;
        }
        memory.tried = Some(bytes);
        (memory.awaits, memory.displaced) = (None, false);
        self.admit(name, candidate).await
    }

    /// Hands a candidate on, and remembers what came of it. Gives back whether every file is settled by that.
    async fn admit(&mut self, name: &str, candidate: Candidate) -> bool {
        let others = self.memory.iter().filter(|(file, _)| *file != name);
        let holders = others.filter_map(|(file, memory)| {
            let (plugin, claim) = memory.live.clone()?;
            Some((plugin, (file.clone(), claim)))
        });
        let former = self.memory.get(name).and_then(|memory| memory.plugin().map(str::to_owned));
        let neighbours = Neighbours { holders: holders.collect(), former: former.clone() };
        let considered = self.admission.consider(candidate, &neighbours).await;
        let Some(memory) = self.memory.get_mut(name) else { return true };
        let told = match &considered {
            Considered::Live { plugin, .. } | Considered::Awaits { plugin, .. } | Considered::Undecided { plugin } => {
                plugin
            }
            Considered::NotRun { told } | Considered::Displaced { told } => told,
            Considered::NoManifest => name,
        };
        let before = memory.told.replace(told.to_owned());
        let mut room = false;
        match considered {
            Considered::Live { plugin, claim } => {
                memory.live = Some((plugin.clone(), claim));
                self.lose_name(name, &plugin);
                if let Some(former) = former.filter(|former| *former != plugin) {
                    tracing::warn!(
                        plugin = former,
                        "its manifest gives it the name {plugin} now: nothing runs under the old name any more"
                    );
                    self.supervisor.pause(&former);
                }
                room = true;
            }
            Considered::NotRun { .. } => {}
            Considered::Awaits { plugin, digest } => memory.awaits = Some((plugin, digest)),
            Considered::Undecided { .. } => memory.tried = None,
            Considered::Displaced { .. } => memory.displaced = true,
            Considered::NoManifest => {
                // What ran under the manifest that is gone reads nothing new without it.
                if let Some((plugin, _)) = memory.live.take() {
                    self.supervisor.pause(&plugin);
                    room = true;
                }
            }
        }
        for stale in before.as_deref().into_iter().chain([name]) {
            self.unsay(stale);
        }
        !(room && self.make_room())
    }

    /// A plugin runs from one file now: another that ran it, or waits to, has a lesser claim, and is told so at the next look.
    fn lose_name(&mut self, file: &str, plugin: &str) {
        for (_, memory) in self.memory.iter_mut().filter(|(other, _)| *other != file) {
            let waits = memory.awaits.as_ref().is_some_and(|(waits, _)| waits == plugin);
            if memory.plugin() == Some(plugin) {
                memory.live = None;
            } else if !waits {
                continue;
            }
            (memory.awaits, memory.displaced) = (None, true);
        }
    }

    /// Whether what waited in this file has been approved since.
    async fn was_approved(&self, name: &str) -> bool {
        let Some((plugin, digest)) = self.memory.get(name).and_then(|memory| memory.awaits.as_ref()) else {
            return false;
        };
        self.admission.is_approved(plugin, digest).await
    }

    /// `<name>.status.txt` beside the files says what the log says, for whoever dropped them there. Of what there is nothing more to say
    /// it goes.
    fn write_status_files(&mut self) {
        let reports = self.supervisor.report();
        let dir = self.dir.clone();
        self.written.retain(|name, _| {
            let stays = reports.iter().any(|report| report.name == *name);
            if !stays {
                // One that is gone already is what was wanted.
                let _ = fs::remove_file(dir.join(format!("{name}.status.txt")));
            }
            stays
        });
        for report in reports {
            let digest = if report.digest.is_empty() { "none" } else { report.digest.as_str() };
            let state =
                serde_json::to_value(report.state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
            let detail = if report.detail.is_empty() { String::new() } else { format!("{}\n", report.detail) };
            let of = if report.candidate.is_empty() { &report.digest } else { &report.candidate };
            let steps = match report.steps.is_empty() {
                true => String::new(),
                false => format!("\nadmission of {}\n{}\n", short(of), as_lines(&report.steps).join("\n")),
            };
            let text = format!("{}: {state}\nlive version: {digest}\n{detail}{steps}", report.name);
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

/// Reads a plugin's files, with their digest, on a thread that may block: the largest take a while, and a lane must not wait for that.
async fn read(files: Files) -> Result<(Candidate, Digest), String> {
    let work = move || {
        let candidate = files.read()?;
        // Its other slow answers are had here too.
        let (bytes, _) = (candidate.bytes_digest(), candidate.parsed());
        Ok((candidate, bytes))
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(format!("the host failed on it: {error}")))
}

/// Puts a file of ours in the place of whatever stands there. A link is replaced and not followed, and a pipe is not opened, which would
/// wait for a reader.
fn write_here(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = path.parent().unwrap_or(Path::new("."));
    // The folder's own look passes over names that begin with a dot. Whoever dropped the plugin may read what became of it.
    let mut new = tempfile::Builder::new();
    let mut file = new.prefix(".status-").permissions(fs::Permissions::from_mode(0o644)).tempfile_in(dir)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    file.persist(path)?;
    Ok(())
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
