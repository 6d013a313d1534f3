//! Whether a version asks for more than its plugin has been allowed so far. Pure: who approved what stands in Redis.
//!
//! The first version of a plugin is approved by the manifest that the operator put beside it; one whose manifest came inside the wasm
//! is nobody's word but its maker's, and waits. From then on a version that asks for a stream, a mode, threads or a limit beyond what
//! was allowed waits, and the difference is shown; where the manifest is its maker's word, so does one with another group, other
//! retries or another start. A circle of plugins, each reading what the one before emits, waits for every plugin that closes it,
//! whatever its manifest says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cofferdam_model::route::{HOPS_MAX, Route};
use cofferdam_sandbox::{Instances, Limits};
use cofferdam_streams::Approvals;
use serde::{Deserialize, Serialize};

use crate::candidate::Candidate;
use crate::manifest::{LIMITS_IN_BYTES, Manifest, StartRule, further_limits};
use crate::quantity::show_bytes;

/// Whose word it is that the plugin of a file has its name. Where two files claim one name, the greater claim has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Claim {
    /// Its maker's: a manifest inside a file that is called otherwise. What the plugin of that name was allowed, this file was not.
    Stranger,
    /// Its maker's: a manifest inside a file that is called so.
    Maker,
    /// The operator's: a manifest beside a file that is called otherwise.
    Renamed,
    /// The operator's: a file that is called so, with a manifest beside it.
    #[default]
    Operator,
}

impl Claim {
    /// The claim of a candidate to the name that its manifest gives. `trusts_embedded` is whether a manifest inside a file counts as the
    /// operator's word.
    pub(crate) fn of(candidate: &Candidate, trusts_embedded: bool) -> Claim {
        match (candidate.embedded && !trusts_embedded, candidate.plugin() == candidate.file_name) {
            (true, false) => Claim::Stranger,
            (true, true) => Claim::Maker,
            (false, false) => Claim::Renamed,
            (false, true) => Claim::Operator,
        }
    }
}

/// Where a stream is begun when the manifest does not say.
const DEFAULT_START: &str = "default";
/// A limit that a manifest leaves to the operator alone.
const NO_BOUND: u64 = u64::MAX;

/// What a version asks for, or a plugin has been allowed: of each the most so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asks {
    read: BTreeSet<String>,
    emit: BTreeSet<String>,
    reuse: bool,
    /// `None` is as many as the machine has cores.
    threads: Option<usize>,
    memory_bytes: u64,
    deadline: Duration,
    /// The other limits, by their key in a manifest. Allowances that were noted before these were asked for have none: one that is
    /// missing is allowed as it comes first.
    #[serde(default)]
    limits: BTreeMap<String, u64>,
    /// What has no more and no less, by its key: the group, the retries, where each stream is begun. Every value that has been
    /// allowed; one that is missing is as with the limits.
    #[serde(default)]
    chosen: BTreeMap<String, BTreeSet<String>>,
    /// The circles that it closes with the plugins that run. Allowed for all plugins of a circle at once, so not kept with each.
    #[serde(skip)]
    pub(crate) cycles: Vec<String>,
}

/// What has been allowed so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// What the plugin's versions have been allowed; `None` before its first.
    pub(crate) allowed: Option<Asks>,
    /// Whether this version is approved by name.
    pub(crate) approved: bool,
    /// Circles that have been allowed.
    cycles: BTreeSet<String>,
    /// Whose word the manifest is.
    claim: Claim,
    /// Whether Redis has lost this.
    lost: bool,
}

impl Known {
    /// What stands in Redis, for a version whose manifest is whose word.
    pub(crate) fn read(found: &Approvals, claim: Claim) -> Known {
        Known {
            allowed: found.allowed.as_deref().and_then(|text| serde_json::from_str(text).ok()),
            approved: found.approved,
            cycles: found.cycles.iter().cloned().collect(),
            claim,
            lost: false,
        }
    }

