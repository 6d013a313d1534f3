//! `cofferdam rollback` and `unpin`: which version of a plugin every host runs, whatever stands in its folder.

use std::time::Duration;

use anyhow::{Result, bail};
use cofferdam_streams::{Act, Pin, Store, VersionFacts};
use serde_json::json;

use crate::cli::Common;
use crate::clock;
use crate::commands::deploy::{plural, short, wait};
use crate::commands::{dlq, find, reports};
use crate::escape::safe;
use crate::exit::{Failed, Usage};
use crate::quantity::span_argument;
use crate::screen::{line, who};

/// Flags of `rollback`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cofferdam rollback classify --reason 'drops every ssh event'\n  \
    cofferdam rollback classify 3f2a9c --redrive\n  \
    cofferdam history classify")]
pub(crate) struct Args {
    /// The plugin
    #[arg(value_name = "PLUGIN")]
    plugin: String,
    /// The version to go back to, by the beginning of its digest [default: the one before the version that runs]
    #[arg(value_name = "VERSION")]
    version: Option<String>,
    /// Send back what the version that is replaced has dead-lettered
    #[arg(long)]
    redrive: bool,
    /// How long to wait until every live host runs it
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span_argument)]
    wait: Duration,
    /// Why, for the operator log
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

/// Flags of `unpin`.
#[derive(Debug, clap::Args)]
pub(crate) struct UnpinArgs {
    /// The plugin
    #[arg(value_name = "PLUGIN")]
    plugin: String,
    /// Why, for the operator log
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    let store = find(common).await?.store;
    let plugin = args.plugin.as_str();
    let known = store.versions(plugin).await?;
    if known.is_empty() {
        bail!(Failed(format!("no host has run a plugin {plugin:?}; those that are known: cofferdam plugins")));
    }
    let pinned = store.pins().await?.remove(plugin);
    let live = match &pinned {
        // A second rollback goes on from what the first one replaced.
        Some(pin) => pin.digest.clone(),
        None => {
            live(&store, plugin).await?.or_else(|| known.first().map(|facts| facts.digest.clone())).unwrap_or_default()
        }
    };
    let target = choose(&known, &live, args.version.as_deref(), plugin)?;
    // What had already been rolled back from stays the version whose dead letters are meant.
    let replaced = match &pinned {
        Some(pin) if pin.digest == target.digest => pin.instead_of.clone(),
        _ => live,
    };
    let (by, at_ms) = (who(), clock::now_ms());
    let pin = Pin { digest: target.digest.clone(), instead_of: replaced.clone(), by, why: args.reason.clone(), at_ms };
    if pinned.as_ref().is_none_or(|known| known.digest != pin.digest) {
        let what = format!("from {replaced} to {}", pin.digest);
        let at = clock::iso(at_ms);
        let act =
            Act { at: &at, who: &pin.by, verb: "rollback", what: &what, why: &pin.why, plugin, digest: &pin.digest };
        store.pin(plugin, &pin, &act).await?;
    }
    let hosts = wait(&store, plugin, &pin.digest, args.wait).await?;
    let sent = match args.redrive {
        true => Some(dlq::send_back(&store, plugin, &replaced, &args.reason).await?),
        false => None,
    };
    if common.json {
        let (sent, left) = sent.unzip();
        let document = json!({
            "plugin": plugin, "digest": pin.digest, "instead_of": replaced, "hosts": hosts, "redriven": sent, "left": left,
        });
        line(&document.to_string());
        return Ok(());
    }
    line(&format!(
        "{} runs {} on {hosts} host{}, instead of {}",
        safe(plugin),
        short(&pin.digest),
        plural(hosts),
        short(&replaced)
    ));
    if let Some((sent, left)) = sent {
        line(&format!("{sent} dead letters of {} were sent back", short(&replaced)));
        if left > 0 {
            let which = format!("--plugin {} --digest {}", safe(plugin), short(&replaced));
            line(&format!("{left} were left; why: cofferdam dlq redrive --all {which} --dry-run"));
        }
    }
    line(&format!(
        "it stays so, over restarts too, until: cofferdam unpin {plugin}, or cofferdam deploy of another version"
    ));
    Ok(())
}

