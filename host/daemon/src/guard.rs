//! The guard: what other hands do to streams and groups, said before and after it costs something.
//!
//! Every round it takes down the numbers of each lane at one moment, compares them with those of the round before, and logs as an
//! error what an operator must know: entries trimmed away unread, or soon to be; a group whose counts no longer add up,
//! because somebody moved it or deleted a consumer; a plugin that does not fit to those of other hosts. What waited for its retry
//! and was lost that way is given back. And it holds plugins back whose dead letters or whose outputs would fill Redis.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::invariants::Balance;
use cofferdam_model::route::DEAD_LETTER_STREAM;
use cofferdam_streams::{Audit, LaneKeys, Store, StreamError};
use indicatif::HumanCount;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;
use crate::commands::reports;
use crate::config::Config;
use crate::quantity::show_bytes;
use crate::supervisor::{PluginReport, State, Supervisor};

/// Rounds are a third of the lease apart, within these.
const ROUND_MIN: Duration = Duration::from_secs(1);
const ROUND_MAX: Duration = Duration::from_secs(10);
/// The same alarm with a greater number is said again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How often the other hosts are looked at: seldom, because it walks over the keys, and not before a report of a host that was killed
/// is forgotten.
const HOSTS_EVERY: Duration = Duration::from_secs(15);
/// Shares of a foreign cap, in percent: a backlog above the first is an alarm, below the second it is over.
const NEAR_PERCENT: u64 = 70;
const FAR_PERCENT: u64 = 50;

/// Guards until the host stops.
pub(crate) async fn guard(
    store: Store,
    supervisor: Arc<Supervisor>,
    config: Arc<Config>,
    mut stopping: watch::Receiver<bool>,
) {
    let every = (config.delivery.lease / 3).clamp(ROUND_MIN, ROUND_MAX);
    let mut lanes: BTreeMap<(String, String), Memory> = BTreeMap::new();
    let mut limits = Limits::default();
    let mut others = OtherHosts::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = stopping.changed() => return,
        }
        let running = supervisor.lanes();
        let name = |keys: &LaneKeys| (keys.stream.to_string(), keys.group.to_string());
        lanes.retain(|lane, _| running.iter().any(|(_, keys)| name(keys) == *lane));
        let mut standing: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (plugin, keys) in &running {
            let memory = lanes.entry(name(keys)).or_default();
            if let Err(error) = look(&store, plugin, keys, memory).await {
                tracing::debug!(stream = %keys.stream, %error, "cannot look");
            }
            standing.entry(plugin.clone()).or_default().extend(memory.standing());
        }
        if let Err(error) = others.look(&store, &supervisor).await {
            tracing::debug!(%error, "cannot look at the other hosts");
        }
        for (plugin, text) in others.standing() {
            standing.entry(plugin.clone()).or_default().push(text.clone());
        }
        supervisor.set_alarms(standing);
        for (plugin, emits) in supervisor.emits() {
            let mine: Vec<&LaneKeys> =
                running.iter().filter(|(name, _)| *name == plugin).map(|(_, keys)| keys).collect();
            let dead_bytes: i64 =
                mine.iter().filter_map(|keys| lanes.get(&name(keys))).map(|lane| lane.dead_bytes).sum();
            let mut why = limits.dead_letters(&store, &config, &plugin, &mine, dead_bytes).await;
            why.extend(limits.budgets(&store, &config, &emits).await);
            let why = why.join("; ");
            if supervisor.hold(&plugin, &why) {
                if why.is_empty() {
                    tracing::info!(plugin, "goes on: it is below its limits again");
                } else {
                    tracing::error!(plugin, "{why}");
                }
            }
        }
    }
}

/// Limits that were reached, and are not left before a tenth below them is reached.
#[derive(Debug, Default)]
struct Limits {
    /// Names of plugins, and of streams.
    reached: BTreeSet<String>,
}

impl Limits {
    fn is_reached(&mut self, name: &str, used: u64, limit: u64) -> bool {
        let was = self.reached.contains(name);
        let is = used > if was { limit - limit / 10 } else { limit };
        if is {
            self.reached.insert(name.to_owned());
        } else {
            self.reached.remove(name);
        }
        is
    }

