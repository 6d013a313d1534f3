//! `cofferdam plugins`: what each host says of its plugins, and why one is not live.

use anyhow::{Result, bail};
use serde_json::json;

use crate::cli::Common;
use crate::commands::deploy::short;
use crate::commands::{find, reports};
use crate::escape::{safe, safe_cut};
use crate::exit::Failed;
use crate::run_file::RunFile;
use crate::screen;
use crate::steps::as_lines;
use crate::supervisor::{PluginReport, State};

/// Flags of `plugins`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these plugins
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// The word for a state.
pub(crate) fn word(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::Paused => "paused",
        State::Waiting => "waiting",
        State::Refused => "refused",
    }
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    let found = find(common).await?;
    let mut rows = Vec::new();
    for (host, reports) in reports(&found.store).await? {
        let wanted = reports.into_iter().filter(|report| args.names.is_empty() || args.names.contains(&report.name));
        rows.extend(wanted.map(|report| (host.consumer.clone(), report)));
    }
    rows.sort_by(|a, b| (&a.1.name, &a.0).cmp(&(&b.1.name, &b.0)));
    if common.json {
        let list: Vec<_> = rows.iter().map(|(host, report)| json!({"host": host, "plugin": report})).collect();
        screen::line(&serde_json::to_string_pretty(&list)?);
    } else {
        show(&args, &rows, found.host);
    }
    let missing: Vec<&str> = args
        .names
        .iter()
        .filter(|name| !rows.iter().any(|(_, report)| report.name == **name))
        .map(String::as_str)
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => bail!(Failed(format!(
            "no host runs a plugin {}; those that are known: cofferdam plugins",
            missing.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
        ))),
    }
}

fn show(args: &Args, rows: &[(String, PluginReport)], host: Option<RunFile>) {
    if rows.is_empty() {
        if !args.names.is_empty() {
            return;
        }
        let place = host
            .map_or_else(|| String::from("a running host's plugins folder"), |host| host.plugins.display().to_string());
        screen::line(&format!("no plugins; drop NAME.wasm and NAME.toml into {place}, or: cofferdam deploy NAME.wasm"));
        return;
    }
    let mut table =
        screen::table(&["plugin", "state", "version", "reads", "emits", "handled", "failed", "in flight", "host"]);
    for (host, report) in rows {
        let counts = &report.counts;
        table.add_row(vec![
            safe(&report.name),
            word(report.state).to_owned(),
            short(&report.digest).to_owned(),
            safe(&report.subscribe.join(" ")),
            safe(&report.emit.join(" ")),
            (counts.committed + counts.filtered).to_string(),
            (counts.retried + counts.dead).to_string(),
            counts.in_flight().to_string(),
            safe_cut(host, 24),
        ]);
    }
    screen::line(&table.to_string());
    for (host, report) in rows.iter().filter(|(_, report)| !report.detail.is_empty()) {
        let live = if report.digest.is_empty() { "" } else { " (the live version goes on)" };
        screen::line(&format!(
            "\n{} on {}{live}:\n  {}",
            safe(&report.name),
            safe(host),
            report.detail.lines().map(safe).collect::<Vec<_>>().join("\n  ")
        ));
    }
    // Whoever asks for one plugin by name wants to know how it got there.
    for (host, report) in rows.iter().filter(|(_, report)| !args.names.is_empty() && !report.steps.is_empty()) {
        let of = if report.candidate.is_empty() { &report.digest } else { &report.candidate };
        screen::line(&format!("\nadmission of {} {} on {}", safe(&report.name), short(of), safe(host)));
        as_lines(&report.steps).iter().for_each(|step| screen::line(&format!("  {}", safe(step))));
    }
}
