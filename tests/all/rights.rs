//! Users of Redis that may do less than a host needs: what `doctor` says of them, and that nothing is lost or doubled meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use cofferdam_tests::{Host, Place, Redis, cofferdam, comes_true, errors, program, publish, wait_until};
use serde_json::Value;

use crate::operators::{
    Outputs, PATIENT, alarms, consumer, emit, held_by, is_alarmed, is_settled, ledger, of_group, park, trap_once,
    under_load,
};

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

/// What `plugins` says of a lane that is refused something.
const TRIED_AGAIN: &str = "tried again and again: redis denies access";

fn plugins(redis: &Redis) -> String {
    String::from_utf8_lossy(&cofferdam(&["plugins", "--redis", &redis.url()]).stdout).into_owned()
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
        wait_until("`plugins` says why it does not go on", || plugins(&redis).contains(TRIED_AGAIN));
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
    wait_until("`plugins` says that it goes on", || !plugins(&redis).contains(TRIED_AGAIN));
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

#[test]
fn a_settle_that_its_own_script_may_not_carry_out_names_the_rights_as_the_cause() {
    let (redis, place) = (Redis::start(), Place::new());
    redis.cli(&["ACL", "SETUSER", "host", "on", ">secret", "+@all", "~*", "&*"]);
    place.put_actor("");
    let host = host_as(&place, &redis, "host", 1);
    publish(&redis, "stream:in", (0..10).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":300000}}"#)));
    wait_until("it holds some", || held_by(&redis, &consumer(&host)) > 3);
    redis.cli(&["ACL", "SETUSER", "host", "-xpending"]);
    let said = || alarms(&host).into_iter().find(|line| line.contains("cannot settle"));
    wait_until("it is said", || said().is_some());
    redis.cli(&["ACL", "SETUSER", "host", "+xpending"]);
    assert!(said().is_some_and(|line| line.contains("check the user's ACL")), "{:?}", said());
    wait_until("all is handled", || Outputs::of(&redis).missing(0..10).is_empty() && is_settled(&redis));
    assert_eq!(Outputs::of(&redis).doubled(), 0);
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
