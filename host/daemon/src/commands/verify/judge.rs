//! From what was gathered to checks: pure. The predicates themselves are the model's (`invariants`); here is how far the
//! retained data let them be asked.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use cofferdam_model::EntryId;
use cofferdam_model::invariants::{
    Balance, OutputFault, balance, dead_and_committed, delivered_is_settled_or_pending, has_output, missing_outputs,
    outputs_exactly_once, outputs_of, taken_from_the_middle, trimmed_unread, was_given, without_trace_is_filtered,
};
use cofferdam_streams::{LaneFacts, Tally};
use indicatif::HumanCount;

use super::gather::{Gap, Gathered, Lane, StreamRead};

/// How a check stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Ok,
    Violated,
    /// The data that would prove it are gone.
    NotProvable,
}

impl Standing {
    pub(super) fn word(self) -> &'static str {
        match self {
            Standing::Ok => "ok",
            Standing::Violated => "VIOLATED",
            Standing::NotProvable => "not provable",
        }
    }
}

/// One check.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) name: &'static str,
    /// A lane or a group; "all".
    pub(super) about: String,
    pub(super) standing: Standing,
    pub(super) detail: String,
    /// How many violations there are, and some of them.
    pub(super) count: u64,
    pub(super) examples: Vec<String>,
}

/// All checks, and the last line.
#[derive(Debug)]
pub(super) struct Judgement {
    pub(super) checks: Vec<Check>,
    pub(super) summary: String,
}

/// Examples that are collected; a broken system has millions.
const EXAMPLES_MAX: usize = 20;
/// Missing outputs of one message that are named.
const MISSING_MAX: usize = 5;

const BOTH: &str = "never committed and dead";
const NO_TRACE: &str = "no trace = filtered";
const LETTERS: &str = "dead letters = ledger";

impl Judgement {
    /// Takes back what dead letters that were moved during every reading may have feigned.
    pub(super) fn excuse_moved(&mut self) {
        let moved = self.checks.iter_mut().filter(|check| [BOTH, NO_TRACE, LETTERS].contains(&check.name));
        for check in moved.filter(|check| check.standing == Standing::Violated) {
            check.standing = Standing::NotProvable;
            check.detail.push_str("; but dead letters were moved while they were read: try again");
        }
        let violated = self.checks.iter().filter(|check| check.standing == Standing::Violated).count();
        self.summary = match violated {
            0 => String::from("nothing lost, nothing doubled, as far as could be seen while dead letters were moved"),
            _ => violations(violated, self.checks.len()),
        };
    }
}

fn violations(violated: usize, checks: usize) -> String {
    let verb = if violated == 1 { "is" } else { "are" };
    format!("{violated} of {checks} checks {verb} violated")
}

/// Judges.
pub(super) fn judge(gathered: &mut Gathered) -> Judgement {
    let faults = outputs_exactly_once(&mut gathered.outputs);
    let gathered = &*gathered;
    let real = |lane: &&Lane| lane.is_real;
    let groups: BTreeSet<&str> = gathered.lanes.iter().filter(real).map(|lane| lane.group.as_str()).collect();
    if groups.is_empty() {
        let summary = String::from("no plugin has read anything here yet: there is nothing to check");
        return Judgement { checks: Vec::new(), summary };
    }
    let groups: Vec<Group<'_>> = groups.into_iter().map(|name| Group::new(gathered, name)).collect();
    let mut checks: Vec<Check> = gathered.lanes.iter().filter(real).map(|lane| adds_up(gathered, lane)).collect();
    checks.push(once(gathered, &groups, &faults));
    checks.extend(groups.iter().map(Group::outputs_are_there));
    checks.push(never_both(gathered));
    checks.extend(groups.iter().map(|group| group.without_trace()));
    checks.push(evidence(gathered));
    checks.extend(groups.iter().map(Group::letters_are_there));
    let mains = gathered.lanes.iter().filter(|lane| lane.is_real && !lane.is_redrive);
    checks.extend(mains.filter_map(|lane| read_in_time(gathered, lane)));
    let summary = summary(gathered, &groups, &checks);
    Judgement { checks, summary }
}

