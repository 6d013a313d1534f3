//! The arms: the native loop, the host with fresh and with reused instances, and an ordinary Python consumer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use cofferdam_streams::{LaneKeys, Start, Store};
use redis::Value;
use tokio::sync::mpsc;

use crate::commands::bench::server::{Measuree, Server};
use crate::commands::deploy;
use crate::embedded;
use crate::exit::Failed;

pub(crate) const INPUT: &str = "stream:bench_in";
pub(crate) const OUTPUT: &str = "stream:bench_out";
pub(crate) const GROUP: &str = "group:bench";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arm {
    Native,
    Fresh,
    Reuse,
    Python,
}

impl Arm {
    pub(crate) const ALL: [Arm; 4] = [Arm::Native, Arm::Fresh, Arm::Reuse, Arm::Python];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Arm::Native => "native",
            Arm::Fresh => "fresh",
            Arm::Reuse => "reuse",
            Arm::Python => "python",
        }
    }

    pub(crate) fn what(self) -> &'static str {
        match self {
            Arm::Native => "the same loop in Rust: no sandbox, no fence, MULTI of 500",
            Arm::Fresh => "this host, a fresh instance for each message (the default)",
            Arm::Reuse => "this host, instances = \"reuse\"",
            Arm::Python => "redis-py, XREADGROUP COUNT 10, XADD + XACK for each message",
        }
    }
}

/// One run of one arm.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) arm: Arm,
    pub(crate) messages: u64,
    pub(crate) took: Duration,
    pub(crate) host_cpu: Duration,
    pub(crate) redis_cpu: Duration,
}

impl Measured {
    pub(crate) fn rate(&self) -> f64 {
        self.messages as f64 / self.took.as_secs_f64()
    }
}

/// Runs one arm over a fresh Redis. `None` when this machine lacks what it needs.
pub(crate) async fn measure(arm: Arm, lines: &[String], messages: usize, fsync: &str) -> Result<Option<Measured>> {
    // Python is some twenty times slower; a tenth of the messages gives the same rate sooner.
    let messages = if arm == Arm::Python { (messages / 10).max(1_000) } else { messages };
    if arm == Arm::Python && !python_has_redis() {
        crate::screen::note("bench: the arm \"python\" is left out: python3 with the package redis is not installed");
        return Ok(None);
    }
    let server = Server::start(fsync).await?;
    fill(&server.store, lines, messages).await?;
    server.store.ensure_group(&LaneKeys::new(INPUT, GROUP), Start::Oldest).await?;
    let redis_before = server.cpu();
    let process = start(arm, &server, messages)?;
    let (took, counted, host_cpu) = watch(&server, process, messages as u64).await?;
    let redis_cpu = server.cpu().saturating_sub(redis_before);
    Ok(Some(Measured { arm, messages: counted, took, host_cpu, redis_cpu }))
}

/// Starts the process of an arm.
pub(crate) fn start(arm: Arm, server: &Server, messages: usize) -> Result<Measuree> {
    let url = server.url.as_str();
    match arm {
        Arm::Native => Measuree::this_program(&["bench", "--redis", url, "--only-native-loop", &messages.to_string()]),
        Arm::Fresh | Arm::Reuse => {
            let mut candidate = embedded::plugin("bench")?;
            let mode = if arm == Arm::Reuse { "reuse" } else { "fresh" };
            candidate.manifest.insert_str(0, &format!("instances = {mode:?}\n"));
            let plugins = server.directory.path().join("plugins");
            std::fs::create_dir_all(&plugins)?;
            deploy::place(&plugins, "bench", &candidate)?;
            let (plugins, data) =
                (plugins.display().to_string(), server.directory.path().join("data").display().to_string());
            Measuree::this_program(&["run", "--redis", url, "--data", &data, "--plugins", &plugins])
        }
        Arm::Python => {
            let script = server.directory.path().join("consumer.py");
            std::fs::write(&script, PYTHON)?;
            let socket = url.trim_start_matches("redis+unix://").to_owned();
            Measuree::program(std::path::Path::new("python3"), &[&script.display().to_string(), &socket])
        }
    }
}

