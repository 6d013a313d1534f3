//! What `verify` looks at: one moment of all lanes, and then everything that stood in the streams at that moment.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::Result;
use cofferdam_model::EntryId;
use cofferdam_model::invariants::{LetterEvidence, LetterFault, OutputRecord, Source, gap, letter_faults};
use cofferdam_model::route::{DEAD_LETTER_STREAM, OPERATOR_LOG_STREAM, RESERVED_PREFIX};
use cofferdam_streams::codec::take_origin;
use cofferdam_streams::dead_letters::StoredLetter;
use cofferdam_streams::{Cut, LaneFacts, LaneKeys, Seen, Store, StreamFacts, output_id, redrive_stream};
use indicatif::ProgressBar;

use crate::commands::streams::host_streams;
use crate::screen::progress;

/// Entries of one read at most: small enough that Redis serves others in between.
const PAGE_MAX: usize = 2_000;
/// What one read should bring: entries may be large, and a page of them is held at once.
const PAGE_BYTES: usize = 4 << 20;
/// Entries of a stream's first read, before it is known how large they are.
const PAGE_FIRST: usize = 50;
/// The newest entries of a stream that is not known to be ours, to find out whether it is.
const NEWEST: usize = 1_000;
/// Dead letters of one read: each carries its payload twice.
const LETTER_PAGE: usize = 200;
/// Calls of SCAN at most: some ten million keys.
const LOOKS_MAX: usize = 10_000;
/// A stream that is not known to be ours and is longer than this is looked at by its ends only.
const UNKNOWN_ENTRIES_MAX: u64 = 1_000_000;
/// Outputs and entries of inputs that are kept at once: 32 and 16 bytes each, so some 1.2 GB. Far above any retention in use.
const OUTPUTS_MAX: usize = 30_000_000;
const IDS_MAX: usize = 20_000_000;
/// Gaps of a stream that are kept, to be shown.
const GAPS_MAX: usize = 100;

/// A lane, with what Redis knew of it at the moment of the cut.
pub(super) struct Lane {
    pub(super) stream: String,
    pub(super) group: String,
    /// `None` when the group or its stream is gone, and for streams that only redriven messages come from.
    pub(super) facts: Option<LaneFacts>,
    pub(super) is_redrive: bool,
    /// Whether it has a ledger; the others are only known from outputs and letters.
    pub(super) is_real: bool,
}

/// A stream as it was read.
#[derive(Default)]
pub(super) struct StreamRead {
    /// After the reading.
    pub(super) facts: StreamFacts,
    /// The ids of its entries up to the cut; empty for streams that no lane reads.
    pub(super) ids: Vec<EntryId>,
    /// Whether there were too many to keep.
    pub(super) cut_short: bool,
    /// Its number among the places of outputs.
    pub(super) place: u32,
    /// Entries that were certainly deleted from it by id, and not trimmed off its front: as many as can be proved.
    pub(super) deleted: u64,
    /// Where.
    pub(super) gaps: Vec<Gap>,
}

/// Entries that somebody deleted by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// The first of them, and how many.
    pub(super) id: EntryId,
    pub(super) count: u64,
    /// Whose outputs stood before and behind, as (lane, message).
    pub(super) before: Option<(u32, EntryId)>,
    pub(super) behind: Option<(u32, EntryId)>,
}

impl StreamRead {
    /// Up to which id entries may have been trimmed off the front; zero when all that is gone was deleted by id. Entries that
    /// stood behind this one were not trimmed: trimming takes the oldest first.
    pub(super) fn trimmed_to(&self) -> EntryId {
        let trimmed = self.facts.removed() > self.deleted;
        if trimmed { self.facts.first.unwrap_or(self.facts.last) } else { EntryId::ZERO }
    }

    /// Looks between two neighbours for what was deleted there.
    fn look_between(&mut self, before: &Passed, behind: &Passed, max_deleted: EntryId) {
        let mut found = None;
        // Only where Redis gave out the ids do they tell of what is missing: outputs of ours have no others.
        if before.of.is_some() && behind.of.is_some() {
            found = gap(before.id, behind.id);
        }
        let known = found.is_some_and(|(from, count)| {
            from.ms == max_deleted.ms && max_deleted.seq.checked_sub(from.seq).is_some_and(|at| at < count)
        });
        if let Some((id, count)) = found {
            self.note_gap(Gap { id, count, before: before.of, behind: behind.of });
        }
        if !known && before.id < max_deleted && max_deleted < behind.id {
            self.note_gap(Gap { id: max_deleted, count: 1, before: before.of, behind: behind.of });
        }
    }

