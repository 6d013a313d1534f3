//! What one call costs over the same code without a sandbox: microseconds for each delivery, fresh and reused, beside a native
//! call of what `plugins/bench` does.
//!
//! `cargo run --release -p cofferdam-sandbox --example call -- [wasm] [payload bytes] [fresh|reuse]`
//!
//! It measures the sandbox alone: no Redis, no pipeline. A number of one run means little on a shared machine: the arms take turns,
//! and what counts is their difference.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a tool for whoever works on the sandbox: it prints, and it may fail"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_model::{EntryId, Event, Message, Outcome, Route};
use cofferdam_sandbox::{Call, Digest, Engine, EngineConfig, Instances, Limits, Plugin, PluginSpec, Slot, invoke};
use serde_json::{Value, json};

/// Calls of one measurement.
const CALLS: u32 = 50_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let path = arguments.get(1).map_or("plugins/dist/bench.wasm", String::as_str);
    let payload_bytes: usize = arguments.get(2).map_or(1_024, |text| text.parse().unwrap());
    let wasm = std::fs::read(path).unwrap();
    let engine = Engine::new(EngineConfig { instances_max: 4, memory_bytes_max: 256 << 20 }).unwrap();
    let began = Instant::now();
    let plugins = [Instances::Fresh, Instances::Reuse].map(|instances| plugin(&engine, &wasm, instances));
    println!("{path}: compiled and tried in {:?} each", began.elapsed() / 2);
    let message = message(payload_bytes);
    println!("payload of {} bytes", message.payload.len());
    let only = arguments.get(3).map(String::as_str);
    for round in 0..3 {
        let native = measure(1, || drop(std::hint::black_box(handle(std::hint::black_box(&message)))));
        println!("round {round}: native: p50 {:.2} µs, p99 {:.2} µs", native.0, native.1);
        for plugin in &plugins {
            let name = format!("{:?}", plugin.spec().instances).to_lowercase();
            if only.is_some_and(|only| only != name) {
                continue;
            }
            let one = sandboxed(plugin, &message, 1);
            let two = sandboxed(plugin, &message, 2);
            println!(
                "round {round}: {name}: p50 {:.2} µs, p99 {:.2} µs; over native {:.2} µs; on each of two threads p50 {:.2} µs",
                one.0,
                one.1,
                one.0 - native.0,
                two.0
            );
        }
    }
}

fn plugin(engine: &Engine, wasm: &[u8], instances: Instances) -> Arc<Plugin> {
    let emit = ["attacks", "ai_decisions", "alerts", "forensics", "threat_intel", "bench_out"];
    let emit = emit.iter().map(|name| format!("stream:{name}")).collect();
    let spec = PluginSpec {
        name: "measured".to_owned(),
        digest: Digest::of(wasm),
        limits: Limits { deadline: Duration::from_secs(5), ..Limits::default() },
        instances,
        config: BTreeMap::new(),
        route: Route::new(vec!["stream:honeypot_logs".to_owned()], emit).unwrap(),
    };
    Arc::new(Plugin::load(engine, wasm, spec).unwrap())
}

/// A log line of a honeypot, filled up to the size asked for.
fn message(payload_bytes: usize) -> Message {
    let line = r#"{"eventid":"cowrie.login.failed","username":"root","password":"123456","src_ip":"203.0.113.7","session":"a1b2c3","timestamp":"2026-11-23T07:20:57.352Z","fill":""#;
    let fill = "x".repeat(payload_bytes.saturating_sub(line.len() + 2));
    Message {
        id: EntryId { ms: 1_795_418_457_352, seq: 0 },
        message_id: "1795418457352-0".to_owned(),
        stream: Arc::from("stream:honeypot_logs"),
        payload: format!("{line}{fill}\"}}"),
        priority: 2,
        timestamp: "2026-11-23T07:20:57.352000".to_owned(),
        producer_id: "cowrie-1".to_owned(),
        key: None,
        attributes: Vec::new(),
    }
}

/// What the handler of `plugins/bench` does, without a sandbox: one attack event from a log line.
fn handle(message: &Message) -> Vec<Event> {
    let event: Value = serde_json::from_str(&message.payload).unwrap();
    let first = |names: &[&str]| {
        names.iter().find_map(|name| event.get(name).and_then(Value::as_str)).unwrap_or("unknown").to_owned()
    };
    let payload = json!({
        "event_type": "attack",
        "attacker_ip": first(&["attacker_ip", "src_ip"]),
        "service": first(&["service", "protocol"]),
        "action": first(&["action", "eventid"]),
        "details": event.get("details").unwrap_or(&event),
    });
    let stream = "stream:bench_out".to_owned();
    vec![Event { stream, payload: payload.to_string(), priority: None, key: None, attributes: Vec::new() }]
}

fn sandboxed(plugin: &Arc<Plugin>, message: &Message, threads: u32) -> (f64, f64) {
    thread_local! { static SLOT: std::cell::RefCell<Slot> = std::cell::RefCell::default(); }
    measure(threads, || {
        SLOT.with_borrow_mut(|slot| {
            let report = invoke(plugin, slot, &Call { message, attempt: 1, started_ms: message.received_ms() });
            let answered = matches!(report.result, Ok(Outcome::Events(_) | Outcome::Reject { .. }));
            assert!(answered, "{:?} {:?}", report.result, report.log);
        });
    })
}

/// The median and the 99th percentile of the calls of the first of `threads` threads, in microseconds.
fn measure(threads: u32, call: impl Fn() + Sync) -> (f64, f64) {
    let run = || -> Vec<f64> {
        (0..CALLS)
            .map(|_| {
                let began = Instant::now();
                call();
                began.elapsed().as_secs_f64() * 1e6
            })
            .collect()
    };
    let mut times = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).next().unwrap()
    });
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}
