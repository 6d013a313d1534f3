//! Each protection switched off in turn (the feature `mutants`, `COFFERDAM_MUTANT`): the guest that it stops then does its harm, and with
//! the protection the same guest does none. A limit without such a test may be a limit that nothing depends on.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use cofferdam_sandbox::Digest;
use cofferdam_tests::guests::from_text;
use cofferdam_tests::{Host, Place, Redis, comes_true, program_with_mutants, publish, wait_until};
use redis::Commands;

use super::arena::{connect, memory_kib, put, rest};
use super::{Expect, Guest};
use cofferdam_model::ReasonCode;

/// Memory that no guest may make the host take beyond the 64 MiB that it is granted, in KiB.
const SWOLLEN_KIB: u64 = 110 * 1_024;

/// A host, with a protection or without, one hostile guest in it, and one message for that.
struct Trial {
    redis: Redis,
    host: Host,
    _place: Place,
    name: &'static str,
    before_kib: u64,
}

impl Trial {
    fn new(mutant: &'static str, guest: &Guest) -> Trial {
        let (redis, place) = (Redis::start(), Place::new());
        put(&place, guest);
        let data = place.directory.path().join("data1");
        let environment = [("COFFERDAM_MUTANT", mutant)];
        let host = Host::start(&program_with_mutants(), &redis.url(), &data, &place.plugins(), &environment);
        let mut connection = connect(&redis);
        let (stream, group) = (format!("stream:{}", guest.name), format!("group:{}", guest.name));
        wait_until("the guest is live", || rest(&mut connection, &stream, &group).is_some());
        let before_kib = memory_kib(&host, "VmRSS");
        let _: String = connection.xadd(&stream, "*", &[("payload", "{\"n\":0}")]).expect("the test's redis answers");
        Trial { redis, host, _place: place, name: guest.name, before_kib }
    }

    /// Whether the message comes to its end within some seconds.
    fn ends(&self) -> bool {
        let mut connection = connect(&self.redis);
        let (stream, group) = (format!("stream:{}", self.name), format!("group:{}", self.name));
        comes_true(Duration::from_secs(5), || rest(&mut connection, &stream, &group) == Some(0))
    }

    /// The most that the host took beyond what it had before.
    fn swollen_kib(&self) -> u64 {
        memory_kib(&self.host, "VmHWM").saturating_sub(self.before_kib)
    }
}

/// Asserts that a guest does harm without the protection and none with it. `harm` looks at a trial after the message was sent.
fn shows(mutant: &'static str, guest: &Guest, harm: impl Fn(&mut Trial) -> Option<String>) {
    let without = harm(&mut Trial::new(mutant, guest));
    let with = harm(&mut Trial::new("", guest));
    println!("MUTANT {mutant} | {} | {without:?} | with the protection: {with:?}", guest.name);
    assert!(without.is_some(), "{mutant}: {} did no harm without it, so this proves nothing", guest.name);
    assert_eq!(with, None, "{}: the protection does not hold", guest.name);
}

#[test]
fn without_a_deadline_a_loop_never_ends() {
    let guest = Guest::new("01-spin", Expect::Fault(ReasonCode::Deadline));
    shows("no-deadline", &guest, |trial| (!trial.ends()).then(|| String::from("still running after 5 s")));
}

#[test]
fn without_a_memory_limit_the_host_swells() {
    let guest = Guest::new("03-memory-touch", Expect::Fault(ReasonCode::Memory));
    shows("no-memory-limit", &guest, |trial| {
        trial.ends();
        let kib = trial.swollen_kib();
        (kib > SWOLLEN_KIB).then(|| format!("the host took {kib} KiB more"))
    });
}

#[test]
fn without_room_beside_the_guests_stack_the_host_dies() {
    let guest = Guest::new("10-edge-then-host", Expect::Fault(ReasonCode::Stack));
    shows("small-stack", &guest, |trial| {
        comes_true(Duration::from_secs(3), || !trial.host.lives());
        (!trial.host.lives()).then(|| String::from("the host died"))
    });
}

#[test]
fn without_a_bound_on_what_a_call_carries_the_host_swells() {
    let guest = Guest::new("31-aliased-result", Expect::Fault(ReasonCode::OutputLimit));
    shows("no-hostcall-fuel", &guest, |trial| {
        trial.ends();
        let kib = trial.swollen_kib();
        (kib > SWOLLEN_KIB).then(|| format!("the host took {kib} KiB more"))
    });
}

#[test]
fn without_a_cap_on_outputs_a_message_floods_redis() {
    let guest = Guest::new("38-many-outputs", Expect::Fault(ReasonCode::OutputLimit));
    shows("no-output-cap", &guest, |trial| {
        trial.ends();
        let outputs = trial.redis.number(&["XLEN", "stream:hout"]);
        (outputs > 0).then(|| format!("{outputs} outputs of one message"))
    });
}

/// What the compiler's process has taken of memory that is its own, in KiB.
fn compiler_kib(host: &Host) -> u64 {
    let status = |process: fs::DirEntry| fs::read_to_string(process.path().join("status")).ok();
    let number = |status: &str, what: &str| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix(what))?.split_whitespace().next()?.parse().ok()
    };
    let processes = fs::read_dir("/proc").expect("this is Linux").flatten().filter_map(status);
    let children = processes.filter(|status| number(status, "PPid:") == Some(host.pid().into()));
    children.filter_map(|status| number(&status, "RssAnon:")).max().unwrap_or(0)
}

