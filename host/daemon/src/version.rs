//! A version of a plugin: from the bytes of a wasm file and a manifest to something that can be run, or a refusal that names
//! the step and the mend. Everything that can fail, fails here and not on a message.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cofferdam_delivery::Terms;
use cofferdam_sandbox::{Abi, Digest, Instances, Limits, LoadError, Plugin, PluginSpec};
use cofferdam_streams::VersionStamp;

use crate::candidate::Candidate;
use crate::cases::Cases;
use crate::compile::Compiler;
use crate::config::Config;
use crate::escape::safe;
use crate::host::MEMORY_BYTES_MAX;
use crate::manifest::{LIMITS_IN_BYTES, Manifest, further_limits};
use crate::mutants::planted;
use crate::quantity::{show_bytes, write_bytes};
use crate::signature::Signed;
use crate::steps::{Refusal, Step, StepReport, Steps, refuse};
use crate::versions::Tried;

/// How long a plugin's own cases may take in all before it goes live: as long as somebody waits for a deployment.
const CASES_TIME: Duration = Duration::from_secs(30);

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
    /// What admission said of it.
    pub(crate) steps: Vec<StepReport>,
}

/// The digest of a version: what its wasm and its manifest say, whatever the files are called.
pub(crate) fn digest(wasm: &[u8], manifest: &Manifest) -> Digest {
    digest_of(&Digest::of(wasm), manifest)
}

/// The same, of a wasm whose digest is known.
pub(crate) fn digest_of(wasm: &Digest, manifest: &Manifest) -> Digest {
    let mut text = String::from("cofferdam version 1\n");
    text.push_str(&wasm.to_string());
    text.push('\n');
    text.push_str(&manifest.canonical);
    Digest::of(text.as_bytes())
}

/// Reads, checks, compiles and tries a candidate, and notes what each step said. Slow (it compiles): not for an async thread.
///
/// # Errors
/// The first step that refuses it.
pub(crate) fn admit(
    compiler: &Arc<Compiler>,
    config: &Config,
    candidate: &Candidate,
    steps: &mut Steps,
) -> Result<Version, Refusal> {
    take(compiler, config, candidate, steps).inspect_err(|refusal| steps.refused(refusal))
}

fn take(
    compiler: &Arc<Compiler>,
    config: &Config,
    candidate: &Candidate,
    steps: &mut Steps,
) -> Result<Version, Refusal> {
    let (manifest, sha256) = candidate.parsed().map_err(|error| refuse(Step::Manifest, error))?.clone();
    let found = candidate.wasm_digest().to_string();
    match sha256 {
        Some(wanted) if !wanted.eq_ignore_ascii_case(&found) && !planted("no-whole-file") => {
            let text = format!("the wasm's sha256 is {found}, and the manifest says otherwise");
            return Err(refuse(Step::WholeFile, text));
        }
        Some(_) => steps.ok(Step::WholeFile, "its sha256 is the one in the manifest"),
        None if candidate.embedded => steps.ok(Step::WholeFile, "its last section is there: the manifest"),
        None => steps.ok(Step::WholeFile, "as it was read: its manifest gives no sha256"),
    }
    let place = if candidate.embedded { "embedded" } else { "beside it" };
    let (reads, emits) = (manifest.route.subscribe().join(" "), manifest.route.emit().join(" "));
    steps.ok(
        Step::Manifest,
        format!("{place}; reads {reads}, emits to {}", if emits.is_empty() { "nothing" } else { &emits }),
    );
    match config.signers.check(&candidate.wasm, candidate.signature.as_deref()) {
        Err(text) => return Err(refuse(Step::Signature, text)),
        Ok(signed @ Signed::By { .. }) => steps.ok(Step::Signature, signed),
        Ok(signed) => steps.skipped(Step::Signature, signed),
    }
    let limits = granted(config, &manifest)?;
    let cuts = cuts(config, &manifest);
    if cuts.is_empty() {
        steps.ok(Step::Grants, "it asks for no more than it is granted");
    } else {
        let text: Vec<String> = cuts.iter().map(|cut| format!("\n{cut}")).collect();
        steps.ok(Step::Grants, format!("granted; the policy cuts what it asks for:{}", text.concat()));
    }
    let mut effective = manifest.config.clone();
    if let Some(site) = config.site_config(&manifest.name) {
        effective.extend(site.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    let digest = digest_of(&candidate.wasm_digest(), &manifest);
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
    steps.ok(Step::Compile, "in the jail, within its bounds");
    let plugin = Plugin::from_artifact(compiler.engine(), &artifact, spec)
        .map_err(|error| refuse(step(&error), safe(&error.to_string())))?;
    steps.ok(Step::World, format!("a {}", plugin.abi()));
    match plugin.abi() {
        Abi::Component => steps.ok(Step::Trial, "an instance starts"),
        Abi::Command => steps.skipped(Step::Trial, "a program starts with each message"),
    }
    let plugin = Arc::new(plugin);
    try_cases(candidate, &manifest, &plugin, steps)?;
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
        plugin,
        compiler: compiler.clone(),
        fared: Arc::default(),
        steps: Vec::new(),
    })
}

