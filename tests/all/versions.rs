//! Versions of a plugin over a fleet: kept by digest, rolled back by hand and by themselves, held over restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use cofferdam_tests::{Host, Place, Redis, cofferdam, comes_true, errors, publish, wait_until};
use serde_json::Value;

/// A version that handles everything, and one whose every output is refused.
const GOOD: &str = "retries = 2\n[config]\nversion = \"good\"\n";
const BAD: &str = "retries = 2\n[config]\nversion = \"bad\"\n[limits]\nevents = 0\n";
/// The same, whose failures are dead letters at once.
const BAD_AT_ONCE: &str = "retries = 0\n[config]\nversion = \"bad\"\n[limits]\nevents = 0\n";

/// What each living host runs, by the `version` of its configuration: told apart by their digests.
fn live(redis: &Redis) -> Vec<String> {
    let keys = redis.cli(&["--raw", "KEYS", "cofferdam:host:*"]);
    let digest = |key: &str| {
        let report: Value = serde_json::from_str(&redis.cli(&["--raw", "GET", key])).unwrap_or_default();
        report["plugins"][0]["digest"].as_str().unwrap_or_default().to_owned()
    };
    keys.lines().map(digest).collect()
}

/// Waits until so many hosts run one and the same version, other than `than`; its digest.
fn settled_on(redis: &Redis, hosts: usize, than: &str) -> String {
    let mut found = String::new();
    wait_until("every host runs the same version", || {
        let live = live(redis);
        found = live.first().cloned().unwrap_or_default();
        live.len() == hosts && !found.is_empty() && found != than && live.iter().all(|digest| *digest == found)
    });
    found
}

fn emits(from: u64, to: u64) -> impl Iterator<Item = String> {
    (from..to).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#))
}

/// How often each message was emitted, and by which version.
fn outputs(redis: &Redis) -> BTreeMap<u64, Vec<String>> {
    let text = redis.cli(&["--json", "XRANGE", "stream:out", "-", "+"]);
    let entries: Vec<(String, Vec<String>)> = serde_json::from_str(&text).unwrap_or_default();
    let mut found: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for (_, fields) in entries {
        let at = fields.iter().position(|field| field == "payload").expect("an output has a payload") + 1;
        let payload: Value = serde_json::from_str(&fields[at]).expect("it is JSON");
        let version = payload["version"].as_str().unwrap_or_default().to_owned();
        found.entry(payload["seq"].as_u64().expect("a number")).or_default().push(version);
    }
    found
}

/// The digests of the attempts of each dead letter.
fn attempts(redis: &Redis) -> Vec<Vec<String>> {
    let text = redis.cli(&["--json", "XRANGE", "stream:dead_letter", "-", "+"]);
    let entries: Vec<(String, Vec<String>)> = serde_json::from_str(&text).unwrap_or_default();
    let of = |fields: &[String]| {
        let at = fields.iter().position(|field| field == "attempts").expect("a dead letter tells its attempts") + 1;
        let attempts: Vec<Value> = serde_json::from_str(&fields[at]).expect("they are a list");
        attempts.iter().map(|attempt| attempt["digest"].as_str().unwrap_or_default().to_owned()).collect()
    };
    entries.iter().map(|(_, fields)| of(fields)).collect()
}

fn dead(redis: &Redis) -> u64 {
    redis.number(&["XLEN", "stream:dead_letter"])
}

