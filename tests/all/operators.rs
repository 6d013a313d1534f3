//! What operators do to a Redis that hosts are at work on, each act with what it costs and what the log says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cofferdam_streams::dead_letters::Operator;
use cofferdam_tests::{Host, Place, Redis, cofferdam, comes_true, errors, guest, program, publish, wait_until};
use serde_json::Value;

/// Whether the long version was asked for, as `make chaos` does.
pub(crate) fn is_full() -> bool {
    std::env::var_os("COFFERDAM_CHAOS").is_some_and(|text| text == "full")
}

/// Who sends back in tests.
pub(crate) const OPERATOR: Operator<'static> = Operator { at: "", who: "tests", why: "a test" };

/// A number of the ledger of the actor's group.
pub(crate) fn ledger(redis: &Redis, field: &str) -> u64 {
    redis.number(&["HGET", "cofferdam:ledger:stream:in|group:actor", field])
}

/// A number that XINFO GROUPS tells of the actor's group; none when the group is gone or Redis cannot tell.
fn of_group(redis: &Redis, name: &str) -> Option<u64> {
    let groups = redis.cli(&["XINFO", "GROUPS", "stream:in"]);
    let lines: Vec<&str> = groups.lines().collect();
    lines.iter().position(|line| *line == name).and_then(|at| lines.get(at + 1)?.parse().ok())
}

pub(crate) fn is_settled(redis: &Redis) -> bool {
    of_group(redis, "pending") == Some(0) && of_group(redis, "lag") == Some(0)
}

/// The outputs, by the number that their message was published with.
#[derive(Default)]
pub(crate) struct Outputs {
    pub(crate) by_seq: BTreeMap<u64, usize>,
    message_ids: BTreeSet<String>,
}

impl Outputs {
    pub(crate) fn of(redis: &Redis) -> Self {
        let mut outputs = Outputs::default();
        let text = redis.cli(&["XRANGE", "stream:out", "-", "+"]);
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line == "message_id" {
                outputs.message_ids.extend(lines.next().map(str::to_owned));
            } else if line.starts_with("{\"") {
                let event: Value = serde_json::from_str(line).unwrap();
                *outputs.by_seq.entry(event["seq"].as_u64().unwrap()).or_default() += 1;
            }
        }
        outputs
    }

    /// Messages among those published that have no output.
    pub(crate) fn missing(&self, published: impl Iterator<Item = u64>) -> Vec<u64> {
        published.filter(|seq| !self.by_seq.contains_key(seq)).collect()
    }

    pub(crate) fn doubled(&self) -> usize {
        self.by_seq.values().filter(|count| **count > 1).count()
    }
}

pub(crate) fn emit(seq: u64) -> String {
    format!(r#"{{"do":"emit","seq":{seq},"busy_us":300}}"#)
}

/// Ends the load, whatever becomes of the test.
struct Ends<'a>(&'a AtomicU64);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(1, Ordering::SeqCst);
    }
}

/// Publishes some thousand messages a second for as long as `act` takes, and for a while before and after. Gives back what
/// `act` does, and how many messages there were. `act` sees how many have been published or are just being so.
pub(crate) fn under_load<T>(redis: &Redis, payload: fn(u64) -> String, act: impl FnOnce(&AtomicU64) -> T) -> (T, u64) {
    let (begun, over) = (AtomicU64::new(0), AtomicU64::new(0));
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rounds_after = 0;
            while rounds_after < 20 {
                let from = begun.fetch_add(50, Ordering::SeqCst);
                publish(redis, "stream:in", (from..from + 50).map(payload));
                std::thread::sleep(Duration::from_millis(30));
                rounds_after += over.load(Ordering::SeqCst);
            }
        });
        // A test that fails must not publish for ever.
        let _guard = Ends(&over);
        wait_until("the hosts are at work", || redis.number(&["XLEN", "stream:out"]) > 300);
        act(&begun)
    });
    (done, begun.load(Ordering::SeqCst))
}

/// What `verify` says, and whether all holds.
fn verify(redis: &Redis) -> (bool, String) {
    let output = cofferdam(&["verify", "--redis", &redis.url()]);
    (output.status.success(), format!("{}{}", String::from_utf8_lossy(&output.stdout), errors(&output)))
}

/// The lines of `verify` that say what does not hold.
fn violations(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.contains("VIOLATED")).collect()
}

/// The errors of a log: what an operator is called for.
fn alarms(host: &Host) -> Vec<String> {
    host.log().lines().filter(|line| line.contains("ERROR")).map(str::to_owned).collect()
}

/// Whether an alarm names one of these words.
fn is_alarmed(host: &Host, words: &[&str]) -> bool {
    alarms(host).iter().any(|line| words.iter().any(|word| line.contains(word)))
}

/// The name of a host's consumer.
fn consumer(host: &Host) -> String {
    let read = || -> Option<String> {
        let report: Value = serde_json::from_str(&std::fs::read_to_string(host.data.join("run.json")).ok()?).ok()?;
        Some(report["consumer"].as_str()?.to_owned())
    };
    wait_until("the host has written its run file", || read().is_some());
    read().unwrap()
}

