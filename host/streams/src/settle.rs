//! Verdict to at most one atomic write: outputs and ack, parked, or dead letter and ack.
//!
//! The settle is fenced by (consumer, token), so it may be sent again whatever became of the first: the second finds the
//! lease gone and writes nothing. A message's result is its own: one bad output key, or one lost lease, does not touch its
//! neighbours. Batching, and how many settles are under way, is the lane's affair.

use std::sync::Arc;
use std::time::Duration;

use redis::Cmd;
use serde_json::json;
use serde_json::value::RawValue;

use cofferdam_model::dead_letter::{LOG_TAIL_BYTES_MAX, TEXT_BYTES_MAX, TRAP_BYTES_MAX, truncated};
use cofferdam_model::policy::DELAY_MS_MAX;
use cofferdam_model::route::DEAD_LETTER_STREAM;
use cofferdam_model::{Attempt, Delivery, EntryId, Event, ReasonCode, Token, Verdict};

use crate::fetch::SCAN_MAX;
use crate::order::{Tenure, or_empty};
use crate::reply::Reply;
use crate::{Format, LaneKeys, Store, StreamError, record, retry_consumer};

/// Which version of a plugin ran, as its outputs and its dead letters say.
#[derive(Debug, PartialEq, Eq)]
pub struct VersionStamp {
    /// The plugin's name.
    pub plugin: String,
    /// Full sha256 of the version, in hexadecimal.
    pub digest: String,
    /// Digest of the effective configuration, in hexadecimal.
    pub config: String,
}

/// What a run left behind, for the evidence.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// How long it ran.
    pub took: Duration,
    /// Linear memory at its end, in bytes.
    pub memory_bytes: u64,
    /// The wasm backtrace of a trap.
    pub backtrace: String,
    /// The last lines it logged.
    pub log_tail: String,
    /// When it began, in milliseconds since 1970; `None` when it never ran here.
    pub started_ms: Option<u64>,
}

/// A delivery with its verdict: what a settle carries out.
#[derive(Debug)]
pub struct Decided {
    /// The delivery.
    pub delivery: Delivery,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Which version ran; the version that would have run when none did.
    pub version: Arc<VersionStamp>,
    /// What the run left behind.
    pub evidence: Evidence,
}

impl Decided {
    /// About how many bytes it puts into a settle.
    pub fn bytes(&self) -> usize {
        const OVERHEAD: usize = 400;
        match &self.verdict {
            Verdict::Commit { events } => events.iter().map(|event| event.payload.len() + OVERHEAD).sum::<usize>() + 64,
            Verdict::RetryAfter { .. } | Verdict::Release { .. } => OVERHEAD * (self.delivery.attempts.len() + 2),
            Verdict::DeadLetter { .. } => self.delivery.message.payload.len() + 4 * OVERHEAD,
            Verdict::LeavePending => 0,
        }
    }
}

/// What every settle of a lane has in common.
#[derive(Clone, Copy, Debug)]
pub struct SettleContext<'a> {
    /// The lane.
    pub lane: &'a LaneKeys,
    /// This host's consumer name.
    pub consumer: &'a str,
    /// Now, in milliseconds since 1970.
    pub now_ms: u64,
    /// Now, in ISO 8601 with microseconds, as the envelope's `timestamp`.
    pub now: &'a str,
    /// By what right it settles, when the lane keeps an order.
    pub tenure: Option<Tenure>,
}

/// What became of one settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Settled {
    /// Outputs and ack.
    Committed {
        /// How many.
        outputs: u32,
    },
    /// Ack without outputs.
    Filtered,
    /// Parked until its retry is due.
    Retried(ReasonCode),
    /// Dead letter and ack.
    Dead(ReasonCode),
    /// Given back uncharged.
    Released,
    /// Somebody else holds it now; nothing was written, and the host forgets it.
    LeaseLost,
    /// Nothing had to be written.
    Left,
}

impl Store {
    /// Carries out those verdicts of a batch that have no result yet. The results stand in the batch's order.
    ///
    /// A message whose output key is unusable is dead-lettered within the same call; a batch that fails as a whole, for a
    /// reason that is not Redis's state, is halved down to its one bad message, which is dead-lettered alone.
    ///
    /// # Errors
    /// Everything whose remedy is not of one message: the caller sends the same batch again when it can, with the results and the
    /// tenure that there are by then.
    pub async fn settle(
        &self,
        cx: &mut SettleContext<'_>,
        batch: &[Decided],
        results: &mut [Option<Settled>],
    ) -> Result<(), StreamError> {
        let (mut finished, mut parked) = (Vec::new(), Vec::new());
        for (index, (decided, result)) in batch.iter().zip(&mut *results).enumerate() {
            match decided.verdict {
                _ if result.is_some() => {}
                Verdict::Commit { .. } | Verdict::DeadLetter { .. } => finished.push(index),
                Verdict::RetryAfter { .. } | Verdict::Release { .. } => parked.push(index),
                Verdict::LeavePending => *result = Some(Settled::Left),
            }
        }
        self.settle_finished(cx, batch, &finished, results).await?;
        self.settle_parked(cx, batch, &parked, results).await
    }

