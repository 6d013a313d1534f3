//! One lane: the loop that moves one (plugin, stream). Fetch, hand to the runner, judge, batch the verdicts, settle.
//!
//! A lane owns all of its state, and everything that it waits for (reads, settles, heartbeats) is a future in its own hands:
//! dropping the lane drops all of it, wherever it is. What it reads ahead is bounded by time: a third of the lease at the
//! plugin's recent pace.
//!
//! Left to others: how reads are asked for and what they bring (`lane/reads.rs`), how verdicts reach Redis
//! (`lane/settles.rs`), the breaker (`lane/probes.rs`), whose turn it is (`lane/ordered.rs`), what a silence means
//! (`suspects.rs`), what becomes of a delivery (the model crate), which versions run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cofferdam_model::breaker::Reading;
use cofferdam_model::{Attempt, Blame, Delivery, EntryId, Outcome, Token, Verdict};
use cofferdam_streams::{
    Decided, Ensured, Holding, LaneKeys, Look, Owned, RawEntry, Start, Store, StreamError, Suspect, Taken,
};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::counters::{Counters, Doing};
use crate::lane::ordered::{Order, Survey};
use crate::pace::Pace;
use crate::pipeline::{Reader, Received, judge, receive};
use crate::runner::{Job, Ran, Runner, Surroundings, Terms};
use crate::suspects::Watch;

mod ordered;
mod probes;
mod reads;
mod settles;

pub use probes::PluginBreaker;
pub use settles::Gate;
use settles::SettledBatch;

/// What a lane is told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Read and work.
    Run,
    /// Finish what is under way, read nothing new.
    Pause,
    /// Finish or give back what is under way, then end.
    Stop,
}

/// How messages are moved.
#[derive(Clone, Copy, Debug)]
pub struct DeliveryConfig {
    /// After this long without a sign of life, what a host holds belongs to the others.
    pub lease: Duration,
    /// How long a stopping host may take to finish what it has begun.
    pub grace: Duration,
    /// Deliveries that a lane holds at most.
    pub in_flight_max: usize,
    /// Bytes of their entries and of what waits to be settled, above which nothing new is read. One entry is always read, however
    /// large it is.
    pub in_flight_bytes_max: u64,
}

/// Entries of one read.
const FETCH_MAX: usize = 500;
/// Suspects that are claimed at once. Each runs alone; but for all of them the death of this host would be one more that is not
/// explained, so they are few.
const SUSPECTS_MAX: usize = 16;
/// Settles under way at once: at two the next is encoded while Redis works on the last; more gains nothing measurable.
const SETTLES_MAX: usize = 3;
/// Longest that a verdict waits for company while another settle is under way.
const FLUSH_AFTER: Duration = Duration::from_millis(1);
/// Parked entries of other hosts are looked for this often; one's own are taken when they are due.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Parked entries above which nothing new is read: what fails faster than its retries succeed would otherwise move the whole
/// stream into the pending list.
pub const PARKED_MAX: u64 = 10_000;
/// First and longest pause after an error of Redis.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What a lane is made of.
pub struct LaneParts {
    /// Redis.
    pub store: Store,
    /// What it reads, with which group.
    pub keys: LaneKeys,
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// This host's consumer name.
    pub consumer: Arc<str>,
    /// Who runs deliveries.
    pub runner: Arc<dyn Runner>,
    /// The clock and chance.
    pub surroundings: Arc<dyn Surroundings>,
    /// What this lane has done.
    pub counters: Arc<Counters>,
    /// The plugin's breaker, which its lanes share.
    pub breaker: Arc<PluginBreaker>,
    /// The host's gate.
    pub gate: Arc<Gate>,
    /// How messages are moved.
    pub delivery: DeliveryConfig,
    /// Where a new group starts.
    pub start: Start,
    /// How entries become messages.
    pub reader: Reader,
    /// Whether messages of one key take effect in their order. Then one host at a time owns the lane.
    pub ordered: bool,
    /// Rings when the stream has news; the host's doorbell holds the other end.
    pub bell: Arc<Notify>,
    /// What to do; the supervisor holds the other end.
    pub mode: watch::Receiver<Mode>,
}

