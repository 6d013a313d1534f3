//! `cofferdam demo`: the whole story on real honeypot events, from an empty directory to a verified end.
//!
//! Crash, retry, dead letters, the fixed version, redrive: everything here goes the way that it goes in production, over the same
//! host, the same folder and a private Redis. Nothing is acted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cofferdam_model::route::DEAD_LETTER_STREAM;
use cofferdam_streams::dead_letters::Operator;
use cofferdam_streams::{LaneKeys, Store};
use indicatif::ProgressBar;

use crate::cli::Common;
use crate::clock;
use crate::commands::{deploy, verify};
use crate::config::{Config, Overrides};
use crate::embedded;
use crate::escape::{safe, safe_cut};
use crate::exit::Failed;
use crate::host::Host;
use crate::quantity::span_argument;
use crate::screen;

/// Flags of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave everything running at the end, and print how to attach
    #[arg(long)]
    keep: bool,
    /// Events published a second; 0 for as fast as Redis takes them
    #[arg(long, default_value_t = 3_000, value_name = "N")]
    rate: u64,
    /// Give up when a step takes longer than this
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = span_argument)]
    patience: Duration,
}

const LOGS: &str = "stream:honeypot_logs";
const FLAKY_GROUP: &str = "group:flaky";

/// What the lab log must bring, by stream: counted by the plugins' own tests over the same file, without a host.
const EXPECTED: [(&str, &str, u64); 6] = [
    (LOGS, "Cowrie events published", 10_414),
    ("stream:attacks", "attacks, by normalize", 9_476),
    ("stream:ai_decisions", "ATT&CK decisions, by classify", 4_672),
    ("stream:threat_intel", "indicators, by ioc", 877),
    ("stream:alerts", "alerts, by flaky", 387),
    (DEAD_LETTER_STREAM, "dead letters left", 0),
];

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    let began = Instant::now();
    // `cofferdam demo | head` must not leave a Redis behind.
    screen::outlive_reader();
    let directory =
        tempfile::Builder::new().prefix("cofferdam-demo-").tempdir().context("cannot make a temporary directory")?;
    let overrides = Overrides {
        data: Some(common.data.clone().unwrap_or_else(|| directory.path().join("data"))),
        plugins: Some(directory.path().join("plugins")),
        ..Overrides::default()
    };
    let mut config = Config::load(&overrides)?;
    // Its plugins are its own.
    config.trusts_embedded = true;
    // Never into somebody's real streams because a configuration file names them.
    config.redis_url.clone_from(&common.redis);
    // Whoever stops it must not find a Redis left behind either.
    let stopped = async {
        crate::commands::run::stop_signal().await?;
        bail!(Failed(String::from("stopped before the end of the story")))
    };
    tokio::pin!(stopped);
    let host = tokio::select! {
        started = Host::start(config) => started?,
        stopped = &mut stopped => return stopped,
    };
    let told = tokio::select! {
        told = story(&host, &args) => told,
        stopped = &mut stopped => stopped,
    };
    if told.is_ok() && args.keep {
        attach(&host);
        crate::commands::run::stop_signal().await?;
    }
    host.stop().await;
    told?;
    screen::line(&format!("\ndone in {:.1} s", began.elapsed().as_secs_f64()));
    Ok(())
}

async fn story(host: &Host, args: &Args) -> Result<()> {
    let store = &host.store;
    if store.last_id(LOGS).await? != cofferdam_model::EntryId::ZERO {
        bail!(Failed(format!("{LOGS} in this redis already has entries; give the demo a fresh one")));
    }
    say("1", "a private Redis and a host are up; four plugins go into the watched folder");
    for name in ["normalize", "classify", "ioc"] {
        install(host, name, name, args.patience).await?;
    }
    install(host, "flaky-v1", "flaky", args.patience).await?;

    say("2", "10,414 events of a Cowrie honeypot are published; the plugins are at work meanwhile");
    publish(store, args.rate).await?;

    say("3", "flaky has a bug: it panics on some messages. Their neighbours go on; they wait, and are tried again");
    let dead = wait_for(store, args.patience, "retrying", |counts| counts.finished()).await?.dead;
    if dead == 0 {
        bail!(Failed(String::from("flaky 1 was to fail on some messages and did not")));
    }
    say("4", &format!("three tries each, then {dead} dead letters, each with the whole evidence. One of them:"));
    show_one(store).await?;

    say("5", "the fixed version is deployed: it takes over between two messages");
    install(host, "flaky-v2", "flaky", args.patience).await?;

    say("6", &format!("the {dead} dead letters are sent back, to flaky alone"));
    redrive(store).await?;
    wait_for(store, args.patience, "catching up", |counts| counts.finished() && counts.dead == 0).await?;

    say("7", "what has become of everything:");
    totals(store, args.keep).await?;
    screen::line("");
    let here = Common { redis: Some(host.url.clone()), ..Common::default() };
    verify::run(&here, verify::Args::default()).await
}

