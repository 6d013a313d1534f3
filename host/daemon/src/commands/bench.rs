//! `cofferdam bench`: what this machine can do, beside the same loop without sandbox and fence.
//!
//! Ground truth is what stands in Redis: an arm is over when the output stream has as many entries as the input, and nothing is
//! pending. Arms alternate within a round and the order turns with each round; ratios are to the native loop *of the same
//! round*. Single numbers on a shared machine say little; ratios say more.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use crate::cli::Common;
use crate::exit::Failed;
use crate::screen;

mod arms;
mod latency;
mod server;

use arms::{Arm, Measured};

/// Flags of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Messages in each run
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    messages: usize,
    /// Rounds; ratios are medians over them
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
    /// Redis's append-only file: no, everysec or always
    #[arg(long, default_value = "no", value_parser = ["no", "everysec", "always"])]
    fsync: String,
    /// Only these arms
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Arm::Native, Arm::Fresh, Arm::Reuse, Arm::Python])]
    arms: Vec<Arm>,
    /// Seconds of the latency measurement at 2,000 messages a second; 0 leaves it out
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    latency: u64,
    /// One arm against a given Redis: how the program runs its own arms
    #[arg(long, hide = true)]
    only_native_loop: Option<usize>,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    if let Some(messages) = args.only_native_loop {
        let url = common.redis.clone().unwrap_or_default();
        return arms::native_loop(&url, messages).await;
    }
    // Servers, hosts and folders go with what is dropped.
    tokio::select! {
        measured = measure(common, &args) => measured,
        stopped = crate::commands::run::stop_signal() => {
            stopped.and_then(|()| bail!(Failed(String::from("stopped before anything was measured to the end"))))
        }
    }
}

async fn measure(common: &Common, args: &Args) -> Result<()> {
    let lines = crate::embedded::lab_log()?;
    let rounds = args.rounds.max(1);
    let bar = screen::progress((rounds * args.arms.len()) as u64, "rounds");
    let mut results: Vec<Vec<Measured>> = Vec::new();
    for round in 0..rounds {
        let mut order = args.arms.clone();
        if round % 2 == 1 {
            order.reverse();
        }
        let mut measured = Vec::new();
        for arm in order {
            bar.set_message(arm.name());
            let result = arms::measure(arm, &lines, args.messages, &args.fsync).await?;
            if let Some(result) = result {
                measured.push(result);
            }
            bar.inc(1);
        }
        results.push(measured);
    }
    bar.finish_and_clear();
    let latencies = match args.latency {
        0 => Vec::new(),
        seconds => latency::measure(&lines, Duration::from_secs(seconds), &args.fsync).await?,
    };
    print(common, args, &results, &latencies)
}

/// The median of some numbers; 0 of none.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}

struct Summary {
    arm: Arm,
    rate: f64,
    ratio: f64,
    ratio_range: (f64, f64),
    host_us: f64,
    redis_us: f64,
}

fn summarize(results: &[Vec<Measured>], arm: Arm) -> Option<Summary> {
    let of = |round: &Vec<Measured>, arm: Arm| round.iter().find(|measured| measured.arm == arm).cloned();
    let mine: Vec<Measured> = results.iter().filter_map(|round| of(round, arm)).collect();
    if mine.is_empty() {
        return None;
    }
    let ratios: Vec<f64> = results
        .iter()
        .filter_map(|round| of(round, arm).zip(of(round, Arm::Native)))
        .map(|(mine, native)| mine.rate() / native.rate())
        .collect();
    let range = (ratios.iter().copied().fold(f64::INFINITY, f64::min), ratios.iter().copied().fold(0.0, f64::max));
    Some(Summary {
        arm,
        rate: median(mine.iter().map(Measured::rate).collect()),
        ratio: median(ratios),
        ratio_range: range,
        host_us: median(mine.iter().map(|m| m.host_cpu.as_secs_f64() * 1e6 / m.messages as f64).collect()),
        redis_us: median(mine.iter().map(|m| m.redis_cpu.as_secs_f64() * 1e6 / m.messages as f64).collect()),
    })
}

fn print(common: &Common, args: &Args, results: &[Vec<Measured>], latencies: &[latency::Latency]) -> Result<()> {
    let summaries: Vec<Summary> = Arm::ALL.iter().filter_map(|&arm| summarize(results, arm)).collect();
    if summaries.is_empty() {
        bail!(Failed(String::from("no arm could be run")));
    }
    if common.json {
        let arms: Vec<_> = summaries
            .iter()
            .map(|s| {
                json!({"arm": s.arm.name(), "messages_per_s": s.rate, "ratio": s.ratio, "ratio_min": s.ratio_range.0,
                    "ratio_max": s.ratio_range.1, "host_cpu_us": s.host_us, "redis_cpu_us": s.redis_us})
            })
            .collect();
        let latency: Vec<_> = latencies
            .iter()
            .map(|l| json!({"arm": l.arm.name(), "p50_us": l.p50_us, "p99_us": l.p99_us, "max_us": l.max_us}))
            .collect();
        let document = json!({"messages": args.messages, "rounds": args.rounds, "fsync": args.fsync, "arms": arms, "latency": latency});
        screen::line(&serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    screen::line(&format!(
        "{} Cowrie events a run, {} rounds, medians; append-only file: {}; every run ended with all outputs there and nothing pending",
        args.messages, args.rounds, args.fsync
    ));
    let mut table = screen::table(&["arm", "messages/s", "ratio", "range", "host CPU µs", "redis CPU µs", "what"]);
    for s in &summaries {
        table.add_row([
            s.arm.name().to_owned(),
            format!("{:.0}", s.rate),
            format!("{:.2}", s.ratio),
            format!("{:.2}–{:.2}", s.ratio_range.0, s.ratio_range.1),
            format!("{:.1}", s.host_us),
            format!("{:.1}", s.redis_us),
            s.arm.what().to_owned(),
        ]);
    }
    screen::line(&table.to_string());
    if !latencies.is_empty() {
        screen::line("\nlatency at 2,000 messages/s, publish to output seen:");
        let mut table = screen::table(&["arm", "p50 ms", "p99 ms", "max ms"]);
        for l in latencies {
            let ms = |us: u64| format!("{:.2}", us as f64 / 1e3);
            table.add_row([l.arm.name().to_owned(), ms(l.p50_us), ms(l.p99_us), ms(l.max_us)]);
        }
        screen::line(&table.to_string());
    }
    Ok(())
}
