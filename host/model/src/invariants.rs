//! What must hold of a live system: the promises as predicates over plain data, so that `verify` and the tests ask the same.
//!
//! Whoever asks brings the data of *one moment*; reading them from Redis, and knowing how far the retained data reach, is the
//! caller's affair. Every predicate gives back what breaks it, never only "no".

use crate::{EntryId, ReasonCode};

/// Where an output came from, as its `cofferdam_source` says: `<stream>/<id>/<index>/<total>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// The stream that the message was published on. May hold slashes itself.
    pub stream: &'a str,
    /// The message's id there.
    pub id: EntryId,
    /// Which of its outputs this is, from 0.
    pub index: u32,
    /// How many outputs the message has.
    pub total: u32,
}

impl<'a> Source<'a> {
    /// Reads one; `None` when the text is not of this form.
    pub fn parse(text: &'a str) -> Option<Self> {
        // From the right, because only the stream's name may hold slashes.
        let mut parts = text.rsplitn(4, '/');
        let total = parts.next()?.parse().ok()?;
        let index = parts.next()?.parse().ok()?;
        let id = parts.next()?.parse().ok()?;
        let stream = parts.next().filter(|stream| !stream.is_empty())?;
        Some(Source { stream, id, index, total })
    }
}

/// One output that is there. `lane` is the caller's number for a (stream, group).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutputRecord {
    /// Of which lane.
    pub lane: u32,
    /// Of which message.
    pub source: EntryId,
    /// Which of its outputs.
    pub index: u32,
    /// How many it has.
    pub total: u32,
    /// Where it stands: the caller's number for a stream.
    pub place: u32,
}

/// What is wrong with the outputs of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFault {
    /// The same output is there more than once.
    Doubled {
        /// Of which lane.
        lane: u32,
        /// Of which message.
        source: EntryId,
        /// Which output.
        index: u32,
    },
    /// Some of its outputs are there and others are not.
    Incomplete {
        /// Of which lane.
        lane: u32,
        /// Of which message.
        source: EntryId,
        /// Different outputs that are there.
        present: u32,
        /// Outputs that the message has.
        total: u32,
    },
    /// Its outputs do not agree how many they are, or one has a number beyond: two runs were mixed.
    Mixed {
        /// Of which lane.
        lane: u32,
        /// Of which message.
        source: EntryId,
    },
}

impl OutputFault {
    /// The lane and the message.
    pub fn of(&self) -> (u32, EntryId) {
        match *self {
            OutputFault::Doubled { lane, source, .. }
            | OutputFault::Incomplete { lane, source, .. }
            | OutputFault::Mixed { lane, source } => (lane, source),
        }
    }
}

/// Effects exactly once: every output of a message is there once, or none is. Sorts the records.
pub fn outputs_exactly_once(records: &mut [OutputRecord]) -> Vec<OutputFault> {
    records.sort_unstable();
    let mut faults = Vec::new();
    for message in records.chunk_by(|a, b| (a.lane, a.source) == (b.lane, b.source)) {
        let Some(first) = message.first() else { continue };
        let (lane, source, total) = (first.lane, first.source, first.total);
        if message.iter().any(|record| record.total != total || record.index >= record.total) {
            faults.push(OutputFault::Mixed { lane, source });
            continue;
        }
        let mut present = 0u32;
        for same in message.chunk_by(|a, b| a.index == b.index) {
            present += 1;
            if let [one, _, ..] = same {
                faults.push(OutputFault::Doubled { lane, source, index: one.index });
            }
        }
        if present < total {
            faults.push(OutputFault::Incomplete { lane, source, present, total });
        }
    }
    faults
}

/// Never in both: the dead letters, as (lane, message), whose message has outputs as well. `records` must be sorted, as
/// [`outputs_exactly_once`] leaves them.
pub fn dead_and_committed(records: &[OutputRecord], letters: &[(u32, EntryId)]) -> Vec<(u32, EntryId)> {
    letters.iter().copied().filter(|(lane, id)| has_output(records, *lane, *id)).collect()
}

/// Whether a message has outputs. `records` must be sorted.
pub fn has_output(records: &[OutputRecord], lane: u32, id: EntryId) -> bool {
    records.binary_search_by(|record| (record.lane, record.source).cmp(&(lane, id))).is_ok()
}