    async fn dead_letters(
        &mut self,
        store: &Store,
        config: &Config,
        plugin: &str,
        lanes: &[&LaneKeys],
        bytes: i64,
    ) -> Vec<String> {
        let bytes = u64::try_from(bytes).unwrap_or(0);
        let limit = config.dead_letter_bytes;
        if !self.is_reached(&format!("plugin {plugin}"), bytes, limit) {
            return Vec::new();
        }
        // Letters that somebody deleted by hand are counted still; when none is left at all, that is plain.
        if matches!(store.query::<u64>(redis::cmd("XLEN").arg(DEAD_LETTER_STREAM)).await, Ok(0)) {
            for lane in lanes {
                let _ = store.forget_dead_bytes(lane).await;
            }
        }
        vec![format!(
            "it is paused: its dead letters take {}, and [limits] dead-letters allows {}; look at them with cofferdam dlq list, keep them with \
             cofferdam dlq list --json, then cofferdam dlq discard or dlq redrive; it goes on by itself below {}",
            show_bytes(bytes),
            show_bytes(limit),
            show_bytes(limit - limit / 10)
        )]
    }

    async fn budgets(&mut self, store: &Store, config: &Config, emits: &[String]) -> Vec<String> {
        let mut why = Vec::new();
        for (stream, budget) in emits.iter().filter_map(|stream| Some((stream, config.byte_budget(stream)?))) {
            // Who may not ask how large it is, or cannot just now, is not held back.
            let Some(bytes) = store.stream_bytes(stream).await else { continue };
            if self.is_reached(&format!("stream {stream}"), bytes, budget) {
                why.push(format!(
                    "it is paused: {stream}, which it writes to, takes {} of memory, and [streams.\"{stream}\"] bytes allows {}; see who is behind with \
                     cofferdam streams, let it be trimmed or raise the budget; it goes on by itself below {}",
                    show_bytes(bytes),
                    show_bytes(budget),
                    show_bytes(budget - budget / 10)
                ));
            }
        }
        why
    }
}

/// Where plugins of other hosts and those that run here do not fit together. On one host the second of two plugins of a group is refused;
/// hosts do not refuse each other's, because a plugin that is changed on one after another would then wait on each for the others.
#[derive(Debug, Default)]
struct OtherHosts {
    looked: Option<Instant>,
    /// What was found at the last look, by plugin, and whether at the one before too.
    found: BTreeMap<(String, String), bool>,
}

impl OtherHosts {
    /// Looks if it is time to, and logs what is found for the second time.
    async fn look(&mut self, store: &Store, supervisor: &Supervisor) -> Result<(), StreamError> {
        if self.looked.is_some_and(|at| at.elapsed() < HOSTS_EVERY) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let runs = |plugin: &&PluginReport| plugin.state == State::Running;
        let own = supervisor.report();
        let mut found = BTreeMap::new();
        for (host, plugins) in reports(store).await? {
            let pairs =
                plugins.iter().filter(runs).flat_map(|other| own.iter().filter(runs).map(move |own| (own, other)));
            for (own, other) in pairs {
                let Some(text) = misfit(own, other, &host.consumer) else { continue };
                let misfit = (own.name.clone(), text);
                let before = self.found.get(&misfit).copied();
                if before == Some(false) {
                    tracing::error!(plugin = own.name, "{}", misfit.1);
                }
                found.insert(misfit, before.is_some());
            }
        }
        self.found = found;
        Ok(())
    }

    /// What was found twice in a row, with its plugin.
    fn standing(&self) -> impl Iterator<Item = &(String, String)> {
        self.found.iter().filter(|(_, stands)| **stands).map(|(misfit, _)| misfit)
    }
}