/// What Redis knows that this consumer holds.
struct Held {
    token: Token,
    bytes: u64,
    renewed: Instant,
    /// For giving it back.
    attempts: Vec<Attempt>,
    releases: u32,
}

impl Held {
    fn holding(self, entry: EntryId) -> Holding {
        Holding { entry, token: self.token, attempts: self.attempts, releases: self.releases }
    }
}

/// Something that a lane waits for.
type Work = Pin<Box<dyn Future<Output = Done> + Send>>;

enum Done {
    Opened(Result<Ensured, StreamError>),
    New(Result<Vec<RawEntry>, StreamError>),
    Due(Result<(u64, Vec<Taken>), StreamError>),
    Suspects(Result<(u64, Vec<Taken>), StreamError>),
    /// What Redis believes to be ours, beyond what we knew when we asked, and whether that was all.
    Found(Result<(Vec<Taken>, bool), StreamError>),
    Settled(SettledBatch),
    Renewed(Vec<EntryId>, Result<Vec<EntryId>, StreamError>),
    Looked(Result<Look, StreamError>),
    ConsumerDropped,
    Owned(Result<Owned, StreamError>),
    Surveyed(Result<Survey, StreamError>),
    Disowned,
    LetGo,
}

/// A lane at work.
pub struct Lane {
    parts: LaneParts,
    work: FuturesUnordered<Work>,
    /// Whether the group is known to be there.
    opened: bool,
    /// Opening, reading or finding: one at a time.
    reading: bool,
    looking: bool,
    renewing: bool,
    settles: usize,
    in_flight: BTreeMap<EntryId, Held>,
    /// Their bytes together.
    in_flight_bytes: u64,
    /// Verdicts that wait for their settle.
    decided: Vec<Decided>,
    decided_bytes: usize,
    first_decided: Option<Instant>,
    /// When entries that this lane parked are due.
    due: BinaryHeap<Reverse<Instant>>,
    /// When to look for what other hosts have parked.
    sweep_at: Instant,
    parked: u64,
    /// Deliveries that the host itself could not run; tried again a little later.
    again: VecDeque<Delivery>,
    again_at: Instant,
    /// Entries of silent hosts, to be taken over a few at a time.
    suspects: VecDeque<Suspect>,
    look_at: Instant,
    watch: Watch,
    /// Deliveries that are to run apart, and the one that does.
    apart: VecDeque<Delivery>,
    apart_now: Option<EntryId>,
    /// Whether this lane is trying a message for the breaker that is open, and which, once it is read.
    probing: bool,
    probe: Option<EntryId>,
    /// Whether the next probe is a parked entry or a new one.
    probe_parked: bool,
    /// Whether Redis said at the last look that we hold more than we know of.
    held_more: bool,
    /// Set after an error: Redis may believe that this consumer holds entries which nobody here knows of.
    reconcile: bool,
    pace: Pace,
    /// Of a lane that keeps an order.
    order: Option<Order>,
    results: (mpsc::UnboundedSender<Vec<Ran>>, mpsc::UnboundedReceiver<Vec<Ran>>),
    stopping: Arc<AtomicBool>,
    news: bool,
    pause: Duration,
    read_after: Instant,
    /// Closed while what Redis refuses is this lane's own affair: a right that is missing, a key of the wrong kind.
    own_gate: Arc<Gate>,
}