fn say(number: &str, text: &str) {
    screen::line(&format!("\n{number}. {text}"));
}

/// Places an embedded plugin as `deploy` does, and waits until it is live.
async fn install(host: &Host, embedded_name: &str, name: &str, patience: Duration) -> Result<()> {
    let mut candidate = embedded::plugin(embedded_name)?;
    candidate.file_name = name.to_owned();
    let digest = candidate.digest();
    let began = Instant::now();
    deploy::place(&host.config.plugins_dir, name, &candidate)?;
    deploy::wait(&host.store, name, &digest, patience).await?;
    let took = began.elapsed().as_millis();
    screen::line(&format!("   {name:<10} {}  live after {took} ms", deploy::short(&digest)));
    Ok(())
}

async fn publish(store: &Store, rate: u64) -> Result<()> {
    const BATCH: usize = 200;
    let lines = embedded::lab_log()?;
    let bar = screen::progress(lines.len() as u64, "published");
    let began = Instant::now();
    let mut sent = 0u64;
    for batch in lines.chunks(BATCH) {
        let mut pipe = redis::pipe();
        for line in batch {
            pipe.cmd("XADD").arg(LOGS).arg("*").arg("message_id").arg(uuid::Uuid::new_v4().to_string());
            pipe.arg("payload").arg(line).arg("priority").arg("2").arg("timestamp").arg(clock::iso(clock::now_ms()));
            pipe.arg("producer_id")
                .arg("cofferdam-demo")
                .arg("retry_count")
                .arg("0")
                .arg("max_retries")
                .arg("3")
                .ignore();
        }
        let () = store.pipeline(&pipe).await?;
        sent += batch.len() as u64;
        bar.set_position(sent);
        if rate > 0 {
            tokio::time::sleep_until((began + Duration::from_secs_f64(sent as f64 / rate as f64)).into()).await;
        }
    }
    bar.finish_and_clear();
    let took = began.elapsed().as_secs_f64();
    screen::line(&format!("   {sent} events in {took:.1} s"));
    Ok(())
}

/// How far everything is.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    waiting: u64,
    parked: u64,
    attacks: u64,
    decisions: u64,
    indicators: u64,
    alerts: u64,
    dead: u64,
}

impl Progress {
    fn finished(&self) -> bool {
        self.waiting == 0 && self.parked == 0
    }
}

async fn progress(store: &Store) -> Result<Progress> {
    let mut counts = Progress::default();
    for (stream, group) in store.lanes().await? {
        let keys = LaneKeys::new(&stream, &group);
        let parked = store.parked(&keys).await?;
        if let Some(group) = store.group(&stream, &group).await? {
            // Without a lag from Redis the group has read nothing yet; the next look knows more.
            counts.waiting += group.pending.saturating_sub(parked) + group.lag.unwrap_or(1);
        }
        counts.parked += parked;
    }
    for (stream, count) in [
        ("stream:attacks", &mut counts.attacks),
        ("stream:ai_decisions", &mut counts.decisions),
        ("stream:threat_intel", &mut counts.indicators),
        ("stream:alerts", &mut counts.alerts),
        (DEAD_LETTER_STREAM, &mut counts.dead),
    ] {
        *count = store.query(redis::cmd("XLEN").arg(stream)).await?;
    }
    Ok(counts)
}

