//! One attack event from whatever the benchmark sends: a Cowrie line, an attack event, or any other JSON.

use serde_json::{Value, json};

/// Builds the event. Fields that the payload lacks are `unknown`.
///
/// # Errors
///
/// When the payload is not JSON.
pub fn from_payload(payload: &str) -> Result<Value, serde_json::Error> {
    let event: Value = serde_json::from_str(payload)?;
    Ok(json!({
        "event_type": "attack",
        "attacker_ip": first_text(&event, &["attacker_ip", "src_ip"]),
        "service": first_text(&event, &["service", "protocol"]),
        "action": first_text(&event, &["action", "eventid"]),
        "details": event.get("details").unwrap_or(&event),
    }))
}

fn first_text<'a>(event: &'a Value, names: &[&str]) -> &'a str {
    names.iter().find_map(|name| event.get(name).and_then(Value::as_str)).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cowrie_line_becomes_an_attack() {
        let line =
            json!({"eventid": "cowrie.command.input", "src_ip": "127.77.10.28", "protocol": "ssh", "input": "id"});
        assert_eq!(
            from_payload(&line.to_string()).unwrap(),
            json!({
                "event_type": "attack", "attacker_ip": "127.77.10.28", "service": "ssh",
                "action": "cowrie.command.input", "details": line
            })
        );
    }

    #[test]
    fn any_json_is_answered_and_anything_else_is_an_error() {
        for payload in
            ["null", "[]", "\"🦀\"", r#"{"src_ip":7,"details":null}"#, &format!("\"{}\"", "A".repeat(18_000))]
        {
            assert_eq!(from_payload(payload).unwrap()["attacker_ip"], "unknown");
        }
        for payload in ["", "{", &"[".repeat(10_000)] {
            assert!(from_payload(payload).is_err());
        }
    }
}
