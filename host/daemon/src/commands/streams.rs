//! `streams`: what there is, who reads it, how far behind, and what was taken away before it was read.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use cofferdam_model::invariants::trimmed_unread;
use cofferdam_model::route::{DEAD_LETTER_STREAM, OPERATOR_LOG_STREAM, RESERVED_PREFIX, check_stream_name};
use cofferdam_streams::{GroupInfo, LaneKeys, Ledger, Store, StreamError, StreamFacts, Tally, redrive_stream};
use indicatif::HumanCount;
use serde_json::{Value as Json, json};

use crate::cli::Common;
use crate::clock;
use crate::escape::safe;
use crate::exit::{Failed, Usage};
use crate::quantity::show_bytes;
use crate::screen::{line, note, table};

/// The streams of the wire format that this host grew out of.
pub(super) const KNOWN_STREAMS: [&str; 9] = [
    "stream:attacks",
    "stream:ai_decisions",
    "stream:forensics",
    "stream:alerts",
    "stream:threat_intel",
    "stream:honeypot_logs",
    "stream:system_events",
    DEAD_LETTER_STREAM,
    OPERATOR_LOG_STREAM,
];

/// Calls of SCAN that --all makes at most: some ten million keys.
const LOOKS_MAX: usize = 10_000;

/// Shows streams and their consumer groups: length, size, lag, pending, parked, and what each group has settled.
///
/// A group's `parked` entries wait for their retry; they are among the pending. An alarm names entries that somebody trimmed
/// away (a producer's MAXLEN) before a group had read them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these streams
    #[arg(value_name = "STREAM")]
    names: Vec<String>,
    /// Every stream of this Redis, not only those that Cofferdam knows of
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    for name in &args.names {
        check_stream_name(name).map_err(|error| Usage(error.to_string()))?;
    }
    let store = super::find(common).await?.store;
    let lanes: BTreeSet<(String, String)> = store.lanes().await?.into_iter().collect();
    let mut streams = Vec::new();
    let (mut missing, mut others) = (Vec::new(), Vec::new());
    for name in names(&store, &args, &lanes).await? {
        match store.key_type(&name).await?.as_str() {
            "stream" => streams.extend(look(&store, &name, &lanes).await?),
            "none" if args.names.contains(&name) => missing.push(name),
            "none" => {}
            kind => others.push(format!("{name} is a {kind} and not a stream; look with: redis-cli TYPE {name}")),
        }
    }
    let damaged: Vec<&str> =
        streams.iter().flat_map(|stream| &stream.groups).filter_map(|group| group.damaged.as_deref()).collect();
    let now_ms = clock::now_ms();
    if common.json {
        let all: Vec<Json> = streams.iter().map(|stream| stream.json(now_ms)).collect();
        line(&serde_json::to_string_pretty(&json!({ "streams": all, "missing": missing }))?);
    } else {
        show(&streams, &args.names, now_ms);
    }
    if !missing.is_empty() {
        others.push(format!("there is no stream {}; cofferdam streams --all shows what there is", missing.join(", ")));
    }
    if !damaged.is_empty() {
        others.push(format!("{}; how to mend that: cofferdam doctor", damaged.join("; ")));
    }
    match others.is_empty() {
        true => Ok(()),
        false => bail!(Failed(others.join("\n"))),
    }
}

/// Which streams to look at.
async fn names(store: &Store, args: &Args, lanes: &BTreeSet<(String, String)>) -> Result<Vec<String>> {
    if !args.names.is_empty() {
        return Ok(args.names.clone());
    }
    let mut names: BTreeSet<String> = KNOWN_STREAMS.iter().map(|name| (*name).to_owned()).collect();
    names.extend(lanes.iter().map(|(stream, _)| stream.clone()));
    names.extend(host_streams(store).await?);
    if args.all {
        let (found, whole) = store.stream_names(LOOKS_MAX).await?;
        names.extend(found);
        if !whole {
            note("this Redis has very many keys; not all of them were looked at");
        }
    }
    Ok(names.into_iter().collect())
}

/// The streams that the plugins of all living hosts read and write.
pub(super) async fn host_streams(store: &Store) -> Result<BTreeSet<String>, StreamError> {
    let mut names = BTreeSet::new();
    for host in store.hosts().await? {
        for plugin in host.plugins.as_array().into_iter().flatten() {
            for list in ["subscribe", "emit"] {
                let listed = plugin.get(list).and_then(Json::as_array).into_iter().flatten();
                names.extend(listed.filter_map(|name| name.as_str().map(str::to_owned)));
            }
            names.extend(plugin.get("group").and_then(Json::as_str).map(redrive_stream));
        }
    }
    Ok(names)
}

/// A stream and its readers.
struct Stream {
    name: String,
    facts: StreamFacts,
    bytes: Option<u64>,
    groups: Vec<Group>,
}

struct Group {
    info: GroupInfo,
    parked: u64,
    /// What is wrong with its records, which then are not known.
    damaged: Option<String>,
    /// When the oldest pending entry was added, in milliseconds since 1970.
    oldest_pending_ms: Option<u64>,
    ledger: Option<Ledger>,
    trimmed_unread: u64,
    /// Entries that are neither settled nor pending, and may have been trimmed unread.
    missing: u64,
}

