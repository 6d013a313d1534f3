//! `publish`: lines of JSON from files or standard input into a stream, in the envelope that every reader knows.
//!
//! ```text
//!   files, .gz, stdin ──reader thread──▶ lines, checked ──batches──▶ pipelined XADDs ──▶ stream
//!                                                           └─ no answer? look in the stream what arrived, send the rest
//! ```
//!
//! Nothing is ever trimmed to make room, and the text of a line is not touched: large integers and Python's `NaN` arrive as
//! they were written.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cofferdam_model::route::{ENVELOPE_FIELDS, check_stream_name, is_reserved};
use cofferdam_model::{EntryId, RouteError};
use cofferdam_streams::codec::strict_json;
use cofferdam_streams::{Remedy, Store, StreamError};
use indicatif::HumanCount;
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cli::Common;
use crate::clock;
use crate::exit::{Failed, Usage};
use crate::json_lines::{JsonLines, Line, Refused};
use crate::quantity::show_bytes;
use crate::screen::{line, note, progress};

/// Lines sent in one go: enough that the round trip does not count, few enough that a lost answer is soon looked up.
const BATCH_LINES: usize = 500;
/// Bytes sent in one go.
const BATCH_BYTES: usize = 4 << 20;
/// Entries that are looked through for a batch whose answer was lost; other producers may have written as many meanwhile.
const SEARCH_ENTRIES_MAX: usize = 100_000;
/// First and longest pause after an error of Redis.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Refused lines that are shown one by one; the rest are counted.
const REFUSED_SHOWN: u64 = 10;

/// Publishes JSON events, one a line, into a stream.
///
/// Reads JSON lines; files packed with gzip are recognized by their content. A comma at the end of a line, and lines that hold
/// only a bracket or a comma, are taken off, so that a list with one event a line works too. Blank lines are skipped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cofferdam publish --stream stream:honeypot_logs cowrie.json.gz\n  \
    tail -F cowrie.json | cofferdam publish --stream stream:honeypot_logs -\n  \
    cofferdam publish --stream suricata --field eve eve.json")]
pub(crate) struct Args {
    /// Files of JSON lines, plain or packed with gzip; `-` or nothing is standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The stream to publish into
    #[arg(long, short, value_name = "NAME")]
    stream: String,
    /// Priority of every event: 1 low, 2 normal, 3 high, 4 critical
    #[arg(long, value_name = "1..4", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=4))]
    priority: u8,
    /// Take the priority from this place in the event; where there is no 1 to 4, --priority holds
    #[arg(long, value_name = "POINTER", value_parser = pointer)]
    priority_from: Option<String>,
    /// Take the key (attribute `key`) from this place in the event
    #[arg(long, value_name = "POINTER", value_parser = pointer)]
    key_from: Option<String>,
    /// Who publishes, as readers see it
    #[arg(long, value_name = "NAME", default_value = "cofferdam-publish")]
    producer: String,
    /// Write each line as this one field instead of the envelope: `eve` as Suricata does, `body`, `msg`
    #[arg(long, value_name = "NAME", conflicts_with_all = ["priority_from", "key_from", "producer"])]
    field: Option<String>,
    /// At most so many events a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Stop after so many events
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Go through the files so many times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// What to do at a line that is not JSON: stop there (exit code 1), or go on without it and count it (exit code 0)
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnError::Stop)]
    on_error: OnError,
    /// Read and check everything, publish nothing
    #[arg(long)]
    dry_run: bool,
}

/// What to do at a line that is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum OnError {
    Stop,
    Skip,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    check(&args)?;
    let found = if args.dry_run { None } else { Some(super::find(common).await?) };
    if let Some((budget, store)) =
        found.as_ref().and_then(|found| Some((found.config.byte_budget(&args.stream)?, &found.store)))
        && let Some(bytes) = store.stream_bytes(&args.stream).await
        && bytes > budget
    {
        bail!(Failed(format!(
            "{} takes {} of memory, more than its budget of {} ([streams.\"{}\"] bytes): nothing was published; see who is behind with cofferdam streams, \
             or raise the budget",
            args.stream,
            show_bytes(bytes),
            show_bytes(budget),
            args.stream
        )));
    }
    let store = found.map(|found| found.store);
    let mut sender = Sender::new(store, &args).await?;
    let read = Arc::new(AtomicU64::new(0));
    let (lines, mut inbox) = mpsc::channel(BATCH_LINES);
    let total = total_bytes(&args.files).map(|bytes| bytes * u64::from(args.repeat));
    let bar = total.map_or_else(indicatif::ProgressBar::hidden, |total| progress(total, "publishing (bytes)"));
    let inputs = Inputs { files: args.files.clone(), repeat: args.repeat, read: read.clone() };
    // Files and pipes block; a thread of its own lets a slow pipe's lines go out as they come.
    std::thread::spawn(move || inputs.read_all(&lines));
    let outcome = tokio::select! {
        outcome = pump(&args, &mut inbox, &mut sender, &bar, &read) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failed(String::from("interrupted")).into()),
    };
    bar.finish_and_clear();
    sender.report(common, &args);
    outcome.map_err(|error| if args.dry_run { error } else { sender.say_how_far(error) })
}

