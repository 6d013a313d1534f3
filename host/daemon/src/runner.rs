//! Running deliveries with wasmtime: on the plugin's own threads, and suspects in a process of their own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cofferdam_delivery::{Job, Runner, Surroundings, Terms};
use cofferdam_model::{Fault, Message, Outcome};
use cofferdam_sandbox::{Call, LogLevel, LogLine, Refused, Report, Slot, Workers};
use cofferdam_streams::Evidence;

use crate::apart::Apart;
use crate::clock;
use crate::escape::safe;
use crate::quantity::show_bytes;
use crate::version::{Seat, Version};

/// Results are handed back at least this often, so that a slow message does not hold up its neighbours' settle.
const HAND_BACK_AFTER: Duration = Duration::from_millis(1);

/// Runs the deliveries of one plugin.
pub(crate) struct PluginRunner {
    seat: Arc<Seat>,
    workers: Workers<Job>,
    /// One thread, which talks to the process that suspects run in.
    apart: Workers<Job>,
    threads: usize,
}

impl PluginRunner {
    /// For the plugin `name`, on at most `threads` threads.
    pub(crate) fn new(name: &str, threads: usize, seat: Arc<Seat>) -> Self {
        let gate = Arc::new(LogGate::default());
        let (here, lines) = (seat.clone(), gate.clone());
        let workers = Workers::new(name, threads, move |slot: &mut Slot, job| run(slot, &here, &lines, job));
        let (there, process) = (seat.clone(), Apart::default());
        let apart = Workers::new(name, 1, move |_: &mut Slot, job| run_apart(&process, &there, &gate, job));
        PluginRunner { seat, workers, apart, threads }
    }
}

impl Runner for PluginRunner {
    fn terms(&self) -> Option<Arc<Terms>> {
        self.seat.current().map(|version| version.terms.clone())
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn submit(&self, job: Job) -> Result<(), Job> {
        self.workers.submit(job).map_err(|Refused(job)| job)
    }

    fn submit_apart(&self, job: Job) -> Result<(), Job> {
        self.apart.submit(job).map_err(|Refused(job)| job)
    }
}

/// The wall clock and the system's random numbers.
pub(crate) struct System;

impl Surroundings for System {
    fn now_ms(&self) -> u64 {
        clock::now_ms()
    }

