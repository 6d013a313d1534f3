//! `cofferdam run`: a host, until it is told to stop.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use crate::cli::Common;
use crate::config::{Config, Overrides};
use crate::host::{Host, shown};
use crate::screen;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Flags of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of plugins to watch [default: ./plugins]
    #[arg(long, value_name = "DIR")]
    plugins: Option<PathBuf>,
    /// How the log is written
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
}

pub(crate) async fn run(common: &Common, args: Args) -> Result<()> {
    let config = Config::load(&Overrides {
        config: common.config.clone(),
        redis: common.redis.clone(),
        data: common.data.clone(),
        plugins: args.plugins,
        working_directory: true,
    })?;
    if let Some(source) = &config.source {
        tracing::info!(file = %source.display(), "read the configuration");
    }
    let host = Host::start(config).await?;
    if args.log_format == LogFormat::Json {
        // Standard error is one object a line then.
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            plugins = %host.config.plugins_dir.display(),
            redis = shown(&host.url),
            data = %host.config.data_dir.display(),
            "cofferdam is running"
        );
    } else {
        greet(common, &host);
    }
    stop_signal().await?;
    tracing::info!("stopping: finishing what is under way");
    host.stop().await;
    Ok(())
}

/// Says where everything is, and what to do next.
fn greet(common: &Common, host: &Host) {
    screen::note(&format!(
        "cofferdam {} is running\n  plugins  {}   (drop NAME.wasm and NAME.toml there)\n  redis    {}\n  data     {}\nnext, in another terminal:\n  cofferdam{} status",
        env!("CARGO_PKG_VERSION"),
        host.config.plugins_dir.display(),
        shown(&host.url),
        host.config.data_dir.display(),
        common.data.as_ref().map_or_else(String::new, |data| format!(" --data {}", data.display())),
    ));
}

/// Waits for the signal to stop: Ctrl-C, SIGTERM, or SIGHUP when the terminal is closed.
pub(crate) async fn stop_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut hangup = if ignores_hangup(&status) { None } else { Some(signal(SignalKind::hangup())?) };
    let hung_up = async {
        match &mut hangup {
            Some(hangup) => _ = hangup.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = hung_up => {}
    }
    Ok(())
}

/// Whether a process was started to outlive its terminal, as by `nohup`; from its `/proc/<pid>/status`, see proc_pid_status(5).
fn ignores_hangup(status: &str) -> bool {
    const HANGUP: u64 = 1;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & HANGUP != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_outlives_the_terminal_is_told_by_the_mask_of_ignored_signals() {
        for (mask, ignores) in [("0000000000001000", false), ("0000000000001001", true), ("not a mask", false)] {
            assert_eq!(ignores_hangup(&format!("Name:\tcofferdam\nSigIgn:\t{mask}\nSigCgt:\t1\n")), ignores, "{mask}");
        }
        assert!(!ignores_hangup(""));
    }
}
