//! From what was gathered to checks: pure. The predicates themselves are the model's (`invariants`); here is how far the
//! retained data let them be asked.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use cofferdam_model::EntryId;
use cofferdam_model::invariants::{
    Balance, OutputFault, balance, dead_and_committed, delivered_is_settled_or_pending, has_output,
    outputs_exactly_once, trimmed_unread, without_trace_is_filtered,
};
use cofferdam_streams::{LaneFacts, StreamFacts, Tally};
use indicatif::HumanCount;

use super::gather::{Gathered, Lane, StreamRead};

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
    untrimmed && ends.max_deleted <= start(facts)
}

/// How many entries the lane was given since its ledger began.
fn delivered(gathered: &Gathered, lane: &Lane, facts: &LaneFacts) -> Option<u64> {
    let from_lag = facts.group.lag.map(|lag| facts.stream.entries_added.saturating_sub(lag));
    // A redrive stream and its group are made in one step: it has no past.
    let base = facts.ledger.base_read.or(lane.is_redrive.then_some(0));
    if let (Some(read), Some(base)) = (facts.group.entries_read.or(from_lag), base) {
        return Some(read.saturating_sub(base));
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
            (Standing::Violated, format!("{sum}: {} are neither settled nor pending", number(count)), count)
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

    fn outputs_are_there(&self) -> Check {
        const NAME: &str = "outputs = ledger";
        let (found, counted) = (number(self.outputs), number(self.tally.outputs));
        if self.lanes.iter().any(|(_, lane)| lane.is_real && lane.facts.is_none()) {
            let detail = format!("{found} are there; what was counted is not compared while a group is gone");
            return check(NAME, self.name, Standing::NotProvable, detail);
        }
        let (standing, detail, count) = match balance(self.outputs, self.tally.outputs) {
            Balance::Even => (Standing::Ok, format!("{found} outputs, as counted"), 0),
            Balance::Missing(count) if self.horizon > EntryId::ZERO => (
                Standing::NotProvable,
                format!("{found} of {counted} are there; streams were trimmed, or entries deleted"),
                count,
            ),
            Balance::Missing(count) => {
                (Standing::Violated, format!("{found} of {counted} are there, and no stream was trimmed"), count)
            }
            Balance::Surplus(count) => {
                (Standing::Violated, format!("{found} are there, and {counted} were counted"), count)
            }
        };
        Check { count, ..check(NAME, self.name, standing, detail) }
    }

    fn without_trace(&self) -> Check {
        const NAME: &str = "no trace = filtered";
        let mut lost = Vec::new();
        let (mut count, mut whole, mut listed) = (0u64, self.horizon == EntryId::ZERO, true);
        for (lane_number, lane) in self.lanes.iter().filter(|(_, lane)| !lane.is_redrive) {
            let (Some(facts), Some(read)) = (&lane.facts, self.gathered.streams.get(&lane.stream)) else { continue };
            whole &= is_whole(facts, read) && self.began_clean(facts, read);
            listed &= facts.pending.len() as u64 >= facts.group.pending;
            let places = Places::new(self.gathered, *lane_number, facts);
            for id in given(facts, read).iter().filter(|id| self.judges(**id) && !places.knows(**id)) {
                count += 1;
                if lost.len() < EXAMPLES_MAX {
                    lost.push(format!("{} {id}", lane.stream));
                }
            }
        }
        let filtered = self.tally.filtered;
        let words = format!("{} messages left no trace, {} were filtered", number(count), number(filtered));
        if !listed || !self.gathered.log_is_whole {
            let why = if listed { "the operator log was trimmed" } else { "too many entries are pending to list them" };
            return check(NAME, self.name, Standing::NotProvable, format!("{words}; {why}"));
        }
        match without_trace_is_filtered(count, filtered) {
            Balance::Even => check(NAME, self.name, Standing::Ok, words),
            Balance::Missing(missing) => {
                let among = if filtered > 0 { " (among those that left no trace)" } else { "" };
                let detail = format!("{words}: {} vanished{among}", number(missing));
                Check { count: missing, examples: lost, ..check(NAME, self.name, Standing::Violated, detail) }
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
        const NAME: &str = "dead letters = ledger";
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
    let gone = |facts: &StreamFacts| {
        let trimmed = if facts.removed() > 0 { facts.first.unwrap_or(facts.last) } else { EntryId::ZERO };
        trimmed.max(facts.max_deleted)
    };
    gathered.streams.values().map(|read| gone(&read.facts)).max().unwrap_or(EntryId::ZERO)
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
    let (mut count, mut older, mut examples) = (0u64, 0u64, Vec::new());
    for fault in faults {
        let (lane, source) = fault.of();
        let Some(lane) = gathered.lanes.get(lane as usize) else { continue };
        let judged = by_name.get(lane.group.as_str()).is_none_or(|group| group.judges(source));
        if matches!(fault, OutputFault::Incomplete { .. }) && !judged {
            older += 1;
            continue;
        }
        count += 1;
        if examples.len() < EXAMPLES_MAX {
            let what = match fault {
                OutputFault::Doubled { index, .. } => format!("output {index} is there more than once"),
                OutputFault::Incomplete { present, total, .. } => format!("{present} of {total} outputs are there"),
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
        detail = format!("{} messages have outputs doubled or missing; {detail}", number(count));
    }
    let standing = if count > 0 { Standing::Violated } else { Standing::Ok };
    Check { count, examples, ..check(NAME, "all", standing, detail) }
}

fn never_both(gathered: &Gathered) -> Check {
    const NAME: &str = "never committed and dead";
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
    let read = gathered.streams.get(&lane.stream)?;
    let entries_read = facts.group.entries_read?;
    let after = if read.facts.removed() == facts.stream.removed() {
        (read.ids.len() - read.ids.partition_point(|id| *id <= facts.group.last_delivered)) as u64
    } else if facts.group.last_delivered >= facts.stream.last {
        0
    } else {
        // It was trimmed while we read: only what cannot be there is counted.
        facts.stream.length
    };
    let count = trimmed_unread(facts.stream.entries_added, entries_read, after);
    let (standing, detail) = match count {
        0 => (Standing::Ok, format!("{} to come", number(after))),
        count => (
            Standing::Violated,
            format!(
                "{} entries were taken away before the group read them (a producer's MAXLEN, XTRIM, XDEL)",
                number(count)
            ),
        ),
    };
    Some(Check { count, ..check(NAME, &label(lane), standing, detail) })
}

fn summary(gathered: &Gathered, groups: &[Group<'_>], checks: &[Check]) -> String {
    let violated = checks.iter().filter(|check| check.standing == Standing::Violated).count();
    let open = checks.iter().filter(|check| check.standing == Standing::NotProvable).count();
    if violated > 0 {
        return format!("{violated} of {} checks are violated", checks.len());
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
mod tests {
    use cofferdam_model::invariants::{LetterFault, OutputRecord};
    use cofferdam_streams::{GroupInfo, Ledger, PendingEntry};

    use super::super::gather::Letter;
    use super::*;

    fn id(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    /// Five messages: 1 and 2 committed, 3 filtered, 4 dead, 5 pending.
    fn good() -> Gathered {
        let ends = StreamFacts { length: 5, entries_added: 5, first: Some(id(1)), last: id(5), max_deleted: id(0) };
        let group = GroupInfo { pending: 1, last_delivered: id(5), entries_read: Some(5), ..GroupInfo::default() };
        let tally = Tally { committed: 2, filtered: 1, dead: 1, outputs: 2, ..Tally::default() };
        let ledger = Ledger { tally, base_read: Some(0), start: Some(String::from("0-0")), floor: None };
        let pending = vec![PendingEntry { id: id(5), consumer: String::from("h/b") }];
        let facts = LaneFacts { stream: ends.clone(), group, ledger, pending };
        let lane = Lane { stream: "s".into(), group: "g".into(), facts: Some(facts), is_redrive: false, is_real: true };
        let input = StreamRead { facts: ends, ids: (1..=5).map(id).collect() };
        let output = |ms| OutputRecord { lane: 0, source: id(ms), index: 0, total: 1 };
        let letter = Letter { id: id(9), of: Some((0, id(4))), faults: Vec::new(), attempts: 4 };
        let ends = StreamFacts { length: 2, entries_added: 2, first: Some(id(7)), last: id(8), max_deleted: id(0) };
        let out = StreamRead { facts: ends, ids: Vec::new() };
        Gathered {
            lanes: vec![lane],
            streams: BTreeMap::from([(String::from("s"), input), (String::from("out"), out)]),
            outputs: vec![output(2), output(1)],
            letters: vec![letter],
            log_is_whole: true,
            ..Gathered::default()
        }
    }

    fn violated(mut gathered: Gathered) -> Vec<&'static str> {
        let checks = judge(&mut gathered).checks;
        checks.iter().filter(|check| check.standing == Standing::Violated).map(|check| check.name).collect()
    }

    fn tally(gathered: &mut Gathered) -> &mut Tally {
        &mut gathered.lanes[0].facts.as_mut().unwrap().ledger.tally
    }

    #[test]
    fn a_good_system_is_called_good() {
        let judgement = judge(&mut good());
        assert!(judgement.checks.iter().all(|check| check.standing == Standing::Ok), "{judgement:#?}");
        assert!(judgement.summary.starts_with("nothing lost, nothing doubled: "), "{}", judgement.summary);
    }

    #[test]
    fn an_ack_without_outputs_is_found() {
        // The host acknowledged first and died: no output, no pending entry, and nothing in the ledger.
        let mut lost = good();
        lost.outputs.pop();
        let counts = tally(&mut lost);
        (counts.committed, counts.outputs) = (1, 1);
        assert_eq!(violated(lost), ["read = settled + pending", "no trace = filtered"]);
    }

    #[test]
    fn a_doubled_output_is_found() {
        let mut doubled = good();
        doubled.outputs.push(OutputRecord { lane: 0, source: id(1), index: 0, total: 1 });
        assert_eq!(violated(doubled), ["outputs once, all or none", "outputs = ledger"]);
    }

    #[test]
    fn a_message_that_is_committed_and_dead_is_found() {
        let mut both = good();
        both.letters[0].of = Some((0, id(1)));
        assert_eq!(violated(both), ["never committed and dead", "no trace = filtered"]);
    }

    #[test]
    fn a_dead_letter_that_vanished_is_found_and_one_that_was_discarded_is_not_missed() {
        let mut gone = good();
        gone.letters.clear();
        assert_eq!(violated(gone), ["no trace = filtered", "dead letters = ledger"]);
        let mut discarded = good();
        discarded.letters.clear();
        discarded.discarded.insert((0, id(4)));
        discarded.discards.insert(String::from("g"), 1);
        assert_eq!(violated(discarded), [""; 0]);
    }

    #[test]
    fn a_dead_letter_without_evidence_is_found() {
        let mut bare = good();
        bare.letters[0].faults.push(LetterFault::NoAttempts);
        assert_eq!(violated(bare), ["dead letters have evidence"]);
    }

    #[test]
    fn entries_trimmed_before_they_were_read_are_found() {
        let mut trimmed = good();
        let facts = trimmed.lanes[0].facts.as_mut().unwrap();
        facts.stream.entries_added = 8;
        trimmed.streams.get_mut("s").unwrap().facts.entries_added = 8;
        assert_eq!(violated(trimmed), ["read before trimmed"]);
    }

    #[test]
    fn a_group_that_is_gone_is_found() {
        let mut gone = good();
        gone.lanes[0].facts = None;
        assert!(violated(gone).contains(&"read = settled + pending"));
    }

    #[test]
    fn what_was_trimmed_is_not_called_lost() {
        let mut trimmed = good();
        // The output of message 1 was trimmed from its stream.
        trimmed.outputs.pop();
        let out = trimmed.streams.get_mut("out").unwrap();
        out.facts = StreamFacts { length: 1, first: Some(id(8)), ..out.facts.clone() };
        let judgement = judge(&mut trimmed);
        let open: Vec<&str> = judgement
            .checks
            .iter()
            .filter(|check| check.standing == Standing::NotProvable)
            .map(|check| check.name)
            .collect();
        assert_eq!(open, ["outputs = ledger", "no trace = filtered"]);
        assert!(judgement.checks.iter().all(|check| check.standing != Standing::Violated), "{judgement:#?}");
    }
}
