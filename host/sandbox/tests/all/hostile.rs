//! Guests that mean harm, or are merely broken. Each must end as the right fault, in time, and harm nobody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_model::{Fault, Outcome, ReasonCode};
use cofferdam_sandbox::{Instances, Plugin, Slot};

use crate::guests::{
    call, call_in, component, echo, fault, handler, handler_text, load, load_with, message, payloads, refused,
    stopped_in_time,
};

#[test]
fn a_trap_has_words_and_a_backtrace() {
    let plugin =
        load(&handler("", "(func $deep unreachable) (func $middle (call $deep))", "(call $middle) (i32.const 0)"));
    let Fault::Trap { text, backtrace } = fault(&plugin) else { panic!("no trap") };
    assert!(text.contains("unreachable"), "{text}");
    let frames: Vec<&str> = backtrace.lines().collect();
    assert!(frames[0].starts_with("0: deep at 0x"), "{backtrace}");
    assert!(frames[1].starts_with("1: middle") && frames[2].starts_with("2: handle"), "{backtrace}");
}

#[test]
fn a_loop_is_stopped_at_its_deadline_and_its_neighbours_go_on() {
    let spin = load(&handler("", "", "(loop $on (br $on)) (i32.const 0)"));
    let good = load(&echo());
    std::thread::scope(|scope| {
        let spinner = scope.spawn(|| stopped_in_time(&spin));
        let began = Instant::now();
        let mut calls = 0;
        while !spinner.is_finished() {
            assert_eq!(payloads(&call(&good)).len(), 1);
            calls += 1;
        }
        assert!(calls > 50, "only {calls} calls in {:?} beside a loop", began.elapsed());
        spinner.join().unwrap();
    });
}

#[test]
fn a_loop_in_memory_fill_is_stopped() {
    let body = "(drop (memory.grow (i32.const 500)))
        (loop $on (memory.fill (i32.const 65536) (i32.const 7) (i32.const 32000000)) (br $on)) (i32.const 0)";
    stopped_in_time(&load(&handler("", "", body)));
}

#[test]
fn a_start_function_that_loops_is_stopped_at_load() {
    let error = refused(&handler("", "(func $spin (loop $on (br $on))) (start $spin)", "(i32.const 0)"));
    let text = error.to_string();
    assert!(text.contains("trial instance failed") && text.contains("deadline of 200ms"), "{text}");
}

#[test]
fn a_start_function_of_a_command_that_loops_is_stopped() {
    let wat = r#"(module (memory (export "memory") 1) (func $spin (loop $on (br $on))) (start $spin) (func (export "_start")))"#;
    stopped_in_time(&load(&wat::parse_str(wat).unwrap()));
}

#[test]
fn a_sleep_beyond_the_deadline_ends_at_the_deadline() {
    let imports = r#"(import "wasi:clocks/monotonic-clock@0.2.3" "subscribe-duration" (func $after (param i64) (result i32)))
        (import "wasi:io/poll@0.2.3" "[method]pollable.block" (func $block (param i32)))
        (import "wasi:io/poll@0.2.3" "poll" (func $poll (param i32 i32 i32)))
        (import "wasi:clocks/monotonic-clock@0.2.3" "now" (func $now (result i64)))"#;
    let hour = "(i64.const 3600000000000)";
    stopped_in_time(&load(&handler(imports, "", &format!("(call $block (call $after {hour})) (i32.const 0)"))));
    let listed = format!(
        "(i32.store (i32.const 3000) (call $after {hour})) (call $poll (i32.const 3000) (i32.const 1) (i32.const 3008)) (i32.const 0)"
    );
    stopped_in_time(&load(&handler(imports, "", &listed)));
    // A short sleep is slept, and the guest's clock has moved by just as much.
    let short = "(local $from i64)
        (local.set $from (call $now))
        (call $block (call $after (i64.const 30000000)))
        (if (i64.lt_u (i64.sub (call $now) (local.get $from)) (i64.const 30000000)) (then unreachable))
        (if (i64.gt_u (i64.sub (call $now) (local.get $from)) (i64.const 30100000)) (then unreachable))
        (call $ok (i32.const 0))";
    let report = call(&load(&handler(imports, "", short)));
    assert_eq!(report.result, Ok(Outcome::Events(vec![])));
    assert!(report.took >= Duration::from_millis(30), "{:?}", report.took);
}

