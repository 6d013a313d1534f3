//! The part of a lane that keeps the order of keys: who owns the lane, what its owner finds pending, and whose turn it is.
//!
//! ```text
//!  stand by ──own──▶ owner ─▶ survey everything pending ─▶ read, take, settle under the epoch
//!     ▲                            ▲         │
//!     └──── another host owns it ──┼─────────┤
//!                                  └─ doubt ─┘
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use cofferdam_model::{Delivery, EntryId, Fault, HostState, Token, Verdict};
use cofferdam_streams::{
    Evidence, Holding, Owned, RawEntry, SettleContext, Settled, StreamError, Suspect, TakeFor, Taken, Tenure,
    Unfinished, planted, retry_consumer,
};
use tokio::time::{Instant, timeout};

use super::reads::take_unknown;
use super::settles::GIVE_BACK_TIME;
use super::{Done, Lane, Mode, PAUSE_MIN};
use crate::counters::Doing;
use crate::key_queues::KeyQueues;
use crate::runner::{Ran, iso};

/// The part of a lane that keeps an order.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) queues: KeyQueues,
    /// Under which epoch this lane is the owner; `None` while it stands by.
    pub(crate) epoch: Option<u64>,
    /// The last epoch under which it was; 0 for none.
    last_epoch: u64,
    /// How many messages it has finished under that epoch; `None` until it has surveyed what is unfinished.
    finished: Option<u64>,
    /// What it let out of its hands while it ran: counted already, whatever its run brings.
    strays: BTreeSet<(EntryId, Token)>,
    /// Whether a survey is under way.
    surveying: bool,
    pub(crate) asking: bool,
    pub(crate) ask_at: Instant,
    owner: OtherOwner,
}

impl Order {
    pub(crate) fn new(now: Instant) -> Self {
        let (queues, owner) = (KeyQueues::default(), OtherOwner::default());
        Order {
            queues,
            epoch: None,
            last_epoch: 0,
            finished: None,
            strays: BTreeSet::new(),
            surveying: false,
            asking: false,
            ask_at: now,
            owner,
        }
    }

    pub(crate) fn owner(&mut self) -> &mut OtherOwner {
        &mut self.owner
    }
}

/// What a lane that stands by knows of the owner's signs of life, by its own monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct OtherOwner {
    state: String,
    since: Option<Instant>,
    asked: Option<Instant>,
}

impl OtherOwner {
    /// The owner's state as it is `now`.
    pub(crate) fn seen(&mut self, state: String, now: Instant, lease: Duration) {
        // Whoever has not asked for a lease may have been stopped together with the owner.
        let late = self.asked.is_none_or(|asked| now - asked > lease);
        if late || state != self.state {
            self.since = Some(now);
            self.state = state;
        }
        self.asked = Some(now);
    }

    /// Redis could not be reached: the owner could not renew either.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Its state, when that has not changed for a whole lease.
    pub(crate) fn silent(&self, now: Instant, lease: Duration) -> Option<String> {
        self.since.filter(|since| now - *since >= lease).map(|_| self.state.clone())
    }
}

/// What the owner of an ordered lane finds pending.
pub(super) struct Survey {
    /// Under which epoch it was made.
    epoch: u64,
    /// How many messages Redis knew to be finished under it.
    finished: u64,
    /// Everything, in the order of the ids.
    pending: Vec<Unfinished>,
    /// Those of them whose keys were not known.
    entries: Vec<RawEntry>,
    /// What keys wait for though nobody holds it: the group has yet to give it out once more. In the order of the ids.
    unread: Vec<EntryId>,
    /// What this lane held when it asked.
    known: Vec<EntryId>,
    /// What Redis believes to be ours beyond that, and whether that was all.
    taken: Vec<Taken>,
    all: bool,
}

