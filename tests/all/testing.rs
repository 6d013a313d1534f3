//! `cofferdam test`: cases and logs without a Redis.

use std::fs;
use std::path::{Path, PathBuf};

use cofferdam_tests::{cofferdam_in, errors, guest, root};
use serde_json::Value;
use tempfile::TempDir;

fn place() -> TempDir {
    let place = tempfile::Builder::new().prefix("cf-").tempdir().unwrap();
    for name in ["normalize", "classify", "ioc"] {
        fs::write(place.path().join(format!("{name}.wasm")), guest(&format!("{name}.wasm"))).unwrap();
        fs::write(place.path().join(format!("{name}.toml")), guest(&format!("{name}.toml"))).unwrap();
    }
    place
}

/// Runs `cofferdam test` in a place: its exit code, what it said, and what it complained of.
fn test(place: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = cofferdam_in(place, &[&["test"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap_or(-1), said, errors(&output))
}

fn lab_log() -> PathBuf {
    root().join("examples/data/cowrie-3.1.4-lab-10k.json.gz")
}

#[test]
fn the_cases_of_the_first_plugin_hold() {
    let cases = root().join("plugins/normalize/normalize.test.toml").display().to_string();
    let (code, said, complained) = test(place().path(), &["normalize.wasm", "--cases", &cases]);
    assert_eq!(code, 0, "{said}{complained}");
    assert!(said.contains("3 cases, 0 failed"), "{said}");
}

#[test]
fn a_case_that_does_not_hold_is_told_apart_and_can_be_taken_as_right() {
    let place = place();
    let cases = "# mine\n[[case]]\nname = \"wrong\" # why\nmessage = { eventid = \"cowrie.login.failed\", src_ip = \"203.0.113.7\" }\n\
                 [[case.events]]\npayload = { action = \"nothing of the kind\" }\n";
    fs::write(place.path().join("normalize.test.toml"), cases).unwrap();
    let (code, said, complained) = test(place.path(), &["normalize.wasm", "--junit", "junit.xml"]);
    assert_eq!(code, 1);
    assert!(said.contains("FAILED  wrong") && said.contains("/action is \"login_failed\""), "{said}");
    assert!(complained.contains("--update"), "{complained}");
    let junit = fs::read_to_string(place.path().join("junit.xml")).unwrap();
    assert!(junit.contains("<failure") && junit.contains("login_failed"), "{junit}");

    assert_eq!(test(place.path(), &["normalize.wasm", "--update"]).0, 0);
    let updated = fs::read_to_string(place.path().join("normalize.test.toml")).unwrap();
    assert!(updated.contains("# mine") && updated.contains("# why") && updated.contains("login_failed"), "{updated}");
    let (code, said, _) = test(place.path(), &["normalize.wasm", "--json"]);
    let document: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &document["failed"]), (0, &Value::from(0)), "{said}");
}

