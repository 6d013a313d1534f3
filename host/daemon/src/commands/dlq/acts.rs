//! What is done with dead letters: each is sent back or thrown away in a step of its own, which also goes on record.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use anyhow::{Result, bail};
use cofferdam_model::EntryId;
use cofferdam_model::route::DEAD_LETTER_STREAM;
use cofferdam_streams::dead_letters::{Operator, StoredLetter};
use cofferdam_streams::{Store, redrive_stream};
use indicatif::HumanCount;
use serde_json::{Value as Json, json};
use tokio::time::{Instant, sleep_until};

use super::{Filter, Summary, Walk, letter, or_dash};
use crate::cli::Common;
use crate::clock;
use crate::escape::safe;
use crate::exit::{Failed, Usage};
use crate::screen::{line, note, who};

/// The letters that an act is about.
#[derive(Clone, Debug, Default, clap::Args)]
struct Chosen {
    /// Ids of dead letters
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with_all = ["all", "plugin", "stream", "code", "group", "digest", "since"])]
    ids: Vec<EntryId>,
    /// All that the filters let through, the oldest first
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Why, for the operator log
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct RedriveArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// At most so many a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// The group for dead letters that name none (those of the original program)
    #[arg(long, value_name = "GROUP")]
    to: Option<String>,
    /// Those too of which not the whole entry was kept: what goes back is less than what was published
    #[arg(long)]
    incomplete: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct DiscardArgs {
    #[command(flatten)]
    chosen: Chosen,
}

/// What became of the letters of an act.
#[derive(Default)]
struct Outcome {
    /// By where they went.
    done: BTreeMap<String, u64>,
    gone: Vec<EntryId>,
    /// Why some were left, by reason.
    left: BTreeMap<String, u64>,
    acts: u64,
}

/// What is done with each letter.
enum Doing<'a> {
    Redrive {
        to: Option<&'a str>,
        /// Those too of which not the whole entry was kept.
        incomplete: bool,
    },
    Discard,
}

impl Doing<'_> {
    fn verb(&self) -> &'static str {
        match self {
            Doing::Redrive { .. } => "dlq.redrive",
            Doing::Discard => "dlq.discard",
        }
    }

    /// Where a letter goes, or why it must stay.
    fn target(&self, letter: &StoredLetter) -> Result<String, String> {
        let Doing::Redrive { to, incomplete } = self else { return Ok(String::from("discarded")) };
        if letter.original_fields.is_empty() {
            return Err(String::from("nothing is left of the message: look at them, then dlq discard"));
        }
        if letter.original_stream.is_empty() {
            return Err(String::from("it does not say which stream it came from"));
        }
        if let Some(lacks) = letter.lacks().filter(|_| !incomplete) {
            return Err(format!("{lacks}; look at them, then send back what there is with --incomplete"));
        }
        match (letter.group.as_str(), to) {
            ("", None) => {
                Err(String::from("it names no group (the original program wrote none): say where with --to GROUP"))
            }
            ("", Some(to)) => Ok((*to).to_owned()),
            (group, Some(to)) if group != *to => {
                // Another group may have handled the message already: its effects would be there twice.
                Err(format!("it belongs to {group}; --to is only for those that name no group"))
            }
            (group, _) => Ok(group.to_owned()),
        }
    }
}

pub(super) async fn redrive(common: &Common, store: &Store, args: &RedriveArgs) -> Result<()> {
    let groups: Vec<String> = store.lanes().await?.into_iter().map(|(_, group)| group).collect();
    if let Some(to) = args.to.as_ref().filter(|to| !groups.contains(to)) {
        let known: std::collections::BTreeSet<&str> = groups.iter().map(String::as_str).collect();
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        bail!(Usage(format!("no plugin here reads with the group {to:?}; there are: {}", or_dash(&known))));
    }
    let doing = Doing::Redrive { to: args.to.as_deref(), incomplete: args.incomplete };
    let outcome = act(store, &args.chosen, &doing, args.rate).await?;
    for group in outcome.done.keys().filter(|_| !args.chosen.dry_run && !common.json) {
        if !is_read(store, group).await? {
            note(&format!("no running host reads {group} now; they wait in {}", redrive_stream(group)));
        }
    }
    report(common, &args.chosen, &doing, &outcome)
}

/// Whether a plugin of a living host reads with this group.
async fn is_read(store: &Store, group: &str) -> Result<bool> {
    let hosts = store.hosts().await?;
    let mut plugins = hosts.iter().flat_map(|host| host.plugins.as_array().into_iter().flatten());
    Ok(plugins.any(|plugin| plugin.get("group").and_then(Json::as_str) == Some(group)))
}

