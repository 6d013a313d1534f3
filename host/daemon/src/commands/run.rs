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
    screen::note(&format!(
        "cofferdam {} is running\n  plugins  {}   (drop NAME.wasm and NAME.toml there)\n  redis    {}\n  data     {}\nnext, in another terminal:\n  cofferdam{} status",
        env!("CARGO_PKG_VERSION"),
        host.config.plugins_dir.display(),
        shown(&host.url),
        host.config.data_dir.display(),
        common.data.as_ref().map_or_else(String::new, |data| format!(" --data {}", data.display())),
    ));
    stop_signal().await?;
    tracing::info!("stopping: finishing what is under way");
    host.stop().await;
    Ok(())
}

/// Waits for the signal to stop: Ctrl-C or SIGTERM.
pub(crate) async fn stop_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
