use std::time::Duration;

use cofferdam_tests::checker::{Left, check, full_length, payload, unsettled};
use cofferdam_tests::{Host, PATIENCE, Place, Redis, comes_true, program, publish, wait_until};
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

/// Three hosts share a stream under load. Twice a second one of them is killed and starts again at once; after every twentieth
/// one is stopped for longer than its lease and goes on as a zombie, which is what a fence is for.
fn under_fire(kills: u64, seed: u64) -> Left {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 2\ncrashes = 3\n[backoff]\nbase = \"100ms\"\n");
    let start = |number: usize| {
        let data = place.directory.path().join(format!("data{number}"));
        Host::start(&program(), &redis.url(), &data, &place.plugins(), &[])
    };
    let mut hosts: Vec<Host> = (0..3).map(start).collect();
    let mut random = Random(seed);
    let mut published = 0;
    let (mut killed, mut zombies) = (0, 0);
    while killed < kills {
        publish(&redis, "stream:in", (published..published + 400).map(payload));
        published += 400;
        // Long enough for most hosts to have begun their work, and at any moment of it.
        std::thread::sleep(Duration::from_millis(200 + random.below(500)));
        let victim = random.below(3) as usize;
        // The others are left alone while one is stopped, so that they take over what it holds; then it wakes with all of that
        // in its hands and goes on as if nothing had been.
        if zombies <= killed / 20 && holds(&redis, &hosts[victim]) {
            hosts[victim].signal(Signal::STOP);
            std::thread::sleep(Duration::from_secs(6));
            hosts[victim].signal(Signal::CONT);
            zombies += 1;
            continue;
        }
        killed += 1;
        // The next life begins when the last has ended: a dying process holds its data directory for a while yet.
        hosts.remove(victim).kill();
        hosts.insert(victim, start(victim));
    }
    let last = std::time::Instant::now();
    let taken_over = comes_true(PATIENCE, || held_by_the_dead(&redis, &hosts) == 0);
    let after = last.elapsed();
    comes_true(Duration::from_secs(90), || unsettled(&redis) == 0);
    println!("{killed} hosts killed, {zombies} stopped for longer than their lease");
    println!(
        "after the last of them, what the dead held was taken over: {taken_over}, within {after:?} (a lease is 2 s)"
    );
    check(&redis, published)
}

/// The consumer name of a host, once it has written it down.
fn consumer(host: &Host) -> Option<String> {
    let text = std::fs::read_to_string(host.data.join("run.json")).ok()?;
    let report: Value = serde_json::from_str(&text).ok()?;
    let name = report["consumer"].as_str()?.to_owned();
    (report["pid"] == host.pid()).then_some(name)
}

/// Whether a host has entries in its hands: only then is it worth stopping.
fn holds(redis: &Redis, host: &Host) -> bool {
    let Some(consumer) = consumer(host) else { return false };
    // Without the group this says an error.
    redis.cli(&["XPENDING", "stream:in", "group:actor", "-", "+", "1", &consumer]).contains(&consumer)
}

/// Entries in the hands of hosts that are no more.
fn held_by_the_dead(redis: &Redis, hosts: &[Host]) -> u64 {
    let living: Vec<String> = hosts.iter().filter_map(consumer).collect();
    let consumers = redis.cli(&["XINFO", "CONSUMERS", "stream:in", "group:actor"]);
    let lines: Vec<&str> = consumers.lines().collect();
    let of = |at: usize| Some((*lines.get(at + 1)?, lines.get(at + 3)?.parse::<u64>().ok()?));
    let all = lines.iter().enumerate().filter(|(_, line)| **line == "name").filter_map(|(at, _)| of(at));
    all.filter(|(name, _)| !name.starts_with('~') && !living.iter().any(|living| living == name))
        .map(|(_, pending)| pending)
        .sum()
}

#[test]
fn a_hundred_kills_under_load_lose_nothing_double_nothing_and_bury_no_innocent() {
    let kills = if full_length() { 1_000 } else { 100 };
    assert_eq!(under_fire(kills, 1), Left::default());
}