fn python_has_redis() -> bool {
    let mut command = std::process::Command::new("python3");
    command.args(["-c", "import redis"]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Publishes the lab log, over and over, as a producer of the original would.
async fn fill(store: &Store, lines: &[String], messages: usize) -> Result<()> {
    let cycled: Vec<&String> = lines.iter().cycle().take(messages).collect();
    for batch in cycled.chunks(1_000) {
        let mut pipe = redis::pipe();
        for line in batch {
            entry(pipe.cmd("XADD").arg(INPUT).arg("*"), line).ignore();
        }
        let () = store.pipeline(&pipe).await?;
    }
    Ok(())
}

/// The seven fields of an entry.
pub(crate) fn entry<'a>(pipe: &'a mut redis::Pipeline, payload: &str) -> &'a mut redis::Pipeline {
    pipe.arg("message_id")
        .arg("8f14e45f-ceea-467f-9575-1f0b0f1e2d3c")
        .arg("payload")
        .arg(payload)
        .arg("priority")
        .arg("2");
    pipe.arg("timestamp").arg("2026-11-24T08:00:00.000000").arg("producer_id").arg("bench");
    pipe.arg("retry_count").arg("0").arg("max_retries").arg("3")
}

/// From the first output to the last: what stands in Redis is the truth. Start-up and compilation are not counted.
async fn watch(server: &Server, mut process: Measuree, messages: u64) -> Result<(Duration, u64, Duration)> {
    const PATIENCE: Duration = Duration::from_secs(300);
    let began = Instant::now();
    let mut first: Option<(Instant, u64, Duration)> = None;
    loop {
        let count: u64 = server.store.query(redis::cmd("XLEN").arg(OUTPUT)).await?;
        let now = Instant::now();
        if count > 0 && first.is_none() {
            first = Some((now, count, process.cpu()));
        }
        if count >= messages {
            let cpu = process.cpu();
            let Some((at, already, cpu_before)) = first else {
                bail!(Failed(String::from("too few messages to measure")))
            };
            settled(&server.store, messages).await?;
            return Ok((now - at, count - already, cpu.saturating_sub(cpu_before)));
        }
        if now - began > PATIENCE || (process.ended() && first.is_none()) {
            bail!(Failed(format!("an arm ended or stood still at {count} of {messages} outputs")));
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Every run must end with exactly the outputs there, and nothing pending.
async fn settled(store: &Store, messages: u64) -> Result<()> {
    for _ in 0..200 {
        let outputs: u64 = store.query(redis::cmd("XLEN").arg(OUTPUT)).await?;
        let pending = store.group(INPUT, GROUP).await?.map_or(0, |group| group.pending);
        if outputs != messages {
            bail!(Failed(format!("{outputs} outputs for {messages} messages")));
        }
        if pending == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!(Failed(String::from("outputs were complete, and entries stayed pending")))
}

/// The native loop: the same work with the same client, without sandbox and fence. A reader, a worker and a committer that
/// overlap, a MULTI of 500. Its outputs have the envelope's seven fields and nothing else.
pub(crate) async fn native_loop(url: &str, messages: usize) -> Result<()> {
    const COUNT: usize = 500;
    let client = redis::Client::open(url)?;
    let mut reader = client.get_multiplexed_async_connection().await?;
    let mut committer = client.get_multiplexed_async_connection().await?;
    let (sender, mut batches) = mpsc::channel::<Value>(3);
    let reading = tokio::spawn(async move {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg("native").arg("COUNT").arg(COUNT).arg("STREAMS").arg(INPUT).arg(">");
        loop {
            let reply: Value = match command.query_async(&mut reader).await {
                Ok(Value::Nil) | Err(_) => return,
                Ok(reply) => reply,
            };
            if sender.send(reply).await.is_err() {
                return;
            }
        }
    });
    // The next batch is worked on while Redis commits the last.
    let (built, mut pipes) = mpsc::channel::<redis::Pipeline>(2);
    let committing = tokio::spawn(async move {
        while let Some(pipe) = pipes.recv().await {
            let _: redis::RedisResult<()> = pipe.query_async(&mut committer).await;
        }
    });
    let mut done = 0;
    while let Some(reply) = batches.recv().await {
        let mut pipe = redis::Pipeline::with_capacity(COUNT + 1);
        pipe.atomic();
        let mut ids = Vec::with_capacity(COUNT);
        for (id, payload) in payloads(reply) {
            let output = native_handler(&payload)?;
            pipe.cmd("XADD").arg(OUTPUT).arg("*");
            // Random bytes of this process: new_v4 would ask the kernel for each.
            let message_id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
            pipe.arg("message_id").arg(message_id.to_string()).arg("payload").arg(output).arg("priority").arg("2");
            pipe.arg("timestamp").arg("2026-11-24T08:00:00.000000").arg("producer_id").arg("native");
            pipe.arg("retry_count").arg("0").arg("max_retries").arg("3").ignore();
            ids.push(id);
        }
        done += ids.len();
        pipe.cmd("XACK").arg(INPUT).arg(GROUP).arg(&ids).ignore();
        if built.send(pipe).await.is_err() || done >= messages {
            break;
        }
    }
    drop(built);
    committing.await?;
    reading.abort();
    // It stays until it is stopped, so that its CPU time can be read at the end.
    tokio::time::sleep(Duration::from_secs(60)).await;
    Ok(())
}

fn payloads(reply: Value) -> Vec<(Vec<u8>, Vec<u8>)> {
    let list = |value: Value| if let Value::Array(items) = value { items } else { Vec::new() };
    let bytes = |value: Value| if let Value::BulkString(bytes) = value { bytes } else { Vec::new() };
    let entries =
        list(reply).into_iter().next().map(list).unwrap_or_default().into_iter().nth(1).map(list).unwrap_or_default();
    let of = |entry: Value| {
        let mut parts = list(entry).into_iter();
        let id = bytes(parts.next().unwrap_or_default());
        let mut fields = parts.next().map(list).unwrap_or_default().into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            if bytes(name) == b"payload" {
                return (id, bytes(value));
            }
        }
        (id, Vec::new())
    };
    entries.into_iter().map(of).collect()
}

/// What the guest does, natively: parse, take a few fields, build one event.
fn native_handler(payload: &[u8]) -> Result<String> {
    let event: serde_json::Value = serde_json::from_slice(payload).context("the lab log is JSON")?;
    let text = |name: &str| event.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    let attack = serde_json::json!({
        "event_type": "attack",
        "attacker_ip": text("src_ip"),
        "service": text("protocol"),
        "action": text("eventid"),
        "details": {"session": text("session"), "message": text("message")},
        "timestamp": text("timestamp"),
    });
    Ok(attack.to_string())
}

/// A straightforward consumer, as its first version is usually written.
const PYTHON: &str = r#"import json, sys, uuid, redis
r = redis.Redis(unix_socket_path=sys.argv[1], decode_responses=True)
while True:
    batch = r.xreadgroup("group:bench", "python", {"stream:bench_in": ">"}, count=10, block=1000)
    for _, entries in batch:
        for entry_id, fields in entries:
            event = json.loads(fields["payload"])
            attack = {"event_type": "attack", "attacker_ip": event.get("src_ip"), "service": event.get("protocol"),
                      "action": event.get("eventid"), "timestamp": event.get("timestamp"),
                      "details": {"session": event.get("session"), "message": event.get("message")}}
            r.xadd("stream:bench_out", {"message_id": str(uuid.uuid4()), "payload": json.dumps(attack), "priority": "2",
                   "timestamp": "2026-11-24T08:00:00.000000", "producer_id": "python", "retry_count": "0", "max_retries": "3"})
            r.xack("stream:bench_in", "group:bench", entry_id)
"#;