/// What is wrong between a plugin here and one on another host, and what to do; `None` when they fit.
fn misfit(own: &PluginReport, other: &PluginReport, host: &str) -> Option<String> {
    if own.name != other.name {
        return (own.group == other.group).then(|| {
            format!(
                "{} on host {host} has the group {:?} too: each takes the other's messages; give one of them a group of its own",
                other.name, other.group
            )
        });
    }
    let stream = own.subscribe.iter().find(|stream| other.subscribe.contains(stream))?;
    if own.group != other.group {
        return Some(format!(
            "it has the group {:?} here and {:?} on host {host}: each message of {stream} is handled by both; give it the same group on \
             every host",
            own.group, other.group
        ));
    }
    let keeps = |ordered: bool| if ordered { "keeps the order of each key" } else { "keeps no order" };
    let (here, there) = own.ordered.zip(other.ordered).filter(|(here, there)| here != there)?;
    Some(format!(
        "it {} here and {} on host {host}: messages of {stream} overtake one another; give it the same order on every host",
        keeps(here),
        keeps(there)
    ))
}

/// One round for one lane.
async fn look(store: &Store, plugin: &str, keys: &LaneKeys, memory: &mut Memory) -> Result<(), StreamError> {
    let Some(seen) = store.audit(keys).await? else {
        // Whatever comes after a loss begins anew; the lane says that the group is gone.
        *memory = Memory::default();
        return Ok(());
    };
    for alarm in memory.compare(&seen, keys.is_redrive(), Instant::now()) {
        let text = alarm.text(&keys.stream, &keys.group);
        tracing::error!(plugin, stream = %keys.stream, group = %keys.group, "{text}");
        memory.keep(alarm, text);
    }
    memory.dead_bytes = seen.dead_bytes;
    // Every parked entry has a record, so that as many records as parked entries means that none is lost.
    if seen.records > seen.parked || memory.cursor != 0 {
        let now = clock::iso(clock::now_ms());
        let rescued = store.rescue(keys, memory.cursor, &now, plugin).await?;
        memory.cursor = rescued.cursor;
        if rescued.back + rescued.tombstones > 0 {
            tracing::error!(
                plugin,
                stream = %keys.stream,
                group = %keys.group,
                "{} parked entries were no longer pending, so that their retry would never have come: somebody deleted the consumer ~retry/… or the \
                 stream; {} come again from their copies, {} left a tombstone among the dead letters",
                rescued.back + rescued.tombstones,
                rescued.back,
                rescued.tombstones
            );
        }
    }
    Ok(())
}

/// What an operator must know.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Alarm {
    /// Entries are gone that the group has not read: certainly, or else they were taken from it by another hand.
    Trimmed { count: u64, since_ms: u64, certain: bool },
    /// Entries will soon be gone that the group has not read.
    Near { behind: u64, cap: u64, added: f64, read: f64 },
    /// Entries were read, and are neither settled nor pending.
    Missing { count: u64 },
    /// More entries are settled than were read.
    Surplus { count: u64 },
}

impl Alarm {
    fn text(&self, stream: &str, group: &str) -> String {
        match *self {
            Alarm::Trimmed { count, since_ms, certain } => format!(
                "{} entries of {stream} were trimmed or deleted before {group} read them{}, since {} UTC: some producer or operator trims this stream; \
                 find who sets MAXLEN (or calls XTRIM, XDEL) and raise the limit, or add hosts",
                HumanCount(count),
                if certain { "" } else { ", or else taken from it by another hand (XGROUP DELCONSUMER, SETID, XACK)" },
                clock::short(since_ms)
            ),
            Alarm::Near { behind, cap, added, read } => {
                let left = (added > read).then(|| (cap.saturating_sub(behind)) as f64 / (added - read));
                let when = match left {
                    Some(seconds) => format!("in about {}", span(seconds)),
                    None => String::from("as soon as it falls further behind"),
                };
                format!(
                    "{group} is {} entries behind on {stream}, which others trim to about {}: at the present rates ({added:.1} added a second, \
                     {read:.1} read) entries are lost unread {when}; raise that limit (the producer's MAXLEN), or add hosts",
                    HumanCount(behind),
                    HumanCount(cap)
                )
            }
            Alarm::Missing { count } => format!(
                "{} entries that {group} read of {stream} are neither settled nor pending: a consumer was deleted with what it held (XGROUP DELCONSUMER), \
                 the group was moved forward (XGROUP SETID), or somebody acknowledged them (XACK); cofferdam verify names them",
                HumanCount(count)
            ),
            Alarm::Surplus { count } => format!(
                "{} more entries are settled or pending than {group} read of {stream}: the group was set back (XGROUP SETID), or lost and begun again, \
                 or the stream is another one (RENAME, DEL); what comes again has outputs under the same message ids",
                HumanCount(count)
            ),
        }
    }
}

