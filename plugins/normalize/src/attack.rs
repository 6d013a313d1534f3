//! The one attack schema, and how a Cowrie event becomes it.
//!
//! Pure: text in, JSON out. Nothing here reads a clock or keeps anything between two messages.

use serde_json::{Map, Value, json};
use std::fmt;

/// What becomes of one kind of Cowrie event.
struct Kind {
    eventid: &'static str,
    action: &'static str,
    /// 1 low, 2 normal, 3 high, 4 critical.
    priority: u8,
}

const fn kind(eventid: &'static str, action: &'static str, priority: u8) -> Kind {
    Kind { eventid, action, priority }
}

/// The kinds that are understood. A kind of Cowrie's that is neither here nor in `NOISE` is passed on as `other`.
const KINDS: &[Kind] = &[
    kind("cowrie.login.failed", "login_failed", 2),
    kind("cowrie.command.input", "command", 3),
    kind("cowrie.session.connect", "connect", 1),
    kind("cowrie.session.closed", "disconnect", 1),
    kind("cowrie.client.version", "client_version", 1),
    kind("cowrie.client.kex", "client_fingerprint", 1),
    kind("cowrie.login.success", "login_success", 3),
    kind("cowrie.client.fingerprint", "key_offered", 2),
    // Both repeat a command that `command` has already told, with what the honeypot answered.
    kind("cowrie.command.failed", "command_failed", 1),
    kind("cowrie.command.success", "command_found", 1),
    kind("cowrie.command.chpasswd", "password_change", 4),
    kind("cowrie.session.input", "program_input", 2),
    kind("cowrie.session.file_download", "file_download", 4),
    kind("cowrie.session.file_download.failed", "file_download_failed", 3),
    kind("cowrie.session.file_upload", "file_upload", 4),
    kind("cowrie.direct-tcpip.request", "tunnel_request", 3),
    kind("cowrie.direct-tcpip.data", "tunnel_data", 3),
    kind("cowrie.direct-tcpip.ja4", "tunnel_fingerprint", 1),
    kind("cowrie.direct-tcpip.ja4h", "tunnel_fingerprint", 1),
];

/// The honeypot's own bookkeeping and the client's terminal settings: dropped on purpose.
const NOISE: &[&str] =
    &["cowrie.session.params", "cowrie.log.open", "cowrie.log.closed", "cowrie.client.size", "cowrie.client.var"];

/// An unknown kind is kept rather than lost, at the lowest priority.
const OTHER: Kind = kind("", "other", 1);

/// Fields with a place of their own in the attack event.
const LIFTED: &[&str] = &["eventid", "src_ip", "protocol", "session", "sensor", "timestamp"];

/// Fields of known kinds that say nothing new: prose made of the other fields, the sensor's id a second time, and the
/// offered algorithms that `hassh` already sums up. An event of an unknown kind keeps even these.
const REDUNDANT: &[&str] =
    &["message", "uuid", "hasshAlgorithms", "kexAlgs", "keyAlgs", "encCS", "macCS", "compCS", "langCS"];

/// Enough of an odd event id to recognise it by; the rest of it is the attacker's to choose.
const QUOTED_CHARACTERS_MAX: usize = 80;

/// One attack event, ready to be sent.
#[derive(Debug, PartialEq)]
pub struct Attack {
    pub payload: Value,
    pub priority: u8,
    pub attacker_ip: String,
}

/// Why a payload can never become an attack event.
#[derive(Debug, PartialEq)]
pub enum Rejected {
    Unreadable(String),
    NotAnObject,
    NoEventId,
    NotCowrie(String),
    NoSourceAddress,
}

impl fmt::Display for Rejected {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejected::Unreadable(why) => write!(formatter, "the payload cannot be read as JSON: {why}"),
            Rejected::NotAnObject => formatter.write_str("the payload is not a JSON object"),
            Rejected::NoEventId => formatter.write_str("the event has no eventid that is a text"),
            Rejected::NotCowrie(eventid) => write!(formatter, "eventid {eventid:?} is not one of Cowrie's"),
            Rejected::NoSourceAddress => formatter.write_str("the event has no src_ip that is a text"),
        }
    }
}

