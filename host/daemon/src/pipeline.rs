//! THE LIFE OF A MESSAGE, top to bottom.
//!
//! ```text
//!  lane: fetch ─▶ receive() ─▶ Job ─▶ plugin's own thread: handle() = invoke, decide ─▶ lane: batch, settle
//!                    │                                                                       ▲
//!                    └── does not decode, too large, a cycle, not wanted: a verdict at once ─┘
//! ```
//!
//! Nothing here writes to Redis: a verdict is data until the lane settles it. A delivery that is dropped on the way stays
//! pending, which is safe.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cofferdam_model::route::HOPS_MAX;
use cofferdam_model::verdict::HostState;
use cofferdam_model::{Delivery, Fault, Message, Outcome, Token, decide};
use cofferdam_sandbox::{Call, LogLevel, LogLine, Slot};
use cofferdam_streams::codec::{Origin, take_origin};
use cofferdam_streams::{Decided, Decoded, Evidence, LaneKeys, RawEntry, Subscription, Taken, decode};
use tokio::sync::mpsc::UnboundedSender;

use crate::clock;
use crate::screen::safe;
use crate::version::{Seat, Version};

/// How a lane's entries become messages: by the stream that they were published on.
#[derive(Debug)]
pub(crate) struct Reader {
    by_stream: HashMap<Arc<str>, Subscription>,
    stream: Arc<str>,
    is_redrive: bool,
}

impl Reader {
    /// For a lane, with all of its plugin's subscriptions (a redrive stream carries entries of each).
    pub(crate) fn new(keys: &LaneKeys, subscriptions: impl Iterator<Item = Subscription>) -> Self {
        let by_stream = subscriptions.map(|sub| (sub.stream.clone(), sub)).collect();
        Reader { stream: keys.stream.clone(), is_redrive: keys.is_redrive(), by_stream }
    }

    fn subscription(&self, stream: &str) -> Subscription {
        self.by_stream.get(stream).cloned().unwrap_or_else(|| Subscription::plain(stream))
    }
}

/// What a lane does with an entry that has come in.
pub(crate) enum Received {
    /// A handler is to see it.
    Deliver(Delivery),
    /// Its verdict is clear without one.
    Settle(Decided),
}

/// From an entry to a delivery, or to a verdict without a run.
pub(crate) fn receive(taken: Taken, reader: &Reader, version: &Version) -> Received {
    let Taken { mut entry, token, attempts, releases } = taken;
    let (entry_id, bytes) = (entry.id, entry.bytes());
    // Only on a redrive stream, which nobody but the host writes: elsewhere a producer could forge where a message is from.
    let origin = if reader.is_redrive { take_origin(&mut entry) } else { None };
    let (decoded, redrives, past) = match origin {
        None => {
            let own = reader.by_stream.get(&reader.stream);
            let decoded = match own {
                Some(subscription) => decode(entry, entry_id, subscription),
                None => decode(entry, entry_id, &Subscription::plain(&reader.stream)),
            };
            (decoded, 0, None)
        }
        Some(Origin { stream, id, redrives, record }) => {
            let past = (!record.is_empty()).then(|| cofferdam_streams::read_record(&record));
            (decode(entry, id, &reader.subscription(&stream)), redrives, past)
        }
    };
    let (attempts, releases) = match past {
        // An entry that was saved from a foreign trim brings its past along.
        Some((earlier, _)) if attempts.is_empty() => (earlier, releases),
        _ => (attempts, releases),
    };
    let (message, early) = match decoded {
        Decoded::Message(message) => (message, None),
        Decoded::Filtered(message) | Decoded::Init(message) => (message, Some(Ok(Outcome::Events(Vec::new())))),
        Decoded::Malformed { text, message } => (message, Some(Err(Fault::Malformed { text }))),
    };
    let delivery = Delivery { entry: entry_id, token, message, attempts, releases, redrives };
    let limit_bytes = version.manifest.limits.message_bytes;
    let early = match early {
        Some(early) => Some(early),
        None if bytes > limit_bytes => Some(Err(Fault::TooLarge { bytes, limit_bytes })),
        None if delivery.message.hops() >= HOPS_MAX => {
            Some(Err(Fault::Loop { hops: delivery.message.hops(), limit: HOPS_MAX }))
        }
        None if delivery.crashes() > version.manifest.retry.crashes => {
            Some(Err(Fault::HostCrashes { crashes: delivery.crashes() }))
        }
        None => None,
    };
    match early {
        None => Received::Deliver(delivery),
        Some(result) => Received::Settle(judged(delivery, result, version, HostState::Running, Evidence::default())),
    }
}