async fn look(store: &Store, name: &str, lanes: &BTreeSet<(String, String)>) -> Result<Option<Stream>> {
    let Some(facts) = store.stream_facts(name).await? else { return Ok(None) };
    // With few samples the size is an estimate, and Redis is not held up by a large stream.
    let usage = store.query(redis::cmd("MEMORY").arg("USAGE").arg(name).arg("SAMPLES").arg(10)).await;
    let mut groups = Vec::new();
    for mut info in store.groups(name).await? {
        info.lag = lag(&facts, &info);
        let lane = LaneKeys::new(name, &info.name);
        let known = lanes.contains(&(name.to_owned(), info.name.clone()));
        let (ledger, missing, damaged) = match records(store, &lane, known).await {
            Ok((ledger, missing)) => (ledger, missing, None),
            // One damaged record must not hide the other groups.
            Err(error @ StreamError::WrongType { .. }) => (None, 0, Some(format!("{} of {name}: {error}", info.name))),
            Err(error) => return Err(error.into()),
        };
        let oldest_pending_ms = if info.pending > 0 { oldest_pending_ms(store, &lane).await? } else { None };
        let trimmed_unread = trimmed(&facts, &info);
        let parked = store.parked(&lane).await?;
        groups.push(Group { parked, damaged, oldest_pending_ms, ledger, trimmed_unread, missing, info });
    }
    Ok(Some(Stream { name: name.to_owned(), facts, bytes: usage.unwrap_or_default(), groups }))
}

/// Entries still to be read. Redis's own count includes those that were trimmed away, and more after a restart: see
/// [`trimmed_unread`].
pub(super) fn lag(facts: &StreamFacts, group: &GroupInfo) -> Option<u64> {
    if group.last_delivered >= facts.last { Some(0) } else { group.lag.map(|lag| lag.min(facts.length)) }
}

/// The ledger of a lane that has one, and how many entries are missing that may have been trimmed unread.
async fn records(store: &Store, lane: &LaneKeys, known: bool) -> Result<(Option<Ledger>, u64), StreamError> {
    if !known {
        return Ok((None, 0));
    }
    let ledger = store.ledger(lane).await?;
    let audit = if lane.is_redrive() { None } else { store.audit(lane).await? };
    Ok((Some(ledger), audit.map_or(0, |audit| audit.trimmed_as_read())))
}

async fn oldest_pending_ms(store: &Store, lane: &LaneKeys) -> Result<Option<u64>> {
    let mut command = redis::cmd("XPENDING");
    command.arg(&*lane.stream).arg(&*lane.group).arg("-").arg("+").arg(1);
    let oldest: Vec<(String, String, u64, u64)> = store.query(&command).await?;
    Ok(oldest.first().and_then(|(id, ..)| id.parse::<cofferdam_model::EntryId>().ok()).map(|id| id.ms))
}

/// Entries that were taken away before this group read them: at least so many, as the ends of the stream tell.
fn trimmed(facts: &StreamFacts, group: &GroupInfo) -> u64 {
    let Some(read) = group.entries_read else { return 0 };
    let after_at_most = if group.last_delivered >= facts.last { 0 } else { facts.length };
    trimmed_unread(facts.entries_added, read, after_at_most, facts.removed())
}

impl Stream {
    fn json(&self, now_ms: u64) -> Json {
        let groups: Vec<Json> = self.groups.iter().map(|group| group.json(now_ms)).collect();
        json!({
            "name": self.name, "length": self.facts.length, "entries_added": self.facts.entries_added,
            "first_id": self.facts.first.map(|id| id.to_string()), "last_id": self.facts.last.to_string(),
            "bytes": self.bytes, "groups": groups,
        })
    }
}

impl Group {
    fn json(&self, now_ms: u64) -> Json {
        let settled = self.ledger.as_ref().map(|ledger| {
            let tally = &ledger.tally;
            json!({
                "committed": tally.committed, "filtered": tally.filtered, "dead": tally.dead, "outputs": tally.outputs,
                "retried": tally.retried, "released": tally.released, "rescued": tally.rescued,
            })
        });
        json!({
            "name": self.info.name, "consumers": self.info.consumers, "pending": self.info.pending, "parked": self.parked,
            "lag": self.info.lag, "last_delivered_id": self.info.last_delivered.to_string(),
            "oldest_pending_seconds": self.oldest_pending_ms.map(|ms| now_ms.saturating_sub(ms) / 1_000),
            "settled": settled, "trimmed_unread": self.trimmed_unread, "missing": self.missing, "damaged": self.damaged,
        })
    }
}