    /// The same where something is known, else what the version that runs asks for: what is gone from a Redis that was emptied was allowed
    /// all the same.
    pub(crate) fn or_as_runs(mut self, running: Option<Asks>) -> Known {
        if self.allowed.is_none()
            && let Some(running) = running
        {
            self.lost = true;
            self.cycles.extend(running.cycles.iter().cloned());
            self.allowed = Some(Asks { cycles: Vec::new(), ..running });
        }
        self
    }
}

impl Asks {
    /// What a manifest asks for, and the circles that it closes.
    pub(crate) fn of(manifest: &Manifest, cycles: Vec<String>) -> Asks {
        Asks {
            read: manifest.route.subscribe().iter().cloned().collect(),
            emit: manifest.route.emit().iter().cloned().collect(),
            reuse: manifest.instances == Instances::Reuse,
            threads: manifest.concurrency,
            memory_bytes: manifest.limits.memory_bytes,
            deadline: manifest.limits.deadline,
            limits: further(&manifest.limits),
            chosen: chosen(manifest),
            cycles,
        }
    }

    /// What this asks for beyond what is known to be allowed, a line each; empty when nothing.
    pub(crate) fn beyond(&self, known: &Known) -> Vec<String> {
        let mut lines = match (known.claim, &known.allowed) {
            (Claim::Stranger, _) => self.all("+ its name: the manifest stands inside a file that is called otherwise"),
            (Claim::Maker, Some(allowed)) => [self.more_than(allowed), self.other_than(allowed)].concat(),
            (Claim::Renamed | Claim::Operator, Some(allowed)) => self.more_than(allowed),
            (Claim::Maker, None) => self.all("+ a new plugin whose manifest stands inside it"),
            (Claim::Renamed | Claim::Operator, None) => Vec::new(),
        };
        let cycles = self.cycles.iter().filter(|cycle| !known.cycles.contains(*cycle));
        lines.extend(cycles.map(|cycle| format!("+ closes a circle: {cycle}")));
        lines
    }

    /// Everything that a new plugin asks for, under a line that says why all of it is asked.
    fn all(&self, why: &str) -> Vec<String> {
        let mut lines = vec![why.to_owned()];
        lines.extend(self.read.iter().map(|stream| format!("+ reads {stream}")));
        lines.extend(self.emit.iter().map(|stream| format!("+ emits to {stream}")));
        if self.reuse {
            lines.push(String::from("+ instances = \"reuse\": one message's instance handles the next"));
        }
        lines.extend(
            self.chosen.iter().flat_map(|(key, values)| values.iter().map(move |now| format!("+ {key} = {now}"))),
        );
        lines.push(format!("+ concurrency {}", show_threads(self.threads)));
        let Limits { memory_bytes, deadline, .. } = Limits::default();
        let default = Asks { memory_bytes, deadline, limits: further(&Limits::default()), ..Asks::default() };
        lines.extend(self.larger_than(&default, "default"));
        lines.push(String::from("+ no other limit above its default"));
        lines
    }

    /// What there is to note once this is allowed; nothing when all of it is known.
    pub(crate) fn to_note(&self, known: &Known) -> Option<String> {
        let now = match &known.allowed {
            Some(allowed) => self.with(allowed),
            None => Asks { cycles: Vec::new(), ..self.clone() },
        };
        let more_cycles = self.cycles.iter().any(|cycle| !known.cycles.contains(cycle));
        (known.lost || more_cycles || known.allowed.as_ref() != Some(&now))
            .then(|| serde_json::to_string(&now).expect("strings and numbers always serialize"))
    }