/// Turns a Cowrie log line into an attack event; `None` means noise that is dropped on purpose.
///
/// `entry_timestamp` stands in for an event that carries no time of its own.
///
/// # Errors
///
/// A `Rejected`: the payload will not become readable by trying again.
pub fn from_cowrie(payload: &str, entry_timestamp: &str) -> Result<Option<Attack>, Rejected> {
    let value: Value = serde_json::from_str(payload).map_err(|error| Rejected::Unreadable(error.to_string()))?;
    let Value::Object(event) = value else {
        return Err(Rejected::NotAnObject);
    };
    let eventid = non_empty(&event, "eventid").ok_or(Rejected::NoEventId)?.to_string();
    if NOISE.contains(&eventid.as_str()) {
        return Ok(None);
    }
    if !eventid.starts_with("cowrie.") {
        return Err(Rejected::NotCowrie(eventid.chars().take(QUOTED_CHARACTERS_MAX).collect()));
    }
    let attacker_ip = non_empty(&event, "src_ip").ok_or(Rejected::NoSourceAddress)?.to_string();

    let known = KINDS.iter().find(|kind| kind.eventid == eventid);
    let kind = known.unwrap_or(&OTHER);
    let payload = json!({
        "event_type": "attack",
        "attacker_ip": attacker_ip,
        "service": service(&event),
        "action": kind.action,
        "session_id": text(&event, "session").unwrap_or_else(|| "unknown".to_string()),
        "sensor": text(&event, "sensor").unwrap_or_else(|| "unknown".to_string()),
        "source_event": eventid,
        "timestamp": text(&event, "timestamp").unwrap_or_else(|| entry_timestamp.to_string()),
        "details": details(event, known.is_some()),
    });
    Ok(Some(Attack { payload, priority: kind.priority, attacker_ip }))
}

/// The service's name as Cyber Mirage writes it. Cowrie before 2019 named the protocol only when a session began; its
/// `system` field still shows which listener spoke.
fn service(event: &Map<String, Value>) -> &'static str {
    let protocol = non_empty(event, "protocol").or_else(|| non_empty(event, "system")).unwrap_or("");
    let protocol = protocol.to_ascii_lowercase();
    if protocol.contains("telnet") {
        "Telnet"
    } else if protocol.contains("ssh") {
        "SSH"
    } else {
        "Unknown"
    }
}

/// All that has no other place. Nulls go: an absent key says the same.
fn details(mut event: Map<String, Value>, kind_is_known: bool) -> Value {
    event.retain(|name, value| {
        let has_its_place = LIFTED.contains(&name.as_str());
        let is_redundant = kind_is_known && REDUNDANT.contains(&name.as_str());
        !(value.is_null() || has_its_place || is_redundant)
    });
    Value::Object(event)
}