#[test]
fn memory_beyond_the_limit_is_refused_and_its_panic_is_called_by_its_name() {
    let body = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable";
    let report = call(&load_with(&handler("", "", body), |spec| spec.limits.memory_bytes = 8 << 20));
    let Err(Fault::Memory { limit_bytes, text }) = &report.result else { panic!("{:?}", report.result) };
    assert_eq!(*limit_bytes, 8 << 20);
    assert!(text.contains("unreachable") && report.memory_bytes <= 8 << 20, "{text}");
    // A guest that can live without is not charged.
    let modest = "(drop (memory.grow (i32.const 5000))) (call $ok (i32.const 0))";
    assert_eq!(call(&load(&handler("", "", modest))).result, Ok(Outcome::Events(vec![])));
}

#[test]
fn the_limit_holds_for_what_an_instance_starts_with() {
    let wasm =
        component("handler", &handler_text("", "", "(i32.const 0)").replace("\"memory\") 2)", "\"memory\") 200)"));
    let mut spec = crate::guests::spec("guest");
    spec.limits.memory_bytes = 100 * 65_536;
    let error = Plugin::load(crate::guests::engine(), &wasm, spec).unwrap_err().to_string();
    assert!(error.contains("needs 13107200 bytes") && error.contains("limits.memory grants 6553600"), "{error}");
}

#[test]
fn a_table_that_grows_for_ever_is_refused() {
    let items = "(table $t 1 funcref)";
    let body = "(loop $more (br_if $more (i32.ne (table.grow $t (ref.null func) (i32.const 10000)) (i32.const -1)))) unreachable";
    let refused = fault(&load(&handler("", items, body)));
    assert_eq!(refused.code(), ReasonCode::Tables);
    assert!(refused.to_string().contains("more than limits.table-elements allows (100000)"), "{refused}");
    let fewer = load_with(&handler("", items, body), |spec| spec.limits.table_elements = 500);
    assert!(fault(&fewer).to_string().contains("a table of 10001 elements"));
}

#[test]
fn deep_recursion_is_a_trap() {
    let items = "(func $deeper (param i64) (result i64) (i64.add (i64.const 1) (call $deeper (local.get 0))))";
    // A thread of ours, as the workers make them: the guest's stack must fit into it.
    let run = || fault(&load(&handler("", items, "(drop (call $deeper (i64.const 1))) (i32.const 0)")));
    let thread = std::thread::Builder::new().stack_size(cofferdam_sandbox::STACK_BYTES).spawn(run).unwrap();
    let Fault::Limit { code: ReasonCode::Stack, text, backtrace } = thread.join().unwrap() else { panic!("no limit") };
    assert!(text.contains("recurses too deep for its 524288 bytes"), "{text}");
    assert!(backtrace.lines().count() <= 64 && backtrace.contains("deeper"), "{backtrace}");
}

#[test]
fn recursion_to_the_edge_and_then_into_the_host_is_a_trap_and_not_the_end_of_the_host() {
    let items = r#"(func $deeper (param i32)
        (call $log (i32.const 1) (i32.const 1060) (i32.const 9)) (call $deeper (local.get 0)))"#;
    let run = || {
        fault(&load_with(&handler("", items, "(call $deeper (i32.const 1)) (i32.const 0)"), |spec| {
            spec.limits.host_calls = 10_000_000;
        }))
    };
    let thread = std::thread::Builder::new().stack_size(cofferdam_sandbox::STACK_BYTES).spawn(run).unwrap();
    assert_eq!(thread.join().unwrap().code(), ReasonCode::Stack);
}

#[test]
fn too_many_events_and_too_many_bytes_are_faults_with_their_numbers() {
    let many = "(local $i i32)
        (loop $next
          (call $event (local.get $i) (i32.const 1040) (i32.const 7))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $i) (i32.const 50))))
        (call $ok (i32.const 50))";
    let wasm = handler("", "", many);
    assert_eq!(payloads(&call(&load_with(&wasm, |spec| spec.limits.events = 50))).len(), 50);
    let over = fault(&load_with(&wasm, |spec| spec.limits.events = 49));
    assert_eq!(over.code(), ReasonCode::OutputLimit);
    assert!(over.to_string().contains("50 events are more than limits.events allows (49)"), "{over}");
    assert_eq!(payloads(&call(&load_with(&wasm, |spec| spec.limits.output_bytes = 500))).len(), 50);
    let over = fault(&load_with(&wasm, |spec| spec.limits.output_bytes = 499));
    assert_eq!(over.code(), ReasonCode::OutputLimit);
    assert!(over.to_string().contains("500 bytes of events"), "{over}");
}

