//! What came in: an entry of a stream as a handler sees it, and the delivery that wraps it.
//!
//! How the fields of an entry become a [`Message`] is the codec's business (the streams crate); nothing here parses JSON.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::ReasonCode;

/// The id of an entry in its stream: milliseconds and a sequence number, in the order that Redis compares them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Milliseconds since 1970 by the clock of the Redis server (unless a producer chose the id itself).
    pub ms: u64,
    /// Tells apart entries of one millisecond.
    pub seq: u64,
}

impl EntryId {
    /// The id before every entry.
    pub const ZERO: EntryId = EntryId { ms: 0, seq: 0 };
    /// The id after every entry.
    pub const MAX: EntryId = EntryId { ms: u64::MAX, seq: u64::MAX };

    /// The greatest id that is smaller than this one: where a group must stand to be given this entry next.
    pub fn before(self) -> EntryId {
        match (self.ms, self.seq) {
            (0, 0) => EntryId::ZERO,
            (ms, 0) => EntryId { ms: ms - 1, seq: u64::MAX },
            (ms, seq) => EntryId { ms, seq: seq - 1 },
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// An entry id that is not `milliseconds-sequence`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an entry id: write milliseconds-sequence, such as 1795418457352-0")]
pub struct EntryIdError {
    /// What was read instead.
    pub text: String,
}

impl FromStr for EntryId {
    type Err = EntryIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.split_once('-') {
            Some((ms, seq)) => ms.parse().ok().zip(seq.parse().ok()),
            None => text.parse().ok().map(|ms| (ms, 0)),
        };
        parsed
            .map(|(ms, seq)| EntryId { ms, seq })
            .ok_or_else(|| EntryIdError { text: text.chars().take(64).collect() })
    }
}

/// Redis's delivery counter of a pending entry. With the consumer's name it fences: only the latest holder's settle counts.
/// It rises with every claim, including those that a dead host caused, so it is **not** the attempt number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// One entry as a handler sees it. `payload` is strict JSON text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The entry's id in the stream that it was published on.
    pub id: EntryId,
    /// The producer's own id; the entry id when it gave none.
    pub message_id: String,
    /// The stream that it was published on (also when it comes back from the dead letters by a redrive stream).
    pub stream: Arc<str>,
    /// JSON text.
    pub payload: String,
    /// 1 low, 2 normal, 3 high, 4 critical.
    pub priority: u8,
    /// The producer's own time as it wrote it; empty when it wrote none.
    pub timestamp: String,
    /// Who published it.
    pub producer_id: String,
    /// The value that the subscription's `key` points to.
    pub key: Option<String>,
    /// Every other field of the entry, in the order stored.
    pub attributes: Vec<(String, String)>,
}

impl Message {
    /// When Redis accepted the entry, in milliseconds since 1970: the first part of its id.
    pub fn received_ms(&self) -> u64 {
        self.id.ms
    }

    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// How many plugins have handled this message's ancestors, itself not counted; 0 for one from outside.
    pub fn hops(&self) -> u32 {
        self.attribute("cofferdam_hops").and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// One message in the hands of one plugin, with what fences it and what it has been through.
///
/// Dropping a delivery without settling it leaves the entry pending, which is safe: it is found again as a suspect when
/// its lease ends.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The entry's id in the stream it was *read* from: what settle, park and heartbeat name. Differs from `message.id`
    /// only for a redriven message.
    pub entry: EntryId,
    /// The fence, as Redis told it at the read or the claim.
    pub token: Token,
    /// What the handler sees.
    pub message: Message,
    /// The charged attempts so far, with their evidence; this delivery is number `attempts.len() + 1`.
    pub attempts: Vec<crate::Attempt>,
    /// How often it has been given back uncharged.
    pub releases: u32,
    /// How often the message has been sent back from the dead letters.
    pub redrives: u32,
}

impl Delivery {
    /// Which charged try this is: 1 for the first. Deaths of the process that ran it are counted apart, and what it went through
    /// under the versions in `forgiven` is charged to them and not to the message.
    pub fn attempt(&self, forgiven: &[String]) -> u32 {
        self.count(forgiven, |code| code != ReasonCode::HostCrashes).saturating_add(1)
    }

    /// How often a process has died that ran this message and nothing else: evidence against it alone.
    pub fn deaths(&self, forgiven: &[String]) -> u32 {
        self.count(forgiven, |code| code == ReasonCode::HostCrashes)
    }

    fn count(&self, forgiven: &[String], counts: impl Fn(ReasonCode) -> bool) -> u32 {
        let charged =
            self.attempts.iter().filter(|attempt| counts(attempt.code) && !forgiven.contains(&attempt.digest));
        u32::try_from(charged.count()).unwrap_or(u32::MAX)
    }

    /// Claims that neither an attempt nor a release explains: hosts that held it, with whatever else, and fell silent.
    pub fn silent_hosts(&self) -> u64 {
        self.token.0.saturating_sub(1 + self.attempts.len() as u64 + u64::from(self.releases))
    }

    /// Whether it may be what killed a process before: then it runs apart, where its death harms nobody.
    pub fn is_suspect(&self) -> bool {
        self.silent_hosts() > 0 || self.deaths(&[]) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_ids_order_as_redis_orders_them_and_print_as_it_prints() {
        let ids: Vec<EntryId> = ["1-0", "1-5", "2-0", "10-0"].iter().map(|t| t.parse().unwrap()).collect();
        assert!(ids.is_sorted());
        assert_eq!(ids.iter().map(EntryId::to_string).collect::<Vec<_>>(), ["1-0", "1-5", "2-0", "10-0"]);
        assert_eq!("7".parse::<EntryId>().unwrap(), EntryId { ms: 7, seq: 0 });
        assert!("x-1".parse::<EntryId>().is_err());
    }

    #[test]
    fn the_id_before_is_the_greatest_smaller_one() {
        assert_eq!(EntryId { ms: 5, seq: 3 }.before(), EntryId { ms: 5, seq: 2 });
        assert_eq!(EntryId { ms: 5, seq: 0 }.before(), EntryId { ms: 4, seq: u64::MAX });
        assert_eq!(EntryId::ZERO.before(), EntryId::ZERO);
    }
}
