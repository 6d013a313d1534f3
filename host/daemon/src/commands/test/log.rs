//! A log through one plugin: read, run in batches on all threads, counted, shown.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cofferdam_model::Fault;
use cofferdam_sandbox::record::{Calls, is_denied};
use cofferdam_streams::Subscription;
use hdrhistogram::Histogram;
use indicatif::HumanCount;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value as Json, json};

use super::{Args, bar};
use crate::cases::BEGAN_MS;
use crate::cli::Common;
use crate::escape::{safe, safe_cut};
use crate::exit::Usage;
use crate::json_lines::{JsonLines, Line};
use crate::offline::{Ended, Input, Ran, run_all};
use crate::quantity::show_bytes;
use crate::screen::{line, note, table};
use crate::version::Version;

/// Lines of one batch.
const BATCH: usize = 16_384;
/// Bytes of one batch.
const BATCH_BYTES: usize = 32 << 20;
/// Log lines of a failed message that are shown.
const LOG_SHOWN: usize = 5;

/// The value of `--clock`, as the pointer that it names.
pub(super) fn clock_argument(text: &str) -> Result<String, String> {
    match text.strip_prefix("from:") {
        Some(pointer) if pointer.starts_with('/') => Ok(pointer.to_owned()),
        _ => Err(String::from("write from: and a JSON pointer, such as from:/timestamp")),
    }
}

/// Reads logs into batches of inputs.
pub(crate) struct Reader<'a> {
    files: std::slice::Iter<'a, PathBuf>,
    open: Option<JsonLines>,
    clock: Option<&'a str>,
    /// The time of the last line, for one that has none.
    now_ms: u64,
    /// Events read so far.
    count: u64,
    pub(crate) read: Arc<AtomicU64>,
    pub(super) refused: u64,
    pub(super) timeless: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(files: &'a [PathBuf], clock: Option<&'a str>) -> Self {
        let read = Arc::default();
        Reader { files: files.iter(), open: None, clock, now_ms: BEGAN_MS, count: 0, read, refused: 0, timeless: 0 }
    }

    /// Bytes of all files, as far as they are known.
    pub(crate) fn total(files: &[PathBuf]) -> u64 {
        files.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|meta| meta.len()).sum()
    }

    /// The next events; none at the end.
    pub(crate) fn batch(&mut self) -> Result<Vec<Input>> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Some(lines) = &mut self.open else {
                let Some(file) = self.files.next() else { break };
                let opened = JsonLines::open(file, self.read.clone());
                self.open = Some(opened.with_context(|| format!("cannot read {}", file.display()))?);
                continue;
            };
            match lines.next()? {
                None => self.open = None,
                Some(Line::Nothing) => {}
                Some(Line::Refused(refused)) => {
                    self.refused += 1;
                    if self.refused <= 5 {
                        note(&refused.to_string());
                    }
                }
                Some(Line::Event(payload)) => {
                    bytes += payload.len();
                    if let Some(pointer) = self.clock {
                        match time_of(&payload, pointer) {
                            Some(ms) => self.now_ms = ms,
                            None => self.timeless += 1,
                        }
                    }
                    let (at_ms, seq) = (self.now_ms, self.count);
                    self.count += 1;
                    batch.push(Input { payload, at_ms, seq, attributes: Vec::new() });
                }
            }
        }
        Ok(batch)
    }

    /// Says what was passed over.
    pub(crate) fn say_what_was_left(&self) {
        if self.refused > 0 {
            note(&format!("{} lines are no JSON and were left out", HumanCount(self.refused)));
        }
        if self.timeless > 0 {
            let pointer = self.clock.unwrap_or_default();
            note(&format!("{} lines have no time at {pointer}: the line before gave it", HumanCount(self.timeless)));
        }
    }
}

/// The time that stands in a payload: RFC 3339, the same without a zone (taken as UTC), or seconds or milliseconds since 1970.
fn time_of(payload: &str, pointer: &str) -> Option<u64> {
    let value: Json = serde_json::from_str(payload).ok()?;
    match value.pointer(pointer)? {
        Json::Number(number) => {
            let number = number.as_f64().filter(|number| *number >= 0.0)?;
            // Seconds since 1970 reach this in the year 5138, milliseconds did in 1973.
            Some(if number < 1e11 { number * 1e3 } else { number } as u64)
        }
        Json::String(text) => {
            let zoned = text.parse::<Timestamp>().ok();
            let plain =
                || text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp());
            u64::try_from(zoned.or_else(plain)?.as_millisecond()).ok()
        }
        _ => None,
    }
}

