//! A plugin's own test cases, `<plugin>.test.toml`: what a message goes in as, and what must come of it.
//!
//! ```toml
//! [[case]]
//! name = "a failed login becomes an attack"
//! message = { eventid = "cowrie.login.failed", src_ip = "203.0.113.7" }
//! [[case.events]]
//! stream = "stream:attacks"
//! payload = { attacker_ip = "203.0.113.7" }
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_model::{Event, ReasonCode};
use cofferdam_sandbox::Plugin;
use cofferdam_streams::Subscription;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::manifest::{Manifest, TomlError};
use crate::offline::{Ended, Input, Ran, run_all};
use crate::quantity::Span;

/// When the first message of a case is published, in milliseconds since 1970: 2026-01-01T00:00:00Z, so that a case answers the same
/// on every day.
pub(crate) const BEGAN_MS: u64 = 1_767_225_600_000;

/// The cases of a plugin.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cases {
    cases: Vec<Case>,
}

#[derive(Clone, Debug)]
struct Case {
    name: String,
    subscription: Subscription,
    inputs: Vec<Input>,
    wanted: Wanted,
}

#[derive(Clone, Debug)]
enum Wanted {
    /// A word of [`Ended::word`] for the last message.
    Word(String),
    /// These events over all messages, in their order.
    Events { events: Vec<WantedEvent>, exact: bool },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    case: Vec<RawCase>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawCase {
    name: String,
    stream: Option<String>,
    message: Option<toml::Value>,
    #[serde(default)]
    sequence: Vec<RawStep>,
    #[serde(default)]
    attributes: std::collections::BTreeMap<String, String>,
    expect: Option<String>,
    events: Option<Vec<WantedEvent>>,
    #[serde(default)]
    exact: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    at: Option<Span>,
    payload: toml::Value,
}

/// What an event must hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedEvent {
    stream: Option<String>,
    payload: Option<toml::Value>,
    key: Option<String>,
    priority: Option<u8>,
}

/// How a case went.
#[derive(Debug)]
pub(crate) struct CaseResult {
    pub(crate) name: String,
    /// What differs from what was expected; `None` when nothing does.
    pub(crate) mismatch: Option<String>,
    pub(crate) took: Duration,
    /// What came of each of its messages.
    pub(crate) ran: Vec<Ran>,
}

/// What is wrong with a file of cases.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CasesError {
    #[error("{0}")]
    Syntax(#[from] TomlError),
    #[error("case {name:?}: {text}")]
    Case { name: String, text: String },
}

impl Cases {
    /// Reads a file of cases for a plugin.
    pub(crate) fn parse(text: &str, manifest: &Manifest) -> Result<Self, CasesError> {
        let raw: RawFile = toml::from_str(text).map_err(|error| TomlError::new(text, &error))?;
        let cases = raw.case.into_iter().map(|raw| {
            let name = raw.name.clone();
            case(raw, manifest).map_err(|text| CasesError::Case { name, text })
        });
        Ok(Cases { cases: cases.collect::<Result<_, _>>()? })
    }

    pub(crate) fn len(&self) -> usize {
        self.cases.len()
    }

    /// Runs every case, each on an instance that has seen nothing else. What runs when the time is over is stopped.
    ///
    /// # Errors
    /// The machine refuses a thread, or all together take longer than `time`.
    pub(crate) fn run(&self, plugin: &Arc<Plugin>, time: Duration) -> anyhow::Result<Vec<CaseResult>> {
        let ends = Instant::now().checked_add(time);
        let run = |(done, case): (usize, &Case)| {
            let result = case.run(plugin, ends)?;
            anyhow::ensure!(
                ends.is_none_or(|ends| Instant::now() < ends),
                "{done} of {} cases took {}, and that is all the time there is",
                self.cases.len(),
                humantime::format_duration(time)
            );
            Ok(result)
        };
        self.cases.iter().enumerate().map(run).collect()
    }
}