/// Drops a file of 50,000 functions on a host whose compiler may take 64 MiB, and its own 64 MiB: what it took, if that is more.
fn a_compile_bomb_swells(mutant: &str) -> Option<String> {
    const GRANTED_KIB: u64 = (64 + 64) * 1_024;
    let (redis, place) = (Redis::start(), Place::new());
    let data = place.directory.path().join("data1");
    let environment = [("COFFERDAM_MUTANT", mutant), ("COFFERDAM__LIMITS__COMPILE_MEMORY", "64MiB")];
    let host = Host::start(&program_with_mutants(), &redis.url(), &data, &place.plugins(), &environment);
    let guest = Guest::new("62-many-functions", Expect::Compiles);
    put(&place, &guest);
    let told = place.plugins().join(format!("{}.status.txt", guest.name));
    let (mut most_kib, mut judged) = (0, String::new());
    wait_until("the file has been judged", || {
        most_kib = most_kib.max(compiler_kib(&host));
        judged = fs::read_to_string(&told).unwrap_or_default();
        judged.contains("refused") || judged.contains("running")
    });
    assert!(most_kib > 0, "the compiler was never seen");
    (most_kib > GRANTED_KIB).then(|| format!("the compiler took {most_kib} KiB: {}", judged.replace('\n', " ")))
}

#[test]
fn without_the_compilers_jail_a_small_file_takes_all_memory() {
    let (without, with) = (a_compile_bomb_swells("no-compile-jail"), a_compile_bomb_swells(""));
    println!("MUTANT no-compile-jail | 62-many-functions | {without:?} | with the protection: {with:?}");
    assert!(without.is_some(), "the bomb did no harm without the jail, so this proves nothing");
    assert_eq!(with, None, "the jail does not hold");
}

/// Hands on what stands in its last section. Without that it is a whole program too, which hands on nothing.
const HANDS_ON: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (drop (call 0 (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (data (i32.const 0) "\10\00\00\00\2b\00\00\00")
  (data (i32.const 16) "{\"stream\":\"stream:hout\",\"payload\":\"whole\"}\n"))"#;

/// Copies a program slowly into the folder of a host that is under traffic: half of it, and the rest `pause` later. What half a
/// file did to messages, if anything.
fn half_a_file_is_tried(mutant: &str, vouched: bool, pause: Duration) -> Option<String> {
    let (redis, place) = (Redis::start(), Place::new());
    let data = place.directory.path().join("data1");
    let environment = [("COFFERDAM_MUTANT", mutant)];
    let host = Host::start(&program_with_mutants(), &redis.url(), &data, &place.plugins(), &environment);
    let whole = from_text(HANDS_ON);
    let until_data = HANDS_ON.find("(data").expect("it has data");
    let half = from_text(&format!("{})", HANDS_ON.get(..until_data).expect("it is ASCII")));
    let rest_of_it = whole.strip_prefix(half.as_slice()).expect("the data come last");
    let mut manifest =
        String::from("subscribe = [\"stream:in\"]\nemit = [\"stream:hout\"]\nstart = \"oldest\"\nretries = 0\n");
    if vouched {
        manifest.push_str(&format!("sha256 = \"{}\"\n", Digest::of(&whole)));
    }
    fs::write(place.plugins().join("copied.toml"), manifest).expect("the folder can be written");
    let mut file = fs::File::create(place.plugins().join("copied.wasm")).expect("the folder can be written");
    file.write_all(&half).expect("the folder can be written");
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < pause {
        publish(&redis, "stream:in", (0..5).map(|n| format!("{{\"n\":{n}}}")));
        sent += 5;
        std::thread::sleep(Duration::from_millis(50));
    }
    file.write_all(rest_of_it).expect("the folder can be written");
    let took = began.elapsed();
    assert!(vouched || took < Duration::from_millis(1_900), "this machine stood still for {took:?}; run it again");
    let mut connection = connect(&redis);
    wait_until("every message has ended", || rest(&mut connection, "stream:in", "group:copied") == Some(0));
    let lost = sent - redis.number(&["XLEN", "stream:hout"]);
    let refused = host.log().contains("refused: ");
    (lost > 0).then(|| format!("{lost} of {sent} messages were handled by half a program (refused: {refused})"))
}

#[test]
fn without_the_whole_file_half_a_program_handles_messages() {
    // Without a sha256 the file has to be quiet for two seconds; with one it may stay half for as long as it likes.
    for (vouched, pause) in [(false, Duration::from_millis(800)), (true, Duration::from_millis(3_000))] {
        let without = half_a_file_is_tried("no-whole-file", vouched, pause);
        let with = half_a_file_is_tried("", vouched, pause);
        println!("MUTANT no-whole-file | sha256 {vouched} | {without:?} | with the protection: {with:?}");
        assert!(without.is_some(), "half a file did no harm (sha256: {vouched}), so this proves nothing");
        assert_eq!(with, None, "half a file was run (sha256: {vouched})");
    }
}

#[test]
fn a_host_does_not_start_without_a_protection_that_nobody_knows() {
    let (redis, place) = (Redis::start(), Place::new());
    let data = place.directory.path().join("data1");
    fs::create_dir_all(&data).expect("a temporary directory can be written");
    let environment = [("COFFERDAM_MUTANT", "no-such-thing")];
    let mut host = Host::start(&program_with_mutants(), &redis.url(), &data, &place.plugins(), &environment);
    wait_until("it has given up", || !host.lives() || host.log().contains("there is no mutant"));
}
