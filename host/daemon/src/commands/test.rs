//! `cofferdam test`: a plugin over its own cases and over recorded logs, in memory, without a Redis. No configuration of the
//! working directory is read.

mod chain;
pub(crate) mod log;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::candidate::Candidate;
use crate::cases::{CaseResult, Cases};
use crate::cli::Common;
use crate::commands::{deploy, load_config};
use crate::compile::Compiler;
use crate::config::Config;
use crate::escape::{safe, safe_lines};
use crate::exit::{Failed, Usage};
use crate::screen::{self, line, note};
use crate::signature::Signers;
use crate::steps::Steps;
use crate::version::{Version, admit};
use anyhow::{Context, Result, bail};
use cofferdam_sandbox::record::Calls;
use cofferdam_sandbox::{Engine, EngineConfig};

/// Flags of `test`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cofferdam test classify.wasm                                its own cases, classify.test.toml\n  \
    cofferdam test classify.wasm cowrie.json.gz                 over a log\n  \
    zcat old/*.gz | cofferdam test classify.wasm - --out hits.jsonl --clock from:/timestamp\n  \
    cofferdam test --chain plugins cowrie.json --out streams/   through all plugins of a folder"
)]
pub(crate) struct Args {
    /// A .wasm file with its manifest beside it, or a folder that holds both; not with --chain
    #[arg(value_name = "PLUGIN", required_unless_present = "chain")]
    plugin: Option<PathBuf>,
    /// Logs: JSON lines, plain or packed with gzip; `-` is standard input
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The plugin's cases [default: <plugin>.test.toml beside it, when no log is named]
    #[arg(long, value_name = "FILE", conflicts_with = "chain")]
    cases: Option<PathBuf>,
    /// The manifest [default: the .toml of the same name]
    #[arg(long, value_name = "FILE", conflicts_with = "chain")]
    manifest: Option<PathBuf>,
    /// Route the logs through all plugins of this folder, by what they read and emit
    #[arg(long, value_name = "DIR")]
    chain: Option<PathBuf>,
    /// The stream that the logs stand for [default: the first that the plugin reads; the one that nothing in the folder emits]
    #[arg(long, value_name = "STREAM")]
    stream: Option<String>,
    /// Where outputs go: a file of JSON lines; with --chain a folder, a file for each stream
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// What the guest's clock shows: `from:/POINTER` takes the time from there in each line
    #[arg(long, value_name = "CLOCK", value_parser = log::clock_argument)]
    clock: Option<String>,
    /// Outputs and failures that are shown one by one
    #[arg(long, value_name = "N", default_value_t = 5)]
    show: usize,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Write what came of each case into the file of cases, as what is expected from now on
    #[arg(long, conflicts_with = "chain")]
    update: bool,
    /// Run the cases again whenever the plugin or the cases change
    #[arg(long, conflicts_with_all = ["chain", "update"])]
    watch: bool,
    /// Write the results of the cases as JUnit XML
    #[arg(long, value_name = "FILE", conflicts_with = "chain")]
    junit: Option<PathBuf>,
}

impl Args {
    fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        self.threads.map_or_else(cores, usize::from)
    }
}

pub(crate) async fn run(common: &Common, mut args: Args) -> Result<()> {
    if args.chain.is_some() {
        // Without a plugin of its own, the first path is a log as well.
        args.paths.splice(0..0, args.plugin.take());
        return chain::run(common, &args);
    }
    let Some(path) = args.plugin.clone() else { bail!(Usage(String::from("name a plugin"))) };
    if args.watch {
        return watch(common, &args, &path).await;
    }
    once(common, &args, &path)
}

/// Everything once.
fn once(common: &Common, args: &Args, path: &Path) -> Result<()> {
    let candidate = deploy::read(path, args.manifest.as_deref())?;
    let file = cases_file(args, path, &candidate);
    if file.is_none() && args.paths.is_empty() {
        bail!(Usage(format!(
            "nothing to test it with: write {}.test.toml beside it, or name a log: cofferdam test {} events.jsonl",
            candidate.file_name,
            path.display()
        )));
    }
    for (flag, given) in [("--junit", args.junit.is_some()), ("--update", args.update)] {
        if given && file.is_none() {
            bail!(Usage(format!(
                "{flag} is about cases, and beside a log none are run unless they are named: --cases FILE"
            )));
        }
    }
    let version = load(&load_config(common)?, &candidate, args.threads())?;
    let mut failed = 0;
    if let Some(file) = &file {
        failed = run_cases(common, args, &version, file)?;
    }
    let faults = match args.paths.is_empty() {
        true => 0,
        false => log::run(common, args, &version)?,
    };
    match (failed, faults) {
        (0, 0) => Ok(()),
        (0, faults) => bail!(Failed(format!("{faults} messages ended in a fault of the plugin"))),
        (failed, _) => bail!(Failed(format!("{failed} cases failed; take what came as right with --update"))),
    }
}

/// Runs the cases of a file; how many did not come out as expected.
fn run_cases(common: &Common, args: &Args, version: &Version, file: &Path) -> Result<usize> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let cases = Cases::parse(&text, &version.manifest).with_context(|| format!("in {}", file.display()))?;
    if cases.len() == 0 {
        bail!(Usage(format!("{} holds no [[case]]", file.display())));
    }
    let results = cases.run(&version.plugin, Duration::MAX)?;
    if let Some(junit) = &args.junit {
        report::junit(junit, &version.manifest.name, &results)?;
    }
    if args.update {
        let changed = report::update(file, &text, &results)?;
        note(&format!("{changed} of {} cases written to {}", results.len(), file.display()));
        return Ok(0);
    }
    if common.json {
        line(&serde_json::to_string_pretty(&report::as_json(&version.manifest.name, &results))?);
    } else {
        show(&results);
    }
    Ok(results.iter().filter(|result| result.mismatch.is_some()).count())
}

fn show(results: &[CaseResult]) {
    for result in results {
        let millis = result.took.as_secs_f64() * 1e3;
        match &result.mismatch {
            None => line(&format!("ok      {} ({millis:.1} ms)", safe(&result.name))),
            Some(mismatch) => {
                line(&format!("FAILED  {}\n        {}", safe(&result.name), safe(mismatch)));
                for ran in &result.ran {
                    log::show_trouble(ran, "        ");
                }
            }
        }
    }
    let mut calls = Calls::new();
    results.iter().flat_map(|result| &result.ran).for_each(|ran| log::add_calls(&mut calls, &ran.calls));
    log::show_calls(&calls);
    let failed = results.iter().filter(|result| result.mismatch.is_some()).count();
    line(&format!("\n{} cases, {failed} failed", results.len()));
}

/// The file of cases: the one that was named, or the one beside the plugin when no log is.
fn cases_file(args: &Args, path: &Path, candidate: &Candidate) -> Option<PathBuf> {
    if args.cases.is_some() {
        return args.cases.clone();
    }
    let dir = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
    let beside = dir.join(format!("{}.test.toml", candidate.file_name));
    (args.paths.is_empty() && beside.is_file()).then_some(beside)
}

/// Loads a plugin as a host would.
fn load(config: &Config, candidate: &Candidate, threads: usize) -> Result<Version> {
    let engine = Engine::new(EngineConfig {
        instances_max: u32::try_from(threads).unwrap_or(256) + 2,
        memory_bytes_max: 1 << 30,
    })?;
    let compiler = Arc::new(Compiler::new(engine, config.compile, None));
    // Whoever writes a plugin tests it before anybody signs it, and its cases are run here one by one.
    let mut config = config.clone();
    config.signers = Signers::default();
    let candidate = Candidate { cases: None, ..candidate.clone() };
    let mut version = admit(&compiler, &config, &candidate, &mut Steps::default())
        .map_err(|refusal| Failed(format!("refused at the step \"{}\": {}", refusal.step, refusal.text)))?;
    let plugin = Arc::into_inner(version.plugin).context("a bug of the host: somebody else holds the plugin")?;
    version.plugin = Arc::new(plugin.recording());
    Ok(version)
}

/// Runs the cases whenever a file in the plugin's folder changes, until interrupted.
async fn watch(common: &Common, args: &Args, path: &Path) -> Result<()> {
    use notify::{RecursiveMode, Watcher};
    let dir = if path.is_dir() {
        path
    } else {
        path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
    };
    let (hints, mut hinted) = tokio::sync::mpsc::channel::<()>(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = hints.try_send(());
        }
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive).with_context(|| format!("cannot watch {}", dir.display()))?;
    loop {
        if let Err(error) = once(common, args, path) {
            note(&format!("cofferdam: {}", safe_lines(&format!("{error:#}"))));
        }
        note(&format!("watching {}; interrupt to end", dir.display()));
        if hinted.recv().await.is_none() {
            return Ok(());
        }
        // A build writes more than once.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let _ = hinted.try_recv();
    }
}

/// The name of a file of outputs for a stream.
fn file_name(stream: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    format!("{}.jsonl", stream.chars().map(plain).collect::<String>())
}

/// Whether somebody looks at the bar.
fn bar(total: u64, what: &str) -> indicatif::ProgressBar {
    screen::progress(total, what)
}