#[test]
fn a_version_that_fails_where_the_one_before_did_not_is_rolled_back_by_itself_and_charges_no_message() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor(GOOD);
    let _hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    let good = settled_on(&redis, 2, "");
    publish(&redis, "stream:in", emits(0, 300));
    wait_until("the good version has done its part", || redis.number(&["XLEN", "stream:out"]) == 300);
    // What it has done is known before the next one comes.
    let counted = || redis.number(&["HGET", "cofferdam:versions:actor", &format!("{good}:ok")]);
    wait_until("its deliveries are counted over both hosts", || counted() == 300);

    place.put_actor(BAD);
    let bad = settled_on(&redis, 2, &good);
    publish(&redis, "stream:in", emits(300, 360));
    // These always fail, under any version: the number of their attempts tells what was charged.
    publish(&redis, "stream:in", (0..3).map(|_| String::from(r#"{"do":"trap"}"#)));
    let again = settled_on(&redis, 2, &bad);
    assert_eq!(again, good, "it went back to the version before");

    publish(&redis, "stream:in", emits(360, 400));
    wait_until("every message is emitted", || outputs(&redis).len() == 400);
    wait_until("what always fails is among the dead letters", || dead(&redis) == 3);
    let outputs = outputs(&redis);
    assert!(outputs.values().all(|versions| *versions == ["good"]), "each once, by the good version: {outputs:?}");
    for of_letter in attempts(&redis) {
        let charged = of_letter.iter().filter(|digest| **digest == good).count();
        assert_eq!(charged, 3, "all three tries are the good version's, whatever the bad one did: {of_letter:?}");
    }
    assert!(attempts(&redis).iter().flatten().any(|digest| *digest == bad), "the evidence of the bad version is kept");
    let log = redis.cli(&["--raw", "XRANGE", "stream:operator_log", "-", "+"]);
    assert!(log.contains("rollback") && log.contains("by itself") && log.contains(&bad), "{log}");
}

#[test]
fn a_redis_that_is_emptied_lets_no_version_run_that_was_taken_back_or_never_allowed() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor(GOOD);
    let hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    let good = settled_on(&redis, 2, "");
    place.put_actor(BAD_AT_ONCE);
    let bad = settled_on(&redis, 2, &good);
    let output = cofferdam(&["rollback", "actor", "--redis", &redis.url()]);
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(settled_on(&redis, 2, &bad), good);

    redis.cli(&["FLUSHALL"]);
    let notices = |host: &Host| host.log().contains("redis holds other data than before");
    wait_until("each host says what is gone", || hosts.iter().all(notices));
    assert_eq!(settled_on(&redis, 2, ""), good);
    wait_until("the pin is noted again", || redis.cli(&["HGET", "cofferdam:pins", "actor"]).contains(&good));
    // Its files too: the folder has another version, and hosts that start have nothing else.
    hosts.into_iter().for_each(|host| _ = host.stop());
    let hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    assert_eq!(settled_on(&redis, 2, ""), good);
    let output = cofferdam(&["unpin", "actor", "--redis", &redis.url()]);
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(settled_on(&redis, 2, &good), bad, "the folder counts again");

    // What asks for more than what runs waits, though the allowances went with the data.
    redis.cli(&["FLUSHALL"]);
    place.put_actor("instances = \"reuse\"\n[config]\nversion = \"more\"\n");
    let waits = |host: &Host| host.log().contains("waits: cofferdam approve actor");
    wait_until("both hosts let it wait", || hosts.iter().all(waits));
    assert_eq!(settled_on(&redis, 2, ""), bad);
}

#[test]
fn a_rollback_by_hand_holds_over_restarts_and_on_new_hosts_until_it_is_ended() {
    let (redis, place) = (Redis::start(), Place::new());
    let url = redis.url();
    let say = |arguments: &[&str]| {
        let output = cofferdam(&[arguments, &["--redis", &url]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    place.put_actor(GOOD);
    let mut hosts: Vec<Host> = (0..2).map(|number| place.host(&redis, number)).collect();
    let good = settled_on(&redis, 2, "");
    publish(&redis, "stream:in", emits(0, 5));
    wait_until("they are done", || outputs(&redis).len() == 5);

    // Too few to be judged by: a person has to.
    place.put_actor(BAD_AT_ONCE);
    let bad = settled_on(&redis, 2, &good);
    publish(&redis, "stream:in", emits(5, 15));
    wait_until("its failures are dead letters", || dead(&redis) == 10);
    let said = say(&["rollback", "actor", "--redrive", "--reason", "it drops everything"]);
    assert!(
        said.contains(&good[..12]) && said.contains("10 dead letters") && said.contains("cofferdam unpin"),
        "{said}"
    );
    wait_until("what it dead-lettered has been done", || outputs(&redis).len() == 15 && dead(&redis) == 0);
    assert!(outputs(&redis).values().all(|versions| *versions == ["good"]));

    // The folder still holds the bad one; a host that never saw the good one fetches it.
    for host in hosts.drain(..) {
        host.stop();
    }
    let hosts = [place.host(&redis, 0), place.host(&redis, 7)];
    assert_eq!(settled_on(&redis, 2, ""), good);
    publish(&redis, "stream:in", emits(15, 20));
    wait_until("the good version runs", || outputs(&redis).len() == 20);
    let shown = say(&["plugins", "actor"]);
    assert!(shown.contains("held to version") && shown.contains("it drops everything"), "{shown}");
    let history = say(&["history", "actor"]);
    for wanted in [&good[..12], &bad[..12], "pinned", "rolled back", "it drops everything", "runs on 2"] {
        assert!(history.contains(wanted), "{wanted} is missing:\n{history}");
    }

    say(&["unpin", "actor", "--reason", "mended downstream"]);
    assert_eq!(settled_on(&redis, 2, &good), bad, "the folder counts again");
    say(&["rollback", "actor"]);
    assert_eq!(settled_on(&redis, 2, &bad), good);

    // A deployment ends it too.
    let folder = place.directory.path().join("next");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(place.plugins().join("actor.wasm"), folder.join("actor.wasm")).unwrap();
    let manifest =
        "name = \"actor\"\nsubscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\n[config]\nversion = \"next\"\n";
    std::fs::write(folder.join("actor.toml"), manifest).unwrap();
    let data = hosts[0].data.display().to_string();
    let output = cofferdam(&["deploy", &folder.display().to_string(), "--data", &data]);
    assert!(output.status.success(), "{}", errors(&output));
    let next = settled_on(&redis, 2, &good);
    assert!(next != bad, "the version that was deployed runs");
    let log = redis.cli(&["--raw", "XRANGE", "stream:operator_log", "-", "+"]);
    for verb in ["rollback", "unpin", "deploy", "dlq.redrive"] {
        assert!(log.lines().any(|line| line == verb), "{verb} is not in the operator log: {log}");
    }
}

#[test]
fn a_version_that_rolled_back_by_itself_is_judged_anew_when_it_is_let_run_again() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor(GOOD);
    let host = place.host(&redis, 1);
    let good = settled_on(&redis, 1, "");
    publish(&redis, "stream:in", emits(0, 100));
    let counted =
        |digest: &str, field: &str| redis.number(&["HGET", "cofferdam:versions:actor", &format!("{digest}:{field}")]);
    wait_until("the good version has done its part", || counted(&good, "ok") == 100);
    place.put_actor(BAD_AT_ONCE);
    let bad = settled_on(&redis, 1, &good);
    // Fewer than half of the last hundred at any time, or the breaker would stop the reading.
    publish(&redis, "stream:in", emits(100, 140));
    assert_eq!(settled_on(&redis, 1, &bad), good);
    publish(&redis, "stream:in", emits(140, 240));
    wait_until("all are handled", || dead(&redis) + redis.number(&["XLEN", "stream:out"]) == 240);
    let before = dead(&redis);
    wait_until("its failures are counted", || counted(&bad, "failed") == before);

    // Too few to say anything by: what it did before no longer counts.
    let pinned = || redis.cli(&["HEXISTS", "cofferdam:pins", "actor"]) == "1";
    let history = || {
        let output = cofferdam(&["history", "actor", "--redis", &redis.url()]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = history();
    assert!(said.contains(&format!("{} was rolled back 20", &bad[..12])) && !said.contains("may run again"), "{said}");
    let output = cofferdam(&["unpin", "actor", "--redis", &redis.url(), "--reason", "mended downstream"]);
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(settled_on(&redis, 1, &good), bad, "the folder counts again");
    publish(&redis, "stream:in", emits(240, 250));
    wait_until("they failed", || dead(&redis) == before + 10);
    wait_until("they are counted", || counted(&bad, "failed") == 10);
    let said = history();
    for words in ["runs on 1, let run again", "may run again since 20", "handled and failed are counted since 20"] {
        assert!(said.contains(words), "{words:?} is missing:\n{said}");
    }
    assert!(!comes_true(Duration::from_secs(4), pinned), "10 failures were enough, or those before it was let run");
    publish(&redis, "stream:in", emits(250, 280));
    assert_eq!(settled_on(&redis, 1, &bad), good, "it has failed again");
    let said = history();
    assert!(said.contains("counted since 20") && !said.contains("run again"), "it is rolled back again:\n{said}");

    // Who deploys it all the same is told that it runs, and not what its host said before.
    let folder = place.directory.path().join("again");
    std::fs::create_dir(&folder).unwrap();
    for file in ["actor.wasm", "actor.toml"] {
        std::fs::copy(place.plugins().join(file), folder.join(file)).unwrap();
    }
    wait_until("the host says that it is held", || {
        let shown = cofferdam(&["plugins", "actor", "--redis", &redis.url()]);
        String::from_utf8_lossy(&shown.stdout).contains("held to version")
    });
    let output = cofferdam(&["deploy", &folder.display().to_string(), "--data", &host.data.display().to_string()]);
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(live(&redis), [bad], "the version that was deployed runs");
    assert!(!comes_true(Duration::from_secs(4), pinned), "what it did before it was deployed was held against it");
}

#[test]
fn a_kept_version_that_somebody_has_changed_is_not_run() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor(GOOD);
    let _host = place.host(&redis, 1);
    let good = settled_on(&redis, 1, "");
    place.put_actor(BAD);
    let bad = settled_on(&redis, 1, &good);
    redis.cli(&["HSET", &format!("cofferdam:version:{good}"), "wasm", "something else"]);
    let output = cofferdam(&["rollback", "actor", "--redis", &redis.url(), "--wait", "8s"]);
    assert_eq!(output.status.code(), Some(1));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(live(&redis), [bad], "what ran goes on");
    let shown = cofferdam(&["plugins", "--redis", &redis.url()]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("somebody has changed it"), "{shown}");
}
