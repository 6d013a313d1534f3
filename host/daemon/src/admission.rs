//! Admission in a running host: from a candidate that was found whole to a version that runs, or a note that says why not. What may
//! run is decided here; what stands in the folder is `reload.rs`'s affair.
//!
//! ```text
//!  Candidate ─▶ its name is free ─▶ no pin holds it ─▶ version.rs: whole, manifest, signature, grants, caps, compile, world, trial, cases
//!                                                             │
//!                                      approval ◀─────────────┘
//!                                          │
//!                                          ▼
//!                              kept for rollback, then live
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use cofferdam_sandbox::Digest;
use cofferdam_streams::StreamError;

use crate::approval::{Asks, Claim, Known};
use crate::candidate::{Candidate, how_to_write_one};
use crate::clock;
use crate::commands::deploy::short;
use crate::compile::Compiler;
use crate::config::Config;
use crate::signature::Signed;
use crate::steps::{Refusal, Step, Steps, refuse};
use crate::supervisor::{Note, Supervisor};
use crate::version::{Version, admit};
use crate::versions::Versions;

/// What came of a candidate. Whoever looks at the plugin has been told by then; `told` is the name under which.
#[derive(Debug)]
pub(crate) enum Considered {
    /// It runs, under this name, which it has by this claim.
    Live { plugin: String, claim: Claim },
    /// It is not run, and will not be while its files and what holds it stay the same.
    NotRun { told: String },
    /// It runs as soon as somebody approves this digest.
    Awaits { plugin: String, digest: String },
    /// What it depends on cannot be known now: it is to be looked at again.
    Undecided { plugin: String },
    /// Another one has its name or its group: it has neither until that one is gone.
    Displaced { told: String },
    /// It has no manifest, and no name of its own.
    NoManifest,
}

/// What a candidate finds in the folder.
#[derive(Clone, Debug, Default)]
pub(crate) struct Neighbours {
    /// The plugins that other files run, each with its file and that file's claim to the name.
    pub(crate) holders: BTreeMap<String, (String, Claim)>,
    /// The plugin that the candidate's own file runs.
    pub(crate) former: Option<String>,
}

/// Decides what may run on this host.
pub(crate) struct Admission {
    config: Arc<Config>,
    compiler: Arc<Compiler>,
    supervisor: Arc<Supervisor>,
    versions: Arc<Versions>,
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

impl Admission {
    pub(crate) fn new(
        config: Arc<Config>,
        compiler: Arc<Compiler>,
        supervisor: Arc<Supervisor>,
        versions: Arc<Versions>,
    ) -> Self {
        Admission { config, compiler, supervisor, versions }
    }

    /// Takes a candidate as far as it goes.
    pub(crate) async fn consider(&self, mut candidate: Candidate, neighbours: &Neighbours) -> Considered {
        if candidate.manifest.is_empty() {
            return self.without_manifest(candidate).await;
        }
        let plugin = candidate.plugin();
        let claim = Claim::of(&candidate, self.config.trusts_embedded);
        // A stranger is told of under its own name: what is said of the plugin that it names must not be covered by it.
        let told = if claim == Claim::Stranger { candidate.file_name.clone() } else { plugin.clone() };
        if let Some(text) = self.taken(&plugin, claim, neighbours) {
            let told = candidate.file_name.clone();
            self.refuse(&told, &candidate.digest(), Steps::default(), refuse(Step::Neighbours, text));
            return Considered::Displaced { told };
        }
        let held = match self.held(&plugin, &mut candidate).await {
            Held::No => None,
            Held::Instead { found, text } => Some((found, text)),
            Held::Already { found, text } => {
                self.supervisor.note(&told, Note { pinned: true, ..Note::about(found, text) });
                return Considered::NotRun { told };
            }
        };
        if let Some(text) = self.crowded(&candidate, neighbours) {
            self.refuse(&told, &candidate.digest(), Steps::default(), refuse(Step::Neighbours, text));
            return Considered::Displaced { told };
        }
        let (admitted, candidate, mut steps) = match self.admit(candidate).await {
            Ok(done) => done,
            Err(text) => {
                let refusal = refuse(Step::Compile, text);
                self.refuse(&told, "", Steps::default(), refusal);
                return Considered::NotRun { told };
            }
        };
        let mut version = match admitted {
            Ok(version) => version,
            Err(refusal) => {
                self.refuse(&told, &candidate.digest(), steps, refusal);
                return Considered::NotRun { told };
            }
        };
        if held.is_some() {
            steps.skipped(Step::Approval, "it has run before, and the plugin is held to it");
        } else if let Some(otherwise) = self.unapproved(&version, claim, &mut steps).await {
            return otherwise;
        }
        version.steps = steps.reports().to_vec();
        let version = self.versions.adopt(version, &candidate).await;
        tracing::info!(plugin, digest = version.terms.stamp.digest, "live");
        self.supervisor.install(version).await;
        if let Some((found, text)) = held {
            self.supervisor.note(&plugin, Note { pinned: true, ..Note::about(found, text) });
        }
        Considered::Live { plugin, claim }
    }