fn non_empty<'a>(event: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    event.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// A scalar as text: sensors have been seen to write numbers where text belongs.
fn text(event: &Map<String, Value>, name: &str) -> Option<String> {
    match event.get(name)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::String(_) | Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGIN_FAILED: &str = r#"{"session":"c36977f2d82c","protocol":"ssh","src_ip":"127.185.11.33","src_port":58575,"dst_ip":"127.0.0.1","dst_port":2222,"username":"root","password":"111111","eventid":"cowrie.login.failed","sensor":"lab-sensor-01","uuid":"2d439fd8-e70f-11f1-9f04-02fc00000001","timestamp":"2026-11-23T07:27:25.113175Z","message":"login attempt [root/111111] failed"}"#;
    const CLIENT_SIZE: &str = r#"{"session":"44375e71b549","protocol":"ssh","src_ip":"127.193.5.13","src_port":43593,"dst_ip":"127.0.0.1","dst_port":2222,"width":120,"height":50,"eventid":"cowrie.client.size","sensor":"lab-sensor-01","uuid":"2d439fd8-e70f-11f1-9f04-02fc00000001","timestamp":"2026-11-23T07:27:26.230281Z","message":"Terminal Size: 120 50"}"#;

    fn attack(payload: &Value) -> Attack {
        from_cowrie(&payload.to_string(), "2026-01-01T00:00:00").unwrap().unwrap()
    }

    #[test]
    fn a_real_failed_login_becomes_an_attack() {
        let attack = from_cowrie(LOGIN_FAILED, "").unwrap().unwrap();
        assert_eq!(attack.priority, 2);
        assert_eq!(attack.attacker_ip, "127.185.11.33");
        assert_eq!(
            attack.payload,
            json!({
                "event_type": "attack", "attacker_ip": "127.185.11.33", "service": "SSH", "action": "login_failed",
                "session_id": "c36977f2d82c", "sensor": "lab-sensor-01", "source_event": "cowrie.login.failed",
                "timestamp": "2026-11-23T07:27:25.113175Z",
                "details": {"src_port": 58575, "dst_ip": "127.0.0.1", "dst_port": 2222, "username": "root", "password": "111111"}
            })
        );
    }

    #[test]
    fn noise_is_dropped() {
        assert_eq!(from_cowrie(CLIENT_SIZE, ""), Ok(None));
    }

    #[test]
    fn an_unknown_kind_is_passed_on_whole() {
        let attack = attack(&json!({"eventid": "cowrie.new.kind", "src_ip": "1.2.3.4", "message": "m", "x": [1]}));
        assert_eq!(attack.payload["action"], "other");
        assert_eq!(attack.payload["details"], json!({"message": "m", "x": [1]}));
        assert_eq!(attack.priority, 1);
    }

    #[test]
    fn an_old_event_with_little_in_it_is_still_an_attack() {
        let attack = attack(&json!({
            "eventid": "cowrie.command.input", "src_ip": "1.2.3.4", "input": null,
            "system": "CowrieTelnetTransport,7,1.2.3.4", "session": null, "sensor": ["odd"], "timestamp": 1511000000.5
        }));
        assert_eq!(attack.payload["service"], "Telnet");
        assert_eq!(attack.payload["session_id"], "unknown");
        assert_eq!(attack.payload["sensor"], "unknown");
        assert_eq!(attack.payload["timestamp"], "1511000000.5");
        assert_eq!(attack.payload["details"], json!({"system": "CowrieTelnetTransport,7,1.2.3.4"}));
    }

    #[test]
    fn an_event_without_time_takes_the_time_of_its_entry() {
        let attack = attack(&json!({"eventid": "cowrie.session.connect", "src_ip": "1.2.3.4"}));
        assert_eq!(attack.payload["timestamp"], "2026-01-01T00:00:00");
        assert_eq!(attack.payload["service"], "Unknown");
    }

    #[test]
    fn text_of_any_script_and_size_passes_unchanged() {
        for input in ["", "echo 🦀 日本語 café", &"A".repeat(18_000)] {
            let attack = attack(&json!({"eventid": "cowrie.command.input", "src_ip": "1.2.3.4", "input": input}));
            assert_eq!(attack.payload["details"]["input"], input);
        }
    }

    #[test]
    fn what_can_never_be_an_attack_is_rejected_with_its_reason() {
        let deep = "[".repeat(100_000);
        for (payload, reason) in [
            ("{", "cannot be read as JSON"),
            (deep.as_str(), "recursion limit"),
            ("[]", "not a JSON object"),
            ("null", "not a JSON object"),
            ("{}", "no eventid"),
            (r#"{"eventid":7,"src_ip":"1.2.3.4"}"#, "no eventid"),
            (r#"{"eventid":"KIPP0001","src_ip":"1.2.3.4"}"#, "not one of Cowrie's"),
            (r#"{"eventid":"cowrie.login.failed"}"#, "no src_ip"),
            (r#"{"eventid":"cowrie.login.failed","src_ip":null}"#, "no src_ip"),
        ] {
            let rejected = from_cowrie(payload, "").unwrap_err().to_string();
            assert!(rejected.contains(reason), "{rejected}");
        }
    }

    #[test]
    fn a_rejected_event_id_is_quoted_only_in_part() {
        let payload = json!({"eventid": "🦀".repeat(10_000), "src_ip": "1.2.3.4"}).to_string();
        assert!(from_cowrie(&payload, "").unwrap_err().to_string().chars().count() < 200);
    }
}
