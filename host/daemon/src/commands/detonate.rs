//! `cofferdam detonate`: unknown code over some events, in a process that can reach nothing, and one page of what it did. It is
//! compiled in a jail, run in a jail, needs no manifest, and no configuration is read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cofferdam_model::route::check_stream_name;
use cofferdam_model::{Fault, Message, Outcome, ReasonCode};
use cofferdam_sandbox::record::{Calls, is_denied};
use cofferdam_sandbox::{Abi, Description, Digest, Engine, EngineConfig, Limits, Report, describe};
use cofferdam_streams::{Decoded, Subscription, decode};
use indicatif::HumanCount;
use serde_json::{Value as Json, json};

use crate::apart::Stranger;
use crate::cli::Common;
use crate::commands::inspect::meaning;
use crate::commands::test::log::{Reader, add_calls, show_calls};
use crate::compile::Compiler;
use crate::config::CompileBounds;
use crate::escape::{safe, safe_cut};
use crate::exit::Usage;
use crate::offline::entry;
use crate::quantity::{show_bytes, span_argument};
use crate::screen::{line, progress, table};

/// Streams that it is let emit to, so that what it does next can be seen: each costs a new process.
const STREAMS_MAX: usize = 16;
/// Different lines and failures that are kept of what it says.
const KEPT: usize = 12;

/// Flags of `detonate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cofferdam detonate unknown.wasm --input captured.jsonl\n  \
    zcat cowrie.json.gz | head -500 | cofferdam detonate unknown.wasm --input - --report out.json")]
pub(crate) struct Args {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Events: JSON lines, plain or packed with gzip; `-` is standard input
    #[arg(long, value_name = "EVENTS", required = true)]
    input: Vec<PathBuf>,
    /// How long it may run in all
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span_argument)]
    time: Duration,
    /// How long it may run for one event
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = span_argument)]
    deadline: Duration,
    /// The stream that the events are said to be from
    #[arg(long, value_name = "STREAM", default_value = "stream:input")]
    stream: String,
    /// Write all that was seen as JSON, too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What was seen.
#[derive(Default)]
struct Seen {
    notes: Vec<String>,
    /// Why it did not compile or start.
    refused: Option<String>,
    /// Which functions of the host it called.
    calls: Calls,
    events: u64,
    left: u64,
    outcomes: BTreeMap<String, u64>,
    /// Events and bytes, by the stream that they were for.
    outputs: BTreeMap<String, (u64, u64)>,
    /// The first words of each kind of failure.
    failures: BTreeMap<String, String>,
    log_lines: u64,
    log: Vec<String>,
    took: Duration,
    longest: Duration,
    memory_bytes: u64,
    deaths: u64,
}

pub(crate) fn run(common: &Common, args: Args) -> Result<()> {
    check_stream_name(&args.stream).map_err(|error| Usage(format!("--stream: {error}")))?;
    let wasm = std::fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let engine = Engine::new(EngineConfig { instances_max: 1, memory_bytes_max: 1 << 30 })?;
    let mut seen = Seen::default();
    let compiler = Compiler::new(engine, CompileBounds::default(), None);
    // Read, not compiled: what cannot be compiled can still be looked at.
    let description = describe(&wasm).ok();
    match compiler.artifact(&wasm) {
        Err(refusal) => seen.refused = Some(refusal.to_string()),
        Ok(artifact) => {
            let limits = Limits { deadline: args.deadline, ..Limits::default() };
            let mut cell =
                Cell { artifact: &artifact, digest: Digest::of(&wasm), limits, emit: Vec::new(), stranger: None };
            cell.run(&args, &mut seen)?;
        }
    }
    // A page about nothing would read like an acquittal.
    if seen.events == 0 && seen.refused.is_none() {
        let why = match seen.left {
            0 => "the input holds no event",
            _ => "its time was up before the first event: give it more with --time",
        };
        bail!(Usage(format!("nothing was run, and so nothing was learned: {why}")));
    }
    let risks = risks(&seen, description.as_ref());
    let document = as_json(&args, &wasm, description.as_ref(), &seen, &risks);
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&document)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if common.json {
        line(&serde_json::to_string_pretty(&document)?);
    } else {
        show(&args, &wasm, description.as_ref(), &seen, &risks);
    }
    Ok(())
}

/// The code, and the process that it runs in.
struct Cell<'a> {
    artifact: &'a cofferdam_sandbox::Artifact,
    digest: Digest,
    limits: Limits,
    /// Where its events may go: whatever it has asked for so far.
    emit: Vec<String>,
    stranger: Option<Stranger>,
}

