//! One lane: the loop that moves one (plugin, stream). Fetch, hand to the plugin's threads, batch the verdicts, settle.
//!
//! A lane owns all of its state; nothing is shared but the plugin's seat, its threads and its counters. What it reads ahead is
//! bounded by time: a third of the lease at the plugin's recent pace.
//!
//! Left to others: suspects of silent hosts (`suspects.rs`), which versions run (`reload.rs`).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cofferdam_model::{Delivery, EntryId, Token, Verdict};
use cofferdam_sandbox::{Refused, Workers};
use cofferdam_streams::{
    Decided, Ensured, LaneKeys, RawEntry, Remedy, SettleContext, Settled, Start, Store, StreamError, TakeFor, Taken,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::clock;
use crate::config::DeliveryConfig;
use crate::pipeline::{Job, Reader, Received, fresh, receive};
use crate::telemetry::Counters;
use crate::version::Seat;

/// What a lane is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Read and work.
    Run,
    /// Finish what is under way, read nothing new.
    Pause,
    /// Finish or give back what is under way, then end.
    Stop,
}

/// Entries of one read.
const FETCH_MAX: usize = 500;
/// Due retries of one take: each is claimed and looked up by the script.
const TAKE_MAX: usize = 100;
/// Messages of one settle, and its bytes: beyond them Redis is busy for too long at a time.
const SETTLE_MESSAGES: usize = 256;
const SETTLE_BYTES: usize = 1 << 20;
/// Settles under way at once: at two the next is encoded while Redis works on the last; more gains nothing measurable.
const SETTLES_MAX: usize = 3;
/// Longest that a verdict waits for company while another settle is under way.
const FLUSH_AFTER: Duration = Duration::from_millis(1);
/// Work that one thread is given at a time.
const JOB_TIME: Duration = Duration::from_millis(2);
const JOB_MAX: usize = 64;
/// Parked entries of other hosts are looked for this often; one's own are taken when they are due.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// First and longest pause after an error of Redis.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What a lane and the search for its suspects have in common.
pub(crate) struct LaneShared {
    pub(crate) store: Store,
    pub(crate) keys: LaneKeys,
    pub(crate) plugin: Arc<str>,
    pub(crate) consumer: Arc<str>,
    pub(crate) seat: Arc<Seat>,
    pub(crate) workers: Arc<Workers<Job>>,
    pub(crate) threads: usize,
    pub(crate) counters: Arc<Counters>,
    pub(crate) delivery: DeliveryConfig,
    /// Set after an error: Redis may believe that this consumer holds entries which nobody here knows of.
    pub(crate) reconcile: AtomicBool,
    /// The suspect that is being run at the moment, which is no such entry.
    pub(crate) suspect: Mutex<Option<EntryId>>,
}

/// What a lane is made of.
pub(crate) struct LaneParts {
    pub(crate) shared: Arc<LaneShared>,
    pub(crate) start: Start,
    pub(crate) reader: Reader,
    /// Rings when the stream has news; the host's doorbell holds the other end.
    pub(crate) bell: watch::Receiver<u64>,
    /// What to do; the supervisor holds the other end.
    pub(crate) mode: watch::Receiver<Mode>,
}

/// What Redis knows that this consumer holds.
struct Held {
    token: Token,
    renewed: Instant,
}

/// A lane at work.
pub(crate) struct Lane {
    parts: LaneParts,
    in_flight: HashMap<EntryId, Held>,
    /// Verdicts that wait for their settle.
    decided: Vec<Decided>,
    decided_bytes: usize,
    first_decided: Option<Instant>,
    settles: JoinSet<SettledBatch>,
    /// When entries that this lane parked are due.
    due: BinaryHeap<Reverse<Instant>>,
    /// When to look for what other hosts have parked.
    sweep_at: Instant,
    /// Deliveries that the host itself could not run; tried again a little later.
    again: VecDeque<Delivery>,
    again_at: Instant,
    pace: Pace,
    verdicts: (mpsc::UnboundedSender<Vec<Decided>>, mpsc::UnboundedReceiver<Vec<Decided>>),
    stopping: Arc<AtomicBool>,
    news: bool,
    pause: Duration,
    read_after: Instant,
}

