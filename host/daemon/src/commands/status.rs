//! `cofferdam status`: hosts, plugins, lag and failures at one glance.

use std::collections::BTreeMap;

use anyhow::Result;
use cofferdam_model::route::DEAD_LETTER_STREAM;
use cofferdam_streams::{LaneKeys, Store, Tally, redrive_stream};
use serde_json::json;

use crate::cli::Common;
use crate::clock;
use crate::commands::plugins::word;
use crate::commands::{find, reports};
use crate::escape::safe;
use crate::host::shown;
use crate::screen;

/// Flags of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

struct Row {
    state: String,
    group: String,
    streams: Vec<String>,
    hosts: usize,
    tally: Tally,
    lag: u64,
    pending: u64,
    parked: u64,
}

pub(crate) async fn run(common: &Common, _args: Args) -> Result<()> {
    let found = find(common).await?;
    let hosts = reports(&found.store).await?;
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for (_, reports) in &hosts {
        for report in reports {
            let row = rows.entry(report.name.clone()).or_insert_with(|| Row {
                state: word(report.state).to_owned(),
                group: report.group.clone(),
                streams: report.subscribe.clone(),
                hosts: 0,
                tally: Tally::default(),
                lag: 0,
                pending: 0,
                parked: 0,
            });
            row.hosts += 1;
            if word(report.state) != row.state {
                row.state = String::from("mixed");
            }
        }
    }
    for row in rows.values_mut() {
        backlog(&found.store, row).await?;
    }
    let dead: u64 = found.store.query(redis::cmd("XLEN").arg(DEAD_LETTER_STREAM)).await.unwrap_or(0);
    if common.json {
        let plugins: Vec<_> = rows
            .iter()
            .map(|(name, row)| {
                json!({"plugin": name, "state": row.state, "group": row.group, "subscribe": row.streams, "hosts": row.hosts,
                    "lag": row.lag, "pending": row.pending, "parked": row.parked, "settled": settled(&row.tally)})
            })
            .collect();
        let document = json!({"redis": shown(&found.store.address()), "hosts": hosts.iter().map(|(host, _)| host).collect::<Vec<_>>(), "plugins": plugins, "dead_letters": dead});
        screen::line(&serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    screen::line(&format!("redis {}   hosts {}   dead letters {dead}", shown(&found.store.address()), hosts.len()));
    for (host, _) in &hosts {
        screen::line(&format!(
            "  {}  pid {}  since {} UTC",
            safe(&host.consumer),
            host.pid,
            clock::short(host.started_ms)
        ));
    }
    if hosts.is_empty() {
        screen::line("no host is alive here; start one: cofferdam run");
        return Ok(());
    }
    let mut table = screen::table(&[
        "plugin",
        "state",
        "hosts",
        "lag",
        "pending",
        "parked",
        "committed",
        "filtered",
        "retried",
        "dead",
        "outputs",
    ]);
    for (name, row) in &rows {
        let tally = &row.tally;
        let numbers = [
            row.hosts as u64,
            row.lag,
            row.pending,
            row.parked,
            tally.committed,
            tally.filtered,
            tally.retried,
            tally.dead,
            tally.outputs,
        ];
        let mut cells = vec![safe(name), row.state.clone()];
        cells.extend(numbers.iter().map(u64::to_string));
        table.add_row(cells);
    }
    screen::line("");
    screen::line(&table.to_string());
    if dead > 0 {
        screen::line(&format!("\n{dead} dead letters; look at them: cofferdam dlq list"));
    }
    if rows.values().any(|row| row.state == "refused" || row.state == "waiting") {
        screen::line("\nwhy a plugin is not running: cofferdam plugins");
    }
    Ok(())
}

fn settled(tally: &Tally) -> serde_json::Value {
    json!({"committed": tally.committed, "filtered": tally.filtered, "retried": tally.retried, "dead": tally.dead,
        "released": tally.released, "outputs": tally.outputs})
}

/// What waits in Redis for a plugin, and what its group has settled, over its streams.
async fn backlog(store: &Store, row: &mut Row) -> Result<()> {
    let redrive = redrive_stream(&row.group);
    for stream in row.streams.iter().chain([&redrive]) {
        let Some(group) = store.group(stream, &row.group).await? else { continue };
        row.lag += group.lag.unwrap_or(0);
        let keys = LaneKeys::new(stream, &row.group);
        let parked = store.parked(&keys).await?;
        row.parked += parked;
        row.pending += group.pending.saturating_sub(parked);
        row.tally.add(store.ledger(&keys).await?.tally);
    }
    Ok(())
}