impl Cell<'_> {
    fn run(&mut self, args: &Args, seen: &mut Seen) -> Result<()> {
        let subscription = Subscription::plain(&args.stream);
        let mut reader = Reader::new(&args.input, None);
        let bar = progress(Reader::total(&args.input), "detonating");
        let began = Instant::now();
        loop {
            let batch = reader.batch()?;
            if batch.is_empty() {
                break;
            }
            for input in batch {
                if began.elapsed() >= args.time || seen.refused.is_some() {
                    seen.left += 1;
                    continue;
                }
                let entry = entry(&input, &subscription);
                let id = entry.id;
                if let Decoded::Message(message) = decode(entry, id, &subscription) {
                    seen.events += 1;
                    self.one(&message, args, seen);
                }
            }
            bar.set_position(reader.read.load(std::sync::atomic::Ordering::Relaxed));
        }
        bar.finish_and_clear();
        reader.say_what_was_left();
        Ok(())
    }

    /// One message; again when it asks for a stream that it had not asked for, because everything that it wants is to be seen.
    fn one(&mut self, message: &Message, args: &Args, seen: &mut Seen) {
        loop {
            if self.stranger.is_none() {
                match Stranger::start(self.artifact, self.digest, self.limits, &args.stream, &self.emit) {
                    Ok((stranger, notes)) => {
                        seen.notes = notes;
                        self.stranger = Some(stranger);
                    }
                    Err(error) => {
                        seen.refused = Some(format!("{error:#}"));
                        return;
                    }
                }
            }
            let Some(stranger) = &mut self.stranger else { return };
            match stranger.ask(message) {
                Err(text) => {
                    // The process is gone, and with it whatever it had become.
                    self.stranger = None;
                    seen.deaths += 1;
                    seen.note("died", &text);
                    return;
                }
                Ok(report) => match self.wish(&report) {
                    Some(stream) => {
                        self.emit.push(stream);
                        self.stranger = None;
                    }
                    None => return seen.add(report),
                },
            }
        }
    }

    /// A stream that it wants to emit to and that nobody has let it yet.
    fn wish(&self, report: &Report) -> Option<String> {
        let Err(Fault::BadOutput { code: ReasonCode::NotGranted, text }) = &report.result else { return None };
        // The text quotes the name as Rust does; a name that needs escapes is no stream's.
        let stream = text.split('"').nth(1)?.to_owned();
        let fits = self.emit.len() < STREAMS_MAX && !self.emit.contains(&stream);
        (fits && check_stream_name(&stream).is_ok()).then_some(stream)
    }
}

impl Seen {
    fn note(&mut self, word: &str, text: &str) {
        *self.outcomes.entry(word.to_owned()).or_default() += 1;
        if !text.is_empty() && self.failures.len() < KEPT {
            self.failures.entry(word.to_owned()).or_insert_with(|| text.to_owned());
        }
    }

    fn add(&mut self, report: Report) {
        self.took += report.took;
        self.longest = self.longest.max(report.took);
        self.memory_bytes = self.memory_bytes.max(report.memory_bytes);
        self.log_lines += report.log.len() as u64;
        add_calls(&mut self.calls, &report.calls);
        for logged in report.log {
            if self.log.len() < KEPT && !self.log.contains(&logged.line) {
                self.log.push(logged.line);
            }
        }
        match report.result {
            Ok(Outcome::Events(events)) => {
                self.note(if events.is_empty() { "filtered" } else { "events" }, "");
                for event in events {
                    let (count, bytes) = self.outputs.entry(event.stream).or_default();
                    *count += 1;
                    *bytes += event.payload.len() as u64;
                }
            }
            Ok(Outcome::Retry { reason, .. }) => self.note("retry", &reason),
            Ok(Outcome::Reject { reason }) => self.note("reject", &reason),
            Err(fault) => self.note(fault.code().as_str(), &fault.to_string()),
        }
    }

    fn count(&self, word: &str) -> u64 {
        self.outcomes.get(word).copied().unwrap_or(0)
    }
}

/// What was seen, in plain words, the worst first.
fn risks(seen: &Seen, description: Option<&Description>) -> Vec<String> {
    let mut risks = Vec::new();
    let mut say = |count: u64, text: &str| {
        if count > 0 {
            risks.push(format!("{text} ({} of {} events)", HumanCount(count), HumanCount(seen.events)));
        }
    };
    say(seen.deaths, "it ended the process that ran it: a hole, or somebody looking for one; do not run it");
    say(
        seen.count("reserved-stream") + seen.count("bad-stream-name"),
        "it tried to write to the host's own keys, or to names that are none",
    );
    say(seen.count("reserved-field"), "it tried to forge fields that are the host's");
    say(seen.count("deadline"), "it ran until it was stopped");
    say(
        seen.count("memory") + seen.count("tables") + seen.count("stack"),
        "it took memory or stack until it was refused more",
    );
    say(seen.count("host-calls") + seen.count("random") + seen.count("call-bytes"), "it flooded the host with calls");
    say(seen.count("output-limit") + seen.count("output-rate"), "it answered with more than a handler may");
    let denied: u64 = seen.calls.iter().filter(|(name, _)| is_denied(name)).map(|(_, count)| count).sum();
    say(seen.count("trap") + seen.count("bad-output"), "it failed: a bug, or a trigger that these events do not hold");
    if denied > 0 {
        let names: Vec<&str> = seen.calls.keys().map(|name| name.as_ref()).filter(|name| is_denied(name)).collect();
        risks.push(format!(
            "it reached for files or the network {} times, and got nothing: {}",
            HumanCount(denied),
            names.join(", ")
        ));
    }
    if let Some(refused) = &seen.refused {
        risks.push(format!("it did not run: {refused}"));
    }
    let imports = description.map(|description| description.imports.as_slice()).unwrap_or_default();
    for (interface, what) in
        [("wasi:sockets", "network connections"), ("wasi:http", "HTTP requests"), ("wasi:filesystem/types", "files")]
    {
        if imports.iter().any(|import| import.starts_with(interface)) {
            risks.push(format!("it was built with {what} in mind ({interface}); many toolchains add that unasked, and here it is sealed"));
        }
    }
    for refused in description.map(|description| description.refused.as_slice()).unwrap_or_default() {
        risks.push(format!("it asks for what no host of ours offers: {refused}"));
    }
    if risks.is_empty() {
        risks.push(String::from(
            "nothing out of the ordinary was seen with these events, which proves nothing of others",
        ));
    }
    risks
}