    fn note_gap(&mut self, gap: Gap) {
        self.deleted += gap.count;
        if self.gaps.len() < GAPS_MAX {
            self.gaps.push(gap);
        }
    }
}

/// An entry that was passed, and whose output it is.
#[derive(Clone, Default)]
struct Passed {
    id: EntryId,
    of: Option<(u32, EntryId)>,
}

/// A dead letter, reduced to what is compared.
pub(super) struct Letter {
    pub(super) id: EntryId,
    /// Its lane and message; `None` in the shapes of the original program.
    pub(super) of: Option<(u32, EntryId)>,
    pub(super) faults: Vec<LetterFault>,
    pub(super) attempts: usize,
}

/// All of it.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) lanes: Vec<Lane>,
    pub(super) streams: BTreeMap<String, StreamRead>,
    pub(super) outputs: Vec<OutputRecord>,
    /// Outputs of groups that are no longer here.
    pub(super) strangers: u64,
    pub(super) letters: Vec<Letter>,
    /// On their way back, as (lane, message).
    pub(super) redriven: HashSet<(u32, EntryId)>,
    /// Thrown away by an operator, as (lane, message), and how often of each group.
    pub(super) discarded: HashSet<(u32, EntryId)>,
    pub(super) discards: BTreeMap<String, u64>,
    /// Whether the operator log is whole.
    pub(super) log_is_whole: bool,
    /// Streams that were not read, and why not.
    pub(super) unread: Vec<String>,
    /// Whether dead letters were moved meanwhile.
    pub(super) moving: bool,
}

/// Reads everything that the judgement needs.
pub(super) async fn gather(store: &Store, only: Option<&str>) -> Result<Gathered> {
    let (keys, names) = what_there_is(store, only).await?;
    if keys.is_empty() {
        return Ok(Gathered::default());
    }
    let emits = host_streams(store).await?;
    let mut ends = names.clone();
    ends.extend([DEAD_LETTER_STREAM, OPERATOR_LOG_STREAM].map(str::to_owned));
    let mut cut = store.cut(&keys, &ends).await?;
    let tail = cut.streams.split_off(names.len());
    let (dead, log) = (tail.first().cloned().flatten(), tail.get(1).cloned().flatten());
    let mut gatherer = Gatherer::new(&keys, &cut, only);
    let total = cut.streams.iter().chain([&dead, &log]).flatten().map(|facts| facts.length).sum();
    let bar = progress(total, "reading streams");
    for (name, end) in names.iter().zip(&cut.streams) {
        if let Some(end) = end {
            gatherer.read_stream(store, name, end, emits.contains(name), &bar).await?;
        }
    }
    gatherer.read_redriven(&keys, &cut);
    // Outputs before letters: a message goes from the letters to the outputs, never the other way.
    if let Some(end) = &dead {
        gatherer.read_letters(store, end, &bar).await?;
    }
    if let Some(end) = &log {
        gatherer.read_log(store, end, &bar).await?;
    }
    bar.finish_and_clear();
    let mut gathered = gatherer.gathered;
    gathered.moving = moved(store, &dead, &log).await?;
    Ok(gathered)
}

/// The lanes, and the streams that may hold outputs or inputs.
async fn what_there_is(store: &Store, only: Option<&str>) -> Result<(Vec<LaneKeys>, Vec<String>)> {
    let mut lanes: BTreeSet<(String, String)> = store.lanes().await?.into_iter().collect();
    let groups: BTreeSet<String> = lanes.iter().map(|(_, group)| group.clone()).collect();
    lanes.extend(groups.into_iter().map(|group| (redrive_stream(&group), group)));
    let keys = lanes.iter().filter(|(_, group)| only.is_none_or(|only| only == group));
    let keys = keys.map(|(stream, group)| LaneKeys::new(stream, group)).collect();
    let (mut names, _) = store.stream_names(LOOKS_MAX).await?;
    names
        .retain(|name| !name.starts_with(RESERVED_PREFIX) && name != DEAD_LETTER_STREAM && name != OPERATOR_LOG_STREAM);
    Ok((keys, names))
}

/// Whether dead letters were sent back or discarded since the cut.
async fn moved(store: &Store, dead: &Option<StreamFacts>, log: &Option<StreamFacts>) -> Result<bool> {
    let dead_now = store.stream_facts(DEAD_LETTER_STREAM).await?;
    let log_now = store.stream_facts(OPERATOR_LOG_STREAM).await?;
    let removed = |facts: &Option<StreamFacts>| facts.as_ref().map_or(0, StreamFacts::removed);
    let added = |facts: &Option<StreamFacts>| facts.as_ref().map_or(0, |facts| facts.entries_added);
    Ok(removed(dead) != removed(&dead_now) || added(log) != added(&log_now))
}