/// Shows live counts until `done`, three looks in a row: an upstream plugin may still be writing what a downstream one reads.
async fn wait_for(store: &Store, patience: Duration, what: &str, done: impl Fn(&Progress) -> bool) -> Result<Progress> {
    let bar = match screen::progress(1, what).is_hidden() {
        true => ProgressBar::hidden(),
        false => ProgressBar::new_spinner(),
    };
    let began = Instant::now();
    let mut agreed = 0;
    loop {
        let counts = progress(store).await?;
        bar.set_message(format!(
            "{what}: {} attacks, {} decisions, {} indicators, {} alerts | waiting {}, parked for retry {}, dead letters {}",
            counts.attacks, counts.decisions, counts.indicators, counts.alerts, counts.waiting, counts.parked, counts.dead
        ));
        bar.tick();
        agreed = if done(&counts) { agreed + 1 } else { 0 };
        if agreed == 3 {
            bar.finish_and_clear();
            screen::line(&format!(
                "   {} attacks, {} decisions, {} indicators, {} alerts, {} dead letters",
                counts.attacks, counts.decisions, counts.indicators, counts.alerts, counts.dead
            ));
            return Ok(counts);
        }
        if began.elapsed() > patience {
            bar.finish_and_clear();
            bail!(Failed(format!("{what} took longer than {patience:?}: {counts:?}")));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn show_one(store: &Store) -> Result<()> {
    let Some(letter) = store.dead_letters("-", "+", 1).await?.into_iter().next() else { return Ok(()) };
    let command = letter
        .original_message
        .pointer("/payload/details/command")
        .or_else(|| letter.original_message.pointer("/payload/details/input"))
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default();
    let tries = letter.attempts.as_array().map_or(0, Vec::len);
    // Rust writes where it panicked on one line, and why on the next.
    let panic: Vec<&str> = letter.log_tail.lines().skip_while(|line| !line.contains("panicked")).take(2).collect();
    let panic = if panic.is_empty() { letter.reason.clone() } else { panic.join(" ") };
    for (name, text) in [
        ("message", format!("{} {}", letter.original_stream, letter.original_id)),
        ("command", command.to_owned()),
        ("code", format!("{} after {tries} tries, version {}", letter.code, deploy::short(&letter.digest))),
        ("said", panic),
        ("trapped in", own_frame(&letter.trap)),
    ] {
        screen::line(&format!("   {name:<11} {}", safe_cut(&text, 96)));
    }
    Ok(())
}

/// The innermost frame that is not the standard library's way to abort.
fn own_frame(trap: &str) -> String {
    let machinery = ["abort", "std::", "core::", "__rust", "rust_panic"];
    let own = trap.lines().find(|frame| !machinery.iter().any(|word| frame.contains(word)));
    let frame = own.or_else(|| trap.lines().next()).unwrap_or("an unnamed function");
    frame.split_once(": ").map_or(frame, |(_, name)| name).to_owned()
}

async fn redrive(store: &Store) -> Result<()> {
    let letters = store.dead_letters("-", "+", 10_000).await?;
    let bar = screen::progress(letters.len() as u64, "sent back");
    let (at, who) = (clock::iso(clock::now_ms()), screen::who());
    let by = Operator { at: &at, who: &who, why: "the demo's second version is live" };
    for letter in &letters {
        store.redrive(letter, FLAKY_GROUP, &by).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// The table that a person can check with redis-cli.
async fn totals(store: &Store, keep: bool) -> Result<()> {
    let mut table = screen::table(&["stream", "what", "expected", "found", ""]);
    let mut wrong = Vec::new();
    for (stream, what, expected) in EXPECTED {
        let found: u64 = store.query(redis::cmd("XLEN").arg(stream)).await?;
        let mark = if found == expected { "ok" } else { "WRONG" };
        if found != expected {
            wrong.push(format!("{stream} has {found} entries instead of {expected}"));
        }
        table.add_row([stream, what, &expected.to_string(), &found.to_string(), mark]);
    }
    screen::line(&table.to_string());
    let how = if keep {
        format!("redis-cli {} XLEN stream:alerts", redis_cli(&store.address()))
    } else {
        String::from("cofferdam demo --keep")
    };
    screen::line(&format!("   check it yourself: {how}"));
    if !wrong.is_empty() {
        bail!(Failed(wrong.join("; ")));
    }
    Ok(())
}

/// The flags with which redis-cli reaches this address.
fn redis_cli(address: &str) -> String {
    match address.rsplit_once(':') {
        Some((host, port)) if !address.starts_with('/') => format!("-h {host} -p {port}"),
        _ => format!("-s {}", safe(address)),
    }
}

fn attach(host: &Host) {
    let data = host.config.data_dir.display();
    screen::line(&format!(
        "\nstill running (Ctrl-C ends it). In another terminal:\n  cofferdam --data {data} status\n  cofferdam --data {data} tail stream:alerts\n  redis-cli {}\n  plugins folder: {}",
        redis_cli(&host.store.address()),
        host.config.plugins_dir.display()
    ));
}
