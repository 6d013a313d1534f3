//! A log through all plugins of a folder, in memory: what one emits, the next reads, until nobody reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use cofferdam_model::Event;
use indicatif::HumanCount;
use serde_json::{Value as Json, json};

use super::log::Reader;
use super::{Args, bar, file_name, load};
use crate::candidate::{how_to_write_one, scan};
use crate::cli::Common;
use crate::commands::load_config;
use crate::escape::{safe, safe_cut};
use crate::exit::{Failed, Usage};
use crate::offline::{Ended, Input, run_all};
use crate::screen::{line, note, table};
use crate::version::Version;

/// Runs the logs through the folder.
pub(super) fn run(common: &Common, args: &Args) -> Result<()> {
    let Some(dir) = &args.chain else { return Ok(()) };
    if args.paths.is_empty() {
        bail!(Usage(String::from("name the log that is to go through the plugins; `-` is standard input")));
    }
    let config = load_config(common)?;
    let found = scan(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut plugins = Vec::new();
    for (name, files) in found {
        let candidate = files.read().map_err(|text| Failed(format!("{name}: {text}")))?;
        if candidate.manifest.is_empty() {
            let wasm = files.wasm.display();
            bail!(Usage(format!(
                "{wasm} has no manifest, neither inside it nor beside it: {}",
                how_to_write_one(&name)
            )));
        }
        plugins.push(load(&config, &candidate, args.threads()).with_context(|| format!("in {name}"))?);
    }
    if plugins.is_empty() {
        bail!(Usage(format!("there is no plugin in {}", dir.display())));
    }
    let source = source(args, &plugins)?;
    let mut files = Files::new(args.out.as_deref())?;
    let mut chain = Chain {
        plugins: &plugins,
        threads: args.threads(),
        counts: BTreeMap::new(),
        failures: Vec::new(),
        show: args.show,
    };
    let mut reader = Reader::new(&args.paths, args.clock.as_deref());
    let bar = bar(Reader::total(&args.paths), "testing");
    let (began, mut events) = (Instant::now(), 0);
    loop {
        let batch = reader.batch()?;
        if batch.is_empty() {
            break;
        }
        events += batch.len() as u64;
        chain.run(&source, batch, &mut files)?;
        bar.set_position(reader.read.load(Ordering::Relaxed));
    }
    bar.finish_and_clear();
    files.finish()?;
    reader.say_what_was_left();
    let seconds = began.elapsed().as_secs_f64();
    chain.report(common, &source, events, seconds, &files)?;
    match chain.failures.is_empty() {
        true => Ok(()),
        false => bail!(Failed(String::from("some messages ended in a fault of a plugin"))),
    }
}

/// The stream that the log stands for: the one that was named, or the only one that is read and that nobody here emits.
fn source(args: &Args, plugins: &[Version]) -> Result<String> {
    let reads: BTreeSet<&String> = plugins.iter().flat_map(|plugin| plugin.manifest.route.subscribe()).collect();
    if let Some(stream) = &args.stream {
        if !reads.contains(stream) {
            let reads: Vec<&str> = reads.iter().map(|stream| stream.as_str()).collect();
            bail!(Usage(format!("no plugin here reads {stream:?}; they read {}", reads.join(", "))));
        }
        return Ok(stream.clone());
    }
    let emits: BTreeSet<&String> = plugins.iter().flat_map(|plugin| plugin.manifest.route.emit()).collect();
    let sources: Vec<&str> = reads.difference(&emits).map(|stream| stream.as_str()).collect();
    match sources.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => bail!(Usage(String::from("every stream that is read here is also emitted here: name one with --stream"))),
        several => {
            bail!(Usage(format!("say which stream the log stands for: --stream {}", several.join(" or --stream "))))
        }
    }
}

/// Messages of one stream that have not been handed to its readers.
struct Wave {
    stream: String,
    inputs: Vec<Input>,
}

struct Chain<'a> {
    plugins: &'a [Version],
    threads: usize,
    /// How messages ended, by plugin and word.
    counts: BTreeMap<(String, &'static str), u64>,
    /// The first faults, in words.
    failures: Vec<String>,
    show: usize,
}