fn kind(description: Option<&Description>) -> &'static str {
    match description.map(|description| description.abi) {
        Some(Some(Abi::Component)) => "a component that handles messages",
        Some(Some(Abi::Command)) => "a program that reads a message from standard input",
        Some(None) => "WebAssembly, but nothing that this host calls",
        None => "nothing that can be read as WebAssembly",
    }
}

fn show(args: &Args, wasm: &[u8], description: Option<&Description>, seen: &Seen, risks: &[String]) {
    line(&format!("{}\n  is       {}", safe(&args.file.display().to_string()), kind(description)));
    line(&format!("  size     {}\n  sha256   {}", show_bytes(wasm.len() as u64), Digest::of(wasm)));
    let mean = seen.took.as_secs_f64() * 1e3 / (seen.events.max(1) as f64);
    line(&format!(
        "  ran      {} events in {:.2} s of processor time; {mean:.2} ms each, at most {:.1} ms; memory at most {}",
        HumanCount(seen.events),
        seen.took.as_secs_f64(),
        seen.longest.as_secs_f64() * 1e3,
        show_bytes(seen.memory_bytes)
    ));
    if seen.left > 0 {
        line(&format!("  not run  {} events: its time was up, or it did not start", HumanCount(seen.left)));
    }
    let imports = description.map(|description| description.imports.as_slice()).unwrap_or_default();
    if !imports.is_empty() {
        let mut rows = table(&["it asks for", "and gets"]);
        for import in imports {
            rows.add_row([safe_cut(import, 60), meaning(import).to_owned()]);
        }
        line(&format!("\n{rows}"));
    }
    if seen.events > 0 {
        show_calls(&seen.calls);
    }
    if !seen.outcomes.is_empty() {
        let mut rows = table(&["outcome", "events", "in its words, or the host's"]);
        for (word, count) in &seen.outcomes {
            let text = seen.failures.get(word).map(|text| safe_cut(text, 140)).unwrap_or_default();
            rows.add_row([safe(word), HumanCount(*count).to_string(), text]);
        }
        line(&format!("\n{rows}"));
    }
    if !seen.outputs.is_empty() {
        let mut rows = table(&["it emits to", "events", "bytes"]);
        for (stream, (count, bytes)) in &seen.outputs {
            rows.add_row([safe_cut(stream, 80), HumanCount(*count).to_string(), show_bytes(*bytes)]);
        }
        line(&format!("\n{rows}"));
    }
    if seen.log_lines > 0 {
        line(&format!("\nit logged {} lines, among them:", HumanCount(seen.log_lines)));
        seen.log.iter().for_each(|logged| line(&format!("  {}", safe_cut(logged, 140))));
    }
    line("\nwhat to make of it");
    risks.iter().for_each(|risk| line(&format!("  - {}", safe_cut(risk, 300))));
    seen.notes.iter().for_each(|note| line(&format!("  - this machine's jail is not whole: {}", safe(note))));
}

fn as_json(args: &Args, wasm: &[u8], description: Option<&Description>, seen: &Seen, risks: &[String]) -> Json {
    let outputs: serde_json::Map<_, _> = seen
        .outputs
        .iter()
        .map(|(stream, (count, bytes))| (stream.clone(), json!({"events": count, "bytes": bytes})))
        .collect();
    json!({
        "file": args.file, "bytes": wasm.len(), "sha256": Digest::of(wasm).to_string(), "is": kind(description),
        "imports": description.map(|d| &d.imports), "exports": description.map(|d| &d.exports),
        "refused": seen.refused, "events": seen.events, "not_run": seen.left, "outcomes": seen.outcomes, "failures": seen.failures,
        "host_calls": seen.calls, "outputs": outputs, "log_lines": seen.log_lines, "log": seen.log, "seconds": seen.took.as_secs_f64(),
        "longest_ms": seen.longest.as_secs_f64() * 1e3, "memory_bytes": seen.memory_bytes, "processes_that_died": seen.deaths,
        "jail_lacks": seen.notes, "risks": risks,
    })
}
