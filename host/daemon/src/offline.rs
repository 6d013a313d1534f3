//! Running a plugin in memory, without a Redis: what `test` and a plugin's own test cases do. A message goes the way that it
//! goes in a host: its codec, its `where`, the limits on what comes in, the handler.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cofferdam_model::route::HOPS_MAX;
use cofferdam_model::{EntryId, Event, Fault, Message, Outcome};
use cofferdam_sandbox::record::Calls;
use cofferdam_sandbox::{Call, LogLine, Plugin, Report, STACK_BYTES, Slot, invoke_within};
use cofferdam_streams::{Codec, Decoded, RawEntry, Subscription, decode};

/// Messages that a thread runs at a time: enough that handing them over does not count.
const CHUNK: usize = 256;

/// An event on its way into a plugin.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// JSON text, or whatever stands in its place.
    pub(crate) payload: String,
    /// When it was published and when its delivery begins, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// Tells entries of one millisecond apart.
    pub(crate) seq: u64,
    /// Further fields of the entry.
    pub(crate) attributes: Vec<(String, String)>,
}

/// What became of a message.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// The handler's events; none at all when it dropped the message on purpose.
    Events(Vec<Event>),
    /// The subscription's `where` does not want it, or it marks a new stream: no handler saw it.
    NotWanted,
    Retry(String),
    Reject(String),
    Fault(Fault),
}

impl Ended {
    /// The word for it, as a test case expects it: a reason code for whatever is no success.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Ended::Events(events) if events.is_empty() => "filtered",
            Ended::Events(_) => "events",
            Ended::NotWanted => "filtered",
            Ended::Retry(_) => "retry",
            Ended::Reject(_) => "reject",
            Ended::Fault(fault) => fault.code().as_str(),
        }
    }

    /// Its words, when it is a failure.
    pub(crate) fn text(&self) -> String {
        match self {
            Ended::Events(_) | Ended::NotWanted => String::new(),
            Ended::Retry(reason) | Ended::Reject(reason) => reason.clone(),
            Ended::Fault(fault) => fault.to_string(),
        }
    }
}

/// A message that has been run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) message: Message,
    pub(crate) ended: Ended,
    /// How long the handler took; zero when it saw nothing.
    pub(crate) took: Duration,
    pub(crate) memory_bytes: u64,
    pub(crate) log: Vec<LogLine>,
    /// Which functions of the host it called, when that is recorded.
    pub(crate) calls: Calls,
}

/// The entry that a producer of this stream would have written.
pub(crate) fn entry(input: &Input, subscription: &Subscription) -> RawEntry {
    let field = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    let mut fields: Vec<_> = match &subscription.codec {
        Codec::Envelope => vec![field("payload", &input.payload)],
        Codec::Field(name) => vec![field(name, &input.payload)],
        Codec::Fields => {
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&input.payload).unwrap_or_default();
            let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            object.iter().map(|(name, value)| field(name, &text(value))).collect()
        }
    };
    fields.extend(input.attributes.iter().map(|(name, value)| field(name, value)));
    RawEntry { id: EntryId { ms: input.at_ms, seq: input.seq }, fields }
}

/// Runs one message on this thread, whose stack must have room for a guest, for no longer than `time`.
fn run(plugin: &Arc<Plugin>, slot: &mut Slot, subscription: &Subscription, input: &Input, time: Duration) -> Ran {
    let entry = entry(input, subscription);
    let (id, bytes, limit_bytes) = (entry.id, entry.bytes(), plugin.spec().limits.message_bytes);
    let (message, early) = match decode(entry, id, subscription) {
        Decoded::Message(message) => (message, None),
        Decoded::Filtered(message) | Decoded::Init(message) => (message, Some(Ended::NotWanted)),
        Decoded::Malformed { text, message } => (message, Some(Ended::Fault(Fault::Malformed { text }))),
    };
    let early = match early {
        Some(early) => Some(early),
        None if bytes > limit_bytes => Some(Ended::Fault(Fault::TooLarge { bytes, limit_bytes })),
        None if message.hops() >= HOPS_MAX => Some(Ended::Fault(Fault::Loop { hops: message.hops(), limit: HOPS_MAX })),
        None => None,
    };
    if let Some(ended) = early {
        return Ran { message, ended, took: Duration::ZERO, memory_bytes: 0, log: Vec::new(), calls: Calls::new() };
    }
    let call = Call { message: &message, attempt: 1, started_ms: input.at_ms };
    let report = invoke_within(plugin, slot, &call, time);
    let ended = match report.result {
        Ok(Outcome::Events(events)) => Ended::Events(events),
        Ok(Outcome::Retry { reason, .. }) => Ended::Retry(reason),
        Ok(Outcome::Reject { reason }) => Ended::Reject(reason),
        Err(fault) => Ended::Fault(fault),
    };
    let Report { took, memory_bytes, log, calls, .. } = report;
    Ran { message, ended, took, memory_bytes, log, calls }
}

/// Runs messages on `threads` threads, and gives back what became of each in their order. When it is `ends`, what runs is stopped and
/// the rest is left out.
///
/// # Errors
/// The machine refuses a thread.
pub(crate) fn run_all(
    plugin: &Arc<Plugin>,
    subscription: &Subscription,
    inputs: &[Input],
    threads: usize,
    ends: Option<Instant>,
) -> Result<Vec<Ran>> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let left = || match ends {
        None => Some(Duration::MAX),
        Some(ends) => ends.checked_duration_since(Instant::now()),
    };
    let work = || {
        let (mut slot, mut done) = (Slot::default(), Vec::new());
        loop {
            let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(chunk) = inputs.chunks(CHUNK).nth(at) else { return done };
            let ran = chunk.iter().map_while(|input| Some(run(plugin, &mut slot, subscription, input, left()?)));
            done.push((at, ran.collect::<Vec<_>>()));
        }
    };
    let mut done = std::thread::scope(|scope| -> Result<Vec<(usize, Vec<Ran>)>> {
        let wanted = threads.clamp(1, inputs.len().div_ceil(CHUNK).max(1));
        let mut workers = Vec::with_capacity(wanted);
        for _ in 0..wanted {
            let builder = std::thread::Builder::new().name("guest".into()).stack_size(STACK_BYTES);
            workers.push(builder.spawn_scoped(scope, work).context("cannot start a thread")?);
        }
        let mut done = Vec::new();
        for worker in workers {
            done.extend(worker.join().map_err(|_| anyhow::anyhow!("a bug of the host: a thread panicked"))?);
        }
        Ok(done)
    })?;
    done.sort_unstable_by_key(|(at, _)| *at);
    Ok(done.into_iter().flat_map(|(_, ran)| ran).collect())
}
