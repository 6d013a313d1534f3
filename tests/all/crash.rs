use std::path::Path;
use std::time::Duration;

use cofferdam_tests::checker::{Left, check, payload, unsettled};
use cofferdam_tests::{Host, Place, Redis, comes_true, program, program_with_mutants, publish};
use rustix::process::Signal;
use serde_json::Value;

/// A small generator of its own, so that a run can be repeated from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Three hosts share a stream under load. Twice a second one of them is killed and starts again at once; now and then
/// one is stopped for longer than its lease and goes on as a zombie, which is what a fence is for.
fn under_fire(program: &Path, environment: &[(&str, &str)], kills: u64, seed: u64) -> Left {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 2\ncrashes = 3\n[backoff]\nbase = \"100ms\"\n");
    let start = |number: usize| {
        let data = place.directory.path().join(format!("data{number}"));
        Host::start(program, &redis.url(), &data, &place.plugins(), environment)
    };
    let mut hosts: Vec<Host> = (0..3).map(start).collect();
    let mut random = Random(seed);
    let mut published = 0;
    let mut stopped: Option<(usize, std::time::Instant)> = None;
    let (mut killed, mut zombies) = (0, 0);
    for round in 0.. {
        if killed == kills {
            break;
        }
        publish(&redis, "stream:in", (published..published + 400).map(payload));
        published += 400;
        // Long enough for most hosts to have begun their work, and at any moment of it.
        std::thread::sleep(Duration::from_millis(200 + random.below(500)));
        if let Some((at, since)) = stopped
            && since.elapsed() > Duration::from_secs(4)
        {
            // It wakes with what it held, and goes on as if nothing had been: for this round it is left alone.
            hosts[at].signal(Signal::CONT);
            stopped = None;
            continue;
        }
        let victim = random.below(3) as usize;
        if stopped.is_some_and(|(at, _)| at == victim) {
            continue;
        }
        if stopped.is_none() && round % 2 == 1 && holds(&redis, &hosts[victim]) {
            hosts[victim].signal(Signal::STOP);
            stopped = Some((victim, std::time::Instant::now()));
            zombies += 1;
            continue;
        }
        killed += 1;
        std::mem::replace(&mut hosts[victim], start(victim)).kill();
    }
    if let Some((at, _)) = stopped {
        std::thread::sleep(Duration::from_secs(4));
        hosts[at].signal(Signal::CONT);
    }
    comes_true(Duration::from_secs(90), || unsettled(&redis) == 0);
    println!("{killed} hosts killed, {zombies} stopped for longer than their lease");
    check(&redis, published)
}

/// Whether a host has entries in its hands: only then is it worth stopping.
fn holds(redis: &Redis, host: &Host) -> bool {
    let report: Value = std::fs::read_to_string(host.data.join("run.json"))
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let Some(consumer) = report["consumer"].as_str().filter(|_| report["pid"] == host.pid()) else { return false };
    !redis.cli(&["XPENDING", "stream:in", "group:actor", "-", "+", "1", consumer]).is_empty()
}

#[test]
fn a_hundred_kills_under_load_lose_nothing_double_nothing_and_bury_no_innocent() {
    assert_eq!(under_fire(&program(), &[], 100, 1), Left::default());
}

#[test]
fn the_same_test_sees_doubles_when_the_fence_is_removed() {
    let left = under_fire(&program_with_mutants(), &[("COFFERDAM_MUTANT", "no-fence")], 40, 1);
    assert!(left.doubled > 0, "without the fence nothing was doubled: this test proves nothing");
}

#[test]
fn two_processes_share_the_load_and_each_does_a_part_of_it() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    let _hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    cofferdam_tests::wait_until("both are there", || {
        redis.cli(&["--raw", "KEYS", "cofferdam:host:*"]).lines().count() == 2
    });
    cofferdam_tests::wait_until("the group is there", || {
        redis.cli(&["XINFO", "GROUPS", "stream:in"]).contains("group:actor")
    });
    let total = 3_000;
    for chunk in 0..30 {
        publish(
            &redis,
            "stream:in",
            (chunk * 100..(chunk + 1) * 100).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":500}}"#)),
        );
    }
    cofferdam_tests::wait_until("all outputs are there", || redis.number(&["XLEN", "stream:out"]) >= total);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(redis.number(&["XLEN", "stream:out"]), total);
    cofferdam_tests::wait_until("both have reported their part", || {
        let keys = redis.cli(&["--raw", "KEYS", "cofferdam:host:*"]);
        let parts: Vec<u64> = keys
            .lines()
            .map(|key| {
                let report: Value = serde_json::from_str(&redis.cli(&["--raw", "GET", key])).unwrap_or_default();
                report["plugins"][0]["counts"]["committed"].as_u64().unwrap_or(0)
            })
            .collect();
        parts.len() == 2 && parts.iter().all(|part| *part > 100) && parts.iter().sum::<u64>() == total
    });
}

#[test]
fn a_stopping_host_finishes_or_gives_back_what_it_holds_and_charges_nothing() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    publish(&redis, "stream:in", (0..400).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":5000}}"#)));
    let first = place.host(&redis, 1);
    cofferdam_tests::wait_until("it is at work", || redis.number(&["XLEN", "stream:out"]) > 10);
    let took = first.stop();
    assert!(took < Duration::from_secs(6), "it took {took:?} to stop");
    let consumers = redis.cli(&["XINFO", "CONSUMERS", "stream:in", "group:actor"]);
    let _second = place.host(&redis, 2);
    cofferdam_tests::wait_until("the next host has done the rest", || redis.number(&["XLEN", "stream:out"]) == 400);
    assert_eq!(redis.number(&["HGET", "cofferdam:ledger:stream:in|group:actor", "retried"]), 0, "{consumers}");
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
}
