//! `cofferdam status`: hosts, plugins, lag and failures at one glance.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use cofferdam_model::route::DEAD_LETTER_STREAM;
use cofferdam_streams::{HostReport, LaneKeys, Store, StreamError, Tally, redrive_stream};
use serde_json::json;

use crate::cli::Common;
use crate::clock;
use crate::commands::plugins::word;
use crate::commands::{find, reports};
use crate::escape::safe;
use crate::exit::Failed;
use crate::host::shown;
use crate::screen;
use crate::supervisor::{PluginReport, State};

/// Columns that hold a number of Redis's.
const NUMBERS: usize = 8;

/// Flags of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// What all living hosts together say of a plugin, and what Redis does.
#[derive(Default)]
struct Row {
    /// How each host that has it stands to it: its state, and the digest of what it runs.
    states: BTreeSet<(&'static str, String)>,
    groups: BTreeSet<String>,
    streams: BTreeSet<String>,
    /// The stream and group of each of its lanes, on whichever host: hosts may read different ones.
    lanes: BTreeSet<(String, String)>,
    hosts: usize,
    /// `None` when a record of it is damaged.
    numbers: Option<Numbers>,
}

#[derive(Default)]
struct Numbers {
    tally: Tally,
    lag: u64,
    pending: u64,
    parked: u64,
}

impl Row {
    fn add(&mut self, report: PluginReport) {
        self.hosts += 1;
        self.states.insert((word(report.state), report.digest));
        for stream in &report.subscribe {
            self.lanes.insert((stream.clone(), report.group.clone()));
        }
        if !report.group.is_empty() {
            self.lanes.insert((redrive_stream(&report.group), report.group.clone()));
            self.groups.insert(report.group);
        }
        self.streams.extend(report.subscribe);
    }

    fn state(&self) -> &'static str {
        match self.states.first() {
            Some((state, _)) if self.states.len() == 1 => state,
            _ => "mixed",
        }
    }
}

pub(crate) async fn run(common: &Common, _args: Args) -> Result<()> {
    let found = find(common).await?;
    let hosts = reports(&found.store).await?;
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for report in hosts.iter().flat_map(|(_, reports)| reports) {
        rows.entry(report.name.clone()).or_default().add(report.clone());
    }
    let mut damaged = Vec::new();
    for (name, row) in &mut rows {
        match numbers(&found.store, &row.lanes).await {
            Ok(numbers) => row.numbers = Some(numbers),
            // One damaged record must not hide the other plugins.
            Err(error @ StreamError::WrongType { .. }) => damaged.push(format!("{name}: {error}")),
            Err(error) => return Err(error.into()),
        }
    }
    show(common, &found.store, &hosts, &rows, &damaged).await?;
    if !damaged.is_empty() {
        bail!(Failed(format!("{}; how to mend that: cofferdam doctor", damaged.join("; "))));
    }
    Ok(())
}

async fn show(
    common: &Common,
    store: &Store,
    hosts: &[(HostReport, Vec<PluginReport>)],
    rows: &BTreeMap<String, Row>,
    damaged: &[String],
) -> Result<()> {
    let dead: u64 = store.query(redis::cmd("XLEN").arg(DEAD_LETTER_STREAM)).await.unwrap_or(0);
    if common.json {
        let plugins: Vec<_> = rows
            .iter()
            .map(|(name, row)| {
                let numbers = row.numbers.as_ref();
                let of = |count: fn(&Numbers) -> u64| numbers.map(count);
                json!({"plugin": name, "state": row.state(), "group": joined(&row.groups), "subscribe": row.streams, "hosts": row.hosts,
                    "lag": of(|numbers| numbers.lag), "pending": of(|numbers| numbers.pending), "parked": of(|numbers| numbers.parked),
                    "settled": numbers.map(|numbers| settled(&numbers.tally))})
            })
            .collect();
        let document = json!({"redis": shown(&store.address()), "hosts": hosts.iter().map(|(host, _)| host).collect::<Vec<_>>(), "plugins": plugins, "dead_letters": dead, "damaged": damaged});
        screen::line(&serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    screen::line(&format!("redis {}   hosts {}   dead letters {dead}", shown(&store.address()), hosts.len()));
    for (host, _) in hosts {
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
    for (name, row) in rows {
        let mut cells = vec![safe(name), row.state().to_owned(), row.hosts.to_string()];
        match &row.numbers {
            Some(Numbers { tally, lag, pending, parked }) => cells.extend(
                [lag, pending, parked, &tally.committed, &tally.filtered, &tally.retried, &tally.dead, &tally.outputs]
                    .map(u64::to_string),
            ),
            None => cells.extend(vec![String::from("?"); NUMBERS]),
        }
        table.add_row(cells);
    }
    screen::line("");
    screen::line(&table.to_string());
    if dead > 0 {
        screen::line(&format!("\n{dead} dead letters; look at them: cofferdam dlq list"));
    }
    if rows.values().any(|row| row.state() != word(State::Running)) {
        screen::line("\nwhy a plugin is not running, or not the same on every host: cofferdam plugins");
    }
    Ok(())
}

/// Names in one text.
fn joined(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn settled(tally: &Tally) -> serde_json::Value {
    json!({"committed": tally.committed, "filtered": tally.filtered, "retried": tally.retried, "dead": tally.dead,
        "released": tally.released, "outputs": tally.outputs})
}

/// What waits in Redis for a plugin, and what its groups have settled, over its lanes.
async fn numbers(store: &Store, lanes: &BTreeSet<(String, String)>) -> Result<Numbers, StreamError> {
    let mut numbers = Numbers::default();
    for (stream, group) in lanes {
        let Some(info) = store.group(stream, group).await? else { continue };
        let facts = store.stream_facts(stream).await?.unwrap_or_default();
        numbers.lag += super::streams::lag(&facts, &info).unwrap_or(0);
        let keys = LaneKeys::new(stream, group);
        let parked = store.parked(&keys).await?;
        numbers.parked += parked;
        numbers.pending += info.pending.saturating_sub(parked);
        numbers.tally.add(store.ledger(&keys).await?.tally);
    }
    Ok(numbers)
}
