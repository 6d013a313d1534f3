//! Runs seeds of the simulation: `simulate 17` runs one and says what it did, `simulate --seeds 1000000` many. With
//! `COFFERDAM_LOG=debug,cofferdam_simulation=trace` it shows every command that reaches the server, with its reply.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use cofferdam_simulation::{Scenario, run};
use indicatif::{ProgressBar, ProgressStyle};

/// Runs the delivery code over a model of Redis, with faults from a seed.
#[derive(Debug, Parser)]
struct Arguments {
    /// One seed, run once with its scenario printed
    seed: Option<u64>,
    /// How many seeds to run
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first of them; from 1000000000000 on, all are about the order of keys over failovers
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads [default: one a core]
    #[arg(long)]
    threads: Option<usize>,
    /// Stop after so many seeds that failed
    #[arg(long, default_value_t = 5)]
    failures: u64,
    /// Run until this many minutes have passed, whatever the number of seeds
    #[arg(long)]
    minutes: Option<u64>,
}

#[allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a tool of the tests talks to its user"
)]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if std::env::var("COFFERDAM_LOG").is_ok() {
        tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_env("COFFERDAM_LOG")).init();
    }
    if let Some(seed) = arguments.seed {
        let scenario = Scenario::new(seed);
        println!("{scenario:#?}");
        let report = run(&scenario);
        println!("{report:#?}");
        return if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let began = Instant::now();
    let seeds = if arguments.minutes.is_some() { u64::MAX - arguments.from } else { arguments.seeds };
    let bar = ProgressBar::new(if arguments.minutes.is_some() { 0 } else { seeds });
    let style = ProgressStyle::with_template("{bar:40} {pos} seeds, {per_sec}, {elapsed}, {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (next, failed, commands, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.unwrap_or(cores) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let over = arguments.minutes.is_some_and(|minutes| began.elapsed().as_secs() >= minutes * 60);
                    if index >= seeds || over || failed.load(Ordering::Relaxed) >= arguments.failures {
                        return;
                    }
                    let seed = arguments.from + index;
                    let report = run(&Scenario::new(seed));
                    commands.fetch_add(report.commands, Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                    bar.inc(1);
                    if !report.violations.is_empty() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        bar.suspend(|| {
                            eprintln!("seed {seed} failed; see it whole with: cargo run --release -p cofferdam-simulation -- {seed}");
                            report.violations.iter().for_each(|violation| eprintln!("  {violation}"));
                        });
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let (failed, seconds) = (failed.load(Ordering::Relaxed), began.elapsed().as_secs_f64());
    println!(
        "{} seeds from {}, {} commands, {seconds:.0} s: {failed} failed",
        done.load(Ordering::Relaxed),
        arguments.from,
        commands.load(Ordering::Relaxed),
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
