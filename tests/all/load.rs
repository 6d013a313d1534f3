//! What little there is to do costs little: an outage behind a plugin, parked entries, fleets with nothing to do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cofferdam_tests::{Host, Place, Redis, comes_true, guest, program, publish, wait_until};

use crate::operators::{PARKED, emit, held_by, is_full, is_settled, ledger};

#[test]
fn a_night_without_what_is_behind_a_plugin_leaves_no_dead_letter() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("[backoff]\nbase = \"200ms\"\nfactor = 2\nmax = \"2s\"\n");
    let mut host = place.host(&redis, 1);
    wait_until("the group is there", || host.log().contains("created the group"));
    let seconds: u64 = if is_full() { 600 } else { 20 };
    let began = Instant::now();
    let now_ms = redis.cli(&["TIME"]).lines().next().unwrap().parse::<u64>().unwrap() * 1_000;
    let until = now_ms + seconds * 1_000 + 2_000;
    let mut published = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        let down = |seq: u64| format!(r#"{{"do":"down-until","until_ms":{until},"seq":{seq}}}"#);
        publish(&redis, "stream:in", (published..published + 100).map(down));
        published += 100;
        std::thread::sleep((Duration::from_millis(published)).saturating_sub(began.elapsed()));
    }
    let during = redis.number(&["XLEN", "stream:dead_letter"]);
    comes_true(Duration::from_secs(120), || is_settled(&redis));
    println!(
        "{published} messages in {seconds} s, {during} dead letters before the end of the outage, {} in all, {} outputs, {} retries",
        redis.number(&["XLEN", "stream:dead_letter"]),
        redis.number(&["XLEN", "stream:out"]),
        ledger(&redis, "retried")
    );
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
    assert_eq!(redis.number(&["XLEN", "stream:out"]), published);
    assert!(host.lives());
}

/// The processor time that a server has used, in seconds.
fn processor(redis: &Redis) -> f64 {
    let info = redis.cli(&["INFO", "cpu"]);
    let of = |name: &str| -> f64 {
        info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or_default()
    };
    of("used_cpu_user:") + of("used_cpu_sys:")
}

/// How often each command was called; those of scripts count like any other.
fn calls(redis: &Redis) -> BTreeMap<String, u64> {
    let info = redis.cli(&["INFO", "commandstats"]);
    let of = |line: &str| -> Option<(String, u64)> {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
    };
    info.lines().filter_map(of).collect()
}

fn calls_in(redis: &Redis, time: Duration) -> BTreeMap<String, u64> {
    let before = calls(redis);
    std::thread::sleep(time);
    let mut after = calls(redis);
    after.iter_mut().for_each(|(name, count)| *count -= before.get(name).copied().unwrap_or(0));
    after.retain(|name, count| *count > 0 && name != "info");
    after
}

#[test]
fn a_hundred_thousand_parked_entries_cost_redis_next_to_nothing() {
    let (redis, place) = (Redis::start(), Place::new());
    redis.cli(&["XGROUP", "CREATE", "stream:in", "group:actor", "0", "MKSTREAM"]);
    let group = "100000";
    publish(&redis, "stream:in", (0..100_000).map(emit));
    // Parked as hosts do it, for the longest that there is: nothing comes due while this test looks.
    redis.cli(&["XREADGROUP", "GROUP", "group:actor", PARKED, "COUNT", group, "STREAMS", "stream:in", ">"]);
    place.put_actor("");
    let lease = [("COFFERDAM__DELIVERY__LEASE", "30s")];
    let start = |number: usize| {
        let data = place.directory.path().join(format!("data{number}"));
        Host::start(&program(), &redis.url(), &data, &place.plugins(), &lease)
    };
    let _hosts = [start(1), start(2)];
    wait_until("both are there", || redis.cli(&["--raw", "KEYS", "cofferdam:host:*"]).lines().count() == 2);
    std::thread::sleep(Duration::from_secs(3));
    let (began, before) = (Instant::now(), processor(&redis));
    let sweeps = calls_in(&redis, Duration::from_secs(if is_full() { 120 } else { 21 }));
    let share = (processor(&redis) - before) / began.elapsed().as_secs_f64() * 100.0;
    println!("100,000 parked, 2 hosts: {share:.2} % of a processor for Redis, calls {sweeps:?}");
    assert!(sweeps.get("xpending").is_some_and(|count| *count >= 4), "nobody swept: this test proves nothing");
    assert_eq!(held_by(&redis, PARKED), 100_000);
    assert!(share < 5.0, "{share:.2} %");
}

#[test]
fn an_idle_fleet_leaves_redis_in_peace() {
    let (redis, place) = (Redis::start(), Place::new());
    for name in ["one", "two", "three", "four"] {
        let manifest = format!("subscribe = [\"stream:{name}\"]\nemit = [\"stream:out\"]\nstart = \"oldest\"\n");
        place.put(name, &guest("test/actor.wasm"), &manifest);
    }
    let lease = [("COFFERDAM__DELIVERY__LEASE", "30s")];
    let start = |number: usize| {
        let data = place.directory.path().join(format!("data{number}"));
        Host::start(&program(), &redis.url(), &data, &place.plugins(), &lease)
    };
    let hosts = [start(1), start(2)];
    for host in &hosts {
        wait_until("all four run", || host.log().matches("live plugin=").count() == 4);
    }
    std::thread::sleep(Duration::from_secs(2));
    let seconds = 15;
    let idle = calls_in(&redis, Duration::from_secs(seconds));
    let per_host = idle.values().sum::<u64>() as f64 / seconds as f64 / 2.0;
    println!("2 hosts, 4 plugins, idle: {per_host:.1} commands a second for each host: {idle:?}");
    assert!(per_host < 20.0, "{per_host:.1} commands a second: {idle:?}");
}