    fn more_than(&self, allowed: &Asks) -> Vec<String> {
        let mut lines = Vec::new();
        lines.extend(self.read.difference(&allowed.read).map(|stream| format!("+ reads {stream}")));
        lines.extend(self.emit.difference(&allowed.emit).map(|stream| format!("+ emits to {stream}")));
        if self.reuse && !allowed.reuse {
            lines.push(String::from(
                "+ instances = \"reuse\": one message's instance handles the next (before: \"fresh\")",
            ));
        }
        if let Some(before) = allowed.threads.filter(|&before| self.threads.is_none_or(|threads| threads > before)) {
            lines.push(format!("+ concurrency {} (before: {before})", show_threads(self.threads)));
        }
        lines.extend(self.larger_than(allowed, "before"));
        lines
    }

    /// The limits that are larger than others, with what those are.
    fn larger_than(&self, others: &Asks, which: &str) -> Vec<String> {
        let mut lines = Vec::new();
        if self.memory_bytes > others.memory_bytes {
            let [now, other] = [self.memory_bytes, others.memory_bytes].map(show_bytes);
            lines.push(format!("+ memory {now} ({which}: {other})"));
        }
        if self.deadline > others.deadline {
            let [now, other] = [self.deadline, others.deadline].map(humantime::format_duration);
            lines.push(format!("+ deadline {now} ({which}: {other})"));
        }
        for (key, now) in &self.limits {
            if let Some(other) = others.limits.get(key).filter(|other| now > other) {
                lines.push(format!("+ {key} {} ({which}: {})", show_limit(key, *now), show_limit(key, *other)));
            }
        }
        lines
    }

    /// What this chooses that has not been chosen before. Only of a manifest that is its maker's word: the group, the retries and the
    /// start that an operator writes are the operator's choice.
    fn other_than(&self, allowed: &Asks) -> Vec<String> {
        let mut lines = Vec::new();
        for (key, values) in &self.chosen {
            // A stream that is new is asked for above, and where it is begun with it.
            let new_stream = self.read.iter().any(|stream| *key == start_key(stream) && !allowed.read.contains(stream));
            let Some(before) = allowed.chosen.get(key) else {
                let begun = values.iter().filter(|now| new_stream && *now != DEFAULT_START);
                lines.extend(begun.map(|now| format!("+ {key} = {now}")));
                continue;
            };
            let all_before = before.iter().cloned().collect::<Vec<_>>().join(", ");
            lines.extend(values.difference(before).map(|now| format!("+ {key} = {now} (before: {all_before})")));
        }
        lines
    }

    /// Both together: what is allowed once this is.
    fn with(&self, allowed: &Asks) -> Asks {
        let (mut limits, mut chosen) = (allowed.limits.clone(), allowed.chosen.clone());
        for (key, now) in &self.limits {
            let most = limits.entry(key.clone()).or_insert(*now);
            *most = (*most).max(*now);
        }
        for (key, values) in &self.chosen {
            chosen.entry(key.clone()).or_default().extend(values.iter().cloned());
        }
        Asks {
            read: self.read.union(&allowed.read).cloned().collect(),
            emit: self.emit.union(&allowed.emit).cloned().collect(),
            reuse: self.reuse || allowed.reuse,
            threads: self.threads.zip(allowed.threads).map(|(one, other)| one.max(other)),
            memory_bytes: self.memory_bytes.max(allowed.memory_bytes),
            deadline: self.deadline.max(allowed.deadline),
            limits,
            chosen,
            cycles: Vec::new(),
        }
    }
}

/// The limits beside memory and deadline.
fn further(limits: &Limits) -> BTreeMap<String, u64> {
    further_limits(limits).into_iter().map(|(key, value)| (key.to_owned(), value.unwrap_or(NO_BOUND))).collect()
}