fn number(count: u64) -> HumanCount {
    HumanCount(count)
}

fn check(name: &'static str, about: &str, standing: Standing, detail: String) -> Check {
    Check { name, about: about.to_owned(), standing, detail, count: 0, examples: Vec::new() }
}

fn settled(tally: &Tally) -> u64 {
    tally.committed + tally.filtered + tally.dead + tally.rescued
}

fn label(lane: &Lane) -> String {
    if lane.is_redrive { format!("{} (redrive)", lane.group) } else { format!("{} on {}", lane.group, lane.stream) }
}

/// Where the lane's ledger began.
fn start(facts: &LaneFacts) -> EntryId {
    facts.ledger.start.as_deref().and_then(|text| text.parse().ok()).unwrap_or(EntryId::ZERO)
}

/// The ids that the lane was given since its ledger began, as far as they are retained.
fn given<'a>(facts: &LaneFacts, read: &'a StreamRead) -> &'a [EntryId] {
    let from = read.ids.partition_point(|id| *id <= start(facts));
    let to = read.ids.partition_point(|id| *id <= facts.group.last_delivered);
    read.ids.get(from..to).unwrap_or_default()
}

/// Whether every entry since the lane's start is still there.
fn is_whole(facts: &LaneFacts, read: &StreamRead) -> bool {
    let ends = &read.facts;
    let untrimmed = ends.removed() == 0 || ends.first.is_some_and(|first| first <= start(facts));
    untrimmed && ends.max_deleted <= start(facts) && !read.cut_short
}

/// How many entries the lane was given since its ledger began.
fn delivered(gathered: &Gathered, lane: &Lane, facts: &LaneFacts) -> Option<u64> {
    let from_lag = facts.group.lag.map(|lag| facts.stream.entries_added.saturating_sub(lag));
    // A redrive stream and its group are made in one step: it has no past.
    let base = facts.ledger.base_read.or(lane.is_redrive.then_some(0));
    if let (Some(read), Some(base)) = (facts.group.entries_read.or(from_lag), base) {
        let at_end = facts.group.last_delivered >= facts.stream.last;
        // What is settled is deleted from a redrive stream, and nobody trims it.
        let removed = if lane.is_redrive { 0 } else { facts.stream.removed() };
        return Some(was_given(facts.stream.entries_added, read, at_end, removed).saturating_sub(base));
    }
    let read = gathered.streams.get(&lane.stream).filter(|read| is_whole(facts, read))?;
    Some(given(facts, read).len() as u64)
}

fn adds_up(gathered: &Gathered, lane: &Lane) -> Check {
    const NAME: &str = "read = settled + pending";
    let about = label(lane);
    let Some(facts) = &lane.facts else {
        let detail =
            "the group or its stream is gone; a host creates it again at its floor, and may repeat what came after";
        return check(NAME, &about, Standing::Violated, detail.to_owned());
    };
    let (settled, pending) = (settled(&facts.ledger.tally), facts.group.pending);
    let Some(delivered) = delivered(gathered, lane, facts) else {
        let detail = format!(
            "Redis cannot tell how many entries the group read (it began in the middle, or entries were deleted); {} are settled, {} pending",
            number(settled),
            number(pending)
        );
        return check(NAME, &about, Standing::NotProvable, detail);
    };
    let sum = format!("{} read, {} settled, {} pending", number(delivered), number(settled), number(pending));
    let (standing, detail, count) = match delivered_is_settled_or_pending(settled, pending, delivered) {
        Balance::Even => (Standing::Ok, sum, 0),
        Balance::Missing(count) => {
            let mut detail = format!("{sum}: {} are neither settled nor pending", number(count));
            // A group that goes on after a foreign trim is told by Redis that it read what was taken away.
            if let Some(first) = facts.stream.first.filter(|first| *first > start(facts) && facts.stream.removed() > 0)
            {
                detail.push_str(&format!("; acknowledged by another hand, or trimmed away unread (before {first})"));
            }
            (Standing::Violated, detail, count)
        }
        // Redis 7.0 forgets what was read between a rewrite of its append-only file and a restart.
        Balance::Surplus(_) if !is_more_than_was_added(facts) => {
            (Standing::NotProvable, format!("{sum}; Redis's count of what was read may be too low"), 0)
        }
        Balance::Surplus(count) => (
            Standing::Violated,
            format!(
                "{sum}: {} too many; settled twice, or the group was lost and began again at its floor",
                number(count)
            ),
            count,
        ),
    };
    Check { count, ..check(NAME, &about, standing, detail) }
}