pub(super) async fn discard(common: &Common, store: &Store, args: &DiscardArgs) -> Result<()> {
    let outcome = act(store, &args.chosen, &Doing::Discard, None).await?;
    report(common, &args.chosen, &Doing::Discard, &outcome)
}

/// Sends back what a version of a plugin has dead-lettered; how many letters that were, and how many were left.
pub(crate) async fn send_back(store: &Store, plugin: &str, digest: &str, reason: &str) -> Result<(u64, u64)> {
    let filter = Filter { plugin: Some(plugin.to_owned()), digest: Some(digest.to_owned()), ..Filter::default() };
    let reason = if reason.is_empty() { "its version was rolled back" } else { reason };
    let chosen = Chosen { all: true, filter, yes: true, reason: reason.to_owned(), ..Chosen::default() };
    let doing = Doing::Redrive { to: None, incomplete: false };
    let outcome = act(store, &chosen, &doing, None).await?;
    Ok((outcome.acts, outcome.left.values().sum()))
}

/// Does it, letter by letter: each is its own atomic step, so an interrupted act has done whole letters only.
async fn act(store: &Store, chosen: &Chosen, doing: &Doing<'_>, rate: Option<u32>) -> Result<Outcome> {
    if !confirm(store, chosen, doing).await? {
        return Ok(Outcome::default());
    }
    let actor = Actor { store, who: who(), why: &chosen.reason, dry_run: chosen.dry_run };
    let mut outcome = Outcome::default();
    let started = Instant::now();
    let most = chosen.limit.unwrap_or(u64::MAX);
    for id in chosen.ids.iter().take(usize::try_from(most).unwrap_or(usize::MAX)) {
        match letter(store, *id).await? {
            Some(letter) => actor.one(&letter, doing, &mut outcome).await?,
            None => outcome.gone.push(*id),
        }
    }
    if !chosen.all {
        return Ok(outcome);
    }
    let what = if matches!(doing, Doing::Discard) { "discarding" } else { "sending back" };
    let mut walk = Walk::new(store, &chosen.filter, what).await?;
    // What fails again meanwhile is a new letter behind the end that was: it is not sent back a second time.
    let end = store.last_id(DEAD_LETTER_STREAM).await?;
    'pages: while let Some(page) = walk.next().await? {
        for letter in page {
            if outcome.acts >= most || letter.id > end {
                break 'pages;
            }
            actor.one(&letter, doing, &mut outcome).await?;
            if let Some(rate) = rate {
                sleep_until(started + Duration::from_secs_f64(outcome.acts as f64 / f64::from(rate))).await;
            }
        }
    }
    walk.bar.finish_and_clear();
    Ok(outcome)
}

/// Who acts, and why.
struct Actor<'a> {
    store: &'a Store,
    who: String,
    why: &'a str,
    dry_run: bool,
}

impl Actor<'_> {
    async fn one(&self, letter: &StoredLetter, doing: &Doing<'_>, outcome: &mut Outcome) -> Result<()> {
        let target = match doing.target(letter) {
            Ok(target) => target,
            Err(reason) => {
                *outcome.left.entry(reason).or_default() += 1;
                return Ok(());
            }
        };
        let at = clock::iso(clock::now_ms());
        let by = Operator { at: &at, who: &self.who, why: self.why };
        // What is on record is what was done: somebody else may have been at the same letter.
        let done = match doing {
            _ if self.dry_run => true,
            Doing::Redrive { .. } => self.store.redrive(letter, &target, &by).await?.is_some(),
            Doing::Discard => self.store.discard(letter, &by).await?,
        };
        if done {
            outcome.acts += 1;
            *outcome.done.entry(target).or_default() += 1;
        } else {
            outcome.gone.push(letter.id);
        }
        Ok(())
    }
}

/// Asks before something that cannot be taken back, or that may be more than was meant. Whether there is anything to do.
async fn confirm(store: &Store, chosen: &Chosen, doing: &Doing<'_>) -> Result<bool> {
    let discards = matches!(doing, Doing::Discard);
    if chosen.yes || chosen.dry_run || !(discards || chosen.all) {
        return Ok(true);
    }
    let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !asks && discards {
        bail!(Usage(String::from("what is discarded cannot be got back: say --yes, or look first with --dry-run")));
    }
    if !asks {
        return Ok(true);
    }
    let mut summary = Summary::default();
    if chosen.all {
        let mut walk = Walk::new(store, &chosen.filter, "counting").await?;
        while let Some(page) = walk.next().await? {
            page.iter().for_each(|letter| summary.add(letter));
        }
        if summary.total == 0 {
            return Ok(false);
        }
        summary.show();
    } else {
        summary.total = chosen.ids.len() as u64;
    }
    let count = HumanCount(chosen.limit.unwrap_or(u64::MAX).min(summary.total));
    note(&format!("{} {count} dead letters? [y/N]", if discards { "Delete for good" } else { "Send back" }));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!(Failed(String::from("nothing was done")));
    }
    Ok(true)
}

