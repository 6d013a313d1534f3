//! What must hold when a run has come to rest, and the operator's hands that may rightly change what is expected.
//!
//! The predicates are those of `cofferdam_model::invariants`, which `cofferdam verify` asks of a live system too.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use cofferdam_delivery::Counters;
use cofferdam_model::invariants::{
    KeyedOutput, LetterEvidence, LetterFault, OutputFault, OutputRecord, Source, dead_and_committed, letter_faults,
    outputs_exactly_once, outputs_in_order,
};
use cofferdam_model::{EntryId, ReasonCode};
use cofferdam_streams::dead_letters::Operator;
use cofferdam_streams::{Store, redrive_stream};
use redis::Value;

use crate::host::{CRASHES, group_name, plugin_name};
use crate::scenario::{Act, Scenario};
use crate::world::{INPUT, Network, OUTPUTS, World};

const DEAD: &str = "stream:dead_letter";

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub promise: &'static str,
    /// How.
    pub text: String,
}

impl Violation {
    pub(crate) fn new(promise: &'static str, text: impl Into<String>) -> Self {
        Violation { promise, text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.text)
    }
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        _ => String::new(),
    }
}

fn id(value: &Value) -> EntryId {
    text(value).parse().unwrap_or_default()
}

/// Flat names and values, as XINFO gives them.
fn pairs(value: Value) -> BTreeMap<String, Value> {
    let mut items = list(value).into_iter();
    let mut pairs = BTreeMap::new();
    while let (Some(name), Some(value)) = (items.next(), items.next()) {
        pairs.insert(text(&name), value);
    }
    pairs
}

fn entries(world: &World, stream: &str, from: &str) -> Vec<(EntryId, BTreeMap<String, Value>)> {
    let reply = world.console(&["XRANGE", stream, from, "+"]).map(list).unwrap_or_default();
    let entry = |value| {
        let mut parts = list(value).into_iter();
        Some((id(&parts.next()?), pairs(parts.next()?)))
    };
    reply.into_iter().filter_map(entry).collect()
}

fn group(world: &World, stream: &str, plugin: usize) -> Option<BTreeMap<String, Value>> {
    let groups = world.console(&["XINFO", "GROUPS", stream]).map(list)?;
    groups.into_iter().map(pairs).find(|group| group.get("name").is_some_and(|name| text(name) == group_name(plugin)))
}

/// Pending entries of a group, as (id, holder).
fn pending(world: &World, stream: &str, plugin: usize) -> Vec<(EntryId, String)> {
    let reply =
        world.console(&["XPENDING", stream, &group_name(plugin), "-", "+", "100000"]).map(list).unwrap_or_default();
    let entry = |value| {
        let parts = list(value);
        Some((id(parts.first()?), text(parts.get(1)?)))
    };
    reply.into_iter().filter_map(entry).collect()
}

/// Whether a plugin has nothing left to do.
pub(crate) fn rests(world: &World, plugin: usize) -> bool {
    let finished = |stream: &str| {
        let Some(group) = group(world, stream, plugin) else { return false };
        let last = group.get("last-delivered-id").map(text).unwrap_or_default();
        let none_pending = group.get("pending").is_some_and(|pending| text(pending) == "0");
        none_pending && entries(world, stream, &format!("({last}")).is_empty()
    };
    finished(INPUT) && finished(&redrive_stream(&group_name(plugin)))
}

/// What it has left to do, for the report.
pub(crate) fn unrest(world: &World, plugin: usize) -> String {
    let mut words = Vec::new();
    for stream in [INPUT.to_owned(), redrive_stream(&group_name(plugin))] {
        let last = group(world, &stream, plugin).and_then(|group| group.get("last-delivered-id").map(text));
        words.push(format!("{stream}: last delivered {last:?}, pending {:?}", pending(world, &stream, plugin)));
    }
    words.join("; ")
}

/// A host that has left a full server must not have kept anything.
pub(crate) fn lets_go(world: &World, plugin: usize, consumer: &str) {
    let kept: Vec<EntryId> =
        pending(world, INPUT, plugin).into_iter().filter(|(_, holder)| holder == consumer).map(|(id, _)| id).collect();
    if !kept.is_empty() {
        let text = format!("{consumer} has left and still holds {kept:?} of {}", group_name(plugin));
        world.saw(Violation::new("a full server still lets go", text));
    }
}