/// The outputs of a message. `records` must be sorted.
pub fn outputs_of(records: &[OutputRecord], lane: u32, id: EntryId) -> &[OutputRecord] {
    let from = records.partition_point(|record| (record.lane, record.source) < (lane, id));
    let behind = records.get(from..).unwrap_or_default();
    let count = behind.partition_point(|record| (record.lane, record.source) == (lane, id));
    behind.get(..count).unwrap_or_default()
}

/// The first `most` outputs that a message should have and has not, given those that are there. Costs no more than those,
/// whatever number the outputs claim to have. They must be sorted.
pub fn missing_outputs(there: &[OutputRecord], most: usize) -> Vec<u32> {
    let total = there.first().map_or(0, |record| record.total);
    let lacks = |index: &u32| there.binary_search_by_key(index, |record| record.index).is_err();
    (0..total).filter(lacks).take(most).collect()
}

/// Whether an output that is missing was taken out of the middle of its stream, and cannot have been trimmed from its front:
/// the outputs of a message are written together and in order, and trimming takes the oldest first, so an earlier sibling
/// would have gone before it. `trimmed` are the streams that were trimmed; it may have stood in any of them.
pub fn taken_from_the_middle(there: &[OutputRecord], missing: u32, trimmed: &[u32]) -> bool {
    let outlived = |place: u32| there.iter().any(|record| record.place == place && record.index < missing);
    trimmed.iter().all(|place| outlived(*place))
}

/// Entries that were certainly taken out between two neighbours in a stream where Redis gives out the ids: within one
/// millisecond it counts from 0, one by one. The first of them, and how many; what stood at the end of a millisecond leaves
/// no gap.
pub fn gap(before: EntryId, after: EntryId) -> Option<(EntryId, u64)> {
    let from = if before.ms == after.ms { before.seq.saturating_add(1) } else { 0 };
    let count = after.seq.saturating_sub(from);
    (count > 0).then_some((EntryId { ms: after.ms, seq: from }, count))
}

/// An output of a lane that keeps the order of keys. `lane`, `key` and `place` are the caller's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyedOutput {
    /// Of which lane.
    pub lane: u32,
    /// Of which key.
    pub key: u32,
    /// In which stream it stands.
    pub place: u32,
    /// Its own id there.
    pub at: EntryId,
    /// Of which message.
    pub source: EntryId,
}

/// Two messages of one key whose outputs stand in the wrong order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfOrder {
    /// Of which lane.
    pub lane: u32,
    /// Of which key.
    pub key: u32,
    /// The earlier message.
    pub earlier: EntryId,
    /// The later one, an output of which stands before.
    pub later: EntryId,
}

/// Order by key: within a stream, the outputs of one key stand in the order of their messages. Sorts the outputs, and gives one
/// fault for each that stands behind a later message's.
pub fn outputs_in_order(outputs: &mut [KeyedOutput]) -> Vec<OutOfOrder> {
    outputs.sort_unstable();
    let mut faults = Vec::new();
    for line in outputs.chunk_by(|a, b| (a.lane, a.key, a.place) == (b.lane, b.key, b.place)) {
        let mut latest = EntryId::ZERO;
        for output in line {
            if output.source < latest {
                faults.push(OutOfOrder { lane: output.lane, key: output.key, earlier: output.source, later: latest });
            }
            latest = latest.max(output.source);
        }
    }
    faults
}

/// How a sum compares with what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// As it must be.
    Even,
    /// So many too few: something was lost.
    Missing(u64),
    /// So many too many: something was counted twice.
    Surplus(u64),
}

/// Compares a sum with what it must be.
pub fn balance(found: u64, expected: u64) -> Balance {
    match found.cmp(&expected) {
        std::cmp::Ordering::Equal => Balance::Even,
        std::cmp::Ordering::Less => Balance::Missing(expected - found),
        std::cmp::Ordering::Greater => Balance::Surplus(found - expected),
    }
}

/// No loss, by the counts: everything that a group was given since its ledger began is settled or pending.
pub fn delivered_is_settled_or_pending(settled: u64, pending: u64, delivered: u64) -> Balance {
    balance(settled.saturating_add(pending), delivered)
}