/// What a plugin made of a log.
struct Totals {
    by_word: BTreeMap<&'static str, u64>,
    by_stream: BTreeMap<String, (u64, u64)>,
    messages: u64,
    faults: u64,
    times: Histogram<u64>,
    memory_bytes: u64,
    calls: Calls,
}

impl Totals {
    fn new() -> Result<Self> {
        let times = Histogram::new_with_max(3_600_000_000_000, 3)?;
        let (by_word, by_stream) = (BTreeMap::new(), BTreeMap::new());
        Ok(Totals { by_word, by_stream, messages: 0, faults: 0, times, memory_bytes: 0, calls: Calls::new() })
    }

    fn add(&mut self, ran: &Ran) {
        self.messages += 1;
        *self.by_word.entry(ran.ended.word()).or_default() += 1;
        self.faults += u64::from(is_fault(&ran.ended));
        if let Ended::Events(events) = &ran.ended {
            for event in events {
                let (count, bytes) = self.by_stream.entry(event.stream.clone()).or_default();
                *count += 1;
                *bytes += event.payload.len() as u64;
            }
        }
        if !ran.took.is_zero() {
            self.times.saturating_record(u64::try_from(ran.took.as_nanos()).unwrap_or(u64::MAX));
        }
        self.memory_bytes = self.memory_bytes.max(ran.memory_bytes);
        add_calls(&mut self.calls, &ran.calls);
    }

    fn micros(&self, quantile: f64) -> f64 {
        self.times.value_at_quantile(quantile) as f64 / 1e3
    }

    fn as_json(&self, took: Duration) -> Json {
        let streams = self
            .by_stream
            .iter()
            .map(|(stream, (count, bytes))| (stream.clone(), json!({"events": count, "bytes": bytes})));
        json!({
            "messages": self.messages, "outcomes": self.by_word, "outputs": streams.collect::<serde_json::Map<_, _>>(),
            "seconds": took.as_secs_f64(), "p50_us": self.micros(0.5), "p99_us": self.micros(0.99), "max_us": self.micros(1.0),
            "memory_bytes": self.memory_bytes, "host_calls": self.calls,
        })
    }

    fn show(&self, took: Duration) {
        let mut outcomes = table(&["outcome", "messages"]);
        for (word, count) in &self.by_word {
            outcomes.add_row([(*word).to_owned(), HumanCount(*count).to_string()]);
        }
        line(&outcomes.to_string());
        if !self.by_stream.is_empty() {
            let mut outputs = table(&["output stream", "events", "bytes"]);
            for (stream, (count, bytes)) in &self.by_stream {
                outputs.add_row([safe(stream), HumanCount(*count).to_string(), show_bytes(*bytes)]);
            }
            line(&format!("\n{outputs}"));
        }
        show_calls(&self.calls);
        let seconds = took.as_secs_f64();
        line(&format!(
            "\n{} messages in {seconds:.2} s ({:.0} a second); each took p50 {:.1} µs, p99 {:.1} µs, at most {:.1} µs; memory at most {}",
            HumanCount(self.messages),
            self.messages as f64 / seconds.max(1e-9),
            self.micros(0.5),
            self.micros(0.99),
            self.micros(1.0),
            show_bytes(self.memory_bytes),
        ));
    }
}

/// Whether the plugin is to blame: what it says of a message on purpose, and what is wrong with the message itself, is not.
fn is_fault(ended: &Ended) -> bool {
    matches!(ended, Ended::Fault(fault) if !matches!(fault, Fault::Malformed { .. } | Fault::TooLarge { .. }))
}

/// Runs the logs through the plugin; how many messages ended in a fault of the plugin.
pub(super) fn run(common: &Common, args: &Args, version: &Version) -> Result<u64> {
    let subscription = subscription(args, version)?;
    let mut out = match &args.out {
        None => None,
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| cannot_write(args))?;
            Some(std::io::BufWriter::new(file))
        }
    };
    let mut reader = Reader::new(&args.paths, args.clock.as_deref());
    let bar = bar(Reader::total(&args.paths), "testing");
    let (began, mut totals, mut shown) = (Instant::now(), Totals::new()?, 0);
    loop {
        let batch = reader.batch()?;
        if batch.is_empty() {
            break;
        }
        let first = totals.messages;
        for (at, ran) in run_all(&version.plugin, &subscription, &batch, args.threads(), None)?.iter().enumerate() {
            totals.add(ran);
            if let (Some(out), Ended::Events(events)) = (&mut out, &ran.ended) {
                for event in events {
                    let payload: Json = serde_json::from_str(&event.payload).unwrap_or(Json::Null);
                    let written = json!({"stream": event.stream, "payload": payload, "event": first + at as u64 + 1});
                    writeln!(out, "{written}").with_context(|| cannot_write(args))?;
                }
            }
            if !common.json && shown < args.show && worth_showing(&ran.ended, args.out.is_some()) {
                shown += 1;
                bar.suspend(|| show_one(first + at as u64 + 1, ran));
            }
        }
        bar.set_position(reader.read.load(Ordering::Relaxed));
    }
    bar.finish_and_clear();
    if let Some(out) = &mut out {
        out.flush().with_context(|| cannot_write(args))?;
    }
    reader.say_what_was_left();
    if totals.messages == 0 {
        bail!(Usage(String::from("the logs hold no event: nothing was tested")));
    }
    let took = began.elapsed();
    if common.json {
        let mut document = totals.as_json(took);
        if let Some(document) = document.as_object_mut() {
            document.insert("plugin".into(), json!(version.manifest.name));
            document.insert("refused_lines".into(), json!(reader.refused));
        }
        line(&serde_json::to_string_pretty(&document)?);
    } else {
        if shown > 0 {
            line("");
        }
        totals.show(took);
    }
    Ok(totals.faults)
}

