//! Limits that keep Redis from filling up: what stops when they are reached, what is said, and what makes it go on.

use std::path::PathBuf;
use std::time::Duration;

use cofferdam_tests::{Host, Place, QUICK, Redis, cofferdam, comes_true, errors, guest, program, publish, wait_until};

use crate::operators::emit;

fn host_with(place: &Place, redis: &Redis, environment: &[(&str, &str)]) -> Host {
    let data = place.directory.path().join("data1");
    Host::start(&program(), &redis.url(), &data, &place.plugins(), environment)
}

/// Whether an error of the host's log holds these words.
fn is_said(host: &Host, words: &str) -> bool {
    host.log().lines().any(|line| line.contains("ERROR") && line.contains(words))
}

/// What `plugins` shows.
fn plugins(redis: &Redis) -> String {
    String::from_utf8_lossy(&cofferdam(&["plugins", "--redis", &redis.url()]).stdout).into_owned()
}

/// What a plugin that may not read leaves unread.
fn reads_nothing(redis: &Redis) {
    let before = redis.number(&["XLEN", "stream:out"]);
    publish(redis, "stream:in", (90_000..90_020).map(emit));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(redis.number(&["XLEN", "stream:out"]), before, "it went on reading");
}

#[test]
fn a_plugin_whose_dead_letters_reach_their_quota_is_paused_until_they_are_discarded_or_sent_back() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 0\n");
    let host = host_with(&place, &redis, &[("COFFERDAM__LIMITS__DEAD_LETTERS", "64KiB")]);
    let pad = "x".repeat(2_000);
    publish(&redis, "stream:in", (0..40).map(|seq| format!(r#"{{"do":"reject","seq":{seq},"pad":"{pad}"}}"#)));
    wait_until("it is said", || is_said(&host, "its dead letters take"));
    wait_until("`plugins` says so", || {
        let shown = plugins(&redis);
        shown.contains("paused") && shown.contains("dlq discard")
    });
    reads_nothing(&redis);
    let counted = redis.number(&["HGET", "cofferdam:ledger:stream:in|group:actor", "dead_bytes"]);
    let size = redis.number(&["MEMORY", "USAGE", "stream:dead_letter", "SAMPLES", "0"]);
    println!("40 dead letters: {counted} bytes counted, {size} in memory");
    assert!(counted > 64 << 10 && counted < size * 2, "{counted} bytes are counted of {size}");

    let letters = redis.cli(&["XRANGE", "stream:dead_letter", "-", "+"]);
    let ids: Vec<&str> = letters.lines().filter(|line| line.len() > 14 && line.ends_with("-0")).collect();
    let first = ids.first().expect("a dead letter has an id");
    let redis_url = redis.url();
    let act = |verb: &[&str]| {
        let output = cofferdam(&[verb, &["--yes", "--reason", "a test", "--redis", &redis_url]].concat());
        assert!(output.status.success(), "{verb:?}: {}", errors(&output));
    };
    act(&["dlq", "discard", "--all"]);
    assert!(!first.is_empty());
    assert_eq!(redis.cli(&["HGET", "cofferdam:ledger:stream:in|group:actor", "dead_bytes"]), "0");
    wait_until("it goes on by itself", || redis.number(&["XLEN", "stream:out"]) == 20);

    // Sending back takes the bytes out as well; the letter that comes of it is counted anew.
    publish(&redis, "stream:in", (100..110).map(|seq| format!(r#"{{"do":"reject","seq":{seq},"pad":"{pad}"}}"#)));
    wait_until("they are dead", || redis.number(&["XLEN", "stream:dead_letter"]) == 10);
    let sum = || -> i64 {
        let of = |stream: &str| {
            let field = redis.cli(&["HGET", &format!("cofferdam:ledger:{stream}|group:actor"), "dead_bytes"]);
            field.parse::<i64>().unwrap_or(0)
        };
        of("stream:in") + of("cofferdam:redrive:group:actor")
    };
    let before = sum();
    act(&["dlq", "redrive", "--all"]);
    wait_until("they are dead again", || redis.number(&["XLEN", "stream:dead_letter"]) == 10);
    let after = sum();
    println!("10 sent back and dead again: {before} bytes counted before, {after} after");
    assert!(after > before / 2 && after < before * 2, "{before} before, {after} after");
    act(&["dlq", "discard", "--all"]);
    assert_eq!(sum(), 0);
    let verified = cofferdam(&["verify", "--redis", &redis.url()]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

#[test]
fn a_stream_above_its_byte_budget_stops_those_who_write_to_it_until_there_is_room() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let host = host_with(&place, &redis, &[("COFFERDAM__STREAMS__stream:out__BYTES", "100KiB")]);
    publish(&redis, "stream:in", (0..1_000).map(emit));
    wait_until("it is said", || is_said(&host, "which it writes to, takes"));
    wait_until("`plugins` says so", || plugins(&redis).contains("let it be trimmed or raise the budget"));
    wait_until("what it had read is finished", || redis.number(&["XLEN", "stream:out"]) == 1_000);
    reads_nothing(&redis);

    let config: PathBuf = place.directory.path().join("publish.toml");
    let budget = "[streams.\"stream:out\"]\nbytes = \"100KiB\"\n";
    std::fs::write(&config, QUICK.replace("[streams.\"stream:out\"]\n", budget)).unwrap();
    let events = place.directory.path().join("events.jsonl");
    std::fs::write(&events, "{\"a\":1}\n").unwrap();
    let (config, events) = (config.display().to_string(), events.display().to_string());
    let send =
        || cofferdam(&["publish", "--stream", "stream:out", &events, "--config", &config, "--redis", &redis.url()]);
    let refused = send();
    println!("publish: {}", errors(&refused).trim());
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors(&refused).contains("more than its budget of 100.0 KiB"), "{}", errors(&refused));

    redis.cli(&["XTRIM", "stream:out", "MAXLEN", "0"]);
    wait_until("it goes on by itself", || redis.number(&["XLEN", "stream:out"]) == 20);
    assert!(send().status.success());
}

#[test]
fn one_group_of_two_plugins_on_two_hosts_is_said_by_both_until_it_ends() {
    let redis = Redis::start();
    let (one, other) = (Place::new(), Place::new());
    one.put_actor("");
    let second = "group = \"group:actor\"\nsubscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\n";
    other.put("second", &guest("test/actor.wasm"), second);
    let hosts = [host_with(&one, &redis, &[]), host_with(&other, &redis, &[])];
    let patience = Duration::from_secs(60);
    for (host, words) in hosts.iter().zip(["second on host", "actor on host"]) {
        assert!(comes_true(patience, || is_said(host, words)), "nothing says {words:?}");
    }
    wait_until("`plugins` says so", || plugins(&redis).contains("each takes the other's messages"));
    std::fs::remove_file(other.plugins().join("second.wasm")).unwrap();
    let is_over = || !plugins(&redis).contains("each takes the other's messages");
    assert!(comes_true(patience, is_over), "it stands after it has ended");
    let said = hosts[0].log().matches("second on host").count();
    assert_eq!(said, 1, "it is said once");
}
