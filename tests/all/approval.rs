use std::fs;

use cofferdam_tests::guests::with_section;
use cofferdam_tests::{Host, Place, Redis, approve, cofferdam, errors, guest, program, publish, wait_until};

fn put(place: &Place, version: &str, more: &str) {
    place.put_actor(&format!("{more}[config]\nversion = \"{version}\"\n"));
}

/// What `approve` says of a version that does not wait.
fn refused(host: &Host, redis: &Redis, more: &[&str]) -> String {
    let (data, url) = (host.data.to_string_lossy().into_owned(), redis.url());
    let ran = cofferdam(&[&["approve", "actor", "--data", &data, "--redis", &url], more].concat());
    assert!(!ran.status.success(), "it was approved");
    errors(&ran)
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
    assert!(refused(&hosts[0], &redis, &[]).contains("no version of actor waits"));
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
    // What is approved is one version, and not all whose digest begins alike.
    let (log, before) = (hosts[0].log(), "waits: cofferdam approve actor --digest ");
    let digest = log.split(before).nth(1).and_then(|rest| rest.get(..64)).expect("the log has the whole line");
    assert!(refused(&hosts[0], &redis, &["--digest", &digest[..31]]).contains("32 are the fewest"));
    assert!(refused(&hosts[0], &redis, &["--digest", &"f".repeat(64)]).contains("no version of actor that begins"));
    let done = approve(&hosts[0], &redis, "actor", "as agreed");
    let shown = String::from_utf8_lossy(&done.stdout).into_owned();
    let (asks, approved) = shown.split_once("approved: actor").expect("it says what it did");
    assert!(asks.contains("+ instances = \"reuse\"") && approved.contains(digest), "{shown}");
    answers_as("three");
    let log = redis.cli(&["XRANGE", "stream:operator_log", "-", "+"]);
    assert!(log.contains("approve") && log.contains("as agreed"), "{log}");
    let history = cofferdam(&["history", "actor", "--redis", &redis.url()]);
    let history = String::from_utf8_lossy(&history.stdout).into_owned();
    assert!(history.contains("+ instances = \"reuse\"") && !history.contains("\\n"), "{history}");
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

const INSIDE: &[u8] = b"subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\nstart = \"oldest\"\n";

#[test]
fn a_new_plugin_that_brings_its_own_manifest_waits_for_somebody_to_approve_it_unless_it_is_trusted() {
    let (redis, place) = (Redis::start(), Place::new());
    let wasm = with_section(guest("test/actor.wasm"), "cofferdam:manifest", INSIDE);
    let host = place.host(&redis, 1);
    fs::write(place.plugins().join("actor.wasm"), &wasm).expect("the folder can be written");
    publish(&redis, "stream:in", [String::from(r#"{"do":"emit"}"#)].into_iter());
    let status = place.plugins().join("actor.status.txt");
    wait_until("it waits, and says what it asks for", || {
        fs::read_to_string(&status)
            .is_ok_and(|text| text.starts_with("actor: waiting") && text.contains("+ emits to stream:out"))
    });
    assert_eq!(redis.cli(&["EXISTS", "stream:out"]), "0", "it ran unapproved");
    approve(&host, &redis, "actor", "");
    wait_until("it runs", || redis.number(&["XLEN", "stream:out"]) == 1);
    // A file that lost its end has lost its manifest, and is not run without.
    fs::write(place.plugins().join("actor.wasm"), &wasm[..wasm.len() - 1]).expect("the folder can be written");
    wait_until("the rest is not run", || {
        fs::read_to_string(&status).is_ok_and(|text| text.starts_with("actor: paused") || text.contains("REFUSED"))
    });
    drop(host);

    let (redis, place) = (Redis::start(), Place::new());
    let trust = [("COFFERDAM__POLICY__EMBEDDED", "trust")];
    let _host = Host::start(&program(), &redis.url(), &place.directory.path().join("data"), &place.plugins(), &trust);
    fs::write(place.plugins().join("actor.wasm"), &wasm).expect("the folder can be written");
    publish(&redis, "stream:in", [String::from(r#"{"do":"emit"}"#)].into_iter());
    wait_until("it runs", || redis.number(&["XLEN", "stream:out"]) == 1);
}

#[test]
fn a_circle_of_plugins_waits_for_whoever_closes_it_and_stays_allowed_over_a_restart() {
    let (redis, place) = (Redis::start(), Place::new());
    let (there, back) = (
        "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\n",
        "subscribe = [\"stream:out\"]\nemit = [\"stream:in\"]\n",
    );
    place.put("there", &guest("test/actor.wasm"), there);
    let host = place.host(&redis, 1);
    wait_until("one way is open", || host.log().contains("live plugin=\"there\""));
    place.put("actor", &guest("test/actor.wasm"), back);
    let status = place.plugins().join("actor.status.txt");
    wait_until("the way back waits, and the circle is shown", || {
        fs::read_to_string(&status)
            .is_ok_and(|text| text.contains("+ closes a circle: actor → stream:in → there → stream:out → actor"))
    });
    approve(&host, &redis, "actor", "it ends by itself");
    wait_until("the way back is open", || host.log().contains("live plugin=\"actor\""));
    host.stop();
    // Another one closes it now: which of the two is there last is nobody's affair.
    let data = place.directory.path().join("data1");
    fs::remove_file(data.join("log")).expect("the host has logged");
    fs::rename(place.plugins().join("there.toml"), place.plugins().join("there.aside")).expect("it is there");
    let host = place.host(&redis, 1);
    wait_until("the first is back", || host.log().contains("live plugin=\"actor\""));
    fs::rename(place.plugins().join("there.aside"), place.plugins().join("there.toml")).expect("it is there");
    wait_until("and so is the second", || host.log().contains("live plugin=\"there\""));
}
