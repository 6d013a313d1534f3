//! Versions that ask for more than those before them.

use std::fs;

use cofferdam_tests::{Host, Place, Redis, cofferdam, errors, publish, wait_until};

fn put(place: &Place, version: &str, more: &str) {
    place.put_actor(&format!("{more}[config]\nversion = \"{version}\"\n"));
}

fn approve(host: &Host, redis: &Redis, more: &[&str]) -> std::process::Output {
    let (data, url) = (host.data.to_string_lossy().into_owned(), redis.url());
    cofferdam(&[&["approve", "actor", "--data", &data, "--redis", &url], more].concat())
}

#[test]
fn what_asks_for_more_waits_while_the_old_version_runs_and_goes_live_once_it_is_approved() {
    let (redis, place) = (Redis::start(), Place::new());
    put(&place, "one", "");
    let hosts = [place.host(&redis, 1), place.host(&redis, 2)];
    let mut sent = 0;
    let mut answers_as = |version: &str| {
        let wanted = format!(r#""version":"{version}""#);
        wait_until("this version answers", || {
            publish(&redis, "stream:in", [format!(r#"{{"do":"emit","seq":{sent}}}"#)].into_iter());
            sent += 1;
            wait_until("it is handled", || redis.number(&["XLEN", "stream:out"]) == sent);
            redis.cli(&["XREVRANGE", "stream:out", "+", "-", "COUNT", "1"]).contains(&wanted)
        });
    };
    answers_as("one");
    let nothing = approve(&hosts[0], &redis, &[]);
    assert!(
        !nothing.status.success() && errors(&nothing).contains("no version of actor waits"),
        "{}",
        errors(&nothing)
    );
    // A version that asks for no more goes through.
    put(&place, "two", "");
    answers_as("two");
    // One that asks for more waits, on every host, and says so with the line to type.
    put(&place, "three", "instances = \"reuse\"\n");
    wait_until("both hosts let it wait", || {
        hosts.iter().all(|host| host.log().contains("waits: cofferdam approve actor"))
    });
    let status = place.plugins().join("actor.status.txt");
    wait_until("the file beside it shows the difference", || {
        fs::read_to_string(&status)
            .is_ok_and(|text| text.contains("+ instances = \"reuse\"") && text.contains("actor: running"))
    });
    answers_as("two");
    assert!(!redis.cli(&["XRANGE", "stream:out", "-", "+"]).contains(r#""version":"three""#), "it ran unapproved");
    // What a host says of itself comes a moment after what it writes beside the file.
    wait_until("a host reports that it waits", || {
        let (data, url) = (hosts[0].data.to_string_lossy().into_owned(), redis.url());
        let shown = cofferdam(&["plugins", "--json", "--data", &data, "--redis", &url]);
        String::from_utf8_lossy(&shown.stdout).contains(r#""awaits_approval": true"#)
    });
    let other = approve(&hosts[0], &redis, &["--digest", "ffffffffffff"]);
    assert!(!other.status.success(), "another digest approves nothing");
    let done = approve(&hosts[0], &redis, &["--reason", "as agreed"]);
    assert!(done.status.success(), "{}", errors(&done));
    let shown = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(shown.contains("+ instances = \"reuse\"") && shown.contains("approved: actor"), "{shown}");
    answers_as("three");
    let log = redis.cli(&["XRANGE", "stream:operator_log", "-", "+"]);
    assert!(log.contains("approve") && log.contains("as agreed"), "{log}");
    // What is allowed stays allowed: over a restart, and for the next version.
    let [first, second] = hosts;
    first.stop();
    second.stop();
    let _host = place.host(&redis, 1);
    answers_as("three");
    put(&place, "four", "instances = \"reuse\"\n");
    answers_as("four");
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
}