/// How many entries a consumer holds.
fn held_by(redis: &Redis, consumer: &str) -> usize {
    let held = redis.cli(&["XPENDING", "stream:in", "group:actor", "-", "+", "100000", consumer]);
    held.lines().filter(|line| *line == consumer).count()
}

const PARKED: &str = "~retry/86400000";

#[test]
fn flushall_costs_what_was_there_and_nothing_that_comes_after() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let mut hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    wait_until("the group is there", || hosts.iter().any(|host| host.log().contains("created the group")));
    let (from, published) = under_load(&redis, emit, |begun| {
        redis.cli(&["FLUSHALL"]);
        begun.load(Ordering::SeqCst)
    });
    wait_until("what came after is handled", || Outputs::of(&redis).missing(from..published).is_empty());
    wait_until("all is settled", || is_settled(&redis));
    let outputs = Outputs::of(&redis);
    println!(
        "FLUSHALL: {} published after it, {} outputs of them or of the batch before, {} doubled",
        published - from,
        outputs.by_seq.len(),
        outputs.doubled()
    );
    assert_eq!(outputs.doubled(), 0);
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
    assert!(hosts.iter_mut().all(Host::lives));
    assert!(hosts.iter().any(|host| is_alarmed(host, &["the group is gone"])), "{}", hosts[0].log());
}

#[test]
fn a_destroyed_group_loses_nothing_under_load_and_repeats_only_under_the_same_message_id() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let mut hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    let ((), published) = under_load(&redis, emit, |_| {
        for _ in 0..3 {
            wait_until("there is a group", || redis.cli(&["XGROUP", "DESTROY", "stream:in", "group:actor"]) == "1");
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    wait_until("all outputs are there", || Outputs::of(&redis).missing(0..published).is_empty());
    wait_until("all is settled", || is_settled(&redis));
    let outputs = Outputs::of(&redis);
    println!("XGROUP DESTROY three times: {published} published, 0 lost, {} repeated", outputs.doubled());
    assert_eq!(outputs.message_ids.len() as u64, published, "a repeated output has another message_id");
    assert!(outputs.doubled() <= 3 * 2 * 2_048, "more is repeated than the hosts could hold");
    assert_eq!((redis.number(&["XLEN", "stream:dead_letter"]), ledger(&redis, "retried")), (0, 0));
    assert!(hosts.iter_mut().all(Host::lives));
    assert!(hosts.iter().any(|host| is_alarmed(host, &["may repeat"])), "{}", hosts[0].log());
}

#[test]
fn a_deleted_stream_costs_what_was_in_it_and_nothing_that_comes_after() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let mut hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    wait_until("the group is there", || hosts.iter().any(|host| host.log().contains("created the group")));
    let (from, published) = under_load(&redis, emit, |begun| {
        redis.cli(&["DEL", "stream:in"]);
        begun.load(Ordering::SeqCst)
    });
    wait_until("what came after is handled", || Outputs::of(&redis).missing(from..published).is_empty());
    wait_until("all is settled", || is_settled(&redis));
    let outputs = Outputs::of(&redis);
    let lost = outputs.missing(0..published).len();
    println!("DEL: {published} published, {lost} were in it unhandled, {} doubled", outputs.doubled());
    assert_eq!(outputs.doubled(), 0);
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
    assert!(hosts.iter_mut().all(Host::lives));
    // A host that comes up just then creates the group again before the other has missed it.
    let words = ["the group is gone", "the group was lost"];
    assert!(hosts.iter().any(|host| is_alarmed(host, &words)), "{}", hosts[0].log());
}

#[test]
fn a_stream_that_begins_anew_with_smaller_ids_is_read_from_its_oldest_entry() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let host = place.host(&redis, 1);
    wait_until("the group is there", || host.log().contains("created the group"));
    for (seq, id) in ["9999999999999-1", "5-1"].into_iter().enumerate() {
        redis.cli(&["DEL", "stream:in"]);
        redis.cli(&["XADD", "stream:in", id, "payload", &emit(seq as u64)]);
        wait_until("it is handled", || Outputs::of(&redis).missing(0..seq as u64 + 1).is_empty());
    }
    assert_eq!(Outputs::of(&redis).doubled(), 0);
}

#[test]
fn a_group_that_has_settled_nothing_finds_a_stream_that_begins_anew_with_smaller_ids() {
    let (redis, place) = (Redis::start(), Place::new());
    redis.cli(&["XADD", "stream:in", "9999999999999-1", "payload", &emit(0)]);
    let manifest = "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\nstart = \"new\"\n";
    place.put("actor", &guest("test/actor.wasm"), manifest);
    let host = place.host(&redis, 1);
    wait_until("the group is there", || host.log().contains("created the group"));
    redis.cli(&["DEL", "stream:in"]);
    redis.cli(&["XADD", "stream:in", "5-1", "payload", &emit(1)]);
    wait_until("it is handled", || Outputs::of(&redis).by_seq.contains_key(&1));
    let outputs = Outputs::of(&redis);
    assert_eq!((outputs.by_seq.len(), outputs.doubled()), (1, 0), "what was there before the group was read");
}

