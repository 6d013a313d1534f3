//! `cofferdam history`: the versions of a plugin, how each has fared over all hosts, and what was done about them.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use cofferdam_model::route::OPERATOR_LOG_STREAM;
use cofferdam_streams::{RawEntry, Store, VersionFacts};
use indicatif::HumanCount;
use serde_json::{Value as Json, json};

use crate::cli::Common;
use crate::clock;
use crate::commands::deploy::short;
use crate::commands::{find, reports};
use crate::escape::{safe, safe_cut};
use crate::exit::Failed;
use crate::quantity::show_bytes;
use crate::screen::{line, table};

/// Acts that are shown, the newest ones.
const ACTS: usize = 20;
/// Entries of the operator log that are looked through for them.
const LOG_ENTRIES: usize = 5_000;

/// Flags of `history`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The plugin
    #[arg(value_name = "PLUGIN")]
    plugin: String,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    let store = find(common).await?.store;
    let plugin = args.plugin.as_str();
    let known = store.versions(plugin).await?;
    if known.is_empty() {
        bail!(Failed(format!("no host has run a plugin {plugin:?}; those that are known: cofferdam plugins")));
    }
    let pin = store.pins().await?.remove(plugin);
    let running = running(&store, plugin).await?;
    let acts = acts(&store, plugin).await?;
    let state = |facts: &VersionFacts| {
        let hosts = running.get(&facts.digest).copied().unwrap_or(0);
        let mut words = Vec::new();
        if hosts > 0 {
            words.push(format!("runs on {hosts}"));
        }
        if pin.as_ref().is_some_and(|pin| pin.digest == facts.digest) {
            words.push(String::from("pinned"));
        }
        if hosts > 0 && !facts.bad.is_empty() && pin.is_none() {
            words.push(String::from("let run again"));
        } else if !facts.bad.is_empty() {
            words.push(String::from("rolled back"));
        }
        words.join(", ")
    };
    if common.json {
        let versions: Vec<Json> = known
            .iter()
            .map(|facts| {
                let hosts = running.get(&facts.digest).copied().unwrap_or(0);
                let mut row = serde_json::to_value(facts).unwrap_or_default();
                row.as_object_mut().into_iter().for_each(|row| _ = row.insert("hosts".into(), json!(hosts)));
                row
            })
            .collect();
        line(&serde_json::to_string_pretty(
            &json!({"plugin": plugin, "versions": versions, "pin": pin, "acts": acts}),
        )?);
        return Ok(());
    }
    let mut rows = table(&["version", "first live", "size", "handled", "failed", "state"]);
    for facts in &known {
        let share = if facts.fared().total() > 0 {
            format!(" ({:.1} %)", 100.0 * facts.failed as f64 / facts.fared().total() as f64)
        } else {
            String::new()
        };
        rows.add_row([
            short(&facts.digest).to_owned(),
            clock::short(facts.first_ms),
            show_bytes(facts.bytes),
            HumanCount(facts.fared().total()).to_string(),
            format!("{}{share}", HumanCount(facts.failed)),
            state(facts),
        ]);
    }
    line(&rows.to_string());
    for facts in &known {
        let said = past(facts, pin.is_some());
        if !said.is_empty() {
            line(&format!("\n{} {}", short(&facts.digest), safe(&said)));
        }
    }
    if let Some(pin) = &pin {
        line(&format!(
            "\npinned to {} by {}; end that: cofferdam unpin {}",
            short(&pin.digest),
            safe(&pin.by),
            safe(plugin)
        ));
    }
    if !acts.is_empty() {
        line("");
        let mut rows = table(&["when", "who", "did", "what", "why"]);
        for act in &acts {
            let of = |name: &str| act.get(name).and_then(Json::as_str).unwrap_or_default();
            rows.add_row([
                of("at").get(..19).unwrap_or_default().replace('T', " "),
                safe_cut(of("who"), 32),
                safe(of("verb")),
                safe_cut(of("what"), 240),
                safe_cut(of("why"), 80),
            ]);
        }
        line(&rows.to_string());
    }
    Ok(())
}

/// What became of a version, and since when it is counted where that is not its beginning; empty when there is nothing to say.
/// Without a pin, what was rolled back may run again.
fn past(facts: &VersionFacts, is_pinned: bool) -> String {
    let at = |ms: u64| if ms > 0 { format!(" {} UTC", clock::short(ms)) } else { String::new() };
    let mut said = Vec::new();
    if !facts.bad.is_empty() {
        said.push(format!("was rolled back{}: {}", at(facts.bad_ms), facts.bad));
        if !is_pinned {
            said.push(format!("may run again{}", at(facts.anew_ms).replacen(' ', " since ", 1)));
        }
    }
    if facts.anew_ms > 0 {
        said.push(format!("handled and failed are counted since{}", at(facts.anew_ms)));
    }
    said.join("; ")
}

/// On how many hosts each version runs, by digest.
async fn running(store: &Store, plugin: &str) -> Result<BTreeMap<String, usize>> {
    let mut running = BTreeMap::new();
    for (_, reports) in reports(store).await? {
        for report in reports.into_iter().filter(|report| report.name == plugin && !report.digest.is_empty()) {
            *running.entry(report.digest).or_default() += 1;
        }
    }
    Ok(running)
}

/// What people and hosts have done about a plugin's versions, the newest first.
async fn acts(store: &Store, plugin: &str) -> Result<Vec<Json>> {
    let entries = match store.key_type(OPERATOR_LOG_STREAM).await?.as_str() {
        "stream" => store.range_back(OPERATOR_LOG_STREAM, "+", "-", LOG_ENTRIES).await?,
        _ => Vec::new(),
    };
    let read = |entry: RawEntry| {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        entry
            .fields
            .into_iter()
            .map(|(name, value)| (text(name), Json::String(text(value))))
            .collect::<serde_json::Map<_, _>>()
    };
    let about = |act: &serde_json::Map<String, Json>| act.get("plugin").and_then(Json::as_str) == Some(plugin);
    Ok(entries.into_iter().map(read).filter(about).take(ACTS).map(Json::Object).collect())
}
