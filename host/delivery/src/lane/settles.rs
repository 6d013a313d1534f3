//! The part of a lane that settles: verdicts into batches, batches to Redis for as long as it takes, leases renewed and given
//! back, and the gates that stop the reading while Redis refuses writes.

use std::cmp::Reverse;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cofferdam_model::{EntryId, Token, Verdict};
use cofferdam_streams::{Decided, Holding, LaneKeys, Remedy, SettleContext, Settled, Store, StreamError, Tenure};
use tokio::time::{Instant, sleep, timeout};

use super::{Done, Lane, Mode, PAUSE_MAX, PAUSE_MIN, SETTLES_MAX};
use crate::counters::{Counters, Doing};
use crate::runner::{Surroundings, iso};

/// Messages of one settle, and its bytes: beyond them Redis is busy for too long at a time.
const SETTLE_MESSAGES: usize = 256;
const SETTLE_BYTES: usize = 1 << 20;
/// Longest that a leaving lane takes to give back what it holds.
pub(super) const GIVE_BACK_TIME: Duration = Duration::from_secs(2);

/// Closed for a while when Redis refuses writes. Redis still hands out entries then, so that reading on would only move the
/// stream into the pending list: whoever reads looks here first. One for a whole host.
#[derive(Debug, Default)]
pub struct Gate {
    closed_until: Mutex<Option<Instant>>,
}

impl Gate {
    pub(super) fn close(&self, until: Instant) {
        let mut closed = self.closed_until.lock().unwrap_or_else(PoisonError::into_inner);
        *closed = Some(closed.map_or(until, |before| before.max(until)));
    }