/// Messages that fail once and wait for a second try, long enough for somebody to do something to them.
const PATIENT: &str = "retries = 3\n[backoff]\nbase = \"3s\"\nfactor = 1\n";

fn trap_once(seq: u64) -> String {
    format!(r#"{{"do":"trap-below","n":2,"seq":{seq}}}"#)
}

fn park(redis: &Redis, count: u64) {
    publish(redis, "stream:in", (0..count).map(trap_once));
    wait_until("all wait for their second try", || ledger(redis, "retried") >= count);
}

#[test]
fn what_waited_for_its_retry_when_the_stream_was_deleted_comes_back_from_its_copy() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor(PATIENT);
    let host = place.host(&redis, 1);
    park(&redis, 20);
    redis.cli(&["DEL", "stream:in"]);
    publish(&redis, "stream:in", [emit(100)].into_iter());
    wait_until("the new stream is read", || Outputs::of(&redis).by_seq.contains_key(&100));
    let back = comes_true(Duration::from_secs(12), || Outputs::of(&redis).missing(0..20).is_empty());
    let copies = redis.number(&["HLEN", "cofferdam:park:stream:in|group:actor"]);
    println!(
        "{} of 20 came back, {copies} fields of park records are left, alarms {:?}",
        Outputs::of(&redis).by_seq.len() - 1,
        alarms(&host)
    );
    assert!(back || is_alarmed(&host, &["parked", "retry"]), "20 copies lie in the park hash, and nothing says so");
}

#[test]
fn a_group_set_back_loses_nothing_and_repeats_only_under_the_same_message_id() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let mut hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    let ((), published) = under_load(&redis, emit, |_| {
        assert_eq!(redis.cli(&["XGROUP", "SETID", "stream:in", "group:actor", "0"]), "OK");
        std::thread::sleep(Duration::from_millis(300));
    });
    wait_until("all outputs are there", || Outputs::of(&redis).missing(0..published).is_empty());
    wait_until("all is settled", || is_settled(&redis));
    let outputs = Outputs::of(&redis);
    let (holds, text) = verify(&redis);
    println!(
        "XGROUP SETID 0: {published} published, 0 lost, {} repeated, verify holds: {holds} {:?}",
        outputs.doubled(),
        violations(&text)
    );
    assert!(outputs.doubled() > 0, "nothing was repeated: this test proves nothing");
    assert_eq!(outputs.message_ids.len() as u64, published, "a repeated output has another message_id");
    assert_eq!((redis.number(&["XLEN", "stream:dead_letter"]), ledger(&redis, "retried")), (0, 0));
    assert!(hosts.iter_mut().all(Host::lives));
    assert!(!holds && text.contains("VIOLATED"), "verify does not see what is there twice: {text}");
}

#[test]
fn a_group_set_back_or_forth_is_said_in_the_log() {
    for (to, words) in [("0", "set back"), ("$", "moved forward")] {
        let (redis, place) = (Redis::start(), Place::new());
        place.put_actor("concurrency = 1\n");
        let host = place.host(&redis, 1);
        wait_until("the group is there", || host.log().contains("created the group"));
        // More than a host reads ahead, so that there is something to be skipped.
        publish(&redis, "stream:in", (0..4_000).map(emit));
        wait_until("it is at work", || redis.number(&["XLEN", "stream:out"]) > 10);
        assert_eq!(redis.cli(&["XGROUP", "SETID", "stream:in", "group:actor", to]), "OK");
        publish(&redis, "stream:in", (4_000..4_050).map(emit));
        wait_until("all is settled", || is_settled(&redis));
        let said = comes_true(Duration::from_secs(20), || is_alarmed(&host, &[words]));
        assert!(said, "the group was set to {to}, and the log says nothing: {:?}", alarms(&host));
        println!("XGROUP SETID {to}: {:?}", alarms(&host));
        assert!(comes_true(Duration::from_secs(10), || is_shown(&redis, words)), "`plugins` does not show it");
    }
}

/// Whether `plugins` shows these words.
fn is_shown(redis: &Redis, words: &str) -> bool {
    String::from_utf8_lossy(&cofferdam(&["plugins", "--redis", &redis.url()]).stdout).contains(words)
}

