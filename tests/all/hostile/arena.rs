//! A real host with a real Redis, a good plugin that is fed at a steady pace, and one hostile guest after the other beside it.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cofferdam_model::ReasonCode;
use cofferdam_streams::Store;
use cofferdam_streams::dead_letters::StoredLetter;
use cofferdam_tests::checker::full_length;
use cofferdam_tests::{Host, Place, Redis, approve, comes_true, guest, guests, wait_until};
use redis::Commands;
use redis::streams::StreamInfoGroupsReply;

use super::{Entry, Expect, Guest};

/// Between two messages for the good plugin.
const PACE: Duration = Duration::from_millis(4);
/// What memory may differ by when a host has come to rest.
const REST_PERCENT: u64 = 10;
/// What the engine keeps warm by design, beyond what it has at first: 8 slots of 4 MiB (`host/sandbox/src/engine.rs`).
const WARM_KIB: u64 = 32 * 1024;

/// Rounds of every guest before memory is measured: each of the engine's warm slots then holds what it is allowed to keep.
const WARM_ROUNDS: u32 = 3;

/// What one guest did, for the table.
struct Seen {
    /// How long its calls took, the longest.
    took_us: u64,
    /// The most memory that an instance of it had.
    guest_bytes: u64,
    /// The most that the host took while it ran, beyond what it had before.
    host_kib: u64,
}