impl Lane {
    /// What the owner of an ordered lane does whenever it may not know of all that is pending: when it has become the owner, and
    /// after every doubt. Until it knows, nothing new is read and nothing is settled.
    pub(super) fn begin_survey(&mut self, epoch: u64) {
        let Some(order) = &mut self.order else { return };
        (self.reading, self.reconcile, order.surveying) = (true, false, true);
        let keyed: Vec<EntryId> = order.queues.ids().collect();
        let known: Vec<EntryId> = self.in_flight.keys().copied().collect();
        let (store, keys, consumer) = self.for_redis();
        let (room, plugin, stamp) =
            (self.room().max(1), self.parts.plugin.clone(), iso(self.parts.surroundings.now_ms()));
        self.begin(async move {
            Done::Surveyed(
                async {
                    let finished = store.finished(&keys).await?;
                    let pending = store.unfinished(&keys).await?;
                    let new = pending.iter().map(|one| one.id).filter(|id| keyed.binary_search(id).is_err());
                    let entries = store.entries_or_copies(&keys, &new.collect::<Vec<_>>()).await?;
                    // Asked last: a failover in between then shows as well.
                    let is_pending = |id: &EntryId| pending.binary_search_by_key(id, |one| one.id).is_ok();
                    let gone: Vec<EntryId> = keyed.iter().copied().filter(|id| !is_pending(id)).collect();
                    let unread = store.unread(&keys, &gone).await?;
                    let own = pending.iter().filter(|one| one.holder == consumer).map(|one| (one.id, one.token));
                    let me = TakeFor { consumer: &consumer, plugin: &plugin, now: &stamp, epoch: Some(epoch) };
                    let (taken, all) = take_unknown(&store, &keys, &me, own.collect(), &known, room).await?;
                    Ok(Survey { epoch, finished, pending, entries, unread, known, taken, all })
                }
                .await,
            )
        });
    }

    pub(super) fn take_surveyed(&mut self, survey: Result<Survey, StreamError>) {
        self.reading = false;
        self.order.iter_mut().for_each(|order| order.surveying = false);
        let survey = match survey {
            Ok(survey) => survey,
            Err(error) => return self.read_failed(error),
        };
        let Some(order) = self.order.as_mut().filter(|order| order.epoch == Some(survey.epoch)) else { return };
        if let Some(taken_back) = order.finished.and_then(|known| known.checked_sub(survey.finished))
            && taken_back > 0
        {
            let (plugin, stream) = (&self.parts.plugin, &self.parts.keys.stream);
            tracing::warn!(%plugin, %stream, taken_back, "redis has lost how messages were finished; they are handled again, in their order");
            // Under a new epoch the same count cannot stand for two histories. What was in our hands is found again by the survey.
            order.ask_at = Instant::now();
            self.lose_order();
            return;
        }
        order.finished = Some(survey.finished);
        for entry in survey.entries {
            let id = entry.id;
            if let Some(key) = self.parts.reader.key_of(entry) {
                order.queues.expect(id, key);
            }
        }
        let pending = |id: &EntryId| survey.pending.binary_search_by_key(id, |one| one.id).is_ok();
        // A failover has taken back that these were ever read: they come once more, and what is behind them still waits.
        let unread = |id: &EntryId| survey.unread.binary_search(id).is_ok();
        self.news |= !survey.unread.is_empty();
        // Settled by a call whose reply was lost, or taken away by somebody: nobody need wait for these.
        let gone: Vec<EntryId> = order.queues.ids().filter(|id| !pending(id) && !unread(id)).collect();
        // What a run of these brings does not count: they may be given to us once more, behind others and under the same token.
        let lost: Vec<EntryId> = survey.known.into_iter().filter(|id| !pending(id)).collect();
        for id in lost {
            let waited = self.order.as_mut().is_some_and(|order| order.queues.withdraw(id).is_some());
            let Some(held) = self.let_out(id) else { continue };
            self.parts.counters.settled(Settled::LeaseLost);
            if let Some(order) = self.order.as_mut().filter(|_| !waited) {
                order.strays.insert((id, held.token));
            }
        }
        let (reserved, me) = (retry_consumer(), self.parts.consumer.clone());
        self.parked = survey.pending.iter().filter(|one| *one.holder == *reserved).count() as u64;
        if self.parked > 0 {
            // What other hosts have parked may be due, and a key may wait for it.
            self.sweep_at = Instant::now();
        }
        // Whoever else holds something was the owner before, and its settles are refused: no lease is waited for.
        let others = survey.pending.into_iter().filter(|one| *one.holder != *reserved && one.holder != me);
        self.suspects = others.map(|Unfinished { id, holder, token }| Suspect { id, holder, token }).collect();
        let freed = gone.into_iter().filter_map(|id| self.finish(id)).collect();
        self.run_admitted(freed);
        self.take_found(Ok((survey.taken, survey.all)));
    }

