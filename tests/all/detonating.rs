//! `cofferdam detonate`: unknown code in a sealed process, and the page about it.

use std::fs;
use std::path::Path;

use cofferdam_tests::{cofferdam_in, errors, guest, guests};
use serde_json::Value;

/// Detonates a file over events: the page, and the report.
fn detonate(wasm: &[u8], events: &str) -> (String, Value) {
    let place = tempfile::Builder::new().prefix("cf-").tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(Path::join(place.path(), name), bytes).unwrap();
    put("unknown.wasm", wasm);
    put("events.jsonl", events.as_bytes());
    // A configuration that would be refused is not read.
    put("cofferdam.toml", b"nonsense = true\n");
    let arguments =
        ["detonate", "unknown.wasm", "--input", "events.jsonl", "--report", "out.json", "--deadline", "300ms"];
    let output = cofferdam_in(place.path(), &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let report = fs::read_to_string(place.path().join("out.json")).unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), serde_json::from_str(&report).unwrap())
}

#[test]
fn unknown_code_is_let_do_what_it_wants_and_all_of_it_is_on_the_page() {
    let events = "{\"do\":\"emit\",\"to\":\"stream:one\"}\n{\"do\":\"emit\",\"to\":\"stream:two\"}\n{\"do\":\"spin\"}\n{\"do\":\"trap\"}\n\
                  {\"do\":\"emit\",\"to\":\"stream:dead_letter\"}\n{\"do\":\"grow\"}\n{\"do\":\"reject\"}\n";
    let (page, report) = detonate(&guest("test/actor.wasm"), events);
    for wanted in [
        "stream:one",
        "stream:two",
        "the payload says trap",
        "it ran until it was stopped",
        "the host's own keys",
        "cofferdam:plugin/config",
    ] {
        assert!(page.contains(wanted), "{wanted} is missing:\n{page}");
    }
    assert_eq!((&report["events"], &report["outcomes"]["events"]), (&7.into(), &2.into()), "{report}");
    for word in ["deadline", "trap", "reserved-stream", "memory", "reject"] {
        assert_eq!(report["outcomes"][word], 1, "{word}: {report}");
    }
    assert_eq!(report["jail_lacks"].as_array().map(Vec::len), Some(0), "{report}");
}

#[test]
fn a_plugin_that_calls_home_is_denied_the_network_and_told_on() {
    let events =
        "{\"eventid\":\"cowrie.login.failed\",\"src_ip\":\"203.0.113.7\"}\n{\"eventid\":\"cowrie.log.closed\"}\n";
    let (page, report) = detonate(&guest("test/vendor.wasm"), events);
    assert_eq!((&report["outcomes"]["events"], &report["outcomes"]["filtered"]), (&1.into(), &1.into()), "{report}");
    assert!(page.contains("telemetry: "), "{page}");
    // Built without a target that knows WASI it has no function to call.
    if report["imports"].to_string().contains("wasi:sockets") {
        assert_eq!(report["host_calls"]["wasi:sockets/tcp-create-socket"], 1, "{report}");
        assert!(page.contains("it reached for files or the network 1 times, and got nothing"), "{page}");
    }
}

#[test]
fn what_does_not_compile_within_its_bounds_and_what_is_no_code_are_lines_of_the_page() {
    for (wasm, wanted) in [(guests::build("61-nested-loops"), "it did not run: "), (b"\x7fELF".to_vec(), "ELF")] {
        let (page, report) = detonate(&wasm, "{}\n");
        assert!(page.contains(wanted), "{page}");
        assert!(report["refused"].as_str().is_some_and(|text| !text.is_empty()), "{report}");
    }
}

#[test]
fn nothing_that_it_says_reaches_the_terminal_raw() {
    let (page, _) = detonate(&guests::build("45-forged-log"), "{}\n");
    assert!(page.contains("it logged"), "{page}");
    assert!(!page.contains('\u{1b}') && !page.contains('\u{7}') && !page.contains('\u{202e}'), "{page:?}");
}

#[test]
fn code_that_never_ran_is_not_acquitted() {
    let place = tempfile::Builder::new().prefix("cf-").tempdir().unwrap();
    fs::write(place.path().join("unknown.wasm"), guest("test/actor.wasm")).unwrap();
    fs::write(place.path().join("events.jsonl"), "{}\n").unwrap();
    fs::write(place.path().join("empty.jsonl"), "").unwrap();
    for (arguments, why) in [
        (["--input", "empty.jsonl"].as_slice(), "the input holds no event"),
        (&["--input", "events.jsonl", "--time", "0s"], "its time was up before the first event"),
        (&["--input", "events.jsonl", "--stream", "a b"], "--stream"),
    ] {
        let output = cofferdam_in(place.path(), &[&["detonate", "unknown.wasm"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", errors(&output));
        assert!(errors(&output).contains(why) && output.stdout.is_empty(), "{arguments:?}: {}", errors(&output));
    }
}
