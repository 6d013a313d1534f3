//! `dlq`: the dead letters: what they are, sending them back, throwing them away. Every act is written to the operator log.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use cofferdam_model::route::DEAD_LETTER_STREAM;
use cofferdam_model::{EntryId, ReasonCode};
use cofferdam_streams::Store;
use cofferdam_streams::dead_letters::StoredLetter;
use indicatif::{HumanCount, ProgressBar};
use serde_json::{Value as Json, json};

use super::streams::age;
use super::tail::{fields_json, fields_lines};
use crate::cli::Common;
use crate::clock;
use crate::escape::{safe, safe_cut};
use crate::exit::Failed;
use crate::quantity::{When, show_bytes, when_argument};
use crate::screen::{line, progress, table, terminal_width};

mod acts;

pub(crate) use acts::send_back;
use acts::{DiscardArgs, RedriveArgs};

/// Letters of one read: each may carry a payload of a megabyte.
const PAGE: usize = 200;

/// Dead letters: deliveries that will not be tried again, with the evidence of why.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cofferdam dlq list --plugin classify --since -1h\n  \
    cofferdam dlq show 1795418457352-0\n  \
    cofferdam dlq redrive --all --plugin classify --reason 'fixed in 1.2'\n  \
    cofferdam dlq discard 1795418457352-0 --yes")]
pub(crate) struct Args {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// List dead letters, with a summary by plugin and reason
    List(ListArgs),
    /// Show all that is known of dead letters
    Show(ShowArgs),
    /// Send dead letters back to the group that gave up on them, with fresh attempts
    Redrive(RedriveArgs),
    /// Delete dead letters for good
    Discard(DiscardArgs),
}

/// Which dead letters are meant.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Filters")]
struct Filter {
    /// Only of this plugin
    #[arg(long, value_name = "NAME")]
    plugin: Option<String>,
    /// Only messages of this stream
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// Only with this reason code: trap, deadline, reject, malformed, …
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// Only of this consumer group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Only of the version whose digest begins so
    #[arg(long = "digest", value_name = "DIGEST")]
    digest: Option<String>,
    /// Only since: an age (-10m), a time (2026-11-24T08:00:00Z), a day (2026-11-24) or a dead letter's id
    #[arg(long, value_name = "WHEN", value_parser = when_argument, allow_hyphen_values = true)]
    since: Option<When>,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    filter: Filter,
    /// How many to list
    #[arg(long, value_name = "N", default_value_t = 50)]
    count: usize,
    /// List all
    #[arg(long, conflicts_with = "count")]
    all: bool,
    /// The newest first instead of the oldest
    #[arg(long)]
    newest_first: bool,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Ids of dead letters
    #[arg(required = true, value_name = "ID")]
    ids: Vec<EntryId>,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    let store = super::find(common).await?.store;
    let kind = store.key_type(DEAD_LETTER_STREAM).await?;
    if kind != "stream" && kind != "none" {
        bail!(Failed(format!(
            "{DEAD_LETTER_STREAM} is a {kind} and not a stream; look with: redis-cli TYPE {DEAD_LETTER_STREAM}"
        )));
    }
    match args.act {
        Act::List(args) => list(common, &store, &args).await,
        Act::Show(args) => show(common, &store, &args).await,
        Act::Redrive(args) => acts::redrive(common, &store, &args).await,
        Act::Discard(args) => acts::discard(common, &store, &args).await,
    }
}

impl Filter {
    fn matches(&self, letter: &StoredLetter) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&self.plugin, &letter.plugin)
            && is(&self.stream, &letter.original_stream)
            && is(&self.code, &letter.code)
            && is(&self.group, &letter.group)
            && self.digest.as_deref().is_none_or(|wanted| letter.digest.starts_with(wanted))
    }

    fn first(&self) -> EntryId {
        self.since.map_or(EntryId::ZERO, |when| when.id(clock::now_ms()))
    }
}

/// Goes through the dead letters page by page.
struct Walk<'a> {
    store: &'a Store,
    filter: &'a Filter,
    from: String,
    bar: ProgressBar,
}

impl<'a> Walk<'a> {
    async fn new(store: &'a Store, filter: &'a Filter, what: &str) -> Result<Self> {
        let total = store.stream_facts(DEAD_LETTER_STREAM).await?.map_or(0, |facts| facts.length);
        // A handful is read before anybody could look at a bar.
        let bar = if total > 2_000 { progress(total, what) } else { ProgressBar::hidden() };
        Ok(Walk { store, filter, from: filter.first().to_string(), bar })
    }

