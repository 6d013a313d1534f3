//! Hosts that come and go as service managers, upgrades and copied machines make them.

use std::time::Duration;

use cofferdam_tests::checker::{Left, check, fails_at_first, is_poison, payload, unsettled};
use cofferdam_tests::{Host, Place, Redis, cofferdam, publish, wait_until};
use serde_json::Value;

use crate::operators::{Outputs, emit, is_full, ledger};

#[test]
fn rolling_restarts_under_load_charge_nothing_lose_nothing_and_end_within_their_grace() {
    let (redis, place) = (Redis::start(), Place::new());
    // The ledger counts a retry for each failure that payloads cause, and for nothing else.
    place.put_actor("retries = 2\n[backoff]\nbase = \"100ms\"\n");
    let mut hosts: Vec<Host> = (0..3).map(|number| place.host(&redis, number)).collect();
    let (mut published, mut longest) = (0, Duration::ZERO);
    for restart in 0..if is_full() { 200 } else { 15 } {
        for _ in 0..3 {
            publish(&redis, "stream:in", (published..published + 100).map(payload));
            published += 100;
            std::thread::sleep(Duration::from_millis(100));
        }
        // The next one comes before this one goes, under the same name and on another data directory.
        let next = place.host(&redis, 3 + restart);
        longest = longest.max(std::mem::replace(&mut hosts[restart % 3], next).stop());
    }
    wait_until("all is settled", || unsettled(&redis) == 0);
    let caused: u64 = (0..published).map(|seq| if is_poison(seq) { 2 } else { u64::from(fails_at_first(seq)) }).sum();
    let (retried, released) = (ledger(&redis, "retried"), ledger(&redis, "released"));
    println!(
        "{retried} retries, {caused} caused by payloads, {released} given back; the longest stop took {longest:?}"
    );
    assert_eq!(check(&redis, published), Left::default());
    assert_eq!(retried, caused, "a restart was charged to a message");
    // The tests' hosts have a grace of 5 s.
    assert!(longest < Duration::from_secs(6), "a host took {longest:?} to stop");
}

#[test]
fn two_hosts_of_one_name_share_the_work_and_doctor_says_so() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    let mut hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    let keys = || redis.cli(&["--raw", "KEYS", "cofferdam:host:*"]);
    wait_until("both are there", || keys().lines().count() == 2);
    let keys: Vec<String> = keys().lines().map(str::to_owned).collect();
    let name = |key: &String| key.split('/').next().unwrap().to_owned();
    assert_eq!(name(&keys[0]), name(&keys[1]), "two processes of one machine have one name");
    wait_until("the group is there", || redis.cli(&["XINFO", "GROUPS", "stream:in"]).contains("group:actor"));
    for part in 0..20 {
        publish(&redis, "stream:in", (part * 100..(part + 1) * 100).map(emit));
        std::thread::sleep(Duration::from_millis(20));
    }
    wait_until("all is settled", || unsettled(&redis) == 0);
    let outputs = Outputs::of(&redis);
    assert_eq!((outputs.missing(0..2_000).len(), outputs.doubled(), ledger(&redis, "retried")), (0, 0, 0));
    wait_until("each has done a part", || {
        keys.iter().all(|key| {
            let report: Value = serde_json::from_str(&redis.cli(&["--raw", "GET", key])).unwrap_or_default();
            report["plugins"][0]["counts"]["committed"].as_u64().unwrap_or(0) > 0
        })
    });
    let doctor = cofferdam(&["doctor", "--redis", &redis.url()]);
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let warning = doctor.lines().find(|line| line.contains("host names")).unwrap_or_default();
    println!("doctor: {warning}");
    assert!(warning.starts_with("warn") && warning.contains("one machine's name"), "{doctor}");
    assert!(hosts.iter_mut().all(Host::lives));
}
