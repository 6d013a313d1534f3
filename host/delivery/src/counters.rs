//! Every counter, and the one identity that they must keep: received = committed + filtered + retried + released + dead-lettered
//! + lost leases + in flight.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cofferdam_model::ReasonCode;
use cofferdam_streams::Settled;
use serde::{Deserialize, Serialize};

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
}

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
