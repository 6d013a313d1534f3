//! A version of a plugin: from the bytes of a wasm file and a manifest to something that can be run, or a refusal that names
//! the step and the mend. Everything that can fail, fails here and not on a message.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use cofferdam_delivery::Terms;
use cofferdam_sandbox::{Digest, Instances, Limits, Plugin, PluginSpec};
use cofferdam_streams::VersionStamp;

use crate::compile::Compiler;
use crate::config::Config;
use crate::manifest::Manifest;
use crate::mutants::planted;
use crate::versions::Tried;

/// A plugin as it was found: bytes read once, and hashed as read.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// The name of its file or folder.
    pub(crate) file_name: String,
    pub(crate) wasm: Arc<[u8]>,
    pub(crate) manifest: String,
}

/// A version that may run.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) manifest: Manifest,
    /// What its deliveries go by.
    pub(crate) terms: Arc<Terms>,
    /// What it is granted.
    pub(crate) limits: Limits,
    /// Threads that the operator grants it on this host.
    pub(crate) threads_max: usize,
    /// Its code, for the process that suspects run in.
    pub(crate) wasm: Arc<[u8]>,
    pub(crate) plugin: Arc<Plugin>,
    /// Gives the process that suspects run in its code again.
    pub(crate) compiler: Arc<Compiler>,
    /// How its deliveries end on this host.
    pub(crate) fared: Arc<Tried>,
}

/// Why a candidate may not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {text}")]
pub(crate) struct Refusal {
    /// The step of admission that refused it.
    pub(crate) step: &'static str,
    /// What is wrong, and what to do.
    pub(crate) text: String,
}

pub(crate) fn refuse(step: &'static str, text: impl std::fmt::Display) -> Refusal {
    Refusal { step, text: text.to_string() }
}

/// The largest wasm file that is looked at: the largest interpreters bundled into a guest have 20 MB.
pub(crate) const WASM_BYTES_MAX: u64 = 64 << 20;

/// The digest of a version: what its wasm and its manifest say, whatever the files are called.
pub(crate) fn digest(wasm: &[u8], manifest: &Manifest) -> Digest {
    let mut text = String::from("cofferdam version 1\n");
    text.push_str(&Digest::of(wasm).to_string());
    text.push('\n');
    text.push_str(&manifest.canonical);
    Digest::of(text.as_bytes())
}

/// Reads, checks, compiles and tries a candidate. Slow (it compiles): not for an async thread.
///
/// # Errors
/// The first step that refuses it.
pub(crate) fn admit(compiler: &Arc<Compiler>, config: &Config, candidate: &Candidate) -> Result<Version, Refusal> {
    let (manifest, sha256) =
        Manifest::parse(&candidate.manifest, &candidate.file_name).map_err(|error| refuse("manifest", error))?;
    if candidate.wasm.len() as u64 > WASM_BYTES_MAX {
        let text = format!("the wasm file has {} bytes, more than {WASM_BYTES_MAX}", candidate.wasm.len());
        return Err(refuse("size", text));
    }
    let found = Digest::of(&candidate.wasm).to_string();
    if sha256.is_some_and(|wanted| !wanted.eq_ignore_ascii_case(&found)) && !planted("no-whole-file") {
        return Err(refuse("whole file", format!("the wasm's sha256 is {found}, and the manifest says otherwise")));
    }
    let limits = granted(config, &manifest)?;
    let mut effective = manifest.config.clone();
    if let Some(site) = config.site_config(&manifest.name) {
        effective.extend(site.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    let digest = digest(&candidate.wasm, &manifest);
    let config_digest = Digest::of(serde_json::to_string(&effective).unwrap_or_default().as_bytes());
    let stamp =
        VersionStamp { plugin: manifest.name.clone(), digest: digest.to_string(), config: config_digest.to_string() };
    let spec = PluginSpec {
        name: manifest.name.clone(),
        digest,
        limits,
        instances: manifest.instances,
        config: effective,
        route: manifest.route.clone(),
    };
    let artifact = compiler.artifact(&candidate.wasm)?;
    let plugin = Plugin::from_artifact(compiler.engine(), &artifact, spec).map_err(|error| refuse("load", error))?;
    let terms = Terms {
        stamp: Arc::new(stamp),
        retry: manifest.retry,
        message_bytes_max: limits.message_bytes,
        forgiven: Vec::new(),
    };
    Ok(Version {
        threads_max: config.policy(&manifest.name).concurrency_max,
        manifest,
        terms: Arc::new(terms),
        limits,
        wasm: candidate.wasm.clone(),
        plugin: Arc::new(plugin),
        compiler: compiler.clone(),
        fared: Arc::default(),
    })
}

/// The smaller of what the manifest requests and what the operator grants; a stream or a mode that is not granted is refused.
pub(crate) fn granted(config: &Config, manifest: &Manifest) -> Result<Limits, Refusal> {
    let policy = config.policy(&manifest.name);
    let name = &manifest.name;
    for (verb, key, streams, patterns) in [
        ("read", "read", manifest.route.subscribe(), &policy.read),
        ("emit to", "emit", manifest.route.emit(), &policy.emit),
    ] {
        for stream in streams {
            if !patterns.iter().any(|pattern| pattern.matches(stream)) {
                let text = format!(
                    "it wants to {verb} {stream:?}, which is not granted; add to cofferdam.toml: [policy.plugins.{name}] {key} = [{stream:?}]"
                );
                return Err(refuse("grants", text));
            }
        }
    }
    let (granted, word) = match manifest.instances {
        Instances::Fresh => (policy.fresh, "fresh"),
        Instances::Reuse => (policy.reuse, "reuse"),
    };
    if !granted {
        let text = format!(
            "instances = {word:?} is not granted; add to cofferdam.toml: [policy.plugins.{name}] instances = [{word:?}]"
        );
        return Err(refuse("grants", text));
    }
    Ok(manifest.limits.under(&policy.ceiling))
}

/// Where a plugin's live version sits. A swap is one atomic store; calls under way keep the version they began with.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    current: ArcSwapOption<Version>,
}

impl Seat {
    /// The live version.
    pub(crate) fn current(&self) -> Option<Arc<Version>> {
        self.current.load_full()
    }

    /// Puts a version live.
    pub(crate) fn swap(&self, version: Arc<Version>) {
        self.current.store(Some(version));
    }
}
