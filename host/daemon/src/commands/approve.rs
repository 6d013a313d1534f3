//! `cofferdam approve`: let a version run that asks for more than its plugin has been allowed so far.

use anyhow::{Result, bail};
use cofferdam_streams::Act;

use crate::cli::Common;
use crate::clock;
use crate::commands::{find, reports};
use crate::escape::safe;
use crate::exit::{Failed, Usage};
use crate::screen::{line, who};
use crate::supervisor::PluginReport;

/// The fewest digits of a digest that name a version: with fewer, whoever makes plugins could make another that begins with them.
const DIGITS_MIN: usize = 32;

/// Flags of `approve`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example, the line that `cofferdam plugins classify` shows:\n  cofferdam approve classify --digest 3f2a9c… --reason 'reads the ssh stream too, as agreed'"
)]
pub(crate) struct Args {
    /// The plugin
    #[arg(value_name = "PLUGIN")]
    plugin: String,
    /// The version that was looked at, by at least 32 digits of its digest [default: the one that waits]
    #[arg(long, value_name = "DIGEST", default_value = "", hide_default_value = true)]
    digest: String,
    /// Why, for the operator log
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    if !args.digest.is_empty() && args.digest.len() < DIGITS_MIN {
        bail!(Usage(format!(
            "--digest has {} digits, and {DIGITS_MIN} are the fewest that name one version; copy the line from: cofferdam plugins {}",
            args.digest.len(),
            safe(&args.plugin)
        )));
    }
    let store = find(common).await?.store;
    let mut waiting: Vec<PluginReport> = Vec::new();
    for (_, reports) in reports(&store).await? {
        waiting.extend(reports.into_iter().filter(|report| report.name == args.plugin && report.awaits_approval));
    }
    waiting.sort_by(|a, b| a.candidate.cmp(&b.candidate));
    waiting.dedup_by(|a, b| a.candidate == b.candidate);
    waiting.retain(|report| report.candidate.starts_with(&args.digest));
    let report = match waiting.as_slice() {
        [report] => report,
        [] => bail!(Failed(format!(
            "no version of {}{} waits for approval; what waits is shown by: cofferdam plugins",
            safe(&args.plugin),
            if args.digest.is_empty() { String::new() } else { format!(" that begins with {}", safe(&args.digest)) }
        ))),
        several => {
            let digests: Vec<&str> = several.iter().map(|report| report.candidate.as_str()).collect();
            bail!(Failed(format!("several versions wait; say which with --digest: {}", digests.join(", "))));
        }
    };
    if !common.json {
        report.detail.lines().for_each(|text| line(&safe(text)));
    }
    let (at, who) = (clock::iso(clock::now_ms()), who());
    // What was asked for is what the record is about: a line each, which all begin alike.
    let asks: Vec<&str> = report.detail.lines().map(str::trim).filter(|text| text.starts_with('+')).collect();
    let asks = asks.join("; ");
    store
        .approve(&Act {
            at: &at,
            who: &who,
            verb: "approve",
            what: &asks,
            why: &args.reason,
            plugin: &report.name,
            digest: &report.candidate,
        })
        .await?;
    match common.json {
        true => line(
            &serde_json::json!({"plugin": report.name, "digest": report.candidate, "asks": report.detail}).to_string(),
        ),
        false => {
            line(&format!("approved: {} {}; hosts hear of it within 5 s", safe(&report.name), safe(&report.candidate)));
        }
    }
    Ok(())
}