    async fn settle_finished(
        &self,
        cx: &mut SettleContext<'_>,
        batch: &[Decided],
        indices: &[usize],
        results: &mut [Option<Settled>],
    ) -> Result<(), StreamError> {
        // A work list instead of recursion: halves are pushed back until a half has one message.
        let mut work = vec![indices.to_vec()];
        while let Some(part) = work.pop() {
            let members: Vec<&Decided> = part.iter().filter_map(|&index| batch.get(index)).collect();
            if members.is_empty() {
                continue;
            }
            match self.send_settle(cx, &members).await {
                Ok(codes) => {
                    let mut unusable = Vec::new();
                    for ((&index, decided), code) in part.iter().zip(&members).zip(codes) {
                        let settled = match code {
                            Code::Done => settled(&decided.verdict),
                            Code::LeaseLost => Settled::LeaseLost,
                            Code::DeadRefused => refused_by_dead_letters(cx, decided),
                            Code::Unusable => {
                                unusable.push((index, *decided));
                                continue;
                            }
                        };
                        note(results, index, settled);
                    }
                    // Once all that is done is noted: this may fail.
                    for (index, decided) in unusable {
                        let code = ReasonCode::BadOutputKey;
                        note(results, index, self.bury(cx, decided, code, unusable_keys(decided)).await?);
                    }
                }
                Err(StreamError::Rejected { .. }) if part.len() > 1 => {
                    let (left, right) = part.split_at(part.len() / 2);
                    work.push(right.to_vec());
                    work.push(left.to_vec());
                }
                Err(StreamError::Rejected { source }) => {
                    for (&index, decided) in part.iter().zip(&members) {
                        let why = format!("redis rejected its outputs: {source}");
                        note(results, index, self.bury(cx, decided, ReasonCode::BadOutput, why).await?);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Dead-letters a message whose outputs cannot be written.
    async fn bury(
        &self,
        cx: &mut SettleContext<'_>,
        decided: &Decided,
        code: ReasonCode,
        text: String,
    ) -> Result<Settled, StreamError> {
        let dead = Decided {
            delivery: decided.delivery.clone(),
            verdict: Verdict::DeadLetter { code, text },
            version: decided.version.clone(),
            evidence: decided.evidence.clone(),
        };
        let codes = self.send_settle(cx, &[&dead]).await?;
        Ok(if codes.first() == Some(&Code::Done) { Settled::Dead(code) } else { Settled::LeaseLost })
    }

    async fn send_settle(&self, cx: &mut SettleContext<'_>, members: &[&Decided]) -> Result<Vec<Code>, StreamError> {
        let mut outputs: Vec<&str> = Vec::new();
        for decided in members {
            let Verdict::Commit { events } = &decided.verdict else { continue };
            for event in events {
                if !outputs.contains(&event.stream.as_str()) {
                    outputs.push(&event.stream);
                }
            }
        }
        let lane = cx.lane;
        let mut keys = vec![&*lane.stream, &lane.ledger, &lane.park, DEAD_LETTER_STREAM];
        keys.extend(&outputs);
        let script = &self.scripts.settle;
        let mut call = script.call(&keys);
        let first = members.iter().map(|decided| decided.delivery.entry).min().unwrap_or_default();
        let last = members.iter().map(|decided| decided.delivery.entry).max().unwrap_or_default();
        call.arg(&*lane.group).arg(cx.consumer).arg(first.to_string()).arg(last.to_string());
        call.arg(SCAN_MAX).arg(u8::from(lane.is_redrive())).arg(cx.now);
        call.arg(or_empty(cx.tenure.map(|tenure| tenure.epoch)));
        call.arg(or_empty(cx.tenure.map(|tenure| tenure.finished)));
        let mut versions: Vec<&Arc<VersionStamp>> = Vec::new();
        for decided in members {
            if !versions.contains(&&decided.version) {
                versions.push(&decided.version);
            }
        }
        call.arg(versions.len());
        for version in &versions {
            call.arg(&version.plugin).arg(&version.digest).arg(&version.config);
        }
        call.arg(members.len());
        for decided in members {
            call.arg(decided.delivery.entry.to_string()).arg(decided.delivery.token.0);
            match &decided.verdict {
                Verdict::Commit { events } => {
                    let version = versions.iter().position(|version| **version == decided.version).unwrap_or(0) + 1;
                    call.arg(events.len()).arg(version).arg(decided.delivery.message.hops() + 1);
                    for (index, event) in events.iter().enumerate() {
                        let key = outputs.iter().position(|stream| *stream == event.stream).unwrap_or(0) + 1;
                        write_event(&mut call, key, cx, decided, event, (index, events.len()));
                    }
                }
                Verdict::DeadLetter { code, text } => {
                    call.arg(-1);
                    write_dead_letter(&mut call, cx, decided, *code, text, self.format());
                }
                Verdict::RetryAfter { .. } | Verdict::Release { .. } | Verdict::LeavePending => {}
            }
        }
        #[cfg(feature = "mutants")]
        if crate::planted("evalsha-in-multi") {
            let mut ack = redis::cmd("XACK");
            ack.arg(&*lane.stream).arg(&*lane.group);
            members.iter().for_each(|decided| _ = ack.arg(decided.delivery.entry.to_string()));
            let reply = script.send_in_multi(&*self.writes, &call, &ack).await?;
            return Code::read(&Reply { command: "settle" }, reply, members.len());
        }
        let reply = script.send(&*self.writes, &call).await?;
        let codes = Code::read(&Reply { command: "settle" }, reply, members.len())?;
        if let Some(tenure) = &mut cx.tenure {
            tenure.finished += codes.iter().filter(|code| **code == Code::Done).count() as u64;
        }
        Ok(codes)
    }

    async fn settle_parked(
        &self,
        cx: &mut SettleContext<'_>,
        batch: &[Decided],
        indices: &[usize],
        results: &mut [Option<Settled>],
    ) -> Result<(), StreamError> {
        if indices.is_empty() {
            return Ok(());
        }
        let mut call = self.park_call(cx, indices.len());
        for decided in indices.iter().filter_map(|&index| batch.get(index)) {
            let delivery = &decided.delivery;
            call.arg(delivery.entry.to_string()).arg(delivery.token.0);
            match &decided.verdict {
                Verdict::RetryAfter { delay, code, text } => {
                    let mut attempts = delivery.attempts.clone();
                    attempts.push(attempt(cx, decided, *code, text));
                    let kind = if *code == ReasonCode::HostCrashes { "crashed" } else { "retried" };
                    call.arg(delay_ms(*delay)).arg(kind).arg(record::write(
                        &attempts,
                        delivery.releases,
                        self.format(),
                    ));
                }
                Verdict::Release { delay } => {
                    let past = record::write(&delivery.attempts, delivery.releases + 1, self.format());
                    call.arg(delay_ms(*delay)).arg("released").arg(past);
                }
                Verdict::Commit { .. } | Verdict::DeadLetter { .. } | Verdict::LeavePending => {
                    unreachable!("only what is to be parked was asked for")
                }
            }
        }
        let codes = self.send_park(&call, indices.len()).await?;
        let mut trimmed = Vec::new();
        for (&index, code) in indices.iter().zip(codes) {
            let Some(decided) = batch.get(index) else { continue };
            match code {
                Code::Done => note(results, index, settled(&decided.verdict)),
                Code::LeaseLost | Code::DeadRefused => note(results, index, Settled::LeaseLost),
                Code::Unusable => trimmed.push((index, decided)),
            }
        }
        for (index, decided) in trimmed {
            let text = String::from("the entry was trimmed or deleted from the stream while it was being handled");
            note(results, index, self.bury(cx, decided, ReasonCode::PayloadTrimmed, text).await?);
        }
        Ok(())
    }
}

impl Store {
    fn park_call(&self, cx: &SettleContext<'_>, count: usize) -> Cmd {
        let lane = cx.lane;
        let mut call = self.scripts.park.call(&[&lane.stream, &lane.ledger, &lane.park]);
        call.arg(&*lane.group).arg(cx.consumer).arg(retry_consumer()).arg(DELAY_MS_MAX).arg(count);
        call
    }

    async fn send_park(&self, call: &Cmd, count: usize) -> Result<Vec<Code>, StreamError> {
        let reply = self.scripts.park.send(&*self.writes, call).await?;
        Code::read(&Reply { command: "park" }, reply, count)
    }

    /// Gives back, uncharged and at once, what a leaving host holds and cannot finish. Says how many were still its own.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn give_back(&self, cx: &SettleContext<'_>, held: &[Holding]) -> Result<usize, StreamError> {
        let mut given = 0;
        for part in held.chunks(GIVE_BACK_MAX) {
            let mut call = self.park_call(cx, part.len());
            for one in part {
                let past = record::write(&one.attempts, one.releases + 1, self.format());
                call.arg(one.entry.to_string()).arg(one.token.0).arg(0).arg("released").arg(past);
            }
            let codes = self.send_park(&call, part.len()).await?;
            given += codes.into_iter().filter(|code| *code == Code::Done).count();
        }
        Ok(given)
    }
}

/// Entries that one call gives back.
const GIVE_BACK_MAX: usize = 500;

/// What a host must know of an entry in its hands to give it back.
#[derive(Clone, Debug)]
pub struct Holding {
    /// The entry.
    pub entry: EntryId,
    /// The fence.
    pub token: Token,
    /// Its charged attempts.
    pub attempts: Vec<Attempt>,
    /// How often it was given back before.
    pub releases: u32,
}

/// What a script says of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Done,
    LeaseLost,
    /// Settle: an output key is not a stream. Park: the entry is gone.
    Unusable,
    /// The dead letters take nothing; the entry stays pending.
    DeadRefused,
}

impl Code {
    fn read(r: &Reply, reply: redis::Value, expected: usize) -> Result<Vec<Code>, StreamError> {
        let codes = r.array(reply)?;
        if codes.len() != expected {
            return Err(r.unexpected(format!("{} results for {expected} messages", codes.len())));
        }
        let read = |value: &redis::Value| match r.int(value)? {
            1 => Ok(Code::Done),
            0 => Ok(Code::LeaseLost),
            2 | 3 => Ok(Code::Unusable),
            4 => Ok(Code::DeadRefused),
            other => Err(r.unexpected(format!("the result {other}"))),
        };
        codes.iter().map(read).collect()
    }
}

fn note(results: &mut [Option<Settled>], index: usize, settled: Settled) {
    if let Some(slot) = results.get_mut(index) {
        *slot = Some(settled);
    }
}

fn delay_ms(delay: Duration) -> u64 {
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).min(DELAY_MS_MAX)
}

fn settled(verdict: &Verdict) -> Settled {
    match verdict {
        Verdict::Commit { events } if events.is_empty() => Settled::Filtered,
        Verdict::Commit { events } => Settled::Committed { outputs: u32::try_from(events.len()).unwrap_or(u32::MAX) },
        Verdict::RetryAfter { code, .. } => Settled::Retried(*code),
        Verdict::DeadLetter { code, .. } => Settled::Dead(*code),
        Verdict::Release { .. } => Settled::Released,
        Verdict::LeavePending => Settled::Left,
    }
}

/// Its neighbours are settled; it stays pending, and is found again when its lease ends.
fn refused_by_dead_letters(cx: &SettleContext<'_>, decided: &Decided) -> Settled {
    tracing::error!(stream = %cx.lane.stream, id = %decided.delivery.entry,
        "{DEAD_LETTER_STREAM} takes no entry: its last id is the greatest there is; rename the key and let it begin anew");
    Settled::Left
}

fn unusable_keys(decided: &Decided) -> String {
    let mut streams: Vec<&str> = match &decided.verdict {
        Verdict::Commit { events } => events.iter().map(|event| event.stream.as_str()).collect(),
        _ => Vec::new(),
    };
    streams.dedup();
    format!(
        "one of its output keys cannot be written as a stream: {}; look with redis-cli TYPE, rename or delete the key, then cofferdam dlq redrive",
        streams.join(", ")
    )
}

fn attempt(cx: &SettleContext<'_>, decided: &Decided, code: ReasonCode, text: &str) -> Attempt {
    Attempt {
        at_ms: cx.now_ms,
        host: cx.consumer.to_owned(),
        digest: decided.version.digest.clone(),
        code,
        text: truncated(text, TEXT_BYTES_MAX),
        took: decided.evidence.took,
        memory_bytes: decided.evidence.memory_bytes,
        started_ms: decided.evidence.started_ms,
    }
}

/// The payload in a dead letter's JSON view. Escaped it is up to six times as long, and Redis hangs up on an argument above its
/// `proto-max-bulk-len` (512 MiB, 1 MiB at least). The copy of the entry beside the view is whole.
const VIEW_PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// The namespace of the ids that we give to outputs.
const OUTPUT_IDS: uuid::Uuid = uuid::Uuid::from_bytes(*b"cofferdam-output");

/// The id of output number `index` of a message in a group: the same whenever and wherever the same delivery is run, so that
/// others can deduplicate, and so that anybody can tell which group an output is of.
pub fn output_id(group: &str, stream: &str, id: EntryId, index: usize) -> uuid::Uuid {
    uuid::Uuid::new_v5(&OUTPUT_IDS, format!("{group}|{stream}|{id}|{index}").as_bytes())
}

fn write_event(
    call: &mut Cmd,
    key: usize,
    cx: &SettleContext<'_>,
    decided: &Decided,
    event: &Event,
    place: (usize, usize),
) {
    let message = &decided.delivery.message;
    let (index, total) = place;
    let traceparent = message.attribute("traceparent");
    let own_trace = event.attributes.iter().any(|(name, _)| name == "traceparent");
    let trace = traceparent.filter(|_| !own_trace);
    let pairs = usize::from(event.key.is_some()) + usize::from(trace.is_some()) + event.attributes.len();
    let mut id = uuid::Uuid::encode_buffer();
    let id = output_id(&cx.lane.group, &message.stream, message.id, index).hyphenated().encode_lower(&mut id);
    call.arg(key).arg(&*id).arg(&event.payload).arg(event.priority.unwrap_or(message.priority));
    call.arg(format!("{}/{}/{index}/{total}", message.stream, message.id)).arg(pairs * 2);
    if let Some(trace) = trace {
        call.arg("traceparent").arg(trace);
    }
    if let Some(key) = &event.key {
        call.arg("key").arg(key);
    }
    for (name, value) in &event.attributes {
        call.arg(name).arg(value);
    }
}

fn write_dead_letter(
    call: &mut Cmd,
    cx: &SettleContext<'_>,
    decided: &Decided,
    code: ReasonCode,
    text: &str,
    format: Format,
) {
    let delivery = &decided.delivery;
    let message = &delivery.message;
    let mut attempts = delivery.attempts.clone();
    // A message that no version ever saw has no attempt to show; the reason says why.
    let unseen =
        matches!(code, ReasonCode::Malformed | ReasonCode::TooLarge | ReasonCode::Loop | ReasonCode::HostCrashes);
    if !unseen {
        attempts.push(attempt(cx, decided, code, text));
    }
    let reason = truncated(text, TEXT_BYTES_MAX);
    let number =
        |name: &str, default: u64| message.attribute(name).and_then(|text| text.parse().ok()).unwrap_or(default);
    let shown = truncated(&message.payload, VIEW_PAYLOAD_BYTES_MAX);
    let is_whole = shown.len() == message.payload.len();
    let payload = match RawValue::from_string(shown.clone()) {
        Ok(raw) if is_whole => serde_json::to_value(raw).unwrap_or_else(|_| json!(shown)),
        Ok(_) | Err(_) => json!(shown),
    };
    let mut view = json!({
        "original_stream": &*message.stream,
        "original_message": {
            "message_id": message.message_id,
            "stream": &*message.stream,
            "payload": payload,
            "priority": message.priority,
            "timestamp": message.timestamp,
            "producer_id": message.producer_id,
            "retry_count": number("retry_count", 0),
            "max_retries": number("max_retries", 3),
        },
        "failed_at": cx.now,
        "reason": format!("{code}: {reason}"),
        "retry_count": attempts.len(),
    });
    if !is_whole
        && let Some(original) = view.pointer_mut("/original_message").and_then(serde_json::Value::as_object_mut)
    {
        original.insert(String::from("payload_truncated"), json!(true));
    }
    let fields: [(&str, String); 12] = [
        ("payload", view.to_string()),
        ("original_stream", message.stream.to_string()),
        ("original_id", message.id.to_string()),
        ("group", cx.lane.group.to_string()),
        ("plugin", decided.version.plugin.clone()),
        ("digest", decided.version.digest.clone()),
        ("code", code.to_string()),
        ("reason", reason),
        ("attempts", record::write_attempts(&attempts, format)),
        ("trap", truncated(&decided.evidence.backtrace, TRAP_BYTES_MAX)),
        ("log_tail", truncated(&decided.evidence.log_tail, LOG_TAIL_BYTES_MAX)),
        ("redrives", delivery.redrives.to_string()),
    ];
    call.arg(fields.len() * 2);
    for (name, value) in fields {
        call.arg(name).arg(value);
    }
}
