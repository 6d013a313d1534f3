use std::process::Command;

use cofferdam_model::EntryId;
use cofferdam_streams::{Decoded, RawEntry, Subscription, decode};
use cofferdam_tests::{Place, Redis, publish, wait_until};
use serde_json::Value;

fn fixtures() -> Vec<(String, EntryId, RawEntry)> {
    let file: Value = serde_json::from_str(include_str!("../data/wire_fixtures.json")).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entries = file["entries"].as_array().unwrap().iter().map(|entry| {
        let id: EntryId = entry["id"].as_str().unwrap().parse().unwrap();
        let fields = entry["fields"].as_array().unwrap().iter();
        let fields = fields.map(|pair| (text(&pair[0]).into_bytes(), text(&pair[1]).into_bytes())).collect();
        (text(&entry["stream"]), id, RawEntry { id, fields })
    });
    entries.collect()
}

#[test]
fn the_recorded_entries_of_the_original_decode_exactly() {
    let fixtures = fixtures();
    assert_eq!(fixtures.len(), 9);
    let (mut messages, mut init) = (0, 0);
    for (stream, id, entry) in fixtures {
        let stored = |name: &str| {
            let found = entry.fields.iter().find(|(field, _)| field == name.as_bytes());
            found.map(|(_, value)| String::from_utf8(value.clone()).unwrap())
        };
        let (payload, message_id, timestamp, producer) =
            (stored("payload"), stored("message_id"), stored("timestamp"), stored("producer_id"));
        let priority = stored("priority");
        match decode(entry.clone(), id, &Subscription::plain(&stream)) {
            Decoded::Init(_) => init += 1,
            other @ (Decoded::Malformed { .. } | Decoded::Filtered(_)) => panic!("{stream} {id}: {other:?}"),
            Decoded::Message(message) => {
                messages += 1;
                let python_only = payload.as_deref().is_some_and(|text| text.contains("NaN"));
                if python_only {
                    assert_eq!(message.payload, payload.unwrap().replace("NaN", "null").replace("Infinity", "null"));
                    assert!(message.payload.contains("1180591620717411303424"), "a large integer survives");
                } else {
                    assert_eq!(Some(message.payload), payload, "the payload's text is untouched");
                }
                // A dead letter of the original has one field, and so the defaults of the others.
                assert_eq!(message.message_id, message_id.unwrap_or_else(|| id.to_string()));
                assert_eq!(message.timestamp, timestamp.unwrap_or_default());
                assert_eq!(message.producer_id, producer.unwrap_or_else(|| "unknown".into()));
                assert_eq!(message.priority.to_string(), priority.unwrap_or_else(|| "2".into()));
            }
        }
    }
    assert_eq!((messages, init), (8, 1));
}

/// A consumer of the original's format, as its readers are written: every field by name, the payload through `json.loads`.
const CONSUMER: &str = r#"
import json, sys, datetime, redis
r = redis.Redis(unix_socket_path=sys.argv[1], decode_responses=True)
r.xgroup_create("stream:out", "group:dashboard", id="0", mkstream=True)
seen = 0
for _, entries in r.xreadgroup("group:dashboard", "c1", {"stream:out": ">"}, count=100):
    for entry_id, f in entries:
        assert list(f)[:7] == ["message_id", "payload", "priority", "timestamp", "producer_id", "retry_count", "max_retries"], list(f)
        payload = json.loads(f["payload"])
        assert isinstance(payload, dict) and len(f["message_id"]) == 36 and 1 <= int(f["priority"]) <= 4
        assert int(f["retry_count"]) == 0 and int(f["max_retries"]) == 3 and f["producer_id"]
        datetime.datetime.fromisoformat(f["timestamp"])
        r.xack("stream:out", "group:dashboard", entry_id)
        seen += 1
print(seen)
"#;

#[test]
fn events_that_we_write_are_read_by_a_redis_py_consumer_of_the_original_format() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    publish(&redis, "stream:in", (0..25).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    let _host = place.host(&redis, 1);
    wait_until("all outputs are there", || redis.number(&["XLEN", "stream:out"]) == 25);
    let socket = redis.url().replace("redis+unix://", "");
    let output =
        Command::new("python3").args(["-c", CONSUMER, &socket]).output().expect("python3 is installed: make setup");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "25", "{errors}");
}

#[test]
fn a_dead_letter_has_the_keys_that_both_of_the_originals_shapes_have() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    redis.cli(&["XADD", "stream:in", "*", "message_id", "m-1", "payload", r#"{"do":"reject"}"#, "odd", "\u{1}\u{2}"]);
    let _host = place.host(&redis, 1);
    wait_until("it is a dead letter", || redis.number(&["XLEN", "stream:dead_letter"]) == 1);
    let entry = redis.cli(&["XRANGE", "stream:dead_letter", "-", "+"]);
    let lines: Vec<&str> = entry.lines().collect();
    let field = |name: &str| lines.iter().position(|line| *line == name).map(|at| lines[at + 1]).unwrap_or_default();
    let view: Value = serde_json::from_str(field("payload")).unwrap();
    for key in ["original_stream", "original_message", "failed_at", "reason", "retry_count"] {
        assert!(!view[key].is_null(), "{key} is missing");
    }
    assert_eq!(view["original_message"]["message_id"], "m-1");
    assert_eq!(field("orig:payload"), r#"{"do":"reject"}"#);
    assert_eq!(field("orig:odd"), "\u{1}\u{2}");
}
