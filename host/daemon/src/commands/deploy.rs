//! `cofferdam deploy`: check a plugin, place it in the running host's folder by one rename, wait until it is live everywhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cofferdam_sandbox::{Digest, Engine, EngineConfig};
use cofferdam_streams::Store;
use serde_json::json;

use crate::candidate::{Candidate, Files, how_to_write_one, is_manifest, scan};
use crate::cli::Common;
use crate::commands::{find, reports};
use crate::compile::Compiler;
use crate::config::Config;
use crate::escape::safe;
use crate::exit::{Environment, Failed, Usage};
use crate::manifest::Manifest;
use crate::quantity::span_argument;
use crate::screen;
use crate::steps::{Steps, as_lines};
use crate::supervisor::State;
use crate::version::{Version, admit};

/// Flags of `deploy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A .wasm file with its manifest beside it, or a folder that holds both
    #[arg(value_name = "FILE|DIR")]
    plugin: PathBuf,
    /// The manifest [default: the .toml of the same name, or the only one beside it]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// The plugin's name, as its manifest gives it: needed where the manifest stands inside a file that is called otherwise
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// How long to wait until every live host runs it
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span_argument)]
    wait: Duration,
    /// Check it, and place nothing
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    let candidate = read(&args.plugin, args.manifest.as_deref())?;
    check_name(&candidate, args.name.as_deref())?;
    if args.dry_run {
        let config = crate::commands::load_config(common)?;
        let version = check(common, &config, &candidate)?;
        let (name, digest) = (&version.manifest.name, &version.terms.stamp.digest);
        match common.json {
            true => screen::line(&json!({"plugin": name, "digest": digest, "steps": version.steps}).to_string()),
            false => screen::line(&format!("{name} would be deployed as {digest}")),
        }
        return Ok(());
    }
    let found = find(common).await?;
    let Some(host) = found.host else {
        bail!(Environment(String::from(
            "no host runs on this machine, so there is no folder to place it in; start one: cofferdam run"
        )));
    };
    let version = check(common, &found.config, &candidate)?;
    let (name, digest) = (version.manifest.name, version.terms.stamp.digest.clone());
    let started = Instant::now();
    place(&host.plugins, &name, &candidate)?;
    // Whoever deploys wants this to run, whatever was held before.
    crate::commands::rollback::release(&found.store, &name, "deploy", "").await?;
    let hosts = wait(&found.store, &name, &digest, args.wait).await?;
    if common.json {
        let shown = json!({"plugin": name, "digest": digest, "hosts": hosts, "steps": version.steps});
        screen::line(&shown.to_string());
    } else {
        let took = started.elapsed().as_secs_f64();
        screen::line(&format!("{name} {} is live on {hosts} host{} after {took:.1} s", short(&digest), plural(hosts)));
    }
    Ok(())
}

pub(crate) fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// A digest as people compare it.
pub(crate) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// Reads a plugin from where its author keeps it: with its manifest beside it or inside it, its signature and its cases.
pub(crate) fn read(path: &Path, manifest: Option<&Path>) -> Result<Candidate> {
    let is_wasm = |path: &Path| path.extension().is_some_and(|ending| ending == "wasm");
    let wasm = if path.is_dir() {
        only(path, ".wasm", is_wasm, || format!("there is no .wasm file in {}", path.display()))?
    } else {
        path.to_owned()
    };
    if !wasm.is_file() {
        bail!(Usage(format!("there is no file {}", wasm.display())));
    }
    let stem = wasm.file_stem().and_then(|stem| stem.to_str()).unwrap_or("plugin").to_owned();
    let dir = wasm.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let mut files = Files::beside(&stem, wasm);
    if let Some(path) = manifest {
        files.manifest = Some(path.to_owned());
    }
    let candidate = files.read().map_err(Usage)?;
    if !candidate.manifest.is_empty() {
        return Ok(candidate);
    }
    let none = || {
        let wasm = files.wasm.display();
        format!("{wasm} has no manifest, neither inside it nor beside it: {}", how_to_write_one(&stem))
    };
    files.manifest = Some(only(&dir, ".toml", is_manifest, none)?);
    Ok(files.read().map_err(Usage)?)
}