    /// The next page of those that match; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<StoredLetter>>> {
        let page = self.store.dead_letters(&self.from, "+", PAGE).await?;
        let Some(last) = page.last() else {
            self.bar.finish_and_clear();
            return Ok(None);
        };
        self.from = format!("({}", last.id);
        self.bar.inc(page.len() as u64);
        Ok(Some(page.into_iter().filter(|letter| self.filter.matches(letter)).collect()))
    }
}

/// Counts by plugin and reason.
#[derive(Default)]
struct Summary {
    total: u64,
    by_reason: BTreeMap<(String, String), u64>,
}

impl Summary {
    fn add(&mut self, letter: &StoredLetter) {
        self.total += 1;
        *self.by_reason.entry((letter.plugin.clone(), letter.code.clone())).or_default() += 1;
    }

    fn show(&self) {
        let mut counts = table(&["plugin", "code", "letters", "meaning"]);
        let mut sorted: Vec<_> = self.by_reason.iter().collect();
        sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for ((plugin, code), count) in sorted {
            counts.add_row([
                safe_cut(or_dash(plugin), 40),
                safe_cut(code, 30),
                HumanCount(*count).to_string(),
                meaning(code),
            ]);
        }
        counts.lines().for_each(|text| line(text.trim_end()));
    }