#[test]
fn a_list_of_aliased_strings_cannot_fill_the_hosts_memory() {
    // 600,000 events that all point to the same kilobyte: 600 MB, if anybody copied them.
    let body = "(local $i i32) (local $at i32)
        (drop (memory.grow (i32.const 400)))
        (loop $next
          (local.set $at (i32.add (i32.const 65536) (i32.mul (local.get $i) (i32.const 40))))
          (i32.store (local.get $at) (i32.const 1024)) (i32.store offset=4 (local.get $at) (i32.const 3))
          (i32.store offset=8 (local.get $at) (i32.const 8192)) (i32.store offset=12 (local.get $at) (i32.const 1024))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $i) (i32.const 600000))))
        (drop (call $ok (i32.const 600000)))
        (i32.store offset=8 (i32.const 2048) (i32.const 65536))
        (i32.const 2048)";
    let plugin = load_with(&handler("", "", body), |spec| spec.limits.deadline = Duration::from_secs(5));
    let before = peak_kib();
    let fault = fault(&plugin);
    assert_eq!(fault.code(), ReasonCode::OutputLimit, "{fault}");
    assert!(peak_kib() < before + 120_000, "the host took {} KiB more", peak_kib() - before);
}

/// The most memory that this process ever held, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_payload_that_is_not_json_is_named_with_its_place() {
    let body = "(call $event (i32.const 0) (i32.const 1040) (i32.const 7))
        (call $event (i32.const 1) (i32.const 1060) (i32.const 9)) (call $ok (i32.const 2))";
    let bad = fault(&load(&handler("", "", body)));
    assert_eq!(bad.code(), ReasonCode::BadOutput);
    let text = bad.to_string();
    assert!(text.contains("event 1 is not JSON") && text.contains("column") && text.contains("not yours"), "{text}");
}

#[test]
fn a_stream_that_was_not_granted_and_a_forged_attribute_are_faults() {
    let elsewhere = "(call $event (i32.const 0) (i32.const 1040) (i32.const 7))
        (i32.store (i32.const 4096) (i32.const 1060)) (i32.store (i32.const 4100) (i32.const 9)) (call $ok (i32.const 1))";
    assert_eq!(fault(&load(&handler("", "", elsewhere))).code(), ReasonCode::BadStreamName);
    let other = elsewhere.replace("1060", "1100").replace("(i32.const 9)", "(i32.const 5)");
    assert_eq!(fault(&load(&handler("", "", &other))).code(), ReasonCode::NotGranted);
    let forged = "(call $event (i32.const 0) (i32.const 1040) (i32.const 7))
        (i32.store (i32.const 3000) (i32.const 1080)) (i32.store (i32.const 3004) (i32.const 16))
        (i32.store (i32.const 3008) (i32.const 1040)) (i32.store (i32.const 3012) (i32.const 7))
        (i32.store offset=32 (i32.const 4096) (i32.const 3000)) (i32.store offset=36 (i32.const 4096) (i32.const 1))
        (call $ok (i32.const 1))";
    assert_eq!(fault(&load(&handler("", "", forged))).code(), ReasonCode::ReservedField);
}

#[test]
fn an_answer_that_points_outside_or_is_no_text_is_a_bad_output() {
    let outside = "(call $event (i32.const 0) (i32.const 1040) (i32.const -1)) (call $ok (i32.const 1))";
    assert_eq!(fault(&load(&handler("", "", outside))).code(), ReasonCode::BadOutput);
    let invalid = "(i32.store8 (i32.const 6000) (i32.const 255))
        (call $event (i32.const 0) (i32.const 6000) (i32.const 1)) (call $ok (i32.const 1))";
    assert_eq!(fault(&load(&handler("", "", invalid))).code(), ReasonCode::BadOutput);
}

#[test]
fn a_flood_of_log_lines_is_cut_and_says_so() {
    let body = "(local $i i32)
        (loop $next
          (call $log (i32.const 1) (i32.const 1060) (i32.const 9))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $i) (i32.const 5000))))
        (call $ok (i32.const 0))";
    let report = call(&load(&handler("", "", body)));
    assert_eq!(report.result, Ok(Outcome::Events(vec![])));
    assert_eq!(report.log.len(), 101);
    assert!(report.log[100].line.contains("4900 more lines were dropped"), "{:?}", report.log[100]);
    let bytes = load_with(&handler("", "", body), |spec| spec.limits.log_bytes = 90);
    assert_eq!(call(&bytes).log.len(), 11);
}

