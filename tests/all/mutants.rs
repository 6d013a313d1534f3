//! The bugs that are planted behind the feature `mutants`, each with real processes and a real Redis: every test here runs the
//! program with one of them and asserts that the damage is seen. At full length the same is done to the program without it,
//! which must come out unharmed. `make mutants-table` prints what each saw.

use std::time::Duration;

use cofferdam_tests::checker::full_length;
use cofferdam_tests::{Host, Place, Redis, comes_true, program_with_mutants, publish, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::failover::order_over_promotions;
use crate::ordered::{LEDGER, consumer, keyed, out_of_order, put_ordered};

/// What was broken, by name, and how often.
type Damage = Vec<(&'static str, u64)>;

/// A Redis and a place, and hosts with a bug or without.
struct Ground {
    redis: Redis,
    place: Place,
    environment: Vec<(&'static str, &'static str)>,
}

impl Ground {
    fn new(mutant: &'static str) -> Self {
        Ground { redis: Redis::start(), place: Place::new(), environment: vec![("COFFERDAM_MUTANT", mutant)] }
    }

    fn host(&self, number: usize) -> Host {
        let data = self.place.directory.path().join(format!("data{number}"));
        Host::start(&program_with_mutants(), &self.redis.url(), &data, &self.place.plugins(), &self.environment)
    }

    fn publish(&self, payloads: &[&str]) {
        publish(&self.redis, "stream:in", payloads.iter().map(|payload| (*payload).to_owned()));
    }

    fn count(&self, stream: &str) -> u64 {
        self.redis.number(&["XLEN", stream])
    }

    /// The first entry that the group holds: its holder and its delivery counter.
    fn held(&self) -> Option<(String, u64)> {
        let reply = self.redis.cli(&["--raw", "XPENDING", "stream:in", "group:actor", "-", "+", "1"]);
        let mut parts = reply.lines().skip(1);
        Some((parts.next()?.to_owned(), parts.nth(1)?.parse().ok()?))
    }

    /// Waits until a group has finished everything.
    fn settles(&self, group: &str, patience: Duration) -> bool {
        comes_true(patience, || {
            let groups = self.redis.cli(&["XINFO", "GROUPS", "stream:in"]);
            let lines: Vec<&str> = groups.lines().collect();
            let at = lines.iter().position(|line| *line == group).unwrap_or(lines.len());
            let of = |name: &str| {
                let place = lines.iter().skip(at).position(|line| *line == name)?;
                lines.get(at + place + 1)?.parse::<u64>().ok()
            };
            (of("pending"), of("lag")) == (Some(0), Some(0))
        })
    }
}

/// Runs a test against the program with a bug, and at full length against the one without.
fn shows(mutant: &'static str, run: fn(&'static str) -> Damage) {
    if full_length() {
        let damage = run("");
        println!("MUTANT {mutant} | without it: {damage:?}");
        assert!(damage.iter().all(|(_, count)| *count == 0), "without the bug: {damage:?}");
    }
    let damage = run(mutant);
    println!("MUTANT {mutant} | {damage:?}");
    assert!(damage.iter().any(|(_, count)| *count > 0), "{mutant} did no harm: this test proves nothing");
}

const SLOW: &str = "retries = 1\n[limits]\ndeadline = \"60s\"\n";

#[test]
fn without_the_fence_a_host_that_wakes_doubles_what_another_has_done() {
    shows("no-fence", |mutant| {
        let ground = Ground::new(mutant);
        ground.place.put_actor(SLOW);
        let first = ground.host(1);
        ground.publish(&[r#"{"do":"emit","seq":0,"busy_us":500000}"#]);
        wait_until("the first host has it", || ground.held().is_some());
        first.signal(Signal::STOP);
        let _second = ground.host(2);
        wait_until("the second host has done it", || ground.count("stream:out") == 1);
        first.signal(Signal::CONT);
        comes_true(Duration::from_secs(5), || ground.count("stream:out") > 1);
        vec![("doubled", ground.count("stream:out") - 1)]
    });
}

#[test]
fn with_the_ack_first_a_message_whose_outputs_are_refused_is_lost() {
    shows("ack-first", |mutant| {
        let ground = Ground::new(mutant);
        ground.place.put_actor("");
        ground.redis.cli(&["SET", "stream:wrong_type", "x"]);
        ground.publish(&[r#"{"do":"emit","to":"stream:wrong_type"}"#, r#"{"do":"emit"}"#]);
        let _host = ground.host(1);
        wait_until("the good one is there", || ground.count("stream:out") == 1);
        ground.settles("group:actor", Duration::from_secs(30));
        vec![("lost", 1 - ground.count("stream:dead_letter"))]
    });
}

#[test]
fn a_history_that_is_read_takes_the_lease_of_what_is_being_handled() {
    shows("history-read", |mutant| {
        let ground = Ground::new(mutant);
        ground.place.put_actor(&format!("concurrency = 2\n{SLOW}"));
        let host = ground.host(1);
        ground.publish(&[r#"{"do":"emit","seq":0,"busy_us":20000000}"#]);
        wait_until("the host has it", || ground.held().is_some());
        let (consumer, _) = ground.held().expect("it was just there");
        // A reply that is lost: Redis believes that the host has the entry, and the host knows nothing of it.
        host.signal(Signal::STOP);
        ground.publish(&[r#"{"do":"emit","seq":1}"#]);
        let read = ["XREADGROUP", "GROUP", "group:actor", &consumer, "COUNT", "1", "STREAMS", "stream:in", ">"];
        assert!(ground.redis.cli(&read).contains("seq"));
        host.signal(Signal::CONT);
        wait_until("it was found", || ground.count("stream:out") == 1);
        let (_, deliveries) = ground.held().expect("it takes a minute");
        host.kill();
        vec![("claims by nobody", deliveries - 1)]
    });
}

#[test]
fn a_trim_by_length_takes_what_nobody_has_read() {
    if !full_length() {
        return println!("SKIPPED: a host trims every 15 seconds; run it with COFFERDAM_CHAOS=full");
    }
    shows("maxlen", |mutant| {
        let mut ground = Ground::new(mutant);
        // Whole nodes are trimmed: small ones, so that it does not depend on where they end.
        ground.redis = Redis::start_with(&["--stream-node-max-entries", "10"]);
        ground.environment.push(("COFFERDAM__STREAMS__STREAM:IN__KEEP", "5"));
        ground.place.put_actor(&format!("concurrency = 1\n{SLOW}"));
        // Far more than a host does before it trims for the first time, on any machine.
        ground.publish(&[r#"{"do":"emit","seq":0,"busy_us":200000}"#; 300]);
        let _host = ground.host(1);
        let trimmed = || ground.count("stream:in") < 300;
        comes_true(Duration::from_secs(90), || trimmed() || ground.count("stream:out") == 300);
        let ended = || ground.count("stream:out") + ground.count("stream:dead_letter");
        let mut before = 0;
        wait_until("nothing comes any more", || {
            std::thread::sleep(Duration::from_secs(4));
            std::mem::replace(&mut before, ended()) == ended()
        });
        vec![("lost", 300 - ended()), ("innocents", ground.count("stream:dead_letter"))]
    });
}

/// Hosts that are started again whenever they die, among messages of which one in `every` kills whoever runs it.
fn killers(mutant: &'static str, published: u64, every: u64, deaths_max: u64) -> Damage {
    let ground = Ground::new(mutant);
    ground.place.put_actor("retries = 2\ncrashes = 2\n[backoff]\nbase = \"100ms\"\n");
    let kills = |seq: u64| seq % every == every / 2;
    let poison = (0..published).filter(|seq| kills(*seq)).count() as u64;
    let payload = |seq| match kills(seq) {
        true => format!(r#"{{"do":"kill-host","seq":{seq}}}"#),
        false => format!(r#"{{"do":"emit","n":1,"seq":{seq},"busy_us":500}}"#),
    };
    publish(&ground.redis, "stream:in", (0..published).map(payload));
    let mut hosts = [ground.host(1), ground.host(2)];
    let mut deaths = 0;
    let settled = comes_true(Duration::from_secs(150), || {
        for (place, host) in hosts.iter_mut().enumerate() {
            if !host.lives() {
                deaths += 1;
                *host = ground.host(place + 1);
            }
        }
        // After this many the damage is plain, and what is left to see takes minutes.
        deaths > deaths_max || ground.settles("group:actor", Duration::ZERO)
    });
    let letters = ground.redis.cli(&["--raw", "XRANGE", "stream:dead_letter", "-", "+"]);
    let crashed = letters.lines().filter(|line| *line == "host-crashes").count() as u64;
    let seqs: Vec<u64> = ground
        .redis
        .cli(&["--raw", "XRANGE", "stream:out", "-", "+"])
        .lines()
        .filter(|line| line.starts_with("{\"index"))
        .map(|line| serde_json::from_str::<Value>(line).unwrap_or_default()["seq"].as_u64().unwrap_or(u64::MAX))
        .collect();
    let different = seqs.iter().collect::<std::collections::BTreeSet<_>>().len() as u64;
    let dead = ground.count("stream:dead_letter");
    println!(
        "{published} published, {poison} of them poison: {deaths} hosts died, {different} outputs, {dead} dead letters"
    );
    let left = if settled && deaths <= deaths_max {
        [
            ("lost", (published - poison).saturating_sub(different)),
            ("poison not among the dead letters", poison.saturating_sub(crashed)),
        ]
    } else {
        [("lost", 0), ("unfinished", u64::from(deaths <= deaths_max))]
    };
    let mut damage = vec![("deaths beyond one for each poison", deaths.saturating_sub(poison))];
    damage.extend(left);
    damage.extend([("doubled", seqs.len() as u64 - different), ("innocents", dead.saturating_sub(poison))]);
    damage
}

#[test]
fn messages_that_kill_their_host_are_buried_and_take_no_innocent_with_them() {
    let (published, every) = if full_length() { (10_000, 1_000) } else { (2_000, 1_000) };
    let damage = killers("", published, every, u64::MAX);
    assert!(damage.iter().all(|(_, count)| *count == 0), "{damage:?}");
}

#[test]
fn suspects_that_run_in_the_hosts_own_process_kill_it_again_and_again() {
    let damage = killers("batch-suspects", 1_000, 1_000, if full_length() { 40 } else { 2 });
    println!("MUTANT batch-suspects | {damage:?}");
    assert!(damage[0].1 > 0, "batch-suspects did no harm: this test proves nothing");
}

#[test]
fn a_renewal_without_a_fence_steals_from_the_new_owner() {
    shows("heartbeat-no-fence", |mutant| {
        let ground = Ground::new(mutant);
        ground.place.put_actor(SLOW);
        let first = ground.host(1);
        ground.publish(&[r#"{"do":"emit","seq":0,"busy_us":30000000}"#]);
        wait_until("the first host has it", || ground.held().is_some());
        let (owner, _) = ground.held().expect("it was just there");
        first.signal(Signal::STOP);
        let second = ground.host(2);
        wait_until("the second host has it", || ground.held().is_some_and(|(now, _)| now != owner));
        first.signal(Signal::CONT);
        let stolen = comes_true(Duration::from_secs(4), || ground.held().is_some_and(|(now, _)| now == owner));
        first.kill();
        second.kill();
        vec![("stolen", u64::from(stolen))]
    });
}

#[test]
fn an_ack_in_one_transaction_with_the_settle_loses_what_noscript_stopped() {
    shows("evalsha-in-multi", |mutant| {
        let ground = Ground::new(mutant);
        ground.place.put_actor("");
        let _host = ground.host(1);
        for round in 1..=5 {
            ground.publish(&[r#"{"do":"emit","seq":0,"busy_us":1000}"#; 200]);
            comes_true(Duration::from_secs(2), || ground.count("stream:out") > round * 200 - 150);
            ground.redis.cli(&["SCRIPT", "FLUSH"]);
        }
        assert!(ground.settles("group:actor", Duration::from_secs(60)), "it did not come to rest");
        vec![("lost", 1_000 - ground.count("stream:out"))]
    });
}

#[test]
fn a_retry_that_is_published_anew_reaches_every_group_again() {
    shows("readd-retry", |mutant| {
        let ground = Ground::new(mutant);
        let more = "[backoff]\nbase = \"100ms\"\n";
        ground.place.put_actor(more);
        let manifest = format!("subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\nstart = \"oldest\"\n{more}");
        ground.place.put("second", &cofferdam_tests::guest("test/actor.wasm"), &manifest);
        ground.publish(&[r#"{"do":"trap-below","n":2,"seq":0}"#; 3]);
        let _host = ground.host(1);
        wait_until("both groups are there", || {
            ground.redis.cli(&["XINFO", "GROUPS", "stream:in"]).contains("group:second")
        });
        for group in ["group:actor", "group:second"] {
            assert!(ground.settles(group, Duration::from_secs(60)), "{group} did not come to rest");
        }
        let (input, outputs) = (ground.count("stream:in"), ground.count("stream:out"));
        vec![("entries that nobody published", input - 3), ("outputs of those", outputs.saturating_sub(6))]
    });
}

#[test]
fn at_the_memory_limit_a_host_without_the_flag_cannot_let_go() {
    shows("park-no-oom", |mutant| {
        let ground = Ground::new(mutant);
        ground.place.put_actor(SLOW);
        let host = ground.host(1);
        ground.publish(&[r#"{"do":"retry","after_ms":600000,"busy_us":500000}"#]);
        wait_until("the host has it", || ground.held().is_some());
        assert_eq!(ground.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
        let parked = || ground.held().is_some_and(|(owner, _)| owner.starts_with('~'));
        let patience = Duration::from_secs(if mutant.is_empty() { 60 } else { 5 });
        let damage = u64::from(!comes_true(patience, parked));
        host.kill();
        vec![("not parked", damage)]
    });
}

#[test]
fn one_bad_key_that_spoils_its_batch_buries_innocents() {
    shows("batch-fails-whole", |mutant| {
        let ground = Ground::new(mutant);
        ground.place.put_actor("");
        ground.redis.cli(&["SET", "stream:wrong_type", "x"]);
        let payload = |seq: u64| match seq % 10 {
            5 => String::from(r#"{"do":"emit","to":"stream:wrong_type"}"#),
            _ => format!(r#"{{"do":"emit","seq":{seq}}}"#),
        };
        publish(&ground.redis, "stream:in", (0..400).map(payload));
        let _host = ground.host(1);
        assert!(ground.settles("group:actor", Duration::from_secs(60)), "it did not come to rest");
        vec![("innocents", ground.count("stream:dead_letter") - 40)]
    });
}

/// The lane changes hands by Redis's word, as at a failover to a replica that knew another owner: until it asks, the old one takes
/// itself for the owner.
#[test]
fn an_owner_of_the_past_that_goes_on_reading_breaks_the_order_of_a_key() {
    shows("no-epoch", |mutant| {
        let rounds = if mutant.is_empty() { 10 } else { 40 };
        let ground = Ground::new(mutant);
        put_ordered(&ground.place, SLOW);
        let hosts = [ground.host(1), ground.host(2)];
        wait_until("both run", || hosts.iter().all(|host| consumer(host).is_some()));
        let names = hosts.each_ref().map(|host| consumer(host).expect("it was just there"));
        let ledger = |field: &str| ground.redis.cli(&["HGET", LEDGER, field]);
        wait_until("one owns the lane", || names.contains(&ledger("owner")));
        let (mut seq, mut broken) = (0, 0);
        for _ in 0..rounds {
            let heir = names.iter().find(|name| **name != ledger("owner")).expect("there are two");
            let before = ledger("epoch");
            ground.redis.cli(&["HSET", LEDGER, "owner", heir]);
            wait_until("the other knows that it is the owner", || ledger("epoch") != before);
            for busy_us in [400_000, 0, 0, 0, 0, 0, 0, 0] {
                let one = format!(r#"{{"do":"emit","busy_us":{busy_us},"seq":{seq}}}"#);
                ground.publish(&[&keyed(&one, 0)]);
                seq += 1;
            }
            assert!(ground.settles("group:actor", Duration::from_secs(30)), "it does not come to rest");
            broken = out_of_order(&ground.redis.url(), |_| 0) as u64;
            if broken > 0 && !mutant.is_empty() {
                break;
            }
        }
        vec![("out of the order of their key", broken)]
    });
}

#[test]
fn an_owner_that_settles_whatever_a_failover_has_taken_back_breaks_the_order_of_a_key() {
    shows("no-finished", |mutant| {
        let rounds = if mutant.is_empty() { 10 } else { 40 };
        let kept = order_over_promotions(&program_with_mutants(), &[("COFFERDAM_MUTANT", mutant)], rounds);
        vec![("out of the order of their key", kept.broken as u64)]
    });
}

#[test]
fn a_hosts_death_that_is_charged_buries_a_message_before_its_time() {
    shows("attempts-from-token", |mutant| {
        let ground = Ground::new(mutant);
        ground.place.put_actor(&format!("{SLOW}[backoff]\nbase = \"100ms\"\n"));
        let first = ground.host(1);
        ground.publish(&[r#"{"do":"trap-below","n":2,"seq":0,"busy_us":500000}"#]);
        wait_until("the first host has it", || ground.held().is_some());
        first.kill();
        let _second = ground.host(2);
        wait_until("it has ended", || ground.count("stream:out") + ground.count("stream:dead_letter") == 1);
        vec![("innocents", ground.count("stream:dead_letter"))]
    });
}