fn case(raw: RawCase, manifest: &Manifest) -> Result<Case, String> {
    let subscribed = &manifest.subscribed;
    let subscription = match &raw.stream {
        None => subscribed.first(),
        Some(stream) => subscribed.iter().find(|sub| *sub.subscription.stream == **stream),
    };
    let subscription = subscription.map(|sub| sub.subscription.clone()).ok_or_else(|| {
        format!(
            "the plugin does not read {:?}; it reads {}",
            raw.stream.unwrap_or_default(),
            manifest.route.subscribe().join(", ")
        )
    })?;
    let attributes: Vec<_> = raw.attributes.into_iter().collect();
    let input = |(seq, (at, payload)): (usize, (Duration, &toml::Value))| Input {
        payload: payload.as_str().map_or_else(|| json_of(payload).to_string(), str::to_owned),
        at_ms: BEGAN_MS + u64::try_from(at.as_millis()).unwrap_or(u64::MAX / 2),
        seq: seq as u64,
        attributes: attributes.clone(),
    };
    let inputs: Vec<Input> = match (&raw.message, raw.sequence.as_slice()) {
        (Some(message), []) => vec![input((0, (Duration::ZERO, message)))],
        (None, [_, ..]) => {
            let at = |step: &RawStep| step.at.as_ref().map_or(Duration::ZERO, |span| span.0);
            raw.sequence.iter().map(|step| (at(step), &step.payload)).enumerate().map(input).collect()
        }
        _ => return Err(String::from("write either message = { … } or sequence = [{ at = \"0s\", payload = { … } }]")),
    };
    let wanted = match (raw.expect, raw.events) {
        (None, Some(events)) => Wanted::Events { events, exact: raw.exact },
        (Some(word), None) => {
            let known = ["filtered", "retry", "reject"].contains(&word.as_str()) || word.parse::<ReasonCode>().is_ok();
            if !known {
                return Err(format!(
                    "expect = {word:?} is not understood; write \"filtered\", \"retry\", \"reject\" or a reason code such as \"trap\""
                ));
            }
            Wanted::Word(word)
        }
        _ => {
            return Err(String::from(
                "write either expect = \"filtered\" (or retry, reject, a reason code) or [[case.events]]",
            ));
        }
    };
    Ok(Case { name: raw.name, subscription, inputs, wanted })
}

impl Case {
    fn run(&self, plugin: &Arc<Plugin>, ends: Option<Instant>) -> anyhow::Result<CaseResult> {
        let began = Instant::now();
        let ran = run_all(plugin, &self.subscription, &self.inputs, 1, ends)?;
        let mismatch = self.wanted.mismatch(&ran);
        Ok(CaseResult { name: self.name.clone(), mismatch, took: began.elapsed(), ran })
    }
}

impl Wanted {
    fn mismatch(&self, ran: &[Ran]) -> Option<String> {
        let failed = |ran: &&Ran| !matches!(ran.ended, Ended::Events(_) | Ended::NotWanted);
        match self {
            Wanted::Word(word) => {
                let last = ran.last()?;
                let found = last.ended.word();
                if found == word {
                    return None;
                }
                Some(format!("expected {word}, got {}", told(&last.ended)))
            }
            Wanted::Events { events, exact } => {
                if let Some(failed) = ran.iter().find(failed) {
                    return Some(format!("expected {} events, got {}", events.len(), told(&failed.ended)));
                }
                let found: Vec<&Event> = ran
                    .iter()
                    .flat_map(|ran| match &ran.ended {
                        Ended::Events(events) => events.as_slice(),
                        _ => &[],
                    })
                    .collect();
                if found.is_empty() && !events.is_empty() {
                    return Some(format!("expected {} events, got filtered", events.len()));
                }
                if found.len() != events.len() {
                    let streams: Vec<&str> = found.iter().map(|event| event.stream.as_str()).collect();
                    return Some(format!("expected {} events, got {}: {streams:?}", events.len(), found.len()));
                }
                events.iter().zip(found).enumerate().find_map(|(at, (wanted, found))| {
                    wanted.differs(found, *exact).map(|text| format!("event {at}: {text}"))
                })
            }
        }
    }
}

/// What came of a message, in words.
fn told(ended: &Ended) -> String {
    match ended {
        Ended::Events(events) if let Some(first) = events.first() => {
            format!("{} events, the first {} {}", events.len(), first.stream, first.payload)
        }
        Ended::Events(_) | Ended::NotWanted => String::from("filtered"),
        Ended::Retry(_) | Ended::Reject(_) | Ended::Fault(_) => format!("{}: {}", ended.word(), ended.text()),
    }
}

