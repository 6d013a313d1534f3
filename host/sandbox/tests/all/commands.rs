//! The command ABI: programs of preview 1 and of `wasi:cli/run`.

use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::{Event, Fault, Outcome, ReasonCode};
use cofferdam_sandbox::{Abi, Plugin, Slot};

use crate::guests::{call, call_in, component, fault, load, load_with, message, payloads, stopped_in_time};

/// A program of preview 1 that writes `stdout` and `stderr` and then runs `end`.
fn program(stdout: &str, stderr: &str, end: &str) -> Arc<Plugin> {
    load(&program_wasm(stdout, stderr, end))
}

fn program_wasm(stdout: &str, stderr: &str, end: &str) -> Vec<u8> {
    let escaped = |text: &str| text.bytes().map(|byte| format!("\\{byte:02x}")).collect::<String>();
    let wat = format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "path_open"
            (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export "memory") 4)
        (data (i32.const 1024) "{}")
        (data (i32.const 20480) "{}")
        (func $print (param $file i32) (param $at i32) (param $len i32)
          (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $len))
          (if (local.get $len) (then (drop (call $write (local.get $file) (i32.const 0) (i32.const 1) (i32.const 8))))))
        (func (export "_start") (local $i i32)
          (call $print (i32.const 1) (i32.const 1024) (i32.const {}))
          (call $print (i32.const 2) (i32.const 20480) (i32.const {}))
          {end}))"#,
        escaped(stdout),
        escaped(stderr),
        stdout.len(),
        stderr.len(),
    );
    wat::parse_str(&wat).unwrap_or_else(|error| panic!("{error}\n{wat}"))
}

fn exit(code: i32) -> String {
    format!("(call $exit (i32.const {code}))")
}

#[test]
fn lines_of_json_are_events_in_their_order() {
    let stdout = concat!(
        "{\"stream\": \"out\", \"payload\": {\"a\": 1.50, \"b\": [ ]}}\n\n",
        "{\"stream\":\"out\",\"payload\":12345678901234567890,\"priority\":4,\"key\":\"k\",\"attributes\":{\"z\":\"1\",\"a\":\"2\"}}",
    );
    let plugin = program(stdout, "", "");
    assert_eq!(plugin.abi(), Abi::Command);
    let Ok(Outcome::Events(events)) = call(&plugin).result else { panic!("no events") };
    assert_eq!(events[0].payload, "{\"a\": 1.50, \"b\": [ ]}");
    let attributes = vec![("z".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
    let second = Event {
        stream: "out".into(),
        payload: "12345678901234567890".into(),
        priority: Some(4),
        key: Some("k".into()),
        attributes,
    };
    assert_eq!(events[1], second);
}

#[test]
fn every_exit_code_has_its_meaning() {
    let event = "{\"stream\":\"out\",\"payload\":1}\n";
    let run = |code: i32| call(&program(event, "first\nlast line\n", &exit(code))).result;
    assert!(matches!(run(0), Ok(Outcome::Events(events)) if events.len() == 1));
    let reason = "last line".to_owned();
    assert_eq!(run(65), Ok(Outcome::Reject { reason: reason.clone() }));
    for code in [1, 2, 64, 66, 75, 101, 125, 126, 127, 255, 256, -1] {
        assert_eq!(run(code), Ok(Outcome::Retry { reason: reason.clone(), after: None }), "exit code {code}");
    }
    let silent = call(&program("", "", &exit(3))).result;
    assert!(matches!(silent, Ok(Outcome::Retry { reason, .. }) if reason.contains("exit code 3")));
}

#[test]
fn a_trap_is_a_trap_and_nothing_counts() {
    let trap = fault(&program("{\"stream\":\"out\",\"payload\":1}\n", "it broke\n", "unreachable"));
    assert!(matches!(&trap, Fault::Trap { text, .. } if text.contains("it broke")), "{trap:?}");
}

#[test]
fn anything_else_on_standard_output_is_quoted() {
    for (stdout, says) in [
        ("hello\n", "line 1 of standard output is no event"),
        ("{\"stream\":\"out\",\"payload\":1}\n{\"stream\":\"out\",\"payload\":nope}\n", "line 2"),
        ("{\"stream\":\"out\"}\n", "has no payload"),
        ("{\"payload\":1}\n", "names no stream"),
        ("{\"stream\":\"out\",\"payload\":1,\"extra\":2}\n", "unknown field `extra`"),
        ("{\"state\":{\"add\":{\"key\":\"k\"}}}\n", "changes state, which this version does not have yet"),
    ] {
        let bad = fault(&program(stdout, "", ""));
        assert_eq!(bad.code(), ReasonCode::BadOutput);
        assert!(bad.to_string().contains(says), "{bad}");
        // On another exit code nobody reads it.
        assert!(matches!(call(&program(stdout, "", &exit(1))).result, Ok(Outcome::Retry { .. })));
    }
    let elsewhere = fault(&program("{\"stream\":\"other\",\"payload\":1}", "", ""));
    assert_eq!(elsewhere.code(), ReasonCode::NotGranted);
}

#[test]
fn the_message_is_one_line_of_json_on_standard_input() {
    // Gives the head of its standard input back as a reason.
    let end = "(i32.store (i32.const 0) (i32.const 40960)) (i32.store (i32.const 4) (i32.const 4000))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $print (i32.const 2) (i32.const 40960) (i32.load (i32.const 8)))
        (call $exit (i32.const 65))";
    let mut message = message("{\"big\": 12345678901234567890,\r\n \"text\": \"a\\nb\"}");
    message.key = Some("10.0.0.1".into());
    message.attributes.push(("quo\"te".into(), "x".into()));
    let report = call_in(&program("", "", end), &mut Slot::default(), &message);
    let Ok(Outcome::Reject { reason }) = report.result else { panic!("{:?}", report.result) };
    let expected = concat!(
        r#"{"id":"1795418457352-3","message_id":"m-1","stream":"in","payload":{"big": 12345678901234567890,   "text": "a\nb"},"#,
        r#""priority":2,"timestamp":"2026-11-23T07:20:57","received_ms":1795418457352,"producer_id":"test","attempt":1,"#,
        r#""key":"10.0.0.1","attributes":{"sensor":"hp-1","quo\"te":"x"}}"#
    );
    assert_eq!(reason, expected);
}

#[test]
fn the_configuration_is_the_environment_and_there_are_no_files() {
    let end = "(drop (call $sizes (i32.const 0) (i32.const 4)))
        (if (i32.ne (i32.load (i32.const 0)) (i32.const 1)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 4)) (i32.const 12)) (then unreachable))
        (if (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 0)
            (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 16))) (then unreachable))";
    assert_eq!(call(&program("", "", end)).result, Ok(Outcome::Events(vec![])));
}

