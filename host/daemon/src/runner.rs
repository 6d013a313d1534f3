//! Running deliveries with wasmtime: on the plugin's own threads, and suspects in a process of their own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cofferdam_delivery::{Job, Runner, Surroundings, Terms};
use cofferdam_model::{Fault, Message, Outcome};
use cofferdam_sandbox::{Call, LogLevel, LogLine, Refused, Report, Slot, Workers};
use cofferdam_streams::Evidence;

use crate::apart::Apart;
use crate::clock;
use crate::screen::safe;
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
    /// Since when is counted, lines let through since, and lines left out since.
    counted: Mutex<Option<(Instant, usize, u64)>>,
}

/// Lines of one plugin that go to the host's log in a second: what a terminal shows in passing.
const LINES_A_SECOND: usize = 1_000;

impl LogGate {
    /// How many of these lines may be written, and how many were left out in the second before this one.
    fn pass(&self, lines: usize) -> (usize, u64) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = 0;
        let (since, passed, left_out) = match *counted {
            Some((since, passed, left_out)) if since.elapsed() < Duration::from_secs(1) => (since, passed, left_out),
            other => {
                before = other.map_or(0, |(_, _, left_out)| left_out);
                (Instant::now(), 0, 0)
            }
        };
        let room = lines.min(LINES_A_SECOND.saturating_sub(passed));
        *counted = Some((since, passed + room, left_out + (lines - room) as u64));
        (room, before)
    }
}

/// What a handler logs goes to the host's log, one line each, with the plugin and the message.
fn log_lines(gate: &LogGate, plugin: &str, message: &Message, lines: &[LogLine]) {
    if lines.is_empty() {
        return;
    }
    let (room, left_out) = gate.pass(lines.len());
    if left_out > 0 {
        tracing::warn!(target: "plugin", plugin, "{left_out} lines of its log were left out: more than {LINES_A_SECOND} a second");
    }
    for LogLine { level, line } in lines.iter().take(room) {
        let (line, id) = (safe(line), message.id);
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
        assert_eq!(gate.pass(900), (900, 0));
        assert_eq!(gate.pass(300), (100, 0));
        *gate.counted.lock().unwrap() =
            Instant::now().checked_sub(Duration::from_secs(2)).map(|then| (then, 1_000, 200));
        assert_eq!(gate.pass(5), (5, 200));
        assert_eq!(gate.pass(5), (5, 0));
    }
}