/// A message's end, by what is there.
#[derive(Debug, Default)]
struct Found {
    outputs: usize,
    letters: Vec<(String, usize)>,
}

/// Asks for every promise.
pub(crate) fn promises(world: &World, scenario: &Scenario) -> Vec<Violation> {
    let published = world.published(|published| published.clone());
    let mut violations = Vec::new();
    let mut records = Vec::new();
    let mut found: BTreeMap<(usize, EntryId), Found> = BTreeMap::new();
    let plugin_of = |name: &str| (0..scenario.plugins).find(|plugin| plugin_name(*plugin) == name);
    // What is out of order by its nature: a group that was set back by hand, and a message that was taken out of its stream and came
    // back by the redrive stream.
    let keeps_order = |plugin: usize, source: EntryId| {
        let moved = published.may_be_trimmed.contains(&source) || published.may_repeat.contains(&(plugin, source));
        scenario.ordered && !moved
    };
    let mut keyed = Vec::new();
    let outputs = OUTPUTS.iter().enumerate();
    for (place, (own, fields)) in
        outputs.flat_map(|(place, stream)| entries(world, stream, "-").into_iter().map(move |entry| (place, entry)))
    {
        let of = |name: &str| fields.get(name).map(text).unwrap_or_default();
        let source = of("cofferdam_source");
        let Some((plugin, source)) = plugin_of(&of("cofferdam_plugin")).zip(Source::parse(&source)) else {
            violations.push(Violation::new("effects exactly once", format!("the output {own} has no source")));
            continue;
        };
        records.push(OutputRecord {
            lane: u32::try_from(plugin).unwrap_or(u32::MAX),
            source: source.id,
            index: source.index,
            total: source.total,
            place: 0,
        });
        if let Some(message) = published.entries.get(&source.id).filter(|_| keeps_order(plugin, source.id)) {
            let (key, place) = (message.key, u32::try_from(place).unwrap_or(u32::MAX));
            keyed.push(KeyedOutput { lane: plugin as u32, key, place, at: own, source: source.id });
        }
        found.entry((plugin, source.id)).or_default().outputs += 1;
    }
    for fault in outputs_in_order(&mut keyed) {
        violations.push(Violation::new("order by key", format!("{fault:?}")));
    }
    let mut letters = Vec::new();
    for (own, fields) in entries(world, DEAD, "-") {
        let of = |name: &str| fields.get(name).map(text).unwrap_or_default();
        let (group, original, code) = (of("group"), of("original_id"), of("code"));
        let attempts: Vec<serde_json::Value> = serde_json::from_str(&of("attempts")).unwrap_or_default();
        let evidence = LetterEvidence {
            code: &code,
            stream: &of("original_stream"),
            id: &original,
            group: &group,
            attempts: attempts.len(),
            copied: fields.keys().any(|name| name.starts_with("orig:")),
        };
        let trimmed = original.parse().is_ok_and(|original| published.may_be_trimmed.contains(&original));
        // What was taken away while its handler ran cannot be copied any more.
        let unavoidable = |fault: &LetterFault| trimmed && *fault == LetterFault::NoCopy;
        for fault in letter_faults(&evidence).into_iter().filter(|fault| !unavoidable(fault)) {
            violations
                .push(Violation::new("evidence", format!("the dead letter {own} of {original} {}", fault.meaning())));
        }
        let Some(plugin) = (0..scenario.plugins).find(|plugin| group_name(*plugin) == group) else { continue };
        let original: EntryId = original.parse().unwrap_or_default();
        letters.push((u32::try_from(plugin).unwrap_or(u32::MAX), original));
        found.entry((plugin, original)).or_default().letters.push((code, attempts.len()));
    }
    let repeats = |lane: u32, entry: EntryId| published.may_repeat.contains(&(lane as usize, entry));
    for fault in outputs_exactly_once(&mut records) {
        let (lane, entry) = fault.of();
        let allowed = matches!(fault, OutputFault::Doubled { .. }) && repeats(lane, entry);
        if !allowed {
            violations.push(Violation::new("effects exactly once", format!("{fault:?}")));
        }
    }
    for (lane, entry) in dead_and_committed(&records, &letters) {
        if !repeats(lane, entry) {
            violations
                .push(Violation::new("no loss", format!("{entry} of lane {lane} was committed and dead-lettered")));
        }
    }
    for plugin in 0..scenario.plugins {
        for (entry, message) in &published.entries {
            let nothing = Found::default();
            let what = found.get(&(plugin, *entry)).unwrap_or(&nothing);
            let missing = published.may_be_missing.contains(&(plugin, *entry));
            let trimmed = published.may_be_trimmed.contains(entry);
            let repeated = published.may_repeat.contains(&(plugin, *entry));
            if let Some(wrong) = ended_wrong(message.act, what, scenario, missing, trimmed, repeated) {
                let text = format!(
                    "{entry} (message {}, {:?}) of {}: {wrong}: {what:?}",
                    message.seq,
                    message.act,
                    plugin_name(plugin)
                );
                violations.push(Violation::new("no loss, no innocent", text));
            }
        }
    }
    for ((plugin, entry), what) in &found {
        if !published.entries.contains_key(entry) {
            violations.push(Violation::new(
                "effects exactly once",
                format!("{entry} of plugin {plugin} was never published: {what:?}"),
            ));
        }
    }
    violations
}