    /// Becomes or stays the owner of an ordered lane, or watches who is.
    pub(super) fn keep_order(&mut self, mode: Mode) {
        let idle = self.is_idle();
        let Some(order) = &mut self.order else { return };
        let now = Instant::now();
        match order.epoch {
            // Nobody is to wait for a host on which the plugin is paused.
            Some(epoch) if mode != Mode::Run && idle => {
                (order.epoch, order.finished) = (None, None);
                let (store, keys, consumer) = self.for_redis();
                self.begin(async move {
                    // Whoever stands by takes over after a lease all the same.
                    let _ = store.disown(&keys, &consumer, epoch).await;
                    Done::Disowned
                });
            }
            None if mode != Mode::Run => {}
            epoch if self.opened && !order.asking && now >= order.ask_at => {
                let lease = self.parts.delivery.lease;
                order.asking = true;
                // Not in step with other hosts.
                order.ask_at = now + (lease / 3).mul_f64(0.75 + self.parts.surroundings.random() / 2.0);
                let (last, silent) = (order.last_epoch, order.owner().silent(now, lease));
                let (store, keys, consumer) = self.for_redis();
                self.begin(
                    async move { Done::Owned(store.own(&keys, &consumer, epoch, last, silent.as_deref()).await) },
                );
            }
            Some(_) | None => {}
        }
    }

    pub(super) fn take_owned(&mut self, owned: Result<Owned, StreamError>) {
        let (now, lease) = (Instant::now(), self.parts.delivery.lease);
        let Some(order) = &mut self.order else { return };
        order.asking = false;
        let (plugin, stream) = (self.parts.plugin.clone(), self.parts.keys.stream.clone());
        if owned.is_ok() {
            self.parts.counters.works(Doing::Owning);
        }
        match owned {
            Ok(Owned::Still) => {}
            Ok(Owned::Mine(epoch)) => {
                order.owner().forget();
                // What is still in our hands is found again by the survey.
                self.lose_order();
                tracing::info!(%plugin, %stream, epoch, "this host keeps the order of the keys now");
                if let Some(order) = &mut self.order {
                    (order.epoch, order.last_epoch) = (Some(epoch), epoch);
                }
                (self.reconcile, self.news) = (true, true);
            }
            Ok(Owned::Other(state)) => {
                order.owner().seen(state, now, lease);
                if order.epoch.is_some() {
                    tracing::warn!(%plugin, %stream, "another host has taken over the order of the keys");
                    let dropped = self.lose_order();
                    self.let_go(dropped);
                }
            }
            Err(error) => {
                if self.parts.counters.fails(Doing::Owning, error.to_string()) {
                    tracing::warn!(%plugin, %stream, %error, "cannot ask who keeps the order; trying again");
                }
                order.owner().forget();
                order.ask_at = now + PAUSE_MIN;
            }
        }
    }

    /// Another host may own the lane: what has not begun to run is forgotten here, and given back to the caller. What runs is
    /// refused, or was never taken over.
    fn lose_order(&mut self) -> Vec<Holding> {
        let Some(order) = &mut self.order else { return Vec::new() };
        (order.epoch, order.finished) = (None, None);
        // Whoever stands by reads nothing, and cannot fail at it.
        self.parts.counters.works(Doing::Reading);
        let waiting = order.queues.withdraw_all();
        order.queues = Default::default();
        self.suspects.clear();
        let dropped: Vec<Delivery> =
            waiting.into_iter().chain(self.apart.drain(..)).chain(self.again.drain(..)).collect();
        let mut holdings = Vec::with_capacity(dropped.len());
        for delivery in dropped {
            let id = delivery.entry;
            holdings.extend(self.let_out(id).map(|held| held.holding(id)));
            if !self.is_stray(id, delivery.token) {
                self.parts.counters.settled(Settled::LeaseLost);
            }
            if self.probe == Some(id) {
                self.end_probe(None);
            }
        }
        holdings
    }

