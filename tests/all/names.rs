use std::fs;
use std::path::PathBuf;
use std::process::Output;

use cofferdam_tests::guests::with_section;
use cofferdam_tests::{Host, Place, Redis, approve, cofferdam, errors, guest, publish, wait_until};
use serde_json::Value;

const OPEN: &str = "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\nstart = \"oldest\"\n";

/// The actor with a manifest inside it that gives it this name.
fn calls_itself(name: &str, version: &str) -> Vec<u8> {
    let manifest = format!("name = {name:?}\n{OPEN}[config]\nversion = {version:?}\n");
    with_section(guest("test/actor.wasm"), "cofferdam:manifest", manifest.as_bytes())
}

/// The manifest of the plugin that the operator put there.
fn real() -> String {
    format!("{OPEN}[config]\nversion = \"real\"\n")
}

fn drop_in(place: &Place, file: &str, bytes: &[u8]) {
    // In one step, so that no look sees half of it.
    let staged = place.directory.path().join("staged");
    fs::write(&staged, bytes).expect("the folder can be written");
    fs::rename(staged, place.plugins().join(file)).expect("a rename on one file system");
}

fn status(place: &Place, name: &str) -> String {
    fs::read_to_string(place.plugins().join(format!("{name}.status.txt"))).unwrap_or_default()
}

/// What the only host says of its plugins, by name.
fn report(redis: &Redis, name: &str) -> Option<Value> {
    let key = redis.cli(&["--raw", "KEYS", "cofferdam:host:*"]);
    let report: Value = serde_json::from_str(&redis.cli(&["--raw", "GET", &key])).unwrap_or_default();
    let plugins = report["plugins"].as_array().cloned().unwrap_or_default();
    plugins.into_iter().find(|plugin| plugin["name"] == name)
}

fn runs(redis: &Redis, name: &str) -> bool {
    report(redis, name).is_some_and(|plugin| plugin["state"] == "running")
}

fn waits(redis: &Redis, name: &str) -> bool {
    report(redis, name).is_some_and(|plugin| plugin["awaits_approval"] == true)
}