struct SettledBatch {
    results: Vec<(EntryId, Settled, Option<Duration>)>,
    refused: bool,
}

enum Read {
    New(Result<Vec<RawEntry>, StreamError>),
    Due(Result<(u64, Vec<Taken>), StreamError>),
}

impl Lane {
    pub(crate) fn new(parts: LaneParts) -> Self {
        let now = Instant::now();
        Lane {
            pace: Pace::default(),
            in_flight: HashMap::new(),
            decided: Vec::new(),
            decided_bytes: 0,
            first_decided: None,
            settles: JoinSet::new(),
            due: BinaryHeap::new(),
            sweep_at: now,
            again: VecDeque::new(),
            again_at: now,
            verdicts: mpsc::unbounded_channel(),
            stopping: Arc::new(AtomicBool::new(false)),
            news: true,
            pause: PAUSE_MIN,
            read_after: now,
            parts,
        }
    }

    /// Runs until told to stop, then until what is under way is finished or given back.
    pub(crate) async fn run(mut self) {
        self.open().await;
        let mut read: Option<tokio::task::JoinHandle<Read>> = None;
        let mut heartbeat = tokio::time::interval(self.parts.shared.delivery.lease / 3);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop_by: Option<Instant> = None;
        loop {
            let mode = *self.parts.mode.borrow_and_update();
            if mode == Mode::Stop && stop_by.is_none() {
                self.stopping.store(true, Ordering::Relaxed);
                stop_by = Some(Instant::now() + self.parts.shared.delivery.grace);
            }
            if stop_by.is_some() && read.is_none() && self.in_flight.is_empty() && self.settles.is_empty() {
                return;
            }
            self.flush();
            if read.is_none() && mode == Mode::Run {
                read = self.start_read();
            }
            let flush_at = self.first_decided.map(|at| at + FLUSH_AFTER);
            let may_flush = self.settles.len() < SETTLES_MAX;
            let wake_at = self.wake_at(mode, read.is_some());
            tokio::select! {
                biased;
                Some(decided) = self.verdicts.1.recv() => self.take_verdicts(decided),
                Some(done) = self.settles.join_next(), if !self.settles.is_empty() => self.account(done),
                done = join(&mut read), if read.is_some() => {
                    read = None;
                    self.take_read(done).await;
                }
                () = sleep_until(flush_at.unwrap_or_else(Instant::now)), if flush_at.is_some() && may_flush => self.flush_now(),
                _ = heartbeat.tick() => {
                    self.heartbeat().await;
                    if mode == Mode::Run && self.parts.shared.reconcile.load(Ordering::Relaxed) {
                        self.reconcile().await;
                    }
                }
                changed = self.parts.bell.changed(), if mode == Mode::Run => {
                    // The host drops the bells when it ends; the stop message comes by `mode`.
                    if changed.is_err() { sleep(PAUSE_MIN).await }
                    self.news = true;
                }
                changed = self.parts.mode.changed(), if stop_by.is_none() => {
                    if changed.is_err() { return }
                }
                () = sleep_until(wake_at) => self.wake(),
                () = sleep_until(stop_by.unwrap_or_else(Instant::now)), if stop_by.is_some() => {
                    tracing::warn!(plugin = %self.parts.shared.plugin, stream = %self.parts.shared.keys.stream, left = self.in_flight.len(),
                        "stopped before everything was finished; the rest stays pending and is taken over by others");
                    return;
                }
            }
        }
    }