/// No loss, message by message: those that left no trace anywhere (no outputs, no dead letter, not pending, not on their way
/// back) must be those that the ledger counts as filtered: handled, and without outputs on purpose.
pub fn without_trace_is_filtered(without_trace: u64, filtered: u64) -> Balance {
    match balance(without_trace, filtered) {
        Balance::Even => Balance::Even,
        // More without a trace than were filtered: those are lost.
        Balance::Surplus(count) => Balance::Missing(count),
        // Fewer: something was filtered and left a trace as well.
        Balance::Missing(count) => Balance::Surplus(count),
    }
}

/// Entries of a stream that were taken away before a group read them, when `after` entries stand behind the group's position and
/// `removed` are gone. Redis's own lag counts those that are gone as still to come. And its count of what was read may be too low:
/// Redis 7.0 forgets what was read between a rewrite of its append-only file and a restart (measured with 7.0.15).
pub fn trimmed_unread(entries_added: u64, entries_read: u64, after: u64, removed: u64) -> u64 {
    entries_added.saturating_sub(entries_read).saturating_sub(after).min(removed)
}

/// Entries that a group was given, when `removed` are gone. At the end of its stream these are all that were not trimmed away unread,
/// whatever Redis counts.
pub fn was_given(entries_added: u64, entries_read: u64, at_end: bool, removed: u64) -> u64 {
    if at_end {
        entries_added.saturating_sub(trimmed_unread(entries_added, entries_read, 0, removed))
    } else {
        entries_read
    }
}

/// What a dead letter says of itself, as far as it is evidence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterEvidence<'a> {
    /// The reason code.
    pub code: &'a str,
    /// The original stream.
    pub stream: &'a str,
    /// The original id.
    pub id: &'a str,
    /// The group that gave up.
    pub group: &'a str,
    /// Charged attempts that it records.
    pub attempts: usize,
    /// Whether the original entry's fields were copied.
    pub copied: bool,
}

/// What a dead letter lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterFault {
    /// Its code is none that we know.
    UnknownCode,
    /// It was dead-lettered for a fault of the host: an innocent.
    Innocent,
    /// Nobody can find the original.
    NoOrigin,
    /// Nobody can send it back.
    NoGroup,
    /// It failed in a run, and no run is recorded.
    NoAttempts,
    /// What it was about is gone.
    NoCopy,
}

impl LetterFault {
    /// In words.
    pub const fn meaning(self) -> &'static str {
        match self {
            LetterFault::UnknownCode => "has a reason code that is not known",
            LetterFault::Innocent => "was dead-lettered for a fault of the host",
            LetterFault::NoOrigin => "does not say which message it was",
            LetterFault::NoGroup => "does not say which group gave up on it",
            LetterFault::NoAttempts => "failed in a run, and records none",
            LetterFault::NoCopy => "has no copy of the original entry",
        }
    }
}

/// A dead letter brings the evidence of why, and no innocent is among them.
pub fn letter_faults(letter: &LetterEvidence<'_>) -> Vec<LetterFault> {
    let mut faults = Vec::new();
    let code = letter.code.parse::<ReasonCode>().ok();
    match code {
        None => faults.push(LetterFault::UnknownCode),
        Some(ReasonCode::Host) => faults.push(LetterFault::Innocent),
        Some(code) if letter.attempts == 0 && in_a_run(code) => faults.push(LetterFault::NoAttempts),
        Some(_) => {}
    }
    if letter.stream.is_empty() || letter.id.parse::<EntryId>().is_err() {
        faults.push(LetterFault::NoOrigin);
    }
    if letter.group.is_empty() {
        faults.push(LetterFault::NoGroup);
    }
    if !letter.copied && code != Some(ReasonCode::PayloadTrimmed) {
        faults.push(LetterFault::NoCopy);
    }
    faults
}