#[test]
fn more_events_within_a_second_than_the_quota_allows_are_a_fault_with_the_number() {
    let plugin = load_with(&echo(), |spec| {
        spec.limits.events_per_second = Some(2);
        spec.limits.deadline = Duration::from_secs(5);
    });
    let codes: Vec<Option<ReasonCode>> = (0..3).map(|_| call(&plugin).result.err().map(|fault| fault.code())).collect();
    assert_eq!(codes, [None, None, Some(ReasonCode::OutputRate)]);
    std::thread::sleep(Duration::from_millis(1_050));
    assert!(call(&plugin).result.is_ok(), "the next second is a new one");
}

#[test]
fn an_argument_of_30_megabytes_is_refused_by_its_size() {
    let body = "(drop (memory.grow (i32.const 480)))
        (call $log (i32.const 1) (i32.const 65536) (i32.const 30000000)) (call $ok (i32.const 0))";
    assert_eq!(fault(&load(&handler("", "", body))).code(), ReasonCode::CallBytes);
}

#[test]
fn a_long_log_line_is_cut() {
    let body = "(memory.fill (i32.const 32768) (i32.const 65) (i32.const 90000))
        (call $log (i32.const 1) (i32.const 32768) (i32.const 90000)) (call $ok (i32.const 0))";
    let report = call(&load(&handler("", "", body)));
    assert!(report.log[0].line.len() < 4_200 && report.log[0].line.ends_with('…'));
}

#[test]
fn a_flood_of_host_calls_ends_before_its_deadline() {
    let wasi = r#"(import "wasi:clocks/monotonic-clock@0.2.3" "now" (func $now (result i64)))"#;
    for (imports, body) in [
        ("", "(loop $on (call $log (i32.const 1) (i32.const 1060) (i32.const 9)) (br $on)) (i32.const 0)"),
        (wasi, "(loop $on (drop (call $now)) (br $on)) (i32.const 0)"),
    ] {
        let plugin = load_with(&handler(imports, "", body), |spec| spec.limits.deadline = Duration::from_secs(10));
        let report = call(&plugin);
        let Err(Fault::Limit { code: ReasonCode::HostCalls, text, .. }) = &report.result else {
            panic!("{:?}", report.result)
        };
        assert!(text.contains("more than 100000 calls"), "{text}");
    }
}

#[test]
fn a_flood_of_calls_to_functions_that_are_not_ours_ends_too() {
    let imports =
        r#"(import "wasi:sockets/tcp-create-socket@0.2.3" "create-tcp-socket" (func $socket (param i32 i32)))"#;
    let body = "(loop $on (call $socket (i32.const 0) (i32.const 3000)) (br $on)) (i32.const 0)";
    let plugin = load_with(&handler(imports, "", body), |spec| spec.limits.deadline = Duration::from_secs(10));
    let report = call(&plugin);
    assert!(
        matches!(&report.result, Err(Fault::Limit { text, .. }) if text.contains("100000 calls")),
        "{:?}",
        report.result
    );
}

#[test]
fn nothing_of_the_machine_can_be_seen_or_reached() {
    let imports = r#"(import "wasi:sockets/tcp-create-socket@0.2.3" "create-tcp-socket" (func $socket (param i32 i32)))
        (import "wasi:cli/environment@0.2.3" "get-environment" (func $environment (param i32)))
        (import "wasi:filesystem/preopens@0.2.3" "get-directories" (func $directories (param i32)))"#;
    let body = "(call $socket (i32.const 0) (i32.const 3000))
        (if (i32.ne (i32.load8_u (i32.const 3000)) (i32.const 1)) (then unreachable))
        (call $environment (i32.const 3008))
        (if (i32.load (i32.const 3012)) (then unreachable))
        (call $directories (i32.const 3016))
        (if (i32.load (i32.const 3020)) (then unreachable))
        (call $ok (i32.const 0))";
    assert_eq!(call(&load(&handler(imports, "", body))).result, Ok(Outcome::Events(vec![])));
}

