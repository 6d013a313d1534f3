//! What a run under fire left behind, judged from Redis alone: every chaos test ends here.
//!
//! A test publishes [`payload`]s numbered from 0, does its worst, waits until [`unsettled`] is 0, and asks [`check`].

use std::collections::BTreeMap;

use serde_json::Value;

use crate::Redis;

/// What a run under fire left behind. A good run leaves the default, which is nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Published, and neither emitted nor among the dead letters.
    pub lost: usize,
    /// Outputs and dead letters that stand there twice.
    pub doubled: usize,
    /// Messages of whose outputs only some are there.
    pub partial: usize,
    /// Messages among the dead letters that do not belong there.
    pub innocents: usize,
    /// Poison that is not among the dead letters.
    pub poison_missing: usize,
    /// Entries that the group holds or has not read.
    pub unsettled: u64,
}

impl Left {
    /// Takes in how one message ended: the outputs that it should have (poison has none), those that are there, and whether it
    /// is among the dead letters.
    pub fn note(&mut self, expected: usize, found: usize, dead: bool) {
        match (expected, found, dead) {
            (0, _, false) => self.poison_missing += 1,
            (0, ..) => {}
            (_, 0, true) => self.innocents += 1,
            (_, 0, false) => self.lost += 1,
            (expected, found, _) if found < expected => self.partial += 1,
            _ => {}
        }
    }
}

/// What the ledger of a lane counts.
#[derive(Debug, PartialEq, Eq)]
pub struct Counted {
    /// Messages that were committed.
    pub committed: u64,
    /// Dead letters.
    pub dead: u64,
    /// Charged attempts.
    pub retried: u64,
}

/// Every 500th message is poison: it always traps, and must end among the dead letters. Every 20th fails at its first try.
pub fn payload(seq: u64) -> String {
    if is_poison(seq) {
        format!(r#"{{"do":"trap","seq":{seq}}}"#)
    } else if fails_at_first(seq) {
        format!(r#"{{"do":"trap-below","n":2,"seq":{seq}}}"#)
    } else {
        format!(r#"{{"do":"emit","n":2,"seq":{seq},"busy_us":2000}}"#)
    }
}

/// Whether a message always traps.
pub fn is_poison(seq: u64) -> bool {
    seq % 500 == 499
}

/// Whether a message traps once, and succeeds at its second try.
pub fn fails_at_first(seq: u64) -> bool {
    !is_poison(seq) && seq % 20 == 7
}

/// How many outputs a message must have in the end.
pub fn outputs_of(seq: u64) -> usize {
    if is_poison(seq) {
        0
    } else if fails_at_first(seq) {
        1
    } else {
        2
    }
}

/// What the ledger must count when nothing but the payloads themselves was to blame for a failure: each failure of a guest
/// once, and none that came of Redis, of the network or of a host's death. For plugins with `retries = 2`.
pub fn ledger_of(published: u64) -> Counted {
    let count = |of: fn(u64) -> bool| (0..published).filter(|seq| of(*seq)).count() as u64;
    let (poison, at_first) = (count(is_poison), count(fails_at_first));
    Counted { committed: published - poison, dead: poison, retried: at_first + 2 * poison }
}

/// What the ledger of the actor's lane counts.
pub fn ledger(redis: &Redis) -> Counted {
    let count = |field| redis.number(&["HGET", "cofferdam:ledger:stream:in|group:actor", field]);
    Counted { committed: count("committed"), dead: count("dead"), retried: count("retried") }
}

/// Whether the long form of every chaos test is wanted: `COFFERDAM_CHAOS=full`.
pub fn full_length() -> bool {
    std::env::var_os("COFFERDAM_CHAOS").is_some_and(|length| length == "full")
}

/// How many entries of the actor's input are not settled: those that the group holds, and those that it has not read. At the end of the
/// stream these are none, whatever Redis says: the lag of Redis 7.0 is wrong after a rewrite of its append-only file and a restart.
pub fn unsettled(redis: &Redis) -> u64 {
    let groups = redis.cli(&["XINFO", "GROUPS", "stream:in"]);
    let stream = redis.cli(&["XINFO", "STREAM", "stream:in"]);
    let of = |text: &str, name: &str| text.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
    let number = |name: &str| of(&groups, name).and_then(|text| text.parse().ok()).unwrap_or(1);
    let read = of(&groups, "last-delivered-id");
    let unread = if read.is_some() && read == of(&stream, "last-generated-id") { 0 } else { number("lag").max(1) };
    number("pending") + unread
}

/// Compares the outputs and the dead letters with what was published: the payloads 0 to `published`, each once.
pub fn check(redis: &Redis, published: u64) -> Left {
    let mut left = Left { unsettled: unsettled(redis), ..Left::default() };
    let mut seen: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    for line in redis.cli(&["XRANGE", "stream:out", "-", "+"]).lines().filter(|line| line.starts_with("{\"")) {
        let event: Value = serde_json::from_str(line).unwrap();
        *seen.entry((event["seq"].as_u64().unwrap(), event["index"].as_u64().unwrap())).or_default() += 1;
    }
    let mut dead: BTreeMap<u64, usize> = BTreeMap::new();
    for line in
        redis.cli(&["XRANGE", "stream:dead_letter", "-", "+"]).lines().filter(|line| line.starts_with("{\"do\""))
    {
        let original: Value = serde_json::from_str(line).unwrap();
        *dead.entry(original["seq"].as_u64().unwrap()).or_default() += 1;
    }
    left.doubled =
        seen.values().filter(|count| **count > 1).count() + dead.values().filter(|count| **count > 1).count();
    // Which, so that their entries can be looked for in the logs and in Redis.
    for (what, count) in seen.iter().filter(|(_, count)| **count > 1).take(5) {
        println!("output {} of message {} is there {count} times", what.1, what.0);
    }
    for seq in 0..published {
        let (expected, found) = (outputs_of(seq), seen.range((seq, 0)..(seq + 1, 0)).count());
        left.note(expected, found, dead.contains_key(&seq));
    }
    println!("published {published}, outputs {}, dead letters {}: {left:?}", seen.len(), dead.len());
    left
}
