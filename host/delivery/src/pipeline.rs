//! THE LIFE OF A MESSAGE, top to bottom.
//!
//! ```text
//!  lane: fetch ─▶ receive() ─▶ Job ─▶ Runner: the handler's outcome or fault ─▶ judge() ─▶ lane: batch, settle
//!                    │                                                                           ▲
//!                    └── does not decode, too large, a cycle, not wanted: a verdict at once ─────┘
//! ```
//!
//! Nothing here writes to Redis: a verdict is data until the lane settles it. A delivery that is dropped on the way stays
//! pending, which is safe.

use std::collections::HashMap;
use std::sync::Arc;

use cofferdam_model::route::HOPS_MAX;
use cofferdam_model::verdict::Situation;
use cofferdam_model::{Delivery, Fault, HostState, Outcome, Token, decide};
use cofferdam_streams::codec::{Origin, take_origin};
use cofferdam_streams::{Decided, Decoded, Evidence, LaneKeys, RawEntry, Subscription, Taken, decode, planted};

use crate::runner::{Ran, Terms};

/// How a lane's entries become messages: by the stream that they were published on.
#[derive(Debug)]
pub struct Reader {
    by_stream: HashMap<Arc<str>, Subscription>,
    stream: Arc<str>,
    is_redrive: bool,
}

impl Reader {
    /// For a lane, with all of its plugin's subscriptions (a redrive stream carries entries of each).
    pub fn new(keys: &LaneKeys, subscriptions: impl Iterator<Item = Subscription>) -> Self {
        let by_stream = subscriptions.map(|sub| (sub.stream.clone(), sub)).collect();
        Reader { stream: keys.stream.clone(), is_redrive: keys.is_redrive(), by_stream }
    }

    fn subscription(&self, stream: &str) -> Subscription {
        self.by_stream.get(stream).cloned().unwrap_or_else(|| Subscription::plain(stream))
    }
}

impl Reader {
    /// By which key an entry of the lane's own stream is kept in order; `None` when it has none.
    pub(crate) fn key_of(&self, entry: RawEntry) -> Option<Arc<str>> {
        let id = entry.id;
        match decode(entry, id, &self.subscription(&self.stream)) {
            Decoded::Message(message) => message.key.map(Arc::from),
            Decoded::Filtered(_) | Decoded::Init(_) | Decoded::Malformed { .. } => None,
        }
    }
}

/// What a lane does with an entry that has come in.
pub(crate) enum Received {
    /// A handler is to see it.
    Deliver(Delivery),
    /// Its result is clear without one.
    Known(Ran),
}

/// From an entry to a delivery, or to a result without a run.
pub(crate) fn receive(taken: Taken, reader: &Reader, terms: &Arc<Terms>) -> Received {
    let Taken { mut entry, token, attempts, releases } = taken;
    let (entry_id, bytes) = (entry.id, entry.bytes());
    // Only on a redrive stream, which nobody but the host writes: elsewhere a producer could forge where a message is from.
    let origin = if reader.is_redrive { take_origin(&mut entry) } else { None };
    let is_back = origin.is_some();
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
    let (mut message, early) = match decoded {
        Decoded::Message(message) => (message, None),
        Decoded::Filtered(message) | Decoded::Init(message) => (message, Some(Ok(Outcome::Events(Vec::new())))),
        Decoded::Malformed { text, message } => (message, Some(Err(Fault::Malformed { text }))),
    };
    if is_back {
        // It is out of its stream's order, and says so.
        message.attributes.push((String::from("cofferdam_redrives"), redrives.to_string()));
    }
    let delivery = Delivery { entry: entry_id, token, message, attempts, releases, redrives };
    let limit_bytes = terms.message_bytes_max;
    let early = match early {
        Some(early) => Some(early),
        None if bytes > limit_bytes => Some(Err(Fault::TooLarge { bytes, limit_bytes })),
        None if delivery.message.hops() >= HOPS_MAX => {
            Some(Err(Fault::Loop { hops: delivery.message.hops(), limit: HOPS_MAX }))
        }
        None if terms.retry.is_host_killer(delivery.silent_hosts()) => {
            Some(Err(Fault::HostCrashes { hosts: delivery.silent_hosts() }))
        }
        None => None,
    };
    match early {
        None => Received::Deliver(delivery),
        Some(result) => {
            let (terms, evidence) = (Some(terms.clone()), Evidence::default());
            Received::Known(Ran { delivery, result, terms, evidence, host: HostState::Running })
        }
    }
}

/// From what came back to a verdict. `terms` are the present ones, for a delivery that no version ran.
pub(crate) fn judge(ran: Ran, terms: &Arc<Terms>, breaker_open: bool, jitter: f64) -> Decided {
    let terms = ran.terms.as_ref().unwrap_or(terms);
    let from_token = || u32::try_from(ran.delivery.token.0).unwrap_or(u32::MAX);
    let situation = Situation {
        attempt: if planted("attempts-from-token") { from_token() } else { ran.delivery.attempt(&terms.forgiven) },
        deaths: ran.delivery.deaths(&terms.forgiven),
        host: ran.host,
        breaker_open,
        jitter,
    };
    let verdict = decide(ran.result, &terms.retry, situation);
    Decided { delivery: ran.delivery, verdict, version: terms.stamp.clone(), evidence: ran.evidence }
}

/// A new entry, as a delivery without a past.
pub(crate) fn fresh(entry: RawEntry) -> Taken {
    Taken { entry, token: Token(1), attempts: Vec::new(), releases: 0 }
}