#[test]
fn too_many_random_bytes_are_refused_before_they_are_made() {
    let imports = r#"(import "wasi:random/random@0.2.3" "get-random-bytes" (func $random (param i64 i32)))"#;
    let body = "(call $random (i64.const 2147483648) (i32.const 3000)) (call $ok (i32.const 0))";
    let report = call(&load(&handler(imports, "", body)));
    assert!(
        matches!(&report.result, Err(Fault::Limit { code: ReasonCode::Random, text, .. }) if text.contains("1048576 random bytes")),
        "{:?}",
        report.result
    );
}

#[test]
fn an_exit_in_mid_handler_is_a_trap_also_with_code_zero() {
    let imports = r#"(import "wasi:cli/exit@0.2.3" "exit" (func $exit (param i32)))"#;
    for (status, code) in [(0, "exit(0)"), (1, "exit(1)")] {
        let body = format!("(call $exit (i32.const {status})) (call $ok (i32.const 0))");
        let exit = fault(&load(&handler(imports, "", &body)));
        assert!(matches!(&exit, Fault::Trap { text, .. } if text.contains(code)), "{exit:?}");
    }
}

#[test]
fn a_long_reason_is_cut() {
    let body = "(memory.fill (i32.const 32768) (i32.const 65) (i32.const 90000))
        (call $fail (i32.const 1) (i32.const 32768) (i32.const 90000))";
    let Ok(Outcome::Reject { reason }) = call(&load(&handler("", "", body))).result else { panic!("no reject") };
    assert!(reason.len() <= 2_048 && reason.ends_with("(cut)"));
}

#[test]
fn last_words_stand_in_the_trap() {
    let imports = r#"(import "wasi:cli/stderr@0.2.3" "get-stderr" (func $stderr (result i32)))
        (import "wasi:io/streams@0.2.3" "[method]output-stream.blocking-write-and-flush"
            (func $write (param i32 i32 i32 i32)))"#;
    let body = "(call $write (call $stderr) (i32.const 1060) (i32.const 9) (i32.const 3000)) unreachable";
    let Fault::Trap { text, .. } = fault(&load(&handler(imports, "", body))) else { panic!("no trap") };
    assert!(text.ends_with("its last words: not yours"), "{text}");
}

#[test]
fn a_full_pool_is_the_hosts_fault_and_charges_nobody() {
    let small = cofferdam_sandbox::Engine::new(cofferdam_sandbox::EngineConfig {
        instances_max: 1,
        memory_bytes_max: 64 << 20,
    })
    .unwrap();
    let mut spec = crate::guests::spec("guest");
    spec.instances = Instances::Reuse;
    let plugin = Arc::new(Plugin::load(&small, &echo(), spec).unwrap());
    let (mut held, mut other) = (Slot::default(), Slot::default());
    assert!(call_in(&plugin, &mut held, &message("{}")).result.is_ok());
    let report = call_in(&plugin, &mut other, &message("{}"));
    assert!(
        matches!(&report.result, Err(Fault::Host { text }) if text.contains("no instance is free")),
        "{:?}",
        report.result
    );
    held.clear();
    assert!(call_in(&plugin, &mut other, &message("{}")).result.is_ok());
}

#[test]
fn a_write_of_more_than_is_permitted_is_a_trap() {
    let imports = r#"(import "wasi:cli/stderr@0.2.3" "get-stderr" (func $stderr (result i32)))
        (import "wasi:io/streams@0.2.3" "[method]output-stream.write" (func $write (param i32 i32 i32 i32)))"#;
    let run = |bytes: u32| {
        let body = format!(
            "(drop (memory.grow (i32.const 200)))
            (memory.fill (i32.const 65536) (i32.const 10) (i32.const {bytes}))
            (call $write (call $stderr) (i32.const 65536) (i32.const {bytes}) (i32.const 3000))
            (call $ok (i32.const 0))"
        );
        call(&load_with(&handler(imports, "", &body), |spec| spec.limits.output_bytes = 32 << 20))
    };
    let permitted = run(65_536);
    assert_eq!(permitted.result, Ok(Outcome::Events(vec![])));
    assert!(permitted.log.last().unwrap().line.contains("more lines were dropped"), "{:?}", permitted.log.last());
    let Err(Fault::Trap { text, .. }) = run(8 << 20).result else { panic!("no trap") };
    assert!(text.contains("a write to a stream of 8388608 bytes, more than check-write permits (65536)"), "{text}");
}