/// Whether more is settled and pending than the stream ever held: no count of what was read explains that.
fn is_more_than_was_added(facts: &LaneFacts) -> bool {
    let known = settled(&facts.ledger.tally) + facts.group.pending + facts.ledger.base_read.unwrap_or(0);
    known > facts.stream.entries_added
}

/// A group with all of its lanes.
struct Group<'a> {
    name: &'a str,
    gathered: &'a Gathered,
    /// Lane numbers, those without a ledger too.
    lanes: Vec<(u32, &'a Lane)>,
    tally: Tally,
    outputs: u64,
    /// Messages up to here may have had outputs that are no longer there.
    horizon: EntryId,
}

impl<'a> Group<'a> {
    fn new(gathered: &'a Gathered, name: &'a str) -> Self {
        let lanes: Vec<(u32, &Lane)> = (0u32..).zip(&gathered.lanes).filter(|(_, lane)| lane.group == name).collect();
        let mut tally = Tally::default();
        lanes.iter().filter_map(|(_, lane)| lane.facts.as_ref()).for_each(|facts| tally.add(facts.ledger.tally));
        let numbers: HashSet<u32> = lanes.iter().map(|(number, _)| *number).collect();
        let outputs = gathered.outputs.iter().filter(|record| numbers.contains(&record.lane)).count() as u64;
        // When the ledger's outputs are all there, it does not matter what else was trimmed.
        let horizon = if outputs == tally.outputs { EntryId::ZERO } else { horizon(gathered) };
        Group { name, gathered, lanes, tally, outputs, horizon }
    }

    fn judges(&self, id: EntryId) -> bool {
        self.horizon == EntryId::ZERO || id.ms > self.horizon.ms
    }

    /// Entries that were deleted by id beside outputs of this group, or where nobody knows whose they were.
    fn deletions(&self) -> Vec<String> {
        let mine = |of: &Option<(u32, EntryId)>| {
            let (number, id) = (*of)?;
            let (_, lane) = self.lanes.iter().find(|(lane, _)| *lane == number)?;
            Some(format!("{} {id}", lane.stream))
        };
        let mut words = Vec::new();
        for (name, read) in &self.gathered.streams {
            for Gap { id, count, before, behind } in &read.gaps {
                let and = if *count > 1 { format!(" and {} behind it", count - 1) } else { String::new() };
                let between = match (mine(before), mine(behind)) {
                    (Some(before), Some(behind)) => format!(", between the outputs of {before} and of {behind}"),
                    (Some(before), None) => format!(", behind the output of {before}"),
                    (None, Some(behind)) => format!(", before the output of {behind}"),
                    // A stream that only other groups write to.
                    (None, None) if before.is_some() || behind.is_some() => continue,
                    (None, None) => String::new(),
                };
                words.push(format!("{name} {id}{and} was deleted by id (XDEL){between}"));
                if words.len() == EXAMPLES_MAX {
                    return words;
                }
            }
        }
        words
    }