/// Publishes one message, and waits until this version has answered it.
fn answered_by(redis: &Redis, version: &str) {
    let before = redis.number(&["XLEN", "stream:out"]);
    publish(redis, "stream:in", [String::from(r#"{"do":"emit"}"#)].into_iter());
    wait_until("it is answered", || redis.number(&["XLEN", "stream:out"]) == before + 1);
    let answer = redis.cli(&["XREVRANGE", "stream:out", "+", "-", "COUNT", "1"]);
    assert!(answer.contains(&format!(r#""version":"{version}""#)), "{answer}");
}

/// A verb of the program, on the data of a host.
fn say(host: &Host, redis: &Redis, arguments: &[&str]) -> Output {
    let (data, url) = (host.data.to_string_lossy().into_owned(), redis.url());
    cofferdam(&[arguments, &["--data", &data, "--redis", &url]].concat())
}

#[test]
fn a_manifest_inside_a_file_takes_no_other_plugins_name_over_a_restart_either() {
    let (redis, place) = (Redis::start(), Place::new());
    fs::write(place.plugins().join("classify.wasm"), guest("test/actor.wasm")).expect("the folder can be written");
    fs::write(place.plugins().join("classify.toml"), real()).expect("the folder can be written");
    let host = place.host(&redis, 1);
    wait_until("it runs", || runs(&redis, "classify"));
    answered_by(&redis, "real");
    drop_in(&place, "aa-helper.wasm", &calls_itself("classify", "stolen"));
    wait_until("the name is taken, and the file that wanted it is told", || {
        status(&place, "aa-helper").contains("so does that of classify")
    });
    host.stop();
    // It proves itself whole at once; what vouches for the other is two seconds of quiet.
    let host = place.host(&redis, 1);
    wait_until("it runs again", || runs(&redis, "classify"));
    answered_by(&redis, "real");
    wait_until("the other is refused again", || {
        status(&place, "aa-helper").starts_with("aa-helper: refused")
            && status(&place, "aa-helper").contains("so does that of classify")
    });
    // With the real one gone it waits, though it asks for no more than that one was allowed.
    fs::remove_file(place.plugins().join("classify.wasm")).expect("it is there");
    wait_until("it waits for somebody to approve it", || waits(&redis, "classify"));
    let detail = report(&redis, "classify").expect("it was just there")["detail"].to_string();
    for part in ["a file that is called otherwise", "reads stream:in", "group = group:classify", "retries = 3"] {
        assert!(detail.contains(part), "{part} in {detail}");
    }
    assert!(!redis.cli(&["XRANGE", "stream:out", "-", "+"]).contains("stolen"), "it ran unapproved");
    assert!(approve(&host, &redis, "classify", "it is ours").status.success());
    wait_until("it runs now", || runs(&redis, "classify"));
    answered_by(&redis, "stolen");
    let digest = || report(&redis, "classify").map(|plugin| plugin["digest"].to_string());
    let stolen = digest();
    // The file that has the name by the operator's word comes back, and gets it back.
    fs::write(place.plugins().join("classify.wasm"), guest("test/actor.wasm")).expect("the folder can be written");
    wait_until("the other has lost it", || digest() != stolen && runs(&redis, "classify"));
    answered_by(&redis, "real");
    wait_until("and is told so", || report(&redis, "aa-helper").is_some_and(|plugin| plugin["state"] == "refused"));
}

#[test]
fn a_file_that_can_never_run_holds_no_name() {
    let (redis, place) = (Redis::start(), Place::new());
    let nothing = wat::parse_str("(module (memory (export \"memory\") 1))").expect("it is a module");
    let manifest = format!("name = \"classify\"\n{OPEN}");
    drop_in(&place, "aa.wasm", &with_section(nothing.clone(), "cofferdam:manifest", manifest.as_bytes()));
    // One whose manifest is the operator's, too.
    place.put("bb", &nothing, &manifest);
    let _host = place.host(&redis, 1);
    wait_until("both are refused", || {
        status(&place, "aa").contains("REFUSED  world") && status(&place, "classify").contains("REFUSED  world")
    });
    place.put("classify", &guest("test/actor.wasm"), &real());
    wait_until("the one that can run does", || runs(&redis, "classify"));
    answered_by(&redis, "real");
}

#[test]
fn a_plugin_that_is_renamed_keeps_its_group_and_one_that_waits_under_its_new_name_is_approved_under_it() {
    let (redis, place) = (Redis::start(), Place::new());
    let named = |name: &str| format!("name = {name:?}\ngroup = \"group:kept\"\n{}", real());
    place.put("r", &guest("test/actor.wasm"), &named("r"));
    let host = place.host(&redis, 1);
    wait_until("it runs", || runs(&redis, "r"));
    answered_by(&redis, "real");
    place.put("r", &guest("test/actor.wasm"), &named("renamed"));
    wait_until("it runs under its new name, and nothing under the old one", || {
        runs(&redis, "renamed") && report(&redis, "r").is_none()
    });
    wait_until("nor does a file say so", || !place.plugins().join("r.status.txt").exists());
    answered_by(&redis, "real");
    // Its file is replaced by another one, which has its group.
    fs::remove_file(place.plugins().join("r.wasm")).expect("it is there");
    fs::remove_file(place.plugins().join("r.toml")).expect("it is there");
    place.put("s", &guest("test/actor.wasm"), &named("s"));
    wait_until("the other one has its group", || runs(&redis, "s") && report(&redis, "renamed").is_none());
    answered_by(&redis, "real");
    assert_eq!(redis.number(&["XLEN", "stream:out"]), 3, "none was handled twice");
    // A version that names itself anew, and waits for that.
    fs::remove_file(place.plugins().join("s.toml")).expect("it is there");
    drop_in(&place, "s.wasm", &calls_itself("anew", "anew"));
    wait_until("it waits", || waits(&redis, "anew"));
    approve(&host, &redis, "anew", "");
    wait_until("it runs under the name that was approved", || runs(&redis, "anew"));
}

#[test]
fn one_group_is_one_plugins_whatever_it_reads_until_that_plugin_lets_go_of_it() {
    let (redis, place) = (Redis::start(), Place::new());
    let of_group = |stream: &str, group: &str| {
        format!("group = {group:?}\nsubscribe = [{stream:?}]\nemit = [\"stream:out\"]\nstart = \"oldest\"\n")
    };
    place.put("a", &guest("test/actor.wasm"), &of_group("stream:in", "group:shared"));
    let _host = place.host(&redis, 1);
    wait_until("it runs", || runs(&redis, "a"));
    // What is sent back comes to a group and not to a stream.
    place.put("b", &guest("test/actor.wasm"), &of_group("stream:other", "group:shared"));
    wait_until("the second is refused", || status(&place, "b").contains("a has the group \"group:shared\""));
    assert!(!runs(&redis, "b"));
    // The first lets go of it: the second runs without being touched.
    place.put("a", &guest("test/actor.wasm"), &of_group("stream:in", "group:own"));
    wait_until("both run", || runs(&redis, "a") && runs(&redis, "b"));
}

#[test]
fn what_was_said_under_a_files_name_is_not_said_any_more_once_its_manifest_gives_another() {
    let (redis, place) = (Redis::start(), Place::new());
    fs::write(place.plugins().join("lonely.wasm"), guest("test/actor.wasm")).expect("the folder can be written");
    let _host = place.host(&redis, 1);
    wait_until("it waits for a manifest", || report(&redis, "lonely").is_some());
    fs::write(place.plugins().join("lonely.toml"), format!("name = \"named\"\n{OPEN}")).expect("it can be written");
    wait_until("it runs under its name alone", || runs(&redis, "named") && report(&redis, "lonely").is_none());
    wait_until("nor does a file say so", || !place.plugins().join("lonely.status.txt").exists());
}

#[test]
fn a_deployment_replaces_no_other_plugin() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put("classify", &guest("test/actor.wasm"), &real());
    place.put("foo", &guest("test/actor.wasm"), "name = \"bar\"\nsubscribe = [\"stream:other\"]\n");
    let host = place.host(&redis, 1);
    wait_until("both run", || runs(&redis, "classify") && runs(&redis, "bar"));
    let desk = place.directory.path().join("desk");
    fs::create_dir(&desk).expect("it is new");
    let deploy = |file: &str, more: &[&str]| {
        let path: PathBuf = desk.join(file);
        say(&host, &redis, &[&["deploy", path.to_str().expect("it is UTF-8")], more].concat())
    };

    // A file that says of itself that it is another plugin.
    fs::write(desk.join("helper.wasm"), calls_itself("classify", "stolen")).expect("it can be written");
    let said = errors(&deploy("helper.wasm", &[]));
    assert!(said.contains("--as classify"), "{said}");
    let said = errors(&deploy("helper.wasm", &["--as", "other"]));
    assert!(said.contains("gives it the name \"classify\""), "{said}");
    assert!(place.plugins().join("classify.wasm").is_file() && !place.plugins().join("classify").exists());

    // A name under which another plugin's files stand.
    fs::write(desk.join("foo.wasm"), guest("test/actor.wasm")).expect("it can be written");
    fs::write(desk.join("foo.toml"), OPEN).expect("it can be written");
    let said = errors(&deploy("foo.wasm", &[]));
    assert!(said.contains("foo.wasm is the plugin \"bar\""), "{said}");
    assert!(place.plugins().join("foo.wasm").is_file() && place.plugins().join("foo.toml").is_file());
    assert!(runs(&redis, "bar"));
    answered_by(&redis, "real");

    // Whoever says so means it.
    let done = deploy("helper.wasm", &["--as", "classify"]);
    assert!(done.status.success(), "{}", errors(&done));
    answered_by(&redis, "stolen");
}