struct Gatherer {
    gathered: Gathered,
    /// By stream and group.
    numbers: HashMap<String, HashMap<String, u32>>,
    /// Streams that a lane reads.
    inputs: HashSet<String>,
    groups: Vec<String>,
    /// With a filter, outputs and letters of other groups are passed over.
    all: bool,
}

impl Gatherer {
    fn new(keys: &[LaneKeys], cut: &Cut, only: Option<&str>) -> Self {
        let mut gatherer = Gatherer {
            gathered: Gathered { log_is_whole: true, ..Gathered::default() },
            numbers: HashMap::new(),
            inputs: HashSet::new(),
            groups: keys.iter().map(|lane| lane.group.to_string()).collect::<BTreeSet<_>>().into_iter().collect(),
            all: only.is_none(),
        };
        for (lane, facts) in keys.iter().zip(&cut.lanes) {
            let number = gatherer.number(&lane.stream, &lane.group);
            gatherer.inputs.insert(lane.stream.to_string());
            if let Some(known) = gatherer.gathered.lanes.get_mut(number as usize) {
                known.facts = facts.clone();
                known.is_redrive = lane.is_redrive();
                // A group that was never sent anything back has no redrive lane to speak of.
                known.is_real = !lane.is_redrive() || facts.is_some();
            }
        }
        gatherer
    }

    /// The number of a lane, given out when it is first met.
    fn number(&mut self, stream: &str, group: &str) -> u32 {
        if let Some(number) = self.numbers.get(stream).and_then(|groups| groups.get(group)) {
            return *number;
        }
        let number = u32::try_from(self.gathered.lanes.len()).unwrap_or(u32::MAX);
        let lane =
            Lane { stream: stream.to_owned(), group: group.to_owned(), facts: None, is_redrive: false, is_real: false };
        self.gathered.lanes.push(lane);
        self.numbers.entry(stream.to_owned()).or_default().insert(group.to_owned(), number);
        number
    }

    async fn read_stream(
        &mut self,
        store: &Store,
        name: &str,
        end: &StreamFacts,
        emits: bool,
        bar: &ProgressBar,
    ) -> Result<()> {
        let is_input = self.inputs.contains(name);
        let place = u32::try_from(self.gathered.streams.len()).unwrap_or(u32::MAX);
        let mut read = StreamRead { place, ..StreamRead::default() };
        if !is_input && !emits && end.length > UNKNOWN_ENTRIES_MAX {
            let newest = store.range_back(name, "+", "-", NEWEST).await?;
            let ours = |name: &[u8]| name == b"cofferdam_source";
            if !newest.iter().any(|entry| entry.fields.iter().any(|(name, _)| ours(name))) {
                self.gathered.unread.push(format!("{name} ({} entries, the newest {NEWEST} none of ours)", end.length));
                bar.inc(end.length);
                return Ok(());
            }
        }
        let (mut from, mut count) = (String::from("-"), PAGE_FIRST);
        let mut before: Option<Passed> = None;
        loop {
            let page = store.seen(name, &from, &end.last.to_string(), count).await?;
            let Some(last) = page.entries.last() else { break };
            from = format!("({}", last.id);
            for entry in &page.entries {
                let passed = Passed { id: entry.id, of: self.output(entry, place) };
                if let Some(before) = &before {
                    read.look_between(before, &passed, end.max_deleted);
                }
                before = Some(passed);
                if is_input && read.ids.len() < IDS_MAX {
                    read.ids.push(entry.id);
                } else {
                    read.cut_short |= is_input;
                }
            }
            bar.inc(page.entries.len() as u64);
            let each = page.bytes / page.entries.len().max(1) + 1;
            count = (PAGE_BYTES / each).min(count * 2).clamp(1, PAGE_MAX);
        }
        // At either end there is no neighbour to tell of it, but Redis keeps the greatest id that was deleted.
        let is_inside =
            |before: &Passed| end.first.is_some_and(|first| first < end.max_deleted) && end.max_deleted < before.id;
        if end.max_deleted > EntryId::ZERO && !before.as_ref().is_some_and(is_inside) {
            let (of, id) = (before.and_then(|before| before.of), end.max_deleted);
            let at_end = end.first.is_some_and(|first| first < id);
            read.note_gap(Gap { id, count: 1, before: of.filter(|_| at_end), behind: None });
        }
        // What was trimmed while we read counts as trimmed.
        read.facts = store.stream_facts(name).await?.unwrap_or_default();
        self.gathered.streams.insert(name.to_owned(), read);
        Ok(())
    }