impl WantedEvent {
    fn differs(&self, found: &Event, exact: bool) -> Option<String> {
        let same = |name: &str, wanted: Option<String>, found: Option<String>| match wanted {
            Some(wanted) if Some(&wanted) != found.as_ref() => {
                Some(format!("{name} is {:?}, expected {wanted:?}", found.unwrap_or_default()))
            }
            _ => None,
        };
        same("its stream", self.stream.clone(), Some(found.stream.clone()))
            .or_else(|| same("its key", self.key.clone(), found.key.clone()))
            .or_else(|| {
                same("its priority", self.priority.map(|p| p.to_string()), found.priority.map(|p| p.to_string()))
            })
            .or_else(|| {
                let wanted = json_of(self.payload.as_ref()?);
                let found: Json = serde_json::from_str(&found.payload).unwrap_or(Json::Null);
                difference(&wanted, &found, exact, String::new())
            })
    }
}

/// Where two values differ. Members that are not expected are no difference, unless all is to be `exact`.
fn difference(wanted: &Json, found: &Json, exact: bool, place: String) -> Option<String> {
    let at = if place.is_empty() { "the payload" } else { &place };
    match (wanted, found) {
        (Json::Object(wanted), Json::Object(found)) => {
            if exact && let Some(name) = found.keys().find(|name| !wanted.contains_key(*name)) {
                return Some(format!("{place}/{name} is not expected"));
            }
            wanted.iter().find_map(|(name, wanted)| match found.get(name) {
                None => Some(format!("{place}/{name} is missing, expected {wanted}")),
                Some(found) => difference(wanted, found, exact, format!("{place}/{name}")),
            })
        }
        (Json::Array(wanted), Json::Array(found)) if wanted.len() == found.len() => wanted
            .iter()
            .zip(found)
            .enumerate()
            .find_map(|(index, (wanted, found))| difference(wanted, found, exact, format!("{place}/{index}"))),
        (Json::Number(a), Json::Number(b)) if a.as_f64() == b.as_f64() => None,
        _ if wanted == found => None,
        _ => Some(format!("{at} is {found}, expected {wanted}")),
    }
}

/// A TOML value as JSON; a time becomes its text.
fn json_of(value: &toml::Value) -> Json {
    match value {
        toml::Value::String(text) => json!(text),
        toml::Value::Integer(number) => json!(number),
        toml::Value::Float(number) => json!(number),
        toml::Value::Boolean(truth) => json!(truth),
        toml::Value::Datetime(time) => json!(time.to_string()),
        toml::Value::Array(values) => values.iter().map(json_of).collect(),
        toml::Value::Table(table) => table.iter().map(|(name, value)| (name.clone(), json_of(value))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest::parse("subscribe = [\"stream:attacks\"]\nemit = [\"stream:alerts\"]", "p").unwrap().0
    }

    fn error(text: &str) -> String {
        Cases::parse(text, &manifest()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_with_a_case_is_said_with_its_name_and_its_mend() {
        let no_message = error("[[case]]\nname = \"one\"\nexpect = \"filtered\"");
        assert!(no_message.contains("\"one\"") && no_message.contains("message = {"), "{no_message}");
        assert!(error("[[case]]\nname = \"a\"\nmessage = {}\n").contains("[[case.events]]"));
        assert!(error("[[case]]\nname = \"a\"\nmessage = {}\nexpect = \"boom\"").contains("a reason code such as"));
        assert!(
            error("[[case]]\nname = \"a\"\nstream = \"x\"\nmessage = {}\nexpect = \"retry\"")
                .contains("stream:attacks")
        );
        assert!(error("[[case]]\nname = \"a\"\nmesage = {}").contains("unknown field `mesage`"));
    }

    #[test]
    fn an_event_may_hold_more_than_is_expected_unless_all_is_to_be_exact() {
        let (wanted, found) = (json!({"a": {"b": 1}}), json!({"a": {"b": 1.0, "c": 2}, "d": 3}));
        assert_eq!(difference(&wanted, &found, false, String::new()), None);
        assert_eq!(difference(&wanted, &found, true, String::new()).unwrap(), "/d is not expected");
        assert_eq!(
            difference(&json!({"a": 1}), &json!({}), false, String::new()).unwrap(),
            "/a is missing, expected 1"
        );
        let deep = difference(&json!({"a": [1, 2]}), &json!({"a": [1, 3]}), false, String::new());
        assert_eq!(deep.unwrap(), "/a/1 is 3, expected 2");
    }
}