/// At which step a file that compiles is refused.
fn step(error: &LoadError) -> Step {
    match error {
        LoadError::NotACommand { .. }
        | LoadError::NoHandler { .. }
        | LoadError::WrongVersion { .. }
        | LoadError::WrongSignature { .. }
        | LoadError::UnknownImport { .. }
        | LoadError::Imports { .. } => Step::World,
        LoadError::TooMuch { .. } => Step::Caps,
        LoadError::NotWasm { .. }
        | LoadError::UnknownVersion { .. }
        | LoadError::Malformed { .. }
        | LoadError::Compile { .. } => Step::Compile,
        LoadError::Memory { .. }
        | LoadError::LimitTooHigh { .. }
        | LoadError::Trial { .. }
        | LoadError::Sandbox { .. } => Step::Trial,
    }
}

/// Runs the plugin's own cases, when it brings any.
fn try_cases(
    candidate: &Candidate,
    manifest: &Manifest,
    plugin: &Arc<Plugin>,
    steps: &mut Steps,
) -> Result<(), Refusal> {
    let Some(text) = &candidate.cases else {
        steps.skipped(Step::Cases, "it brings none");
        return Ok(());
    };
    let file = format!("{}.test.toml", candidate.file_name);
    let cases = Cases::parse(text, manifest).map_err(|error| refuse(Step::Cases, format!("in {file}: {error}")))?;
    let results =
        cases.run(plugin, CASES_TIME).map_err(|error| refuse(Step::Cases, format!("in {file}: {error:#}")))?;
    let failed: Vec<_> = results.iter().filter(|result| result.mismatch.is_some()).collect();
    let Some(first) = failed.first() else {
        steps.ok(Step::Cases, format!("{} of {} as expected", results.len(), cases.len()));
        return Ok(());
    };
    Err(refuse(
        Step::Cases,
        format!(
            "{} of {} cases in {file} do not come out as expected; the first is {:?}: {}. See all: cofferdam test {}.wasm",
            failed.len(),
            cases.len(),
            first.name,
            safe(first.mismatch.as_deref().unwrap_or_default()),
            candidate.file_name
        ),
    ))
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
                return Err(refuse(Step::Grants, text));
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
        return Err(refuse(Step::Grants, text));
    }
    Ok(manifest.limits.under(&policy.ceiling))
}

/// A limit of a manifest that the policy cuts: the smaller of the two holds.
#[derive(Debug)]
pub(crate) struct Cut {
    key: &'static str,
    asked: String,
    granted: String,
    /// What the operator may write to grant it.
    mend: String,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cut { key, asked, granted, mend } = self;
        write!(f, "{key} {asked} is cut to {granted}; {mend}")
    }
}