    /// Notes an entry if it is an output of ours: its lane and its message.
    fn output(&mut self, entry: &Seen, place: u32) -> Option<(u32, EntryId)> {
        let (message_id, source) = entry.marks.as_ref()?;
        let source = std::str::from_utf8(source).ok().and_then(Source::parse)?;
        let Some(lane) = self.lane_of(message_id, &source) else {
            self.gathered.strangers += u64::from(self.all);
            return None;
        };
        if self.gathered.outputs.len() < OUTPUTS_MAX {
            let Source { id: source, index, total, .. } = source;
            self.gathered.outputs.push(OutputRecord { lane, source, index, total, place });
        } else if self.gathered.unread.is_empty() {
            self.gathered.unread.push(format!("outputs beyond the first {OUTPUTS_MAX}"));
        }
        Some((lane, source.id))
    }

    /// The lane of an output. Its id was made from the group, so the group need not be believed.
    fn lane_of(&mut self, message_id: &[u8], source: &Source<'_>) -> Option<u32> {
        let id = uuid::Uuid::try_parse_ascii(message_id).ok()?;
        let is = |group: &str| output_id(group, source.stream, source.id, source.index as usize) == id;
        let readers = self.numbers.get(source.stream);
        if let Some((_, number)) = readers.and_then(|readers| readers.iter().find(|(group, _)| is(group))) {
            return Some(*number);
        }
        // A redriven message may come from a stream that its group does not read.
        let group = self.groups.iter().find(|group| is(group)).cloned()?;
        Some(self.number(source.stream, &group))
    }

    /// What stood in the redrive streams at the moment of the cut.
    fn read_redriven(&mut self, keys: &[LaneKeys], cut: &Cut) {
        for (lane, entries) in keys.iter().zip(&cut.redriven).filter(|(lane, _)| lane.is_redrive()) {
            for mut entry in entries.iter().cloned() {
                if let Some(origin) = take_origin(&mut entry) {
                    let number = self.number(&origin.stream, &lane.group);
                    self.gathered.redriven.insert((number, origin.id));
                }
            }
        }
    }

    async fn read_letters(&mut self, store: &Store, end: &StreamFacts, bar: &ProgressBar) -> Result<()> {
        let mut from = String::from("-");
        loop {
            let page = store.dead_letters(&from, &end.last.to_string(), LETTER_PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            from = format!("({}", last.id);
            bar.inc(page.len() as u64);
            for letter in &page {
                if self.all || self.groups.contains(&letter.group) {
                    let letter = self.letter(letter);
                    self.gathered.letters.push(letter);
                }
            }
        }
    }

    fn letter(&mut self, letter: &StoredLetter) -> Letter {
        // The original program wrote neither group nor id: nothing can be said of those. But it said which stream it was, and
        // copied the message; what does not is nobody's dead letter.
        let is_historic = letter.group.is_empty()
            && letter.original_id.is_empty()
            && letter.plugin.is_empty()
            && !letter.original_stream.is_empty()
            && letter.original_message.is_object();
        let attempts = letter.attempts.as_array().map_or(0, Vec::len);
        let evidence = LetterEvidence {
            code: &letter.code,
            stream: &letter.original_stream,
            id: &letter.original_id,
            group: &letter.group,
            attempts,
            copied: letter.exact,
        };
        let faults = if is_historic { Vec::new() } else { letter_faults(&evidence) };
        let of = letter.original_id.parse().ok().filter(|_| !letter.group.is_empty());
        let of = of.map(|source| (self.number(&letter.original_stream, &letter.group), source));
        Letter { id: letter.id, of, faults, attempts }
    }

    /// What operators have thrown away.
    async fn read_log(&mut self, store: &Store, end: &StreamFacts, bar: &ProgressBar) -> Result<()> {
        self.gathered.log_is_whole = end.removed() == 0;
        let mut from = String::from("-");
        loop {
            let page = store.range(OPERATOR_LOG_STREAM, &from, &end.last.to_string(), PAGE_MAX).await?;
            let Some(last) = page.last() else { return Ok(()) };
            from = format!("({}", last.id);
            bar.inc(page.len() as u64);
            for entry in &page {
                let of = |wanted: &str| {
                    let found = entry.fields.iter().find(|(name, _)| name == wanted.as_bytes());
                    found.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
                };
                if of("verb") != "dlq.discard" {
                    continue;
                }
                let group = of("group");
                if let Ok(id) = of("id").parse() {
                    let number = self.number(&of("stream"), &group);
                    self.gathered.discarded.insert((number, id));
                }
                *self.gathered.discards.entry(group).or_default() += 1;
            }
        }
    }
}
