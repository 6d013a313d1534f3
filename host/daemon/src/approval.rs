//! Whether a version asks for more than its plugin has been allowed so far. Pure: who approved what stands in Redis.
//!
//! The first version of a plugin is approved by the manifest that the operator put beside it; one whose manifest came inside the wasm
//! is nobody's word but its maker's, and waits. From then on a version that asks for a stream, a mode, memory, time or threads beyond
//! what was allowed waits, and the difference is shown. A circle of plugins, each reading what the one before emits, waits for every
//! plugin that closes it, whatever its manifest says.

use std::collections::BTreeSet;
use std::time::Duration;

use cofferdam_model::route::HOPS_MAX;
use cofferdam_sandbox::Instances;
use cofferdam_streams::Approvals;
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::quantity::show_bytes;

/// What a version asks for, or a plugin has been allowed: of each the most so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asks {
    read: BTreeSet<String>,
    emit: BTreeSet<String>,
    reuse: bool,
    /// `None` is as many as the machine has cores.
    threads: Option<usize>,
    memory_bytes: u64,
    deadline: Duration,
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
    /// Whether a first version needs to be approved.
    strict: bool,
}

impl Known {
    /// What stands in Redis. `strict` is whether a first version needs to be approved.
    pub(crate) fn read(found: &Approvals, strict: bool) -> Known {
        Known {
            allowed: found.allowed.as_deref().and_then(|text| serde_json::from_str(text).ok()),
            approved: found.approved,
            cycles: found.cycles.iter().cloned().collect(),
            strict,
        }
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
            cycles,
        }
    }

    /// What this asks for beyond what is known to be allowed, a line each; empty when nothing.
    pub(crate) fn beyond(&self, known: &Known) -> Vec<String> {
        let mut lines = match &known.allowed {
            Some(allowed) => self.more_than(allowed),
            None if known.strict => self.all(),
            None => Vec::new(),
        };
        let cycles = self.cycles.iter().filter(|cycle| !known.cycles.contains(*cycle));
        lines.extend(cycles.map(|cycle| format!("+ closes a circle: {cycle}")));
        lines
    }

    /// Everything that a new plugin asks for.
    fn all(&self) -> Vec<String> {
        let mut lines = vec![String::from("+ a new plugin whose manifest stands inside it")];
        lines.extend(self.read.iter().map(|stream| format!("+ reads {stream}")));
        lines.extend(self.emit.iter().map(|stream| format!("+ emits to {stream}")));
        if self.reuse {
            lines.push(String::from("+ instances = \"reuse\": one message's instance handles the next"));
        }
        lines.push(format!("+ memory {}", show_bytes(self.memory_bytes)));
        lines.push(format!("+ deadline {}", humantime::format_duration(self.deadline)));
        lines
    }

    /// What there is to note once this is allowed; nothing when all of it is known.
    pub(crate) fn to_note(&self, known: &Known) -> Option<String> {
        let now = match &known.allowed {
            Some(allowed) => self.with(allowed),
            None => Asks { cycles: Vec::new(), ..self.clone() },
        };
        let more_cycles = self.cycles.iter().any(|cycle| !known.cycles.contains(cycle));
        (more_cycles || known.allowed.as_ref() != Some(&now))
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
            let now = self.threads.map_or_else(|| String::from("auto"), |threads| threads.to_string());
            lines.push(format!("+ concurrency {now} (before: {before})"));
        }
        if self.memory_bytes > allowed.memory_bytes {
            let (now, before) = (show_bytes(self.memory_bytes), show_bytes(allowed.memory_bytes));
            lines.push(format!("+ memory {now} (before: {before})"));
        }
        if self.deadline > allowed.deadline {
            let [now, before] = [self.deadline, allowed.deadline].map(humantime::format_duration);
            lines.push(format!("+ deadline {now} (before: {before})"));
        }
        lines
    }

    /// Both together: what is allowed once this is.
    fn with(&self, allowed: &Asks) -> Asks {
        Asks {
            read: self.read.union(&allowed.read).cloned().collect(),
            emit: self.emit.union(&allowed.emit).cloned().collect(),
            reuse: self.reuse || allowed.reuse,
            threads: self.threads.zip(allowed.threads).map(|(one, other)| one.max(other)),
            memory_bytes: self.memory_bytes.max(allowed.memory_bytes),
            deadline: self.deadline.max(allowed.deadline),
            cycles: Vec::new(),
        }
    }
}

/// Circles that are looked for from one plugin: enough to see that there is something to look at.
const CYCLES_MAX: usize = 32;

/// The circles through a plugin, each as text that begins with the plugin whose name comes first, so that it is the same text
/// whichever of its plugins was there last. `all` has the plugin too. A message ends after 8 hops, so longer circles are none.
pub(crate) fn cycles(from: &Manifest, all: &[&Manifest]) -> Vec<String> {
    let mut found = std::collections::BTreeSet::new();
    let mut open: Vec<Vec<(&str, &str)>> = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let last = path.last().map_or(from.name.as_str(), |(_, plugin)| plugin);
        let Some(plugin) = all.iter().find(|plugin| plugin.name == last) else { continue };
        for stream in plugin.route.emit() {
            for next in all.iter().filter(|next| next.route.subscribe().contains(stream)) {
                let mut longer = path.clone();
                longer.push((stream.as_str(), next.name.as_str()));
                if next.name == from.name {
                    found.insert(as_text(&longer));
                } else if longer.len() < HOPS_MAX as usize && !path.iter().any(|(_, name)| *name == next.name) {
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
        let first = asks("subscribe = [\"a\"]\nemit = [\"b\"]");
        assert!(first.beyond(&Known::default()).is_empty());
        let shown = first.beyond(&Known { strict: true, ..Known::default() }).join("\n");
        for part in ["stands inside it", "reads a", "emits to b", "memory 64.0 MiB", "deadline 1s"] {
            assert!(shown.contains(part), "{shown}");
        }
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
        let all = [&b, &a, &c];
        let text = "a → s3 → c → s1 → b → s2 → a";
        for plugin in all {
            assert_eq!(cycles(plugin, &all), [text]);
        }
        assert!(cycles(&b, &[&b, &a]).is_empty());
    }
}
