//! `dlq`: the dead letters: what they are, sending them back, throwing them away. Every act is written to the operator log.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use anyhow::{Result, bail};
use cofferdam_model::route::DEAD_LETTER_STREAM;
use cofferdam_model::{EntryId, ReasonCode};
use cofferdam_streams::dead_letters::{Operator, StoredLetter};
use cofferdam_streams::{Store, redrive_stream};
use indicatif::{HumanCount, ProgressBar};
use serde_json::{Value as Json, json};
use tokio::time::{Instant, sleep_until};

use super::streams::age;
use super::tail::{fields_json, fields_lines, terminal_width};
use crate::cli::Common;
use crate::clock;
use crate::exit::{Failed, Usage};
use crate::quantity::{When, show_bytes, when_argument};
use crate::screen::{line, note, progress, safe, safe_cut, table, who};

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
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

#[derive(Debug, clap::Args)]
struct RedriveArgs {
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
struct DiscardArgs {
    #[command(flatten)]
    chosen: Chosen,
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
        Act::Redrive(args) => redrive(common, &store, &args).await,
        Act::Discard(args) => discard(common, &store, &args).await,
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

async fn redrive(common: &Common, store: &Store, args: &RedriveArgs) -> Result<()> {
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

async fn discard(common: &Common, store: &Store, args: &DiscardArgs) -> Result<()> {
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
    confirm(store, chosen, doing).await?;
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

/// Asks before something that cannot be taken back, or that may be more than was meant.
async fn confirm(store: &Store, chosen: &Chosen, doing: &Doing<'_>) -> Result<()> {
    let discards = matches!(doing, Doing::Discard);
    if chosen.yes || chosen.dry_run || !(discards || chosen.all) {
        return Ok(());
    }
    let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if !asks && discards {
        bail!(Usage(String::from("what is discarded cannot be got back: say --yes, or look first with --dry-run")));
    }
    if !asks {
        return Ok(());
    }
    let mut summary = Summary::default();
    if chosen.all {
        let mut walk = Walk::new(store, &chosen.filter, "counting").await?;
        while let Some(page) = walk.next().await? {
            page.iter().for_each(|letter| summary.add(letter));
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
    Ok(())
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
        line(&format!("{verb} {} dead letters{to}", HumanCount(outcome.acts)));
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

    #[test]
    fn filters_must_all_match() {
        let filter = Filter { plugin: Some("classify".into()), code: Some("trap".into()), ..Filter::default() };
        assert!(filter.matches(&letter("g", 1)));
        assert!(!Filter { code: Some("reject".into()), ..filter }.matches(&letter("g", 1)));
    }
}
