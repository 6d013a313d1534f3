//! Order by key: whose turn it is. Pure.
//!
//! The rule is one sentence: a message runs only when no earlier message of its key is unfinished, wherever that one is (running,
//! waiting here, parked for its retry, or still in the hands of a dead host). So the owner of a lane must know the keys of
//! everything that is pending before it reads anything new; what it reads afterwards can only be later.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cofferdam_model::{Delivery, EntryId};

/// The unfinished messages of a lane that have a key, and those of them that wait here for their turn.
#[derive(Debug, Default)]
pub(crate) struct KeyQueues {
    keys: BTreeMap<EntryId, Arc<str>>,
    queues: HashMap<Arc<str>, BTreeSet<EntryId>>,
    waiting: BTreeMap<EntryId, Delivery>,
}

impl KeyQueues {
    /// An unfinished message, wherever it is.
    pub(crate) fn expect(&mut self, id: EntryId, key: Arc<str>) {
        self.queues.entry(key.clone()).or_default().insert(id);
        self.keys.insert(id, key);
    }

    /// Whether nothing earlier of its key is unfinished. What has no key is always next.
    pub(crate) fn is_next(&self, id: EntryId) -> bool {
        let queue = self.keys.get(&id).and_then(|key| self.queues.get(key));
        queue.is_none_or(|queue| queue.first() == Some(&id))
    }

    /// Takes in a delivery: gives it back when it is its turn, and keeps it otherwise.
    pub(crate) fn admit(&mut self, delivery: Delivery) -> Option<Delivery> {
        let id = delivery.entry;
        if let Some(key) = &delivery.message.key {
            self.expect(id, key.as_str().into());
        }
        if self.is_next(id) {
            return Some(delivery);
        }
        self.waiting.insert(id, delivery);
        None
    }

    /// A message is settled for good: gives the next of its key when that waits here. The caller has withdrawn it, should it
    /// have come in twice.
    pub(crate) fn finish(&mut self, id: EntryId) -> Option<Delivery> {
        let key = self.keys.remove(&id)?;
        let queue = self.queues.get_mut(&key)?;
        queue.remove(&id);
        let next = queue.first().copied();
        if next.is_none() {
            self.queues.remove(&key);
        }
        self.waiting.remove(&next?)
    }

    /// Takes one that waits out of the line; its place stays taken until it is finished.
    pub(crate) fn withdraw(&mut self, id: EntryId) -> Option<Delivery> {
        self.waiting.remove(&id)
    }

    /// Takes everything that waits.
    pub(crate) fn withdraw_all(&mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Everything unfinished that has a key.
    pub(crate) fn ids(&self) -> impl Iterator<Item = EntryId> {
        self.keys.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_model::{Message, Token};

    use super::*;

    fn id(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    fn delivery(ms: u64, key: Option<&str>) -> Delivery {
        let message = Message {
            id: id(ms),
            message_id: String::new(),
            stream: "in".into(),
            payload: String::new(),
            priority: 2,
            timestamp: String::new(),
            producer_id: String::new(),
            key: key.map(str::to_owned),
            attributes: Vec::new(),
        };
        Delivery { entry: id(ms), token: Token(1), message, attempts: Vec::new(), releases: 0, redrives: 0 }
    }

    enum Step {
        /// Somebody else holds it, or it is parked.
        Expect(u64, &'static str),
        /// It comes in, and runs (or waits).
        Runs(u64, &'static str),
        Waits(u64, &'static str),
        /// It is finished, and that lets another run (or none).
        Frees(u64, u64),
        FreesNone(u64),
    }
    use Step::{Expect, Frees, FreesNone, Runs, Waits};

    fn play(steps: &[Step]) -> KeyQueues {
        let mut queues = KeyQueues::default();
        for (at, step) in steps.iter().enumerate() {
            match *step {
                Expect(ms, key) => queues.expect(id(ms), key.into()),
                Runs(ms, key) => assert!(queues.admit(delivery(ms, Some(key))).is_some(), "step {at}"),
                Waits(ms, key) => assert!(queues.admit(delivery(ms, Some(key))).is_none(), "step {at}"),
                Frees(ms, next) => assert_eq!(queues.finish(id(ms)).map(|d| d.entry), Some(id(next)), "step {at}"),
                FreesNone(ms) => assert!(queues.finish(id(ms)).is_none(), "step {at}"),
            }
        }
        queues
    }

    #[test]
    fn a_message_waits_for_everything_earlier_of_its_key_and_for_nothing_else() {
        let done =
            play(&[Runs(1, "a"), Waits(2, "a"), Waits(3, "a"), Runs(4, "b"), Frees(1, 2), Frees(2, 3), FreesNone(3)]);
        assert_eq!(done.ids().collect::<Vec<_>>(), [id(4)]);
        assert_eq!(done.queues.len(), 1, "a key without messages costs nothing");
    }

    #[test]
    fn one_that_is_parked_or_in_other_hands_keeps_its_key_waiting_until_it_is_back_and_finished() {
        play(&[Expect(1, "a"), Waits(2, "a"), Runs(1, "a"), Frees(1, 2)]);
        play(&[Runs(1, "a"), Waits(2, "a"), Runs(1, "a"), Frees(1, 2)]);
        play(&[Expect(1, "a"), Expect(2, "a"), Waits(3, "a"), Waits(2, "a"), Frees(1, 2), Frees(2, 3)]);
    }

    #[test]
    fn one_that_was_finished_out_of_turn_frees_nobody() {
        play(&[Expect(1, "a"), Expect(2, "a"), Waits(3, "a"), FreesNone(2), Frees(1, 3)]);
        play(&[FreesNone(9), Runs(1, "a")]);
    }

    #[test]
    fn what_has_no_key_waits_for_nobody() {
        let mut queues = play(&[Runs(1, "a"), Waits(2, "a")]);
        assert!(queues.admit(delivery(3, None)).is_some());
        assert_eq!((queues.waiting(), queues.withdraw_all().len(), queues.waiting()), (1, 1, 0));
        assert!(!queues.is_next(id(2)), "what was given back keeps its place");
    }
}