#[test]
fn a_program_can_be_run_again_and_answers_the_same() {
    // 8 random bytes and both clocks, as the digits of a reason.
    let end = "(drop (call $random (i32.const 40960) (i32.const 8)))
        (drop (call $time (i32.const 0) (i64.const 0) (i32.const 40968)))
        (drop (call $time (i32.const 1) (i64.const 0) (i32.const 40976)))
        (loop $next
          (i32.store8 (i32.add (i32.const 40960) (local.get $i))
            (i32.add (i32.const 33) (i32.rem_u (i32.load8_u (i32.add (i32.const 40960) (local.get $i))) (i32.const 90))))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $i) (i32.const 24))))
        (call $print (i32.const 2) (i32.const 40960) (i32.const 24))
        (call $exit (i32.const 65))";
    let plugin = program("", "", end);
    let reason = |seq: u64| {
        let mut message = message("{}");
        message.id.seq = seq;
        match call_in(&plugin, &mut Slot::default(), &message).result {
            Ok(Outcome::Reject { reason }) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(reason(1), reason(1));
    assert_ne!(reason(1), reason(2));
}

#[test]
fn a_program_that_sleeps_or_floods_is_stopped() {
    // One subscription to the monotonic clock, an hour from now.
    let sleep = "(memory.fill (i32.const 40960) (i32.const 0) (i32.const 48))
        (i32.store (i32.const 40976) (i32.const 1)) (i64.store (i32.const 40984) (i64.const 3600000000000))
        (drop (call $poll (i32.const 40960) (i32.const 45056) (i32.const 1) (i32.const 8)))";
    stopped_in_time(&program("", "", sleep));
    let flood = "(loop $on (call $print (i32.const 1) (i32.const 1024) (i32.const 12)) (br $on))";
    let report = call(&load_with(&program_wasm("{\"a\": [[[[[", "", flood), |spec| {
        spec.limits.deadline = Duration::from_secs(5);
        spec.limits.output_bytes = 100_000;
        spec.limits.events = 10;
    }));
    let Err(over) = &report.result else { panic!("{:?}", report.result) };
    assert_eq!(over.code(), ReasonCode::OutputLimit, "{over}");
}

#[test]
fn too_many_calls_of_the_host_are_a_fault_however_soon_the_program_ends() {
    let calls = |end: &str| {
        let text = format!(
            "(loop $again (call $print (i32.const 2) (i32.const 20480) (i32.const 1)) (local.set $i (i32.add (local.get $i) (i32.const 1))) (br_if $again (i32.lt_u (local.get $i) (i32.const 50)))) {end}"
        );
        let plugin = load_with(&program_wasm("", "", &text), |spec| spec.limits.host_calls = 10);
        fault(&plugin).code()
    };
    for end in ["", "unreachable", &exit(0), &exit(65)] {
        assert_eq!(calls(end), ReasonCode::HostCalls, "{end:?}");
    }
}

#[test]
fn every_delivery_has_a_fresh_instance() {
    let wat = r#"(module (memory (export "memory") 1)
        (func (export "_start")
          (if (i32.load (i32.const 0)) (then unreachable)) (i32.store (i32.const 0) (i32.const 1))))"#;
    let plugin = load_with(&wat::parse_str(wat).unwrap(), |spec| spec.instances = cofferdam_sandbox::Instances::Reuse);
    let mut slot = Slot::default();
    for _ in 0..3 {
        assert_eq!(call_in(&plugin, &mut slot, &message("{}")).result, Ok(Outcome::Events(vec![])));
    }
}