    /// Makes sure of the group, as long as it takes.
    async fn open(&mut self) {
        let (plugin, keys) = (self.parts.shared.plugin.clone(), self.parts.shared.keys.clone());
        loop {
            if *self.parts.mode.borrow() == Mode::Stop {
                return;
            }
            match self.parts.shared.store.ensure_group(&keys, self.parts.start).await {
                Ok(Ensured::Existed) => break,
                Ok(Ensured::Created { after }) => {
                    tracing::info!(%plugin, stream = %keys.stream, group = %keys.group, %after, "created the group");
                    break;
                }
                Ok(Ensured::Recreated { floor, last_settled }) => {
                    tracing::error!(%plugin, stream = %keys.stream, group = %keys.group, %floor, %last_settled,
                        "the group was lost and stands at its floor again; what was settled beyond the floor may repeat");
                    break;
                }
                Err(error) => {
                    tracing::warn!(%plugin, stream = %keys.stream, %error, "cannot open the group yet");
                    self.pause_reading();
                    sleep_until(self.read_after).await;
                }
            }
        }
        self.pause = PAUSE_MIN;
        self.read_after = Instant::now();
        // A consumer name is new with every start, so there is nothing of an earlier life to look for.
    }

    /// When to look for parked entries next.
    fn next_due(&self) -> Instant {
        self.due.peek().map_or(self.sweep_at, |due| due.0.min(self.sweep_at))
    }

    /// How many more deliveries may be held.
    fn room(&self) -> usize {
        self.pace.ahead(self.parts.shared.threads, self.parts.shared.delivery).saturating_sub(self.in_flight.len())
    }

    fn start_read(&mut self) -> Option<tokio::task::JoinHandle<Read>> {
        let now = Instant::now();
        let room = self.room();
        if now < self.read_after || self.parts.shared.seat.current().is_none() || room == 0 {
            return None;
        }
        let (store, keys, consumer) =
            (self.parts.shared.store.clone(), self.parts.shared.keys.clone(), self.parts.shared.consumer.clone());
        if self.next_due() <= now {
            while self.due.peek().is_some_and(|due| due.0 <= now) {
                self.due.pop();
            }
            self.sweep_at = now + SWEEP_EVERY;
            let plugin = self.parts.shared.plugin.clone();
            return Some(tokio::spawn(async move {
                let stamp = clock::iso(clock::now_ms());
                let me = TakeFor { consumer: &consumer, plugin: &plugin, now: &stamp };
                Read::Due(store.take_due(&keys, &me, room.min(TAKE_MAX)).await)
            }));
        }
        // Small reads while much is under way would cost a round trip each for a few messages.
        if !self.news || room < FETCH_MAX.min(self.in_flight.len() / 2) {
            return None;
        }
        let count = room.min(FETCH_MAX);
        // Taken down before the read: a bell that rings while it is under way may mean entries that it does not see.
        self.news = false;
        Some(tokio::spawn(async move { Read::New(store.fetch_new(&keys, &consumer, count).await) }))
    }

    async fn take_read(&mut self, done: Option<Read>) {
        match done {
            Some(Read::New(Ok(entries))) => {
                self.pause = PAUSE_MIN;
                self.news |= !entries.is_empty();
                let taken: Vec<Taken> = entries.into_iter().map(fresh).collect();
                self.dispatch(taken);
            }
            Some(Read::Due(Ok((found, taken)))) => {
                self.pause = PAUSE_MIN;
                // Something was due, so more may be: only an empty hand ends the sweep.
                if found > 0 {
                    self.sweep_at = Instant::now();
                }
                self.dispatch(taken);
            }
            Some(Read::New(Err(error)) | Read::Due(Err(error))) => self.read_failed(error).await,
            None => {
                self.parts.shared.reconcile.store(true, Ordering::Relaxed);
                self.news = true;
                self.pause_reading();
            }
        }
    }