    fn outputs_are_there(&self) -> Check {
        const NAME: &str = "outputs = ledger";
        let (found, counted) = (number(self.outputs), number(self.tally.outputs));
        if self.lanes.iter().any(|(_, lane)| lane.is_real && lane.facts.is_none()) {
            let detail = format!("{found} are there; what was counted is not compared while a group is gone");
            return check(NAME, self.name, Standing::NotProvable, detail);
        }
        let (standing, detail, count) = match balance(self.outputs, self.tally.outputs) {
            Balance::Even => (Standing::Ok, format!("{found} outputs, as counted"), 0),
            Balance::Missing(count) if self.horizon > EntryId::ZERO => {
                let reach = match self.horizon {
                    EntryId::MAX => String::from("not every stream was read"),
                    horizon => {
                        format!("streams were trimmed: only outputs of messages after {} are all retained", horizon.ms)
                    }
                };
                (Standing::NotProvable, format!("{found} of {counted} are there; {reach}"), count)
            }
            Balance::Missing(count) => {
                let how = if self.deletions().is_empty() { "" } else { ": they were deleted by id" };
                (Standing::Violated, format!("{found} of {counted} are there, and no stream was trimmed{how}"), count)
            }
            Balance::Surplus(count) => {
                (Standing::Violated, format!("{found} are there, and {counted} were counted"), count)
            }
        };
        let examples = if count > 0 && self.outputs < self.tally.outputs { self.deletions() } else { Vec::new() };
        Check { count, examples, ..check(NAME, self.name, standing, detail) }
    }

    /// Of the messages that left no trace, those that are the likeliest to be lost: beside a place where an output was deleted,
    /// or else the newest.
    fn likeliest(&self, mut traceless: Vec<(u32, EntryId)>) -> Vec<String> {
        let gaps = self.gathered.streams.values().flat_map(|read| &read.gaps);
        let between: Vec<_> = gaps
            .filter_map(|gap| {
                let (before, behind) = (gap.before?, gap.behind?);
                (before.0 == behind.0).then(|| (before.0, before.1.min(behind.1), before.1.max(behind.1)))
            })
            .collect();
        let beside = |(lane, id): (u32, EntryId)| {
            between.iter().any(|(number, low, high)| *number == lane && *low < id && id < *high)
        };
        traceless.sort_by_cached_key(|one| (beside(*one), one.1));
        let named = traceless.iter().rev().take(EXAMPLES_MAX).filter_map(|(number, id)| {
            let (_, lane) = self.lanes.iter().find(|(lane, _)| lane == number)?;
            Some(format!("{} {id} by {}: no output, no dead letter, not pending", lane.stream, self.name))
        });
        named.collect()
    }

    fn without_trace(&self) -> Check {
        const NAME: &str = NO_TRACE;
        let mut traceless = Vec::new();
        let (mut whole, mut listed) = (self.horizon == EntryId::ZERO, true);
        for (lane_number, lane) in self.lanes.iter().filter(|(_, lane)| !lane.is_redrive) {
            let (Some(facts), Some(read)) = (&lane.facts, self.gathered.streams.get(&lane.stream)) else { continue };
            whole &= is_whole(facts, read) && self.began_clean(facts, read);
            listed &= facts.pending.len() as u64 >= facts.group.pending && !read.cut_short;
            let places = Places::new(self.gathered, *lane_number, facts);
            let judged = given(facts, read).iter().filter(|id| self.judges(**id) && !places.knows(**id));
            traceless.extend(judged.map(|id| (*lane_number, *id)));
        }
        let (count, filtered) = (traceless.len() as u64, self.tally.filtered);
        let words = format!("{} messages left no trace, {} were filtered", number(count), number(filtered));
        if !listed || !self.gathered.log_is_whole {
            let why = if listed { "the operator log was trimmed" } else { "too many entries to list them" };
            return check(NAME, self.name, Standing::NotProvable, format!("{words}; {why}"));
        }
        match without_trace_is_filtered(count, filtered) {
            Balance::Even => check(NAME, self.name, Standing::Ok, words),
            Balance::Missing(missing) => {
                let among = if filtered > 0 {
                    ", some of those that left no trace (the likeliest are named first)"
                } else {
                    ""
                };
                let detail = format!("{words}: {} vanished{among}", number(missing));
                let examples = self.likeliest(traceless);
                Check { count: missing, examples, ..check(NAME, self.name, Standing::Violated, detail) }
            }
            Balance::Surplus(count) if whole => {
                let detail = format!("{words}: {} were filtered and left a trace as well", number(count));
                Check { count, ..check(NAME, self.name, Standing::Violated, detail) }
            }
            Balance::Surplus(_) => {
                let detail = format!("{words}; of what was trimmed since nobody can tell, what is retained holds");
                check(NAME, self.name, Standing::NotProvable, detail)
            }
        }
    }

