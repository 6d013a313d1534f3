//! Dead letters in the hands of operators: which ones an act takes, several acts at once, and letters that hold less than their entry.

use std::collections::BTreeSet;
use std::process::Output;
use std::time::Duration;

use cofferdam_tests::{Place, Redis, cofferdam, errors, publish, wait_until};

use crate::operators::ledger;

const DEAD: &str = "stream:dead_letter";
const REDRIVE: &str = "cofferdam:redrive:group:actor";

/// Leaves so many dead letters behind, and no host that would take what is sent back.
fn leave_letters(redis: &Redis, place: &Place, count: u64) {
    place.put_actor("retries = 0\n");
    let host = place.host(redis, 1);
    publish(redis, "stream:in", (0..count).map(|seq| format!(r#"{{"do":"reject","seq":{seq}}}"#)));
    wait_until("all are dead", || redis.number(&["XLEN", DEAD]) == count);
    assert!(host.stop() < Duration::from_secs(6));
}

/// A verb of `dlq`.
fn dlq(redis: &Redis, words: &[&str]) -> Output {
    cofferdam(&[&["dlq"], words, &["--redis", &redis.url()]].concat())
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), errors(output))
}

/// The letters on record, by what was done with them; in the order of the log.
fn on_record(redis: &Redis, verb: &str) -> Vec<String> {
    let text = redis.cli(&["--json", "XRANGE", "stream:operator_log", "-", "+"]);
    let entries: Vec<(String, Vec<String>)> = serde_json::from_str(&text).unwrap_or_default();
    let of = |fields: &[String], name: &str| {
        fields
            .iter()
            .step_by(2)
            .position(|field| field == name)
            .map(|at| fields[2 * at + 1].clone())
            .unwrap_or_default()
    };
    let of_verb = entries.iter().filter(|(_, fields)| of(fields, "verb") == verb);
    of_verb.map(|(_, fields)| of(fields, "letter")).collect()
}

/// The ids of all dead letters.
fn ids(redis: &Redis) -> Vec<String> {
    let text = redis.cli(&["--json", "XRANGE", DEAD, "-", "+"]);
    let entries: Vec<(String, Vec<String>)> = serde_json::from_str(&text).unwrap_or_default();
    entries.into_iter().map(|(id, _)| id).collect()
}

#[test]
fn an_act_since_what_is_no_moment_takes_nothing() {
    let (redis, place) = (Redis::start(), Place::new());
    leave_letters(&redis, &place, 3);
    let seconds = redis.cli(&["TIME"]).lines().next().unwrap().to_owned();
    for since in ["2027-01", &seconds] {
        let output = dlq(&redis, &["discard", "--all", "--yes", "--since", since]);
        assert_eq!(output.status.code(), Some(2), "{since}: {}", said(&output));
        assert!(errors(&output).contains("000 behind them"), "{}", errors(&output));
        assert_eq!(redis.number(&["XLEN", DEAD]), 3, "{since}");
    }
    // From the beginning is said by 0.
    let output = dlq(&redis, &["discard", "--all", "--yes", "--since", "0"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(redis.number(&["XLEN", DEAD]), 0);
}

#[test]
fn acts_at_the_same_time_take_each_letter_once_and_the_log_says_which_did() {
    let (redis, place) = (Redis::start(), Place::new());
    leave_letters(&redis, &place, 400);
    let act = |verb| dlq(&redis, &[verb, "--all", "--yes", "--reason", "a test"]);
    std::thread::scope(|scope| {
        for verb in ["discard", "discard", "redrive"] {
            scope.spawn(move || {
                let output = act(verb);
                assert!(output.status.success(), "{}", said(&output));
            });
        }
    });
    let (discarded, sent_back) = (on_record(&redis, "dlq.discard"), on_record(&redis, "dlq.redrive"));
    let letters: BTreeSet<&String> = discarded.iter().chain(&sent_back).collect();
    println!("400 letters: {} discarded, {} sent back", discarded.len(), sent_back.len());
    assert_eq!((discarded.len() + sent_back.len(), letters.len()), (400, 400), "a letter is on record twice");
    assert_eq!(redis.number(&["XLEN", REDRIVE]), sent_back.len() as u64, "what was sent back is not what is on record");
    assert_eq!(redis.number(&["XLEN", DEAD]), 0);
    assert_eq!(redis.cli(&["HGET", "cofferdam:ledger:stream:in|group:actor", "dead_bytes"]), "0");
    assert_eq!(ledger(&redis, "dead"), 400);
    let verified = cofferdam(&["verify", "--redis", &redis.url()]);
    assert!(verified.status.success(), "{}", said(&verified));
}

#[test]
fn a_letter_stays_where_no_act_can_be_put_on_record() {
    let (redis, place) = (Redis::start(), Place::new());
    leave_letters(&redis, &place, 1);
    redis.cli(&["SET", "stream:operator_log", "something else"]);
    for verb in ["discard", "redrive"] {
        let output = dlq(&redis, &[verb, "--all", "--yes"]);
        assert!(!output.status.success() && errors(&output).contains("stream:operator_log"), "{}", said(&output));
        assert_eq!((redis.number(&["XLEN", DEAD]), redis.number(&["XLEN", REDRIVE])), (1, 0), "{verb}");
    }
}

/// What lacks something goes back only by `--incomplete`, and `show` says what that is.
fn goes_back_only_when_told(redis: &Redis, lacks: &str) {
    let ids = ids(redis);
    let [id] = ids.as_slice() else { panic!("{} letters instead of one", ids.len()) };
    let shown = said(&dlq(redis, &["show", id]));
    assert!(shown.contains(lacks) && shown.contains("--incomplete") && !shown.contains("byte for byte"), "{shown}");
    let refused = dlq(redis, &["redrive", "--all", "--yes"]);
    assert!(!refused.status.success() && said(&refused).contains("--incomplete"), "{}", said(&refused));
    assert_eq!((redis.number(&["XLEN", DEAD]), redis.number(&["XLEN", REDRIVE])), (1, 0));
    let told = dlq(redis, &["redrive", id, "--incomplete"]);
    assert!(told.status.success(), "{}", said(&told));
    assert_eq!((redis.number(&["XLEN", DEAD]), redis.number(&["XLEN", REDRIVE])), (0, 1));
}

#[test]
fn an_entry_of_which_not_all_fields_were_kept_is_not_sent_back_as_if_they_were() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 0\n");
    let host = place.host(&redis, 1);
    let fields: Vec<String> = (0..3_500).flat_map(|n| [format!("f{n}"), String::from("v")]).collect();
    let add = ["XADD", "stream:in", "*", "payload", r#"{"do":"reject"}"#];
    redis.cli(&add.into_iter().chain(fields.iter().map(String::as_str)).collect::<Vec<_>>());
    wait_until("it is dead", || redis.number(&["XLEN", DEAD]) == 1);
    assert!(host.stop() < Duration::from_secs(6));
    goes_back_only_when_told(&redis, "first 3,000 fields");
}

#[test]
fn an_entry_that_was_gone_before_it_could_be_copied_is_not_sent_back_as_if_it_were_whole() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 0\n");
    let host = place.host(&redis, 1);
    let payload = r#"{"do":"reject","busy_us":900000}"#;
    let id = redis.cli(&["XADD", "stream:in", "*", "payload", payload, "trace", "t-1"]);
    let pending = || redis.cli(&["XPENDING", "stream:in", "group:actor"]);
    wait_until("it is being handled", || pending().lines().next() == Some("1"));
    redis.cli(&["XDEL", "stream:in", &id]);
    wait_until("it is dead", || redis.number(&["XLEN", DEAD]) == 1);
    assert!(host.stop() < Duration::from_secs(6));
    goes_back_only_when_told(&redis, "gone before it could be copied");
}

#[test]
fn what_was_sent_back_and_settled_stands_in_streams_and_nothing_to_send_back_is_said() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 0\n");
    let host = place.host(&redis, 1);
    let nothing = dlq(&redis, &["redrive", "--all"]);
    assert!(nothing.status.success() && said(&nothing).contains("nothing to do"), "{}", said(&nothing));
    publish(&redis, "stream:in", [String::from(r#"{"do":"reject"}"#)].into_iter());
    wait_until("it is dead", || redis.number(&["XLEN", DEAD]) == 1);
    let first = ids(&redis);
    assert!(dlq(&redis, &["redrive", "--all"]).status.success());
    wait_until("it is dead again", || ids(&redis).len() == 1 && ids(&redis) != first);
    let shows = |names: &[&str]| said(&cofferdam(&[&["streams"], names, &["--redis", &redis.url()]].concat()));
    wait_until("the redrive stream is empty", || redis.number(&["XLEN", REDRIVE]) == 0);
    for names in [[].as_slice(), &[REDRIVE]] {
        let shown = shows(names);
        let line = shown
            .lines()
            .skip_while(|line| !line.trim_start().starts_with(REDRIVE))
            .find(|line| line.contains("  group:actor"));
        assert!(line.is_some_and(|line| line.trim_end().ends_with('1')), "{names:?}:\n{shown}");
    }
    host.stop();
}
