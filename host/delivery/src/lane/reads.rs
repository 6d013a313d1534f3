//! The part of a lane that reads: what may be begun, how each kind of read is asked for, and what its reply changes.
//!
//! Every read is a future in the lane's hands. What it brings goes to the lane's dispatch; whatever goes wrong with it ends in
//! one place, and leaves a doubt: Redis may believe that this consumer holds what the reply did not bring.

use cofferdam_model::breaker::Reading;
use cofferdam_model::{EntryId, Token};
use cofferdam_streams::{Ensured, LaneKeys, Look, RawEntry, Remedy, Start, Store, StreamError, TakeFor, Taken};
use tokio::time::Instant;

use super::{Done, FETCH_MAX, Lane, PAUSE_MAX, PAUSE_MIN, SWEEP_EVERY};
use crate::counters::Doing;
use crate::pipeline::fresh;
use crate::runner::iso;
use crate::suspects::Noticed;

/// Due retries of one take: each is claimed and looked up by the script.
const TAKE_MAX: usize = 100;
/// How long a consumer that holds nothing is kept, in leases: long enough that no slow host is taken for a dead one.
const CONSUMER_KEPT_LEASES: u32 = 120;

impl Lane {
    /// Until when nothing is to be read, by the host's gate and the lane's own.
    pub(super) fn gates_closed_until(&self) -> Option<Instant> {
        self.parts.gate.closed_until().max(self.own_gate.closed_until())
    }

    pub(super) fn reading_allowed(&self) -> Reading {
        let (breaker, now) = self.parts.breaker.now();
        breaker.reading(now)
    }

    pub(super) fn begin_open(&mut self) {
        self.reading = true;
        let (store, keys, start) = (self.parts.store.clone(), self.parts.keys.clone(), self.parts.start);
        self.begin(async move { Done::Opened(store.ensure_group(&keys, start).await) });
    }

    pub(super) fn begin_new(&mut self, room: usize, probing: bool) {
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

    pub(super) fn begin_due(&mut self, now: Instant, room: usize, probing: bool) {
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
    pub(super) fn begin_suspects(&mut self, count: usize) {
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

    pub(super) fn begin_look(&mut self, now: Instant) {
        self.looking = true;
        // A third of the lease, and not in step with other hosts.
        let every = (self.parts.delivery.lease / 3).mul_f64(0.75 + self.parts.surroundings.random() / 2.0);
        self.look_at = now + every;
        let (store, keys, consumer) = self.for_redis();
        self.begin(async move { Done::Looked(store.look(&keys, &consumer).await) });
    }

    /// Looks for entries that Redis gave to this consumer in a reply that never arrived. Never by reading its history: that
    /// raises the delivery counter, and only in memory.
    pub(super) fn begin_find(&mut self) {
        (self.reading, self.reconcile) = (true, false);
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

    /// When to look for parked entries next.
    pub(super) fn next_due(&self) -> Instant {
        self.due.peek().map_or(self.sweep_at, |due| due.0.min(self.sweep_at))
    }

    /// How many more deliveries may be held.
    pub(super) fn room(&self) -> usize {
        let delivery = self.parts.delivery;
        let ahead = self.pace.ahead(self.parts.runner.threads(), delivery).saturating_sub(self.at_work());
        let bytes = delivery.in_flight_bytes_max.saturating_sub(self.in_flight_bytes + self.decided_bytes as u64);
        let ahead = ahead.min(self.pace.fitting(bytes).max(usize::from(self.in_flight.is_empty())));
        // What waits for its turn takes no thread, but its lease must be renewed, and a crash makes suspects of all.
        if self.order.is_none() {
            ahead
        } else {
            ahead.min(delivery.in_flight_max.saturating_sub(self.in_flight.len()))
        }
    }

    pub(super) fn take_opened(&mut self, opened: Result<Ensured, StreamError>) {
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
                if self.parts.counters.fails(Doing::Reading, error.to_string()) {
                    tracing::warn!(%plugin, stream = %keys.stream, %error, "cannot open the group yet");
                }
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

    pub(super) fn take_new(&mut self, read: Result<Vec<RawEntry>, StreamError>) {
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

    pub(super) fn take_due(&mut self, taken: Result<(u64, Vec<Taken>), StreamError>) {
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

    pub(super) fn take_suspects(&mut self, taken: Result<(u64, Vec<Taken>), StreamError>) {
        self.reading = false;
        match taken {
            Ok((found, taken)) => {
                self.reconcile |= self.order.is_some() && (taken.is_empty() || found != taken.len() as u64);
                self.dispatch(taken);
            }
            Err(error) => self.read_failed(error),
        }
    }

    pub(super) fn take_found(&mut self, found: Result<(Vec<Taken>, bool), StreamError>) {
        self.reading = false;
        match found {
            Ok((mut taken, all)) => {
                self.reconcile |= !all;
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

    pub(super) fn take_look(&mut self, look: Result<Look, StreamError>) {
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

    pub(super) fn read_failed(&mut self, error: StreamError) {
        let (plugin, stream) = (self.parts.plugin.clone(), self.parts.keys.stream.clone());
        self.news = true;
        // The request may have been carried out, wholly or in part: then Redis believes that we hold entries.
        self.reconcile = true;
        self.watch.forget(Instant::now(), self.parts.delivery.lease);
        self.suspects.clear();
        self.end_probe(None);
        if error.remedy() == Remedy::RecreateGroup {
            tracing::error!(%plugin, %stream, %error, "the group is gone; creating it again at its floor");
            self.opened = false;
            return;
        }
        if self.parts.counters.fails(Doing::Reading, error.to_string()) {
            match error.remedy() {
                Remedy::Repeat => tracing::warn!(%plugin, %stream, %error, "cannot read; trying again"),
                _ => tracing::error!(%plugin, %stream, %error, "cannot read; trying again"),
            }
        }
        self.pause_reading();
    }

    pub(super) fn pause_reading(&mut self) {
        self.read_after = Instant::now() + self.pause.mul_f64(0.5 + self.parts.surroundings.random() / 2.0);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    pub(super) fn resume_reading(&mut self) {
        self.parts.counters.works(Doing::Reading);
        self.pause = PAUSE_MIN;
        self.read_after = Instant::now();
    }
}

/// Takes up those of the entries that Redis believes to be ours which we do not know, in steps of the room there is: the rest is
/// found next time. Says whether that was all.
pub(super) async fn take_unknown(
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
