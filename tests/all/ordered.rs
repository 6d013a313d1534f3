//! `order = "key"` with real processes: messages of one key take effect in their order, over hosts that come, stop, freeze and die.

use std::collections::BTreeMap;
use std::time::Duration;

use cofferdam_model::EntryId;
use cofferdam_model::invariants::{KeyedOutput, outputs_in_order};
use cofferdam_tests::checker::{Left, check, full_length, payload, unsettled};
use cofferdam_tests::servers::{command, connection};
use cofferdam_tests::{Host, Place, Redis, comes_true, guest, publish, wait_until};
use rustix::process::Signal;
use serde_json::Value;

pub(crate) const LEDGER: &str = "cofferdam:ledger:stream:in|group:actor";

/// Puts the actor, with the order of `/key` kept.
pub(crate) fn put_ordered(place: &Place, more: &str) {
    let manifest = format!(
        "order = \"key\"\nemit = [\"stream:out\", \"stream:wrong_type\"]\n{more}[[subscribe]]\nstream = \"stream:in\"\nkey = \"/key\"\nstart = \"oldest\"\n"
    );
    place.put("actor", &guest("test/actor.wasm"), &manifest);
}

/// A payload with a key.
pub(crate) fn keyed(payload: &str, key: u64) -> String {
    format!(r#"{},"key":"k{key}"}}"#, payload.trim_end_matches('}'))
}

/// How many outputs stand behind one of a later message of their key.
pub(crate) fn out_of_order(url: &str, key_of: impl Fn(u64) -> u64) -> usize {
    let mut connection = connection(url).expect("the test's redis answers");
    let reply = command(&["XRANGE", "stream:out", "-", "+"]).query(&mut connection);
    let entries: Vec<(String, BTreeMap<String, String>)> = reply.expect("the outputs are a stream");
    let mut outputs: Vec<KeyedOutput> = entries
        .iter()
        .map(|(id, fields)| {
            let payload: Value = serde_json::from_str(&fields["payload"]).expect("an output is JSON");
            let source: EntryId =
                payload["src"].as_str().and_then(|src| src.parse().ok()).expect("it names its source");
            let key = key_of(payload["seq"].as_u64().expect("it is numbered"));
            KeyedOutput { lane: 0, key: u32::try_from(key).unwrap(), place: 0, at: id.parse().unwrap(), source }
        })
        .collect();
    outputs_in_order(&mut outputs).len()
}

fn owner(redis: &Redis) -> (String, u64) {
    (redis.cli(&["HGET", LEDGER, "owner"]), redis.number(&["HGET", LEDGER, "epoch"]))
}

/// The name by which Redis knows a host, once it runs.
pub(crate) fn consumer(host: &Host) -> Option<String> {
    let report: Value = serde_json::from_str(&std::fs::read_to_string(host.data.join("run.json")).ok()?).ok()?;
    (report["pid"] == host.pid()).then(|| report["consumer"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn the_order_of_each_key_is_kept_while_the_owners_of_the_lane_are_killed_and_frozen_under_load() {
    const KEYS: u64 = 16;
    let (redis, place) = (Redis::start(), Place::new());
    put_ordered(&place, "retries = 2\n[backoff]\nbase = \"100ms\"\n");
    let start = |number: usize| place.host(&redis, number);
    let mut hosts: Vec<Host> = (0..3).map(start).collect();
    let (mut published, mut killed, mut frozen) = (0, 0, 0);
    let rounds = if full_length() { 60 } else { 6 };
    let mut load = || {
        publish(&redis, "stream:in", (published..published + 100).map(|seq| keyed(&payload(seq), seq % KEYS)));
        published += 100;
        std::thread::sleep(Duration::from_millis(300));
        published
    };
    for round in 0..rounds {
        let before = owner(&redis).1;
        load();
        // The owner, in the middle of its work.
        wait_until("somebody owns the lane", || {
            let (owner, _) = owner(&redis);
            load();
            hosts.iter().any(|host| consumer(host).is_some_and(|name| name == owner))
        });
        let (name, _) = owner(&redis);
        let at = hosts.iter().position(|host| consumer(host).is_some_and(|consumer| consumer == name)).unwrap();
        if round % 3 == 2 {
            hosts[at].signal(Signal::STOP);
            wait_until("another host takes over from the frozen one", || load() > 0 && owner(&redis).1 > before);
            hosts[at].signal(Signal::CONT);
            frozen += 1;
        } else {
            hosts.remove(at).kill();
            hosts.insert(at, start(at));
            killed += 1;
            wait_until("another host takes over from the dead one", || load() > 0 && owner(&redis).0 != name);
        }
    }
    let published = load();
    assert!(comes_true(Duration::from_secs(120), || unsettled(&redis) == 0), "it does not come to rest");
    let outputs = redis.number(&["XLEN", "stream:out"]);
    println!(
        "{killed} owners killed, {frozen} frozen for longer than their lease; {published} messages of {KEYS} keys, {outputs} outputs, epoch {}",
        owner(&redis).1
    );
    assert_eq!(out_of_order(&redis.url(), |seq| seq % KEYS), 0, "outputs out of the order of their key");
    assert_eq!(check(&redis, published), Left::default());
}

#[test]
fn a_message_that_waits_for_its_retry_holds_up_its_key_and_no_other_and_a_graceful_stop_hands_over_at_once() {
    let (redis, place) = (Redis::start(), Place::new());
    put_ordered(&place, "retries = 5\n[backoff]\nbase = \"4s\"\nmax = \"4s\"\n");
    let first = place.host(&redis, 1);
    wait_until("it owns the lane", || owner(&redis).1 == 1);
    let _second = place.host(&redis, 2);
    let fails_once = r#"{"do":"trap-below","n":2,"seq":0}"#;
    let emits = |seq: u64| format!(r#"{{"do":"emit","seq":{seq}}}"#);
    let messages = [keyed(fails_once, 0)].into_iter().chain((1..20).map(|seq| keyed(&emits(seq), seq % 2)));
    publish(&redis, "stream:in", messages);
    // Ten of the other key pass while nine wait behind the one that is parked.
    wait_until("the other key is done", || redis.number(&["XLEN", "stream:out"]) == 10);
    assert_eq!(out_of_order(&redis.url(), |seq| seq % 2), 0);
    first.stop();
    let (name, epoch) = owner(&redis);
    wait_until("the next owner does the rest", || redis.number(&["XLEN", "stream:out"]) == 20);
    assert!(epoch >= 1, "{name}");
    assert_eq!(owner(&redis).1, 2, "handed over once");
    assert_eq!(out_of_order(&redis.url(), |seq| seq % 2), 0);
    assert_eq!(redis.number(&["HGET", LEDGER, "retried"]), 1, "the hand-over charges nothing");
}