impl Chain<'_> {
    fn run(&mut self, source: &str, inputs: Vec<Input>, files: &mut Files) -> Result<()> {
        let mut waves = vec![Wave { stream: source.to_owned(), inputs }];
        while let Some(wave) = waves.pop() {
            let mut emitted: BTreeMap<String, Vec<Input>> = BTreeMap::new();
            for plugin in self.plugins {
                let manifest = &plugin.manifest;
                let reads = manifest.subscribed.iter().find(|sub| *sub.subscription.stream == *wave.stream);
                let Some(reads) = reads else { continue };
                let ran = run_all(&plugin.plugin, &reads.subscription, &wave.inputs, self.threads, None)?;
                for (input, ran) in wave.inputs.iter().zip(ran) {
                    *self.counts.entry((manifest.name.clone(), ran.ended.word())).or_default() += 1;
                    match ran.ended {
                        Ended::Events(events) => {
                            for event in events {
                                let next = passed_on(&event, input, ran.message.hops() + 1);
                                files.write(&event, &manifest.name)?;
                                emitted.entry(event.stream).or_default().push(next);
                            }
                        }
                        Ended::Fault(fault) => {
                            if self.failures.len() < self.show.max(1) {
                                let payload = safe_cut(&input.payload, 120);
                                self.failures.push(format!(
                                    "{}: {}: {} (its message: {payload})",
                                    manifest.name,
                                    fault.code(),
                                    safe(&fault.to_string())
                                ));
                            }
                        }
                        Ended::NotWanted | Ended::Retry(_) | Ended::Reject(_) => {}
                    }
                }
            }
            waves.extend(emitted.into_iter().map(|(stream, inputs)| Wave { stream, inputs }));
        }
        Ok(())
    }

    fn report(&self, common: &Common, source: &str, events: u64, seconds: f64, files: &Files) -> Result<()> {
        if common.json {
            let outcomes: Vec<Json> = self
                .counts
                .iter()
                .map(|((plugin, word), count)| json!({"plugin": plugin, "outcome": word, "messages": count}))
                .collect();
            let document = json!({
                "source": source, "events": events, "seconds": seconds, "outcomes": outcomes, "streams": files.counts, "faults": self.failures,
            });
            line(&serde_json::to_string_pretty(&document)?);
            return Ok(());
        }
        let mut rows = table(&["plugin", "outcome", "messages"]);
        for ((plugin, word), count) in &self.counts {
            rows.add_row([safe(plugin), (*word).to_owned(), HumanCount(*count).to_string()]);
        }
        line(&rows.to_string());
        if !files.counts.is_empty() {
            let mut rows = table(&["stream", "events", "file"]);
            for (stream, count) in &files.counts {
                let file = files
                    .dir
                    .map_or_else(|| String::from("-"), |dir| dir.join(file_name(stream)).display().to_string());
                rows.add_row([safe(stream), HumanCount(*count).to_string(), safe(&file)]);
            }
            line(&format!("\n{rows}"));
        }
        line(&format!("\n{} events of {} in {seconds:.2} s", HumanCount(events), safe(source)));
        self.failures.iter().for_each(|failure| note(failure));
        Ok(())
    }
}

/// An event as the entry that the next plugin reads.
fn passed_on(event: &Event, input: &Input, hops: u32) -> Input {
    let mut attributes = event.attributes.clone();
    attributes.extend(event.key.clone().map(|key| (String::from("key"), key)));
    attributes.push((String::from("cofferdam_hops"), hops.to_string()));
    Input { payload: event.payload.clone(), at_ms: input.at_ms, seq: input.seq, attributes }
}

fn cannot_write(dir: &Path, stream: &str) -> String {
    format!("cannot write {}", dir.join(file_name(stream)).display())
}

/// A file for each stream.
struct Files<'a> {
    dir: Option<&'a Path>,
    open: BTreeMap<String, BufWriter<File>>,
    counts: BTreeMap<String, u64>,
}

impl<'a> Files<'a> {
    fn new(dir: Option<&'a Path>) -> Result<Self> {
        if let Some(dir) = dir {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(Files { dir, open: BTreeMap::new(), counts: BTreeMap::new() })
    }

    fn write(&mut self, event: &Event, plugin: &str) -> Result<()> {
        *self.counts.entry(event.stream.clone()).or_default() += 1;
        let Some(dir) = self.dir else { return Ok(()) };
        if !self.open.contains_key(&event.stream) {
            let path = dir.join(file_name(&event.stream));
            let file = File::create(path).with_context(|| cannot_write(dir, &event.stream))?;
            self.open.insert(event.stream.clone(), BufWriter::new(file));
        }
        if let Some(file) = self.open.get_mut(&event.stream) {
            let payload: Json = serde_json::from_str(&event.payload).unwrap_or(Json::Null);
            let written = json!({"plugin": plugin, "payload": payload, "attributes": event.attributes});
            writeln!(file, "{written}").with_context(|| cannot_write(dir, &event.stream))?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        for (stream, file) in &mut self.open {
            file.flush().with_context(|| cannot_write(self.dir.unwrap_or(Path::new("")), stream))?;
        }
        Ok(())
    }
}