/// What the policy cuts of a manifest's limits.
pub(crate) fn cuts(config: &Config, manifest: &Manifest) -> Vec<Cut> {
    let policy = config.policy(&manifest.name);
    let (asked, ceiling) = (&manifest.limits, &policy.ceiling);
    let cut = |key: &'static str, asked: String, granted: String, value: String| {
        let mend = format!("to grant it: [policy.plugins.{}] {key} = {value}", manifest.name);
        Cut { key, asked, granted, mend }
    };
    let mut cuts = Vec::new();
    let bytes = [("memory", Some(asked.memory_bytes), Some(ceiling.memory_bytes))];
    let further = further_limits(asked).into_iter().zip(further_limits(ceiling));
    for (key, asked, ceiling) in bytes.into_iter().chain(further.map(|((key, asked), (_, most))| (key, asked, most))) {
        // A rate that nobody asks for is no bound that the plugin was promised.
        let (Some(asked), Some(ceiling)) = (asked, ceiling) else { continue };
        if asked > ceiling {
            cuts.push(if key == "memory" || LIMITS_IN_BYTES.contains(&key) {
                cut(key, show_bytes(asked), show_bytes(ceiling), format!("{:?}", write_bytes(asked)))
            } else {
                cut(key, asked.to_string(), ceiling.to_string(), asked.to_string())
            });
        }
    }
    if asked.deadline > ceiling.deadline {
        let show = |span: Duration| humantime::format_duration(span).to_string();
        cuts.push(cut("deadline", show(asked.deadline), show(ceiling.deadline), format!("{:?}", show(asked.deadline))));
    }
    if let Some(threads) = manifest.concurrency.filter(|threads| *threads > policy.concurrency_max) {
        cuts.push(cut("concurrency", threads.to_string(), policy.concurrency_max.to_string(), threads.to_string()));
    }
    // What no host grants is not to be asked of an operator.
    for cut in cuts.iter_mut().filter(|cut| cut.key == "memory" && asked.memory_bytes > MEMORY_BYTES_MAX) {
        cut.mend = format!("no more than {} can be granted", show_bytes(MEMORY_BYTES_MAX));
    }
    cuts
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, RawConfig};

    #[test]
    fn what_the_policy_cuts_of_the_limits_is_told_with_the_line_that_grants_it() {
        let config = |text: &str| {
            let raw = RawConfig::read(text).unwrap();
            Config::check(raw, &Overrides { data: Some("d".into()), ..Overrides::default() }, None).unwrap()
        };
        let told = |config: &Config, limits: &str| {
            let manifest = Manifest::parse(&format!("subscribe = [\"a\"]\n{limits}"), "p").unwrap().0;
            cuts(config, &manifest).iter().map(Cut::to_string).collect::<Vec<_>>()
        };
        assert!(told(&config(""), "").is_empty());
        let asks = "concurrency = 8\n[limits]\nmemory = \"512MiB\"\ndeadline = \"10m\"\nevents = 200000";
        assert_eq!(
            told(&config("[policy.default]\nconcurrency = 4"), asks),
            [
                "memory 512.0 MiB is cut to 256.0 MiB; to grant it: [policy.plugins.p] memory = \"512MiB\"",
                "events 200000 is cut to 100000; to grant it: [policy.plugins.p] events = 200000",
                "deadline 10m is cut to 30s; to grant it: [policy.plugins.p] deadline = \"10m\"",
                "concurrency 8 is cut to 4; to grant it: [policy.plugins.p] concurrency = 8",
            ]
        );
        let beyond = told(&config(""), "[limits]\nmemory = \"2GiB\"");
        assert_eq!(beyond, ["memory 2.0 GiB is cut to 256.0 MiB; no more than 1.0 GiB can be granted"]);
        let rated = config("[policy.default]\nevents-per-second = 5");
        assert!(told(&rated, "").is_empty(), "a manifest that asks for no rate is not promised one");
        assert_eq!(told(&rated, "[limits]\nevents-per-second = 9").len(), 1);
    }
}