#[test]
fn a_group_set_forth_costs_what_was_unread_and_verify_names_it() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    let mut host = place.host(&redis, 1);
    wait_until("the group is there", || host.log().contains("created the group"));
    // More than a host reads ahead, so that something is left to be skipped.
    publish(&redis, "stream:in", (0..6_000).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":2000}}"#)));
    wait_until("it is at work", || redis.number(&["XLEN", "stream:out"]) > 10);
    let unread = of_group(&redis, "lag").unwrap_or(0);
    assert_eq!(redis.cli(&["XGROUP", "SETID", "stream:in", "group:actor", "$"]), "OK");
    publish(&redis, "stream:in", (6_000..6_050).map(emit));
    wait_until("the next are handled", || Outputs::of(&redis).missing(6_000..6_050).is_empty());
    wait_until("all is settled", || is_settled(&redis));
    let outputs = Outputs::of(&redis);
    let skipped = outputs.missing(0..6_000).len() as u64;
    let (holds, text) = verify(&redis);
    println!("XGROUP SETID $: {unread} were unread, {skipped} skipped, verify: {:?}", violations(&text));
    assert!(skipped > 0 && skipped <= unread, "{skipped} of {unread} were skipped");
    assert_eq!((outputs.doubled(), redis.number(&["XLEN", "stream:dead_letter"])), (0, 0));
    assert!(host.lives());
    assert!(!holds && text.contains("vanished"), "verify does not see what was skipped: {text}");
}

/// Deletes the consumer of a host that holds entries; how many these were, and what was published.
fn delete_consumer_under_load(redis: &Redis, hosts: &[Host]) -> (u64, u64) {
    let names: Vec<String> = hosts.iter().map(consumer).collect();
    under_load(
        redis,
        |seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":2000}}"#),
        |_| {
            let mut deleted = 0;
            for _ in 0..5 {
                for name in &names {
                    deleted += redis.number(&["XGROUP", "DELCONSUMER", "stream:in", "group:actor", name]);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            deleted
        },
    )
}

#[test]
fn deleting_the_consumer_of_a_living_host_costs_at_most_what_it_held_and_verify_names_it() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let mut hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    let (deleted, published) = delete_consumer_under_load(&redis, &hosts);
    assert!(deleted > 0, "nobody held anything: this test proves nothing");
    wait_until("all is settled", || is_settled(&redis));
    let outputs = Outputs::of(&redis);
    let lost = outputs.missing(0..published).len() as u64;
    let (holds, text) = verify(&redis);
    println!(
        "XGROUP DELCONSUMER: {published} published, {deleted} pending deleted, {lost} lost, {} doubled, alarms {:?}, verify: {:?}",
        outputs.doubled(),
        hosts.iter().flat_map(alarms).collect::<Vec<_>>(),
        violations(&text)
    );
    assert!(lost <= deleted);
    assert_eq!((outputs.doubled(), redis.number(&["XLEN", "stream:dead_letter"])), (0, 0));
    assert!(hosts.iter_mut().all(Host::lives));
    assert!(lost == 0 || (!holds && text.contains("VIOLATED")), "{lost} are lost, and verify sees nothing: {text}");
}

#[test]
fn deleting_the_consumer_of_a_living_host_loses_nothing_or_is_said_in_its_log() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let hosts = [place.host(&redis, 1)];
    let (_, published) = delete_consumer_under_load(&redis, &hosts);
    wait_until("all is settled", || is_settled(&redis));
    let lost = Outputs::of(&redis).missing(0..published).len();
    let said = || is_alarmed(&hosts[0], &["DELCONSUMER", "consumer"]);
    assert!(lost == 0 || comes_true(Duration::from_secs(10), said), "{lost} are lost, and the log says nothing");
}

#[test]
fn deleting_the_reserved_consumer_loses_no_retry_or_is_said_in_the_log() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor(PATIENT);
    let host = place.host(&redis, 1);
    park(&redis, 20);
    let deleted = redis.number(&["XGROUP", "DELCONSUMER", "stream:in", "group:actor", PARKED]);
    let back = comes_true(Duration::from_secs(15), || Outputs::of(&redis).missing(0..20).is_empty());
    let (_, text) = verify(&redis);
    println!(
        "XGROUP DELCONSUMER {PARKED}: {deleted} deleted, {} came back, {} fields of park records left, alarms {:?}, verify: {:?}",
        Outputs::of(&redis).by_seq.len(),
        redis.number(&["HLEN", "cofferdam:park:stream:in|group:actor"]),
        alarms(&host),
        violations(&text)
    );
    assert!(back || is_alarmed(&host, &["parked", "retry"]), "{deleted} retries are gone, and the log says nothing");
}

/// A producer's MAXLEN takes what a slow plugin has not read; how many that were, and how many messages.
fn trim_unread(redis: &Redis, host: &Host) -> (u64, u64) {
    wait_until("the group is there", || host.log().contains("created the group"));
    publish(redis, "stream:in", (0..6_000).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":1000}}"#)));
    wait_until("it is at work", || redis.number(&["XLEN", "stream:out"]) > 10);
    let payload = r#"{"do":"emit","seq":6000}"#;
    redis.cli(&["XADD", "stream:in", "MAXLEN", "50", "*", "payload", payload, "producer_id", "tests"]);
    wait_until("the last is handled", || Outputs::of(redis).by_seq.contains_key(&6_000));
    wait_until("nothing is pending", || of_group(redis, "pending") == Some(0));
    (Outputs::of(redis).missing(0..6_001).len() as u64, 6_001)
}

#[test]
fn what_a_foreign_maxlen_takes_unread_is_counted_by_streams_and_verify() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    let mut host = place.host(&redis, 1);
    let (lost, total) = trim_unread(&redis, &host);
    let streams = cofferdam(&["streams", "--redis", &redis.url()]);
    let streams = String::from_utf8_lossy(&streams.stdout).into_owned();
    let (holds, text) = verify(&redis);
    let alarm = streams.lines().find(|line| line.starts_with("ALARM")).unwrap_or_default().to_owned();
    println!(
        "XADD MAXLEN 50: {total} published, {lost} taken unread; streams: {alarm}; verify: {:?}",
        violations(&text)
    );
    assert!(lost > 0, "it was too fast to lose anything: this test proves nothing");
    assert!(alarm.contains("trimmed before group:actor read them"), "{streams}");
    assert!(!holds && text.contains("read before trimmed"), "{text}");
    assert_eq!((Outputs::of(&redis).doubled(), redis.number(&["XLEN", "stream:dead_letter"])), (0, 0));
    assert!(host.lives());
}

