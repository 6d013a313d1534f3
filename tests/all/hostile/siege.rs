//! Many good plugins, one of them hostile at times; and loops on every processor there is.

use std::time::{Duration, Instant};

use cofferdam_model::ReasonCode;
use cofferdam_tests::checker::full_length;
use cofferdam_tests::{Place, Redis, guest, publish, wait_until};
use redis::Commands;

use super::arena::{Feeder, connect, latencies_of, memory_kib, p99, put, put_good, rest, settled_kib};
use super::{Expect, Guest};

/// Plugins of which one is hostile.
const PLUGINS: usize = 24;
/// How often it does everything before memory is measured.
const WARM_ROUNDS: u32 = 5;
/// What the hostile one does, in no order that anybody could rely on.
const ACTS: [&str; 6] = ["spin", "grow", "trap", "elsewhere", "not-json", "reject"];

#[test]
fn twenty_three_plugins_lose_nothing_while_one_is_hostile_every_second() {
    let (redis, place) = (Redis::start(), Place::new());
    let manifest = "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\nstart = \"oldest\"\nretries = 0\n[limits]\ndeadline = \"200ms\"\n";
    place.put("actor", &guest("test/actor.wasm"), manifest);
    let names: Vec<String> = (1..PLUGINS).map(|number| format!("good{number}")).collect();
    names.iter().for_each(|name| put_good(&place, name));
    let mut host = place.host(&redis, 1);
    let mut connection = connect(&redis);
    for name in &names {
        wait_until(&format!("{name} is live"), || {
            rest(&mut connection, &format!("stream:{name}_in"), &format!("group:{name}")).is_some()
        });
    }
    let round = |connection: &mut redis::Connection, seq: u64| {
        for name in &names {
            let payload = format!(r#"{{"do":"emit","seq":{seq},"to":"stream:{name}_out"}}"#);
            let _: String =
                connection.xadd(format!("stream:{name}_in"), "*", &[("payload", payload)]).expect("redis answers");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let (calm_for, siege_for) = if full_length() { (60, 600) } else { (5, 20) };
    let mut seq = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(calm_for) {
        round(&mut connection, seq);
        seq += 1;
    }
    let calm = seq;
    // What the engine keeps for the next instance is taken by the first acts of each kind; what is compared is what comes after.
    let mut acts = 0;
    for _ in 0..WARM_ROUNDS {
        publish(&redis, "stream:in", ACTS.iter().map(|act| format!(r#"{{"do":"{act}"}}"#)));
        acts += ACTS.len() as u64;
        round(&mut connection, seq);
        seq += 1;
        wait_until("it has done each", || rest(&mut connection, "stream:in", "group:actor") == Some(0));
    }
    let (warm, mut random) = (acts, 0x2545_f491_u32);
    let mut before_kib = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(siege_for) {
        // The engine keeps the slots of the first acts warm; whatever grows beyond that grows to the end.
        if before_kib == 0 && began.elapsed() > Duration::from_secs(siege_for / 3) {
            before_kib = memory_kib(&host, "VmRSS");
        }
        if began.elapsed().as_secs() >= acts - warm {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let act = ACTS[(random >> 16) as usize % ACTS.len()];
            publish(&redis, "stream:in", [format!(r#"{{"do":"{act}"}}"#)].into_iter());
            acts += 1;
        }
        round(&mut connection, seq);
        seq += 1;
        assert!(host.lives(), "the host died");
    }
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for name in &names {
        let (stream, group) = (format!("stream:{name}_in"), format!("group:{name}"));
        wait_until(&format!("{name} is through"), || rest(&mut connection, &stream, &group) == Some(0));
        let mut took = latencies_of(&redis, name);
        assert_eq!(took.len() as u64, seq, "{name} lost messages, or doubled them");
        beside.extend(took.split_off(usize::try_from(calm).unwrap()));
        alone.extend(took);
    }
    // Whatever fails at every message is probed with ever longer pauses: it need not be through, but nothing of it is lost.
    let mut dead_or_waiting = || {
        let waiting = rest(&mut connection, "stream:in", "group:actor").unwrap_or(0);
        redis.number(&["XLEN", "stream:dead_letter"]) + waiting as u64
    };
    wait_until("what the hostile plugin was told to do is dead or waits, and nothing else is dead", || {
        dead_or_waiting() == acts
    });
    let after_kib = settled_kib(&host, before_kib);
    let (alone_ms, beside_ms) = (p99(alone), p99(beside));
    println!(
        "{} plugins for {siege_for} s, {acts} hostile acts: {} messages of the others all handled; p99 {alone_ms} ms alone and {beside_ms} ms beside; \
         {before_kib} KiB after a third and {after_kib} KiB at the end",
        PLUGINS,
        seq * names.len() as u64
    );
    // In a short one the engine's slots and the threads' arenas are still being taken: only a long one can tell a leak from them.
    if full_length() {
        assert!(
            after_kib <= before_kib + before_kib / 10,
            "the host keeps memory: {after_kib} KiB at the end, and {before_kib} KiB after a third"
        );
        assert!(beside_ms <= alone_ms.max(2) * 2, "p99 of the others: {alone_ms} ms alone, {beside_ms} ms beside");
    }
}

#[test]
fn two_plugins_that_spin_on_two_threads_do_not_hold_up_a_third() {
    let (redis, place) = (Redis::start(), Place::new());
    let spin = Guest::new("01-spin", Expect::Fault(ReasonCode::Deadline)).with("concurrency = 2\n");
    put(&place, &spin);
    let other = Guest::new("16-tail-calls", Expect::Fault(ReasonCode::Deadline)).with("concurrency = 2\n");
    put(&place, &other);
    put_good(&place, "good");
    let _host = place.host(&redis, 1);
    let mut connection = connect(&redis);
    for (stream, group) in [
        ("stream:good_in", "group:good"),
        ("stream:01-spin", "group:01-spin"),
        ("stream:16-tail-calls", "group:16-tail-calls"),
    ] {
        wait_until(&format!("{group} is live"), || rest(&mut connection, stream, group).is_some());
    }
    let feeder = Feeder::start(&redis, "good");
    std::thread::sleep(Duration::from_secs(1));
    let calm = usize::try_from(feeder.sent.load(std::sync::atomic::Ordering::SeqCst)).unwrap();
    for stream in ["stream:01-spin", "stream:16-tail-calls"] {
        publish(&redis, stream, (0..20).map(|_| String::from("{\"n\":0}")));
    }
    wait_until("all loops have been stopped", || redis.number(&["XLEN", "stream:dead_letter"]) == 40);
    let sent = feeder.stop();
    wait_until("the third is through", || rest(&mut connection, "stream:good_in", "group:good") == Some(0));
    let mut took = latencies_of(&redis, "good");
    assert_eq!(took.len() as u64, sent, "the third lost messages, or doubled them");
    let beside = took.split_off(calm.min(took.len()));
    println!("beside four spinning threads: p99 {} ms, and {} ms alone", p99(beside), p99(took));
}
