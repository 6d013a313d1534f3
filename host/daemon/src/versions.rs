//! The versions of plugins over all hosts: keeping their files, counting how they fare, rolling a bad one back by itself, and
//! hearing which ones are pinned.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use cofferdam_model::trial::{Fared, WATCHED, is_worse};
use cofferdam_streams::{Act, Pin, Store, StreamError, VersionFacts, VersionFiles};
use tokio::sync::watch;

use crate::candidate::Candidate;
use crate::clock;
use crate::manifest::Manifest;
use crate::version::{Version, digest};

/// Versions of a plugin that are kept beside the one that runs: enough to go back past a bad week.
const KEPT: usize = 10;
/// The largest wasm that is kept in Redis, where every host can fetch it; a larger one stays on the disk of the host that admitted it.
const REDIS_BYTES_MAX: usize = 16 << 20;

/// How the deliveries of one version have ended on this host since they were last reported.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    ok: AtomicU64,
    failed: AtomicU64,
}

impl Tried {
    /// One more has ended.
    pub(crate) fn note(&self, ok: bool) {
        let count = if ok { &self.ok } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts again what could not be reported.
    fn put_back(&self, fared: Fared) {
        self.ok.fetch_add(fared.ok, Ordering::Relaxed);
        self.failed.fetch_add(fared.failed, Ordering::Relaxed);
    }

    fn take(&self) -> Fared {
        Fared { ok: self.ok.swap(0, Ordering::Relaxed), failed: self.failed.swap(0, Ordering::Relaxed) }
    }
}

/// What this host knows of versions.
pub(crate) struct Versions {
    store: Store,
    consumer: Arc<str>,
    /// Where those are that Redis does not keep.
    dir: PathBuf,
    inner: Mutex<Inner>,
    pins: watch::Sender<Pins>,
}

/// What the folder is looked at by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pins {
    /// The version that each plugin is held to.
    pub(crate) held: BTreeMap<String, Pin>,
    /// How often Redis was found to hold other data than before.
    pub(crate) emptied: u64,
}

#[derive(Default)]
struct Inner {
    /// Counts of every version that has run here, by (plugin, digest).
    tried: BTreeMap<(String, String), Arc<Tried>>,
    /// The live version of each plugin.
    live: BTreeMap<String, String>,
    /// The files of the live version of each plugin.
    files: BTreeMap<String, Candidate>,
    /// Versions of which nothing has to be asked any more: they have proved themselves, or have nothing before them.
    settled: BTreeSet<String>,
    /// The mark of the data that Redis held when it was asked last.
    mark: Option<String>,
}