fn check(args: &Args) -> Result<()> {
    check_stream_name(&args.stream).map_err(|error| Usage(error.to_string()))?;
    if is_reserved(&args.stream) {
        let error = RouteError::Reserved { name: args.stream.clone() };
        bail!(Usage(format!("{error}: its entries are written by hosts alone")));
    }
    if args.field.as_deref().is_some_and(|field| field.is_empty() || field.len() > 256) {
        bail!(Usage(String::from("--field needs a name of at most 256 bytes")));
    }
    let stdin = args.files.is_empty() || args.files.iter().any(|file| file.as_os_str() == "-");
    if args.files.is_empty() && std::io::stdin().is_terminal() {
        bail!(Usage(String::from("name the files to publish, or pipe events into it (`-` reads what you type)")));
    }
    if stdin && args.repeat > 1 {
        bail!(Usage(String::from("standard input can be read once only: --repeat needs files")));
    }
    for file in args.files.iter().filter(|file| file.as_os_str() != "-") {
        let meta = file.metadata().with_context(|| format!("cannot read {}", file.display()))?;
        if meta.is_dir() {
            bail!(Usage(format!("{} is a folder: name its files", file.display())));
        }
    }
    Ok(())
}

/// For clap: a JSON pointer.
fn pointer(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err(String::from("write a JSON pointer such as /src_ip")) }
}

/// Bytes of all files; `None` when one of them is no plain file.
fn total_bytes(files: &[PathBuf]) -> Option<u64> {
    if files.is_empty() {
        return None;
    }
    files.iter().map(|file| file.metadata().ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len())).sum()
}

/// Takes lines as they come, and sends them in batches: full ones from files, small ones from a pipe that has no more for now.
async fn pump(
    args: &Args,
    inbox: &mut mpsc::Receiver<Item>,
    sender: &mut Sender<'_>,
    bar: &indicatif::ProgressBar,
    read: &AtomicU64,
) -> Result<()> {
    // At a low rate batches are small, so that the events come evenly and not in gusts.
    let most = args.rate.map_or(BATCH_LINES, |rate| (rate as usize / 10).clamp(1, BATCH_LINES));
    let mut batch = Batch::default();
    loop {
        let left =
            args.limit.map_or(u64::MAX, |limit| limit.saturating_sub(sender.published + batch.entries.len() as u64));
        let item = match inbox.try_recv() {
            _ if left == 0 => None,
            Ok(item) => Some(item),
            Err(mpsc::error::TryRecvError::Disconnected) => None,
            Err(mpsc::error::TryRecvError::Empty) => {
                sender.send(&mut batch).await?;
                inbox.recv().await
            }
        };
        match item {
            None => return sender.send(&mut batch).await,
            Some(Item::Skipped) => sender.skipped += 1,
            Some(Item::Broken(error)) => {
                sender.send(&mut batch).await?;
                return Err(error);
            }
            Some(Item::Refused(refused)) => {
                sender.refused += 1;
                if args.on_error == OnError::Stop {
                    sender.send(&mut batch).await?;
                    bail!(Failed(refused.to_string()));
                }
                if sender.refused <= REFUSED_SHOWN {
                    bar.suspend(|| note(&refused.to_string()));
                }
            }
            Some(Item::Event(text)) => batch.add(sender.entry(text)),
        }
        if batch.entries.len() >= most || batch.bytes >= BATCH_BYTES {
            sender.send(&mut batch).await?;
            bar.set_position(read.load(Ordering::Relaxed));
        }
    }
}

/// What the reader thread found.
enum Item {
    /// JSON text.
    Event(String),
    /// Nothing to publish: a blank line, a lone bracket or comma.
    Skipped,
    Refused(Refused),
    /// The file cannot be read any further.
    Broken(anyhow::Error),
}

/// The files, in the hands of the reader thread. `pump` holds the other end of the channel.
struct Inputs {
    files: Vec<PathBuf>,
    repeat: u32,
    read: Arc<AtomicU64>,
}

