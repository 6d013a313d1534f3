//! `cofferdam inspect`: what a plugin is, what it asks for and what it could do. It is read and compiled (in the jail), nothing of it
//! is run, and no configuration of the working directory is read.

mod risks;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cofferdam_model::route::HOPS_MAX;
use cofferdam_sandbox::{Abi, Description, Digest, Engine, EngineConfig, Instances, Limits, describe};
use serde_json::{Value, json};

use crate::candidate::{Candidate, Files};
use crate::cli::Common;
use crate::commands::load_config;
use crate::compile::Compiler;
use crate::config::Config;
use crate::escape::{safe, safe_cut};
use crate::exit::{Failed, Usage};
use crate::manifest::{Manifest, further_limits};
use crate::quantity::show_bytes;
use crate::screen;
use crate::version::{cuts, digest, granted};

/// Memories, tools and sections that are shown each; a file may claim thousands.
const LINES_MAX: usize = 20;
/// Imports that are shown; the JSON has more.
const IMPORTS_SHOWN: usize = 100;

/// Flags of `inspect`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cofferdam inspect vendor.wasm\n  cofferdam inspect vendor.wasm --json | jq .risks"
)]
pub(crate) struct Args {
    /// A .wasm file; its manifest and its signature are read too when they stand beside it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The manifest [default: the .toml of the same name, or the one inside the file]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
}

/// Everything that was found.
struct Found {
    candidate: Candidate,
    description: Description,
    manifest: Option<Manifest>,
    /// The sha256 that the manifest gives of the wasm.
    sha256: Option<String>,
    /// How long it took to compile, or why it does not.
    compiled: Result<Duration, String>,
    /// What its signature says, or what is wrong with it.
    signed: Result<String, String>,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    let config = load_config(common)?;
    let found = look(&config, &args)?;
    if common.json {
        screen::line(&serde_json::to_string_pretty(&as_json(&args.file, &found, &config))?);
        return Ok(());
    }
    show_file(&args.file, &found);
    match &found.manifest {
        None => screen::line("\nno manifest beside it or inside it: it would wait for one, and not be run"),
        Some(manifest) => show_manifest(&found.candidate, manifest, &config),
    }
    screen::line("\nwhat it could do");
    for risk in risks::risks(&found, &config) {
        screen::line(&format!("  - {}", safe(&risk)));
    }
    for line in concerns(&found, &config) {
        screen::line(&format!("\nnot ready: {}", safe(&line)));
    }
    Ok(())
}