/// Whether a plugin may be placed under the name that its manifest gives. What stands inside a file is its maker's word: it takes the
/// place of another plugin only when somebody has said so.
fn check_name(candidate: &Candidate, wanted: Option<&str>) -> Result<()> {
    let (name, file) = (candidate.plugin(), &candidate.file_name);
    match wanted {
        Some(wanted) if wanted != name => {
            bail!(Usage(format!(
                "its manifest gives it the name {name:?}, and --as says {wanted:?}; change one of them"
            )))
        }
        None if candidate.embedded && name != *file => bail!(Usage(format!(
            "the manifest inside {file}.wasm gives it the name {name:?}, so it would take the place of that plugin; if it is meant to: --as {}; if not, put a manifest of your own beside it",
            safe(&name)
        ))),
        _ => Ok(()),
    }
}

/// What stands under a name in the plugins folder and is another plugin, by its manifest: the file, and that plugin's name.
fn another(dir: &Path, name: &str) -> Option<(PathBuf, String)> {
    let loose = Some(Files::beside(name, dir.join(format!("{name}.wasm")))).filter(|files| files.wasm.is_file());
    let counts = scan(dir).ok().and_then(|mut found| found.remove(name));
    loose.into_iter().chain(counts).find_map(|files| {
        let plugin = files.read().ok()?.plugin();
        (plugin != name).then_some((files.wasm, plugin))
    })
}

/// The one file of a folder that is wanted.
fn only(dir: &Path, ending: &str, wanted: fn(&Path) -> bool, none: impl Fn() -> String) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| wanted(path));
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!(Usage(none())),
        _ => {
            bail!(Usage(format!(
                "there are {} {ending} files in {}; name the one you mean",
                found.len(),
                dir.display()
            )))
        }
    }
}

/// Runs admission here, before anything is placed, and shows what each step said.
fn check(common: &Common, config: &Config, candidate: &Candidate) -> Result<Version> {
    let memory_bytes_max = 1 << 30;
    let engine = Engine::new(EngineConfig { instances_max: 2, memory_bytes_max })?;
    // What is only checked is not kept.
    let compiler = std::sync::Arc::new(Compiler::new(engine, config.compile, None));
    let mut steps = Steps::default();
    let admitted = admit(&compiler, config, candidate, &mut steps);
    if !common.json {
        as_lines(steps.reports()).iter().for_each(|step| screen::line(&format!("  {}", safe(step))));
    }
    match admitted {
        Ok(mut version) => {
            version.steps = steps.reports().to_vec();
            Ok(version)
        }
        Err(refusal) => bail!(Failed(format!("refused at the step \"{}\": {}", refusal.step, refusal.text))),
    }
}

/// Places `<dir>/<name>/` by one rename. The manifest vouches for the wasm, so that the host need not wait until it is quiet.
/// What stands there under this name is replaced.
///
/// # Errors
/// What stands there is another plugin, or the folder cannot be written.
pub(crate) fn place(dir: &Path, name: &str, candidate: &Candidate) -> Result<()> {
    if let Some((file, other)) = another(dir, name) {
        bail!(Failed(format!(
            "{} is the plugin {other:?}, as its manifest says, and would be lost; give it a file of that name, or the new one another name",
            file.display()
        )));
    }
    let staging = tempfile::Builder::new()
        .prefix(".deploy-")
        .tempdir_in(dir)
        .with_context(|| format!("cannot write to {}", dir.display()))?;
    write_durably(&staging.path().join(format!("{name}.wasm")), &candidate.wasm)?;
    for (ending, text) in [("wasm.minisig", &candidate.signature), ("test.toml", &candidate.cases)] {
        if let Some(text) = text {
            write_durably(&staging.path().join(format!("{name}.{ending}")), text.as_bytes())?;
        }
    }
    if !candidate.embedded {
        write_durably(&staging.path().join(format!("{name}.toml")), sealed_manifest(candidate)?.as_bytes())?;
    }
    let target = dir.join(name);
    if target.is_dir() {
        // The two folders change places in one step; the old one goes with the temporary name.
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            staging.path(),
            rustix::fs::CWD,
            &target,
            rustix::fs::RenameFlags::EXCHANGE,
        )
        .with_context(|| format!("cannot replace {}", target.display()))?;
    } else {
        let staged = staging.keep();
        fs::rename(&staged, &target).with_context(|| format!("cannot place {}", target.display()))?;
    }
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    // The same plugin as loose files would only confuse the next reader: the folder is what counts from now on.
    for ending in ["wasm", "toml", "wasm.minisig", "test.toml"] {
        let _ = fs::remove_file(dir.join(format!("{name}.{ending}")));
    }
    Ok(())
}