impl Lane {
    /// A lane that has not begun.
    pub fn new(parts: LaneParts) -> Self {
        let now = Instant::now();
        let order = parts.ordered.then(|| Order::new(now));
        Lane {
            parts,
            order,
            work: FuturesUnordered::new(),
            opened: false,
            reading: false,
            looking: false,
            renewing: false,
            settles: 0,
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            decided: Vec::new(),
            decided_bytes: 0,
            first_decided: None,
            due: BinaryHeap::new(),
            sweep_at: now,
            parked: 0,
            again: VecDeque::new(),
            again_at: now,
            suspects: VecDeque::new(),
            look_at: now,
            watch: Watch::default(),
            apart: VecDeque::new(),
            apart_now: None,
            probing: false,
            probe: None,
            probe_parked: true,
            held_more: false,
            reconcile: false,
            pace: Pace::default(),
            results: mpsc::unbounded_channel(),
            stopping: Arc::new(AtomicBool::new(false)),
            news: true,
            pause: PAUSE_MIN,
            read_after: now,
            own_gate: Arc::default(),
        }
    }

    /// Runs until told to stop, then until what is under way is finished or given back.
    pub async fn run(mut self) {
        let mut beat = tokio::time::interval(self.parts.delivery.lease / 3);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop_by: Option<Instant> = None;
        loop {
            let mode = *self.parts.mode.borrow_and_update();
            if mode == Mode::Stop && stop_by.is_none() {
                self.stopping.store(true, Ordering::Relaxed);
                stop_by = Some(Instant::now() + self.parts.delivery.grace);
            }
            if mode != Mode::Run {
                self.withdraw_waiting();
                self.parts.counters.works(Doing::Reading);
            }
            if stop_by.is_some() && self.is_idle() {
                return self.disown().await;
            }
            self.flush(mode);
            self.keep_order(mode);
            if mode == Mode::Run {
                self.start_work();
            }
            let flush_at = self.first_decided.map(|at| at + FLUSH_AFTER);
            let may_flush = self.may_flush(mode);
            let wake_at = self.wake_at(mode);
            tokio::select! {
                biased;
                Some(ran) = self.results.1.recv() => self.take_results(ran),
                Some(done) = self.work.next(), if !self.work.is_empty() => self.take(done),
                () = sleep_until(flush_at.unwrap_or_else(Instant::now)), if flush_at.is_some() && may_flush => self.flush_now(),
                _ = beat.tick() => self.renew(),
                () = self.parts.bell.notified(), if mode == Mode::Run => self.news = true,
                changed = self.parts.mode.changed(), if stop_by.is_none() => {
                    if changed.is_err() { return }
                }
                () = sleep_until(wake_at) => self.wake(),
                () = sleep_until(stop_by.unwrap_or_else(Instant::now)), if stop_by.is_some() => {
                    self.give_back().await;
                    return self.disown().await;
                }
            }
        }
    }

    /// Begins whatever there is to begin: the group, a read, a look at other hosts' entries. What is read is decided here alone.
    fn start_work(&mut self) {
        let now = Instant::now();
        if self.reading || now < self.read_after || self.parts.runner.terms().is_none() {
            return;
        }
        if !self.opened {
            return self.begin_open();
        }
        match &self.order {
            Some(Order { epoch: None, .. }) => return,
            // What a settle under way does would be seen in part.
            Some(Order { epoch: Some(_), .. }) if self.reconcile && self.settles > 0 => return,
            Some(Order { epoch: Some(epoch), .. }) if self.reconcile => return self.begin_survey(*epoch),
            None if self.reconcile => return self.begin_find(),
            Some(_) | None => {}
        }
        if now >= self.look_at && !self.looking {
            self.begin_look(now);
        }
        if self.gates_closed_until().is_some_and(|until| now < until) {
            return;
        }
        let room = self.room();
        // The next few are claimed while the last one runs, so that its process never waits.
        if self.apart.is_empty() && self.next_suspect().is_some() && (room > 0 || self.order.is_some()) {
            return self.begin_suspects(room.clamp(1, SUSPECTS_MAX));
        }
        let reading = self.reading_allowed();
        let (room, probing) = match reading {
            Reading::Free => (room, false),
            Reading::Probe => (room.min(1), true),
            Reading::Wait { .. } => return,
        };
        let due = self.next_due() <= now;
        // What is parked may be what all that is held here waits for.
        if room == 0 && !(due && self.order.is_some()) {
            return;
        }
        let new = room > 0 && self.news && (probing || self.parked < PARKED_MAX);
        // Probes take turns, so that one poisonous message cannot hold the breaker open for ever.
        let take_due = due && (!probing || self.probe_parked || !new);
        if take_due {
            self.begin_due(now, room.max(1), probing);
        } else if new && (probing || room >= FETCH_MAX.min(self.at_work() / 2)) {
            // Small reads while much is under way would cost a round trip each for a few messages.
            self.begin_new(room, probing);
        }
    }