#[test]
fn a_folder_makes_of_the_lab_log_what_hosts_make_of_it() {
    let place = place();
    let log = lab_log().display().to_string();
    let (code, said, complained) = test(place.path(), &["--chain", ".", &log, "--out", "streams", "--json"]);
    assert_eq!(code, 0, "{complained}");
    let document: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(document["streams"]["stream:attacks"], 9_476);
    assert_eq!(document["streams"]["stream:ai_decisions"], 4_672);
    assert_eq!(document["streams"]["stream:threat_intel"], 877);
    let lines = fs::read_to_string(place.path().join("streams/stream_attacks.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 9_476);
}

#[test]
fn the_same_log_gives_the_same_outputs_whatever_the_number_of_threads_and_the_clock_follows_the_data() {
    let place = place();
    let log = lab_log().display().to_string();
    let run = |threads: &str, out: &str| {
        let arguments = ["normalize.wasm", &log, "--threads", threads, "--out", out, "--clock", "from:/timestamp"];
        let (code, said, complained) = test(place.path(), &arguments);
        assert_eq!(code, 0, "{complained}");
        assert!(said.contains("10,414 messages") && !complained.contains("have no time"), "{said}{complained}");
        fs::read(place.path().join(out)).unwrap()
    };
    let (one, three) = (run("1", "one.jsonl"), run("3", "three.jsonl"));
    assert!(!one.is_empty() && one == three, "the outputs differ");
}

#[test]
fn what_is_typed_wrong_is_answered_with_what_to_type() {
    let place = place();
    let says = |arguments: &[&str], code: i32, wanted: &str| {
        let (found, said, complained) = test(place.path(), arguments);
        assert!(found == code && complained.contains(wanted), "{arguments:?}: {found} {said}{complained}");
    };
    says(&["normalize.wasm"], 2, "write normalize.test.toml beside it, or name a log");
    says(&["missing.wasm"], 2, "there is no file missing.wasm");
    says(&["normalize.wasm", "missing.json"], 1, "cannot read missing.json");
    says(&["normalize.wasm", "x.json", "--clock", "timestamp"], 2, "from:/timestamp");
    says(&["--chain", "."], 2, "name the log");
    says(&["--chain", ".", "x.json", "--stream", "stream:no"], 2, "they read stream:attacks, stream:honeypot_logs");
    fs::write(place.path().join("normalize.test.toml"), "[[case]]\nname = \"a\"\nmesage = {}\n").unwrap();
    says(&["normalize.wasm"], 2, "unknown field `mesage`");
    fs::write(place.path().join("empty.json"), "\n").unwrap();
    says(&["normalize.wasm", "empty.json"], 2, "hold no event");
    // Not even a configuration that would be refused is read from here.
    fs::write(place.path().join("cofferdam.toml"), "nonsense = true\n").unwrap();
    fs::write(place.path().join("one.json"), "{\"eventid\":\"cowrie.login.failed\",\"src_ip\":\"203.0.113.7\"}\n")
        .unwrap();
    assert_eq!(test(place.path(), &["normalize.wasm", "one.json"]).0, 0);
}

#[test]
fn a_trap_is_shown_with_its_backtrace_and_ends_the_command_with_one() {
    let place = place();
    fs::write(place.path().join("actor.wasm"), guest("test/actor.wasm")).unwrap();
    fs::write(place.path().join("actor.toml"), "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\n").unwrap();
    let lines = "{\"do\":\"emit\"}\n{\"do\":\"trap\"}\n{\"do\":\"retry\"}\n{\"do\":\"elsewhere\"}\n";
    fs::write(place.path().join("in.json"), lines).unwrap();
    let (code, said, complained) = test(place.path(), &["actor.wasm", "in.json"]);
    assert_eq!(code, 1);
    for wanted in ["event 2 -> trap", "the payload says trap", "0: ", "event 4 -> not-granted", "retry", "stream:out"] {
        assert!(said.contains(wanted), "{wanted} is missing: {said}");
    }
    assert!(complained.contains("2 messages ended in a fault"), "{complained}");
}

#[test]
fn what_a_flag_asks_for_and_cannot_be_done_is_refused_and_not_passed_over() {
    let place = place();
    fs::write(place.path().join("log.jsonl"), "{\"eventid\":\"cowrie.login.failed\",\"src_ip\":\"203.0.113.7\"}\n")
        .unwrap();
    for flag in [["--junit", "x.xml"].as_slice(), &["--update"]] {
        let (code, said, complained) = test(place.path(), &[&["normalize.wasm", "log.jsonl"], flag].concat());
        assert_eq!(code, 2, "{said}{complained}");
        assert!(complained.contains(flag[0]) && complained.contains("--cases FILE"), "{complained}");
    }
    let (code, _, complained) = test(place.path(), &["normalize.wasm", "log.jsonl", "--out", "/dev/full"]);
    assert_eq!(code, 1);
    assert!(complained.contains("cannot write /dev/full: No space left"), "{complained}");
    fs::remove_file(place.path().join("ioc.toml")).unwrap();
    let (code, _, complained) = test(place.path(), &["--chain", ".", "log.jsonl"]);
    assert_eq!(code, 2, "{complained}");
    assert!(complained.contains("ioc.wasm has no manifest") && complained.contains("write ioc.toml"), "{complained}");
}