    pub(super) fn open(&self) {
        *self.closed_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Until when nothing is to be read.
    pub(super) fn closed_until(&self) -> Option<Instant> {
        *self.closed_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a batch.
pub(super) struct SettledBatch {
    results: Vec<(EntryId, Token, Settled, Option<Duration>)>,
    tenure: Option<Tenure>,
    pause: bool,
}

impl Lane {
    /// Settles at once when nothing else is under way, or when a batch is full; otherwise verdicts wait for company.
    pub(super) fn flush(&mut self, mode: Mode) {
        let full = self.decided.len() >= SETTLE_MESSAGES || self.decided_bytes >= SETTLE_BYTES;
        if (full || self.settles == 0) && self.may_flush(mode) {
            self.flush_now();
        }
    }

    /// Whether another settle may be under way. Where an order is kept, each has to know what came of the one before, and of a
    /// survey that is due.
    pub(super) fn may_flush(&self, mode: Mode) -> bool {
        let most = if self.order.is_some() { 1 } else { SETTLES_MAX };
        self.settles < most && !self.looks_first(mode)
    }

    pub(super) fn flush_now(&mut self) {
        self.drop_untimely();
        if self.decided.is_empty() {
            (self.decided_bytes, self.first_decided) = (0, None);
            return;
        }
        // What is over a batch's size waits for the next; one oversized message goes alone.
        let (mut count, mut bytes) = (0, 0);
        for one in self.decided.iter().take(SETTLE_MESSAGES) {
            bytes += one.bytes();
            if count > 0 && bytes > SETTLE_BYTES {
                break;
            }
            count += 1;
        }
        let rest = self.decided.split_off(count.min(self.decided.len()));
        let batch = std::mem::replace(&mut self.decided, rest);
        self.decided_bytes = self.decided.iter().map(Decided::bytes).sum();
        self.first_decided = (!self.decided.is_empty()).then(Instant::now);
        self.settles += 1;
        let (store, keys, consumer) = self.for_redis();
        let (surroundings, counters) = (self.parts.surroundings.clone(), self.parts.counters.clone());
        let (host, own, tenure) = (self.parts.gate.clone(), self.own_gate.clone(), self.tenure());
        self.begin(async move {
            let told = Told { host: &host, own: &own, counters: &counters };
            Done::Settled(settle_until_taken(&store, &keys, (&consumer, tenure), &*surroundings, told, batch).await)
        });
    }

    pub(super) fn account(&mut self, batch: SettledBatch) {
        self.settles -= 1;
        if let Some(tenure) = batch.tenure {
            let finished =
                |settled| matches!(settled, Settled::Committed { .. } | Settled::Filtered | Settled::Dead(_));
            self.note_finished(tenure, batch.results.iter().filter(|one| finished(one.2)).count() as u64);
        }
        let (mut freed, mut refused) = (Vec::new(), Vec::new());
        for (id, token, settled, delay) in batch.results {
            // Redis may have given it to us anew meanwhile, under another token.
            if self.in_flight.get(&id).is_some_and(|held| held.token == token)
                && let Some(held) = self.let_out(id)
                && settled == Settled::LeaseLost
            {
                refused.push(held.holding(id));
            }
            if settled != Settled::LeaseLost || !self.is_stray(id, token) {
                self.parts.counters.settled(settled);
            }
            freed.extend(self.next_of_key(id, settled));
            if let (Settled::Retried(_) | Settled::Released, Some(delay)) = (settled, delay) {
                self.parked += 1;
                // Redis keeps idle times in whole milliseconds.
                self.due.push(Reverse(Instant::now() + delay + Duration::from_millis(2)));
            }
        }
        self.let_go(refused);
        self.run_admitted(freed);
        if batch.pause {
            self.pause_reading();
        }
    }

    /// Renews the lease of what has been held for a while, running or waiting.
    pub(super) fn renew(&mut self) {
        let (old, now) = (self.parts.delivery.lease / 4, Instant::now());
        let held: Vec<(EntryId, Token)> = self
            .in_flight
            .iter()
            .filter(|(_, held)| now - held.renewed > old)
            .map(|(id, held)| (*id, held.token))
            .collect();
        if held.is_empty() {
            self.parts.counters.works(Doing::Renewing);
        }
        if held.is_empty() || self.renewing {
            return;
        }
        self.renewing = true;
        let (store, keys, consumer) = self.for_redis();
        self.begin(async move {
            let renewed = store.heartbeat(&keys, &consumer, &held).await;
            Done::Renewed(held.into_iter().map(|(id, _)| id).collect(), renewed)
        });
    }

    pub(super) fn take_renewed(&mut self, held: &[EntryId], renewed: Result<Vec<EntryId>, StreamError>) {
        self.renewing = false;
        let (plugin, stream) = (&self.parts.plugin, &self.parts.keys.stream);
        match renewed {
            Ok(mut lost) => {
                self.parts.counters.works(Doing::Renewing);
                // What was settled meanwhile is not lost.
                lost.retain(|id| self.in_flight.contains_key(id));
                let now = Instant::now();
                for id in held {
                    if let Some(held) = self.in_flight.get_mut(id) {
                        held.renewed = now;
                    }
                }
                if !lost.is_empty() {
                    tracing::warn!(%plugin, %stream, count = lost.len(),
                        "leases were lost to another host; what these deliveries bring is refused");
                }
            }
            Err(error) => {
                if self.parts.counters.fails(Doing::Renewing, error.to_string()) {
                    tracing::warn!(%plugin, %stream, %error, "cannot renew leases");
                }
            }
        }
    }

    /// Gives back what could not be finished in time, so that others need not wait for its lease to end.
    pub(super) async fn give_back(&mut self) {
        let held: Vec<Holding> =
            std::mem::take(&mut self.in_flight).into_iter().map(|(entry, held)| held.holding(entry)).collect();
        let now_ms = self.parts.surroundings.now_ms();
        let now = iso(now_ms);
        let (lane, tenure) = (&self.parts.keys, self.tenure());
        let cx = SettleContext { lane, consumer: &self.parts.consumer, now_ms, now: &now, tenure };
        let given = timeout(GIVE_BACK_TIME, self.parts.store.give_back(&cx, &held)).await;
        let (plugin, stream, count) = (&self.parts.plugin, &self.parts.keys.stream, held.len());
        let released = given.as_ref().map_or(0, |given| *given.as_ref().unwrap_or(&0));
        for place in 0..count {
            self.parts.counters.settled(if place < released { Settled::Released } else { Settled::LeaseLost });
        }
        match given {
            Ok(Ok(given)) => {
                tracing::warn!(%plugin, %stream, given, "gave back, uncharged, what was not finished in time")
            }
            Ok(Err(_)) | Err(_) => tracing::warn!(%plugin, %stream, count,
                "stopped before everything was finished; the rest stays pending and is taken over by others"),
        }
    }
}

/// Whoever is told of a refused settle: the gates, and the lane's counters.
#[derive(Clone, Copy)]
struct Told<'a> {
    host: &'a Gate,
    own: &'a Gate,
    counters: &'a Counters,
}

/// Settles a batch, however long Redis takes to be able to: the fence makes it safe to send the same again.
async fn settle_until_taken(
    store: &Store,
    keys: &LaneKeys,
    (consumer, tenure): (&str, Option<Tenure>),
    surroundings: &dyn Surroundings,
    told: Told<'_>,
    batch: Vec<Decided>,
) -> SettledBatch {
    let mut pause = PAUSE_MIN;
    let mut closed = None;
    let (mut results, mut reached) = (vec![None; batch.len()], tenure);
    // What has no result is not ours any more.
    let ended = |results: Vec<Option<Settled>>, pause| {
        let results = batch.iter().zip(results).map(|(Decided { delivery, verdict, .. }, settled)| {
            let delay = match verdict {
                Verdict::RetryAfter { delay, .. } | Verdict::Release { delay } => Some(*delay),
                Verdict::Commit { .. } | Verdict::DeadLetter { .. } | Verdict::LeavePending => None,
            };
            (delivery.entry, delivery.token, settled.unwrap_or(Settled::LeaseLost), delay)
        });
        SettledBatch { results: results.collect(), tenure, pause }
    };
    loop {
        let now_ms = surroundings.now_ms();
        let now = iso(now_ms);
        let mut cx = SettleContext { lane: keys, consumer, now_ms, now: &now, tenure: reached };
        let outcome = store.settle(&mut cx, &batch, &mut results).await;
        reached = cx.tenure;
        let Err(error) = outcome else {
            closed.inspect(|gate: &&Gate| gate.open());
            told.counters.works(Doing::Settling);
            return ended(results, false);
        };
        let remedy = error.remedy();
        // The group is gone and with it our hold on these entries; they come again from the floor.
        if remedy == Remedy::RecreateGroup {
            tracing::error!(stream = %keys.stream, group = %keys.group, %error, "cannot settle");
            told.counters.works(Doing::Settling);
            return ended(results, true);
        }
        let is_news = told.counters.fails(Doing::Settling, error.to_string());
        if remedy == Remedy::Repeat {
            if is_news {
                tracing::warn!(stream = %keys.stream, %error, "cannot settle; trying again");
            }
        } else {
            // A server that takes no writes concerns every lane; whatever else an operator must mend, this one alone.
            let gate = if remedy == Remedy::StopReading { told.host } else { told.own };
            gate.close(Instant::now() + pause * 2 + Duration::from_secs(1));
            closed = Some(gate);
            if is_news {
                tracing::error!(stream = %keys.stream, %error, "cannot settle; reading has stopped until it is taken");
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