    /// Whether the ledger began with the group, or after a predecessor that had nothing pending.
    fn began_clean(&self, facts: &LaneFacts, read: &StreamRead) -> bool {
        match (facts.group.entries_read, facts.ledger.base_read) {
            (Some(entries), Some(base)) => entries.saturating_sub(base) == given(facts, read).len() as u64,
            _ => true,
        }
    }

    /// Every message that died is a dead letter, was sent back, or was thrown away by an operator who is on record.
    fn letters_are_there(&self) -> Check {
        const NAME: &str = LETTERS;
        let numbers: HashSet<u32> = self.lanes.iter().map(|(number, _)| *number).collect();
        let letters = &self.gathered.letters;
        let there =
            letters.iter().filter(|letter| letter.of.is_some_and(|(lane, _)| numbers.contains(&lane))).count() as u64;
        let redrive = self.lanes.iter().filter(|(_, lane)| lane.is_redrive).filter_map(|(_, lane)| lane.facts.as_ref());
        let arrived: u64 = redrive.map(|facts| facts.stream.entries_added).sum();
        let sent_back = arrived.saturating_sub(self.tally.rescued);
        let discarded = self.gathered.discards.get(self.name).copied().unwrap_or(0);
        let words = format!(
            "{} died: {} dead letters, {} sent back, {} discarded",
            number(self.tally.dead),
            number(there),
            number(sent_back),
            number(discarded)
        );
        match balance(there + sent_back + discarded, self.tally.dead) {
            Balance::Missing(_) if !self.gathered.log_is_whole => {
                let detail = format!("{words}; the operator log was trimmed, what was discarded earlier is not known");
                check(NAME, self.name, Standing::NotProvable, detail)
            }
            Balance::Missing(count) => {
                let detail = format!("{words}: {} are gone, trimmed or deleted by somebody else", number(count));
                Check { count, ..check(NAME, self.name, Standing::Violated, detail) }
            }
            // More: letters of the original program were sent to this group.
            Balance::Even | Balance::Surplus(_) => check(NAME, self.name, Standing::Ok, words),
        }
    }
}

/// Up to which id messages may have had outputs that are gone: outputs are written after their message came in. Any stream
/// may be one that outputs went to, under a version that nobody remembers.
fn horizon(gathered: &Gathered) -> EntryId {
    if !gathered.unread.is_empty() {
        return EntryId::MAX;
    }
    gathered.streams.values().map(StreamRead::trimmed_to).max().unwrap_or(EntryId::ZERO)
}

/// Where a message of a lane can be.
struct Places<'a> {
    gathered: &'a Gathered,
    lane: u32,
    letters: HashSet<EntryId>,
    pending: HashSet<EntryId>,
}

impl<'a> Places<'a> {
    fn new(gathered: &'a Gathered, lane: u32, facts: &LaneFacts) -> Self {
        let letters = gathered.letters.iter().filter_map(|letter| letter.of);
        let letters = letters.filter(|(number, _)| *number == lane).map(|(_, id)| id).collect();
        Places { gathered, lane, letters, pending: facts.pending.iter().map(|pending| pending.id).collect() }
    }

    fn knows(&self, id: EntryId) -> bool {
        has_output(&self.gathered.outputs, self.lane, id)
            || self.pending.contains(&id)
            || self.letters.contains(&id)
            || self.gathered.redriven.contains(&(self.lane, id))
            || self.gathered.discarded.contains(&(self.lane, id))
    }
}

