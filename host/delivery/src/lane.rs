//! One lane: the loop that moves one (plugin, stream). Fetch, hand to the runner, judge, batch the verdicts, settle.
//!
//! A lane owns all of its state, and everything that it waits for (reads, settles, heartbeats) is a future in its own hands:
//! dropping the lane drops all of it, wherever it is. What it reads ahead is bounded by time: a third of the lease at the
//! plugin's recent pace.
//!
//! Left to others: what a silence means (`suspects.rs`), what becomes of a delivery (the model crate), which versions run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cofferdam_model::breaker::{Change, Reading};
use cofferdam_model::{Attempt, Blame, Breaker, Delivery, EntryId, Outcome, Token, Verdict};
use cofferdam_streams::{
    Decided, Ensured, Holding, LaneKeys, Look, Owned, RawEntry, Remedy, SettleContext, Settled, Start, Store,
    StreamError, Suspect, TakeFor, Taken,
};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::counters::Counters;
use crate::lane::ordered::{Order, Survey};
use crate::pipeline::{Reader, Received, fresh, judge, receive};
use crate::runner::{Job, Ran, Runner, Surroundings, Terms, iso};
use crate::suspects::{Noticed, Watch};

mod ordered;

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
}

/// Entries of one read.
const FETCH_MAX: usize = 500;
/// Due retries of one take: each is claimed and looked up by the script.
const TAKE_MAX: usize = 100;
/// Suspects that are claimed at once. Each runs alone; but for all of them the death of this host would be one more that is not
/// explained, so they are few.
const SUSPECTS_MAX: usize = 16;
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
/// Parked entries above which nothing new is read: what fails faster than its retries succeed would otherwise move the whole
/// stream into the pending list.
pub const PARKED_MAX: u64 = 10_000;
/// First and longest pause after an error of Redis.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a consumer that holds nothing is kept, in leases: long enough that no slow host is taken for a dead one.
const CONSUMER_KEPT_LEASES: u32 = 120;
/// Longest that a leaving lane takes to give back what it holds.
const GIVE_BACK_TIME: Duration = Duration::from_secs(2);

/// Closed for a while when Redis refuses writes. Redis still hands out entries then, so that reading on would only move the
/// stream into the pending list: whoever reads looks here first. One for a whole host.
#[derive(Debug, Default)]
pub struct Gate {
    closed_until: Mutex<Option<Instant>>,
}

impl Gate {
    fn close(&self, until: Instant) {
        let mut closed = self.closed_until.lock().unwrap_or_else(PoisonError::into_inner);
        *closed = Some(closed.map_or(until, |before| before.max(until)));
    }

