//! Each protection switched off in turn (the feature `mutants`, `COFFERDAM_MUTANT`): the guest that it stops then does its harm, and with
//! the protection the same guest does none. A limit without such a test may be a limit that nothing depends on.

use std::fs;
use std::time::Duration;

use cofferdam_tests::{Host, Place, Redis, comes_true, program_with_mutants, wait_until};
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

#[test]
fn a_host_does_not_start_without_a_protection_that_nobody_knows() {
    let (redis, place) = (Redis::start(), Place::new());
    let data = place.directory.path().join("data1");
    fs::create_dir_all(&data).expect("a temporary directory can be written");
    let environment = [("COFFERDAM_MUTANT", "no-such-thing")];
    let mut host = Host::start(&program_with_mutants(), &redis.url(), &data, &place.plugins(), &environment);
    wait_until("it has given up", || !host.lives() || host.log().contains("there is no mutant"));
}