#[test]
fn what_a_foreign_maxlen_takes_unread_is_said_in_the_log() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    let host = place.host(&redis, 1);
    let (lost, _) = trim_unread(&redis, &host);
    let said = || is_alarmed(&host, &["trimmed"]);
    assert!(
        comes_true(Duration::from_secs(70), said),
        "{lost} are gone, and the log says nothing: {:?}",
        alarms(&host)
    );
}

/// Publishes as a producer does that sets MAXLEN, all in one step: a program for each would be slower than the handler on a busy
/// machine.
fn publish_capped(redis: &Redis, numbers: std::ops::Range<u64>, cap: u64, busy_us: u64) {
    let script = r#"for seq = ARGV[1], ARGV[2] - 1 do
        local payload = '{"do":"emit","seq":' .. seq .. ',"busy_us":' .. ARGV[4] .. '}'
        redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[3], '*', 'payload', payload, 'producer_id', 'tests')
    end"#;
    let arguments = [numbers.start, numbers.end, cap, busy_us].map(|number| number.to_string());
    redis.cli(&[&["EVAL", script, "1", "stream:in"][..], &arguments.each_ref().map(String::as_str)].concat());
}

#[test]
fn a_backlog_near_a_foreign_maxlen_is_said_before_anything_is_lost() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    let delivery = [("COFFERDAM__DELIVERY__IN_FLIGHT", "20")];
    let data = place.directory.path().join("data1");
    let mut host = Host::start(&program(), &redis.url(), &data, &place.plugins(), &delivery);
    wait_until("the group is there", || host.log().contains("created the group"));
    // Twice as many as it handles, however fast this machine is, against a limit that leaves some seconds.
    let (mut published, mut handled) = (0, 0);
    let said = || is_alarmed(&host, &["lost unread"]);
    while published < 4_000 && !said() {
        let now = ledger(&redis, "committed");
        let next = published + 2 * (now - handled) + 1;
        publish_capped(&redis, published..next, 500, 100_000);
        (published, handled) = (next, now);
        std::thread::sleep(Duration::from_millis(150));
    }
    let log = alarms(&host);
    // The producer heeds it.
    wait_until("all is settled", || is_settled(&redis));
    let lost = Outputs::of(&redis).missing(0..published).len();
    println!("MAXLEN 500: {published} published, {lost} lost unread, alarms {log:?}");
    assert!(log.iter().any(|line| line.contains("lost unread")), "{log:?}");
    assert_eq!(lost, 0, "it was said too late");
    assert!(host.lives());
}

#[test]
fn a_backlog_near_a_foreign_maxlen_is_said_too_of_a_stream_that_was_deleted_and_began_anew() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    let settings = [("COFFERDAM__DELIVERY__IN_FLIGHT", "20"), ("COFFERDAM__STREAMS__STREAM:IN__KEEP", "1000")];
    let data = place.directory.path().join("data1");
    let mut host = Host::start(&program(), &redis.url(), &data, &place.plugins(), &settings);
    publish(&redis, "stream:in", (0..9_000).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    let trimmed = || redis.number(&["HGET", "cofferdam:trimmed", "stream:in"]);
    assert!(comes_true(Duration::from_secs(120), || trimmed() > 7_000), "the host has not trimmed: {}", trimmed());
    redis.cli(&["DEL", "stream:in"]);
    let (mut published, said) = (0, || is_alarmed(&host, &["lost unread"]));
    while published < 4_000 && !said() {
        publish_capped(&redis, published..published + 10, 500, 200_000);
        published += 10;
        std::thread::sleep(Duration::from_millis(60));
    }
    println!("after DEL and with MAXLEN 500: {published} published, alarms {:?}", alarms(&host));
    assert!(said(), "others trim, and the log says nothing: {:?}", alarms(&host));
    assert!(host.lives());
}