/// A program of `wasi:cli/run` that writes a line to each stream and then runs `end`.
fn run_component(end: &str) -> Arc<Plugin> {
    let wat = format!(
        r#"(module
        (import "wasi:cli/stdout@0.2.3" "get-stdout" (func $stdout (result i32)))
        (import "wasi:cli/stderr@0.2.3" "get-stderr" (func $stderr (result i32)))
        (import "wasi:cli/stdin@0.2.3" "get-stdin" (func $stdin (result i32)))
        (import "wasi:io/streams@0.2.3" "[method]output-stream.blocking-write-and-flush" (func $write (param i32 i32 i32 i32)))
        (import "wasi:io/streams@0.2.3" "[method]input-stream.blocking-read" (func $read (param i32 i64 i32)))
        (import "wasi:cli/exit@0.2.3" "exit" (func $exit (param i32)))
        (import "wasi:cli/exit@0.2.3" "exit-with-code" (func $code (param i32)))
        (memory (export "memory") 2)
        (data (i32.const 1024) "{{\"stream\":\"out\",\"payload\":1}}\n")
        (data (i32.const 1100) "the reason\n")
        (global $heap (mut i32) (i32.const 32768))
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
          (local $at i32) (local.set $at (global.get $heap))
          (global.set $heap (i32.add (local.get $at) (local.get 3))) (local.get $at))
        (func (export "wasi:cli/run@0.2.3#run") (result i32)
          (call $write (call $stdout) (i32.const 1024) (i32.const 29) (i32.const 3000))
          (call $write (call $stderr) (i32.const 1100) (i32.const 11) (i32.const 3000))
          {end}))"#
    );
    load(&component("command", &wat))
}

#[test]
fn a_component_can_be_a_program_too() {
    assert_eq!(payloads(&call(&run_component("(i32.const 0)"))), ["1"]);
    assert_eq!(payloads(&call(&run_component("(call $exit (i32.const 0)) (i32.const 1)"))), ["1"]);
    let reason = "the reason".to_owned();
    let retry = Ok(Outcome::Retry { reason: reason.clone(), after: None });
    assert_eq!(call(&run_component("(i32.const 1)")).result, retry);
    assert_eq!(call(&run_component("(call $exit (i32.const 1)) (i32.const 0)")).result, retry);
    assert_eq!(call(&run_component("(call $code (i32.const 75)) (i32.const 0)")).result, retry);
    assert_eq!(
        call(&run_component("(call $code (i32.const 65)) (i32.const 0)")).result,
        Ok(Outcome::Reject { reason })
    );
    assert!(matches!(call(&run_component("unreachable")).result, Err(Fault::Trap { .. })));
    // It finds the message on its standard input.
    let reads = "(call $read (call $stdin) (i64.const 4000) (i32.const 3000))
        (if (i32.load8_u (i32.const 3000)) (then unreachable))
        (if (i32.ne (i32.load8_u (i32.load offset=4 (i32.const 3000))) (i32.const 123)) (then unreachable))
        (i32.const 0)";
    assert_eq!(payloads(&call(&run_component(reads))), ["1"]);
}
