//! What several hosts do to one another's plugins, and how it is shown.

use std::time::Duration;

use cofferdam_tests::{
    Host, Place, Redis, approve, cofferdam, comes_true, errors, guest, program, publish, wait_until,
};
use serde_json::Value;

use crate::operators::emit;

fn host_with(place: &Place, redis: &Redis, environment: &[(&str, &str)]) -> Host {
    Host::start(&program(), &redis.url(), &place.directory.path().join("data1"), &place.plugins(), environment)
}

/// What a verb writes, whatever comes of it.
fn shown(redis: &Redis, verb: &[&str]) -> String {
    String::from_utf8_lossy(&cofferdam(&[verb, &["--redis", &redis.url()]].concat()).stdout).into_owned()
}

/// What `status` says of a plugin.
fn status(redis: &Redis, plugin: &str) -> Value {
    let document: Value = serde_json::from_str(&shown(redis, &["status", "--json"])).unwrap_or_default();
    let plugins = document["plugins"].as_array().cloned().unwrap_or_default();
    plugins.into_iter().find(|row| row["plugin"] == plugin).unwrap_or_default()
}

fn runs(host: &Host, plugin: &str) {
    wait_until("it runs", || host.log().contains(&format!("live plugin=\"{plugin}\"")));
}

#[test]
fn status_adds_up_what_a_plugin_reads_on_each_host_and_says_that_they_differ() {
    let redis = Redis::start();
    let (one, other) = (Place::new(), Place::new());
    let manifest = |streams: &str| format!("subscribe = [{streams}]\nemit = [\"stream:out\"]\nstart = \"oldest\"\n");
    // What the first was allowed covers the others.
    one.put("actor", &guest("test/actor.wasm"), &manifest("\"stream:in\", \"stream:more\", \"stream:else\""));
    let first = host_with(&one, &redis, &[]);
    runs(&first, "actor");
    one.put("actor", &guest("test/actor.wasm"), &manifest("\"stream:in\", \"stream:more\""));
    other.put("actor", &guest("test/actor.wasm"), &manifest("\"stream:more\", \"stream:else\""));
    let second = host_with(&other, &redis, &[]);
    runs(&second, "actor");
    wait_until("both say that they read two streams", || {
        let rows: Vec<Value> = serde_json::from_str(&shown(&redis, &["plugins", "--json"])).unwrap_or_default();
        rows.len() == 2
            && rows.iter().all(|row| row["plugin"]["subscribe"].as_array().is_some_and(|list| list.len() == 2))
    });
    publish(&redis, "stream:in", (0..10).map(emit));
    publish(&redis, "stream:more", (10..30).map(emit));
    publish(&redis, "stream:else", (30..70).map(emit));
    wait_until("all is handled", || redis.number(&["XLEN", "stream:out"]) == 70);
    wait_until("all of it is counted", || status(&redis, "actor")["settled"]["committed"] == 70);
    let row = status(&redis, "actor");
    assert_eq!((&row["state"], &row["hosts"]), (&Value::from("mixed"), &Value::from(2)), "{row}");
    let text = shown(&redis, &["status"]);
    assert!(text.contains("cofferdam plugins"), "nothing says where to look: {text}");
}

#[test]
fn a_plugin_with_another_group_or_another_order_on_another_host_is_said_by_both() {
    let redis = Redis::start();
    let (one, other) = (Place::new(), Place::new());
    let keyed = "emit = [\"stream:out\"]\n[[subscribe]]\nstream = \"stream:keyed\"\nkey = \"/key\"\n";
    one.put_actor("");
    one.put("orderly", &guest("test/actor.wasm"), &format!("order = \"key\"\n{keyed}"));
    other.put_actor("group = \"group:other\"\n");
    other.put("orderly", &guest("test/actor.wasm"), keyed);
    let hosts = [host_with(&one, &redis, &[]), host_with(&other, &redis, &[])];
    let patience = Duration::from_secs(60);
    for words in ["each message of stream:in is handled by both", "messages of stream:keyed overtake one another"] {
        for host in &hosts {
            let is_said = || host.log().lines().any(|line| line.contains("ERROR") && line.contains(words));
            assert!(comes_true(patience, is_said), "nothing says {words:?}");
        }
        wait_until("`plugins` says so", || shown(&redis, &["plugins"]).matches(words).count() == 2);
    }
    assert_eq!(status(&redis, "actor")["group"], "group:actor group:other");
}