    fn begin(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.work.push(Box::pin(work));
    }

    fn for_redis(&self) -> (Store, LaneKeys, Arc<str>) {
        (self.parts.store.clone(), self.parts.keys.clone(), self.parts.consumer.clone())
    }

    fn take(&mut self, done: Done) {
        match done {
            Done::Opened(opened) => self.take_opened(opened),
            Done::New(read) => self.take_new(read),
            Done::Due(taken) => self.take_due(taken),
            Done::Suspects(taken) => self.take_suspects(taken),
            Done::Found(found) => self.take_found(found),
            Done::Settled(batch) => self.account(batch),
            Done::Renewed(held, renewed) => self.take_renewed(&held, renewed),
            Done::Looked(look) => self.take_look(look),
            Done::ConsumerDropped | Done::Disowned => {}
            Done::LetGo => {
                self.settles -= 1;
                // It is due at once.
                self.sweep_at = Instant::now();
            }
            Done::Owned(owned) => self.take_owned(owned),
            Done::Surveyed(survey) => self.take_surveyed(survey),
        }
    }

    /// Hands entries to the runner; what needs no handler gets its verdict at once.
    fn dispatch(&mut self, taken: Vec<Taken>) {
        let Some(terms) = self.parts.runner.terms() else {
            // They are ours all the same, and found again when there is a version to run them.
            self.reconcile = true;
            return self.end_probe(None);
        };
        let now = Instant::now();
        self.parts.counters.received(taken.len() as u64);
        self.probe = taken.first().map(|one| one.entry.id).filter(|_| self.probing);
        if self.probe.is_none() {
            self.end_probe(None);
        }
        let mut deliveries = Vec::with_capacity(taken.len());
        for one in taken {
            let id = one.entry.id;
            let (bytes, attempts) = (one.entry.bytes(), one.attempts.clone());
            self.pace.note_size(bytes);
            self.hold(id, Held { token: one.token, bytes, renewed: now, attempts, releases: one.releases });
            match receive(one, &self.parts.reader, &terms) {
                Received::Deliver(delivery) => deliveries.extend(self.admit(delivery)),
                Received::Known(ran) => self.decide(ran, &terms),
            }
        }
        self.run_admitted(deliveries);
    }

    fn hold(&mut self, id: EntryId, held: Held) {
        self.in_flight_bytes += held.bytes;
        if let Some(before) = self.in_flight.insert(id, held) {
            self.in_flight_bytes -= before.bytes;
        }
    }

    fn let_out(&mut self, id: EntryId) -> Option<Held> {
        let held = self.in_flight.remove(&id)?;
        self.in_flight_bytes -= held.bytes;
        Some(held)
    }

    fn submit(&mut self, deliveries: Vec<Delivery>) {
        let share = deliveries.len().div_ceil(self.parts.runner.threads().max(1));
        let size = self.pace.job_size().min(share).max(1);
        let mut rest = deliveries.into_iter().peekable();
        while rest.peek().is_some() {
            let job = Job::new(rest.by_ref().take(size), self.results.0.clone(), self.stopping.clone());
            if let Err(job) = self.parts.runner.submit(job) {
                self.try_again(job.refused());
            }
        }
    }

