//! What happens to the promises when the ground under Redis gives way: power, memory, disk, clock.
//!
//! The long variants run with COFFERDAM_CHAOS=full.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_model::{Delivery, EntryId, Event, Message, ReasonCode, Token, Verdict};
use cofferdam_streams::{
    Decided, Decoded, Evidence, LaneKeys, RawEntry, Retention, SettleContext, Settled, Start, Store, StreamError,
    Subscription, TakeFor, VersionStamp, decode,
};
use cofferdam_tests::checker::{is_poison, outputs_of, payload};
use cofferdam_tests::picture::Picture;
use cofferdam_tests::producer::{Producer, Promise};
use cofferdam_tests::servers::{LEASE, Server, full, shim, skipped, two_hosts};
use cofferdam_tests::{Host, Place, Redis, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::operators::OPERATOR;

/// How long everything may take to come to rest on a busy machine.
const REST: Duration = Duration::from_secs(60);
/// What Redis documents for `appendfsync everysec` is a second, and up to another when a sync is slow; the rest is for the
/// machine.
const EVERYSEC_LOSS_MAX: Duration = Duration::from_secs(5);

/// What became of a series of power cuts.
#[derive(Default)]
struct Cuts {
    accepted: usize,
    lost: BTreeSet<u64>,
    oldest: Duration,
}

/// Two hosts and a producer at work on a Redis whose machine loses power again and again. Each time its disk is looked at
/// before it is started again.
fn power_cuts(fsync: &str, rounds: u32) -> Result<Cuts, String> {
    let place = Place::new();
    let library = shim("power_cut", place.directory.path())?;
    let mut server = Server::new(&["--appendonly", "yes", "--appendfsync", fsync]).with(&library, &[]);
    server.start();
    if !server.has_loaded(&library) {
        return Err(String::from("LD_PRELOAD is not honoured here"));
    }
    let _hosts = two_hosts(&place, &server.url());
    let (mut cuts, mut expected, mut next) = (Cuts::default(), BTreeSet::new(), 0);
    for round in 0..rounds {
        let before = outputs(&server);
        let producer = Producer::start(&server.url(), next, Promise::Reply);
        wait_until("the hosts are at work", || outputs(&server) > before);
        // At another moment between two syncs each time.
        std::thread::sleep(Duration::from_millis(1_000 + u64::from(round) * 370 % 1_000));
        let cut = Instant::now();
        server.kill();
        let promised = producer.stop();
        next = promised.next;
        cuts.accepted += promised.accepted.len();
        expected.extend(promised.accepted.keys());
        let disk = picture_of_disk(&server);
        assert_eq!(disk.torn(), Vec::<String>::new(), "the disk holds a part of a commit");
        let lost = disk.missing(&expected);
        for seq in &lost {
            // An entry of an earlier round was safe since then: it must not go now.
            let accepted = promised.accepted.get(seq).expect("only entries of the last seconds are lost");
            cuts.oldest = cuts.oldest.max(cut.saturating_duration_since(*accepted));
        }
        expected.retain(|seq| !lost.contains(seq));
        cuts.lost.extend(lost);
        server.start();
    }
    let rest = Picture::at_rest(&server.url(), REST);
    rest.assert_good();
    assert!(rest.missing(&expected).is_empty(), "accepted entries went without a power cut");
    println!(
        "appendfsync {fsync}: {rounds} power cuts, {} of {} accepted entries lost, the oldest accepted {:?} before",
        cuts.lost.len(),
        cuts.accepted,
        cuts.oldest
    );
    Ok(cuts)
}

fn outputs(server: &Server) -> u64 {
    server.ask(&["XLEN", "stream:out"])
}

fn picture_of_disk(server: &Server) -> Picture {
    let mut copy = server.copy();
    copy.start();
    Picture::of(&copy.url())
}

#[test]
fn a_power_cut_takes_nothing_that_was_accepted_when_redis_syncs_always() {
    match power_cuts("always", if full() { 30 } else { 3 }) {
        Ok(cuts) => assert_eq!(cuts.lost, BTreeSet::new()),
        Err(why) => skipped(&why),
    }
}

#[test]
fn a_power_cut_takes_two_seconds_at_most_and_never_half_a_commit_when_redis_syncs_every_second() {
    match power_cuts("everysec", if full() { 30 } else { 3 }) {
        Ok(cuts) => {
            assert!(
                !cuts.lost.is_empty(),
                "nothing was lost: these are no power cuts, and the test beside proves nothing"
            );
            assert!(
                cuts.oldest < EVERYSEC_LOSS_MAX,
                "entries were lost that had been accepted {:?} before",
                cuts.oldest
            );
        }
        Err(why) => skipped(&why),
    }
}

/// The numbers of the messages whose commit is cut: plain ones, one with a single output, and one for the dead letters.
const CUT: [u64; 5] = [0, 1, 7, 499, 2];

fn lane() -> LaneKeys {
    LaneKeys::new("stream:in", "group:actor")
}

async fn publish_and_fetch(store: &Store, numbers: &[u64]) -> Vec<RawEntry> {
    store.ensure_group(&lane(), Start::Oldest).await.unwrap();
    for seq in numbers {
        let mut add = redis::cmd("XADD");
        add.arg("stream:in").arg("*").arg("payload").arg(payload(*seq));
        let _: String = store.query(&add).await.unwrap();
    }
    store.fetch_new(&lane(), "me", 100).await.unwrap()
}

fn message_of(entry: RawEntry) -> Message {
    let id = entry.id;
    match decode(entry, id, &Subscription::plain("stream:in")) {
        Decoded::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

fn events_of(message: &Message) -> Vec<Event> {
    let seq = serde_json::from_str::<Value>(&message.payload).unwrap()["seq"].as_u64().unwrap();
    let one = |index| Event {
        stream: "stream:out".into(),
        payload: format!(r#"{{"seq":{seq},"index":{index}}}"#),
        priority: None,
        key: None,
        attributes: Vec::new(),
    };
    (0..outputs_of(seq)).map(one).collect()
}

fn decided(message: Message, token: Token, verdict: Verdict) -> Decided {
    let delivery = Delivery { entry: message.id, token, message, attempts: Vec::new(), releases: 0, redrives: 0 };
    let version = VersionStamp { plugin: "actor".into(), digest: "0".repeat(64), config: "0".repeat(64) };
    Decided { delivery, verdict, version: Arc::new(version), evidence: Evidence::default() }
}

fn context(lane: &LaneKeys) -> SettleContext<'_> {
    SettleContext { lane, consumer: "me", now_ms: 1, now: "2026-01-01T00:00:00.000000", tenure: None }
}

async fn settle(store: &Store, batch: &[Decided]) -> Result<Vec<Settled>, StreamError> {
    let mut results = vec![None; batch.len()];
    store.settle(&mut context(&lane()), batch, &mut results).await?;
    Ok(results.into_iter().map(|result| result.expect("each has a result")).collect())
}

/// The verdict that the actor's answer leads to in the end.
fn verdict_of(message: &Message) -> Verdict {
    let events = events_of(message);
    if events.is_empty() {
        return Verdict::DeadLetter { code: ReasonCode::Trap, text: "the payload says trap".into() };
    }
    Verdict::Commit { events }
}

fn append_only_file(server: &Server) -> PathBuf {
    let files = fs::read_dir(server.directory.join("appendonlydir")).unwrap().flatten().map(|entry| entry.path());
    files.into_iter().find(|path| path.to_string_lossy().ends_with(".incr.aof")).unwrap()
}

/// Writes something, then starts a Redis on every prefix of what that added to the append-only file. How many prefixes held
/// nothing of it, how many all, and what was torn in the others.
fn cut_at_every_byte(server: &mut Server, before: u64, every: usize) -> (usize, usize, Vec<String>) {
    let file = append_only_file(server);
    let after = fs::metadata(&file).unwrap().len();
    server.kill();
    let mut positions: BTreeSet<u64> = (before..=after).step_by(every).collect();
    // The ends, where the last command becomes whole.
    positions.extend(after - 8..=after);
    let (mut nothing, mut all, mut torn) = (0, 0, Vec::new());
    for &position in &positions {
        let mut cut = server.copy();
        let file = fs::OpenOptions::new().write(true).open(append_only_file(&cut)).unwrap();
        file.set_len(position).unwrap();
        cut.start();
        let picture = Picture::of(&cut.url());
        assert_eq!(picture.input.len(), CUT.len());
        torn.extend(picture.torn().into_iter().map(|what| format!("cut at {position}: {what}")));
        match picture.unsettled() {
            0 => all += 1,
            left if left == CUT.len() as u64 => nothing += 1,
            left => torn.push(format!("cut at {position}: {left} of {} are not settled", CUT.len())),
        }
    }
    println!(
        "a commit of {} bytes cut at {} places: {nothing} times nothing of it, {all} times all, {} torn",
        after - before,
        positions.len(),
        torn.len()
    );
    (nothing, all, torn)
}

fn server_with_append_only_file() -> Server {
    let arguments = ["--appendonly", "yes", "--appendfsync", "always", "--aof-load-truncated", "yes"];
    let mut server = Server::new(&arguments);
    server.start();
    server
}

#[tokio::test]
async fn a_commit_cut_at_any_byte_of_the_append_only_file_is_there_with_its_acks_or_not_at_all() {
    let mut server = server_with_append_only_file();
    let store = Store::connect(&server.url()).await.unwrap();
    let entries = publish_and_fetch(&store, &CUT).await;
    let before = fs::metadata(append_only_file(&server)).unwrap().len();
    let batch: Vec<Decided> = entries
        .into_iter()
        .map(|entry| {
            let message = message_of(entry);
            let verdict = verdict_of(&message);
            decided(message, Token(1), verdict)
        })
        .collect();
    let settled = settle(&store, &batch).await.unwrap();
    assert!(settled.iter().all(|one| matches!(one, Settled::Committed { .. } | Settled::Dead(_))), "{settled:?}");
    let (nothing, all, torn) = cut_at_every_byte(&mut server, before, if full() { 1 } else { 73 });
    assert_eq!(torn, Vec::<String>::new());
    assert!(nothing > 10 && all > 0, "the cuts did not go through the commit");
}

#[tokio::test]
async fn the_same_cuts_tear_a_commit_of_separate_commands() {
    let mut server = server_with_append_only_file();
    let store = Store::connect(&server.url()).await.unwrap();
    let entries = publish_and_fetch(&store, &CUT).await;
    let before = fs::metadata(append_only_file(&server)).unwrap().len();
    for entry in entries {
        let message = message_of(entry);
        let mut pipe = redis::pipe();
        for event in events_of(&message) {
            pipe.cmd("XADD").arg(&event.stream).arg("*").arg("payload").arg(&event.payload);
        }
        pipe.cmd("XACK").arg("stream:in").arg("group:actor").arg(message.id.to_string());
        let _: Vec<redis::Value> = store.pipeline(&pipe).await.unwrap();
    }
    let (_, _, torn) = cut_at_every_byte(&mut server, before, 20);
    assert!(torn.iter().any(|what| what.contains("is not acknowledged, and has 1 outputs")), "{torn:?}");
}

/// The consumer of a host that is stopped with entries in its hands: then it is sure to leave some behind.
fn stopped_with_entries(host: &Host, url: &str) -> String {
    let mut found = None;
    wait_until("a host is caught with entries in its hands", || {
        host.signal(Signal::STOP);
        let report: Value = serde_json::from_str(&fs::read_to_string(host.data.join("run.json")).unwrap_or_default())
            .unwrap_or_default();
        let consumer = report["consumer"].as_str().unwrap_or_default().to_owned();
        if !consumer.is_empty() && held_by(url, &consumer) > 2 {
            found = Some(consumer);
            return true;
        }
        host.signal(Signal::CONT);
        false
    });
    found.expect("it was waited for")
}

fn held_by(url: &str, consumer: &str) -> usize {
    let mut connection = cofferdam_tests::servers::connection(url).expect("the server answers");
    let words = ["XPENDING", "stream:in", "group:actor", "-", "+", "1000", consumer];
    let reply: Vec<redis::Value> = cofferdam_tests::servers::command(&words).query(&mut connection).unwrap();
    reply.len()
}

/// Steps the clock of Redis's machine under load, at the moment at which one of the two hosts dies.
fn clock_steps_by(seconds: i64) {
    let place = Place::new();
    let library = match shim("clock_step", place.directory.path()) {
        Ok(library) => library,
        Err(why) => return skipped(&why),
    };
    let step = place.directory.path().join("step");
    fs::write(&step, "0").unwrap();
    let mut server = Server::new(&["--appendonly", "no"]).with(&library, &[("CLOCK_STEP_FILE", &step)]);
    server.start();
    if !server.has_loaded(&library) {
        return skipped("LD_PRELOAD is not honoured here");
    }
    let url = server.url();
    let [first, _second] = two_hosts(&place, &url);
    let producer = Producer::start(&url, 0, Promise::Reply);
    wait_until("the hosts are at work", || outputs(&server) > 100);
    let dead = stopped_with_entries(&first, &url);
    let time = |server: &Server| server.ask::<(i64, i64)>(&["TIME"]).0;
    let before = time(&server);
    // A rename, so that no reading finds the file empty.
    fs::write(step.with_extension("new"), seconds.to_string()).unwrap();
    fs::rename(step.with_extension("new"), &step).unwrap();
    let stepped = time(&server) - before;
    assert!((stepped - seconds).abs() < 10, "the clock of redis went by {stepped} s");
    let died = Instant::now();
    first.kill();
    let left_behind = held_by(&url, &dead);
    let recovered = cofferdam_tests::comes_true(Duration::from_secs(30), || held_by(&url, &dead) == 0);
    let took = died.elapsed();
    std::thread::sleep(Duration::from_secs(1));
    let promised = producer.stop();
    let rest = Picture::at_rest(&url, if recovered { REST } else { Duration::from_secs(1) });
    println!(
        "clock of redis by {seconds:+} s: {left_behind} entries of the dead host, taken over: {recovered}, after {took:?} ({:?} leases)",
        took.as_secs_f64() / LEASE.as_secs_f64()
    );
    assert!(recovered, "nobody took over what the dead host held");
    rest.assert_good();
    assert!(rest.missing(&promised.accepted.keys().copied().collect()).is_empty());
    // Two leases are what is promised; the rest is for a busy machine.
    assert!(took < 2 * LEASE + Duration::from_secs(4), "it took {took:?} to take over what the dead host held");
}

#[test]
fn a_clock_of_redis_that_steps_an_hour_forward_costs_no_message_anything() {
    clock_steps_by(3_600);
}

#[test]
fn a_clock_of_redis_that_steps_two_hours_back_costs_no_message_anything() {
    clock_steps_by(-7_200);
}

#[test]
fn a_redis_at_its_memory_limit_stops_the_work_and_nobody_pays_for_it() {
    let place = Place::new();
    let mut server = Server::new(&["--appendonly", "no"]);
    server.start();
    let url = server.url();
    let _hosts = two_hosts(&place, &url);
    let producer = Producer::start(&url, 0, Promise::Reply);
    wait_until("the hosts are at work", || outputs(&server) > 100);
    let info: String = server.ask(&["INFO", "memory"]);
    let used: u64 = info.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok()).unwrap();
    let limit = |bytes: u64| server.ask::<String>(&["CONFIG", "SET", "maxmemory", &bytes.to_string()]);
    limit(used + 100_000);
    wait_until("the limit is reached", || {
        let info: String = server.ask(&["INFO", "errorstats"]);
        info.contains("errorstat_OOM")
    });
    std::thread::sleep(2 * LEASE);
    let during = Picture::of(&url);
    assert_eq!(during.torn(), Vec::<String>::new());
    limit(0);
    let outputs_then = outputs(&server);
    wait_until("the hosts go on", || outputs(&server) > outputs_then + 100);
    let promised = producer.stop();
    let rest = Picture::at_rest(&url, REST);
    println!(
        "at the memory limit for {:?}: {} entries accepted, {} refused ({:?}), {} unsettled at that time",
        2 * LEASE,
        promised.accepted.len(),
        promised.refused,
        promised.error,
        during.unsettled()
    );
    assert!(promised.refused > 0, "nothing was refused: the limit was never reached");
    rest.assert_good();
    assert!(rest.missing(&promised.accepted.keys().copied().collect()).is_empty());
}

#[tokio::test]
async fn a_batch_that_is_refused_half_way_goes_on_where_it_stopped() {
    let redis = Redis::start();
    let store = redis.store().await;
    let lane = lane();
    let messages: Vec<Message> = publish_and_fetch(&store, &[0, 1]).await.into_iter().map(message_of).collect();
    let retry = Verdict::RetryAfter { delay: Duration::ZERO, code: ReasonCode::Trap, text: "trap".into() };
    let [first, second] = [messages[0].clone(), messages[1].clone()];
    let commit = verdict_of(&first);
    let batch = [decided(first, Token(1), commit), decided(second, Token(1), retry)];
    let mut cx = context(&lane);
    let mut results = vec![None; 2];
    let outputs = || redis.number(&["XLEN", "stream:out"]);

    // What commits is refused, and what is parked waits for it.
    assert_eq!(redis.cli(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
    store.settle(&mut cx, &batch, &mut results).await.unwrap_err();
    assert_eq!((outputs(), results.as_slice()), (0, &[None, None][..]));
    assert_eq!(redis.cli(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    store.settle(&mut cx, &batch, &mut results).await.unwrap();
    assert!(matches!(results[0], Some(Settled::Committed { .. })), "{results:?}");
    assert_eq!(results[1], Some(Settled::Retried(ReasonCode::Trap)));

    // The other way round: what is done is not taken for a lost lease.
    let me = TakeFor { consumer: "me", plugin: "actor", now: "now", epoch: None };
    let (_, taken) = store.take_due(&lane, &me, 10).await.unwrap();
    let third = publish_and_fetch(&store, &[2]).await.remove(0);
    let message = message_of(third);
    let commit = verdict_of(&message);
    let again = Verdict::Release { delay: Duration::ZERO };
    let batch =
        [decided(message, Token(1), commit), decided(message_of(taken[0].entry.clone()), taken[0].token, again)];
    let mut results = vec![None; 2];
    assert_eq!(redis.cli(&["ACL", "SETUSER", "default", "-xclaim"]), "OK");
    store.settle(&mut cx, &batch, &mut results).await.unwrap_err();
    let committed = results[0];
    assert!(matches!(committed, Some(Settled::Committed { .. })) && results[1].is_none(), "{results:?}");
    assert_eq!(redis.cli(&["ACL", "SETUSER", "default", "+xclaim"]), "OK");
    store.settle(&mut cx, &batch, &mut results).await.unwrap();
    assert_eq!(results, [committed, Some(Settled::Released)]);
}

#[tokio::test]
async fn at_the_memory_limit_each_script_runs_or_is_refused_as_it_must_and_a_refused_one_writes_nothing() {
    let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
    let store = redis.store().await;
    let mut messages: Vec<Message> =
        publish_and_fetch(&store, &[0, 1, 2, 3]).await.into_iter().map(message_of).collect();
    let buried = messages.remove(0);
    let dead = || Verdict::DeadLetter { code: ReasonCode::Trap, text: "trap".into() };
    let settled = settle(&store, &[decided(buried, Token(1), dead())]).await.unwrap();
    assert_eq!(settled, [Settled::Dead(ReasonCode::Trap)]);
    let letter = store.dead_letters("-", "+", 1).await.unwrap().remove(0);
    redis.cli(&["XGROUP", "CREATECONSUMER", "stream:in", "group:actor", "idle"]);
    // Everything there is: all keys, and what the group holds.
    let everything = || (redis.cli(&["DEBUG", "DIGEST"]), redis.cli(&["XPENDING", "stream:in", "group:actor"]));
    assert_eq!(redis.cli(&["CONFIG", "SET", "maxmemory", "1"]), "OK");

    let (one, two) = (messages.remove(0), messages.remove(0));
    let before = everything();
    let refused = |name: &str, error: StreamError| {
        assert!(matches!(error, StreamError::WritesRefused { .. }), "{name}: {error}");
        assert_eq!(everything(), before, "{name} was refused and wrote");
    };
    let commit = decided(one.clone(), Token(1), verdict_of(&one));
    refused("settle (commit)", settle(&store, &[commit]).await.unwrap_err());
    refused("settle (dead letter)", settle(&store, &[decided(one.clone(), Token(1), dead())]).await.unwrap_err());
    let retention = Retention { entries: 1, ..Retention::default() };
    refused("trim", store.trim("stream:in", &retention, 1).await.unwrap_err());
    refused("redrive", store.redrive(&letter, "group:actor", &OPERATOR).await.unwrap_err());
    refused("drop_consumer", store.drop_consumer("stream:in", "group:actor", "idle").await.unwrap_err());

    let lost = store.heartbeat(&lane(), "me", &[(one.id, Token(1)), (two.id, Token(1))]).await.unwrap();
    assert_eq!(lost, Vec::<EntryId>::new(), "heartbeat");
    let verdict = Verdict::RetryAfter { delay: Duration::ZERO, code: ReasonCode::Trap, text: "trap".into() };
    let settled = settle(&store, &[decided(one.clone(), Token(1), verdict)]).await.unwrap();
    assert_eq!(settled, [Settled::Retried(ReasonCode::Trap)], "park");
    let release = Verdict::Release { delay: Duration::ZERO };
    let settled = settle(&store, &[decided(two.clone(), Token(1), release)]).await.unwrap();
    assert_eq!(settled, [Settled::Released], "park (release)");
    let me = TakeFor { consumer: "me", plugin: "actor", now: "now", epoch: None };
    let (found, taken) = store.take_due(&lane(), &me, 10).await.unwrap();
    assert_eq!((found, taken.len()), (2, 2), "take");
    assert_eq!(taken[0].attempts.len(), 1);
    assert!(store.discard(&letter, &OPERATOR).await.unwrap(), "discard, which gives memory back");

    assert_eq!(redis.cli(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    let verdict = verdict_of(&one);
    let settled = settle(&store, &[decided(one, taken[0].token, verdict)]).await.unwrap();
    assert_eq!(settled, [Settled::Committed { outputs: 2 }], "the same commit when there is memory again");
}

/// A small file system of its own, which can be full.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Result<Self, String> {
        fs::create_dir(at).unwrap();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "cofferdam-tests"])
            .arg(at)
            .output()
            .map_err(|error| format!("no mount: {error}"))?;
        if output.status.success() {
            return Ok(SmallDisk(at.to_owned()));
        }
        Err(format!("no tmpfs can be mounted (it needs root): {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Leaves only so many bytes.
    fn fill_but(&self, bytes: u64) {
        let facts = rustix::fs::statvfs(&self.0).unwrap();
        let free = facts.f_bavail * facts.f_frsize;
        fs::write(self.0.join("ballast"), vec![1; usize::try_from(free.saturating_sub(bytes)).unwrap()]).unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that a failing test leaves behind may still have files there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The disk under the append-only file becomes full under load. What it holds then is what a restart finds.
fn full_disk(fsync: &str) {
    let place = Place::new();
    let disk = match SmallDisk::mount(&place.directory.path().join("disk")) {
        Ok(disk) => disk,
        Err(why) => return skipped(&why),
    };
    let mut server = Server::at(&disk.0, &["--appendonly", "yes", "--appendfsync", fsync]);
    server.start();
    let url = server.url();
    let _hosts = two_hosts(&place, &url);
    let producer = Producer::start(&url, 0, Promise::Reply);
    wait_until("the hosts are at work", || outputs(&server) > 100);
    disk.fill_but(150_000);
    let misconf = |server: &Server| {
        let mut connection = cofferdam_tests::servers::connection(&server.url())?;
        let info: String = cofferdam_tests::servers::command(&["INFO", "errorstats"]).query(&mut connection).ok()?;
        info.contains("errorstat_MISCONF").then_some(())
    };
    wait_until("the disk is full", || misconf(&server).is_some() || !server.lives());
    std::thread::sleep(Duration::from_secs(1));
    let ended = !server.lives();
    assert_eq!(ended, fsync == "always", "with always redis ends, else it refuses writes");
    // What it has in memory and could not write dies here.
    server.kill();
    let promised = producer.stop();
    disk.free();
    let on_disk = picture_of_disk(&server);
    assert_eq!(on_disk.torn(), Vec::<String>::new());
    let accepted: BTreeSet<u64> = promised.accepted.keys().copied().collect();
    let lost = on_disk.missing(&accepted);
    let last = promised.accepted.values().max().copied().unwrap();
    let oldest = lost.iter().map(|seq| last - promised.accepted[seq]).max().unwrap_or_default();
    println!(
        "disk full, appendfsync {fsync}: ended {ended}, {} accepted, {} refused ({:?}), {} accepted entries lost, up to {oldest:?} before the last",
        accepted.len(),
        promised.refused,
        promised.error,
        lost.len()
    );
    match fsync {
        "always" => assert_eq!(lost, BTreeSet::new()),
        _ => assert!(oldest < EVERYSEC_LOSS_MAX),
    }
    server.start();
    // The numbers of what was lost are not sent again: what came back must be whole, and work goes on.
    let more = Producer::start(&url, promised.next, Promise::Reply);
    let then = outputs(&server);
    wait_until("the hosts go on", || outputs(&server) > then + 100);
    let promised = more.stop();
    let rest = Picture::at_rest(&url, REST);
    rest.assert_good();
    let expected = accepted.difference(&lost).copied().chain(promised.accepted.keys().copied()).collect();
    assert!(rest.missing(&expected).is_empty());
}

#[test]
fn a_full_disk_takes_nothing_that_was_accepted_when_redis_syncs_always() {
    full_disk("always");
}

#[test]
fn a_full_disk_takes_two_seconds_at_most_and_never_half_a_commit_when_redis_syncs_every_second() {
    full_disk("everysec");
}

#[test]
fn the_numbers_of_the_cut_commit_are_of_every_kind() {
    assert!(CUT.iter().any(|seq| is_poison(*seq)));
    assert!(CUT.iter().any(|seq| outputs_of(*seq) == 1) && CUT.iter().any(|seq| outputs_of(*seq) == 2));
}