/// Whether a delivery can end with this code only after a handler ran.
fn in_a_run(code: ReasonCode) -> bool {
    match code {
        ReasonCode::Retry
        | ReasonCode::Reject
        | ReasonCode::Trap
        | ReasonCode::Deadline
        | ReasonCode::Stack
        | ReasonCode::Memory
        | ReasonCode::Tables
        | ReasonCode::HostCalls
        | ReasonCode::CallBytes
        | ReasonCode::Random
        | ReasonCode::BadOutput
        | ReasonCode::OutputLimit
        | ReasonCode::OutputRate
        | ReasonCode::NotGranted
        | ReasonCode::ReservedStream
        | ReasonCode::BadStreamName
        | ReasonCode::ReservedField
        | ReasonCode::BadOutputKey => true,
        ReasonCode::Malformed
        | ReasonCode::TooLarge
        | ReasonCode::Loop
        | ReasonCode::HostCrashes
        | ReasonCode::PayloadTrimmed
        | ReasonCode::Host => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    fn output(source: u64, index: u32, total: u32) -> OutputRecord {
        OutputRecord { lane: 0, source: id(source), index, total, place: 0 }
    }

    #[test]
    fn a_source_is_read_from_the_right() {
        let source = Source::parse("a/b:c/5-1/0/2").unwrap();
        assert_eq!(source, Source { stream: "a/b:c", id: EntryId { ms: 5, seq: 1 }, index: 0, total: 2 });
        for text in ["", "5-1/0/2", "/5-1/0/2", "s/x/0/2", "s/5-1/0", "s/5-1/-1/2"] {
            assert_eq!(Source::parse(text), None, "{text}");
        }
    }

    #[test]
    fn complete_outputs_hold_in_any_order_and_lanes_are_told_apart() {
        let other = OutputRecord { lane: 1, ..output(1, 0, 1) };
        let mut records = [output(2, 0, 1), output(1, 1, 2), other, output(1, 0, 2)];
        assert_eq!(outputs_exactly_once(&mut records), []);
    }

    #[test]
    fn an_output_that_is_there_twice_is_found() {
        let mut records = [output(1, 0, 2), output(1, 1, 2), output(1, 0, 2)];
        let expected = [OutputFault::Doubled { lane: 0, source: id(1), index: 0 }];
        assert_eq!(outputs_exactly_once(&mut records), expected);
    }

    #[test]
    fn a_missing_output_is_found() {
        let mut records = [output(1, 0, 3), output(1, 2, 3)];
        let expected = [OutputFault::Incomplete { lane: 0, source: id(1), present: 2, total: 3 }];
        assert_eq!(outputs_exactly_once(&mut records), expected);
    }

    #[test]
    fn outputs_of_two_different_runs_are_found() {
        let mixed = [OutputFault::Mixed { lane: 0, source: id(1) }];
        assert_eq!(outputs_exactly_once(&mut [output(1, 0, 1), output(1, 0, 2), output(1, 1, 2)]), mixed);
        assert_eq!(outputs_exactly_once(&mut [output(1, 2, 2)]), mixed);
    }

    #[test]
    fn what_a_message_lacks_is_named() {
        let mut records = [output(2, 3, 4), output(1, 0, 1), output(2, 0, 4)];
        outputs_exactly_once(&mut records);
        assert_eq!(outputs_of(&records, 0, id(2)), [output(2, 0, 4), output(2, 3, 4)]);
        assert_eq!(outputs_of(&records, 0, id(3)), []);
        assert_eq!(missing_outputs(outputs_of(&records, 0, id(2)), 9), [1, 2]);
        assert_eq!(missing_outputs(&[output(1, 0, u32::MAX)], 2), [1, 2], "a wild number must cost nothing");
    }

    #[test]
    fn trimming_takes_earlier_siblings_first() {
        let there = [output(1, 0, 3), output(1, 2, 3)];
        assert!(taken_from_the_middle(&there, 1, &[]));
        assert!(taken_from_the_middle(&there, 1, &[0]));
        assert!(!taken_from_the_middle(&there, 1, &[0, 1]), "it may have stood in the other stream");
        assert!(!taken_from_the_middle(&there[1..], 0, &[0]), "it may have been trimmed");
    }

    #[test]
    fn what_was_taken_out_of_the_middle_leaves_a_gap() {
        let at = |ms, seq| EntryId { ms, seq };
        assert_eq!(gap(at(1, 0), at(1, 1)), None);
        assert_eq!(gap(at(1, 7), at(2, 0)), None);
        assert_eq!(gap(at(1, 0), at(1, 3)), Some((at(1, 1), 2)));
        assert_eq!(gap(at(1, 7), at(2, 1)), Some((at(2, 0), 1)));
    }

    #[test]
    fn an_output_behind_one_of_a_later_message_of_its_key_is_found() {
        let keyed = |at, source, key, place| KeyedOutput { lane: 0, key, place, at: id(at), source: id(source) };
        let mut good = [keyed(1, 1, 0, 0), keyed(2, 1, 0, 0), keyed(4, 3, 0, 0), keyed(3, 9, 1, 0), keyed(1, 9, 0, 1)];
        assert_eq!(outputs_in_order(&mut good), [], "keys and streams are told apart");
        let mut bad = [keyed(1, 2, 0, 0), keyed(2, 1, 0, 0), keyed(3, 1, 0, 0), keyed(4, 3, 0, 0)];
        let fault = OutOfOrder { lane: 0, key: 0, earlier: id(1), later: id(2) };
        assert_eq!(outputs_in_order(&mut bad), [fault, fault]);
    }

    #[test]
    fn a_dead_letter_whose_message_has_outputs_is_found() {
        let mut records = [output(1, 0, 1), output(2, 0, 1)];
        outputs_exactly_once(&mut records);
        assert_eq!(dead_and_committed(&records, &[(0, id(3)), (1, id(1))]), []);
        assert_eq!(dead_and_committed(&records, &[(0, id(2))]), [(0, id(2))]);
    }

    #[test]
    fn a_message_that_is_neither_settled_nor_pending_is_missed() {
        assert_eq!(delivered_is_settled_or_pending(7, 3, 10), Balance::Even);
        assert_eq!(delivered_is_settled_or_pending(6, 3, 10), Balance::Missing(1));
        assert_eq!(delivered_is_settled_or_pending(8, 3, 10), Balance::Surplus(1));
    }

    #[test]
    fn a_message_without_a_trace_that_nobody_filtered_is_lost() {
        assert_eq!(without_trace_is_filtered(4, 4), Balance::Even);
        assert_eq!(without_trace_is_filtered(5, 4), Balance::Missing(1));
        assert_eq!(without_trace_is_filtered(3, 4), Balance::Surplus(1));
    }

    #[test]
    fn entries_trimmed_before_they_were_read_are_counted() {
        assert_eq!(trimmed_unread(10, 4, 6, 0), 0);
        assert_eq!(trimmed_unread(10, 4, 2, 4), 4);
        assert_eq!(trimmed_unread(10, 4, 0, 6), 6);
        // A count that is too low is no trimming.
        assert_eq!(trimmed_unread(10, 4, 0, 0), 0);
    }

    #[test]
    fn what_was_given_is_known_at_the_end_of_a_stream() {
        assert_eq!([was_given(10, 4, true, 0), was_given(10, 4, true, 6), was_given(10, 4, false, 0)], [10, 4, 4]);
    }

    #[test]
    fn a_dead_letter_without_its_evidence_is_found() {
        let good = LetterEvidence { code: "trap", stream: "s", id: "1-0", group: "g", attempts: 4, copied: true };
        assert_eq!(letter_faults(&good), []);
        let of = |letter: LetterEvidence<'static>| letter_faults(&letter);
        assert_eq!(of(LetterEvidence { code: "odd", ..good.clone() }), [LetterFault::UnknownCode]);
        assert_eq!(of(LetterEvidence { code: "host", ..good.clone() }), [LetterFault::Innocent]);
        assert_eq!(of(LetterEvidence { id: "", ..good.clone() }), [LetterFault::NoOrigin]);
        assert_eq!(of(LetterEvidence { group: "", ..good.clone() }), [LetterFault::NoGroup]);
        assert_eq!(of(LetterEvidence { attempts: 0, ..good.clone() }), [LetterFault::NoAttempts]);
        assert_eq!(of(LetterEvidence { copied: false, ..good.clone() }), [LetterFault::NoCopy]);
        let unseen = LetterEvidence { code: "malformed", attempts: 0, ..good.clone() };
        assert_eq!(of(unseen), []);
        let tombstone = LetterEvidence { code: "payload-trimmed", attempts: 0, copied: false, ..good };
        assert_eq!(of(tombstone), []);
    }
}
