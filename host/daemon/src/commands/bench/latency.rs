//! Latency in an open loop: from the moment an event was meant to be published to the moment its output is seen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use cofferdam_streams::{LaneKeys, Start, Store};

use crate::commands::bench::arms::{self, Arm, GROUP, INPUT, OUTPUT};
use crate::commands::bench::server::Server;

/// Messages a second: far below saturation, so that what is measured is the path and not a queue.
const RATE: u64 = 2_000;
/// Left out at the start: the first reads, threads and instances.
const WARM_UP: Duration = Duration::from_secs(1);

/// What one arm showed.
pub(crate) struct Latency {
    pub(crate) arm: Arm,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

/// Measures the host's arms.
pub(crate) async fn measure(lines: &[String], lasts: Duration, fsync: &str) -> Result<Vec<Latency>> {
    let mut latencies = Vec::new();
    for arm in [Arm::Fresh, Arm::Reuse] {
        latencies.push(measure_one(arm, lines, lasts, fsync).await?);
    }
    Ok(latencies)
}

async fn measure_one(arm: Arm, lines: &[String], lasts: Duration, fsync: &str) -> Result<Latency> {
    let server = Server::start(fsync).await?;
    server.store.ensure_group(&LaneKeys::new(INPUT, GROUP), Start::Oldest).await?;
    let process = arms::start(arm, &server, 0)?;
    wait_until_read(&server.store).await?;
    let meant: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let began = Instant::now();
    let (url, lines, noted) = (server.url.clone(), lines.to_vec(), meant.clone());
    let publishing = tokio::task::spawn_blocking(move || publish(&url, &lines, lasts, &noted));
    let mut histogram = hdrhistogram::Histogram::<u64>::new(3)?;
    let connection = server.store.further_connection().await?;
    let mut after = String::from("0-0");
    let until = began + lasts + Duration::from_millis(500);
    while Instant::now() < until {
        let entries = Store::wait_for(&*connection, OUTPUT, &after, 100).await?;
        let seen = Instant::now();
        for entry in entries {
            after = entry.id.to_string();
            let source = entry.fields.iter().find(|(name, _)| name == b"cofferdam_source");
            let text = source.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).unwrap_or_default();
            let id = text.rsplit('/').nth(2).unwrap_or_default();
            let at = meant.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
            if let Some(at) = at.filter(|at| *at - began > WARM_UP) {
                histogram.saturating_record(u64::try_from((seen - at).as_micros()).unwrap_or(u64::MAX));
            }
        }
    }
    publishing.await??;
    drop(process);
    Ok(Latency {
        arm,
        p50_us: histogram.value_at_quantile(0.5),
        p99_us: histogram.value_at_quantile(0.99),
        max_us: histogram.max(),
    })
}

/// Waits until the host reads: a first message has gone through.
async fn wait_until_read(store: &Store) -> Result<()> {
    let mut pipe = redis::pipe();
    arms::entry(pipe.cmd("XADD").arg(INPUT).arg("*"), "{}").ignore();
    let () = store.pipeline(&pipe).await?;
    for _ in 0..1_000 {
        let outputs: u64 = store.query(redis::cmd("XLEN").arg(OUTPUT)).await?;
        if outputs > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Publishes at an even pace from a thread of its own: a runtime's timer has whole milliseconds.
fn publish(url: &str, lines: &[String], lasts: Duration, meant: &Mutex<HashMap<String, Instant>>) -> Result<()> {
    let mut connection = redis::Client::open(url)?.get_connection()?;
    let began = Instant::now();
    let gap = Duration::from_secs(1) / u32::try_from(RATE).unwrap_or(1);
    for (number, line) in (0u32..).zip(lines.iter().cycle()) {
        let at = began + gap * number;
        if at - began >= lasts {
            break;
        }
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        let mut pipe = redis::pipe();
        arms::entry(pipe.cmd("XADD").arg(INPUT).arg("*"), line);
        let (id,): (String,) = pipe.query(&mut connection)?;
        // Noted after the reply: a reader that was quicker misses the message, and only shortens the sample.
        meant.lock().unwrap_or_else(PoisonError::into_inner).insert(id, at);
    }
    Ok(())
}
