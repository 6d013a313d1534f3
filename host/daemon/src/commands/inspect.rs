//! `cofferdam inspect`: what a plugin is and asks for. Nothing of it is run, and no configuration of the working directory is read.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cofferdam_sandbox::{Abi, Description, Digest, Engine, EngineConfig, Instances, Limits, describe_artifact};
use serde_json::{Value, json};

use crate::cli::Common;
use crate::commands::load_config;
use crate::compile::Compiler;
use crate::config::Config;
use crate::exit::Failed;
use crate::manifest::Manifest;
use crate::quantity::show_bytes;
use crate::screen::{self, safe};
use crate::version::{digest, granted};

/// Flags of `inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A .wasm file; its manifest is read too when it stands beside it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The manifest [default: the .toml of the same name]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    let config = load_config(common)?;
    let wasm = std::fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let engine = Engine::new(EngineConfig { instances_max: 1, memory_bytes_max: 1 << 30 })?;
    // What an attacker wrote meets the compiler in a process of its own here too.
    let compiler = Compiler::new(engine.clone(), config.compile, None);
    let artifact = compiler.artifact(&wasm).map_err(|refusal| Failed(refusal.to_string()))?;
    let description = describe_artifact(&engine, &artifact)?;
    let manifest = read_manifest(&args)?;
    if common.json {
        let document = as_json(&args.file, &wasm, &description, manifest.as_ref(), &config);
        screen::line(&serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    show_file(&args.file, &wasm, &description);
    match &manifest {
        None => screen::line("\nno manifest beside it: it would wait for one, and not be run"),
        Some(manifest) => show_manifest(&wasm, manifest, &config),
    }
    for line in concerns(&description, manifest.as_ref(), &config) {
        screen::line(&format!("\nnot ready: {}", safe(&line)));
    }
    Ok(())
}

fn read_manifest(args: &Args) -> Result<Option<Manifest>> {
    let path = args.manifest.clone().unwrap_or_else(|| args.file.with_extension("toml"));
    if args.manifest.is_none() && !path.is_file() {
        return Ok(None);
    }
    let stem = args.file.file_stem().and_then(|stem| stem.to_str()).unwrap_or("plugin");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (manifest, _) = Manifest::parse(&text, stem).with_context(|| format!("in {}", path.display()))?;
    Ok(Some(manifest))
}

/// What an import gives the plugin, in plain words.
pub(crate) fn meaning(import: &str) -> &'static str {
    let plain = import.split_once('@').map_or(import, |(plain, _)| plain);
    match plain {
        "cofferdam:plugin/types" => "the types of the contract",
        "cofferdam:plugin/log" => "writes lines to the host's log, capped",
        "cofferdam:plugin/config" => "reads its own [config]",
        _ if plain.starts_with("wasi:filesystem") => "sealed: there are no files",
        _ if plain.starts_with("wasi:sockets") => "sealed: there is no network",
        _ if plain.starts_with("wasi:cli/environment") => "sealed: the environment is empty",
        _ if plain.starts_with("wasi:cli/std") => "standard output and error go to the log, input is empty",
        _ if plain.starts_with("wasi:cli/exit") => "ends the call: a failed delivery",
        _ if plain.starts_with("wasi:clocks") => "a coarse clock that belongs to the delivery",
        _ if plain.starts_with("wasi:random") => "random bytes that belong to the delivery",
        _ if plain.starts_with("wasi:") || plain.starts_with("wasi_snapshot_preview1") => "sealed",
        _ => "not offered: it does not load",
    }
}

fn show_file(file: &Path, wasm: &[u8], description: &Description) {
    let kind = match description.abi {
        Some(Abi::Component) => "a component that handles messages (cofferdam:plugin/handler@0.1.0)",
        Some(Abi::Command) => "a program: one message on standard input, events on standard output",
        None => "WebAssembly, but nothing that this host calls",
    };
    screen::line(&format!("{}\n  is       {kind}", safe(&file.display().to_string())));
    screen::line(&format!("  size     {}", show_bytes(wasm.len() as u64)));
    screen::line(&format!("  sha256   {}", Digest::of(wasm)));
    screen::line(&format!("  exports  {}", safe(&description.exports.join(" "))));
    screen::line("");
    let mut table = screen::table(&["imports", "what that gives it"]);
    for import in &description.imports {
        table.add_row([safe(import), meaning(import).to_owned()]);
    }
    screen::line(&if description.imports.is_empty() {
        String::from("imports nothing at all")
    } else {
        table.to_string()
    });
}