/// Runs the guests of these entries beside a good plugin, and asserts what must be true of all of them.
pub(crate) async fn run(name: &str, entries: &[Entry]) {
    let (redis, place) = (Redis::start(), Place::new());
    put_good(&place, "good");
    for guest in entries.iter().flat_map(|entry| entry.guests).filter(|guest| runs(guest)) {
        put(&place, guest);
    }
    let mut host = place.host(&redis, 1);
    let store = redis.store().await;
    let mut connection = connect(&redis);
    wait_until("the good plugin is live", || rest(&mut connection, "stream:good_in", "group:good").is_some());
    for guest in entries.iter().flat_map(|entry| entry.guests).filter(|guest| runs(guest)) {
        let (stream, group) = (format!("stream:{}", guest.name), format!("group:{}", guest.name));
        if guest.name.ends_with("cycle-b") {
            // It closes a circle: only the limit of hops stands against that once somebody has approved it.
            approve(&host, &redis, guest.name, "to see what stops it");
        }
        wait_until(&format!("{group} is live"), || rest(&mut connection, &stream, &group).is_some());
    }

    let feeder = Feeder::start(&redis, "good");
    std::thread::sleep(Duration::from_millis(if full_length() { 10_000 } else { 1_500 }));
    let calm = feeder.sent.load(Ordering::SeqCst);
    // The first call of a plugin takes memory that is kept for the next ones: what is compared is what comes after it.
    // So does the first file that is refused, and what is dear to compile stays loaded.
    let mut judged = std::collections::BTreeMap::new();
    for guest in entries.iter().flat_map(|entry| entry.guests) {
        match guest.expect {
            Expect::Refused(step, text) => drop(refused(&place, "warm", guest, step, text)),
            Expect::NotWhole => {}
            Expect::Compiles => drop(judged.insert(guest.name, compiled(&place, guest))),
            Expect::Fault(_) | Expect::Faults(_) | Expect::OneIn(..) | Expect::Handled => {
                for _ in 0..WARM_ROUNDS {
                    provoke(&store, &mut connection, guest, guest.messages).await;
                }
            }
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let before_kib = memory_kib(&host, "VmRSS");

    let mut table = String::new();
    for entry in entries {
        let mut seen = Seen { took_us: 0, guest_bytes: 0, host_kib: 0 };
        for guest in entry.guests {
            match guest.expect {
                Expect::Refused(step, text) => seen.took_us = refused(&place, guest.name, guest, step, text),
                Expect::NotWhole => seen.took_us = refused(&place, guest.name, guest, "whole file", "sha256"),
                Expect::Compiles => seen.took_us = judged.get(guest.name).copied().unwrap_or_default(),
                Expect::Fault(_) | Expect::Faults(_) | Expect::OneIn(..) | Expect::Handled => {
                    rest_memory(&host);
                    let rss_kib = memory_kib(&host, "VmRSS");
                    let rounds = if full_length() { 10 } else { 1 };
                    for _ in 0..rounds {
                        let letters = provoke(&store, &mut connection, guest, guest.messages).await;
                        judge(guest, guest.messages, &letters);
                        note(&mut seen, &letters);
                    }
                    seen.host_kib = seen.host_kib.max(memory_kib(&host, "VmHWM").saturating_sub(rss_kib));
                }
            }
            assert!(host.lives(), "the host died of {}", guest.name);
        }
        line(&mut table, entry, &seen);
    }

    let waves = feeder.stop();
    wait_until("the good plugin has handled everything", || {
        rest(&mut connection, "stream:good_in", "group:good") == Some(0)
    });
    let outputs: u64 = redis.number(&["XLEN", "stream:good_out"]);
    assert_eq!(outputs, waves, "results of the good plugin are missing or doubled");
    let (calm_ms, beside_ms) = latencies(&redis, calm);
    let before_and_after = (before_kib, settled_kib(&host, before_kib));
    println!(
        "{name}: {waves} messages of the good plugin all handled; its p99 {calm_ms} ms alone and {beside_ms} ms beside them; \
         the host has {} KiB before and {} KiB after",
        before_and_after.0, before_and_after.1
    );
    print!("{table}");
    write_table(name, &table);
    assert!(
        before_and_after.1 <= at_rest_kib(before_kib),
        "the host keeps memory: {} KiB, and {before_kib} KiB before",
        before_and_after.1
    );
    let log = host.log();
    assert!(
        !log.contains('\u{1b}') && !log.contains('\u{7}') && !log.contains('\u{202e}'),
        "raw bytes of a guest in the log"
    );
    assert!(!log.lines().any(|line| line.starts_with("2026-11-24T00:00:00Z")), "a forged line in the log");
    // A measurement, so only where there is time to make it a good one.
    if full_length() {
        assert!(beside_ms <= calm_ms.max(2) * 2, "p99 of the good plugin: {calm_ms} ms alone, {beside_ms} ms beside");
    }
}

/// Whether it becomes a plugin that runs.
fn runs(guest: &Guest) -> bool {
    matches!(guest.expect, Expect::Fault(_) | Expect::Faults(_) | Expect::OneIn(..) | Expect::Handled)
}

pub(crate) fn put_good(place: &Place, name: &str) {
    let manifest = format!("subscribe = [\"stream:{name}_in\"]\nemit = [\"stream:{name}_out\"]\nstart = \"oldest\"\n");
    place.put(name, &guest("test/actor.wasm"), &manifest);
}

fn manifest(guest: &Guest) -> String {
    let retries = if guest.manifest.contains("retries") { "" } else { "retries = 0\n" };
    format!(
        "subscribe = [\"stream:{}\"]\nemit = [\"{}\"]\nstart = \"oldest\"\n{retries}{}\n[limits]\ndeadline = \"200ms\"\n",
        guest.name, guest.emit, guest.manifest
    )
}

pub(crate) fn put(place: &Place, guest: &Guest) {
    place.put(guest.name, &guests::build(guest.name), &manifest(guest));
}

pub(crate) fn connect(redis: &Redis) -> redis::Connection {
    redis::Client::open(redis.url()).and_then(|client| client.get_connection()).expect("the test's redis answers")
}

/// What a group has not finished: pending and not yet read. `None` when there is no such group.
pub(crate) fn rest(connection: &mut redis::Connection, stream: &str, group: &str) -> Option<usize> {
    let groups: StreamInfoGroupsReply = connection.xinfo_groups(stream).ok()?;
    let found = groups.groups.into_iter().find(|found| found.name == group)?;
    Some(found.pending + found.lag.unwrap_or(1))
}

/// Sends a guest messages, waits until they have ended, and gives back its new dead letters. A message has its place as number,
/// one after the other as far as there are codes.
async fn provoke(store: &Store, connection: &mut redis::Connection, guest: &Guest, messages: u32) -> Vec<StoredLetter> {
    let (stream, group) = (format!("stream:{}", guest.name), format!("group:{}", guest.name));
    let numbers = if let Expect::Faults(codes) = guest.expect { codes.len() as u32 } else { messages };
    let last: Option<String> = redis::cmd("XREVRANGE")
        .arg("stream:dead_letter")
        .arg("+")
        .arg("-")
        .arg("COUNT")
        .arg(1)
        .query::<Vec<(String, Vec<String>)>>(connection)
        .ok()
        .and_then(|entries| entries.into_iter().next())
        .map(|(id, _)| id);
    for number in 0..numbers {
        let payload = format!("{{\"n\":{}}}", number % 10);
        let _: String = connection.xadd(&stream, "*", &[("payload", payload)]).expect("the test's redis answers");
    }
    let from = last.map_or_else(|| String::from("-"), |id| format!("({id}"));
    let cycle = matches!(guest.expect, Expect::Fault(ReasonCode::Loop));
    let mine = |letters: Vec<StoredLetter>| -> Vec<StoredLetter> {
        let family = guest.name.split('-').next().unwrap_or(guest.name);
        letters
            .into_iter()
            .filter(|letter| letter.plugin == guest.name || cycle && letter.plugin.starts_with(family))
            .collect()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let letters = mine(store.dead_letters(&from, "+", 10_000).await.expect("the test's redis answers"));
        let through =
            if cycle { letters.len() >= messages as usize } else { rest(connection, &stream, &group) == Some(0) };
        if through {
            // What ended between the two looks.
            return mine(store.dead_letters(&from, "+", 10_000).await.expect("the test's redis answers"));
        }
        assert!(Instant::now() < deadline, "{} has not ended: {} dead letters", guest.name, letters.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn judge(guest: &Guest, messages: u32, letters: &[StoredLetter]) {
    let codes: Vec<&str> = letters.iter().map(|letter| letter.code.as_str()).collect();
    let reasons: Vec<&str> = letters.iter().map(|letter| letter.reason.as_str()).collect();
    let name = guest.name;
    match guest.expect {
        Expect::Fault(code) => assert_eq!(codes, vec![code.as_str(); messages as usize], "{name}: {reasons:?}"),
        Expect::Faults(wanted) => {
            let payload = |letter: &StoredLetter| {
                let field = letter.original_fields.iter().find(|(name, _)| name == b"payload");
                field.and_then(|(_, value)| serde_json::from_slice::<serde_json::Value>(value).ok()).unwrap_or_default()
            };
            let number = |letter: &StoredLetter| payload(letter)["n"].as_u64().unwrap_or(u64::MAX);
            let mut found: Vec<(u64, &str)> = letters.iter().map(|one| (number(one), one.code.as_str())).collect();
            found.sort_unstable();
            let wanted: Vec<(u64, &str)> = (0..).zip(wanted.iter().map(|code| code.as_str())).collect();
            assert_eq!(found, wanted, "{name}: {reasons:?}");
        }
        Expect::OneIn(many, code) => {
            // How many of the instance's messages came before is not known, so one more or less.
            let expected = (messages / many) as usize;
            assert!(codes.iter().all(|found| *found == code.as_str()), "{name}: {reasons:?}");
            assert!(codes.len().abs_diff(expected) <= 1, "{name}: {} of {messages} failed", codes.len());
        }
        Expect::Handled => assert!(codes.is_empty(), "{name}: {codes:?} {reasons:?}"),
        Expect::Refused(..) | Expect::NotWhole | Expect::Compiles => {}
    }
    for letter in letters {
        assert!(letter.reason.len() <= 4_096 && letter.log_tail.len() <= 128 * 1024, "{name}: an endless dead letter");
    }
}

fn note(seen: &mut Seen, letters: &[StoredLetter]) {
    for attempt in letters.iter().filter_map(|letter| letter.attempts.as_array()).flatten() {
        seen.took_us = seen.took_us.max(attempt["took_us"].as_u64().unwrap_or(0));
        seen.guest_bytes = seen.guest_bytes.max(attempt["memory_bytes"].as_u64().unwrap_or(0));
    }
}

/// Drops a file that must be refused, and waits until the file beside it says so; how long that took, in microseconds.
fn refused(place: &Place, name: &str, guest: &Guest, step: &str, text: &str) -> u64 {
    let wasm = guests::build(guest.name);
    // One refusal after the other under one name would not be told apart.
    let name = if name == guest.name { name.to_owned() } else { format!("{name}-{}", guest.name) };
    let began = Instant::now();
    let file = |end: &str| place.plugins().join(format!("{name}{end}"));
    if matches!(guest.expect, Expect::NotWhole) {
        let whole = cofferdam_sandbox::Digest::of(b"the bytes that were meant");
        fs::write(file(".wasm"), &wasm).expect("the folder can be written");
        fs::write(file(".toml"), format!("sha256 = \"{whole}\"\n{}", manifest(guest)))
            .expect("the folder can be written");
    } else {
        place.put(&name, &wasm, &manifest(guest));
    }
    let said = || fs::read_to_string(file(".status.txt")).unwrap_or_default();
    let told = |said: &str| said.contains(step) && said.contains(text) && !said.contains(": running");
    assert!(comes_true(Duration::from_secs(60), || told(&said())), "{name} was not refused for {text:?}: {}", said());
    let took = began.elapsed();
    for end in [".wasm", ".toml", ".status.txt"] {
        let _ = fs::remove_file(file(end));
    }
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// Drops a file that is dear to compile; how long it took until it ran, in microseconds.
fn compiled(place: &Place, guest: &Guest) -> u64 {
    let began = Instant::now();
    put(place, guest);
    let told = place.plugins().join(format!("{}.status.txt", guest.name));
    let said = || fs::read_to_string(&told).unwrap_or_default();
    wait_until(&format!("{} runs", guest.name), || said().contains(": running"));
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Sets the peak of the host's memory back to what it has now.
fn rest_memory(host: &Host) {
    let _ = fs::write(format!("/proc/{}/clear_refs", host.pid()), "5");
}

/// A size of the host's memory, in KiB.
pub(crate) fn memory_kib(host: &Host, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// The most that a host may have when all is over that had so much before.
fn at_rest_kib(before_kib: u64) -> u64 {
    before_kib + before_kib * REST_PERCENT / 100 + WARM_KIB
}

/// The host's memory when it has come down to what it was, or after the time that its threads take to end.
pub(crate) fn settled_kib(host: &Host, before_kib: u64) -> u64 {
    comes_true(Duration::from_secs(20), || memory_kib(host, "VmRSS") <= at_rest_kib(before_kib));
    memory_kib(host, "VmRSS")
}

/// Feeds a good plugin, one message at a time, until it is told to stop.
pub(crate) struct Feeder {
    pub(crate) sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Feeder {
    pub(crate) fn start(redis: &Redis, name: &str) -> Feeder {
        let mut connection = connect(redis);
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, told, name) = (sent.clone(), stop.clone(), name.to_owned());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                let seq = counted.load(Ordering::SeqCst);
                let payload = format!(r#"{{"do":"emit","seq":{seq},"to":"stream:{name}_out"}}"#);
                let added: redis::RedisResult<String> =
                    connection.xadd(format!("stream:{name}_in"), "*", &[("payload", payload)]);
                added.expect("the test's redis answers");
                counted.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(PACE);
            }
        });
        Feeder { sent, stop, thread }
    }

    /// How many it sent.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the feeder does not fail");
        self.sent.load(Ordering::SeqCst)
    }
}

/// The p99 of the good plugin in ms, from entry to output: of its first `calm` messages, and of the others.
fn latencies(redis: &Redis, calm: u64) -> (u64, u64) {
    let mut took = latencies_of(redis, "good");
    let beside = took.split_off(usize::try_from(calm).unwrap_or(usize::MAX).min(took.len()));
    (p99(took), p99(beside))
}

/// How long each message of a good plugin took, in ms by the clock of Redis, in the order of its outputs.
pub(crate) fn latencies_of(redis: &Redis, name: &str) -> Vec<u64> {
    let outputs: Vec<(String, Vec<String>)> =
        connect(redis).xrange_all(format!("stream:{name}_out")).expect("outputs can be read");
    let ms = |id: &str| id.split('-').next().and_then(|ms| ms.parse::<u64>().ok()).unwrap_or(0);
    let source = |fields: &[String]| {
        let payload = fields.iter().position(|field| field == "payload").and_then(|at| fields.get(at + 1));
        let read: Option<serde_json::Value> = payload.and_then(|text| serde_json::from_str(text).ok());
        read.and_then(|json| json["src"].as_str().map(ms)).unwrap_or(0)
    };
    outputs.iter().map(|(id, fields)| ms(id).saturating_sub(source(fields))).collect()
}

/// Of some times the one that 99 in 100 are not above.
pub(crate) fn p99(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1 + times.len() / 100)).copied().unwrap_or(0)
}

fn line(table: &mut String, entry: &Entry, seen: &Seen) {
    let mut ends: Vec<String> = Vec::new();
    for guest in entry.guests {
        let end = match guest.expect {
            Expect::Fault(code) => format!("`{code}`"),
            Expect::Faults(codes) => {
                let mut names: Vec<String> = codes.iter().map(|code| format!("`{code}`")).collect();
                names.dedup();
                names.join(", ")
            }
            Expect::OneIn(many, code) => format!("`{code}`, one in {many}"),
            Expect::Handled => String::from("handled"),
            Expect::Refused("", _) => String::from("refused"),
            Expect::Refused(step, _) => format!("refused: {step}"),
            Expect::NotWhole => String::from("refused: whole file"),
            Expect::Compiles => String::from("runs"),
        };
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    let time = if seen.took_us == 0 { String::from("–") } else { format!("{:.1}", seen.took_us as f64 / 1_000.0) };
    let mib =
        |bytes: u64| if bytes == 0 { String::from("–") } else { format!("{:.1}", bytes as f64 / f64::from(1 << 20)) };
    let _ = writeln!(
        table,
        "| {} | {} | {} | {} | {time} | {} | {} |",
        entry.number,
        entry.what,
        entry.stopped_by,
        ends.join(", "),
        mib(seen.guest_bytes),
        mib(seen.host_kib * 1_024),
    );
}

/// Leaves the lines for `make sandbox-table`, which says where.
fn write_table(name: &str, table: &str) {
    if let Some(folder) = std::env::var_os("COFFERDAM_SANDBOX_TABLE") {
        fs::write(std::path::Path::new(&folder).join(name), table).expect("the folder can be written");
    }
}