#[test]
fn a_foreign_trim_takes_no_retry_and_nothing_that_is_being_handled() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor(PATIENT);
    let mut host = place.host(&redis, 1);
    park(&redis, 40);
    // These are read and being handled when everything goes: half of them succeed, half of them fail.
    let slow = |seq: u64| {
        let act = if seq.is_multiple_of(2) { "emit" } else { "retry" };
        format!(r#"{{"do":"{act}","seq":{seq},"busy_us":60000}}"#)
    };
    publish(&redis, "stream:in", (100..110).map(slow));
    wait_until("they are being handled", || held_by(&redis, &consumer(&host)) == 10);
    let removed = redis.number(&["XTRIM", "stream:in", "MAXLEN", "0"]);
    wait_until("what waited comes back from its copy", || Outputs::of(&redis).missing(0..40).is_empty());
    wait_until("all is settled", || of_group(&redis, "pending") == Some(0));
    let outputs = Outputs::of(&redis);
    let handled = (100..110).filter(|seq| outputs.by_seq.contains_key(seq)).count();
    let letters = redis.cli(&["XRANGE", "stream:dead_letter", "-", "+"]);
    let stones = letters.lines().filter(|line| *line == "payload-trimmed").count();
    let (_, text) = verify(&redis);
    println!(
        "XTRIM MAXLEN 0: {removed} removed, {} of 40 retries rescued, {handled} in flight settled, {stones} tombstones, verify: {:?}",
        ledger(&redis, "rescued"),
        violations(&text)
    );
    assert_eq!(ledger(&redis, "rescued"), 40);
    assert_eq!((handled, stones, outputs.doubled()), (5, 5, 0), "{letters}");
    assert!(host.lives());
    wait_until("no copy is left", || redis.number(&["HLEN", "cofferdam:park:stream:in|group:actor"]) == 0);
}

#[test]
fn what_a_dead_host_held_and_somebody_trimmed_or_deleted_leaves_a_tombstone_each() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    let first = place.host(&redis, 1);
    let name = consumer(&first);
    wait_until("the group is there", || first.log().contains("created the group"));
    publish(&redis, "stream:in", (0..30).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":300000}}"#)));
    wait_until("it holds all", || of_group(&redis, "lag") == Some(0));
    first.kill();
    let held = held_by(&redis, &name);
    let pending = redis.cli(&["XPENDING", "stream:in", "group:actor", "-", "+", "100", &name]);
    let ids: Vec<&str> = pending.lines().filter(|line| line.contains('-') && !line.contains('/')).collect();
    let (deleted, trimmed) = (&ids[ids.len() - 3..], &ids[..held - 6]);
    redis.cli(&[&["XDEL", "stream:in"], deleted].concat());
    let next = ids[trimmed.len()];
    redis.cli(&["XTRIM", "stream:in", "MINID", next]);
    let mut second = place.host(&redis, 2);
    wait_until("all is settled", || of_group(&redis, "pending") == Some(0));
    let letters = redis.cli(&["XRANGE", "stream:dead_letter", "-", "+"]);
    let stones = letters.lines().filter(|line| *line == "payload-trimmed").count();
    let (_, text) = verify(&redis);
    println!(
        "killed with {held} in hand, {} of them trimmed and 3 deleted: {stones} tombstones, verify: {:?}",
        trimmed.len(),
        violations(&text)
    );
    assert_eq!(stones, trimmed.len() + 3);
    assert_eq!(Outputs::of(&redis).by_seq.len(), 30 - stones);
    assert!(ids.iter().filter(|id| letters.contains(**id)).count() == stones, "a tombstone does not name its entry");
    assert!(second.lives());
}

/// A host with a user of its own.
fn host_as(place: &Place, redis: &Redis, user: &str, number: usize) -> Host {
    let url = format!("{}?user={user}&pass=secret", redis.url());
    Host::start(&program(), &url, &place.directory.path().join(format!("data{number}")), &place.plugins(), &[])
}

