//! From an attack event to a decision: which techniques it shows, how grave they are, what to do.

use crate::rules::{COMMAND_RULES, EVENT_RULES, LINE_RULES, contains_any};
use crate::shell::commands;
use crate::techniques::Technique;
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::fmt;

/// Where a command line stands: in Cowrie's events, and in those of Cyber Mirage's own sensors.
const COMMAND_FIELDS: &[&str] = &["input", "command"];
/// These repeat a command that the action `command` has already told.
const ECHOES: &[&str] = &["command_failed", "command_found"];
/// Enough evidence to judge by; the whole command is in the attack event.
const EVIDENCE_CHARACTERS_MAX: usize = 200;

/// One decision, ready to be sent.
#[derive(Debug, PartialEq)]
pub struct Decision {
    pub payload: Value,
    pub priority: u8,
    pub attacker_ip: String,
}

/// Why a payload is not an attack event.
#[derive(Debug, PartialEq)]
pub enum Rejected {
    Unreadable(String),
    NotAnObject,
    NoAction,
}

impl fmt::Display for Rejected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejected::Unreadable(why) => write!(formatter, "the payload cannot be read as JSON: {why}"),
            Rejected::NotAnObject => formatter.write_str("the payload is not a JSON object"),
            Rejected::NoAction => formatter.write_str("the attack has no action that is a text"),
        }
    }
}

/// One technique with what showed it.
struct Sighting {
    technique: &'static Technique,
    confidence: f64,
    evidence: String,
}

/// Decides on one attack event; `None` when it shows no technique.
///
/// `entry_timestamp` stands in for an attack that carries no time of its own.
///
/// # Errors
///
/// A `Rejected`: the payload will not become an attack by trying again.
pub fn of_attack(payload: &str, entry_timestamp: &str) -> Result<Option<Decision>, Rejected> {
    let value: Value = serde_json::from_str(payload).map_err(|error| Rejected::Unreadable(error.to_string()))?;
    let attack = value.as_object().ok_or(Rejected::NotAnObject)?;
    let action = text(attack, "action").ok_or(Rejected::NoAction)?;
    let none = Map::new();
    let details = attack.get("details").and_then(Value::as_object).unwrap_or(&none);

    let mut sightings = Vec::new();
    in_event(action, details, &mut sightings);
    if !ECHOES.contains(&action) {
        for line in COMMAND_FIELDS.iter().filter_map(|field| text(details, field)) {
            in_line(line, &mut sightings);
        }
    }
    sightings.sort_by_key(|sighting| Reverse(sighting.technique.priority));
    let Some(gravest) = sightings.first() else {
        return Ok(None);
    };

    let attacker_ip = text(attack, "attacker_ip").unwrap_or("unknown").to_string();
    let payload = json!({
        "event_type": "ai_decision",
        "session_id": text(attack, "session_id").unwrap_or("unknown"),
        "action": gravest.technique.response,
        "attacker_ip": attacker_ip,
        "techniques": sightings.iter().map(as_json).collect::<Vec<Value>>(),
        "timestamp": text(attack, "timestamp").unwrap_or(entry_timestamp),
    });
    Ok(Some(Decision { payload, priority: gravest.technique.priority, attacker_ip }))
}

fn in_event(action: &str, details: &Map<String, Value>, sightings: &mut Vec<Sighting>) {
    for rule in EVENT_RULES.iter().filter(|rule| rule.action == action) {
        let value = text(details, rule.field);
        if rule.parts.is_empty() || value.is_some_and(|value| contains_any(value, rule.parts)) {
            let evidence = match value {
                Some(value) => format!("{action} {}={value}", rule.field),
                None => action.to_string(),
            };
            note(sightings, &rule.technique, rule.confidence, &evidence);
        }
    }
}

fn in_line(line: &str, sightings: &mut Vec<Sighting>) {
    for rule in LINE_RULES {
        if rule.all.iter().all(|part| line.contains(part)) {
            note(sightings, &rule.technique, rule.confidence, line);
        }
    }
    for command in commands(line) {
        for rule in COMMAND_RULES {
            if rule.when.matches(&command) {
                note(sightings, &rule.technique, rule.confidence, &command.text);
            }
        }
    }
}

/// Keeps a technique once, with the evidence that shows it best.
fn note(sightings: &mut Vec<Sighting>, technique: &'static Technique, confidence: f64, evidence: &str) {
    let known = sightings.iter_mut().find(|sighting| sighting.technique.id == technique.id);
    if known.as_ref().is_some_and(|sighting| sighting.confidence >= confidence) {
        return;
    }
    let evidence = evidence.chars().take(EVIDENCE_CHARACTERS_MAX).collect();
    let sighting = Sighting { technique, confidence, evidence };
    match known {
        Some(weaker) => *weaker = sighting,
        None => sightings.push(sighting),
    }
}

fn as_json(sighting: &Sighting) -> Value {
    json!({
        "id": sighting.technique.id,
        "name": sighting.technique.name,
        "tactic": sighting.technique.tactic,
        "confidence": sighting.confidence,
        "evidence": sighting.evidence,
    })
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

#[cfg(test)]
mod tests;