    /// The steps that take long, on a thread that may block.
    async fn admit(&self, candidate: Candidate) -> Result<(Result<Version, Refusal>, Candidate, Steps), String> {
        let (compiler, config) = (self.compiler.clone(), self.config.clone());
        let task = tokio::task::spawn_blocking(move || {
            let mut steps = Steps::default();
            let admitted = admit(&compiler, &config, &candidate, &mut steps);
            (admitted, candidate, steps)
        });
        task.await.map_err(|error| format!("the host failed on it: {error}"))
    }

    /// A wasm without a manifest is compiled all the same, so that whoever writes one knows whether it is worth it; it is never run. Where
    /// signatures are required it needs one before.
    async fn without_manifest(&self, candidate: Candidate) -> Considered {
        let (compiler, name) = (self.compiler.clone(), candidate.file_name.clone());
        let digest = Digest::of(&candidate.wasm).to_string();
        let mut steps = Steps::default();
        steps.ok(Step::WholeFile, "read twice, the same");
        match self.config.signers.check(&candidate.wasm, candidate.signature.as_deref()) {
            Ok(signed @ Signed::By { .. }) => steps.ok(Step::Signature, signed),
            Ok(signed) => steps.skipped(Step::Signature, signed),
            Err(text) => {
                self.refuse(&name, &digest, steps, refuse(Step::Signature, text));
                return Considered::NoManifest;
            }
        }
        let compiled = tokio::task::spawn_blocking(move || compiler.artifact(&candidate.wasm).map(drop)).await;
        let compiled =
            compiled.unwrap_or_else(|error| Err(refuse(Step::Compile, format!("the host failed on it: {error}"))));
        match compiled {
            Ok(()) => steps.ok(Step::Compile, "in the jail, within its bounds"),
            Err(refusal) => {
                self.refuse(&name, &digest, steps, refusal);
                return Considered::NoManifest;
            }
        }
        let text = format!("waiting for a manifest: {}", how_to_write_one(&name));
        tracing::warn!(plugin = name, "{text}");
        steps.waits(Step::Manifest, &text);
        let note = Note { waiting: true, steps: steps.reports().to_vec(), ..Note::about(digest, text) };
        self.supervisor.note(&name, note);
        Considered::NoManifest
    }

    /// Why a candidate cannot have its name: another file runs the plugin of that name, and its claim is as good.
    fn taken(&self, plugin: &str, claim: Claim, neighbours: &Neighbours) -> Option<String> {
        let (other, _) = neighbours.holders.get(plugin).filter(|(_, theirs)| *theirs >= claim)?;
        Some(format!("its manifest says name = {plugin:?}, and so does that of {other}; give one another name"))
    }

    /// Why a candidate cannot have its group.
    fn crowded(&self, candidate: &Candidate, neighbours: &Neighbours) -> Option<String> {
        let (manifest, _) = candidate.parsed().ok()?;
        self.supervisor.conflict(manifest, neighbours.former.as_deref())
    }

    /// Notes a refusal; the version that runs goes on.
    fn refuse(&self, plugin: &str, digest: &str, mut steps: Steps, refusal: Refusal) {
        let kept = self.supervisor.live_digest(plugin).is_some();
        tracing::error!(plugin, step = %refusal.step, kept, "refused: {}", refusal.text);
        if steps.reports().last().is_none_or(|last| last.step != refusal.step) {
            steps.refused(&refusal);
        }
        let note = Note { steps: steps.reports().to_vec(), ..Note::about(digest.to_owned(), refusal.to_string()) };
        self.supervisor.note(plugin, note);
    }

