//! One verb, one file: the list below is the list of features.

use anyhow::{Context, Result, bail};
use cofferdam_streams::{HostReport, Store, StreamError};

use crate::cli::Common;
use crate::config::{Config, Overrides};
use crate::exit::Environment;
use crate::host::shown;
use crate::run_file::RunFile;
use crate::supervisor::PluginReport;

pub(crate) mod approve;
pub(crate) mod bench;
pub(crate) mod demo;
pub(crate) mod deploy;
pub(crate) mod detonate;
pub(crate) mod dlq;
pub(crate) mod doctor;
pub(crate) mod history;
pub(crate) mod inspect;
pub(crate) mod plugins;
pub(crate) mod publish;
pub(crate) mod rollback;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod streams;
pub(crate) mod tail;
pub(crate) mod test;
pub(crate) mod verify;

/// The Redis that a verb talks to, and the running host that it was found by.
pub(crate) struct Found {
    pub(crate) store: Store,
    pub(crate) config: Config,
    /// The host on this machine; `None` when the Redis was named by flag or configuration and no host runs here.
    pub(crate) host: Option<RunFile>,
}

/// What every running host says of its plugins, by host. A report of another version of this program that is not understood is none.
///
/// # Errors
/// Whatever Redis answers.
pub(crate) async fn reports(store: &Store) -> Result<Vec<(HostReport, Vec<PluginReport>)>, StreamError> {
    let read = |host: HostReport| {
        let plugins = serde_json::from_value(host.plugins.clone()).unwrap_or_default();
        (host, plugins)
    };
    Ok(store.hosts().await?.into_iter().map(read).collect())
}

/// The configuration of a verb that is not `run`.
pub(crate) fn load_config(common: &Common) -> Result<Config> {
    let overrides = Overrides {
        config: common.config.clone(),
        redis: common.redis.clone(),
        data: common.data.clone(),
        ..Overrides::default()
    };
    Config::load(&overrides)
}

/// Finds the Redis: by flag, by configuration, or through the host that runs here.
///
/// # Errors
/// [`Environment`] when no host runs here and no Redis was named, with what to type.
pub(crate) async fn find(common: &Common) -> Result<Found> {
    let config = load_config(common)?;
    let host = RunFile::find(&config.data_dir);
    let url = match (&config.redis_url, &host) {
        (Some(url), _) => url.clone(),
        (None, Some(host)) => host.redis.clone(),
        (None, None) => bail!(Environment(format!(
            "no host is running here (there is no {}).\n  start one:            cofferdam run\n  \
             or look at a Redis:   add --redis redis://127.0.0.1:6379",
            config.data_dir.join("run.json").display()
        ))),
    };
    let host = host.filter(|host| host.redis == url);
    let store = Store::connect(&url).await.with_context(|| format!("cannot use the redis at {}", shown(&url)))?;
    Ok(Found { store, config, host })
}