#[test]
fn a_circle_over_two_hosts_waits_for_whoever_closes_it() {
    let redis = Redis::start();
    let (one, other) = (Place::new(), Place::new());
    one.put("there", &guest("test/actor.wasm"), "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\n");
    let _first = host_with(&one, &redis, &[]);
    wait_until("one way is open", || status(&redis, "there")["state"] == "running");
    other.put("back", &guest("test/actor.wasm"), "subscribe = [\"stream:out\"]\nemit = [\"stream:in\"]\n");
    let second = host_with(&other, &redis, &[]);
    wait_until("the way back waits, and the circle is shown", || {
        let text = shown(&redis, &["plugins"]);
        text.contains("+ closes a circle: back → stream:in → there → stream:out → back")
    });
    assert!(!second.log().contains("live plugin=\"back\""), "it ran before anybody allowed it");
    approve(&second, &redis, "back", "it ends by itself");
    runs(&second, "back");
}

#[test]
fn doctor_says_which_hosts_have_another_lease_or_keep_another_part_of_a_stream() {
    let redis = Redis::start();
    let (one, other) = (Place::new(), Place::new());
    let first = host_with(&one, &redis, &[]);
    let checks = || -> Vec<(String, String)> {
        let report: Value = serde_json::from_str(&shown(&redis, &["doctor", "--json"])).unwrap_or_default();
        let checks = report["checks"].as_array().cloned().unwrap_or_default();
        let of = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
        let of_settings = checks.iter().filter(|check| check["check"] == "host settings");
        of_settings.map(|check| (of(check, "health"), of(check, "detail"))).collect()
    };
    let same = host_with(&other, &redis, &[]);
    wait_until("both are known", || checks().iter().any(|(health, _)| health == "ok"));
    same.stop();
    let settings = [("COFFERDAM__DELIVERY__LEASE", "9s"), ("COFFERDAM__STREAMS__stream:in__KEEP", "500")];
    let second = host_with(&other, &redis, &settings);
    wait_until("both are known", || checks().len() == 2);
    let names = [&first, &second].map(|host| crate::ordered::consumer(host).expect("it runs"));
    for ((health, detail), [at_first, at_second]) in
        checks().into_iter().zip([["lease = 2s", "lease = 9s"], ["keep = 10000000", "keep = 500"]])
    {
        assert_eq!(health, "warn", "{detail}");
        for words in [format!("{at_first} on {}", names[0]), format!("{at_second} on {}", names[1])] {
            assert!(detail.contains(&words), "{words:?} is not in {detail:?}");
        }
    }
}

#[test]
fn one_damaged_record_is_named_and_hides_no_other_plugin() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let second = "subscribe = [\"stream:more\"]\nemit = [\"stream:out\"]\nstart = \"oldest\"\n";
    place.put("second", &guest("test/actor.wasm"), second);
    let _host = host_with(&place, &redis, &[]);
    publish(&redis, "stream:in", (0..10).map(emit));
    publish(&redis, "stream:more", (10..17).map(emit));
    wait_until("all is counted", || {
        ["actor", "second"].map(|plugin| status(&redis, plugin)["settled"]["committed"].clone()) == [10, 7]
    });
    let record = "cofferdam:ledger:stream:in|group:actor";
    redis.cli(&["SET", record, "x"]);
    for verb in ["status", "streams"] {
        let output = cofferdam(&[verb, "--redis", &redis.url()]);
        let (text, error) = (String::from_utf8_lossy(&output.stdout), errors(&output));
        assert_eq!(output.status.code(), Some(1), "{verb}: {error}");
        assert!(error.contains(&format!("{record} has the wrong type")), "{verb}: {error}");
        assert!(text.contains('?') && text.contains(" 7 "), "{verb} hides what it can tell: {text}");
    }
    assert_eq!(status(&redis, "second")["settled"]["committed"], 7);
    assert!(errors(&cofferdam(&["verify", "--redis", &redis.url()])).contains(record));
    let doctor = shown(&redis, &["doctor"]);
    assert!(doctor.contains(&format!("redis-cli RENAME '{record}'")), "{doctor}");
}
