//! `tail`: the entries of streams, one a line, and then what comes.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Result, bail};
use cofferdam_model::EntryId;
use cofferdam_model::route::check_stream_name;
use cofferdam_streams::codec::strict_json;
use cofferdam_streams::{RawEntry, Remedy, Store, StreamError};
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::cli::Common;
use crate::clock;
use crate::escape::{safe, safe_cut};
use crate::exit::{Failed, Usage};
use crate::quantity::{When, when_argument};
use crate::screen::{line, note, terminal_width};

/// Entries of one read.
const PAGE: usize = 500;
/// Entries that --grep looks through backwards for the last matches.
const GREP_BACK_MAX: usize = 200_000;
/// Streams at once: each has a connection of its own.
const STREAMS_MAX: usize = 64;
/// First and longest pause after an error of Redis.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Fields that hold the payload in what others write: Suricata, Redpanda Connect, rsyslog.
const PAYLOAD_FIELDS: [&[u8]; 4] = [b"payload", b"eve", b"body", b"msg"];

/// Prints the last entries of streams, one a line, and follows what comes until Ctrl-C.
///
/// A line has the time, the stream (when there are several), the id, the priority, the plugin or the producer, and the payload,
/// cut to the width of the terminal. Control characters are shown as escapes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The streams
    #[arg(required = true, value_name = "STREAM")]
    streams: Vec<String>,
    /// How many of the last entries to begin with
    #[arg(long, short, value_name = "N", default_value_t = 10, conflicts_with = "from")]
    count: usize,
    /// Begin here instead: an age (-10m), a time (2026-11-24T08:00:00Z), a day (2026-11-24) or an entry id
    #[arg(long, value_name = "WHEN", value_parser = when_argument, allow_hyphen_values = true)]
    from: Option<When>,
    /// End with the last entry that is there
    #[arg(long, short)]
    no_follow: bool,
    /// All fields of an entry, on several lines
    #[arg(long, short)]
    full: bool,
    /// Only entries in which a field holds this text
    #[arg(long, short, value_name = "TEXT")]
    grep: Option<String>,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    if args.streams.len() > STREAMS_MAX {
        bail!(Usage(format!("at most {STREAMS_MAX} streams at once")));
    }
    for stream in &args.streams {
        check_stream_name(stream).map_err(|error| Usage(error.to_string()))?;
    }
    let store = super::find(common).await?.store;
    check_streams(&store, &args).await?;
    let printer = Printer::new(common, &args);
    tokio::select! {
        outcome = print_all(&store, &args, &printer) => outcome,
        // Ctrl-C is how a tail ends.
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// A stream that is not there is waited for, or refused when nobody wants to wait.
async fn check_streams(store: &Store, args: &Args) -> Result<()> {
    for stream in &args.streams {
        match store.key_type(stream).await?.as_str() {
            "stream" => {}
            "none" => {
                let text = format!("there is no stream {stream}; {}", existing(store).await?);
                if args.no_follow {
                    bail!(Failed(text));
                }
                note(&format!("{text}\nwaiting for its first entry"));
            }
            kind => bail!(Failed(format!("{stream} is a {kind}, not a stream; {}", existing(store).await?))),
        }
    }
    Ok(())
}

/// What streams there are, for somebody who mistyped one.
async fn existing(store: &Store) -> Result<String> {
    const SHOWN: usize = 20;
    let (names, whole) = store.stream_names(100).await?;
    let names: Vec<String> =
        names.iter().filter(|name| !name.starts_with("cofferdam:")).map(|name| safe(name)).collect();
    if names.is_empty() {
        return Ok(String::from("there are no streams at all in this Redis"));
    }
    let more = if names.len() > SHOWN || !whole { " and more" } else { "" };
    Ok(format!("there are: {}{more}", names.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ")))
}

async fn print_all(store: &Store, args: &Args, printer: &Printer) -> Result<()> {
    // The end is noted before the past is printed: what comes meanwhile is followed.
    let mut cursors = Vec::new();
    for stream in &args.streams {
        cursors.push(Cursor { stream, after: EntryId::ZERO, ahead: VecDeque::new(), done: false });
    }
    match args.from {
        Some(when) => {
            let from = when.id(clock::now_ms()).before();
            cursors.iter_mut().for_each(|cursor| cursor.after = from);
            print_merged(store, &mut cursors, printer).await?;
        }
        None => print_last(store, args, &mut cursors, printer).await?,
    }
    if args.no_follow {
        return Ok(());
    }
    follow(store, &cursors, printer).await
}

/// How far a stream has been printed.
struct Cursor<'a> {
    stream: &'a str,
    after: EntryId,
    ahead: VecDeque<RawEntry>,
    done: bool,
}

/// Everything after the cursors up to the end, all streams in the order of their ids.
async fn print_merged(store: &Store, cursors: &mut [Cursor<'_>], printer: &Printer) -> Result<()> {
    loop {
        for cursor in cursors.iter_mut().filter(|cursor| cursor.ahead.is_empty() && !cursor.done) {
            let page = store.range(cursor.stream, &format!("({}", cursor.after), "+", PAGE).await?;
            cursor.after = page.last().map_or(cursor.after, |entry| entry.id);
            cursor.done = page.is_empty();
            cursor.ahead = page.into();
        }
        let next = cursors.iter_mut().filter(|cursor| !cursor.ahead.is_empty());
        let Some(cursor) = next.min_by_key(|cursor| cursor.ahead.front().map(|entry| entry.id)) else { return Ok(()) };
        if let Some(entry) = cursor.ahead.pop_front() {
            printer.print(cursor.stream, &entry);
        }
    }
}

/// The last matching entries of all streams together.
async fn print_last(store: &Store, args: &Args, cursors: &mut [Cursor<'_>], printer: &Printer) -> Result<()> {
    let mut found = Vec::new();
    for cursor in cursors.iter_mut() {
        cursor.after = store.last_id(cursor.stream).await?;
        let (mut to, mut looked, mut matches) = (cursor.after, 0, 0);
        while matches < args.count && looked < GREP_BACK_MAX {
            // Without a search the last entries are all that is read.
            let page = if printer.grep.is_some() { PAGE } else { args.count.min(PAGE) };
            let entries = store.range_back(cursor.stream, &to.to_string(), "-", page).await?;
            let Some(last) = entries.last() else { break };
            (to, looked) = (last.id.before(), looked + entries.len());
            let whole = to == EntryId::ZERO;
            for entry in entries.into_iter().filter(|entry| printer.wants(entry)).take(args.count - matches) {
                matches += 1;
                found.push((entry, cursor.stream));
            }
            if whole {
                break;
            }
        }
        if matches < args.count && looked >= GREP_BACK_MAX {
            note(&format!("looked through the last {looked} entries of {}; --from goes further back", cursor.stream));
        }
    }
    found.sort_by_key(|(entry, _)| entry.id);
    let skip = found.len().saturating_sub(args.count);
    found.iter().skip(skip).for_each(|(entry, stream)| printer.print(stream, entry));
    Ok(())
}

/// Prints what comes, for as long as nobody stops it.
async fn follow(store: &Store, cursors: &[Cursor<'_>], printer: &Printer) -> Result<()> {
    let (entries, mut inbox) = mpsc::channel(PAGE);
    let mut followers = JoinSet::new();
    for cursor in cursors {
        followers.spawn(follow_one(store.clone(), cursor.stream.to_owned(), cursor.after, entries.clone()));
    }
    drop(entries);
    loop {
        tokio::select! {
            Some((stream, entry)) = inbox.recv() => printer.print(&stream, &entry),
            // A follower ends only when it cannot go on.
            ended = followers.join_next() => match ended {
                Some(ended) => ended??,
                None => return Ok(()),
            },
        }
    }
}

/// Follows one stream on a connection of its own. `follow` holds the other end of the channel.
async fn follow_one(
    store: Store,
    stream: String,
    mut after: EntryId,
    entries: mpsc::Sender<(String, RawEntry)>,
) -> Result<(), StreamError> {
    let connection = store.further_connection().await?;
    let mut pause = PAUSE_MIN;
    let mut told = false;
    loop {
        match Store::wait_for(&*connection, &stream, &after.to_string(), PAGE).await {
            Ok(page) => {
                if told {
                    note("redis answers again");
                }
                (pause, told) = (PAUSE_MIN, false);
                for entry in page {
                    after = entry.id;
                    if entries.send((stream.clone(), entry)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Err(error) if error.remedy() == Remedy::Repeat => {
                if !told {
                    note(&format!("{error}; waiting"));
                }
                told = true;
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(error) => return Err(error),
        }
    }
}

/// How entries are shown.
struct Printer {
    json: bool,
    full: bool,
    several: bool,
    grep: Option<String>,
    /// Of the terminal; nothing is cut when the output goes elsewhere.
    width: Option<usize>,
    today: String,
}

impl Printer {
    fn new(common: &Common, args: &Args) -> Self {
        Printer {
            json: common.json,
            full: args.full,
            several: args.streams.len() > 1,
            grep: args.grep.clone(),
            width: terminal_width(),
            today: clock::short(clock::now_ms()).chars().take(10).collect(),
        }
    }

    fn wants(&self, entry: &RawEntry) -> bool {
        let Some(text) = &self.grep else { return true };
        entry.fields.iter().any(|(_, value)| String::from_utf8_lossy(value).contains(text.as_str()))
    }

    fn print(&self, stream: &str, entry: &RawEntry) {
        if !self.wants(entry) {
            return;
        }
        if self.json {
            line(&entry_json(stream, entry).to_string());
        } else if self.full {
            line(&format!("{}  {stream}  {}", clock::short(entry.id.ms), entry.id));
            fields_lines(&entry.fields).iter().for_each(|text| line(text));
            line("");
        } else {
            line(&self.one_line(stream, entry));
        }
    }

    fn one_line(&self, stream: &str, entry: &RawEntry) -> String {
        let time = clock::short(entry.id.ms);
        // The date of today says nothing new.
        let time = time.strip_prefix(self.today.as_str()).map_or(time.as_str(), str::trim_start);
        let stream = if self.several { format!("{stream}  ") } else { String::new() };
        let who = field(entry, b"cofferdam_plugin").or_else(|| field(entry, b"producer_id")).unwrap_or_default();
        let priority = field(entry, b"priority").unwrap_or_else(|| String::from("-"));
        let start = format!("{time}  {stream}{}  {}  {:<12}  ", entry.id, safe_cut(&priority, 4), safe_cut(&who, 20));
        let payload = payload_text(entry);
        match self.width {
            // Below some twenty characters a payload says nothing; a long line is better then.
            Some(width) => start.clone() + &safe_cut(&payload, width.saturating_sub(start.chars().count()).max(20)),
            None => start + &safe(&payload),
        }
    }
}

fn field(entry: &RawEntry, wanted: &[u8]) -> Option<String> {
    let found = entry.fields.iter().find(|(name, value)| name == wanted && !value.is_empty());
    found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
}

/// What the entry is about: its payload in any of the codecs, else all of its fields.
fn payload_text(entry: &RawEntry) -> String {
    let payload = PAYLOAD_FIELDS.into_iter().find_map(|name| field(entry, name));
    payload.unwrap_or_else(|| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let all = entry.fields.iter().map(|(name, value)| format!("{}={}", text(name), text(value)));
        all.collect::<Vec<_>>().join(" ")
    })
}

fn entry_json(stream: &str, entry: &RawEntry) -> Json {
    json!({ "stream": stream, "id": entry.id.to_string(), "time": clock::iso(entry.id.ms), "fields": fields_json(&entry.fields) })
}

/// Fields as an object; bytes that are no UTF-8 are replaced.
pub(super) fn fields_json(fields: &[(Vec<u8>, Vec<u8>)]) -> Json {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields.iter().map(|(name, value)| (text(name), Json::String(text(value)))).collect::<serde_json::Map<_, _>>().into()
}

/// All fields, one below the other, JSON laid out.
pub(super) fn fields_lines(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, value) in fields {
        let (name, value) = (safe(&String::from_utf8_lossy(name)), String::from_utf8_lossy(value));
        if value.starts_with(['{', '[']) {
            lines.push(format!("  {name}"));
            lines.extend(laid_out(&value).into_iter().map(|text| format!("    {text}")));
        } else {
            lines.push(format!("  {name:<20}  {}", safe(&value)));
        }
    }
    lines
}

/// Lays JSON text out on lines without changing anything else of it: a parser would round large numbers and sort the names.
/// Text that is no JSON stays as it is.
pub(super) fn laid_out(text: &str) -> Vec<String> {
    if strict_json(text).is_err() {
        return vec![safe(text)];
    }
    let (mut lines, mut current, mut depth) = (Vec::new(), String::new(), 0usize);
    let (mut in_string, mut escaped) = (false, false);
    let mut rest = text.trim().chars().peekable();
    let flush = |current: &mut String, depth: usize, lines: &mut Vec<String>| {
        let trimmed = current.trim();
        if !trimmed.is_empty() {
            // Depth comes from the attacker too: what is nested deeper stands no further to the right.
            lines.push(format!("{}{}", "  ".repeat(depth.min(20)), safe(trimmed)));
        }
        current.clear();
    };
    while let Some(c) = rest.next() {
        if in_string {
            current.push(c);
            in_string = c != '"' || escaped;
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            '"' => {
                current.push(c);
                in_string = true;
            }
            '{' | '[' if rest.peek().is_some_and(|next| matches!(next, '}' | ']')) => {
                current.push(c);
                current.extend(rest.next());
            }
            '{' | '[' => {
                current.push(c);
                flush(&mut current, depth, &mut lines);
                depth += 1;
            }
            '}' | ']' => {
                flush(&mut current, depth, &mut lines);
                depth = depth.saturating_sub(1);
                current.push(c);
            }
            ',' => {
                current.push(c);
                flush(&mut current, depth, &mut lines);
            }
            ':' => current.push_str(": "),
            c if c.is_whitespace() => {}
            c => current.push(c),
        }
    }
    flush(&mut current, depth, &mut lines);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_laid_out_without_being_changed() {
        let lines = laid_out(r#"{"b": [1180591620717411303424, NaN], "a": "x, {\"y\"}", "e": {}}"#);
        let expected = [
            "{",
            "  \"b\": [",
            "    1180591620717411303424,",
            "    NaN",
            "  ],",
            "  \"a\": \"x, {\\\"y\\\"}\",",
            "  \"e\": {}",
            "}",
        ];
        assert_eq!(lines, expected);
        assert_eq!(laid_out("{no json} \u{1b}[2J"), ["{no json} \\u{1b}[2J"]);
    }

    #[test]
    fn the_payload_is_found_in_every_codec() {
        let entry = |fields: &[(&str, &str)]| RawEntry {
            id: EntryId::ZERO,
            fields: fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect(),
        };
        assert_eq!(payload_text(&entry(&[("priority", "2"), ("payload", "{}")])), "{}");
        assert_eq!(payload_text(&entry(&[("eve", "{1}")])), "{1}");
        assert_eq!(payload_text(&entry(&[("a", "1"), ("b", "2")])), "a=1 b=2");
    }
}