fn cannot_write(args: &Args) -> String {
    format!("cannot write {}", args.out.as_deref().unwrap_or(Path::new("")).display())
}

/// How the lines come in: as entries of the stream that was named, or of the first that the plugin reads.
fn subscription(args: &Args, version: &Version) -> Result<Subscription> {
    let subscribed = &version.manifest.subscribed;
    let found = match &args.stream {
        None => subscribed.first(),
        Some(stream) => subscribed.iter().find(|sub| *sub.subscription.stream == **stream),
    };
    match found {
        Some(found) => Ok(found.subscription.clone()),
        None => bail!(Usage(format!("the plugin reads {}", version.manifest.route.subscribe().join(", ")))),
    }
}

fn worth_showing(ended: &Ended, outputs_go_elsewhere: bool) -> bool {
    match ended {
        Ended::Events(events) => !events.is_empty() && !outputs_go_elsewhere,
        Ended::NotWanted => false,
        Ended::Retry(_) | Ended::Reject(_) | Ended::Fault(_) => true,
    }
}

fn show_one(number: u64, ran: &Ran) {
    match &ran.ended {
        Ended::Events(events) => {
            for event in events {
                line(&format!("event {number} -> {} {}", safe(&event.stream), safe_cut(&event.payload, 200)));
            }
        }
        Ended::NotWanted => {}
        Ended::Retry(_) | Ended::Reject(_) | Ended::Fault(_) => {
            line(&format!("event {number} -> {}: {}", ran.ended.word(), safe_cut(&ran.ended.text(), 300)));
            show_trouble(ran, "    ");
        }
    }
}

/// Adds calls of host functions to others.
pub(crate) fn add_calls(sum: &mut Calls, calls: &Calls) {
    for (name, count) in calls {
        *sum.entry(name.clone()).or_default() += count;
    }
}

/// Which functions of the host were called, and which of them had nothing to give.
pub(crate) fn show_calls(calls: &Calls) {
    if calls.is_empty() {
        return line("\nit called no function of the host");
    }
    let mut rows = table(&["it called", "times", ""]);
    for (name, count) in calls {
        let denied = if is_denied(name) { "denied" } else { "" };
        rows.add_row([safe_cut(name, 80), HumanCount(*count).to_string(), denied.to_owned()]);
    }
    line(&format!("\n{rows}"));
}

/// The backtrace of a trap, and the last lines that the handler logged.
pub(super) fn show_trouble(ran: &Ran, indent: &str) {
    if let Ended::Fault(fault) = &ran.ended {
        for frame in fault.backtrace().unwrap_or_default().lines() {
            line(&format!("{indent}{}", safe(frame)));
        }
    }
    if !matches!(ran.ended, Ended::Events(_) | Ended::NotWanted) {
        let from = ran.log.len().saturating_sub(LOG_SHOWN);
        for logged in ran.log.get(from..).unwrap_or_default() {
            line(&format!("{indent}it logged: {}", safe_cut(&logged.line, 200)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_found_in_the_forms_that_logs_have() {
        let of = |text: &str| time_of(&format!("{{\"t\":{text}}}"), "/t");
        for text in [
            "\"2025-02-11T00:00:01Z\"",
            "\"2025-02-11 00:00:01.000000\"",
            "1739232001",
            "1739232001000",
            "1739232001.0",
        ] {
            assert_eq!(of(text), Some(1_739_232_001_000), "{text}");
        }
        assert_eq!(of("\"yesterday\""), None);
        assert_eq!(of("null"), None);
    }
}