    fn random(&self) -> f64 {
        rand::random()
    }
}

/// Runs a job on a plugin's own thread.
fn run(slot: &mut Slot, seat: &Seat, gate: &LogGate, mut job: Job) {
    let mut handed_back = Instant::now();
    while let Some(delivery) = job.current() {
        // One version for the whole call, whatever is swapped meanwhile.
        let Some(version) = seat.current() else { return };
        if job.is_stopping() {
            return;
        }
        die_if_told(&delivery.message);
        let started_ms = clock::now_ms();
        let attempt = delivery.attempt(&version.terms.forgiven);
        let call = Call { message: &delivery.message, attempt, started_ms };
        let report = cofferdam_sandbox::invoke(&version.plugin, slot, &call);
        finish(&mut job, gate, &version, report, started_ms);
        if handed_back.elapsed() >= HAND_BACK_AFTER {
            handed_back = Instant::now();
            job.hand_back();
        }
    }
}

/// Runs a job of suspects, each alone in another process.
fn run_apart(process: &Apart, seat: &Seat, gate: &LogGate, mut job: Job) {
    while let Some(delivery) = job.current() {
        let Some(version) = seat.current() else { return };
        if job.is_stopping() {
            return;
        }
        let started_ms = clock::now_ms();
        match process.run(&version, delivery, started_ms) {
            Ok(report) => finish(&mut job, gate, &version, report, started_ms),
            Err(fault) => {
                // A host that is ended takes its children with it in ways that only who ends it knows.
                let fault = match fault {
                    Fault::ProcessDied { text } if job.is_stopping() => Fault::Host { text },
                    fault => fault,
                };
                count(&version, Some(&fault), true);
                let evidence = Evidence { started_ms: Some(started_ms), ..Evidence::default() };
                job.finish(Err(fault), Some(version.terms.clone()), evidence);
            }
        }
        job.hand_back();
    }
}

/// Counts how a delivery ended for its version. What the host itself could not do says nothing of a version.
fn count(version: &Version, fault: Option<&Fault>, failed: bool) {
    if !matches!(fault, Some(Fault::Host { .. })) {
        version.fared.note(!failed);
    }
}

fn finish(job: &mut Job, gate: &LogGate, version: &Version, report: Report, started_ms: u64) {
    let Some(delivery) = job.current() else { return };
    log_lines(gate, &version.manifest.name, &delivery.message, &report.log);
    let failed = !matches!(report.result, Ok(Outcome::Events(_)));
    count(version, report.result.as_ref().err(), failed);
    let evidence = Evidence {
        took: report.took,
        memory_bytes: report.memory_bytes,
        backtrace: report.result.as_ref().err().and_then(Fault::backtrace).unwrap_or_default().to_owned(),
        log_tail: if failed { tail(&report.log) } else { String::new() },
        started_ms: Some(started_ms),
    };
    job.finish(report.result, Some(version.terms.clone()), evidence);
}

/// Lets through what somebody could read, so that a plugin which logs at every message fills no disk.
#[derive(Default)]
struct LogGate {
    counted: Mutex<Option<Counted>>,
}

/// What came of one plugin's log in a second.
struct Counted {
    since: Instant,
    /// Lines and bytes that were let through.
    lines: usize,
    bytes: usize,
    /// Lines that were left out.
    left_out: u64,
}

/// Lines of one plugin that go to the host's log in a second: what a terminal shows in passing.
const LINES_A_SECOND: usize = 1_000;
/// Their bytes, as they are written: what is escaped grows to six times its size.
const BYTES_A_SECOND: usize = 1 << 20;

impl LogGate {
    /// Those of the lines that may be written, escaped, and how many were left out in the second before this one.
    fn pass<'a>(&self, lines: &'a [LogLine]) -> (Vec<(&'a LogLine, String)>, u64) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let old = counted.take();
        let (mut now, before) = match old {
            Some(counted) if counted.since.elapsed() < Duration::from_secs(1) => (counted, 0),
            other => {
                let fresh = Counted { since: Instant::now(), lines: 0, bytes: 0, left_out: 0 };
                (fresh, other.map_or(0, |counted| counted.left_out))
            }
        };
        let mut passed = Vec::new();
        for line in lines {
            if now.lines >= LINES_A_SECOND || now.bytes >= BYTES_A_SECOND {
                break;
            }
            let text = safe(&line.line);
            now.lines += 1;
            now.bytes += text.len();
            passed.push((line, text));
        }
        now.left_out += (lines.len() - passed.len()) as u64;
        *counted = Some(now);
        (passed, before)
    }
}

/// What a handler logs goes to the host's log, one line each, with the plugin and the message.
fn log_lines(gate: &LogGate, plugin: &str, message: &Message, lines: &[LogLine]) {
    if lines.is_empty() {
        return;
    }
    let (passed, left_out) = gate.pass(lines);
    if left_out > 0 {
        tracing::warn!(
            target: "plugin", plugin,
            "{left_out} lines of its log were left out: more than {LINES_A_SECOND} or {} a second", show_bytes(BYTES_A_SECOND as u64)
        );
    }
    for (LogLine { level, .. }, line) in passed {
        let id = message.id;
        match level {
            LogLevel::Error => tracing::error!(target: "plugin", plugin, %id, "{line}"),
            LogLevel::Warn => tracing::warn!(target: "plugin", plugin, %id, "{line}"),
            LogLevel::Info => tracing::info!(target: "plugin", plugin, %id, "{line}"),
            LogLevel::Debug => tracing::debug!(target: "plugin", plugin, %id, "{line}"),
        }
    }
}

fn tail(lines: &[LogLine]) -> String {
    let last = lines.iter().rev().take(20).map(|line| line.line.as_str()).collect::<Vec<_>>();
    last.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Nothing that a guest does ends its host, as far as we know. For the tests of what happens when something does.
#[cfg(not(feature = "mutants"))]
pub(crate) fn die_if_told(_message: &Message) {}

#[cfg(feature = "mutants")]
pub(crate) fn die_if_told(message: &Message) {
    if message.payload.contains(r#""do":"kill-host""#) {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_lines_than_anybody_reads_are_left_out_and_counted() {
        let gate = LogGate::default();
        let pass = |lines: usize, line: &str| {
            let lines = vec![LogLine { level: LogLevel::Info, line: line.to_owned() }; lines];
            let (passed, before) = gate.pass(&lines);
            (passed.len(), before)
        };
        let age = || {
            let mut counted = gate.counted.lock().unwrap();
            let counted = counted.as_mut().unwrap();
            counted.since = counted.since.checked_sub(Duration::from_secs(2)).unwrap();
        };
        assert_eq!(pass(900, ""), (900, 0));
        assert_eq!(pass(300, ""), (100, 0));
        age();
        assert_eq!(pass(5, ""), (5, 200));
        assert_eq!(pass(5, ""), (5, 0));
        age();
        // Each of these has 20 KiB once it is escaped.
        let (passed, _) = pass(900, &"\u{1}".repeat(4_096));
        assert!((50..60).contains(&passed), "{passed} lines");
        age();
        assert_eq!(pass(1, ""), (1, 900 - passed as u64));
    }
}