    async fn read_failed(&mut self, error: StreamError) {
        let (plugin, stream) = (self.parts.shared.plugin.clone(), self.parts.shared.keys.stream.clone());
        self.sweep_at = Instant::now();
        self.news = true;
        // The request may have been carried out, wholly or in part: then Redis believes that we hold entries.
        self.parts.shared.reconcile.store(true, Ordering::Relaxed);
        match error.remedy() {
            Remedy::RecreateGroup => {
                tracing::error!(%plugin, %stream, %error, "the group is gone; creating it again at its floor");
                // A lane that has read once never starts at the end: with the ledger gone too, what came meanwhile would be lost.
                self.parts.start = Start::Oldest;
                self.open().await;
            }
            Remedy::Repeat => {
                tracing::warn!(%plugin, %stream, %error, "cannot read; trying again");
                self.pause_reading();
            }
            Remedy::StopReading | Remedy::Operator => {
                tracing::error!(%plugin, %stream, %error, "cannot read; trying again");
                self.pause_reading();
            }
        }
    }

    fn pause_reading(&mut self) {
        self.read_after = Instant::now() + self.pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    /// Finds the entries that Redis gave to this consumer in a reply that never arrived.
    async fn reconcile(&mut self) {
        let (store, keys) = (self.parts.shared.store.clone(), self.parts.shared.keys.clone());
        let Ok(held) = store.held_by(&keys, &self.parts.shared.consumer).await else { return };
        let suspect = *self.parts.shared.suspect.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |id: &EntryId| self.in_flight.contains_key(id) || suspect == Some(*id);
        // In steps of the room there is: the rest is found at the next beat.
        let mut unknown: Vec<_> = held.into_iter().filter(|(id, _)| !known(id)).collect();
        let all = unknown.len() <= self.room();
        unknown.truncate(self.room());
        let mut taken = Vec::with_capacity(unknown.len());
        for (id, token) in unknown {
            match store.past_of(&keys, id).await {
                Ok(Some((entry, attempts, releases))) => taken.push(Taken { entry, token, attempts, releases }),
                // Trimmed meanwhile: it is found as a suspect, and leaves its tombstone there.
                Ok(None) => {}
                Err(_) => return,
            }
        }
        if !taken.is_empty() {
            tracing::warn!(plugin = %self.parts.shared.plugin, stream = %keys.stream, count = taken.len(),
                "took up entries whose delivery had been lost on the way");
        }
        self.parts.shared.reconcile.store(!all, Ordering::Relaxed);
        self.dispatch(taken);
    }

    /// Hands entries to the plugin's threads; what needs no handler gets its verdict at once.
    fn dispatch(&mut self, taken: Vec<Taken>) {
        let Some(version) = self.parts.shared.seat.current() else { return };
        let now = Instant::now();
        self.parts.shared.counters.received(taken.len() as u64);
        let mut deliveries = Vec::with_capacity(taken.len());
        for one in taken {
            self.in_flight.insert(one.entry.id, Held { token: one.token, renewed: now });
            match receive(one, &self.parts.reader, &version) {
                Received::Deliver(delivery) => deliveries.push(delivery),
                Received::Settle(decided) => self.take_verdicts(vec![decided]),
            }
        }
        self.submit(deliveries);
    }

    fn submit(&mut self, deliveries: Vec<Delivery>) {
        let share = deliveries.len().div_ceil(self.parts.shared.threads.max(1));
        let size = self.pace.job_size().min(share).max(1);
        let mut rest = deliveries.into_iter().peekable();
        while rest.peek().is_some() {
            let deliveries = rest.by_ref().take(size).collect();
            let (seat, stopping) = (self.parts.shared.seat.clone(), self.stopping.clone());
            let job = Job { deliveries, seat, reply: self.verdicts.0.clone(), stopping };
            if let Err(Refused(job)) = self.parts.shared.workers.submit(job) {
                // No thread to be had: the host's own trouble, so it waits and nothing is charged.
                self.again.extend(job.deliveries);
                self.again_at = Instant::now() + PAUSE_MIN;
            }
        }
    }

    fn take_verdicts(&mut self, decided: Vec<Decided>) {
        for one in decided {
            if one.verdict == Verdict::LeavePending {
                // The host's own trouble: it stays with this consumer, uncharged, and is tried again soon.
                self.again.push_back(one.delivery);
                self.again_at = Instant::now() + PAUSE_MIN;
                continue;
            }
            if !one.evidence.took.is_zero() {
                self.pace.note(one.evidence.took);
            }
            self.decided_bytes += one.bytes();
            self.decided.push(one);
            self.first_decided.get_or_insert_with(Instant::now);
        }
    }

    /// Settles at once when nothing else is under way, or when a batch is full; otherwise verdicts wait for company.
    fn flush(&mut self) {
        let full = self.decided.len() >= SETTLE_MESSAGES || self.decided_bytes >= SETTLE_BYTES;
        let alone = self.settles.is_empty();
        if (full || alone) && self.settles.len() < SETTLES_MAX {
            self.flush_now();
        }
    }

    fn flush_now(&mut self) {
        if self.decided.is_empty() {
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
        let (store, keys, consumer) =
            (self.parts.shared.store.clone(), self.parts.shared.keys.clone(), self.parts.shared.consumer.clone());
        self.settles.spawn(settle_until_taken(store, keys, consumer, batch));
    }

    fn account(&mut self, done: Result<SettledBatch, tokio::task::JoinError>) {
        let Ok(batch) = done else { return };
        for (id, settled, delay) in batch.results {
            self.in_flight.remove(&id);
            self.parts.shared.counters.settled(settled);
            if let (Settled::Retried(_), Some(delay)) = (settled, delay) {
                // Redis keeps idle times in whole milliseconds.
                self.due.push(Reverse(Instant::now() + delay + Duration::from_millis(2)));
            }
        }
        if batch.refused {
            self.pause_reading();
        }
    }

    /// Renews the lease of what has been held for a while, running or waiting.
    async fn heartbeat(&mut self) {
        let old = self.parts.shared.delivery.lease / 4;
        let now = Instant::now();
        let held: Vec<(EntryId, Token)> = self
            .in_flight
            .iter()
            .filter(|(_, held)| now - held.renewed > old)
            .map(|(id, held)| (*id, held.token))
            .collect();
        if held.is_empty() {
            return;
        }
        match self.parts.shared.store.heartbeat(&self.parts.shared.keys, &self.parts.shared.consumer, &held).await {
            Ok(lost) => {
                for (id, _) in &held {
                    if let Some(held) = self.in_flight.get_mut(id) {
                        held.renewed = now;
                    }
                }
                if !lost.is_empty() {
                    tracing::warn!(plugin = %self.parts.shared.plugin, stream = %self.parts.shared.keys.stream, count = lost.len(),
                        "leases were lost to another host; what these deliveries bring is refused");
                }
            }
            Err(error) => {
                tracing::warn!(plugin = %self.parts.shared.plugin, stream = %self.parts.shared.keys.stream, %error, "cannot renew leases")
            }
        }
    }

    fn wake_at(&self, mode: Mode, reading: bool) -> Instant {
        let mut at = Instant::now() + SWEEP_EVERY;
        if mode == Mode::Run && !reading {
            at = at.min(self.next_due().max(self.read_after));
            if self.news && self.read_after > Instant::now() {
                at = at.min(self.read_after);
            }
            // Nothing to run with, or no room: the next look is when something changes.
            if self.room() == 0 || self.parts.shared.seat.current().is_none() {
                at = at.max(Instant::now() + PAUSE_MIN);
            }
        }
        if self.again.is_empty() { at } else { at.min(self.again_at) }
    }

    fn wake(&mut self) {
        if Instant::now() >= self.again_at && !self.again.is_empty() {
            let again: Vec<Delivery> = self.again.drain(..).collect();
            self.submit(again);
        }
    }
}

async fn join(read: &mut Option<tokio::task::JoinHandle<Read>>) -> Option<Read> {
    match read {
        Some(handle) => handle.await.ok(),
        None => std::future::pending().await,
    }
}

/// Settles a batch, however long Redis takes to be able to: the fence makes it safe to send the same again.
async fn settle_until_taken(store: Store, keys: LaneKeys, consumer: Arc<str>, batch: Vec<Decided>) -> SettledBatch {
    let mut pause = PAUSE_MIN;
    let mut refused = false;
    loop {
        let now_ms = clock::now_ms();
        let now = clock::iso(now_ms);
        let cx = SettleContext { lane: &keys, consumer: &consumer, now_ms, now: &now };
        let error = match store.settle(&cx, &batch).await {
            Ok(settled) => {
                let results = batch.iter().zip(settled).map(|(decided, settled)| {
                    let delay = match decided.verdict {
                        Verdict::RetryAfter { delay, .. } => Some(delay),
                        _ => None,
                    };
                    (decided.delivery.entry, settled, delay)
                });
                return SettledBatch { results: results.collect(), refused };
            }
            Err(error) => error,
        };
        match error.remedy() {
            // The group is gone and with it our hold on these entries; they come again from the floor.
            Remedy::RecreateGroup => {
                tracing::error!(stream = %keys.stream, group = %keys.group, %error, "cannot settle");
                let results = batch.iter().map(|decided| (decided.delivery.entry, Settled::LeaseLost, None));
                return SettledBatch { results: results.collect(), refused: true };
            }
            Remedy::Repeat => tracing::warn!(stream = %keys.stream, %error, "cannot settle; trying again"),
            Remedy::StopReading | Remedy::Operator => {
                refused = true;
                tracing::error!(stream = %keys.stream, %error, "cannot settle; trying again");
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// How fast a plugin is, as a moving average of what one message takes.
#[derive(Debug, Default)]
struct Pace {
    took: Option<Duration>,
}

impl Pace {
    fn note(&mut self, took: Duration) {
        self.took = Some(self.took.map_or(took, |average| (average * 31 + took) / 32));
    }

    /// Deliveries that may be held: a third of the lease at this pace, and never so few that threads starve.
    fn ahead(&self, threads: usize, delivery: DeliveryConfig) -> usize {
        let Some(took) = self.took else { return (threads * 32).min(delivery.in_flight_max) };
        let per_thread = (delivery.lease / 3).as_nanos() / took.as_nanos().max(1);
        let ahead = usize::try_from(per_thread).unwrap_or(usize::MAX).saturating_mul(threads);
        ahead.clamp(threads, delivery.in_flight_max.max(threads))
    }

    /// Deliveries in one job.
    fn job_size(&self) -> usize {
        let Some(took) = self.took else { return 4 };
        usize::try_from(JOB_TIME.as_nanos() / took.as_nanos().max(1)).unwrap_or(JOB_MAX).clamp(1, JOB_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELIVERY: DeliveryConfig =
        DeliveryConfig { lease: Duration::from_secs(30), grace: Duration::from_secs(10), in_flight_max: 2_048 };

    #[test]
    fn what_is_read_ahead_is_bounded_by_a_third_of_the_lease_at_the_recent_pace() {
        let mut pace = Pace::default();
        assert_eq!(pace.ahead(2, DELIVERY), 64);
        pace.note(Duration::from_secs(1));
        assert_eq!(pace.ahead(2, DELIVERY), 20);
        assert_eq!(pace.job_size(), 1);
        let mut quick = Pace::default();
        quick.note(Duration::from_micros(10));
        assert_eq!((quick.ahead(2, DELIVERY), quick.job_size()), (2_048, 64));
        let mut slow = Pace::default();
        slow.note(Duration::from_secs(600));
        assert_eq!(slow.ahead(2, DELIVERY), 2);
    }
}
