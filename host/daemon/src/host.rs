//! A host, put together: Redis, the sandbox, the folder, the lanes, and the small regular duties. The order is a fact of the
//! design, so it stands in one function.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cofferdam_delivery::Bells;
use cofferdam_model::route::{DEAD_LETTER_STREAM, OPERATOR_LOG_STREAM};
use cofferdam_sandbox::{Engine, EngineConfig};
use cofferdam_streams::{Format, HostReport, Store, StreamError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admission::Admission;
use crate::clock;
use crate::compile::Compiler;
use crate::compiled::Cache;
use crate::config::Config;
use crate::guard::guard;
use crate::redis_child::RedisChild;
use crate::reload::Folder;
use crate::run_file::RunFile;
use crate::supervisor::Supervisor;
use crate::versions::Versions;

/// How often a host says that it lives, and how long that is believed.
const REPORT_EVERY: Duration = Duration::from_secs(3);
const REPORT_LIVES: Duration = Duration::from_secs(12);
/// How often streams are trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(15);
/// Instances that exist at once, over all plugins. Address space is reserved for each, memory only for those in use.
const INSTANCES_MAX: u32 = 256;
/// The largest memory that an operator can grant.
pub(crate) const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// A running host.
pub(crate) struct Host {
    pub(crate) store: Store,
    pub(crate) url: String,
    pub(crate) consumer: Arc<str>,
    pub(crate) config: Arc<Config>,
    supervisor: Arc<Supervisor>,
    redis: Option<RedisChild>,
    /// Held when no private Redis holds it.
    _lock: Option<std::fs::File>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Host {
    /// Starts a host.
    ///
    /// # Errors
    /// No Redis, an unsuitable one, a data directory in use or not writable.
    pub(crate) async fn start(mut config: Config) -> Result<Host> {
        create_private(&config.data_dir)?;
        std::fs::create_dir_all(&config.plugins_dir)
            .with_context(|| format!("cannot create the plugins folder {}", config.plugins_dir.display()))?;
        config.plugins_dir = config.plugins_dir.canonicalize()?;
        let (redis, url, lock) = match &config.redis_url {
            Some(url) => (None, url.clone(), Some(crate::redis_child::lock(&config.data_dir)?)),
            None => {
                let child = RedisChild::start(&config.data_dir).await?;
                let url = child.url().to_owned();
                (Some(child), url, None)
            }
        };
        let store = Store::connect(&url).await.with_context(|| format!("cannot use the redis at {}", shown(&url)))?;
        for warning in store.check().await? {
            tracing::warn!("{warning}");
        }
        store.agree_on_format().await?;
        let engine = Engine::new(EngineConfig { instances_max: INSTANCES_MAX, memory_bytes_max: MEMORY_BYTES_MAX })?;
        let consumer: Arc<str> = format!("{}/{}", host_name(), uuid::Uuid::new_v4()).into();
        let bells = Arc::new(Bells::default());
        let config = Arc::new(config);
        let supervisor =
            Arc::new(Supervisor::new(store.clone(), consumer.clone(), config.delivery, redis.is_some(), bells.clone()));
        let (stop, stopping) = watch::channel(false);
        let versions = Arc::new(Versions::new(store.clone(), consumer.clone(), &config.data_dir));
        // Before the folder is looked at: a pin outlives every restart.
        versions.look().await?;
        let compiler = Arc::new(Compiler::new(engine, config.compile, Some(Cache::open(&config.data_dir)?)));
        let folder = Folder::new(
            config.plugins_dir.clone(),
            Admission::new(config.clone(), compiler, supervisor.clone(), versions.clone()),
            supervisor.clone(),
            versions.clone(),
        );
        let tasks = vec![
            tokio::spawn(bells.run(store.clone())),
            tokio::spawn(folder.run(stopping.clone())),
            tokio::spawn(report(
                store.clone(),
                consumer.clone(),
                config.clone(),
                supervisor.clone(),
                versions,
                stopping.clone(),
            )),
            tokio::spawn(trim(store.clone(), consumer.clone(), config.clone(), supervisor.clone(), stopping.clone())),
            tokio::spawn(guard(store.clone(), supervisor.clone(), config.clone(), stopping)),
        ];
        let run_file = RunFile {
            pid: std::process::id(),
            consumer: consumer.to_string(),
            redis: url.clone(),
            plugins: config.plugins_dir.clone(),
            started_ms: clock::now_ms(),
        };
        run_file.write(&config.data_dir)?;
        Ok(Host { store, url, consumer, config, supervisor, redis, _lock: lock, stop, tasks })
    }

    /// Stops: nothing new is read, what is under way is finished or given back, the private Redis is last.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(true);
        self.supervisor.stop().await;
        let _ = self.store.report_gone(&self.consumer).await;
        RunFile::remove(&self.config.data_dir);
        self.tasks.iter().for_each(JoinHandle::abort);
        drop(self.store);
        if let Some(redis) = self.redis {
            redis.stop().await;
        }
    }
}

/// An url without its password, in either of the forms that carry one: `user:password@`, and `?pass=` of a unix socket.
pub(crate) fn shown(url: &str) -> String {
    let (place, query) = url.split_once('?').map_or((url, ""), |(place, query)| (place, query));
    let place = match (place.split_once("://"), place.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://…@{place}"),
        _ => place.to_owned(),
    };
    if query.is_empty() { place } else { format!("{place}?…") }
}

fn create_private(dir: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot create the data directory {}", dir.display()))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot make the data directory {} private", dir.display()))
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '-' }).take(64).collect()
}