fn span(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds.min(1e9) as u64)).to_string()
}

/// How often an alarm was said, and of what size.
#[derive(Debug, Default)]
struct Said {
    count: u64,
    at: Option<Instant>,
}

impl Said {
    /// Whether this is worth saying: more than was said before, and not every few seconds.
    fn is_news(&mut self, count: u64, now: Instant) -> bool {
        let news = count > self.count && self.at.is_none_or(|at| now - at >= AGAIN_AFTER);
        if news {
            *self = Said { count, at: Some(now) };
        }
        news
    }
}

/// A balance beside a surplus that was said already: what goes missing from then on must not hide in it.
fn beyond(balance: Balance, surplus: u64) -> Balance {
    let difference = match balance {
        Balance::Even => surplus,
        Balance::Missing(count) => surplus + count,
        Balance::Surplus(count) if count > surplus => return Balance::Surplus(count - surplus),
        Balance::Surplus(count) => surplus - count,
    };
    if difference == 0 { Balance::Even } else { Balance::Missing(difference) }
}

/// What the guard remembers of a lane.
#[derive(Debug, Default)]
struct Memory {
    before: Option<(Audit, Instant)>,
    /// To how many entries others trim this stream, while they do.
    cap: Option<u64>,
    near: bool,
    /// How the counts compared in the round before.
    uneven: Option<Balance>,
    trimmed: Said,
    missing: Said,
    surplus: Said,
    /// Whether what was said of them was said by the counts alone.
    unsure: bool,
    /// When entries were first found trimmed unread.
    trimmed_since_ms: Option<u64>,
    /// Where the search for lost retries goes on.
    cursor: u64,
    /// What the ledger says of its dead letters.
    dead_bytes: i64,
    /// What stands, in words, by kind.
    texts: BTreeMap<&'static str, String>,
}

