//! The program: parse, load, run, exit code.

mod admission;
mod apart;
mod approval;
mod candidate;
mod cases;
mod cli;
mod clock;
mod commands;
mod compile;
mod compiled;
mod config;
#[cfg(test)]
mod corpus;
mod embedded;
mod escape;
mod exit;
mod frames;
mod guard;
mod host;
mod jail;
mod json_lines;
mod manifest;
mod mutants;
mod offline;
mod quantity;
mod redis_child;
mod reload;
mod run_file;
mod runner;
mod screen;
mod signature;
mod steps;
mod supervisor;
mod version;
mod versions;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::cli::{Cli, Verb};

/// How long the end waits for threads that still compile or try a plugin: what they come to interests nobody any more.
const LEFT_BEHIND_TIME: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_log(&cli.verb);
    // One thread moves messages: at this load more threads cost more in hand-overs than they bring. Handlers have their own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            screen::note(&format!("cofferdam: cannot start: {error}"));
            return ExitCode::from(3);
        }
    };
    let done = runtime.block_on(dispatch(cli));
    runtime.shutdown_timeout(LEFT_BEHIND_TIME);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen::note(&format!("cofferdam: {}", screen_error(&error)));
            exit::code(&error)
        }
    }
}

/// The error and its causes, each once, escaped: a text may hold what a plugin's author chose.
fn screen_error(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.contains(cause.as_str()) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    escape::safe_lines(&text)
}

async fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let common = cli.common;
    match cli.verb {
        Verb::Demo(args) => commands::demo::run(&common, args).await,
        Verb::Run(args) => commands::run::run(&common, args).await,
        Verb::Deploy(args) => commands::deploy::run(&common, args).await,
        Verb::Approve(args) => commands::approve::run(&common, args).await,
        Verb::Publish(args) => commands::publish::run(&common, args).await,
        Verb::Tail(args) => commands::tail::run(&common, args).await,
        Verb::Status(args) => commands::status::run(&common, args).await,
        Verb::Plugins(args) => commands::plugins::run(&common, args).await,
        Verb::History(args) => commands::history::run(&common, args).await,
        Verb::Rollback(args) => commands::rollback::run(&common, args).await,
        Verb::Unpin(args) => commands::rollback::unpin(&common, args).await,
        Verb::Streams(args) => commands::streams::run(&common, args).await,
        Verb::Test(args) => commands::test::run(&common, args).await,
        Verb::Inspect(args) => commands::inspect::run(&common, args).await,
        Verb::Detonate(args) => commands::detonate::run(&common, args),
        Verb::Dlq(args) => commands::dlq::run(&common, args).await,
        Verb::Verify(args) => commands::verify::run(&common, args).await,
        Verb::Doctor(args) => commands::doctor::run(&common, args).await,
        Verb::Bench(args) => commands::bench::run(&common, args).await,
        Verb::CompileApart(args) => compile::serve(&args.bounds()),
        Verb::RunApart(args) => apart::serve(&args.bounds()),
    }
}

/// The log goes to standard error: everything of note for `run`, only trouble for the other verbs. `COFFERDAM_LOG` says
/// otherwise, in the usual filter syntax.
fn init_log(verb: &Verb) {
    use std::io::IsTerminal;
    let default = match verb {
        // The watcher reports as news what concerns nobody: a folder that was replaced has no watch to take away.
        Verb::Run(_) => "info,notify=warn",
        Verb::Demo(_) | Verb::Bench(_) => "off",
        _ => "error",
    };
    let filter = config::environment("COFFERDAM_LOG").unwrap_or_else(|| default.to_owned());
    let parsed = tracing_subscriber::EnvFilter::try_new(&filter);
    let wrong = parsed.as_ref().err().map(ToString::to_string);
    let parsed = parsed.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    // A line that nobody can be told is left out: saying so on the same broken standard error would panic, and end a worker or a lane.
    let builder =
        tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr).log_internal_errors(false);
    let json = matches!(verb, Verb::Run(args) if args.log_format == commands::run::LogFormat::Json);
    if json {
        builder.json().init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
    if let Some(wrong) = wrong {
        tracing::error!("COFFERDAM_LOG={filter:?} is not understood ({wrong}); used is {default:?}");
    }
}