    fn open(&self) {
        *self.closed_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Until when nothing is to be read.
    fn closed_until(&self) -> Option<Instant> {
        *self.closed_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A plugin's breaker, shared by its lanes.
#[derive(Debug)]
pub struct PluginBreaker {
    breaker: Mutex<Breaker>,
    began: Instant,
}

impl PluginBreaker {
    /// A closed one.
    pub fn new() -> Self {
        PluginBreaker { breaker: Mutex::default(), began: Instant::now() }
    }

    /// The breaker, and the time on its own clock.
    fn now(&self) -> (MutexGuard<'_, Breaker>, Duration) {
        (self.breaker.lock().unwrap_or_else(PoisonError::into_inner), Instant::now() - self.began)
    }

    fn is_open(&self) -> bool {
        self.now().0.is_open()
    }
}

impl Default for PluginBreaker {
    fn default() -> Self {
        Self::new()
    }
}

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

struct SettledBatch {
    results: Vec<(EntryId, Token, Settled, Option<Duration>)>,
    pause: bool,
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
            }
            if stop_by.is_some() && self.is_idle() {
                return self.disown().await;
            }
            self.flush();
            self.keep_order(mode);
            if mode == Mode::Run {
                self.start_work();
            }
            let flush_at = self.first_decided.map(|at| at + FLUSH_AFTER);
            let may_flush = self.settles < SETTLES_MAX;
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

    /// Until when nothing is to be read, by the host's gate and the lane's own.
    fn gates_closed_until(&self) -> Option<Instant> {
        self.parts.gate.closed_until().max(self.own_gate.closed_until())
    }

    fn reading_allowed(&self) -> Reading {
        let (breaker, now) = self.parts.breaker.now();
        breaker.reading(now)
    }

    /// This read is a probe.
    fn begin_probe(&mut self, parked: bool) {
        self.parts.breaker.now().0.begin_probe();
        self.probing = true;
        self.probe_parked = !parked;
    }

    fn begin(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.work.push(Box::pin(work));
    }

    fn begin_open(&mut self) {
        self.reading = true;
        let (store, keys, start) = (self.parts.store.clone(), self.parts.keys.clone(), self.parts.start);
        self.begin(async move { Done::Opened(store.ensure_group(&keys, start).await) });
    }

    fn begin_new(&mut self, room: usize, probing: bool) {
        self.reading = true;
        if probing {
            self.begin_probe(false);
        }
        // Taken down before the read: a bell that rings while it is under way may mean entries that it does not see.
        self.news = false;
        let (store, keys, consumer) = self.for_redis();
        let (count, epoch) = (room.min(FETCH_MAX), self.epoch());
        self.begin(async move {
            Done::New(match epoch {
                None => store.fetch_new(&keys, &consumer, count).await,
                Some(epoch) => store.fetch_owned(&keys, &consumer, epoch, count).await,
            })
        });
    }

    fn begin_due(&mut self, now: Instant, room: usize, probing: bool) {
        self.reading = true;
        if probing {
            self.begin_probe(true);
        }
        while self.due.peek().is_some_and(|due| due.0 <= now) {
            self.due.pop();
        }
        self.sweep_at = now + SWEEP_EVERY;
        let (store, keys, consumer) = self.for_redis();
        let (plugin, stamp) = (self.parts.plugin.clone(), iso(self.parts.surroundings.now_ms()));
        let (count, epoch) = (room.min(TAKE_MAX), self.epoch());
        self.begin(async move {
            let me = TakeFor { consumer: &consumer, plugin: &plugin, now: &stamp, epoch };
            Done::Due(store.take_due(&keys, &me, count).await)
        });
    }

    /// Takes over some entries of one silent holder.
    fn begin_suspects(&mut self, count: usize) {
        let Some(first) = self.next_suspect() else { return };
        let Some(holder) = self.suspects.get(first).map(|suspect| suspect.holder.clone()) else { return };
        let mut some = Vec::with_capacity(count);
        while some.len() < count
            && let Some(at) = self.next_suspect()
            && let Some(suspect) = self.suspects.remove(at)
        {
            if suspect.holder != holder {
                self.suspects.insert(at, suspect);
                break;
            }
            some.push((suspect.id, suspect.token));
        }
        self.reading = true;
        let (store, keys, consumer) = self.for_redis();
        let (plugin, stamp) = (self.parts.plugin.clone(), iso(self.parts.surroundings.now_ms()));
        let epoch = self.epoch();
        self.begin(async move {
            let me = TakeFor { consumer: &consumer, plugin: &plugin, now: &stamp, epoch };
            Done::Suspects(store.take_suspects(&keys, &me, &holder, &some).await)
        });
    }

    fn begin_look(&mut self, now: Instant) {
        self.looking = true;
        // A third of the lease, and not in step with other hosts.
        let every = (self.parts.delivery.lease / 3).mul_f64(0.75 + self.parts.surroundings.random() / 2.0);
        self.look_at = now + every;
        let (store, keys, consumer) = self.for_redis();
        self.begin(async move { Done::Looked(store.look(&keys, &consumer).await) });
    }

    /// Looks for entries that Redis gave to this consumer in a reply that never arrived. Never by reading its history: that
    /// raises the delivery counter, and only in memory.
    fn begin_find(&mut self) {
        self.reading = true;
        let (store, keys, consumer) = self.for_redis();
        let known: Vec<EntryId> = self.in_flight.keys().copied().collect();
        let (room, plugin, stamp) = (self.room(), self.parts.plugin.clone(), iso(self.parts.surroundings.now_ms()));
        self.begin(async move {
            Done::Found(
                async {
                    let held = store.held_by(&keys, &consumer).await?;
                    let me = TakeFor { consumer: &consumer, plugin: &plugin, now: &stamp, epoch: None };
                    take_unknown(&store, &keys, &me, held, &known, room).await
                }
                .await,
            )
        });
    }

    fn for_redis(&self) -> (Store, LaneKeys, Arc<str>) {
        (self.parts.store.clone(), self.parts.keys.clone(), self.parts.consumer.clone())
    }

    /// When to look for parked entries next.
    fn next_due(&self) -> Instant {
        self.due.peek().map_or(self.sweep_at, |due| due.0.min(self.sweep_at))
    }

    /// How many more deliveries may be held.
    fn room(&self) -> usize {
        let ahead = self.pace.ahead(self.parts.runner.threads(), self.parts.delivery).saturating_sub(self.at_work());
        // What waits for its turn takes no thread, but its lease must be renewed, and a crash makes suspects of all.
        if self.order.is_none() {
            ahead
        } else {
            ahead.min(self.parts.delivery.in_flight_max.saturating_sub(self.in_flight.len()))
        }
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
            Done::LetGo => self.settles -= 1,
            Done::Owned(owned) => self.take_owned(owned),
            Done::Surveyed(survey) => self.take_surveyed(survey),
        }
    }

    fn take_opened(&mut self, opened: Result<Ensured, StreamError>) {
        self.reading = false;
        let (plugin, keys) = (&self.parts.plugin, &self.parts.keys);
        match opened {
            Ok(Ensured::Existed) => {}
            Ok(Ensured::Created { after }) => {
                tracing::info!(%plugin, stream = %keys.stream, group = %keys.group, %after, "created the group");
            }
            Ok(Ensured::Recreated { floor, last_settled }) => {
                tracing::error!(%plugin, stream = %keys.stream, group = %keys.group, %floor, %last_settled,
                    "the group was lost and stands at its floor again; what was settled beyond the floor may repeat");
            }
            Err(error) => {
                tracing::warn!(%plugin, stream = %keys.stream, %error, "cannot open the group yet");
                self.pause_reading();
                return;
            }
        }
        self.opened = true;
        self.news = true;
        self.resume_reading();
        // A lane that has read once never starts at the end: were its ledger lost too, what came meanwhile would be missed.
        self.parts.start = Start::Oldest;
    }

    fn take_new(&mut self, read: Result<Vec<RawEntry>, StreamError>) {
        self.reading = false;
        match read {
            Ok(entries) => {
                self.resume_reading();
                self.news |= !entries.is_empty();
                self.dispatch(entries.into_iter().map(fresh).collect());
            }
            Err(error) => self.read_failed(error),
        }
    }

    fn take_due(&mut self, taken: Result<(u64, Vec<Taken>), StreamError>) {
        self.reading = false;
        match taken {
            Ok((found, taken)) => {
                self.resume_reading();
                self.parked = self.parked.saturating_sub(found);
                // One that was trimmed away comes no more, and nobody may wait for it.
                self.reconcile |= self.order.is_some() && found != taken.len() as u64;
                // Something was due, so more may be: only an empty hand ends the sweep.
                if found > 0 {
                    self.sweep_at = Instant::now();
                } else {
                    // The bell does not ring for a stream that was lost and begins anew with smaller ids.
                    self.news = true;
                }
                self.dispatch(taken);
            }
            Err(error) => {
                self.sweep_at = Instant::now();
                self.read_failed(error);
            }
        }
    }

    fn take_suspects(&mut self, taken: Result<(u64, Vec<Taken>), StreamError>) {
        self.reading = false;
        match taken {
            Ok((_, taken)) => {
                self.reconcile |= self.order.is_some() && taken.is_empty();
                self.dispatch(taken);
            }
            Err(error) => self.read_failed(error),
        }
    }

    fn take_found(&mut self, found: Result<(Vec<Taken>, bool), StreamError>) {
        self.reading = false;
        match found {
            Ok((mut taken, all)) => {
                self.reconcile = !all;
                taken.retain(|one| !self.in_flight.contains_key(&one.entry.id));
                if !taken.is_empty() {
                    tracing::warn!(plugin = %self.parts.plugin, stream = %self.parts.keys.stream, count = taken.len(),
                        "took up entries whose delivery had been lost on the way");
                }
                if !all {
                    // Until there is room for the rest.
                    self.read_after = Instant::now() + PAUSE_MIN;
                }
                self.dispatch(taken);
            }
            Err(error) => self.read_failed(error),
        }
    }

    fn take_look(&mut self, look: Result<Look, StreamError>) {
        self.looking = false;
        let look = match look {
            Ok(look) => look,
            Err(error) => {
                self.watch.forget(Instant::now(), self.parts.delivery.lease);
                self.suspects.clear();
                self.reconcile |= self.order.is_some();
                tracing::debug!(stream = %self.parts.keys.stream, %error, "cannot look for suspects now");
                return;
            }
        };
        let lease = self.parts.delivery.lease;
        self.parked = look.parked;
        // Twice in a row, because a read that is under way holds entries which have not come in yet.
        let more = look.own > self.in_flight.len() as u64;
        self.reconcile |= more && self.held_more;
        self.held_more = more;
        let gone: Vec<String> = look
            .idle
            .iter()
            .filter(|(_, idle)| *idle > lease * CONSUMER_KEPT_LEASES)
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            let (store, keys, _) = self.for_redis();
            self.begin(async move {
                // It is tried again at the next look.
                let _ = store.drop_consumer(&keys.stream, &keys.group, &name).await;
                Done::ConsumerDropped
            });
        }
        let others_hold = !look.holders.is_empty();
        let Noticed { suspects, set_back, set_forward } = self.watch.take_in(look, Instant::now(), lease);
        match &self.order {
            None => self.suspects = suspects,
            // Somebody may have taken away what a key waits for.
            Some(order) => {
                self.reconcile |= others_hold || order.queues.ids().any(|id| !self.in_flight.contains_key(&id));
            }
        }
        for (step, which) in [(set_back, "back"), (set_forward, "forward")] {
            if let Some(step) = step {
                tracing::warn!(stream = %self.parts.keys.stream, ?step,
                    "the clock of the Redis host was set {which}: retries may come early; nothing is charged for it");
            }
        }
        if set_back.is_some() {
            // What is parked would be due only when the clock has caught up; the script knows, and is asked at once.
            self.sweep_at = Instant::now();
        }
    }