/// Deliveries on their way to a plugin's thread, and where their verdicts go.
pub(crate) struct Job {
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) seat: Arc<Seat>,
    /// The other end is held by the lane, or by whoever looks into a suspect.
    pub(crate) reply: UnboundedSender<Vec<Decided>>,
    /// Set when the host is leaving: what has not begun is given back.
    pub(crate) stopping: Arc<AtomicBool>,
}

/// Verdicts are handed back at least this often, so that a slow message does not hold up its neighbours' settle.
const HAND_BACK_AFTER: Duration = Duration::from_millis(1);

/// Runs a job on a plugin's own thread.
pub(crate) fn run(slot: &mut Slot, job: Job) {
    let mut decided = Vec::with_capacity(job.deliveries.len());
    let mut handed_back = Instant::now();
    for delivery in job.deliveries {
        decided.extend(handle(slot, &job.seat, &job.stopping, delivery));
        if handed_back.elapsed() >= HAND_BACK_AFTER {
            handed_back = Instant::now();
            // Nobody listens any more when the lane is gone: the entries stay pending and are found again.
            let _ = job.reply.send(std::mem::take(&mut decided));
        }
    }
    if !decided.is_empty() {
        let _ = job.reply.send(decided);
    }
}

/// One delivery: invoke, decide.
fn handle(slot: &mut Slot, seat: &Seat, stopping: &AtomicBool, delivery: Delivery) -> Option<Decided> {
    // One version for the whole call, whatever is swapped meanwhile.
    let version = seat.current()?;
    if stopping.load(Ordering::Relaxed) {
        let fault = Fault::Host { text: String::from("the host is stopping") };
        return Some(judged(delivery, Err(fault), &version, HostState::Stopping, Evidence::default()));
    }
    let call = Call { message: &delivery.message, attempt: delivery.attempt(), started_ms: clock::now_ms() };
    let report = cofferdam_sandbox::invoke(&version.plugin, slot, &call);
    log_lines(&version.manifest.name, &delivery.message, &report.log);
    let failed = !matches!(report.result, Ok(Outcome::Events(_)));
    let evidence = Evidence {
        took: report.took,
        memory_bytes: report.memory_bytes,
        backtrace: report.result.as_ref().err().and_then(Fault::backtrace).unwrap_or_default().to_owned(),
        log_tail: if failed { tail(&report.log) } else { String::new() },
    };
    Some(judged(delivery, report.result, &version, HostState::Running, evidence))
}

fn judged(
    delivery: Delivery,
    result: Result<Outcome, Fault>,
    version: &Version,
    host: HostState,
    evidence: Evidence,
) -> Decided {
    let verdict = decide(delivery.attempt(), result, &version.manifest.retry, host, rand::random());
    Decided { delivery, verdict, version: version.stamp.clone(), evidence }
}

/// What a handler logs goes to the host's log, one line each, with the plugin and the message.
fn log_lines(plugin: &str, message: &Message, lines: &[LogLine]) {
    for LogLine { level, line } in lines {
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

/// A new entry, as a delivery without a past.
pub(crate) fn fresh(entry: RawEntry) -> Taken {
    Taken { entry, token: Token(1), attempts: Vec::new(), releases: 0 }
}
