//! What a well-behaved handler sees and says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cofferdam_model::Outcome;
use cofferdam_sandbox::{Abi, Call, Instances, LogLevel, Slot, invoke};

use crate::guests::{STARTED_MS, call, call_in, echo, handler, load, load_with, message, payloads};

#[test]
fn a_message_comes_back_as_an_event() {
    let plugin = load(&echo());
    assert_eq!(plugin.abi(), Abi::Component);
    let report = call(&plugin);
    assert_eq!(payloads(&report), [r#"{"n":1}"#]);
    assert!(report.memory_bytes >= 2 * 65_536 && report.log.is_empty());
}

#[test]
fn an_empty_list_retry_and_reject_are_answers() {
    let filtered = load(&handler("", "", "(call $ok (i32.const 0))"));
    assert_eq!(call(&filtered).result, Ok(Outcome::Events(vec![])));
    let reject = load(&handler("", "", "(call $fail (i32.const 1) (i32.const 1060) (i32.const 9))"));
    assert_eq!(call(&reject).result, Ok(Outcome::Reject { reason: "not yours".into() }));
    let retry = "(drop (call $fail (i32.const 0) (i32.const 1060) (i32.const 9)))
                 (i32.store8 offset=24 (i32.const 2048) (i32.const 1))
                 (i64.store offset=32 (i32.const 2048) (i64.const 700))
                 (i32.const 2048)";
    let retry = call(&load(&handler("", "", retry)));
    let after = Some(Duration::from_millis(700));
    assert_eq!(retry.result, Ok(Outcome::Retry { reason: "not yours".into(), after }));
}

#[test]
fn log_lines_and_both_output_streams_become_the_log() {
    let imports = r#"(import "wasi:cli/stdout@0.2.3" "get-stdout" (func $stdout (result i32)))
        (import "wasi:cli/stderr@0.2.3" "get-stderr" (func $stderr (result i32)))
        (import "wasi:io/streams@0.2.3" "[method]output-stream.blocking-write-and-flush"
            (func $write (param i32 i32 i32 i32)))"#;
    let body = "(call $log (i32.const 3) (i32.const 1060) (i32.const 9))
        (call $write (call $stdout) (i32.const 1100) (i32.const 6) (i32.const 3000))
        (call $write (call $stderr) (i32.const 1060) (i32.const 9) (i32.const 3000))
        (call $ok (i32.const 0))";
    let report = call(&load(&handler(imports, "", body)));
    let lines: Vec<_> = report.log.iter().map(|line| (line.level, line.line.as_str())).collect();
    assert_eq!(lines, [(LogLevel::Error, "not yours"), (LogLevel::Info, "hello"), (LogLevel::Warn, "not yours")]);
}

/// Emits a reading of each clock and a random number, in hexadecimal, as one JSON string.
fn watcher() -> Vec<u8> {
    let imports = r#"(import "wasi:clocks/monotonic-clock@0.2.3" "now" (func $now (result i64)))
        (import "wasi:clocks/wall-clock@0.2.3" "now" (func $wall (param i32)))
        (import "wasi:random/random@0.2.3" "get-random-u64" (func $random (result i64)))"#;
    let items = r#"(func $hex (param $at i32) (param $value i64)
        (local $i i32) (local $digit i32)
        (loop $next
          (local.set $digit (i32.wrap_i64 (i64.and (local.get $value) (i64.const 15))))
          (i32.store8 (i32.sub (i32.add (local.get $at) (i32.const 15)) (local.get $i))
            (i32.add (local.get $digit) (select (i32.const 87) (i32.const 48) (i32.gt_u (local.get $digit) (i32.const 9)))))
          (local.set $value (i64.shr_u (local.get $value) (i64.const 4)))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $i) (i32.const 16)))))"#;
    let body = r#"(call $wall (i32.const 3000))
        (call $hex (i32.const 6001) (i64.load (i32.const 3000)))
        (call $hex (i32.const 6017) (i64.extend_i32_u (i32.load offset=8 (i32.const 3000))))
        (call $hex (i32.const 6033) (call $now))
        (call $hex (i32.const 6049) (call $random))
        (i32.store8 (i32.const 6000) (i32.const 34)) (i32.store8 (i32.const 6065) (i32.const 34))
        (call $event (i32.const 0) (i32.const 6000) (i32.const 66))
        (call $ok (i32.const 1))"#;
    handler(imports, items, body)
}

#[test]
fn time_and_chance_are_functions_of_the_delivery() {
    let wasm = watcher();
    let seen = |attempt: u32, change: &dyn Fn(&mut cofferdam_model::Message)| {
        let mut message = message("{}");
        change(&mut message);
        let report =
            invoke(&load(&wasm), &mut Slot::default(), &Call { message: &message, attempt, started_ms: STARTED_MS });
        payloads(&report).concat()
    };
    let first = seen(1, &|_| ());
    assert_eq!(first, seen(1, &|_| ()), "the same delivery saw another time or chance");
    let seconds = u64::from_str_radix(&first[1..17], 16).unwrap();
    assert_eq!(seconds, STARTED_MS / 1_000, "the wall clock is not the recorded start");
    let others = [seen(2, &|_| ()), seen(1, &|m| m.id.seq += 1), seen(1, &|m| m.stream = Arc::from("other"))];
    for (index, other) in others.iter().enumerate() {
        assert_ne!(first[49..], other[49..], "another delivery ({index}) drew the same random number");
        assert_eq!(first[..49], other[..49], "time depends on more than the recorded start");
    }
    // A reused instance sees the same as a fresh one.
    let reused = load_with(&wasm, |spec| spec.instances = Instances::Reuse);
    let mut slot = Slot::default();
    for _ in 0..3 {
        assert_eq!(payloads(&call_in(&reused, &mut slot, &message("{}"))).concat(), first);
    }
}

