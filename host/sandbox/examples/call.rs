//! What one call costs: microseconds for each delivery, fresh and reused, on one thread and on two.
//!
//! `cargo run --release -p cofferdam-sandbox --example call -- plugins/dist/classify.wasm [payload bytes] [fresh|reuse]`
//!
//! It measures the sandbox alone: no Redis, no pipeline. A number of one run means little on a shared machine; compare
//! numbers of alternated runs.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a tool for whoever works on the sandbox: it prints, and it may fail"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_model::{EntryId, Message, Outcome, Route};
use cofferdam_sandbox::{Call, Digest, Engine, EngineConfig, Instances, Limits, Plugin, PluginSpec, Slot, invoke};

/// Calls of one measurement.
const CALLS: u32 = 20_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let path = arguments.get(1).map_or("plugins/dist/bench.wasm", String::as_str);
    let payload_bytes: usize = arguments.get(2).map_or(500, |text| text.parse().unwrap());
    let wasm = std::fs::read(path).unwrap();
    let engine = Engine::new(EngineConfig { instances_max: 4, memory_bytes_max: 256 << 20 }).unwrap();
    let began = Instant::now();
    let plugins = [Instances::Fresh, Instances::Reuse].map(|instances| plugin(&engine, &wasm, instances));
    println!("{path}: compiled and tried in {:?} each", began.elapsed() / 2);
    let message = message(payload_bytes);
    println!("payload of {} bytes", message.payload.len());
    let only = arguments.get(3).map(String::as_str);
    for round in 0..3 {
        for plugin in &plugins {
            let name = format!("{:?}", plugin.spec().instances).to_lowercase();
            if only.is_some_and(|only| only != name) {
                continue;
            }
            let one = measure(plugin, &message, 1);
            let two = measure(plugin, &message, 2);
            println!(
                "round {round}: {:?}: {one:.2} µs on one thread, {two:.2} µs on each of two",
                plugin.spec().instances
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

/// Microseconds for each call on each of `threads` threads.
fn measure(plugin: &Arc<Plugin>, message: &Message, threads: u32) -> f64 {
    let run = || {
        let mut slot = Slot::default();
        for _ in 0..CALLS {
            let report = invoke(plugin, &mut slot, &Call { message, attempt: 1, started_ms: message.received_ms() });
            assert!(
                matches!(report.result, Ok(Outcome::Events(_) | Outcome::Reject { .. })),
                "{:?} {:?}",
                report.result,
                report.log
            );
        }
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(run)));
    });
    began.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS)
}