impl Memory {
    fn standing(&self) -> impl Iterator<Item = String> + '_ {
        self.texts.values().cloned()
    }

    fn keep(&mut self, alarm: Alarm, text: String) {
        let kind = match alarm {
            Alarm::Trimmed { .. } => "trimmed",
            Alarm::Near { .. } => "near",
            Alarm::Missing { .. } => "missing",
            Alarm::Surplus { .. } => "surplus",
        };
        self.texts.insert(kind, text);
    }

    /// Compares what is seen with the round before.
    fn compare(&mut self, seen: &Audit, is_redrive: bool, now: Instant) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        // A stream that was deleted and began again.
        if self.before.is_some_and(|(before, _)| seen.entries_added < before.entries_added) {
            *self = Memory::default();
        }
        let before = self.before.replace((*seen, now));
        let balance = seen.balance().map(|balance| beyond(balance, self.surplus.count));
        let uneven = balance.filter(|balance| *balance != Balance::Even);
        // What counts say has to stand for two rounds. What is settled is deleted from a redrive stream, by its host.
        let unread = match (self.uneven, uneven) {
            (Some(Balance::Missing(_)), Some(Balance::Missing(count))) if !is_redrive => {
                count.min(seen.removed_by_others())
            }
            _ => 0,
        };
        if !is_redrive {
            if let Some((before, at)) = before {
                alarms.extend(self.foreign_cap(&before, seen, now - at));
            }
            let count = seen.trimmed_unread().max(unread);
            if self.trimmed.is_news(count, now) {
                let since_ms = *self.trimmed_since_ms.get_or_insert_with(clock::now_ms);
                let certain = count == seen.trimmed_unread();
                self.unsure = !certain;
                alarms.push(Alarm::Trimmed { count, since_ms, certain });
            }
        }
        match (self.uneven, uneven) {
            (Some(Balance::Missing(_)), Some(Balance::Missing(count)))
                if count > unread && self.missing.is_news(count, now) =>
            {
                alarms.push(Alarm::Missing { count });
            }
            (Some(Balance::Surplus(_)), Some(Balance::Surplus(more))) => {
                let count = self.surplus.count + more;
                if self.surplus.is_news(count, now) {
                    alarms.push(Alarm::Surplus { count });
                }
            }
            _ => {}
        }
        if balance == Some(Balance::Even) {
            self.texts.remove("missing");
            self.missing = Said::default();
            if std::mem::take(&mut self.unsure) {
                self.texts.remove("trimmed");
                (self.trimmed, self.trimmed_since_ms) = Default::default();
            }
        }
        self.uneven = uneven;
        alarms
    }

    /// Who trims while entries are added trims to a number: what is left then is about that number.
    fn foreign_cap(&mut self, before: &Audit, seen: &Audit, passed: Duration) -> Option<Alarm> {
        let removed = seen.removed_by_others().saturating_sub(before.removed_by_others());
        let added = seen.entries_added.saturating_sub(before.entries_added);
        if removed > 0 && added > 0 {
            self.cap = Some(seen.length);
        } else if self.cap.is_some_and(|cap| seen.length > cap) {
            self.cap = None;
        }
        let behind = seen.behind();
        let above = |percent: u64| self.cap.is_some_and(|cap| behind * 100 > cap * percent);
        if self.near && !above(FAR_PERCENT) {
            self.near = false;
            self.texts.remove("near");
        }
        if self.near || added == 0 || !above(NEAR_PERCENT) {
            return None;
        }
        self.near = true;
        let read = added.saturating_add(before.behind()).saturating_sub(behind);
        let a_second = |count: u64| count as f64 / passed.as_secs_f64().max(0.001);
        Some(Alarm::Near { behind, cap: self.cap.unwrap_or(0), added: a_second(added), read: a_second(read) })
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_model::EntryId;

    use super::*;

    fn id(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    /// A stream of entries 1 to `added` of which the last `length` are there, read up to `read`, all of that settled.
    fn lane(added: u64, length: u64, read: u64) -> Audit {
        Audit {
            length,
            entries_added: added,
            first: Some(id(added - length + 1)),
            last: id(added),
            last_delivered: id(read),
            entries_read: Some(read),
            lag: Some(added - read),
            base_read: Some(0),
            settled: read,
            ..Audit::default()
        }
    }

    #[test]
    fn a_backlog_near_a_foreign_limit_is_said_once_before_anything_is_lost() {
        let (mut memory, began) = (Memory::default(), Instant::now());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        // Trimmed to 1,000 by others, read without delay: nothing to say.
        assert_eq!(memory.compare(&lane(2_000, 1_000, 2_000), false, at(0)), []);
        assert_eq!(memory.compare(&lane(3_000, 1_000, 3_000), false, at(10)), []);
        let alarms = memory.compare(&lane(4_000, 1_000, 3_200), false, at(20));
        assert_eq!(alarms, [Alarm::Near { behind: 800, cap: 1_000, added: 100.0, read: 20.0 }]);
        assert!(alarms[0].text("s", "g").contains("lost unread in about 2s"), "{}", alarms[0].text("s", "g"));
        assert_eq!(memory.compare(&lane(4_100, 1_000, 3_200), false, at(30)), []);
        // It catches up, and falls behind again.
        assert_eq!(memory.compare(&lane(4_200, 1_000, 4_200), false, at(40)), []);
        assert_eq!(memory.compare(&lane(5_200, 1_000, 4_300), false, at(50)).len(), 1);
    }

    #[test]
    fn what_hosts_trim_themselves_is_no_foreign_limit() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let ours = |added: u64, read: u64| Audit { trimmed_by_us: added - 1_000, ..lane(added, 1_000, read) };
        for round in 2..9 {
            assert_eq!(memory.compare(&ours(round * 1_000, round * 1_000 - 900), false, now), []);
        }
    }

    #[test]
    fn entries_trimmed_unread_are_said_with_their_number_and_again_when_there_are_more() {
        let (mut memory, began) = (Memory::default(), Instant::now());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let count = |alarms: Vec<Alarm>| {
            alarms.iter().find_map(|alarm| if let Alarm::Trimmed { count, .. } = alarm { Some(*count) } else { None })
        };
        assert_eq!(count(memory.compare(&lane(100, 100, 10), false, at(0))), None);
        assert_eq!(count(memory.compare(&lane(100, 50, 10), false, at(10))), Some(40));
        assert_eq!(count(memory.compare(&lane(100, 50, 10), false, at(100))), None);
        assert_eq!(count(memory.compare(&lane(100, 30, 10), false, at(200))), Some(60));
    }

    #[test]
    fn what_redis_counts_as_read_although_others_trimmed_it_is_said_as_trimmed() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        // 100 were added and 50 trimmed away; it settled 60, and Redis says that it read them all.
        let seen = Audit { settled: 60, ..lane(100, 50, 100) };
        assert_eq!(memory.compare(&seen, false, now), []);
        let alarms = memory.compare(&seen, false, now);
        assert!(matches!(alarms[..], [Alarm::Trimmed { count: 40, certain: false, .. }]), "{alarms:?}");
        // More than others can have taken is missing.
        let mut memory = Memory::default();
        let seen = Audit { settled: 30, ..lane(100, 50, 100) };
        assert_eq!(memory.compare(&seen, false, now), []);
        let alarms = memory.compare(&seen, false, now);
        assert!(matches!(alarms[..], [Alarm::Trimmed { count: 50, .. }, Alarm::Missing { count: 70 }]), "{alarms:?}");
    }

    #[test]
    fn plugins_of_two_hosts_fit_unless_they_share_a_group_or_one_has_another_group_or_order() {
        // As a host of an earlier version says it: without its order.
        let of = |name: &str, group: &str, subscribe: &[&str]| -> PluginReport {
            let report = serde_json::json!({"name": name, "state": "running", "digest": "d", "group": group, "subscribe": subscribe, "emit": [],
                "since_ms": 0, "detail": "", "candidate": "", "counts": cofferdam_delivery::Counts::default()});
            serde_json::from_value(report).unwrap()
        };
        let ordered = |ordered| PluginReport { ordered: Some(ordered), ..of("p", "g", &["s"]) };
        let says = |own: &PluginReport, other: &PluginReport, words: &str| {
            let text = misfit(own, other, "h").unwrap();
            assert!(text.contains(words) && text.contains("on host h") && text.contains("give"), "{text}");
        };
        says(&of("p", "g", &["s"]), &of("q", "g", &["t"]), "each takes the other's messages");
        says(&of("p", "g", &["r", "s"]), &of("p", "other", &["s"]), "each message of s is handled by both");
        says(&ordered(true), &ordered(false), "it keeps the order of each key here and keeps no order on host h");
        for (own, other) in [
            (of("p", "g", &["s"]), of("q", "other", &["s"])),
            (of("p", "g", &["s"]), of("p", "other", &["t"])),
            (of("p", "g", &["s"]), of("p", "g", &["t"])),
            (ordered(true), ordered(true)),
            (ordered(true), of("p", "g", &["s"])),
        ] {
            assert_eq!(misfit(&own, &other, "h"), None);
        }
    }

    #[test]
    fn counts_that_do_not_add_up_are_said_when_they_stand_for_two_rounds() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let missing = Audit { settled: 60, ..lane(100, 100, 100) };
        assert_eq!(memory.compare(&missing, false, now), []);
        assert_eq!(memory.compare(&missing, false, now), [Alarm::Missing { count: 40 }]);
        assert_eq!(memory.compare(&missing, false, now), []);
        let surplus = Audit { settled: 130, ..lane(100, 100, 100) };
        let mut memory = Memory::default();
        assert_eq!(memory.compare(&surplus, false, now), []);
        assert_eq!(memory.compare(&surplus, false, now), [Alarm::Surplus { count: 30 }]);
        // A surplus that shrinks is a loss.
        let less = Audit { settled: 120, ..lane(100, 100, 100) };
        assert_eq!(memory.compare(&less, false, now), []);
        assert_eq!(memory.compare(&less, false, now), [Alarm::Missing { count: 10 }]);
        // A moment between two commands of somebody else is nothing.
        let mut memory = Memory::default();
        for seen in [missing, lane(100, 100, 100), missing, lane(100, 100, 100)] {
            assert_eq!(memory.compare(&seen, false, now), []);
        }
    }
}