    /// Whether the plugin is held to another version than the one found, which then takes the candidate's place.
    async fn held(&self, plugin: &str, candidate: &mut Candidate) -> Held {
        if self.versions.pin(plugin).is_some()
            && let Err(error) = self.versions.hear_pins().await
        {
            tracing::debug!(%error, "cannot ask for pins; the last known hold");
        }
        let found = candidate.digest();
        let Some(pin) = self.versions.pin(plugin).filter(|pin| pin.digest != found) else { return Held::No };
        let text = format!(
            "held to version {} since {} by {}{}; what stands in the folder is not run. Let it run: cofferdam unpin {plugin}; or deploy a better one",
            short(&pin.digest),
            clock::short(pin.at_ms),
            pin.by,
            if pin.why.is_empty() { String::new() } else { format!(" ({})", pin.why) },
        );
        if self.supervisor.live_digest(plugin).is_some_and(|live| live == pin.digest) {
            if let Err(error) = self.allow_what_runs(plugin).await {
                tracing::warn!(plugin, %error, "cannot note what this plugin is allowed");
            }
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

    /// Notes what a plugin has been allowed where Redis has lost it.
    async fn allow_what_runs(&self, plugin: &str) -> Result<(), StreamError> {
        let store = self.versions.store();
        if store.approvals(plugin, "", &[]).await?.allowed.is_none()
            && let Some(running) = self.supervisor.runs_as(plugin).await?
            && let Some(text) = running.to_note(&Known::default())
        {
            store.allow(plugin, &text, &running.cycles).await?;
        }
        Ok(())
    }

    /// What a version asks for, and what its plugin has been allowed.
    async fn asks(&self, version: &Version, claim: Claim) -> Result<(Asks, Known), StreamError> {
        let (manifest, digest) = (&version.manifest, &version.terms.stamp.digest);
        let asks = Asks::of(manifest, self.supervisor.cycles(manifest).await?);
        let found = self.versions.store().approvals(&manifest.name, digest, &asks.cycles).await?;
        let running = if found.allowed.is_none() { self.supervisor.runs_as(&manifest.name).await? } else { None };
        let mut known = Known::read(&found, claim).or_as_runs(running);
        // What is live was allowed, whatever has become of the record.
        known.approved |= self.supervisor.live_digest(&manifest.name).as_ref() == Some(digest);
        Ok((asks, known))
    }

    /// What comes of a version that may not run yet; `None` when it may, which is then noted.
    async fn unapproved(&self, version: &Version, claim: Claim, steps: &mut Steps) -> Option<Considered> {
        let (plugin, digest) = (version.manifest.name.clone(), version.terms.stamp.digest.clone());
        let (asks, known) = match self.asks(version, claim).await {
            Ok(both) => both,
            Err(error) => {
                // A version that waits loses nothing, and the next look asks again.
                tracing::warn!(plugin, %error, "cannot ask what this plugin has been allowed; tried again");
                return Some(Considered::Undecided { plugin });
            }
        };
        let more = asks.beyond(&known);
        if !more.is_empty() && !known.approved {
            let text = format!(
                "version {} asks for more than {plugin} has been allowed:\n    {}\nlet it run: cofferdam approve {plugin} --digest {digest}",
                short(&digest),
                more.join("\n    "),
            );
            tracing::warn!(
                plugin,
                digest,
                asks = more.join(", "),
                "waits: cofferdam approve {plugin} --digest {digest}"
            );
            steps.waits(Step::Approval, &text);
            let note = Note {
                waiting: true,
                awaits_approval: true,
                steps: steps.reports().to_vec(),
                ..Note::about(digest.clone(), format!("{}: {text}", Step::Approval))
            };
            self.supervisor.note(&plugin, note);
            return Some(Considered::Awaits { plugin, digest });
        }
        steps.ok(
            Step::Approval,
            match (known.allowed.is_some(), more.is_empty()) {
                (_, false) => "approved",
                (true, true) => "it asks for no more than before",
                (false, true) => "the first version, by the manifest that was put beside it",
            },
        );
        if let Some(text) = asks.to_note(&known)
            && let Err(error) = self.versions.store().allow(&plugin, &text, &asks.cycles).await
        {
            tracing::warn!(plugin, %error, "cannot note what this plugin is allowed");
        }
        None
    }

    /// Whether this version of a plugin has been approved by now.
    pub(crate) async fn is_approved(&self, plugin: &str, digest: &str) -> bool {
        self.versions.store().approvals(plugin, digest, &[]).await.is_ok_and(|known| known.approved)
    }
}