/// Counts its calls in a global and gives the payload back that often.
fn counter() -> Vec<u8> {
    let items = "(global $count (mut i32) (i32.const 0))";
    let body = r#"(global.set $count (i32.add (global.get $count) (i32.const 1)))
        (global.set $heap (i32.const 32768))
        (call $event (i32.const 0) (i32.const 1040) (i32.const 7))
        (call $event (i32.const 1) (i32.const 1040) (i32.const 7))
        (call $event (i32.const 2) (i32.const 1040) (i32.const 7))
        (if (i32.eq (i32.load offset=28 (local.get $m)) (i32.const 4)) (then unreachable))
        (call $ok (global.get $count))"#;
    handler("", items, body)
}

#[test]
fn a_fresh_instance_remembers_nothing_and_a_reused_one_does() {
    let counts = |instances| {
        let plugin = load_with(&counter(), |spec| spec.instances = instances);
        let mut slot = Slot::default();
        [(); 3].map(|()| payloads(&call_in(&plugin, &mut slot, &message("{}"))).len())
    };
    assert_eq!(counts(Instances::Fresh), [1, 1, 1]);
    assert_eq!(counts(Instances::Reuse), [1, 2, 3]);
}

#[test]
fn a_fault_discards_the_reused_instance() {
    let plugin = load_with(&counter(), |spec| spec.instances = Instances::Reuse);
    let mut slot = Slot::default();
    assert_eq!(payloads(&call_in(&plugin, &mut slot, &message("{}"))).len(), 1);
    assert_eq!(payloads(&call_in(&plugin, &mut slot, &message("{}"))).len(), 2);
    assert!(call_in(&plugin, &mut slot, &message("null")).result.is_err());
    assert_eq!(payloads(&call_in(&plugin, &mut slot, &message("{}"))).len(), 1);
}

#[test]
fn a_bad_answer_discards_the_reused_instance_too() {
    let items = "(global $count (mut i32) (i32.const 0))";
    let body = "(global.set $count (i32.add (global.get $count) (i32.const 1)))
        (global.set $heap (i32.const 32768))
        (call $event (i32.const 0) (i32.const 1060) (i32.const 9))
        (call $ok (i32.eq (global.get $count) (i32.const 2)))";
    let plugin = load_with(&handler("", items, body), |spec| spec.instances = Instances::Reuse);
    let mut slot = Slot::default();
    let mut went_well = || call_in(&plugin, &mut slot, &message("{}")).result.is_ok();
    assert_eq!([went_well(), went_well(), went_well(), went_well()], [true, false, true, false]);
}

#[test]
fn a_reused_instance_that_grows_is_renewed() {
    // One page a message, for ever; its limit is 64 pages.
    let body = "(drop (memory.grow (i32.const 1))) (global.set $heap (i32.const 32768)) (call $ok (i32.const 0))";
    let plugin = load_with(&handler("", "", body), |spec| {
        spec.instances = Instances::Reuse;
        spec.limits.memory_bytes = 2_000 * 65_536 / 4;
    });
    let mut slot = Slot::default();
    let mut most = 0;
    for _ in 0..1_500 {
        let report = call_in(&plugin, &mut slot, &message("{}"));
        assert!(report.result.is_ok());
        most = most.max(report.memory_bytes);
    }
    assert!(most < 300 * 65_536, "it grew to {} pages", most / 65_536);
}

#[test]
fn a_swap_under_calls_loses_none_and_each_runs_wholly_under_one_version() {
    let version = |payload: &str| {
        let body = format!(
            "(call $event (i32.const 0) (i32.const {}) (i32.const {}))
             (call $event (i32.const 1) (i32.const {}) (i32.const {})) (call $ok (i32.const 2))",
            if payload == "1" { 1045 } else { 1040 },
            if payload == "1" { 1 } else { 7 },
            if payload == "1" { 1045 } else { 1040 },
            if payload == "1" { 1 } else { 7 },
        );
        load(&handler("", "", &body))
    };
    let (one, two) = (version("1"), version("2"));
    let live = arc_swap::ArcSwap::from(Arc::clone(&one));
    let stop = AtomicBool::new(false);
    let seen = [const { AtomicUsize::new(0) }; 3];
    std::thread::scope(|scope| {
        for seen in &seen {
            let (live, stop, one) = (&live, &stop, &one);
            scope.spawn(move || {
                let mut slot = Slot::default();
                while !stop.load(Ordering::Relaxed) {
                    let plugin = live.load_full();
                    let report = call_in(&plugin, &mut slot, &message("{}"));
                    let payloads = payloads(&report);
                    assert_eq!(payloads[0], payloads[1]);
                    assert_eq!(payloads[0] == "1", Arc::ptr_eq(&plugin, one));
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let began = Instant::now();
        let mut next = (&two, &one);
        while seen.iter().any(|calls| calls.load(Ordering::Relaxed) < 300) && began.elapsed() < Duration::from_secs(20)
        {
            let before = live.swap(Arc::clone(next.0));
            assert!(Arc::ptr_eq(&before, next.1));
            next = (next.1, next.0);
            std::thread::sleep(Duration::from_micros(300));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(seen.iter().all(|calls| calls.load(Ordering::Relaxed) >= 300), "{seen:?}");
}