fn once(gathered: &Gathered, groups: &[Group<'_>], faults: &[OutputFault]) -> Check {
    const NAME: &str = "outputs once, all or none";
    let by_name: BTreeMap<&str, &Group<'_>> = groups.iter().map(|group| (group.name, group)).collect();
    let trimmed: Vec<u32> =
        gathered.streams.values().filter(|read| read.trimmed_to() > EntryId::ZERO).map(|read| read.place).collect();
    let places: HashMap<u32, &str> = gathered.streams.iter().map(|(name, read)| (read.place, name.as_str())).collect();
    let (mut count, mut older, mut examples) = (0u64, 0u64, Vec::new());
    for fault in faults {
        let (number, source) = fault.of();
        let Some(lane) = gathered.lanes.get(number as usize) else { continue };
        let judged = by_name.get(lane.group.as_str()).is_none_or(|group| group.judges(source));
        let there = outputs_of(&gathered.outputs, number, source);
        let missing = missing_outputs(there, MISSING_MAX);
        if matches!(fault, OutputFault::Incomplete { .. }) && !judged {
            let proved = missing.iter().any(|index| taken_from_the_middle(there, *index, &trimmed));
            if !proved || !gathered.unread.is_empty() {
                older += 1;
                continue;
            }
        }
        count += 1;
        if examples.len() < EXAMPLES_MAX {
            let what = match fault {
                OutputFault::Doubled { index, .. } => {
                    let times = there.iter().filter(|record| record.index == *index);
                    let at: Vec<&str> = times.filter_map(|record| places.get(&record.place).copied()).collect();
                    format!("output {index} is there {} times, in {}", at.len(), at.join(", "))
                }
                OutputFault::Incomplete { present, total, .. } => {
                    let missing: Vec<String> = missing.iter().map(u32::to_string).collect();
                    let more = if (total - present) as usize > missing.len() { ", …" } else { "" };
                    format!("{present} of {total} outputs are there; missing: {}{more}", missing.join(", "))
                }
                OutputFault::Mixed { .. } => String::from("outputs of different runs are there"),
            };
            examples.push(format!("{} {source} by {}: {what}", lane.stream, lane.group));
        }
    }
    let mut detail = format!("{} outputs", number(gathered.outputs.len() as u64));
    if gathered.strangers > 0 {
        detail.push_str(&format!("; {} more are of groups that are not here", number(gathered.strangers)));
    }
    if older > 0 {
        detail.push_str(&format!("; {} messages lost some by trimming", number(older)));
    }
    if !gathered.unread.is_empty() {
        detail.push_str(&format!("; not read: {}", gathered.unread.join(", ")));
    }
    if count > 0 {
        detail = format!("messages with outputs doubled or missing: {}; {detail}", number(count));
    }
    let standing = if count > 0 { Standing::Violated } else { Standing::Ok };
    Check { count, examples, ..check(NAME, "all", standing, detail) }
}

fn never_both(gathered: &Gathered) -> Check {
    const NAME: &str = BOTH;
    let letters: Vec<(u32, EntryId)> = gathered.letters.iter().filter_map(|letter| letter.of).collect();
    let both = dead_and_committed(&gathered.outputs, &letters);
    let examples = both.iter().take(EXAMPLES_MAX).filter_map(|(lane, id)| {
        let lane = gathered.lanes.get(*lane as usize)?;
        Some(format!("{} {id} by {}: has outputs and a dead letter", lane.stream, lane.group))
    });
    let detail = format!("{} dead letters compared", number(letters.len() as u64));
    let standing = if both.is_empty() { Standing::Ok } else { Standing::Violated };
    Check { count: both.len() as u64, examples: examples.collect(), ..check(NAME, "all", standing, detail) }
}

fn evidence(gathered: &Gathered) -> Check {
    const NAME: &str = "dead letters have evidence";
    let bad = gathered.letters.iter().filter(|letter| !letter.faults.is_empty());
    let examples = bad.clone().take(EXAMPLES_MAX).map(|letter| {
        let words: Vec<&str> = letter.faults.iter().map(|fault| fault.meaning()).collect();
        format!("dead letter {} {}", letter.id, words.join(", "))
    });
    let most = gathered.letters.iter().map(|letter| letter.attempts).max().unwrap_or(0);
    let historic =
        gathered.letters.iter().filter(|letter| letter.of.is_none() && letter.faults.is_empty()).count() as u64;
    let mut detail = format!("{} dead letters, at most {most} attempts each", number(gathered.letters.len() as u64));
    if historic > 0 {
        detail.push_str(&format!("; {} of the original program, which recorded none", number(historic)));
    }
    let count = bad.clone().count() as u64;
    let standing = if count > 0 { Standing::Violated } else { Standing::Ok };
    Check { count, examples: examples.collect(), ..check(NAME, "all", standing, detail) }
}

/// Entries that somebody trimmed away before the group read them; no check where Redis cannot tell.
fn read_in_time(gathered: &Gathered, lane: &Lane) -> Option<Check> {
    const NAME: &str = "read before trimmed";
    let facts = lane.facts.as_ref()?;
    let read = gathered.streams.get(&lane.stream).filter(|read| !read.cut_short)?;
    let entries_read = facts.group.entries_read?;
    let after = if read.facts.removed() == facts.stream.removed() {
        (read.ids.len() - read.ids.partition_point(|id| *id <= facts.group.last_delivered)) as u64
    } else if facts.group.last_delivered >= facts.stream.last {
        0
    } else {
        // It was trimmed while we read: only what cannot be there is counted.
        facts.stream.length
    };
    let count = trimmed_unread(facts.stream.entries_added, entries_read, after, facts.stream.removed());
    let balance =
        |delivered| delivered_is_settled_or_pending(settled(&facts.ledger.tally), facts.group.pending, delivered);
    let balance = delivered(gathered, lane, facts).map(balance);
    let (standing, detail) = match count {
        // Redis 8 counts what was trimmed unread as read (redis/redis#13958).
        0 if matches!(balance, Some(Balance::Missing(_))) && facts.stream.removed() > 0 => (
            Standing::NotProvable,
            String::from(
                "entries were trimmed away, and of those that are missing nobody can tell whether the group had read them",
            ),
        ),
        0 => (Standing::Ok, format!("{} to come", number(after))),
        _ if matches!(balance, Some(Balance::Surplus(_))) => {
            (Standing::NotProvable, String::from("Redis counts fewer entries as read than are settled"))
        }
        count => (
            Standing::Violated,
            format!(
                "{} entries were taken away before the group read them (a producer's MAXLEN, XTRIM, XDEL)",
                number(count)
            ),
        ),
    };
    let mut examples = Vec::new();
    let count = if standing == Standing::Violated { count } else { 0 };
    if count > 0 {
        let last = facts.group.last_delivered;
        // The oldest that is left, of those still to come.
        examples.push(match read.ids.get(read.ids.partition_point(|id| *id <= last)) {
            Some(next) => {
                format!("{}: after {last} (the last it read) and before {next} (the next that is left)", lane.stream)
            }
            None => format!("{}: after {last} (the last it read)", lane.stream),
        });
    }
    Some(Check { count, examples, ..check(NAME, &label(lane), standing, detail) })
}

fn summary(gathered: &Gathered, groups: &[Group<'_>], checks: &[Check]) -> String {
    let violated = checks.iter().filter(|check| check.standing == Standing::Violated).count();
    let open = checks.iter().filter(|check| check.standing == Standing::NotProvable).count();
    if violated > 0 {
        return violations(violated, checks.len());
    }
    let settled: u64 = groups.iter().map(|group| settled(&group.tally)).sum();
    let pending: u64 =
        gathered.lanes.iter().filter_map(|lane| lane.facts.as_ref()).map(|facts| facts.group.pending).sum();
    let far = match open {
        0 => String::new(),
        open => format!(" as far as the retained data reach ({open} of {} checks not provable)", checks.len()),
    };
    format!(
        "nothing lost, nothing doubled{far}: {} deliveries settled, {} pending, {} outputs, {} dead letters",
        number(settled),
        number(pending),
        number(gathered.outputs.len() as u64),
        number(gathered.letters.len() as u64)
    )
}

#[cfg(test)]
mod tests;