fn report(common: &Common, chosen: &Chosen, doing: &Doing<'_>, outcome: &Outcome) -> Result<()> {
    let left: u64 = outcome.left.values().sum();
    let gone: Vec<String> = outcome.gone.iter().map(EntryId::to_string).collect();
    if common.json {
        let document = json!({
            "verb": doing.verb(), "dry_run": chosen.dry_run, "done": outcome.done, "gone": gone, "left": outcome.left,
        });
        line(&serde_json::to_string_pretty(&document)?);
    } else {
        let verb = match (doing, chosen.dry_run) {
            (Doing::Redrive { .. }, false) => "sent back",
            (Doing::Redrive { .. }, true) => "would send back",
            (Doing::Discard, false) => "discarded",
            (Doing::Discard, true) => "would discard",
        };
        let ways = outcome.done.iter().map(|(to, count)| format!("{} to {}", HumanCount(*count), safe(to)));
        let to = match doing {
            Doing::Redrive { .. } if outcome.acts > 0 => format!(": {}", ways.collect::<Vec<_>>().join(", ")),
            _ => String::new(),
        };
        if chosen.all && outcome.acts == 0 && left == 0 && gone.is_empty() {
            line("no dead letters match: nothing to do");
        } else {
            line(&format!("{verb} {} dead letters{to}", HumanCount(outcome.acts)));
        }
        for (reason, count) in &outcome.left {
            line(&format!("left {}: {}", HumanCount(*count), safe(reason)));
        }
        if !gone.is_empty() {
            line(&format!("already gone: {}", gone.join(", ")));
        }
    }
    // A filter that matches what another has taken a moment before has done what was asked; a named id has not.
    if left > 0 || (!gone.is_empty() && !chosen.all) {
        bail!(Failed(format!("{} of the dead letters were not handled", left + gone.len() as u64)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(group: &str, fields: usize) -> StoredLetter {
        StoredLetter {
            group: group.into(),
            original_stream: "stream:attacks".into(),
            plugin: "classify".into(),
            code: "trap".into(),
            original_fields: vec![(b"payload".to_vec(), b"{}".to_vec()); fields],
            exact: true,
            ..StoredLetter::default()
        }
    }

    #[test]
    fn a_letter_goes_back_to_its_own_group_and_to_no_other() {
        let own = Doing::Redrive { to: None, incomplete: false };
        let named = Doing::Redrive { to: Some("group:b"), incomplete: false };
        assert_eq!(own.target(&letter("group:a", 1)), Ok(String::from("group:a")));
        assert!(own.target(&letter("", 1)).unwrap_err().contains("--to GROUP"));
        assert_eq!(named.target(&letter("", 1)), Ok(String::from("group:b")));
        assert!(named.target(&letter("group:a", 1)).unwrap_err().contains("belongs to group:a"));
    }

    #[test]
    fn a_letter_of_which_nothing_is_left_is_not_sent_back_empty() {
        assert!(Doing::Redrive { to: None, incomplete: true }.target(&letter("group:a", 0)).is_err());
        assert!(Doing::Discard.target(&letter("group:a", 0)).is_ok());
    }

    #[test]
    fn a_letter_that_lacks_something_of_its_entry_is_sent_back_only_when_that_is_said() {
        let truncated = StoredLetter { truncated: true, ..letter("group:a", 1) };
        let rebuilt = StoredLetter { exact: false, ..letter("group:a", 1) };
        for lacking in [&truncated, &rebuilt] {
            let refused = Doing::Redrive { to: None, incomplete: false }.target(lacking).unwrap_err();
            assert!(refused.contains("--incomplete"), "{refused}");
            let told = Doing::Redrive { to: None, incomplete: true };
            assert_eq!(told.target(lacking), Ok(String::from("group:a")));
        }
        // The original program kept no copies: its view is the message.
        let historic = StoredLetter { exact: false, ..letter("", 1) };
        let doing = Doing::Redrive { to: Some("group:a"), incomplete: false };
        assert_eq!(doing.target(&historic), Ok(String::from("group:a")));
    }
}