    /// Gives back, uncharged, what an ordered lane may not settle and may still hold: its present owner would have to take it for
    /// a suspect. Fenced, so that what somebody has taken over meanwhile stays where it is.
    pub(super) fn let_go(&mut self, held: Vec<Holding>) {
        if held.is_empty() || self.order.is_none() {
            return;
        }
        self.settles += 1;
        let (store, keys, consumer) = self.for_redis();
        let (now_ms, tenure) = (self.parts.surroundings.now_ms(), self.tenure());
        self.begin(async move {
            let now = iso(now_ms);
            let cx = SettleContext { lane: &keys, consumer: &consumer, now_ms, now: &now, tenure };
            // Whoever owns the lane finds it all the same.
            let _ = store.give_back(&cx, &held).await;
            Done::LetGo
        });
    }

    /// A lane that is not to go on gives back, uncharged, what waits for its turn.
    pub(super) fn withdraw_waiting(&mut self) {
        let Some(terms) = self.parts.runner.terms() else { return };
        let waiting = self.order.as_mut().map(|order| order.queues.withdraw_all()).unwrap_or_default();
        for delivery in waiting {
            let result = Err(Fault::Host { text: String::from("the host is leaving") });
            let evidence = Evidence::default();
            self.decide(Ran { delivery, result, terms: None, evidence, host: HostState::Stopping }, &terms);
        }
    }

    /// Gives up an ordered lane, so that nobody need wait for a lease.
    pub(super) async fn disown(&mut self) {
        let Some(epoch) = self.order.as_ref().and_then(|order| order.epoch) else { return };
        // Whoever stands by takes over after a lease all the same.
        let _ = timeout(GIVE_BACK_TIME, self.parts.store.disown(&self.parts.keys, &self.parts.consumer, epoch)).await;
    }

    /// By what right this lane settles: none is needed when it keeps no order.
    pub(super) fn tenure(&self) -> Option<Tenure> {
        let tenure = |order: &Order| Some(Tenure { epoch: order.epoch?, finished: order.finished? });
        self.order.as_ref().map(|order| tenure(order).unwrap_or(Tenure::NONE))
    }

    /// As many more messages are finished, by a settle under this right.
    pub(super) fn note_finished(&mut self, tenure: Tenure, more: u64) {
        if let Some(order) = &mut self.order
            && (order.epoch, order.finished) == (Some(tenure.epoch), Some(tenure.finished))
        {
            order.finished = Some(tenure.finished + more);
        }
    }

    /// Under which epoch this lane reads and takes: none when it keeps no order, and one that nobody has while another host is the owner.
    pub(super) fn epoch(&self) -> Option<u64> {
        self.order.as_ref().map(|order| order.epoch.unwrap_or(0))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.settles == 0 && !self.reading
    }

    /// Deliveries held, without those that wait for their turn.
    pub(super) fn at_work(&self) -> usize {
        let waiting = self.order.as_ref().map_or(0, |order| order.queues.waiting());
        self.in_flight.len().saturating_sub(waiting)
    }

    /// The first suspect that may run: an ordered lane takes over nothing that would only wait.
    pub(super) fn next_suspect(&self) -> Option<usize> {
        let may_run = |suspect: &Suspect| self.order.as_ref().is_none_or(|order| order.queues.is_next(suspect.id));
        self.suspects.iter().position(may_run)
    }

    /// Takes in a delivery: gives it back when it may run now. Always, where no order is kept.
    pub(super) fn admit(&mut self, delivery: Delivery) -> Option<Delivery> {
        if self.order.is_none() {
            return Some(delivery);
        }
        let id = delivery.entry;
        self.forget_waiting(id);
        let admitted = self.order.as_mut()?.queues.admit(delivery);
        // A probe that waits for others would tell nothing.
        if admitted.is_none() && self.probe == Some(id) {
            self.end_probe(None);
        }
        admitted
    }