/// How a message should have ended, against how it did.
fn ended_wrong(
    act: Act,
    found: &Found,
    scenario: &Scenario,
    missing: bool,
    trimmed: bool,
    repeated: bool,
) -> Option<String> {
    let (outputs, code, attempts) = match act {
        Act::Emit(count) => (count as usize, None, 0),
        Act::FailUntil(_) => (1, None, 0),
        Act::Init => (0, None, 0),
        Act::Fail => (0, Some(ReasonCode::Trap), scenario.retries as usize + 1),
        Act::Reject => (0, Some(ReasonCode::Reject), 1),
        Act::Malformed => (0, Some(ReasonCode::Malformed), 0),
        Act::Kill => (0, Some(ReasonCode::HostCrashes), CRASHES as usize - 1),
        Act::WrongKey => (0, Some(ReasonCode::BadOutputKey), 1),
    };
    let nothing = found.outputs == 0 && found.letters.is_empty();
    if nothing && (missing || (outputs == 0 && code.is_none())) {
        return None;
    }
    // A tombstone in place of a result, or beside one of before the group was lost.
    if trimmed && (found.outputs == 0 || repeated) && found.letters.iter().any(|(code, _)| code == "payload-trimmed") {
        return None;
    }
    if nothing {
        return Some(String::from("it is lost"));
    }
    let enough = |count: usize, wanted: usize| if repeated { count >= wanted } else { count == wanted };
    match code {
        None if !found.letters.is_empty() => Some(String::from("an innocent was dead-lettered")),
        None if !enough(found.outputs, outputs) => Some(format!("it should have {outputs} outputs")),
        None => None,
        Some(_) if found.outputs > 0 => Some(String::from("it should have no outputs")),
        Some(_) if !enough(found.letters.len(), 1) => Some(String::from("it should be one dead letter")),
        Some(code) => found.letters.iter().find_map(|(found, tries)| {
            if *found != code.to_string() {
                return Some(format!("it should be {code}"));
            }
            // Deaths are recorded with the attempts, and a message may have failed otherwise before its group was lost.
            (*tries != attempts && code != ReasonCode::HostCrashes && !repeated)
                .then(|| format!("it should have {attempts} attempts"))
        }),
    }
}

/// Telemetry adds up: with nothing in flight, what came in is what was settled.
pub(crate) fn counts(counters: &[Arc<Counters>]) -> Vec<Violation> {
    let of = |counters: &Arc<Counters>| counters.counts();
    let wrong = counters.iter().map(of).filter(|counts| counts.in_flight() != 0 || counts.received < counts.committed);
    wrong.map(|counts| Violation::new("telemetry adds up", format!("{counts:?}"))).collect()
}