    /// Suspects run one at a time: while one does, its process has nothing else in hand.
    fn submit_apart(&mut self) {
        if self.apart_now.is_some() {
            return;
        }
        let Some(delivery) = self.apart.pop_front() else { return };
        self.apart_now = Some(delivery.entry);
        let job = Job::new(std::iter::once(delivery), self.results.0.clone(), self.stopping.clone());
        if let Err(job) = self.parts.runner.submit_apart(job) {
            self.apart_now = None;
            self.try_again(job.refused());
        }
    }

    /// No thread or process to be had: the host's own trouble, so it waits and nothing is charged.
    fn try_again(&mut self, deliveries: VecDeque<Delivery>) {
        self.again.extend(deliveries);
        self.again_at = Instant::now() + PAUSE_MIN;
    }

    fn take_results(&mut self, results: Vec<Ran>) {
        // Without a live version the terms of the last one would do; there is always one that let these in.
        let Some(terms) = self.parts.runner.terms() else {
            return self.try_again(results.into_iter().map(|ran| ran.delivery).collect());
        };
        for ran in results {
            if self.apart_now == Some(ran.delivery.entry) {
                self.apart_now = None;
            }
            self.decide(ran, &terms);
        }
        self.submit_apart();
    }

    fn decide(&mut self, ran: Ran, terms: &Arc<Terms>) {
        let failed = match &ran.result {
            Ok(Outcome::Events(_)) => Some(false),
            Ok(Outcome::Retry { .. }) => Some(true),
            // What the message itself is to blame for says nothing of the plugin.
            Ok(Outcome::Reject { .. }) => None,
            Err(fault) => (fault.blame() == Blame::Plugin).then_some(true),
        };
        if let Err(cofferdam_model::Fault::Host { text }) = &ran.result {
            tracing::debug!(plugin = %self.parts.plugin, id = %ran.delivery.entry, text, "could not be run");
        }
        if !ran.evidence.took.is_zero() {
            self.pace.note(ran.evidence.took);
        }
        let entry = ran.delivery.entry;
        let open = self.parts.breaker.is_open();
        self.note_result(entry, failed);
        let decided = judge(ran, terms, open, self.parts.surroundings.random());
        if decided.verdict == Verdict::LeavePending {
            // The host's own trouble: it stays with this consumer, uncharged, and is tried again soon.
            return self.try_again(VecDeque::from([decided.delivery]));
        }
        self.decided_bytes += decided.bytes();
        self.decided.push(decided);
        self.first_decided.get_or_insert_with(Instant::now);
    }

    fn wake_at(&self, mode: Mode) -> Instant {
        let now = Instant::now();
        let mut at = now + SWEEP_EVERY;
        if let Some(order) = self.order.as_ref().filter(|order| self.opened && !order.asking) {
            at = at.min(order.ask_at.max(now + PAUSE_MIN / 10));
        }
        let stands_by = self.opened && self.order.as_ref().is_some_and(|order| order.epoch.is_none());
        if mode == Mode::Run && !self.reading && !stands_by {
            let idle = self.room() == 0 || self.parts.runner.terms().is_none();
            let mut next = self.next_due();
            if self.news || !self.opened || self.reconcile || self.next_suspect().is_some() {
                next = now;
            }
            if !self.looking {
                next = next.min(self.look_at);
            }
            if let Some(until) = self.gates_closed_until() {
                next = next.max(until);
            }
            if let Reading::Wait { until } = self.reading_allowed() {
                next = next.max((self.parts.breaker.began + until).min(self.look_at.max(now + PAUSE_MIN)));
            }
            next = next.max(self.read_after);
            // What could be begun now has been; the rest waits for a change, or a little.
            if idle || next <= now {
                next = next.max(now + PAUSE_MIN);
            }
            at = at.min(next);
        }
        if self.again.is_empty() { at } else { at.min(self.again_at) }
    }

    fn wake(&mut self) {
        if Instant::now() >= self.again_at && !self.again.is_empty() {
            let again: Vec<Delivery> = self.again.drain(..).collect();
            self.run_admitted(again);
        }
    }
}