/// What a manifest chooses that has no more and no less.
fn chosen(manifest: &Manifest) -> BTreeMap<String, BTreeSet<String>> {
    let mut chosen = BTreeMap::from([
        (String::from("group"), BTreeSet::from([manifest.group.clone()])),
        (String::from("retries"), BTreeSet::from([manifest.retry.retries.to_string()])),
        (String::from("crashes"), BTreeSet::from([manifest.retry.crashes.to_string()])),
    ]);
    for subscribed in &manifest.subscribed {
        let start = match subscribed.start {
            StartRule::Default => String::from(DEFAULT_START),
            StartRule::New => String::from("new"),
            StartRule::Oldest => String::from("oldest"),
            StartRule::Ago(span) => format!("-{}", humantime::format_duration(span)),
            StartRule::After(id) => format!("after {id}"),
        };
        chosen.entry(start_key(&subscribed.subscription.stream)).or_default().insert(start);
    }
    chosen
}

/// The key under which it stands where a stream is begun.
fn start_key(stream: &str) -> String {
    format!("start of {stream}")
}

fn show_threads(threads: Option<usize>) -> String {
    threads.map_or_else(|| String::from("auto"), |threads| threads.to_string())
}

fn show_limit(key: &str, value: u64) -> String {
    match value {
        NO_BOUND => String::from("without a bound of its own"),
        bytes if LIMITS_IN_BYTES.contains(&key) => show_bytes(bytes),
        count => count.to_string(),
    }
}

/// Circles that are looked for from one plugin: enough to see that there is something to look at.
const CYCLES_MAX: usize = 32;

/// The circles through a plugin, each as text that begins with the plugin whose name comes first, so that it is the same text
/// whichever of its plugins was there last. `routes` has the plugin's too. A message ends after 8 hops, so longer circles are none.
pub(crate) fn cycles(from: &str, routes: &[(&str, &Route)]) -> Vec<String> {
    let mut found = std::collections::BTreeSet::new();
    let mut open: Vec<Vec<(&str, &str)>> = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let last = path.last().map_or(from, |(_, plugin)| plugin);
        for stream in routes.iter().filter(|(name, _)| *name == last).flat_map(|(_, route)| route.emit()) {
            for &(next, _) in routes.iter().filter(|(_, route)| route.subscribe().contains(stream)) {
                let mut longer = path.clone();
                longer.push((stream.as_str(), next));
                if next == from {
                    found.insert(as_text(&longer));
                } else if longer.len() < HOPS_MAX as usize && !path.iter().any(|(_, name)| *name == next) {
                    open.push(longer);
                }
            }
        }
        if found.len() >= CYCLES_MAX || open.len() > 10_000 {
            break;
        }
    }
    found.into_iter().collect()
}

