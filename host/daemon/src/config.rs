//! The configuration: raw file to checked [`Config`]. The only reader of the environment.
//!
//! Defaults < file < environment (`COFFERDAM__SECTION__KEY`) < flags. Unknown keys are refused with their place. The working
//! directory's `cofferdam.toml` is read by `run` alone, and only if nobody else could have written it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cofferdam_delivery::DeliveryConfig;
use cofferdam_model::StreamPattern;
use cofferdam_model::route::check_stream_name;
use cofferdam_sandbox::Limits;
use cofferdam_streams::{Retention, Store, StreamError};
use serde::Deserialize;

use crate::exit::Usage;
use crate::quantity::{Bytes, Span, show_bytes};
use crate::signature::Signers;

/// The file as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawConfig {
    redis: RawRedis,
    plugins: toml::Table,
    streams: BTreeMap<String, RawStream>,
    policy: RawPolicySection,
    delivery: RawDelivery,
    limits: RawLimits,
    data: RawData,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRedis {
    url: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawStream {
    keep: Option<u64>,
    age: Option<Span>,
    bytes: Option<Bytes>,
    ignore_groups: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawPolicySection {
    require_signature: bool,
    signing_keys: Vec<String>,
    embedded: Option<String>,
    default: RawPolicy,
    plugins: BTreeMap<String, RawPolicy>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawPolicy {
    read: Option<Vec<String>>,
    emit: Option<Vec<String>>,
    instances: Option<Vec<String>>,
    concurrency: Option<usize>,
    memory: Option<Bytes>,
    deadline: Option<Span>,
    output: Option<Bytes>,
    events: Option<u32>,
    message: Option<Bytes>,
    log_lines: Option<u32>,
    log: Option<Bytes>,
    host_calls: Option<u64>,
    table_elements: Option<u64>,
    random: Option<Bytes>,
    events_per_second: Option<u64>,
    output_per_second: Option<Bytes>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawDelivery {
    lease: Option<Span>,
    grace: Option<Span>,
    in_flight: Option<usize>,
    in_flight_bytes: Option<Bytes>,
}

/// The settings of a stream, in the words of the file.
pub(crate) fn show_stream_settings(retention: &Retention, budget: Option<u64>) -> String {
    let mut text = format!("keep = {}", retention.entries);
    if let Some(age) = retention.age {
        text.push_str(&format!(", age = {}", humantime::format_duration(age)));
    }
    if !retention.ignored_groups.is_empty() {
        let mut groups = retention.ignored_groups.clone();
        groups.sort();
        text.push_str(&format!(", ignore-groups = {groups:?}"));
    }
    if let Some(bytes) = budget {
        text.push_str(&format!(", bytes = {}", show_bytes(bytes)));
    }
    text
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RawLimits {
    dead_letters: Option<Bytes>,
    compile_memory: Option<Bytes>,
    compile_time: Option<Span>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawData {
    dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSite {
    config: BTreeMap<String, String>,
}

/// What every plugin can have when no policy says otherwise: beyond what handlers of events need, and so that the threads of one
/// plugin together stay within what a small machine has.
const CEILING: Limits = Limits {
    memory_bytes: 256 << 20,
    deadline: Duration::from_secs(30),
    output_bytes: 32 << 20,
    events: 100_000,
    log_lines: 10_000,
    log_bytes: 4 << 20,
    host_calls: 100_000_000,
    table_elements: 100_000,
    random_bytes: 64 << 20,
    // A host that is to write without a pause is not slowed down unasked.
    events_per_second: None,
    output_bytes_per_second: None,
    message_bytes: 32 << 20,
};
/// Threads of one plugin, whatever its manifest asks for.
const THREADS_MAX: usize = 256;
/// Deliveries of one plugin and stream that a host may hold.
const IN_FLIGHT_MAX: usize = 50_000;

/// What an operator grants a plugin at most.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) read: Vec<StreamPattern>,
    pub(crate) emit: Vec<StreamPattern>,
    /// The most that a manifest's `[limits]` can have.
    pub(crate) ceiling: Limits,
    /// Threads on this host.
    pub(crate) concurrency_max: usize,
    pub(crate) fresh: bool,
    pub(crate) reuse: bool,
}

/// What compiling one file may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CompileBounds {
    /// Memory, in bytes.
    pub(crate) memory_bytes: u64,
    /// Processor time.
    pub(crate) time: Duration,
}

impl Default for CompileBounds {
    /// The largest guests that toolchains make (Python and its libraries, 18 MB) take 6 s of one core; a bomb of 83 KB took 68 s
    /// and 859 MB.
    fn default() -> Self {
        CompileBounds { memory_bytes: 1 << 30, time: Duration::from_secs(30) }
    }
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Redis of the operator's own; `None` is the private one.
    pub(crate) redis_url: Option<String>,
    pub(crate) plugins_dir: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) delivery: DeliveryConfig,
    policies: BTreeMap<String, Policy>,
    default_policy: Policy,
    retentions: BTreeMap<String, Retention>,
    budgets: BTreeMap<String, u64>,
    /// Bytes of dead letters that one plugin may leave.
    pub(crate) dead_letter_bytes: u64,
    /// What compiling one plugin may take.
    pub(crate) compile: CompileBounds,
    /// Whose signatures count.
    pub(crate) signers: Signers,
    /// Whether a new plugin whose manifest stands inside it runs without being approved.
    pub(crate) trusts_embedded: bool,
    site_configs: BTreeMap<String, BTreeMap<String, String>>,
    /// The file that was read.
    pub(crate) source: Option<PathBuf>,
}

/// What was given on the command line, over everything else.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) config: Option<PathBuf>,
    pub(crate) redis: Option<String>,
    pub(crate) data: Option<PathBuf>,
    pub(crate) plugins: Option<PathBuf>,
    /// Whether the working directory's file may be read.
    pub(crate) working_directory: bool,
}

impl RawConfig {
    /// Reads the text of a file, and the environment above it.
    ///
    /// # Errors
    /// What cannot be understood, with its place.
    pub(crate) fn read(text: &str) -> Result<Self> {
        let mut table: toml::Table = expand(text)?.parse()?;
        apply_environment(&mut table);
        Ok(toml::Value::Table(table).try_into()?)
    }
}

impl Config {
    /// Loads the configuration.
    ///
    /// # Errors
    /// A file that cannot be read or understood, with its place.
    pub(crate) fn load(overrides: &Overrides) -> Result<Self> {
        let source = find_file(overrides)?;
        let text = match &source {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        };
        let raw = RawConfig::read(&text).with_context(|| match &source {
            Some(path) => format!("in {}", path.display()),
            None => String::from("in the COFFERDAM__… variables of the environment"),
        })?;
        Config::check(raw, overrides, source)
    }

    /// What a file means.
    ///
    /// # Errors
    /// A value that cannot be, with its place.
    pub(crate) fn check(raw: RawConfig, overrides: &Overrides, source: Option<PathBuf>) -> Result<Self> {
        let mut plugins = raw.plugins;
        let dir = match plugins.remove("dir") {
            None => None,
            Some(toml::Value::String(dir)) => Some(PathBuf::from(dir)),
            Some(other) => bail!(Usage(format!("[plugins] dir = {other} is not a path"))),
        };
        let mut site_configs = BTreeMap::new();
        for (name, value) in plugins {
            let site: RawSite = value.try_into().with_context(|| format!("in [plugins.{name}]"))?;
            site_configs.insert(name, site.config);
        }
        let default_policy = policy(&raw.policy.default, None).context("in [policy.default]")?;
        let mut policies = BTreeMap::new();
        for (name, own) in &raw.policy.plugins {
            let checked = policy(own, Some(&default_policy)).with_context(|| format!("in [policy.plugins.{name}]"))?;
            policies.insert(name.clone(), checked);
        }
        let budget = |(name, own): (&String, &RawStream)| Some((name.clone(), own.bytes?.0));
        let budgets = raw.streams.iter().filter_map(budget).collect();
        for name in raw.streams.keys() {
            check_stream_name(name).map_err(|error| Usage(format!("[streams.{name:?}]: {error}")))?;
        }
        let retentions = raw.streams.into_iter().map(|(name, own)| {
            let default = Retention::default();
            let entries = own.keep.unwrap_or(default.entries);
            (name, Retention { entries, age: own.age.map(|span| span.0), ignored_groups: own.ignore_groups })
        });
        let lease = raw.delivery.lease.map_or(Duration::from_secs(30), |span| span.0);
        if lease < Duration::from_millis(500) {
            bail!(Usage(format!(
                "[delivery] lease = {lease:?} is too short: below 500ms a busy machine loses leases it still uses"
            )));
        }
        let in_flight_max = raw.delivery.in_flight.unwrap_or(2_048);
        if !(1..=IN_FLIGHT_MAX).contains(&in_flight_max) {
            bail!(Usage(format!(
                "[delivery] in-flight = {in_flight_max} is out of its bounds; write 1 to {IN_FLIGHT_MAX}"
            )));
        }
        let delivery = DeliveryConfig {
            lease,
            grace: raw.delivery.grace.map_or(Duration::from_secs(10), |span| span.0),
            in_flight_max,
            in_flight_bytes_max: raw.delivery.in_flight_bytes.map_or(64 << 20, |bytes| bytes.0),
        };
        let redis_url = redis_url(overrides.redis.as_deref(), raw.redis.url)?;
        let data_dir = match overrides.data.clone().or(raw.data.dir) {
            Some(dir) => dir,
            None => default_data_dir()?,
        };
        Ok(Config {
            redis_url,
            plugins_dir: overrides.plugins.clone().or(dir).unwrap_or_else(|| PathBuf::from("plugins")),
            data_dir,
            delivery,
            policies,
            default_policy,
            retentions: retentions.collect(),
            budgets,
            compile: compile_bounds(&raw.limits)?,
            dead_letter_bytes: raw.limits.dead_letters.map_or(1 << 30, |bytes| bytes.0),
            signers: Signers::new(&raw.policy.signing_keys, raw.policy.require_signature)
                .map_err(|text| anyhow::Error::new(Usage(text)))?,
            trusts_embedded: match raw.policy.embedded.as_deref() {
                None | Some("wait") => false,
                Some("trust") => true,
                Some(other) => bail!(Usage(format!(
                    "[policy] embedded = {other:?} is not understood; write \"wait\" or \"trust\""
                ))),
            },
            site_configs,
            source,
        })
    }

    /// What a plugin may have at most.
    pub(crate) fn policy(&self, plugin: &str) -> &Policy {
        self.policies.get(plugin).unwrap_or(&self.default_policy)
    }

    /// How much of a stream is kept.
    pub(crate) fn retention(&self, stream: &str) -> Retention {
        self.retentions.get(stream).cloned().unwrap_or_default()
    }

    /// What every stream that the file names is set to, as text by stream.
    pub(crate) fn stream_settings(&self) -> BTreeMap<String, String> {
        let text = |(name, retention): (&String, &Retention)| {
            (name.clone(), show_stream_settings(retention, self.byte_budget(name)))
        };
        self.retentions.iter().map(text).collect()
    }

    /// How many bytes a stream may take before plugins stop writing to it.
    pub(crate) fn byte_budget(&self, stream: &str) -> Option<u64> {
        self.budgets.get(stream).copied()
    }

    /// This site's own settings of a plugin, over its manifest's.
    pub(crate) fn site_config(&self, plugin: &str) -> Option<&BTreeMap<String, String>> {
        self.site_configs.get(plugin)
    }
}

/// The forms of an url.
const REDIS_URLS: &str =
    "write redis://host:port/db, redis+unix:///path, or redis+sentinel://host:port,host:port/master-name/db";

/// The Redis that was named: by flag, or in the file, where an empty url is none.
fn redis_url(flag: Option<&str>, file: Option<String>) -> Result<Option<String>> {
    let (place, url) = match flag {
        Some("") => bail!(Usage(format!("--redis is empty; {REDIS_URLS}, or leave it out"))),
        Some(url) => ("--redis", url.to_owned()),
        None => match file.filter(|url| !url.is_empty()) {
            Some(url) => ("[redis] url", url),
            None => return Ok(None),
        },
    };
    // What is wrong is not quoted: it may hold a password, wherever that stands.
    let wrong = |error: StreamError| Usage(format!("{place} is not the url of a Redis; {REDIS_URLS}: {error}"));
    Store::check_url(&url).map_err(wrong)?;
    Ok(Some(url))
}

fn compile_bounds(raw: &RawLimits) -> Result<CompileBounds> {
    let default = CompileBounds::default();
    let bounds = CompileBounds {
        memory_bytes: raw.compile_memory.map_or(default.memory_bytes, |bytes| bytes.0),
        time: raw.compile_time.map_or(default.time, |span| span.0),
    };
    if bounds.memory_bytes < 64 << 20 || bounds.time < Duration::from_secs(1) {
        bail!(Usage(String::from(
            "[limits] compile-memory below 64MiB or compile-time below 1s: no plugin would compile"
        )));
    }
    Ok(bounds)
}

fn policy(raw: &RawPolicy, base: Option<&Policy>) -> Result<Policy> {
    let patterns =
        |key: &str, given: &Option<Vec<String>>, default: &[&str], inherited: Option<&Vec<StreamPattern>>| {
            let names: Vec<String> = match (given, inherited) {
                (Some(names), _) => names.clone(),
                (None, Some(patterns)) => return Ok(patterns.clone()),
                (None, None) => default.iter().map(|&name| name.to_owned()).collect(),
            };
            names
                .iter()
                .map(|name| {
                    StreamPattern::new(name).map_err(|error| anyhow::Error::new(Usage(format!("in {key}: {error}"))))
                })
                .collect::<Result<Vec<_>>>()
        };
    let instances = match (&raw.instances, base) {
        (None, Some(base)) => (base.fresh, base.reuse),
        (None, None) => (true, true),
        (Some(words), _) => {
            if let Some(word) = words.iter().find(|word| !["fresh", "reuse"].contains(&word.as_str())) {
                bail!(Usage(format!("instances: {word:?} is not understood; write \"fresh\", \"reuse\" or both")));
            }
            (words.iter().any(|word| word == "fresh"), words.iter().any(|word| word == "reuse"))
        }
    };
    Ok(Policy {
        read: patterns("read", &raw.read, &["*"], base.map(|base| &base.read))?,
        emit: patterns("emit", &raw.emit, &["*"], base.map(|base| &base.emit))?,
        ceiling: ceiling(raw, base.map_or(CEILING, |base| base.ceiling)),
        concurrency_max: raw.concurrency.or(base.map(|base| base.concurrency_max)).unwrap_or(THREADS_MAX).max(1),
        fresh: instances.0,
        reuse: instances.1,
    })
}

/// What a policy says, and of the rest what stands above it.
fn ceiling(raw: &RawPolicy, above: Limits) -> Limits {
    let bytes = |given: Option<Bytes>, above: u64| given.map_or(above, |bytes| bytes.0);
    Limits {
        memory_bytes: bytes(raw.memory, above.memory_bytes),
        deadline: raw.deadline.map_or(above.deadline, |span| span.0),
        output_bytes: bytes(raw.output, above.output_bytes),
        events: raw.events.unwrap_or(above.events),
        log_lines: raw.log_lines.unwrap_or(above.log_lines),
        log_bytes: bytes(raw.log, above.log_bytes),
        host_calls: raw.host_calls.unwrap_or(above.host_calls),
        table_elements: raw.table_elements.unwrap_or(above.table_elements),
        random_bytes: bytes(raw.random, above.random_bytes),
        events_per_second: raw.events_per_second.or(above.events_per_second),
        output_bytes_per_second: raw.output_per_second.map(|bytes| bytes.0).or(above.output_bytes_per_second),
        message_bytes: bytes(raw.message, above.message_bytes),
    }
}

fn find_file(overrides: &Overrides) -> Result<Option<PathBuf>> {
    if let Some(path) = &overrides.config {
        if !path.is_file() {
            bail!(Usage(format!("there is no configuration file {}", path.display())));
        }
        return Ok(Some(path.clone()));
    }
    let here = Path::new("cofferdam.toml");
    if overrides.working_directory && here.is_file() {
        check_trust(here)?;
        return Ok(Some(here.to_owned()));
    }
    let user = match (environment("XDG_CONFIG_HOME"), environment("HOME")) {
        (Some(config), _) => Some(PathBuf::from(config)),
        (None, Some(home)) => Some(Path::new(&home).join(".config")),
        (None, None) => None,
    };
    Ok(user.map(|dir| dir.join("cofferdam/cofferdam.toml")).filter(|path| path.is_file()))
}

/// A file in the working directory decides what code may do, so nobody but the user may have been able to write it.
fn check_trust(path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let me = rustix::process::geteuid().as_raw();
    for checked in [path, Path::new(".")] {
        let meta = checked.metadata().with_context(|| format!("cannot look at {}", checked.display()))?;
        if meta.uid() != me || meta.mode() & 0o022 != 0 {
            bail!(Usage(String::from(
                "./cofferdam.toml is not read: it or its folder belongs to somebody else or is writable by others; \
                 mend that (chmod go-w . cofferdam.toml) or name it yourself: --config ./cofferdam.toml"
            )));
        }
    }
    Ok(())
}

/// Where state goes when nothing else is said.
fn default_data_dir() -> Result<PathBuf> {
    if let Some(state) = environment("XDG_STATE_HOME") {
        return Ok(Path::new(&state).join("cofferdam"));
    }
    let home = environment("HOME").context("HOME is not set: say where state may be kept with --data DIR")?;
    Ok(Path::new(&home).join(".local/state/cofferdam"))
}

#[allow(clippy::disallowed_methods, reason = "this file is the one reader of the environment")]
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `COFFERDAM__REDIS__URL` becomes `[redis] url`; `_` within a word becomes `-`.
fn apply_environment(table: &mut toml::Table) {
    // A variable that is not UTF-8 is none of ours.
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    'variables: for (name, value) in variables {
        let Some(path) = name.strip_prefix("COFFERDAM__") else { continue };
        let mut parts: Vec<String> = path.split("__").map(|part| part.to_ascii_lowercase().replace('_', "-")).collect();
        let Some(key) = parts.pop() else { continue };
        let mut inner = &mut *table;
        for part in parts {
            let entry = inner.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            let toml::Value::Table(next) = entry else { continue 'variables };
            inner = next;
        }
        // A number, a truth value or a list is meant as one; everything else is a string.
        let parsed = format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
        inner.insert(key, parsed.unwrap_or(toml::Value::String(value)));
    }
}

/// `${NAME}` and `${NAME:-default}`.
fn expand(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let Some((inner, tail)) = after.split_once('}') else { bail!(Usage(String::from("${ is not closed by }"))) };
        let (name, default) = inner.split_once(":-").map_or((inner, None), |(name, default)| (name, Some(default)));
        match (environment(name), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                bail!(Usage(format!("the environment has no {name}; set it, or write ${{{name}:-default}}")))
            }
        }
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config> {
        let raw: RawConfig = toml::from_str(text)?;
        Config::check(raw, &Overrides { data: Some("d".into()), ..Overrides::default() }, None)
    }

    #[test]
    fn a_host_works_with_no_file_at_all() {
        let config = load("").unwrap();
        assert_eq!((config.plugins_dir.as_path(), config.redis_url), (Path::new("plugins"), None));
        assert_eq!(config.delivery.lease, Duration::from_secs(30));
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused_with_their_place() {
        let error = |text: &str| format!("{:#}", load(text).unwrap_err());
        assert!(error("[redis]\nurll = 1").contains("urll"));
        assert!(error("[policy.default]\ninstances = [\"old\"]").contains("\"fresh\", \"reuse\""));
        assert!(error("[delivery]\nlease = \"1ms\"").contains("too short"));
        assert!(error("[plugins.classify]\nconfg = 1").contains("confg"));
        for wrong in [0, 60_000] {
            assert!(error(&format!("[delivery]\nin-flight = {wrong}")).contains("write 1 to 50000"));
        }
        assert!(error("[streams.\"a b\"]\nkeep = 5").contains("[streams.\"a b\"]"));
    }

    #[test]
    fn the_url_of_a_redis_is_refused_with_the_forms_of_one_and_without_its_password() {
        let of = |flag: Option<&str>, file: &str| redis_url(flag, Some(file.to_owned())).map_err(|e| format!("{e:#}"));
        assert_eq!(of(None, ""), Ok(None), "an empty url in the file is none");
        assert_eq!(of(Some("redis://h:1/2"), "x").unwrap().as_deref(), Some("redis://h:1/2"));
        assert!(of(None, "redis+sentinel://a:1,b:2/master").is_ok() && of(None, "redis+unix:///tmp/r.sock").is_ok());
        assert!(of(Some(""), "redis://h").unwrap_err().starts_with("--redis is empty; write redis://host:port/db"));
        for wrong in ["127.0.0.1:6379", "me:hunter2@h:6379", "http://h", "redis+sentinel://a:1"] {
            let told = of(None, wrong).unwrap_err();
            assert!(told.starts_with("[redis] url is not the url of a Redis; write redis://host:port/db"), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn a_plugin_policy_takes_from_the_default_what_it_does_not_say() {
        let config = load("[policy.default]\nmemory = \"8MiB\"\n[policy.plugins.x]\ndeadline = \"3s\"").unwrap();
        let (x, y) = (config.policy("x").ceiling, config.policy("y").ceiling);
        assert_eq!(
            (x.memory_bytes, x.deadline, y.deadline),
            (8 << 20, Duration::from_secs(3), Duration::from_secs(30))
        );
    }

    #[test]
    fn variables_are_expanded_and_missing_ones_named() {
        assert_eq!(expand("a ${NO_SUCH_VARIABLE:-b} c").unwrap(), "a b c");
        assert!(expand("${NO_SUCH_VARIABLE}").unwrap_err().to_string().contains("NO_SUCH_VARIABLE"));
    }
}