/// Somebody takes entries of the input away: what no group has had yet may be missing, and what is pending may end as a tombstone.
fn take_away(world: &World, plugins: usize, gone: &[EntryId]) {
    for plugin in 0..plugins {
        let delivered = group(world, INPUT, plugin).and_then(|group| group.get("last-delivered-id").map(id));
        let held: Vec<EntryId> = pending(world, INPUT, plugin).into_iter().map(|(id, _)| id).collect();
        world.published(|published| {
            for entry in gone {
                if delivered.is_none_or(|delivered| *entry > delivered) {
                    published.may_be_missing.insert((plugin, *entry));
                } else if held.contains(entry) {
                    published.may_be_trimmed.insert(*entry);
                }
            }
        });
    }
}

pub(crate) fn foreign_trim(world: &World, plugins: usize, keep: u32) {
    let there: Vec<EntryId> = entries(world, INPUT, "-").into_iter().map(|(id, _)| id).collect();
    let gone = there.len().saturating_sub(keep as usize);
    take_away(world, plugins, there.get(..gone).unwrap_or_default());
    world.console(&["XTRIM", INPUT, "MAXLEN", &keep.to_string()]);
}

pub(crate) fn foreign_delete(world: &World, plugins: usize, which: u64) {
    let there: Vec<EntryId> = entries(world, INPUT, "-").into_iter().map(|(id, _)| id).collect();
    let Some(entry) = there.get(usize::try_from(which).unwrap_or(0) % there.len().max(1)) else { return };
    take_away(world, plugins, &[*entry]);
    world.console(&["XDEL", INPUT, &entry.to_string()]);
}

/// Redis deletes what a consumer holds together with it.
pub(crate) fn delete_consumer(world: &World, plugins: usize, which: u64) {
    let plugin = usize::try_from(which).unwrap_or(0) % plugins;
    let consumers = world.console(&["XINFO", "CONSUMERS", INPUT, &group_name(plugin)]).map(list).unwrap_or_default();
    let names: Vec<String> =
        consumers.into_iter().filter_map(|consumer| pairs(consumer).get("name").map(text)).collect();
    let Some(name) = names.get(usize::try_from(which >> 8).unwrap_or(0) % names.len().max(1)) else { return };
    let held = pending(world, INPUT, plugin).into_iter().filter(|(_, holder)| holder == name);
    world.published(|published| published.may_be_missing.extend(held.map(|(id, _)| (plugin, id))));
    world.console(&["XGROUP", "DELCONSUMER", INPUT, &group_name(plugin), name]);
}

/// The group comes back at its floor: what was settled beyond may repeat, and what was pending without its entry is gone.
pub(crate) fn destroy_group(world: &World, plugin: usize) {
    let there: Vec<EntryId> = entries(world, INPUT, "-").into_iter().map(|(id, _)| id).collect();
    let held = pending(world, INPUT, plugin).into_iter().map(|(id, _)| id).filter(|id| !there.contains(id));
    world.published(|published| {
        published.may_be_missing.extend(held.map(|id| (plugin, id)));
        let all: Vec<EntryId> = published.entries.keys().copied().collect();
        published.may_repeat.extend(all.into_iter().map(|id| (plugin, id)));
    });
    world.console(&["XGROUP", "DESTROY", INPUT, &group_name(plugin)]);
}

/// An operator sends back what was rejected.
pub(crate) async fn redrive(world: &Arc<World>, plugins: usize) {
    let network = Network { world: world.clone(), host: usize::MAX, kill: Arc::new(|| {}) };
    let Ok(store) = Store::open(Arc::new(network)).await else { return };
    let Ok(letters) = store.dead_letters("-", "+", 1_000).await else { return };
    for letter in letters.into_iter().filter(|letter| letter.code == ReasonCode::Reject.to_string()) {
        if (0..plugins).any(|plugin| group_name(plugin) == letter.group) {
            // Whoever gets no answer tries again later; the letter is where it was, or on its way.
            let by = Operator { at: "", who: "operator", why: "" };
            let _ = store.redrive(&letter, &letter.group, &by).await;
        }
    }
}