/// A circle of (stream, the plugin that reads it).
fn as_text(circle: &[(&str, &str)]) -> String {
    let first = circle.iter().enumerate().min_by_key(|(_, (_, plugin))| *plugin).map_or(0, |(at, _)| at);
    let mut text = circle.get(first).map_or(String::new(), |(_, plugin)| (*plugin).to_owned());
    for (stream, plugin) in circle.iter().cycle().skip(first + 1).take(circle.len()) {
        text.push_str(&format!(" → {stream} → {plugin}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(text: &str) -> Asks {
        Asks::of(&Manifest::parse(text, "p").unwrap().0, Vec::new())
    }

    #[test]
    fn only_what_is_more_than_before_is_shown() {
        let first = asks("subscribe = [\"a\"]\nemit = [\"b\"]\nconcurrency = 2");
        assert!(first.more_than(&first).is_empty());
        let less =
            asks("subscribe = [\"a\"]\nemit = []\nconcurrency = 1\n[limits]\nmemory = \"1MiB\"\ndeadline = \"1ms\"");
        assert!(less.more_than(&first).is_empty(), "{:?}", less.more_than(&first));
        let more = asks(
            "subscribe = [\"a\", \"c\"]\nemit = [\"b\", \"d\"]\ninstances = \"reuse\"\nconcurrency = 3\n[limits]\nmemory = \"128MiB\"\ndeadline = \"2s\"",
        );
        let shown = more.more_than(&first).join("\n");
        for part in [
            "reads c",
            "emits to d",
            "\"reuse\"",
            "concurrency 3 (before: 2)",
            "memory 128",
            "deadline 2s (before: 1s)",
        ] {
            assert!(shown.contains(part), "{shown}");
        }
        assert_eq!(shown.lines().count(), 6, "{shown}");
        let auto = asks("subscribe = [\"a\"]\nemit = [\"b\"]");
        assert_eq!(auto.more_than(&first), ["+ concurrency auto (before: 2)"]);
        assert!(first.more_than(&auto).is_empty());
        assert!(more.more_than(&more.with(&first)).is_empty() && first.more_than(&more.with(&first)).is_empty());
    }

    #[test]
    fn a_first_version_is_its_operators_word_unless_its_manifest_came_inside_it() {
        let first = asks("subscribe = [\"a\"]\nemit = [\"b\"]\n[limits]\nmemory = \"128MiB\"\nlog-lines = 50");
        assert!(first.beyond(&Known::default()).is_empty());
        let shown = first.beyond(&Known { claim: Claim::Maker, ..Known::default() }).join("\n");
        for part in [
            "stands inside it",
            "reads a",
            "emits to b",
            "group = group:p",
            "retries = 3",
            "start of a = default",
            "concurrency auto",
            "memory 128.0 MiB (default: 64.0 MiB)",
            "no other limit above its default",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!shown.contains("log-lines"), "{shown}");
    }

    #[test]
    fn a_manifest_inside_a_file_of_another_name_asks_for_everything_whatever_that_name_was_allowed() {
        let known = |claim| {
            let allowed = Some(asks("subscribe = [\"a\"]\nemit = [\"b\"]"));
            Known { allowed, claim, ..Known::default() }
        };
        let again = asks("subscribe = [\"a\"]\nemit = [\"b\"]");
        for claim in [Claim::Maker, Claim::Renamed, Claim::Operator] {
            assert!(again.beyond(&known(claim)).is_empty(), "{claim:?}");
        }
        let shown = again.beyond(&known(Claim::Stranger)).join("\n");
        assert!(
            shown.contains("its name") && shown.contains("reads a") && shown.contains("group = group:p"),
            "{shown}"
        );
    }

    #[test]
    fn the_operators_word_has_a_name_before_the_makers_and_the_file_that_is_called_so_before_another() {
        let claim = |file: &str, embedded, trusts| {
            let manifest = String::from("name = \"p\"\nsubscribe = [\"a\"]");
            let file_name = file.to_owned();
            Claim::of(&Candidate { file_name, manifest, embedded, ..Candidate::default() }, trusts)
        };
        let order =
            [claim("q", true, false), claim("p", true, false), claim("q", false, false), claim("p", false, false)];
        assert_eq!(order, [Claim::Stranger, Claim::Maker, Claim::Renamed, Claim::Operator]);
        assert!(order.is_sorted());
        assert_eq!(claim("q", true, true), Claim::Renamed);
    }

    #[test]
    fn a_raised_limit_and_another_group_retries_or_start_are_asked_for_and_a_lowered_limit_is_not() {
        let first = asks(
            "subscribe = [\"a\"]\nemit = [\"b\"]\n[limits]\nevents = 10\noutput = \"1KiB\"\nevents-per-second = 5",
        );
        let more = asks(
            "group = \"other\"\nretries = 0\nstart = \"oldest\"\nsubscribe = [\"a\", \"c\"]\nemit = [\"b\"]\n[limits]\nevents = 11\noutput = \"1B\"\nhost-calls = 100001",
        );
        let beyond = |asks: &Asks, allowed: &Asks, claim| {
            asks.beyond(&Known { allowed: Some(allowed.clone()), claim, ..Known::default() })
        };
        let by_maker = |asks: &Asks, allowed: &Asks| beyond(asks, allowed, Claim::Maker);
        let raised = beyond(&more, &first, Claim::Operator);
        assert_eq!(raised.len(), 4, "{raised:?}");
        assert_eq!(
            by_maker(&more, &first),
            [
                "+ reads c",
                "+ events 11 (before: 10)",
                "+ events-per-second without a bound of its own (before: 5)",
                "+ host-calls 100001 (before: 100000)",
                "+ group = other (before: group:p)",
                "+ retries = 0 (before: 3)",
                "+ start of a = oldest (before: default)",
                "+ start of c = oldest",
            ]
        );
        let both = more.with(&first);
        assert!(by_maker(&more, &both).is_empty() && by_maker(&first, &both).is_empty());
        let neither =
            asks("group = \"third\"\nsubscribe = [\"a\"]\nemit = []\n[limits]\nevents = 11\noutput = \"1KiB\"");
        assert_eq!(by_maker(&neither, &both), ["+ group = third (before: group:p, other)"]);
    }

    #[test]
    fn what_was_allowed_before_limits_and_groups_were_asked_for_is_read_and_lets_the_first_version_through() {
        let before = r#"{"read":["a"],"emit":["b"],"reuse":false,"threads":null,"memory_bytes":67108864,"deadline":{"secs":1,"nanos":0}}"#;
        let read = |text: &str| {
            let found = Approvals { allowed: Some(text.to_owned()), ..Approvals::default() };
            let known = Known::read(&found, Claim::Maker);
            assert!(known.allowed.is_some(), "{text}");
            known
        };
        let runs = asks("group = \"g\"\nretries = 9\nsubscribe = [\"a\"]\nemit = [\"b\"]\n[limits]\nevents = 5000");
        assert!(runs.beyond(&read(before)).is_empty());
        let noted = runs.to_note(&read(before)).expect("there is more to note now");
        assert!(runs.beyond(&read(&noted)).is_empty() && runs.to_note(&read(&noted)).is_none());
        let other = asks("group = \"h\"\nretries = 9\nsubscribe = [\"a\"]\nemit = [\"b\"]\n[limits]\nevents = 5001");
        assert_eq!(other.beyond(&read(&noted)), ["+ events 5001 (before: 5000)", "+ group = h (before: g)"]);
    }

    #[test]
    fn a_circle_is_asked_for_until_it_has_been_allowed_and_noted_once() {
        let mut asks = asks("subscribe = [\"a\"]\nemit = [\"b\"]");
        let known = Known { allowed: Some(asks.clone()), ..Known::default() };
        assert_eq!((asks.beyond(&known), asks.to_note(&known)), (Vec::new(), None));
        asks.cycles = vec![String::from("p → b → q → a → p")];
        assert_eq!(asks.beyond(&known), ["+ closes a circle: p → b → q → a → p"]);
        assert!(asks.to_note(&known).is_some());
        let known = Known { cycles: asks.cycles.iter().cloned().collect(), ..known };
        assert_eq!((asks.beyond(&known), asks.to_note(&known)), (Vec::new(), None));
    }

    fn manifest(name: &str, reads: &str, emits: &str) -> Manifest {
        let text = format!("name = {name:?}\nsubscribe = [{reads:?}]\nemit = [{emits:?}]");
        Manifest::parse(&text, name).unwrap().0
    }

    #[test]
    fn a_circle_has_the_same_text_from_every_plugin_in_it_and_a_line_has_none() {
        let (b, a, c) = (manifest("b", "s1", "s2"), manifest("a", "s2", "s3"), manifest("c", "s3", "s1"));
        let routes = [&b, &a, &c].map(|plugin| (plugin.name.as_str(), &plugin.route));
        let text = "a → s3 → c → s1 → b → s2 → a";
        for plugin in ["a", "b", "c"] {
            assert_eq!(cycles(plugin, &routes), [text]);
        }
        assert!(cycles("b", &routes[..2]).is_empty());
    }
}
