//! `verify`: proves on a live system that nothing was lost or doubled, as far as the retained data allow, and says how far.
//!
//! ```text
//!   one moment (a transaction)          then, up to that moment's ids             pure
//!   groups, ledgers, pending, ends ──▶ streams, dead letters, operator log ──▶ judge ──▶ checks
//!                                              gather.rs                       judge.rs
//! ```
//!
//! Hosts may be at work meanwhile. What can still change under the reading (dead letters sent back or discarded) is noticed,
//! and the whole is read again before anything is called a violation.

mod gather;
mod judge;

use anyhow::{Result, bail};
use serde_json::json;

use crate::cli::Common;
use crate::escape::safe;
use crate::exit::{Failed, Usage};
use crate::screen::{line, note, table};
use judge::{Check, Judgement, Standing, judge};

/// Readings at most, while dead letters are being moved.
const READINGS_MAX: u32 = 3;
/// Examples of each violation, for people.
const EXAMPLES_SHOWN: usize = 5;

/// Checks on the live system that nothing was lost or doubled.
///
/// Reads every stream, dead letter, group and ledger, and compares: everything that was read is settled or pending; every output
/// is there exactly once, and with all of its siblings; nothing is both committed and dead; nothing vanished without a trace;
/// every dead letter brings its evidence. Hosts may go on working. Says what cannot be proved, because it was trimmed away.
/// Ends with exit code 1 when a check is violated.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Only this consumer group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    let store = super::find(common).await?.store;
    let mut readings = 0;
    let judgement = loop {
        readings += 1;
        let mut gathered = gather::gather(&store, args.group.as_deref()).await?;
        if let Some(group) = args.group.as_ref().filter(|_| !gathered.lanes.iter().any(|lane| lane.is_real)) {
            bail!(Usage(format!("no plugin here reads with the group {group:?}; cofferdam streams shows the groups")));
        }
        let mut judgement = judge(&mut gathered);
        if judgement.violations() == 0 || !gathered.moving {
            break judgement;
        }
        if readings == READINGS_MAX {
            judgement.excuse_moved();
            break judgement;
        }
        note("dead letters were moved while they were read; reading again");
    };
    if common.json {
        show_json(&judgement)?;
    } else {
        show(&judgement);
    }
    match judgement.violations() {
        0 => Ok(()),
        1 => bail!(Failed(String::from("1 check is violated"))),
        count => bail!(Failed(format!("{count} checks are violated"))),
    }
}

fn show_json(judgement: &Judgement) -> Result<()> {
    let checks = judgement.checks.iter().map(|check| {
        json!({
            "check": check.name, "about": check.about, "standing": check.standing.word().to_lowercase().replace(' ', "-"), "detail": check.detail,
            "count": check.count, "examples": check.examples,
        })
    });
    let checks: Vec<_> = checks.collect();
    let document = json!({ "ok": judgement.violations() == 0, "summary": judgement.summary, "checks": checks });
    line(&serde_json::to_string_pretty(&document)?);
    Ok(())
}

fn show(judgement: &Judgement) {
    let mut rows = table(&["check", "about", "result", "detail"]);
    for check in &judgement.checks {
        rows.add_row([check.name, &safe(&check.about), check.standing.word(), &safe(&check.detail)]);
    }
    if !rows.is_empty() {
        rows.lines().for_each(|text| line(text.trim_end()));
        line("");
    }
    for check in judgement.checks.iter().filter(|check| check.standing == Standing::Violated) {
        line(&format!("VIOLATED  {} ({}): {}", check.name, safe(&check.about), safe(&check.detail)));
        for example in check.examples.iter().take(EXAMPLES_SHOWN) {
            line(&format!("          {}", safe(example)));
        }
        if !check.examples.is_empty() && check.count > EXAMPLES_SHOWN as u64 {
            line(&format!("          and {} more; --json shows some of them", check.count - EXAMPLES_SHOWN as u64));
        }
    }
    line(&judgement.summary);
}

impl Check {
    fn is_violated(&self) -> bool {
        self.standing == Standing::Violated
    }
}

impl Judgement {
    fn violations(&self) -> usize {
        self.checks.iter().filter(|check| check.is_violated()).count()
    }
}
