//! What operators do to a Redis that hosts are at work on, each act with what it costs and what the log says of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
pub(crate) fn of_group(redis: &Redis, name: &str) -> Option<u64> {
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
pub(crate) fn alarms(host: &Host) -> Vec<String> {
    host.log().lines().filter(|line| line.contains("ERROR")).map(str::to_owned).collect()
}

/// Whether an alarm names one of these words.
pub(crate) fn is_alarmed(host: &Host, words: &[&str]) -> bool {
    alarms(host).iter().any(|line| words.iter().any(|word| line.contains(word)))
}

/// The name of a host's consumer.
pub(crate) fn consumer(host: &Host) -> String {
    let read = || -> Option<String> {
        let report: Value = serde_json::from_str(&std::fs::read_to_string(host.data.join("run.json")).ok()?).ok()?;
        Some(report["consumer"].as_str()?.to_owned())
    };
    wait_until("the host has written its run file", || read().is_some());
    read().unwrap()
}

/// How many entries a consumer holds.
pub(crate) fn held_by(redis: &Redis, consumer: &str) -> usize {
    let held = redis.cli(&["XPENDING", "stream:in", "group:actor", "-", "+", "100000", consumer]);
    held.lines().filter(|line| *line == consumer).count()
}

pub(crate) const PARKED: &str = "~retry/86400000";

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
pub(crate) const PATIENT: &str = "retries = 3\n[backoff]\nbase = \"3s\"\nfactor = 1\n";

pub(crate) fn trap_once(seq: u64) -> String {
    format!(r#"{{"do":"trap-below","n":2,"seq":{seq}}}"#)
}

pub(crate) fn park(redis: &Redis, count: u64) {
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
        format!(r#"{{"do":"{act}","seq":{seq},"busy_us":300000}}"#)
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

#[test]
fn a_redis_that_forgets_what_was_read_over_a_rewrite_and_a_restart_raises_no_alarm() {
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let place = Place::new();
    place.put_actor("");
    let host = place.host(&redis, 1);
    publish(&redis, "stream:in", (0..100).map(emit));
    wait_until("the first are handled", || Outputs::of(&redis).missing(0..100).is_empty() && is_settled(&redis));
    redis.cli(&["BGREWRITEAOF"]);
    wait_until("it is rewritten", || {
        let said = redis.cli(&["INFO", "persistence"]);
        ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0"].iter().all(|state| said.contains(state))
    });
    publish(&redis, "stream:in", (100..300).map(emit));
    wait_until("the rest is handled", || Outputs::of(&redis).missing(100..300).is_empty() && is_settled(&redis));
    redis.restart();
    let counted = of_group(&redis, "entries-read");
    println!("after the restart Redis says that {counted:?} of 300 were read");
    wait_until("the host is back", || redis.cli(&["--raw", "KEYS", "cofferdam:host:*"]).contains("cofferdam:host:"));
    publish(&redis, "stream:in", (300..310).map(emit));
    wait_until("it goes on", || Outputs::of(&redis).missing(300..310).is_empty());
    // Some rounds of the guard, which are a second apart.
    std::thread::sleep(Duration::from_secs(4));
    let (holds, text) = verify(&redis);
    let streams = cofferdam(&["streams", "--redis", &redis.url()]);
    let streams = String::from_utf8_lossy(&streams.stdout).into_owned();
    assert!(holds, "{text}");
    assert!(!streams.contains("ALARM"), "{streams}");
    assert_eq!(alarms(&host), Vec::<String>::new());
}
