//! Whether a version asks for more than its plugin has been allowed so far. Pure: who approved what stands in Redis.
//!
//! The first version of a plugin is approved by the manifest that the operator put beside it. From then on a version that asks
//! for a stream, a mode, memory, time or threads beyond that waits, and the difference is shown.

use std::collections::BTreeSet;
use std::time::Duration;

use cofferdam_sandbox::Instances;
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
}

impl Asks {
    /// What a manifest asks for.
    pub(crate) fn of(manifest: &Manifest) -> Asks {
        Asks {
            read: manifest.route.subscribe().iter().cloned().collect(),
            emit: manifest.route.emit().iter().cloned().collect(),
            reuse: manifest.instances == Instances::Reuse,
            threads: manifest.concurrency,
            memory_bytes: manifest.limits.memory_bytes,
            deadline: manifest.limits.deadline,
        }
    }

    /// What this asks for beyond `allowed`, a line each; empty when nothing.
    pub(crate) fn beyond(&self, allowed: &Asks) -> Vec<String> {
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
    pub(crate) fn with(&self, allowed: &Asks) -> Asks {
        Asks {
            read: self.read.union(&allowed.read).cloned().collect(),
            emit: self.emit.union(&allowed.emit).cloned().collect(),
            reuse: self.reuse || allowed.reuse,
            threads: self.threads.zip(allowed.threads).map(|(one, other)| one.max(other)),
            memory_bytes: self.memory_bytes.max(allowed.memory_bytes),
            deadline: self.deadline.max(allowed.deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(text: &str) -> Asks {
        Asks::of(&Manifest::parse(text, "p").unwrap().0)
    }

    #[test]
    fn only_what_is_more_than_before_is_shown() {
        let first = asks("subscribe = [\"a\"]\nemit = [\"b\"]\nconcurrency = 2");
        assert!(first.beyond(&first).is_empty());
        let less =
            asks("subscribe = [\"a\"]\nemit = []\nconcurrency = 1\n[limits]\nmemory = \"1MiB\"\ndeadline = \"1ms\"");
        assert!(less.beyond(&first).is_empty(), "{:?}", less.beyond(&first));
        let more = asks(
            "subscribe = [\"a\", \"c\"]\nemit = [\"b\", \"d\"]\ninstances = \"reuse\"\nconcurrency = 3\n[limits]\nmemory = \"128MiB\"\ndeadline = \"2s\"",
        );
        let shown = more.beyond(&first).join("\n");
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
        assert_eq!(auto.beyond(&first), ["+ concurrency auto (before: 2)"]);
        assert!(first.beyond(&auto).is_empty());
        assert!(more.beyond(&more.with(&first)).is_empty() && first.beyond(&more.with(&first)).is_empty());
    }
}