fn look(config: &Config, args: &Args) -> Result<Found> {
    let stem = args.file.file_stem().and_then(|stem| stem.to_str()).unwrap_or("plugin");
    let mut files = Files::beside(stem, args.file.clone());
    if let Some(manifest) = &args.manifest {
        files.manifest = Some(manifest.clone());
    }
    let candidate = files.read().map_err(Usage)?;
    let description = describe(&candidate.wasm).map_err(|error| Failed(safe(&error.to_string())))?;
    let (manifest, sha256) = match candidate.manifest.is_empty() {
        true => (None, None),
        false => {
            let place = files.manifest.as_deref().unwrap_or(&args.file);
            let parsed = Manifest::written(&candidate.manifest, stem);
            let (manifest, sha256) = parsed.with_context(|| format!("in {}", place.display()))?;
            (Some(manifest), sha256)
        }
    };
    let engine = Engine::new(EngineConfig { instances_max: 1, memory_bytes_max: 1 << 30 })?;
    let (compiler, began) = (Compiler::new(engine, config.compile, None), Instant::now());
    let compiled = compiler.artifact(&candidate.wasm);
    let compiled = compiled.map(|_| began.elapsed()).map_err(|refusal| refusal.to_string());
    let signed = config.signers.check(&candidate.wasm, candidate.signature.as_deref());
    let signed = signed.map(|signed| signed.to_string());
    Ok(Found { candidate, description, manifest, sha256, compiled, signed })
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

fn show_file(file: &Path, found: &Found) {
    let Found { candidate, description, compiled, signed, .. } = found;
    let kind = match description.abi {
        Some(Abi::Component) => "a component that handles messages (cofferdam:plugin/handler@0.1.0)",
        Some(Abi::Command) => "a program: one message on standard input, events on standard output",
        None => "WebAssembly, but nothing that this host calls",
    };
    screen::line(&format!("{}\n  is       {kind}", safe(&file.display().to_string())));
    screen::line(&format!("  size     {}", show_bytes(candidate.wasm.len() as u64)));
    screen::line(&format!("  sha256   {}", Digest::of(&candidate.wasm)));
    screen::line(&format!("  signed   {}", safe_cut(signed.as_ref().unwrap_or_else(|text| text), 300)));
    let Description { functions, modules, code_bytes, data_bytes, .. } = description;
    let (code, data) = (show_bytes(*code_bytes), show_bytes(*data_bytes));
    let compiles = match compiled {
        Ok(took) => format!("; compiles in {:.2} s", took.as_secs_f64()),
        Err(_) => String::new(),
    };
    screen::line(&format!("  code     {functions} functions in {modules} modules, {code}; data {data}{compiles}"));
    for (least, most) in description.memories.iter().take(LINES_MAX) {
        let most = most.map_or_else(|| String::from("its limit"), show_bytes);
        screen::line(&format!("  memory   {} to {most}", show_bytes(*least)));
    }
    for (field, name, version) in description.producers.iter().take(LINES_MAX) {
        screen::line(&format!("  made by  {}", safe_cut(&format!("{name} {version} ({field})"), 120)));
    }
    for (name, bytes) in description.custom.iter().take(LINES_MAX) {
        screen::line(&format!("  section  {} {}", safe_cut(name, 80), show_bytes(*bytes)));
    }
    screen::line(&format!("  exports  {}", safe_cut(&description.exports.join(" "), 400)));
    screen::line("");
    let mut table = screen::table(&["imports", "what that gives it"]);
    for import in description.imports.iter().take(IMPORTS_SHOWN) {
        table.add_row([safe_cut(import, 120), meaning(import).to_owned()]);
    }
    screen::line(&if description.imports.is_empty() {
        String::from("imports nothing at all")
    } else {
        table.to_string()
    });
}

fn show_manifest(candidate: &Candidate, manifest: &Manifest, config: &Config) {
    let instances = match manifest.instances {
        Instances::Fresh => "fresh: no message meets what another left behind",
        Instances::Reuse => "reuse: what one message leaves behind is there for the next",
    };
    let limits = manifest.limits.under(&config.policy(&manifest.name).ceiling);
    screen::line("");
    let place = if candidate.embedded { "its manifest, inside it" } else { "its manifest" };
    let mut table = screen::table(&[place, ""]);
    for (name, value) in [
        ("name", manifest.name.clone()),
        ("version", digest(&candidate.wasm, manifest).to_string()),
        ("reads", manifest.route.subscribe().join(" ")),
        ("as group", manifest.group.clone()),
        ("emits to", manifest.route.emit().join(" ")),
        ("instances", instances.to_owned()),
        ("memory", show_bytes(limits.memory_bytes)),
        ("deadline", humantime::format_duration(limits.deadline).to_string()),
        ("output", format!("{} in {} events at most", show_bytes(limits.output_bytes), limits.events)),
        ("retries", manifest.retry.retries.to_string()),
        ("config", manifest.config.keys().cloned().collect::<Vec<_>>().join(" ")),
    ] {
        table.add_row([name.to_owned(), safe(&value)]);
    }
    for cut in cuts(config, manifest) {
        table.add_row([String::from("cut"), safe(&cut.to_string())]);
    }
    screen::line(&table.to_string());
}

/// Why it would not be run as it is.
fn concerns(found: &Found, config: &Config) -> Vec<String> {
    let mut concerns = found.description.refused.clone();
    concerns.extend(found.compiled.as_ref().err().cloned());
    if found.description.abi.is_none() {
        concerns.push(String::from("it exports neither cofferdam:plugin/handler@0.1.0 nor a program's entry"));
    }
    let sha256 = found.candidate.wasm_digest().to_string();
    if found.sha256.as_ref().is_some_and(|wanted| !wanted.eq_ignore_ascii_case(&sha256)) {
        concerns.push(format!("the wasm's sha256 is {sha256}, and the manifest says otherwise: copy the file again"));
    }
    if let Some(Err(refusal)) = found.manifest.as_ref().map(|manifest| granted(config, manifest)) {
        concerns.push(refusal.to_string());
    }
    concerns.extend(found.signed.as_ref().err().map(|text| format!("signature: {text}")));
    concerns
}

/// Every limit of a delivery, by the manifest's names; sizes in bytes.
fn limits_view(limits: &Limits) -> Value {
    let beside = [
        ("memory", limits.memory_bytes),
        ("deadline_ms", limits.deadline.as_millis() as u64),
        ("stack", cofferdam_sandbox::GUEST_STACK_BYTES as u64),
        ("hops", HOPS_MAX.into()),
    ];
    let all = further_limits(limits).into_iter().chain(beside.map(|(key, value)| (key, Some(value))));
    Value::Object(all.map(|(key, value)| (key.to_owned(), json!(value))).collect())
}

fn as_json(file: &Path, found: &Found, config: &Config) -> Value {
    let Found { candidate, description, manifest, compiled, signed, sha256: _ } = found;
    let wasm = &candidate.wasm;
    let manifest_view = manifest.as_ref().map(|manifest| {
        json!({
            "name": manifest.name, "digest": digest(wasm, manifest).to_string(), "group": manifest.group,
            "embedded": candidate.embedded, "subscribe": manifest.route.subscribe(), "emit": manifest.route.emit(),
            "instances": if manifest.instances == Instances::Reuse { "reuse" } else { "fresh" },
            "limits": limits_view(&manifest.limits.under(&config.policy(&manifest.name).ceiling)),
            "limits_asked": limits_view(&manifest.limits),
            "concurrency": manifest.concurrency, "concurrency_max": config.policy(&manifest.name).concurrency_max,
            "retries": manifest.retry.retries, "config": manifest.config,
        })
    });
    let tools = description.producers.iter();
    let tools = tools.map(|(field, name, version)| json!({"field": field, "name": name, "version": version}));
    let memories = description.memories.iter();
    let memories = memories.map(|(least, most)| json!({"min_bytes": least, "max_bytes": most}));
    let custom = description.custom.iter().map(|(name, bytes)| json!({"name": name, "bytes": bytes}));
    json!({
        "file": file, "bytes": wasm.len(), "sha256": Digest::of(wasm).to_string(), "signature": signed.as_ref().ok(),
        "abi": description.abi.map(|abi| abi.to_string()), "imports": description.imports, "exports": description.exports,
        "modules": description.modules, "functions": description.functions, "code_bytes": description.code_bytes,
        "function_bytes_max": description.function_bytes_max, "memories": memories.collect::<Vec<_>>(),
        "data_bytes": description.data_bytes, "data_entropy": description.data_entropy,
        "custom_sections": custom.collect::<Vec<_>>(), "producers": tools.collect::<Vec<_>>(),
        "has_names": description.has_names, "has_start": description.has_start,
        "compile_seconds": compiled.as_ref().ok().map(Duration::as_secs_f64),
        "manifest": manifest_view, "risks": risks::risks(found, config), "not_ready": concerns(found, config),
    })
}