    /// Whether this delivery was let out of our hands while it ran, and is counted.
    pub(super) fn is_stray(&mut self, id: EntryId, token: Token) -> bool {
        self.order.as_mut().is_some_and(|order| order.strays.remove(&(id, token)))
    }

    /// Whether a lane that keeps an order has to see what is unfinished before it settles anything. A lane that is not to go on
    /// looks no more: what it may not settle is refused, and given back.
    pub(super) fn looks_first(&self, mode: Mode) -> bool {
        let looks = |order: &Order| order.surveying || (self.reconcile && order.epoch.is_some());
        mode == Mode::Run
            && self.opened
            && self.parts.runner.terms().is_some()
            && self.order.as_ref().is_some_and(looks)
    }

    /// Leaves out what a lane that keeps an order may not settle: what it does not hold any more, and what is behind a message
    /// that a failover has taken back meanwhile. That gives way, uncharged, and comes back in its turn.
    pub(super) fn drop_untimely(&mut self) {
        let Some(order) = &mut self.order else { return };
        let mut early = Vec::new();
        let counters = &self.parts.counters;
        self.decided.retain(|one| {
            let Delivery { entry, token, .. } = one.delivery;
            let ours = self.in_flight.get(&entry).is_some_and(|held| held.token == token);
            let takes_effect = matches!(&one.verdict, Verdict::Commit { events } if !events.is_empty());
            let timely = ours && (order.queues.is_next(entry) || !takes_effect);
            if !timely && !order.strays.remove(&(entry, token)) {
                counters.settled(Settled::LeaseLost);
            }
            if ours && !timely {
                early.push(entry);
            }
            timely
        });
        let mut held = Vec::with_capacity(early.len());
        for entry in early {
            self.forget_waiting(entry);
            held.extend(self.let_out(entry).map(|one| one.holding(entry)));
        }
        self.let_go(held);
    }

    /// Which delivery may run now that this one is settled.
    pub(super) fn next_of_key(&mut self, id: EntryId, settled: Settled) -> Option<Delivery> {
        let order = self.order.as_mut()?;
        match settled {
            Settled::Committed { .. } | Settled::Filtered | Settled::Dead(_) => self.finish(id),
            // It keeps its place until it is back and finished.
            Settled::Retried(_) | Settled::Released | Settled::Left => None,
            // By an earlier call whose reply was lost, or another host is the owner: we must look.
            Settled::LeaseLost => {
                self.reconcile = true;
                order.ask_at = Instant::now();
                None
            }
        }
    }

    fn finish(&mut self, id: EntryId) -> Option<Delivery> {
        // Given to us anew: it is not over, and whatever is behind it still waits.
        if self.in_flight.contains_key(&id) {
            return None;
        }
        self.forget_waiting(id);
        self.order.as_mut()?.queues.finish(id)
    }

    /// Redis gave it out a second time (its group was lost, or a failover rewound): one of the two was in vain.
    fn forget_waiting(&mut self, id: EntryId) {
        if self.order.as_mut().is_some_and(|order| order.queues.withdraw(id).is_some()) {
            self.parts.counters.settled(Settled::LeaseLost);
        }
    }

    /// Runs deliveries whose turn it is.
    pub(super) fn run_admitted(&mut self, deliveries: Vec<Delivery>) {
        let (apart, rest): (Vec<_>, Vec<_>) =
            deliveries.into_iter().partition(|one| one.is_suspect() && !planted("batch-suspects"));
        self.apart.extend(apart);
        self.submit(rest);
        self.submit_apart();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_silent_after_a_lease_without_a_sign_of_life_that_we_could_have_seen() {
        const LEASE: Duration = Duration::from_secs(30);
        let (mut owner, began) = (OtherOwner::default(), Instant::now());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        for (seconds, state, silent) in
            [(0, "a", false), (10, "a", false), (20, "b", false), (40, "b", false), (50, "b", true), (90, "b", false)]
        {
            owner.seen(state.into(), at(seconds), LEASE);
            assert_eq!(owner.silent(at(seconds), LEASE).is_some(), silent, "at {seconds} s");
        }
        owner.forget();
        assert_eq!(owner.silent(at(999), LEASE), None);
    }
}