    fn read_failed(&mut self, error: StreamError) {
        let (plugin, stream) = (self.parts.plugin.clone(), self.parts.keys.stream.clone());
        self.news = true;
        // The request may have been carried out, wholly or in part: then Redis believes that we hold entries.
        self.reconcile = true;
        self.watch.forget(Instant::now(), self.parts.delivery.lease);
        self.suspects.clear();
        self.end_probe(None);
        match error.remedy() {
            Remedy::RecreateGroup => {
                tracing::error!(%plugin, %stream, %error, "the group is gone; creating it again at its floor");
                self.opened = false;
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
        self.read_after = Instant::now() + self.pause.mul_f64(0.5 + self.parts.surroundings.random() / 2.0);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn resume_reading(&mut self) {
        self.pause = PAUSE_MIN;
        self.read_after = Instant::now();
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
            let held = Held { token: one.token, renewed: now, attempts: one.attempts.clone(), releases: one.releases };
            self.in_flight.insert(id, held);
            match receive(one, &self.parts.reader, &terms) {
                Received::Deliver(delivery) => deliveries.extend(self.admit(delivery)),
                Received::Known(ran) => self.decide(ran, &terms),
            }
        }
        self.run_admitted(deliveries);
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
            if let Some(ran) = self.in_its_turn(ran) {
                self.decide(ran, &terms);
            }
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

    /// Tells the breaker how a delivery went.
    fn note_result(&mut self, entry: EntryId, failed: Option<bool>) {
        if self.probe == Some(entry) {
            return self.end_probe(failed);
        }
        let Some(failed) = failed else { return };
        let change = {
            let (mut breaker, now) = self.parts.breaker.now();
            breaker.note(failed, now)
        };
        self.tell(change);
    }

    fn end_probe(&mut self, failed: Option<bool>) {
        self.probe = None;
        if std::mem::take(&mut self.probing) {
            let change = {
                let (mut breaker, now) = self.parts.breaker.now();
                breaker.probed(failed, now)
            };
            self.tell(change);
        }
    }

    fn tell(&self, change: Option<Change>) {
        let plugin = &self.parts.plugin;
        match change {
            None => {}
            Some(Change::Opened) => {
                self.parts.counters.hold_back(BREAKER_OPEN);
                tracing::error!(%plugin, stream = %self.parts.keys.stream, "{BREAKER_OPEN}");
            }
            Some(Change::Closed { after }) => {
                self.parts.counters.hold_back("");
                tracing::warn!(%plugin, stream = %self.parts.keys.stream, ?after, "it works again: reading goes on");
            }
        }
    }

    /// Settles at once when nothing else is under way, or when a batch is full; otherwise verdicts wait for company.
    fn flush(&mut self) {
        let full = self.decided.len() >= SETTLE_MESSAGES || self.decided_bytes >= SETTLE_BYTES;
        if (full || self.settles == 0) && self.settles < SETTLES_MAX {
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
        self.settles += 1;
        let (store, keys, consumer) = self.for_redis();
        let (surroundings, host, own, epoch) =
            (self.parts.surroundings.clone(), self.parts.gate.clone(), self.own_gate.clone(), self.epoch());
        self.begin(async move {
            let gates = Gates { host: &host, own: &own };
            Done::Settled(settle_until_taken(&store, &keys, (&consumer, epoch), &*surroundings, gates, batch).await)
        });
    }

    fn account(&mut self, batch: SettledBatch) {
        self.settles -= 1;
        let (mut freed, mut refused) = (Vec::new(), Vec::new());
        for (id, token, settled, delay) in batch.results {
            // Redis may have given it to us anew meanwhile, under another token.
            if self.in_flight.get(&id).is_some_and(|held| held.token == token)
                && let Some(held) = self.in_flight.remove(&id)
                && settled == Settled::LeaseLost
            {
                refused.push(held.holding(id));
            }
            self.parts.counters.settled(settled);
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
    fn renew(&mut self) {
        let (old, now) = (self.parts.delivery.lease / 4, Instant::now());
        let held: Vec<(EntryId, Token)> = self
            .in_flight
            .iter()
            .filter(|(_, held)| now - held.renewed > old)
            .map(|(id, held)| (*id, held.token))
            .collect();
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

    fn take_renewed(&mut self, held: &[EntryId], renewed: Result<Vec<EntryId>, StreamError>) {
        self.renewing = false;
        let (plugin, stream) = (&self.parts.plugin, &self.parts.keys.stream);
        match renewed {
            Ok(lost) => {
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
            Err(error) => tracing::warn!(%plugin, %stream, %error, "cannot renew leases"),
        }
    }

    /// Gives back what could not be finished in time, so that others need not wait for its lease to end.
    async fn give_back(&mut self) {
        let held: Vec<Holding> =
            std::mem::take(&mut self.in_flight).into_iter().map(|(entry, held)| held.holding(entry)).collect();
        let now_ms = self.parts.surroundings.now_ms();
        let now = iso(now_ms);
        let (lane, epoch) = (&self.parts.keys, self.epoch());
        let cx = SettleContext { lane, consumer: &self.parts.consumer, now_ms, now: &now, epoch };
        let given = timeout(GIVE_BACK_TIME, self.parts.store.give_back(&cx, &held)).await;
        let (plugin, stream, count) = (&self.parts.plugin, &self.parts.keys.stream, held.len());
        match given {
            Ok(Ok(given)) => {
                tracing::warn!(%plugin, %stream, given, "gave back, uncharged, what was not finished in time")
            }
            Ok(Err(_)) | Err(_) => tracing::warn!(%plugin, %stream, count,
                "stopped before everything was finished; the rest stays pending and is taken over by others"),
        }
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

/// What a lane says while its plugin's breaker is open.
const BREAKER_OPEN: &str = "half of the last 100 deliveries failed: reading has stopped, one message at a time is tried, and nothing is charged until it works again";

/// The gates that a refused settle closes.
#[derive(Clone, Copy)]
struct Gates<'a> {
    host: &'a Gate,
    own: &'a Gate,
}

/// Takes up those of the entries that Redis believes to be ours which we do not know, in steps of the room there is: the rest is
/// found next time. Says whether that was all.
async fn take_unknown(
    store: &Store,
    keys: &LaneKeys,
    me: &TakeFor<'_>,
    held: Vec<(EntryId, Token)>,
    known: &[EntryId],
    room: usize,
) -> Result<(Vec<Taken>, bool), StreamError> {
    let mut unknown: Vec<_> = held.into_iter().filter(|(id, _)| known.binary_search(id).is_err()).collect();
    let all = unknown.len() <= room;
    unknown.truncate(room);
    let mut taken = Vec::with_capacity(unknown.len());
    for (id, token) in unknown {
        if let Some((entry, attempts, releases)) = store.past_of(keys, id).await? {
            taken.push(Taken { entry, token, attempts, releases });
            continue;
        }
        // Trimmed meanwhile: taking it over from ourselves leaves its tombstone, or saves its copy.
        store.take_suspects(keys, me, me.consumer, &[(id, token)]).await?;
    }
    Ok((taken, all))
}

/// Settles a batch, however long Redis takes to be able to: the fence makes it safe to send the same again.
async fn settle_until_taken(
    store: &Store,
    keys: &LaneKeys,
    (consumer, epoch): (&str, Option<u64>),
    surroundings: &dyn Surroundings,
    gates: Gates<'_>,
    batch: Vec<Decided>,
) -> SettledBatch {
    let mut pause = PAUSE_MIN;
    let mut closed = None;
    loop {
        let now_ms = surroundings.now_ms();
        let now = iso(now_ms);
        let cx = SettleContext { lane: keys, consumer, now_ms, now: &now, epoch };
        let of = |decided: &Decided| (decided.delivery.entry, decided.delivery.token);
        let error = match store.settle(&cx, &batch).await {
            Ok(settled) => {
                closed.inspect(|gate: &&Gate| gate.open());
                let results = batch.iter().zip(settled).map(|(decided, settled)| {
                    let delay = match decided.verdict {
                        Verdict::RetryAfter { delay, .. } | Verdict::Release { delay } => Some(delay),
                        Verdict::Commit { .. } | Verdict::DeadLetter { .. } | Verdict::LeavePending => None,
                    };
                    let (id, token) = of(decided);
                    (id, token, settled, delay)
                });
                return SettledBatch { results: results.collect(), pause: false };
            }
            Err(error) => error,
        };
        match error.remedy() {
            // The group is gone and with it our hold on these entries; they come again from the floor.
            Remedy::RecreateGroup => {
                tracing::error!(stream = %keys.stream, group = %keys.group, %error, "cannot settle");
                let lost = |decided| {
                    let (id, token) = of(decided);
                    (id, token, Settled::LeaseLost, None)
                };
                return SettledBatch { results: batch.iter().map(lost).collect(), pause: true };
            }
            Remedy::Repeat => tracing::warn!(stream = %keys.stream, %error, "cannot settle; trying again"),
            remedy @ (Remedy::StopReading | Remedy::Operator) => {
                // A server that takes no writes concerns every lane; whatever else an operator must mend, this one alone.
                let gate = if remedy == Remedy::StopReading { gates.host } else { gates.own };
                gate.close(Instant::now() + pause * 2 + Duration::from_secs(1));
                closed = Some(gate);
                tracing::error!(stream = %keys.stream, %error, "cannot settle; reading has stopped until it is taken");
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