    fn json(&self) -> Json {
        let rows = self.by_reason.iter();
        rows.map(|((plugin, code), count)| json!({ "plugin": plugin, "code": code, "count": count })).collect()
    }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn meaning(code: &str) -> String {
    match code.parse::<ReasonCode>() {
        Ok(code) => code.meaning().replace('`', ""),
        // What the original program wrote has no code; its only reason was this one.
        Err(_) if code == "max-retries" => String::from("The original program's retries were used up."),
        Err(_) => String::new(),
    }
}

async fn list(common: &Common, store: &Store, args: &ListArgs) -> Result<()> {
    let most = if args.all { usize::MAX } else { args.count };
    let mut summary = Summary::default();
    let mut listed = std::collections::VecDeque::new();
    let mut walk = Walk::new(store, &args.filter, "reading dead letters").await?;
    while let Some(page) = walk.next().await? {
        for letter in page {
            summary.add(&letter);
            if args.newest_first || listed.len() < most {
                listed.push_back(letter);
            }
            if listed.len() > most {
                listed.pop_front();
            }
        }
    }
    let mut listed = Vec::from(listed);
    if args.newest_first {
        listed.reverse();
    }
    if common.json {
        let letters: Vec<Json> = listed.iter().map(letter_json).collect();
        let document = json!({ "total": summary.total, "summary": summary.json(), "letters": letters });
        line(&serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    if summary.total == 0 {
        line("no dead letters");
        return Ok(());
    }
    summary.show();
    line("");
    show_list(&listed, args.newest_first);
    let shown = listed.len() as u64;
    line("");
    if shown < summary.total {
        line(&format!("{} of {} shown; --all shows the rest", HumanCount(shown), HumanCount(summary.total)));
    }
    line("why, in full:   cofferdam dlq show ID");
    line("send them back: cofferdam dlq redrive ID…   (or --all with filters)");
    Ok(())
}

/// Below this width the message's stream and id are left to `show`: a reason cut to nothing helps nobody.
const WIDE: usize = 120;

fn show_list(letters: &[StoredLetter], newest_first: bool) {
    let now_ms = clock::now_ms();
    let width = terminal_width().unwrap_or(WIDE * 2);
    let age_title = if newest_first { "ago (newest first)" } else { "ago" };
    let mut rows = if width < WIDE {
        table(&["id", age_title, "plugin", "code", "reason"])
    } else {
        table(&["id", age_title, "plugin", "code", "message", "reason"])
    };
    // What the other columns leave.
    let room = width.saturating_sub(if width < WIDE { 58 } else { 102 }).clamp(16, 200);
    for letter in letters {
        let mut row = vec![
            letter.id.to_string(),
            age(Some(letter.id.ms), now_ms),
            safe_cut(or_dash(&letter.plugin), 16),
            safe_cut(&letter.code, 16),
        ];
        if width >= WIDE {
            row.push(safe_cut(&format!("{} {}", letter.original_stream, letter.original_id), 44));
        }
        row.push(safe_cut(letter.reason.lines().next().unwrap_or_default(), room));
        rows.add_row(row);
    }
    rows.lines().for_each(|text| line(text.trim_end()));
}

fn letter_json(letter: &StoredLetter) -> Json {
    json!({
        "id": letter.id.to_string(), "original_stream": letter.original_stream, "original_id": letter.original_id,
        "group": letter.group, "plugin": letter.plugin, "digest": letter.digest, "code": letter.code, "reason": letter.reason,
        "failed_at": letter.failed_at, "attempts": letter.attempts, "trap": letter.trap, "log_tail": letter.log_tail,
        "redrives": letter.redrives, "original_message": letter.original_message, "exact": letter.exact,
        "truncated": letter.truncated,
        "original_fields": fields_json(&letter.original_fields),
    })
}

/// The letter with this id; `None` when it is not there (any more).
async fn letter(store: &Store, id: EntryId) -> Result<Option<StoredLetter>> {
    let id = id.to_string();
    Ok(store.dead_letters(&id, &id, 1).await?.into_iter().next())
}

async fn show(common: &Common, store: &Store, args: &ShowArgs) -> Result<()> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for id in &args.ids {
        match letter(store, *id).await? {
            Some(letter) => found.push(letter),
            None => missing.push(id.to_string()),
        }
    }
    if common.json {
        let letters: Vec<Json> = found.iter().map(letter_json).collect();
        line(&serde_json::to_string_pretty(&letters)?);
    } else {
        found.iter().for_each(show_letter);
    }
    if !missing.is_empty() {
        bail!(Failed(format!("no dead letter {} (sent back or discarded, or never there)", missing.join(", "))));
    }
    Ok(())
}

fn show_letter(letter: &StoredLetter) {
    line(&format!("dead letter {}", letter.id));
    let digest: String = letter.digest.chars().take(12).collect();
    let version = if digest.is_empty() { String::new() } else { format!("  version {digest}") };
    let rows = [
        ("message", format!("{} {}", or_dash(&letter.original_stream), or_dash(&letter.original_id))),
        ("plugin", format!("{}{version}", or_dash(&letter.plugin))),
        ("group", or_dash(&letter.group).to_owned()),
        ("failed at", or_dash(&letter.failed_at).to_owned()),
        ("code", format!("{}  {}", letter.code, meaning(&letter.code))),
        ("reason", letter.reason.clone()),
        ("sent back", format!("{} times before", letter.redrives)),
    ];
    for (name, value) in rows {
        line(&format!("  {name:<10}  {}", safe(&value)));
    }
    show_attempts(&letter.attempts);
    show_text("backtrace", &letter.trap);
    show_text("last log lines", &letter.log_tail);
    let kind = match (letter.exact, letter.truncated) {
        (true, false) => "a copy, byte for byte",
        (true, true) => "a copy of its first 3,000 fields; it had more",
        (false, _) => "rebuilt from the JSON view",
    };
    if letter.original_fields.is_empty() {
        line("  the original entry is gone; nothing of it was kept");
    } else {
        line(&format!("  the original entry ({kind})"));
        fields_lines(&letter.original_fields).iter().for_each(|text| line(&format!("  {text}")));
    }
    line("");
    let to = if letter.group.is_empty() { " --to GROUP" } else { "" };
    let incomplete = match letter.lacks() {
        Some(lacks) => {
            line(&format!("  not quite what was published: {lacks}"));
            " --incomplete"
        }
        None => "",
    };
    line(&format!("  send it back: cofferdam dlq redrive {}{to}{incomplete}", letter.id));
    line("");
}

fn show_attempts(attempts: &Json) {
    let Some(attempts) = attempts.as_array().filter(|attempts| !attempts.is_empty()) else {
        line("  attempts    none was charged");
        return;
    };
    line("  attempts");
    let mut rows = table(&["#", "at", "code", "took", "memory", "version", "host", "text"]);
    for (number, attempt) in attempts.iter().enumerate() {
        let text = |name: &str| attempt.get(name).and_then(Json::as_str).unwrap_or_default();
        let count = |name: &str| attempt.get(name).and_then(Json::as_u64).unwrap_or_default();
        rows.add_row([
            (number + 1).to_string(),
            clock::short(count("at_ms")),
            safe_cut(text("code"), 20),
            format!("{:?}", Duration::from_micros(count("took_us"))),
            show_bytes(count("memory_bytes")),
            text("digest").chars().take(8).collect(),
            safe_cut(text("host"), 24),
            safe_cut(text("text"), 300),
        ]);
    }
    rows.lines().for_each(|text| line(&format!("   {}", text.trim_end())));
}

fn show_text(title: &str, text: &str) {
    if text.is_empty() {
        return;
    }
    line(&format!("  {title}"));
    text.lines().for_each(|text| line(&format!("    {}", safe(text))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_must_all_match() {
        let letter = StoredLetter { plugin: "classify".into(), code: "trap".into(), ..StoredLetter::default() };
        let filter = Filter { plugin: Some("classify".into()), code: Some("trap".into()), ..Filter::default() };
        assert!(filter.matches(&letter));
        assert!(!Filter { code: Some("reject".into()), ..filter }.matches(&letter));
    }
}