fn show(streams: &[Stream], named: &[String], now_ms: u64) {
    if streams.is_empty() {
        if !named.is_empty() {
            return;
        }
        line("no streams yet; publish something: cofferdam publish --stream stream:honeypot_logs events.jsonl");
        return;
    }
    let mut about = table(&["stream", "entries", "bytes", "oldest", "newest"]);
    let streams: Vec<&Stream> = streams.iter().filter(|stream| worth_showing(stream, named)).collect();
    for stream in &streams {
        let facts = &stream.facts;
        let newest = (facts.last.ms > 0).then_some(facts.last.ms);
        about.add_row([
            safe(&stream.name),
            HumanCount(facts.length).to_string(),
            stream.bytes.map_or_else(|| String::from("?"), show_bytes),
            age(facts.first.map(|id| id.ms), now_ms),
            age(newest, now_ms),
        ]);
    }
    about.lines().for_each(|text| line(text.trim_end()));
    show_groups(&streams, now_ms);
    show_alarms(&streams);
}

/// An empty redrive stream says nothing, unless somebody asks for it or something that was sent back has been settled.
fn worth_showing(stream: &Stream, named: &[String]) -> bool {
    let counts = |group: &Group| group.ledger.as_ref().is_some_and(|ledger| ledger.tally != Tally::default());
    !stream.name.starts_with(RESERVED_PREFIX)
        || stream.facts.length > 0
        || named.contains(&stream.name)
        || stream.groups.iter().any(counts)
}

/// One block a stream: names of streams and groups are long, and side by side they would not fit a terminal.
fn show_groups(streams: &[&Stream], now_ms: u64) {
    let mut readers = table(&["stream, groups", "pending", "parked", "lag", "oldest", "committed", "filtered", "dead"]);
    for stream in streams.iter().filter(|stream| !stream.groups.is_empty()) {
        readers.add_row([safe(&stream.name)]);
        for group in &stream.groups {
            let settled = |count: fn(&Ledger) -> u64| {
                let unknown = if group.damaged.is_some() { "?" } else { "-" };
                group
                    .ledger
                    .as_ref()
                    .map_or_else(|| String::from(unknown), |ledger| HumanCount(count(ledger)).to_string())
            };
            readers.add_row([
                format!("  {}", safe(&group.info.name)),
                HumanCount(group.info.pending).to_string(),
                HumanCount(group.parked).to_string(),
                group.info.lag.map_or_else(|| String::from("?"), |lag| HumanCount(lag).to_string()),
                age(group.oldest_pending_ms, now_ms),
                settled(|ledger| ledger.tally.committed),
                settled(|ledger| ledger.tally.filtered),
                settled(|ledger| ledger.tally.dead),
            ]);
        }
    }
    if !readers.is_empty() {
        line("");
        readers.lines().for_each(|text| line(text.trim_end()));
    }
}

fn show_alarms(streams: &[&Stream]) {
    let mut by_stream: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for stream in streams {
        for group in &stream.groups {
            let who = safe(&group.info.name);
            let text = match (group.trimmed_unread, group.missing) {
                (0, 0) => continue,
                (count, missing) if count >= missing => {
                    format!("at least {} entries were trimmed before {who} read them", HumanCount(count))
                }
                (_, count) => format!(
                    "{} entries were trimmed before {who} read them, or else taken from it by another hand (XGROUP DELCONSUMER, SETID, XACK)",
                    HumanCount(count)
                ),
            };
            by_stream.entry(&stream.name).or_default().push(text);
        }
    }
    for (stream, alarms) in by_stream {
        line("");
        for alarm in alarms {
            line(&format!("ALARM  {}: {alarm}", safe(stream)));
        }
        line(
            "       where a producer trims this stream (MAXLEN, XTRIM) faster than it is read: raise its limit, or add hosts",
        );
    }
}

/// How long ago, in one or two units.
pub(super) fn age(then_ms: Option<u64>, now_ms: u64) -> String {
    let Some(then_ms) = then_ms else { return String::from("-") };
    let seconds = now_ms.saturating_sub(then_ms) / 1_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_model::EntryId;

    use super::*;

    fn facts(length: u64, added: u64) -> StreamFacts {
        StreamFacts { length, entries_added: added, last: EntryId { ms: 10, seq: 0 }, ..StreamFacts::default() }
    }

    fn group(read: Option<u64>, last_ms: u64) -> GroupInfo {
        let last_delivered = EntryId { ms: last_ms, seq: 0 };
        GroupInfo { entries_read: read, last_delivered, ..GroupInfo::default() }
    }

    #[test]
    fn entries_trimmed_before_they_were_read_raise_an_alarm() {
        assert_eq!(trimmed(&facts(10, 10), &group(Some(3), 3)), 0);
        // Nothing read yet, six gone: certain.
        assert_eq!(trimmed(&facts(4, 10), &group(Some(0), 0)), 6);
        // The rest was read: Redis reports a lag of six that will never come.
        assert_eq!(trimmed(&facts(4, 10), &group(Some(4), 10)), 6);
        assert_eq!(trimmed(&facts(4, 10), &group(None, 10)), 0);
    }

    #[test]
    fn ages_are_shown_in_two_units() {
        assert_eq!(age(Some(0), 59_000), "59s");
        assert_eq!(age(Some(0), 61_000), "1m 1s");
        assert_eq!(age(Some(0), 7_260_000), "2h 1m");
        assert_eq!(age(Some(0), 90_000_000), "1d 1h");
        assert_eq!(age(None, 5), "-");
    }
}