pub(crate) async fn unpin(common: &Common, args: UnpinArgs) -> Result<()> {
    let store = find(common).await?.store;
    if !release(&store, &args.plugin, "unpin", &args.reason).await? {
        bail!(Failed(format!("{} is not pinned; nothing to do", safe(&args.plugin))));
    }
    match common.json {
        true => line(&json!({"plugin": args.plugin, "pinned": false}).to_string()),
        false => line(&format!("{} runs what stands in the plugins folder again, within 5 s", safe(&args.plugin))),
    }
    Ok(())
}

/// Takes a pin away, by whatever act; whether there was one.
pub(crate) async fn release(store: &Store, plugin: &str, verb: &str, why: &str) -> Result<bool> {
    let Some(pin) = store.pins().await?.remove(plugin) else { return Ok(false) };
    let what = format!("no longer held to {}", pin.digest);
    let now_ms = clock::now_ms();
    let (at, who) = (clock::iso(now_ms), who());
    let act = Act { at: &at, who: &who, verb, what: &what, why, plugin, digest: &pin.digest };
    Ok(store.unpin(plugin, now_ms, &act).await?)
}

/// The digest that living hosts run.
async fn live(store: &Store, plugin: &str) -> Result<Option<String>> {
    for (_, reports) in reports(store).await? {
        if let Some(report) = reports.into_iter().find(|report| report.name == plugin && !report.digest.is_empty()) {
            return Ok(Some(report.digest));
        }
    }
    Ok(None)
}

/// The version that was asked for, or the last one before `live` that was not itself rolled back.
fn choose<'a>(known: &'a [VersionFacts], live: &str, asked: Option<&str>, plugin: &str) -> Result<&'a VersionFacts> {
    let look = format!("look with: cofferdam history {plugin}");
    let Some(asked) = asked else {
        let before = known.iter().find(|facts| facts.digest == live).map_or("", |facts| facts.before.as_str());
        let good = |facts: &&VersionFacts| facts.bad.is_empty() && facts.digest != live;
        let older = known.iter().skip_while(|facts| facts.digest != live).skip(1).find(good);
        let found = known.iter().find(|facts| facts.digest == before).filter(good).or(older);
        return found
            .ok_or_else(|| Failed(format!("there is no version of {plugin} before {}; {look}", short(live))).into());
    };
    let mut matching = known.iter().filter(|facts| facts.digest.starts_with(asked));
    match (matching.next(), matching.next()) {
        (Some(facts), _) if facts.digest == live => bail!(Usage(format!("{plugin} already runs {}", short(live)))),
        (Some(facts), None) => Ok(facts),
        (Some(_), Some(_)) => bail!(Usage(format!("several versions begin with {asked:?}; {look}"))),
        (None, _) => bail!(Usage(format!("no version of {plugin} begins with {asked:?}; {look}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(digest: &str, before: &str, bad: &str) -> VersionFacts {
        VersionFacts { digest: digest.into(), before: before.into(), bad: bad.into(), ..VersionFacts::default() }
    }

    #[test]
    fn the_default_is_the_last_good_one_before_what_runs() {
        let known = [facts("cc", "bb", ""), facts("bb", "aa", "worse"), facts("aa", "", "")];
        let chosen = |live, asked| choose(&known, live, asked, "p").map(|facts| facts.digest.clone());
        assert_eq!(chosen("cc", None).unwrap(), "aa", "what was rolled back once is not gone back to");
        assert_eq!(chosen("cc", Some("b")).unwrap(), "bb", "unless it is asked for");
        assert!(chosen("aa", None).unwrap_err().to_string().contains("no version of p before aa"));
        assert!(chosen("cc", Some("x")).unwrap_err().to_string().contains("cofferdam history p"));
        assert!(chosen("cc", Some("c")).unwrap_err().to_string().contains("already runs"));
    }
}