#[test]
fn two_processes_share_the_load_and_each_does_a_part_of_it() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    let _hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    wait_until("both are there", || redis.cli(&["--raw", "KEYS", "cofferdam:host:*"]).lines().count() == 2);
    wait_until("the group is there", || redis.cli(&["XINFO", "GROUPS", "stream:in"]).contains("group:actor"));
    let total = 3_000;
    for chunk in 0..30 {
        publish(
            &redis,
            "stream:in",
            (chunk * 100..(chunk + 1) * 100).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":500}}"#)),
        );
    }
    wait_until("all outputs are there", || redis.number(&["XLEN", "stream:out"]) >= total);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(redis.number(&["XLEN", "stream:out"]), total);
    wait_until("both have reported their part", || {
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
    stops_gracefully(Signal::TERM);
}

#[test]
fn a_host_whose_terminal_is_closed_stops_as_gracefully() {
    stops_gracefully(Signal::HUP);
}

#[test]
fn a_host_whose_log_nobody_reads_any_more_goes_on_and_stops_gracefully() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 0\n");
    let data = place.directory.path().join("data");
    let mut child = std::process::Command::new(program())
        .args(["run", "--redis", &redis.url(), "--data", &data.display().to_string()])
        .args(["--plugins", &place.plugins().display().to_string()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("it is at work", || {
        publish(&redis, "stream:in", std::iter::once(String::from(r#"{"do":"emit"}"#)));
        redis.number(&["XLEN", "stream:out"]) > 0
    });
    drop(child.stderr.take());
    // A trap is a line of its log.
    publish(&redis, "stream:in", (0..50).map(|seq| format!(r#"{{"do":"trap","seq":{seq}}}"#)));
    wait_until("every trap is a dead letter", || redis.number(&["XLEN", "stream:dead_letter"]) == 50);
    send(child.id(), Signal::TERM);
    assert!(child.wait().unwrap().success());
}

fn stops_gracefully(signal: Signal) {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    publish(&redis, "stream:in", (0..400).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":5000}}"#)));
    let first = place.host(&redis, 1);
    wait_until("it is at work", || redis.number(&["XLEN", "stream:out"]) > 10);
    let took = first.stop_by(signal);
    assert!(took < Duration::from_secs(6), "it took {took:?} to stop");
    let consumers = redis.cli(&["XINFO", "CONSUMERS", "stream:in", "group:actor"]);
    let _second = place.host(&redis, 2);
    wait_until("the next host has done the rest", || redis.number(&["XLEN", "stream:out"]) == 400);
    assert_eq!(redis.number(&["HGET", "cofferdam:ledger:stream:in|group:actor", "retried"]), 0, "{consumers}");
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
}

/// The process of a host that suspects run in, when there is one.
fn apart(host: &Host) -> Option<u32> {
    let pids = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_apart = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("run-apart"))
    };
    let parent = host.pid().to_string();
    pids.filter(|&pid| stat(pid).get(1) == Some(&parent)).find(is_apart)
}

/// Numbers of `/proc/<pid>/stat` after the name: the state is the first.
fn stat(pid: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.map(str::to_owned).collect()
}

fn send(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn whoever_ends_the_process_of_suspects_buries_no_innocent() {
    let (redis, place) = (Redis::start(), Place::new());
    // One death of a process is enough for the dead letters.
    place.put_actor("crashes = 1\nconcurrency = 1\n[limits]\ndeadline = \"60s\"\n");
    let outputs = |count: u64| {
        wait_until("it is handled", || redis.number(&["XLEN", "stream:out"]) == count);
        assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
    };
    let slow = |seq: u64| {
        publish(&redis, "stream:in", [format!(r#"{{"do":"emit","seq":{seq},"busy_us":4000000}}"#)].into_iter())
    };
    let first = place.host(&redis, 1);
    slow(0);
    wait_until("the first host has it", || holds(&redis, &first));
    first.kill();
    // A suspect now, which runs apart; there somebody sends the signal of Ctrl-C or of a service manager to all of a host's processes.
    let second = place.host(&redis, 2);
    let ticks = |pid: u32| stat(pid).get(11).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0);
    wait_until("it runs apart", || apart(&second).is_some_and(|pid| ticks(pid) >= 100));
    let process = apart(&second).unwrap();
    let group = stat(process).get(2).cloned();
    send(process, Signal::TERM);
    outputs(1);
    // The next process waits for the next suspect, and is killed meanwhile.
    let idle = apart(&second).unwrap();
    assert_ne!(idle, process);
    send(idle, Signal::KILL);
    second.signal(Signal::STOP);
    let third = place.host(&redis, 3);
    slow(1);
    wait_until("the third host has it", || holds(&redis, &third));
    third.kill();
    second.signal(Signal::CONT);
    outputs(2);
    assert_ne!(apart(&second), Some(idle));
    assert_eq!(group, Some(process.to_string()), "Ctrl-C in a terminal reaches it");
}
