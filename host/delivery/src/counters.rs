//! Every counter, and the one identity that they must keep: received = committed + filtered + retried + released + dead-lettered
//! + lost leases + in flight.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cofferdam_model::ReasonCode;
use cofferdam_streams::Settled;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// What one lane has done since the host started.
#[derive(Debug, Default)]
pub struct Counters {
    received: AtomicU64,
    committed: AtomicU64,
    filtered: AtomicU64,
    retried: AtomicU64,
    released: AtomicU64,
    dead: AtomicU64,
    lost_lease: AtomicU64,
    outputs: AtomicU64,
    /// Failures by reason, retried or dead.
    reasons: Mutex<BTreeMap<ReasonCode, u64>>,
    /// Why the lane does not read at the moment; empty when it does.
    held_back: Mutex<String>,
    /// What it cannot do at the moment, or could not of late.
    troubles: Mutex<BTreeMap<Doing, Trouble>>,
}

/// What a lane asks of Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doing {
    /// Reading: new entries, due retries, what a dead host held.
    Reading,
    /// Writing what deliveries came to.
    Settling,
    /// Renewing the leases of what it holds.
    Renewing,
    /// Asking who keeps the order of the keys.
    Owning,
}

#[derive(Debug)]
struct Trouble {
    why: String,
    said: Instant,
    stands: bool,
}

/// The same trouble is said again after this long.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Deliveries that have come in.
    pub received: u64,
    /// Committed with outputs.
    pub committed: u64,
    /// Committed without outputs.
    pub filtered: u64,
    /// Charged and parked.
    pub retried: u64,
    /// Given back uncharged.
    pub released: u64,
    /// Dead-lettered.
    pub dead: u64,
    /// Settled by nobody here: another host holds them now.
    pub lost_lease: u64,
    /// Outputs written.
    pub outputs: u64,
    /// Failures by reason.
    pub reasons: BTreeMap<String, u64>,
}

impl Counters {
    /// A delivery has come in.
    pub fn received(&self, count: u64) {
        self.received.fetch_add(count, Ordering::Relaxed);
    }

    /// A delivery has been settled.
    pub fn settled(&self, settled: Settled) {
        let counter = match settled {
            Settled::Committed { outputs } => {
                self.outputs.fetch_add(u64::from(outputs), Ordering::Relaxed);
                &self.committed
            }
            Settled::Filtered => &self.filtered,
            Settled::Retried(code) => {
                self.count_reason(code);
                &self.retried
            }
            Settled::Dead(code) => {
                self.count_reason(code);
                &self.dead
            }
            Settled::Released => &self.released,
            Settled::LeaseLost | Settled::Left => &self.lost_lease,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The lane does not read, and this is why; an empty text says that it reads again.
    pub fn hold_back(&self, why: &str) {
        let mut held_back = self.held_back.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *held_back != why {
            why.clone_into(&mut held_back);
        }
    }

    /// Why the lane does not read at the moment; empty when it does.
    pub fn held_back(&self) -> String {
        self.held_back.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// This is refused, and tried again. Whether it is worth a line of the log: a lane tries every few seconds for as long as it takes.
    pub fn fails(&self, doing: Doing, why: String) -> bool {
        let mut troubles = self.troubles.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        let before = troubles.get(&doing).filter(|trouble| trouble.why == why && now - trouble.said < SAID_AGAIN_AFTER);
        let said = before.map_or(now, |trouble| trouble.said);
        let is_news = before.is_none();
        troubles.insert(doing, Trouble { why, said, stands: true });
        is_news
    }

    /// This is done again.
    pub fn works(&self, doing: Doing) {
        let mut troubles = self.troubles.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        troubles.get_mut(&doing).into_iter().for_each(|trouble| trouble.stands = false);
    }

    /// What cannot be done at the moment, and why.
    pub fn troubles(&self) -> Vec<(Doing, String)> {
        let troubles = self.troubles.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let standing = troubles.iter().filter(|(_, trouble)| trouble.stands);
        standing.map(|(doing, trouble)| (*doing, trouble.why.clone())).collect()
    }

    fn count_reason(&self, code: ReasonCode) {
        let mut reasons = self.reasons.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *reasons.entry(code).or_default() += 1;
    }

    /// The counters now.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let reasons = self.reasons.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Counts {
            received: of(&self.received),
            committed: of(&self.committed),
            filtered: of(&self.filtered),
            retried: of(&self.retried),
            released: of(&self.released),
            dead: of(&self.dead),
            lost_lease: of(&self.lost_lease),
            outputs: of(&self.outputs),
            reasons: reasons.iter().map(|(code, count)| (code.to_string(), *count)).collect(),
        }
    }
}

impl Counts {
    /// Deliveries that have come in and are not settled.
    pub fn in_flight(&self) -> u64 {
        let settled = self.committed + self.filtered + self.retried + self.released + self.dead + self.lost_lease;
        self.received.saturating_sub(settled)
    }

    /// Adds another lane's counts.
    pub fn add(&mut self, other: &Counts) {
        for (mine, theirs) in [
            (&mut self.received, other.received),
            (&mut self.committed, other.committed),
            (&mut self.filtered, other.filtered),
            (&mut self.retried, other.retried),
            (&mut self.released, other.released),
            (&mut self.dead, other.dead),
            (&mut self.lost_lease, other.lost_lease),
            (&mut self.outputs, other.outputs),
        ] {
            *mine += theirs;
        }
        for (code, count) in &other.reasons {
            *self.reasons.entry(code.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_said_once_and_stands_until_it_is_over() {
        let counters = Counters::default();
        let fails = |why: &str| counters.fails(Doing::Reading, why.to_owned());
        assert_eq!([fails("no right"), fails("no right"), fails("no memory")], [true, false, true]);
        assert_eq!(counters.troubles(), [(Doing::Reading, String::from("no memory"))]);
        counters.works(Doing::Reading);
        assert_eq!(counters.troubles(), []);
        // One that comes and goes is not said each time.
        assert!(!fails("no memory"));
    }
}