fn show_manifest(wasm: &[u8], manifest: &Manifest, config: &Config) {
    let policy = config.policy(&manifest.name);
    let instances = match manifest.instances {
        Instances::Fresh => "fresh: no message meets what another left behind",
        Instances::Reuse => "reuse: what one message leaves behind is there for the next",
    };
    let limits = &manifest.limits;
    let least = |asked: u64, granted: u64| match asked > granted {
        true => format!("{} (asks for {})", show_bytes(granted), show_bytes(asked)),
        false => show_bytes(asked),
    };
    screen::line("");
    let mut table = screen::table(&["its manifest", ""]);
    for (name, value) in [
        ("name", manifest.name.clone()),
        ("version", digest(wasm, manifest).to_string()),
        ("reads", manifest.route.subscribe().join(" ")),
        ("as group", manifest.group.clone()),
        ("emits to", manifest.route.emit().join(" ")),
        ("instances", instances.to_owned()),
        ("memory", least(limits.memory_bytes, policy.ceiling.memory_bytes)),
        ("deadline", humantime::format_duration(limits.deadline.min(policy.ceiling.deadline)).to_string()),
        ("output", format!("{} in {} events at most", show_bytes(limits.output_bytes), limits.events)),
        ("retries", manifest.retry.retries.to_string()),
        ("config", manifest.config.keys().cloned().collect::<Vec<_>>().join(" ")),
    ] {
        table.add_row([name.to_owned(), safe(&value)]);
    }
    screen::line(&table.to_string());
}

/// Why it would not be run as it is.
fn concerns(description: &Description, manifest: Option<&Manifest>, config: &Config) -> Vec<String> {
    let mut concerns = description.refused.clone();
    if description.abi.is_none() {
        concerns.push(String::from("it exports neither cofferdam:plugin/handler@0.1.0 nor a program's entry"));
    }
    if let Some(Err(refusal)) = manifest.map(|manifest| granted(config, manifest)) {
        concerns.push(refusal.to_string());
    }
    concerns
}

/// Every limit of a delivery, by the manifest's names; sizes in bytes.
fn limits_view(limits: &Limits) -> Value {
    json!({
        "memory": limits.memory_bytes, "deadline_ms": limits.deadline.as_millis() as u64, "output": limits.output_bytes,
        "events": limits.events, "message": limits.message_bytes, "log-lines": limits.log_lines, "log": limits.log_bytes,
        "host-calls": limits.host_calls, "table-elements": limits.table_elements, "random": limits.random_bytes,
        "events-per-second": limits.events_per_second, "output-per-second": limits.output_bytes_per_second,
        "stack": cofferdam_sandbox::GUEST_STACK_BYTES, "hops": cofferdam_model::route::HOPS_MAX,
    })
}

fn as_json(file: &Path, wasm: &[u8], description: &Description, manifest: Option<&Manifest>, config: &Config) -> Value {
    let manifest_view = manifest.map(|manifest| {
        json!({
            "name": manifest.name, "digest": digest(wasm, manifest).to_string(), "group": manifest.group,
            "subscribe": manifest.route.subscribe(), "emit": manifest.route.emit(),
            "instances": if manifest.instances == Instances::Reuse { "reuse" } else { "fresh" },
            "limits": limits_view(&manifest.limits.under(&config.policy(&manifest.name).ceiling)),
            "limits_asked": limits_view(&manifest.limits),
            "concurrency": manifest.concurrency, "concurrency_max": config.policy(&manifest.name).concurrency_max,
            "retries": manifest.retry.retries, "config": manifest.config,
        })
    });
    json!({
        "file": file, "bytes": wasm.len(), "sha256": Digest::of(wasm).to_string(),
        "abi": description.abi.map(|abi| abi.to_string()), "imports": description.imports, "exports": description.exports,
        "manifest": manifest_view, "not_ready": concerns(description, manifest, config),
    })
}