impl Inputs {
    fn read_all(&self, lines: &mpsc::Sender<Item>) {
        let stdin = [PathBuf::from("-")];
        let files = if self.files.is_empty() { &stdin[..] } else { &self.files[..] };
        for file in std::iter::repeat_n(files, self.repeat as usize).flatten() {
            match self.read_file(file, lines) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let error = error.context(format!("cannot read {}", file.display()));
                    let _ = lines.blocking_send(Item::Broken(error));
                    return;
                }
            }
        }
    }

    /// Reads one file to its end; `false` when nobody takes the lines any more.
    fn read_file(&self, file: &Path, lines: &mpsc::Sender<Item>) -> Result<bool> {
        let mut input = JsonLines::open(file, self.read.clone())?;
        while let Some(found) = input.next()? {
            let item = match found {
                Line::Event(text) => Item::Event(text),
                Line::Nothing => Item::Skipped,
                Line::Refused(refused) => Item::Refused(refused),
            };
            if lines.blocking_send(item).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

type Fields = Vec<(Cow<'static, str>, String)>;

/// Entries on their way.
#[derive(Default)]
struct Batch {
    entries: Vec<Fields>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, entry: Fields) {
        self.bytes += entry.iter().map(|(_, value)| value.len() + 16).sum::<usize>();
        self.entries.push(entry);
    }
}

/// What was written, and what is being written.
struct Sender<'a> {
    store: Option<Store>,
    args: &'a Args,
    started: Instant,
    published: u64,
    skipped: u64,
    refused: u64,
    /// Entries of which nobody can say whether they were written.
    unknown: u64,
    first: Option<EntryId>,
    /// The last id that is known to be written, or the end of the stream before the first.
    last: EntryId,
}

impl<'a> Sender<'a> {
    async fn new(store: Option<Store>, args: &'a Args) -> Result<Self> {
        let mut last = EntryId::ZERO;
        if let Some(store) = &store {
            let kind = store.key_type(&args.stream).await?;
            if kind != "stream" && kind != "none" {
                bail!(Failed(format!(
                    "{} is a {kind} in this Redis, and only streams can be published into; look with: redis-cli TYPE {}",
                    args.stream, args.stream
                )));
            }
            last = store.last_id(&args.stream).await?;
        }
        let started = Instant::now();
        Ok(Sender { store, args, started, published: 0, skipped: 0, refused: 0, unknown: 0, first: None, last })
    }

    /// The fields of an event, in the order that the original writes them.
    fn entry(&self, text: String) -> Fields {
        if let Some(field) = &self.args.field {
            return vec![(Cow::Owned(field.clone()), text)];
        }
        let (mut priority, mut key) = (self.args.priority, None);
        if self.args.priority_from.is_some() || self.args.key_from.is_some() {
            let event: Json =
                strict_json(&text).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            let at = |pointer: &Option<String>| pointer.as_ref().and_then(|pointer| event.pointer(pointer));
            priority = at(&self.args.priority_from).and_then(priority_of).unwrap_or(priority);
            key = at(&self.args.key_from).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
        let values = [
            uuid::Uuid::new_v4().to_string(),
            text,
            priority.to_string(),
            clock::iso(clock::now_ms()),
            self.args.producer.clone(),
            String::from("0"),
            String::from("3"),
        ];
        let names = ENVELOPE_FIELDS.into_iter().map(Cow::Borrowed);
        names.zip(values).chain(key.map(|key| (Cow::Borrowed("key"), key))).collect()
    }

    /// Writes a batch, however long Redis takes to be able to. Empties it.
    async fn send(&mut self, batch: &mut Batch) -> Result<()> {
        let mut waiting = std::mem::take(batch).entries;
        if waiting.is_empty() {
            return Ok(());
        }
        if self.store.is_none() {
            self.published += waiting.len() as u64;
            return Ok(());
        }
        let mut pause = PAUSE_MIN;
        let mut told = false;
        while !waiting.is_empty() {
            let error = match self.write(&mut waiting).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            if error.remedy() == Remedy::Operator {
                return Err(error.into());
            }
            if !told {
                note(&format!("{error}; waiting, nothing is lost (Ctrl-C stops after what is written)"));
                told = true;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        if told {
            note("redis takes writes again");
        }
        self.keep_pace().await;
        Ok(())
    }

    /// Sends what waits, and takes off what arrived.
    async fn write(&mut self, waiting: &mut Vec<Fields>) -> Result<(), StreamError> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for entry in waiting.iter() {
            let command = pipe.cmd("XADD").arg(&self.args.stream).arg("*");
            for (name, value) in entry {
                command.arg(&**name).arg(value);
            }
        }
        let replies: Result<Vec<redis::RedisResult<String>>, _> = store.pipeline(&pipe).await;
        let replies = match replies {
            Ok(replies) => replies,
            // No answer, or none of all of them: what arrived stands in the stream.
            Err(error) => {
                if matches!(error, StreamError::Unreachable { .. }) {
                    self.look_up(&store, waiting).await;
                }
                return Err(error);
            }
        };
        let mut refusal = None;
        let mut replies = replies.into_iter();
        let mut left = Vec::new();
        for entry in waiting.drain(..) {
            match replies.next() {
                Some(Ok(id)) => self.wrote(id.parse().unwrap_or_default()),
                Some(Err(error)) => {
                    refusal.get_or_insert(error);
                    left.push(entry);
                }
                None => left.push(entry),
            }
        }
        *waiting = left;
        refusal.map_or(Ok(()), |error| Err(error.into()))
    }

    fn wrote(&mut self, id: EntryId) {
        self.published += 1;
        self.first.get_or_insert(id);
        self.last = self.last.max(id);
    }

    /// The answer to a batch was lost. Whether Redis took it, and how far, is looked up in the stream itself: in the envelope
    /// every entry has an id of its own, with --field the same values in the same order are taken for ours.
    async fn look_up(&mut self, store: &Store, waiting: &mut Vec<Fields>) {
        let mut pause = PAUSE_MIN;
        let mut from = self.last;
        let mut looked = 0;
        while looked < SEARCH_ENTRIES_MAX && !waiting.is_empty() {
            let entries = match store.range(&self.args.stream, &format!("({from}"), "+", BATCH_LINES).await {
                Ok(entries) => entries,
                // Until Redis answers again there is nothing to be done but wait.
                Err(error) if error.remedy() == Remedy::Repeat => {
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    continue;
                }
                Err(_) => return self.give_up_on(waiting),
            };
            let Some(last) = entries.last() else { return };
            (from, looked) = (last.id, looked + entries.len());
            for entry in entries {
                // In the order sent: what Redis took is a beginning of the batch.
                if waiting.first().is_some_and(|fields| same_fields(fields, &entry.fields)) {
                    waiting.remove(0);
                    self.wrote(entry.id);
                }
            }
        }
        if !waiting.is_empty() {
            self.give_up_on(waiting);
        }
    }

    /// Nobody can say what became of these. They are not sent again: a doubled event looks like a second attack.
    fn give_up_on(&mut self, waiting: &mut Vec<Fields>) {
        self.unknown += waiting.len() as u64;
        note(&format!(
            "whether {} events were written cannot be known any more; they are not sent again",
            waiting.len()
        ));
        waiting.clear();
    }

    async fn keep_pace(&self) {
        if let Some(rate) = self.args.rate {
            sleep_until(self.started + Duration::from_secs_f64(self.published as f64 / f64::from(rate))).await;
        }
    }

    fn report(&self, common: &Common, args: &Args) {
        let seconds = self.started.elapsed().as_secs_f64();
        let ids = self.first.map(|first| (first.to_string(), self.last.to_string()));
        if common.json {
            let (first, last) = ids.unzip();
            let report = json!({
                "stream": args.stream, "published": self.published, "dry_run": args.dry_run, "skipped": self.skipped,
                "refused": self.refused, "unknown": self.unknown, "seconds": seconds, "first_id": first, "last_id": last,
            });
            return line(&report.to_string());
        }
        let verb = if args.dry_run { "would publish" } else { "published" };
        let per_second = HumanCount((self.published as f64 / seconds.max(0.001)) as u64);
        let mut text = format!(
            "{verb} {} entries into {} in {seconds:.1} s ({per_second}/s)",
            HumanCount(self.published),
            args.stream
        );
        if let Some((first, last)) = ids {
            text.push_str(&format!(", first id {first}, last id {last}"));
        }
        for (count, what) in [
            (self.skipped, "lines without an event skipped"),
            (self.refused, "lines refused"),
            (self.unknown, "events of unknown fate"),
        ] {
            if count > 0 {
                text.push_str(&format!("; {} {what}", HumanCount(count)));
            }
        }
        line(&text);
    }

    /// What stopped us, and from where to go on.
    fn say_how_far(&self, error: anyhow::Error) -> anyhow::Error {
        let published = HumanCount(self.published);
        match error.downcast::<Failed>() {
            Ok(Failed(text)) => {
                Failed(format!("{text}\n  stopped there; {published} events before it were published")).into()
            }
            Err(error) => error.context(format!("stopped after {published} published events")),
        }
    }
}

/// 1 to 4, as a number or as text.
fn priority_of(value: &Json) -> Option<u8> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
    u8::try_from(number).ok().filter(|number| (1..=4).contains(number))
}

fn same_fields(ours: &Fields, theirs: &[(Vec<u8>, Vec<u8>)]) -> bool {
    ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|(ours, theirs)| ours.0.as_bytes() == theirs.0 && ours.1.as_bytes() == theirs.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_outside_one_to_four_is_none() {
        assert_eq!(priority_of(&json!(3)), Some(3));
        assert_eq!(priority_of(&json!("4")), Some(4));
        assert_eq!(priority_of(&json!(9)), None);
        assert_eq!(priority_of(&json!("high")), None);
    }
}