async fn report(
    store: Store,
    consumer: Arc<str>,
    config: Arc<Config>,
    supervisor: Arc<Supervisor>,
    versions: Arc<Versions>,
    mut stopping: watch::Receiver<bool>,
) {
    let started_ms = clock::now_ms();
    let mut changes = supervisor.changes();
    loop {
        let plugins = serde_json::to_value(supervisor.report()).unwrap_or_default();
        let report = HostReport {
            consumer: consumer.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: Format::own().to_string(),
            pid: std::process::id(),
            started_ms,
            reported_ms: clock::now_ms(),
            lease_ms: u64::try_from(config.delivery.lease.as_millis()).unwrap_or(u64::MAX),
            streams: config.stream_settings(),
            plugins,
        };
        if let Err(error) = store.report(&report, REPORT_LIVES).await {
            tracing::debug!(%error, "cannot report");
        }
        if let Err(error) = versions.look().await {
            tracing::debug!(%error, "cannot look after versions");
        }
        match store.agree_on_format().await {
            Err(error @ StreamError::Unsuitable { .. }) => {
                tracing::error!(%error, "another host has changed the format")
            }
            Err(error) => tracing::debug!(%error, "cannot agree on the format"),
            Ok(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(REPORT_EVERY) => {}
            _ = changes.changed() => tokio::time::sleep(Duration::from_millis(50)).await,
            _ = stopping.changed() => return,
        }
    }
}

async fn trim(
    store: Store,
    consumer: Arc<str>,
    config: Arc<Config>,
    supervisor: Arc<Supervisor>,
    mut stopping: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TRIM_EVERY) => {}
            _ = stopping.changed() => return,
        }
        if !matches!(store.may_trim(&consumer, TRIM_EVERY * 2).await, Ok(true)) {
            continue;
        }
        // Evidence is the operator's to discard.
        let trimmed = |stream: &String| stream != DEAD_LETTER_STREAM && stream != OPERATOR_LOG_STREAM;
        for stream in supervisor.streams().into_iter().filter(trimmed) {
            match store.trim(&stream, &config.retention(&stream), clock::now_ms()).await {
                Ok(trimmed) => {
                    if let Some(group) = trimmed.blocked_by.filter(|_| trimmed.excess > 0) {
                        tracing::warn!(
                            stream,
                            group,
                            excess = trimmed.excess,
                            "this group has not finished what is above the retention; if nobody needs it, add to cofferdam.toml: [streams.\"{stream}\"] ignore-groups = [\"{group}\"]"
                        );
                    }
                }
                Err(error) => tracing::debug!(stream, %error, "cannot trim"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn an_url_is_shown_without_its_password_whichever_way_it_carries_one() {
        assert_eq!(shown("redis://127.0.0.1:6379"), "redis://127.0.0.1:6379");
        assert_eq!(shown("redis://me:secret@h:1/0"), "redis://…@h:1/0");
        assert_eq!(shown("redis+unix:///r.sock?user=me&pass=secret@x"), "redis+unix:///r.sock?…");
    }
}