/// Everything that a host does: commits, retries, dead letters, a dead host's entries, a redrive, trimming, and its end.
fn do_everything_as(redis: &Redis, user: &str) {
    let place = Place::new();
    place.put_actor("retries = 1\n[backoff]\nbase = \"50ms\"\n");
    let first = host_as(&place, redis, user, 1);
    publish(redis, "stream:in", (0..200).map(emit));
    publish(redis, "stream:in", [trap_once(200), String::from(r#"{"do":"trap","seq":201}"#)].into_iter());
    wait_until("all is done", || Outputs::of(redis).by_seq.len() == 201 && is_settled(redis));
    wait_until("the dead letter is there", || redis.number(&["XLEN", "stream:dead_letter"]) == 1);
    publish(redis, "stream:in", (300..320).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":100000}}"#)));
    wait_until("it holds some", || held_by(redis, &consumer(&first)) > 3);
    first.kill();
    let second = host_as(&place, redis, user, 2);
    wait_until("what it held is taken over", || Outputs::of(redis).missing(300..320).is_empty() && is_settled(redis));
    let url = format!("{}?user={user}&pass=secret", redis.url());
    for verb in
        [&["dlq", "redrive", "--all", "--reason", "a test", "--yes"][..], &["status"], &["streams"], &["verify"]]
    {
        let output = cofferdam(&[verb, &["--redis", &url]].concat());
        assert!(!errors(&output).contains("denies"), "{verb:?}: {}", errors(&output));
    }
    wait_until("it came back and died again", || redis.number(&["XLEN", "stream:dead_letter"]) == 1);
    wait_until("it has trimmed", || redis.number(&["EXISTS", "cofferdam:lock:trim"]) == 1);
    assert!(second.stop() < Duration::from_secs(6));
    // What a host can do without, and says so when it must.
    let spared = BTreeSet::from(["config|get", "memory|usage", "client|setinfo"]);
    let log = redis.cli(&["ACL", "LOG"]);
    let lines: Vec<&str> = log.lines().collect();
    let refused: BTreeSet<&str> = lines.windows(2).filter(|pair| pair[0] == "object").map(|pair| pair[1]).collect();
    assert!(refused.is_subset(&spared), "refused, and doctor did not ask for it: {refused:?}");
}

/// What `doctor` says to a user: of each check its name, its health, and the commands that mend it.
fn doctor(redis: &Redis, user: &str) -> Vec<[String; 3]> {
    let output = cofferdam(&["doctor", "--json", "--redis", &format!("{}?user={user}&pass=secret", redis.url())]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of =
        |check: &Value| ["check", "health", "mend"].map(|name| check[name].as_str().unwrap_or_default().to_owned());
    report["checks"].as_array().unwrap().iter().map(of).collect()
}

/// What `doctor` says of a user's permissions, and the commands that mend it.
fn doctor_says(redis: &Redis, user: &str) -> (String, String) {
    let check = doctor(redis, user).into_iter().find(|[name, ..]| name == "permissions");
    let [_, health, mend] = check.expect("doctor looks at the permissions");
    (health, mend)
}

/// The words of a command that stands in a text as for a shell.
fn shell_words(text: &str) -> Vec<&str> {
    text.split_whitespace().filter(|word| *word != "\\").map(|word| word.trim_matches('\'')).collect()
}

/// Does everything as a user who may do just this, of which `doctor` sees nothing missing.
fn suffices(redis: &Redis, user: &str, grants: &[&str]) {
    assert_eq!(redis.cli(&[&["ACL", "SETUSER", user], grants].concat()), "OK", "{grants:?}");
    assert_eq!(doctor_says(redis, user), (String::from("ok"), String::new()), "{grants:?}");
    redis.cli(&["ACL", "LOG", "RESET"]);
    do_everything_as(redis, user);
}

#[test]
fn a_user_with_just_what_doctor_asks_for_can_run_a_host() {
    let redis = Redis::start();
    let bare = ["ACL", "SETUSER", "bare", "on", ">secret", "+ping", "+acl|whoami", "+acl|dryrun"];
    assert_eq!(redis.cli(&bare), "OK");
    let (health, mend) = doctor_says(&redis, "bare");
    assert_eq!(health, "fail");
    let words = shell_words(&mend);
    println!("doctor: {mend}");
    assert_eq!(words[..4], ["redis-cli", "ACL", "SETUSER", "bare"], "{mend}");
    suffices(&redis, "bare", &words[4..]);
}

#[test]
fn a_user_with_what_doctor_and_the_documents_name_in_one_line_can_run_a_host() {
    let redis = Redis::start();
    assert_eq!(redis.cli(&["ACL", "SETUSER", "bare", "on", ">secret", "+ping", "+acl|whoami", "+acl|dryrun"]), "OK");
    let checks = doctor(&redis, "bare");
    let line =
        checks.iter().map(|[.., mend]| mend.as_str()).find(|mend| mend.starts_with("redis-cli ACL SETUSER NAME"));
    let line = shell_words(line.expect("doctor says what a user needs who may not even look"));
    let operations = std::fs::read_to_string(cofferdam_tests::root().join("docs/operations.md")).unwrap();
    let block = operations.split("```text\n").find(|block| block.starts_with("redis-cli ACL SETUSER")).unwrap();
    let documented = shell_words(block.split("```").next().unwrap());
    assert_eq!(line[4..], documented[6..], "doctor and docs/operations.md ask for different rights");
    assert_eq!(redis.cli(&["ACL", "SETUSER", "granted", "on", ">secret"]), "OK");
    suffices(&redis, "granted", &line[4..]);
}

/// Takes a right away from a host that is at work, gives it back, and looks at what that cost.
fn without(taken: &[&str], given_back: &[&str]) {
    let (redis, place) = (Redis::start(), Place::new());
    redis.cli(&["ACL", "SETUSER", "host", "on", ">secret", "+@all", "~*", "&*"]);
    place.put_actor("");
    let mut host = host_as(&place, &redis, "host", 1);
    let ((), published) = under_load(&redis, emit, |_| {
        assert_eq!(redis.cli(&[&["ACL", "SETUSER", "host"], taken].concat()), "OK");
        comes_true(Duration::from_secs(10), || is_alarmed(&host, &["denies access"]));
        std::thread::sleep(Duration::from_millis(1_500));
        // Whatever is acknowledged has its output.
        let acked = of_group(&redis, "entries-read").unwrap() - of_group(&redis, "pending").unwrap();
        let there = redis.number(&["XLEN", "stream:out"]) + redis.number(&["XLEN", "stream:dead_letter"]);
        println!("without {taken:?}: {acked} acknowledged, {there} outputs and dead letters");
        assert!(acked <= there, "{acked} are acknowledged, and there are {there} outputs");
        assert_eq!(redis.cli(&[&["ACL", "SETUSER", "host"], given_back].concat()), "OK");
    });
    wait_until("the rest is handled", || {
        Outputs::of(&redis).missing(0..published).is_empty() || !dead(&redis).is_empty()
    });
    wait_until("all is settled", || is_settled(&redis));
    let outputs = Outputs::of(&redis);
    println!(
        "without {taken:?}: {published} published, {} missing, {} doubled, {} dead letters, {} retried",
        outputs.missing(0..published).len(),
        outputs.doubled(),
        dead(&redis).len(),
        ledger(&redis, "retried")
    );
    assert!(host.lives());
    assert_eq!(outputs.missing(0..published).len(), 0);
    assert_eq!(
        (outputs.doubled(), dead(&redis).len()),
        (0, 0),
        "{}",
        redis.cli(&["XRANGE", "stream:dead_letter", "-", "+", "COUNT", "1"])
    );
    assert_eq!(ledger(&redis, "retried"), 0, "what an operator did was charged");
    assert!(is_alarmed(&host, &["denies access"]), "{:?}", alarms(&host));
}

fn dead(redis: &Redis) -> Vec<String> {
    let text = redis.cli(&["XRANGE", "stream:dead_letter", "-", "+"]);
    text.lines().filter(|line| line.starts_with("{\"do\"")).map(str::to_owned).collect()
}

#[test]
fn an_output_stream_that_the_user_may_no_longer_write_costs_nothing_when_it_may_again() {
    without(&["resetkeys", "~stream:in", "~stream:dead_letter", "~cofferdam:*"], &["~*"]);
}

#[test]
fn a_user_that_may_no_longer_add_to_streams_costs_nothing_when_it_may_again() {
    without(&["-xadd"], &["+xadd"]);
}

#[test]
fn a_user_that_may_no_longer_acknowledge_costs_nothing_when_it_may_again() {
    without(&["-xack"], &["+xack"]);
}

/// The stream on which a lane's rescued and redriven entries come.
const REDRIVE: &str = "cofferdam:redrive:group:actor";

#[test]
fn what_may_not_be_acknowledged_is_not_rescued_over_and_over() {
    let (redis, place) = (Redis::start(), Place::new());
    redis.cli(&["ACL", "SETUSER", "host", "on", ">secret", "+@all", "~*", "&*"]);
    place.put_actor(PATIENT);
    let host = host_as(&place, &redis, "host", 1);
    park(&redis, 20);
    redis.cli(&["ACL", "SETUSER", "host", "-xack"]);
    redis.cli(&["XTRIM", "stream:in", "MAXLEN", "0"]);
    wait_until("it is said", || is_alarmed(&host, &["denies access"]));
    std::thread::sleep(Duration::from_secs(2));
    let copies = redis.number(&["XLEN", REDRIVE]);
    redis.cli(&["ACL", "SETUSER", "host", "+xack"]);
    wait_until("what waited comes back from its copy", || Outputs::of(&redis).missing(0..20).is_empty());
    wait_until("all is settled", || is_settled(&redis));
    let (outputs, rescued) = (Outputs::of(&redis), ledger(&redis, "rescued"));
    println!("without xack: {copies} rescued by then, {rescued} in the end, {} doubled", outputs.doubled());
    assert_eq!((copies, rescued, outputs.doubled(), dead(&redis).len()), (0, 20, 0, 0));
}

#[test]
fn a_dead_letter_that_may_not_be_deleted_is_not_redriven_over_and_over() {
    let (redis, place) = (Redis::start(), Place::new());
    redis.cli(&["ACL", "SETUSER", "operator", "on", ">secret", "+@all", "~*", "&*", "-xdel"]);
    place.put_actor("retries = 0\n");
    let host = place.host(&redis, 1);
    publish(&redis, "stream:in", [String::from(r#"{"do":"trap","seq":0}"#)].into_iter());
    wait_until("it is dead", || redis.number(&["XLEN", "stream:dead_letter"]) == 1);
    // What comes would be dead once more.
    assert!(host.stop() < Duration::from_secs(6));
    let url = format!("{}?user=operator&pass=secret", redis.url());
    for _ in 0..2 {
        let output = cofferdam(&["dlq", "redrive", "--all", "--reason", "a test", "--yes", "--redis", &url]);
        assert!(!output.status.success());
        assert!(errors(&output).contains("may not XDEL stream:dead_letter"), "{}", errors(&output));
    }
    let left = (redis.number(&["XLEN", REDRIVE]), redis.number(&["XLEN", "stream:dead_letter"]));
    println!("redriven twice without xdel: {} redriven, {} dead letters", left.0, left.1);
    assert_eq!(left, (0, 1));
}

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