impl Versions {
    pub(crate) fn new(store: Store, consumer: Arc<str>, data_dir: &std::path::Path) -> Self {
        let (dir, inner) = (data_dir.join("versions"), Mutex::default());
        Versions { store, consumer, dir, inner, pins: watch::channel(Pins::default()).0 }
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Redis that all hosts share.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Hears of pins that come and go.
    pub(crate) fn pins(&self) -> watch::Receiver<Pins> {
        self.pins.subscribe()
    }

    /// The version that a plugin is held to, if it is.
    pub(crate) fn pin(&self, plugin: &str) -> Option<Pin> {
        self.pins.borrow().held.get(plugin).cloned()
    }

    /// A version is about to go live: its files are kept, its deliveries are counted, and what was charged under versions that were
    /// rolled back is forgiven. Redis being away stops none of that but the keeping.
    pub(crate) async fn adopt(&self, mut version: Version, candidate: &Candidate) -> Version {
        let (plugin, digest) = (version.manifest.name.clone(), version.terms.stamp.digest.clone());
        let before = {
            let mut inner = self.locked();
            let tried = inner.tried.entry((plugin.clone(), digest.clone())).or_default().clone();
            version.fared = tried;
            inner.files.insert(plugin.clone(), candidate.clone());
            inner.live.insert(plugin.clone(), digest.clone()).filter(|before| *before != digest)
        };
        match self.note(&plugin, &digest, before, candidate).await {
            Ok(known) => {
                let bad = known.into_iter().filter(|facts| !facts.bad.is_empty() && facts.digest != digest);
                let mut terms = (*version.terms).clone();
                terms.forgiven = bad.map(|facts| facts.digest).collect();
                version.terms = Arc::new(terms);
            }
            Err(error) => tracing::warn!(plugin, %error, "this version is not kept, so it cannot be rolled back to"),
        }
        version
    }

    async fn note(
        &self,
        plugin: &str,
        digest: &str,
        before: Option<String>,
        candidate: &Candidate,
    ) -> Result<Vec<VersionFacts>> {
        let known = self.store.versions(plugin).await?;
        if known.iter().any(|facts| facts.digest == digest) {
            return Ok(known);
        }
        let files = VersionFiles {
            wasm: candidate.wasm.to_vec(),
            manifest: candidate.manifest.clone(),
            file_name: candidate.file_name.clone(),
            signature: candidate.signature.clone(),
        };
        self.keep(digest, &files).await?;
        // A host that has just started saw no other version run; the newest that is known did.
        let before = before.or_else(|| known.first().map(|facts| facts.digest.clone())).unwrap_or_default();
        let facts = VersionFacts {
            digest: digest.to_owned(),
            first_ms: clock::now_ms(),
            host: self.consumer.to_string(),
            before,
            bytes: candidate.wasm.len() as u64,
            ..VersionFacts::default()
        };
        self.store.note_version(plugin, &facts).await?;
        for old in known.iter().skip(KEPT).filter(|old| self.pin(plugin).is_none_or(|pin| pin.digest != old.digest)) {
            self.store.forget_version(plugin, &old.digest).await?;
        }
        Ok(known)
    }

    async fn keep(&self, digest: &str, files: &VersionFiles) -> Result<()> {
        if files.wasm.len() <= REDIS_BYTES_MAX {
            return Ok(self.store.keep_files(digest, files).await?);
        }
        let dir = self.dir.join(digest);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        std::fs::write(dir.join("plugin.wasm"), &files.wasm)?;
        std::fs::write(dir.join("plugin.toml"), &files.manifest)?;
        if let Some(signature) = &files.signature {
            std::fs::write(dir.join("plugin.wasm.minisig"), signature)?;
        }
        Ok(std::fs::write(dir.join("file_name"), &files.file_name)?)
    }

    /// The files of a version: from Redis, or from this host's disk. What does not have the digest that was asked for is not taken.
    pub(crate) async fn fetch(&self, wanted: &str) -> Result<Candidate> {
        let files = match self.store.files(wanted).await? {
            Some(files) => files,
            None => {
                let dir = self.dir.join(wanted);
                let read = |name: &str| {
                    std::fs::read(dir.join(name)).context("no host of this machine keeps it, and Redis does not")
                };
                let text = |name: &str| Ok::<_, anyhow::Error>(String::from_utf8_lossy(&read(name)?).into_owned());
                VersionFiles {
                    wasm: read("plugin.wasm")?,
                    manifest: text("plugin.toml")?,
                    file_name: text("file_name")?,
                    signature: text("plugin.wasm.minisig").ok(),
                }
            }
        };
        let (manifest, _) = Manifest::parse(&files.manifest, &files.file_name)?;
        let found = digest(&files.wasm, &manifest).to_string();
        anyhow::ensure!(
            found == wanted,
            "what is kept under that digest has the digest {found}: somebody has changed it"
        );
        Ok(Candidate {
            file_name: files.file_name,
            wasm: files.wasm.into(),
            manifest: files.manifest,
            signature: files.signature,
            ..Candidate::default()
        })
    }

    /// Reports how versions have fared, hears of pins, and rolls back what has turned out worse than what was before.
    pub(crate) async fn look(&self) -> Result<(), StreamError> {
        let counts: Vec<_> = {
            let inner = self.locked();
            let taken =
                inner.tried.iter().map(|((plugin, digest), tried)| (plugin.clone(), digest.clone(), tried.take()));
            taken.filter(|(.., fared)| fared.total() > 0).collect()
        };
        if !counts.is_empty()
            && let Err(error) = self.store.count_versions(&counts).await
        {
            let inner = self.locked();
            for (plugin, digest, fared) in counts {
                inner.tried.get(&(plugin, digest)).into_iter().for_each(|tried| tried.put_back(fared));
            }
            return Err(error);
        }
        self.hear_pins().await?;
        for (plugin, digest, _) in counts {
            let watched = {
                let inner = self.locked();
                inner.live.get(&plugin) == Some(&digest) && !inner.settled.contains(&digest)
            };
            if watched && self.pin(&plugin).is_none() {
                self.judge(&plugin, &digest).await?;
            }
        }
        Ok(())
    }

    /// Asks Redis which plugins are pinned. Where it has lost its data, what this host knows of holds, and is noted again: a version that
    /// somebody took back does not run because a Redis was emptied.
    pub(crate) async fn hear_pins(&self) -> Result<(), StreamError> {
        let before = self.locked().mark.clone();
        let mut held = self.store.pins().await?;
        let mark = self.store.mark(&uuid::Uuid::new_v4().to_string()).await?;
        let emptied = before.is_some_and(|before| before != mark);
        if emptied {
            let known = self.pins.borrow().held.clone();
            for (plugin, pin) in known {
                self.store.pin_again(&plugin, &pin).await?;
                held.entry(plugin).or_insert(pin);
            }
            self.keep_again().await;
            tracing::error!(
                "redis holds other data than before: it was emptied, or another one has taken its place. What plugins are held to and what they are \
                 allowed is noted again as this host knows it; approvals by name, versions to go back to and dead letters are gone"
            );
        }
        // Only now: what could not be noted again is tried again.
        self.locked().mark = Some(mark);
        if emptied || self.pins.borrow().held != held {
            // What is let run again is judged again.
            self.locked().settled.clear();
            self.pins.send_modify(|known| (known.held, known.emptied) = (held, known.emptied + u64::from(emptied)));
        }
        Ok(())
    }

    /// Keeps again what is live: a Redis that was emptied has lost its files.
    async fn keep_again(&self) {
        let live = self.locked().live.clone();
        for (plugin, digest) in live {
            let Some(candidate) = self.locked().files.get(&plugin).cloned() else { continue };
            if let Err(error) = self.note(&plugin, &digest, None, &candidate).await {
                tracing::warn!(plugin, %error, "this version is not kept, so it cannot be rolled back to");
            }
        }
    }

    /// Compares the live version of a plugin with the one before it.
    async fn judge(&self, plugin: &str, digest: &str) -> Result<(), StreamError> {
        let known = self.store.versions(plugin).await?;
        let of = |digest: &str| known.iter().find(|facts| facts.digest == digest);
        let Some(new) = of(digest) else { return Ok(()) };
        let before = of(&new.before).filter(|before| before.bad.is_empty());
        let Some(before) = before.filter(|_| !new.proved) else {
            self.locked().settled.insert(digest.to_owned());
            return Ok(());
        };
        if is_worse(new.fared(), before.fared()) {
            return self.roll_back(plugin, new, before).await;
        }
        if new.fared().total() >= WATCHED {
            self.store.prove_version(plugin, digest).await?;
            self.locked().settled.insert(digest.to_owned());
        }
        Ok(())
    }

    async fn roll_back(&self, plugin: &str, new: &VersionFacts, before: &VersionFacts) -> Result<(), StreamError> {
        let why = format!(
            "{} of its first {} deliveries failed; of the version before it, {} of {} did",
            new.failed,
            new.fared().total(),
            before.failed,
            before.fared().total()
        );
        if !self.store.has_files(&before.digest).await? && !self.dir.join(&before.digest).is_dir() {
            tracing::error!(plugin, "{why}; the version before is not kept, so this one goes on: deploy a better one");
            self.locked().settled.insert(new.digest.clone());
            return Ok(());
        }
        tracing::error!(plugin, from = new.digest, to = before.digest, "rolled back by itself: {why}");
        let pin = Pin {
            digest: before.digest.clone(),
            instead_of: new.digest.clone(),
            by: self.consumer.to_string(),
            why: why.clone(),
            at_ms: clock::now_ms(),
        };
        let what = format!("from {} to {}, by itself", new.digest, before.digest);
        let at = clock::iso(pin.at_ms);
        let act =
            Act { at: &at, who: &pin.by, verb: "rollback", what: &what, why: &why, plugin, digest: &before.digest };
        self.store.pin(plugin, &pin, &act).await?;
        self.pins.send_modify(|pins| drop(pins.held.insert(plugin.to_owned(), pin)));
        Ok(())
    }
}