/// A candidate's manifest with the wasm's sha256 and the plugin's name in it.
fn sealed_manifest(candidate: &Candidate) -> Result<String> {
    let mut text = String::new();
    let sha256 = Digest::of(&candidate.wasm);
    let (manifest, _) = Manifest::written(&candidate.manifest, &candidate.file_name)?;
    // Only what stands before the first table is the manifest's own: a [config] may have a key of the same name.
    let mut top = true;
    let own_lines = candidate.manifest.lines().filter(move |line| {
        top &= !line.trim_start().starts_with('[');
        !(top && is_key(line, "sha256"))
    });
    let top_level = candidate.manifest.lines().take_while(|line| !line.trim_start().starts_with('['));
    if !top_level.into_iter().any(|line| is_key(line, "name")) {
        text.push_str(&format!("name = \"{}\"\n", manifest.name));
    }
    text.push_str(&format!("sha256 = \"{sha256}\"\n"));
    own_lines.for_each(|line| {
        text.push_str(line);
        text.push('\n');
    });
    Ok(text)
}

/// Whether a line of a manifest sets this top-level key.
fn is_key(line: &str, key: &str) -> bool {
    line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    std::io::Write::write_all(&mut file, bytes)?;
    Ok(file.sync_all()?)
}

/// Waits until every live host runs the version.
pub(crate) async fn wait(store: &Store, name: &str, digest: &str, limit: Duration) -> Result<usize> {
    let deadline = Instant::now() + limit;
    let mut last = String::from("no host has reported");
    loop {
        // A host may still say that the plugin is held, by a pin that is gone or is for this version: it hears of that within 3 s.
        let pin = store.pins().await?.remove(name);
        let is_held = pin.is_some_and(|pin| pin.digest != digest);
        let hosts = reports(store).await?;
        let mut live = 0;
        for (host, reports) in &hosts {
            match reports.iter().find(|report| report.name == name) {
                Some(report) if report.digest == digest && report.state == State::Running => live += 1,
                Some(report) if report.candidate == digest && report.awaits_approval => {
                    let text = report.detail.lines().map(safe).collect::<Vec<_>>().join("\n");
                    bail!(Failed(format!("it is placed, and waits on {}: {text}", host.consumer)));
                }
                Some(report) if report.candidate == digest && report.pinned && !is_held => {
                    last = format!("{} has not heard yet that it may run", host.consumer);
                }
                Some(report) if report.candidate == digest && !report.detail.is_empty() => {
                    bail!(Failed(format!("{} refused it: {}", host.consumer, safe(&report.detail))));
                }
                Some(report) => last = format!("{} runs {}", host.consumer, short(&report.digest)),
                None => last = format!("{} does not know it yet", host.consumer),
            }
        }
        if live == hosts.len() && live > 0 {
            return Ok(live);
        }
        if Instant::now() >= deadline {
            let limit = humantime::format_duration(limit);
            bail!(Failed(format!(
                "{name} {} is live on {live} of {} hosts after {limit}: {last}",
                short(digest),
                hosts.len()
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
