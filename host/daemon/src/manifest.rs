//! A plugin's manifest: the raw file, and what it means once checked.
//!
//! Everything but the subscription has a default. Unknown keys are refused: a typing error in a limit must not switch it off.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use cofferdam_model::policy::DELAY_MS_MAX;
use cofferdam_model::route::RouteError;
use cofferdam_model::{Backoff, EntryId, RetryPolicy, Route};
use cofferdam_sandbox::{Instances, Limits};
use cofferdam_streams::{Codec, Start, Subscription, WhereRule};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::escape::safe;
use crate::quantity::{Bytes, Span};

/// The manifest as written.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct RawManifest {
    pub(crate) name: Option<String>,
    /// Of the wasm file: proves it whole, so that it need not be watched until it is quiet.
    pub(crate) sha256: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) subscribe: Vec<RawSubscription>,
    pub(crate) emit: Vec<String>,
    pub(crate) order: Option<String>,
    pub(crate) instances: Option<String>,
    pub(crate) concurrency: Option<RawConcurrency>,
    pub(crate) retries: Option<u32>,
    pub(crate) crashes: Option<u32>,
    pub(crate) start: Option<String>,
    pub(crate) backoff: RawBackoff,
    pub(crate) limits: RawLimits,
    pub(crate) requests: RawRequests,
    pub(crate) config: BTreeMap<String, String>,
}

/// A stream's name, or a table. What can be written in several ways is read by hand: whoever mistyped a key of the table is to hear
/// of that key.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum RawSubscription {
    Stream(String),
    Table(RawSubscriptionTable),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RawSubscriptionTable {
    stream: String,
    codec: Option<String>,
    key: Option<String>,
    start: Option<String>,
    #[serde(default, rename = "where")]
    rules: BTreeMap<String, RawRule>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum RawRule {
    OneOf(Vec<serde_json::Value>),
    Prefix(RawPrefix),
    Exists(RawExists),
    Equal(serde_json::Value),
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct RawPrefix {
    prefix: String,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct RawExists {
    exists: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum RawConcurrency {
    Threads(usize),
    Word(String),
}

impl<'de> Deserialize<'de> for RawSubscription {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl<'de> Visitor<'de> for Written {
            type Value = RawSubscription;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a stream's name or a table [[subscribe]]")
            }
            fn visit_str<E: de::Error>(self, stream: &str) -> Result<Self::Value, E> {
                Ok(RawSubscription::Stream(stream.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Self::Value, A::Error> {
                RawSubscriptionTable::deserialize(MapAccessDeserializer::new(table)).map(RawSubscription::Table)
            }
        }
        deserializer.deserialize_any(Written)
    }
}

/// What a rule of `where` may be.
const RULE: &str = "a value, a list of values, { prefix = \"…\" } or { exists = true }";

impl<'de> Deserialize<'de> for RawRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl<'de> Visitor<'de> for Written {
            type Value = RawRule;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(RULE)
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
                Ok(RawRule::Equal(value.into()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
                Ok(RawRule::Equal(value.into()))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
                Ok(RawRule::Equal(value.into()))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
                Ok(RawRule::Equal(value.into()))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
                Ok(RawRule::Equal(value.into()))
            }
            // In the canonical text: a number that JSON does not have.
            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(RawRule::Equal(serde_json::Value::Null))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(RawRule::OneOf(values))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Self::Value, A::Error> {
                let wrong = || de::Error::custom(format!("this is no rule of where: write {RULE}"));
                let rule = match table.next_key::<String>()?.as_deref() {
                    Some("prefix") => RawRule::Prefix(RawPrefix { prefix: table.next_value()? }),
                    Some("exists") => RawRule::Exists(RawExists { exists: table.next_value()? }),
                    Some(_) | None => return Err(wrong()),
                };
                match table.next_key::<String>()? {
                    None => Ok(rule),
                    Some(_) => Err(wrong()),
                }
            }
        }
        deserializer.deserialize_any(Written)
    }
}

impl<'de> Deserialize<'de> for RawConcurrency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = RawConcurrency;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\" or a number of threads")
            }
            fn visit_i64<E: de::Error>(self, threads: i64) -> Result<Self::Value, E> {
                let wrong = || E::invalid_value(Unexpected::Signed(threads), &self);
                usize::try_from(threads).map(RawConcurrency::Threads).map_err(|_| wrong())
            }
            fn visit_u64<E: de::Error>(self, threads: u64) -> Result<Self::Value, E> {
                let wrong = || E::invalid_value(Unexpected::Unsigned(threads), &self);
                usize::try_from(threads).map(RawConcurrency::Threads).map_err(|_| wrong())
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Self::Value, E> {
                Ok(RawConcurrency::Word(word.to_owned()))
            }
        }
        deserializer.deserialize_any(Written)
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBackoff {
    base: Option<Span>,
    factor: Option<u32>,
    max: Option<Span>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
// Keys that came later are left out of the canonical text when nobody wrote them, so that digests stay what they were.
pub(crate) struct RawLimits {
    memory: Option<Bytes>,
    deadline: Option<Span>,
    output: Option<Bytes>,
    events: Option<u32>,
    message: Option<Bytes>,
    log_lines: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_calls: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table_elements: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    random: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_per_second: Option<Bytes>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct RawRequests {
    pub(crate) state: bool,
    pub(crate) http: Vec<String>,
    pub(crate) assets: Vec<String>,
}

/// A subscription with the place where its group starts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Subscribed {
    pub(crate) subscription: Subscription,
    pub(crate) start: StartRule,
}

/// Where a new group starts, as the manifest says it; times are resolved when the group is created.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum StartRule {
    /// `new` on a stream that has entries, `oldest` on the private Redis: what surprises least.
    Default,
    New,
    Oldest,
    /// This long ago.
    Ago(Duration),
    After(EntryId),
}

impl StartRule {
    /// What to ask Redis for.
    pub(crate) fn resolve(self, now_ms: u64, private_redis: bool) -> Start {
        match self {
            StartRule::Default if private_redis => Start::Oldest,
            StartRule::Default | StartRule::New => Start::New,
            StartRule::Oldest => Start::Oldest,
            StartRule::Ago(span) => {
                let ms = now_ms.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
                Start::After(EntryId { ms, seq: 0 }.before())
            }
            StartRule::After(id) => Start::After(id),
        }
    }
}

/// The manifest, checked.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) subscribed: Vec<Subscribed>,
    /// Whether messages of one key take effect in their order.
    pub(crate) ordered: bool,
    pub(crate) route: Route,
    pub(crate) instances: Instances,
    /// Threads on this host; `None` is automatic.
    pub(crate) concurrency: Option<usize>,
    pub(crate) retry: RetryPolicy,
    pub(crate) limits: Limits,
    pub(crate) config: BTreeMap<String, String>,
    /// The manifest without its `sha256`, in one canonical text: what the version's digest covers.
    pub(crate) canonical: String,
}

/// Where a file of TOML cannot be read, and why. The line itself is not quoted: it may be of any length, and behind a
/// link it may be somebody's secret.
#[derive(Debug, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub(crate) struct TomlError {
    line: usize,
    column: usize,
    message: String,
}

impl TomlError {
    /// What the parser says of this text.
    pub(crate) fn new(text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let (line, column) =
            (before.matches('\n').count() + 1, before.chars().rev().take_while(|&c| c != '\n').count() + 1);
        TomlError { line, column, message: safe(&error.message().replace('\n', ", ")) }
    }
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("{0}")]
    Syntax(#[from] TomlError),
    #[error("{0}")]
    Route(#[from] RouteError),
    #[error("{key} = {value:?} is not understood: {wanted}")]
    Value { key: String, value: String, wanted: &'static str },
    #[error("{key} is not supported by this version of Cofferdam; take it out of the manifest")]
    NotYet { key: String },
    #[error(
        "order = \"key\" needs the key of each subscription, and that of {stream:?} has none; write it as a table, with a JSON pointer into the payload:\n[[subscribe]]\nstream = {stream:?}\nkey = \"/src_ip\""
    )]
    NoKey { stream: String },
    #[error("the name {name:?} may hold letters, digits, - and _, and no more than 64 of them")]
    Name { name: String },
}

fn value(key: &str, value: &str, wanted: &'static str) -> ManifestError {
    ManifestError::Value { key: key.to_owned(), value: value.to_owned(), wanted }
}

/// The most tries after the first.
const RETRIES_MAX: u32 = 1_000;
/// The most deaths of a process that ran one message.
const CRASHES_MAX: u32 = 1_000;
/// The most threads of one plugin.
const THREADS_MAX: usize = 256;
/// The longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_millis(DELAY_MS_MAX);

/// What is beyond its bounds and would not be what it says.
fn check_bounds(raw: &RawManifest) -> Result<(), ManifestError> {
    if let Some(retries) = raw.retries.filter(|retries| *retries > RETRIES_MAX) {
        return Err(value("retries", &retries.to_string(), "write 0 to 1000"));
    }
    if let Some(crashes) = raw.crashes.filter(|crashes| !(1..=CRASHES_MAX).contains(crashes)) {
        return Err(value("crashes", &crashes.to_string(), "write 1 to 1000"));
    }
    if let Some(RawConcurrency::Threads(threads)) = raw.concurrency
        && threads > THREADS_MAX
    {
        return Err(value("concurrency", &threads.to_string(), "write \"auto\" or 1 to 256"));
    }
    if raw.backoff.factor == Some(0) {
        return Err(value("backoff.factor", "0", "write at least 1"));
    }
    for (key, span) in [("backoff.base", raw.backoff.base), ("backoff.max", raw.backoff.max)] {
        if let Some(Span(span)) = span.filter(|span| span.0 > BACKOFF_MAX) {
            return Err(value(key, &humantime::format_duration(span).to_string(), "write 24h at most"));
        }
    }
    Ok(())
}

fn read(text: &str) -> Result<RawManifest, ManifestError> {
    Ok(toml::from_str(text).map_err(|error| TomlError::new(text, &error))?)
}

impl Manifest {
    /// Reads a manifest that somebody has written. `file_name` is the plugin's name when the manifest gives none.
    ///
    /// # Errors
    /// What is wrong with it, a value beyond its bounds too.
    pub(crate) fn written(text: &str, file_name: &str) -> Result<(Self, Option<String>), ManifestError> {
        let raw = read(text)?;
        check_bounds(&raw)?;
        Manifest::checked(raw, file_name)
    }

    /// The same of one that a host has kept. A value beyond its bounds is cut to them: hosts took such manifests once, and a version
    /// that has run must be able to run again.
    pub(crate) fn parse(text: &str, file_name: &str) -> Result<(Self, Option<String>), ManifestError> {
        Manifest::checked(read(text)?, file_name)
    }

    fn checked(mut raw: RawManifest, file_name: &str) -> Result<(Self, Option<String>), ManifestError> {
        let sha256 = raw.sha256.take();
        // The name is part of the version, whether the manifest or the file's name gives it.
        let name = raw.name.get_or_insert_with(|| file_name.to_owned()).clone();
        let canonical = serde_json::to_string(&raw).expect("a parsed manifest always serializes");
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        {
            return Err(ManifestError::Name { name });
        }
        for (key, asked) in [
            ("[requests] state", raw.requests.state),
            ("[requests] http", !raw.requests.http.is_empty()),
            ("[requests] assets", !raw.requests.assets.is_empty()),
        ] {
            if asked {
                return Err(ManifestError::NotYet { key: key.to_owned() });
            }
        }
        match raw.order.as_deref() {
            None | Some("none") => {}
            Some("key") => {}
            Some(other) => return Err(value("order", other, "write \"none\" or \"key\"")),
        }
        let instances = match raw.instances.as_deref() {
            None | Some("fresh") => Instances::Fresh,
            Some("reuse") => Instances::Reuse,
            Some(other) => return Err(value("instances", other, "write \"fresh\" or \"reuse\"")),
        };
        let concurrency = match &raw.concurrency {
            None => None,
            Some(RawConcurrency::Word(word)) if word == "auto" => None,
            Some(RawConcurrency::Word(word)) => return Err(value("concurrency", word, "write \"auto\" or a number")),
            Some(RawConcurrency::Threads(0)) => return Err(value("concurrency", "0", "write \"auto\" or at least 1")),
            Some(RawConcurrency::Threads(threads)) => Some((*threads).min(THREADS_MAX)),
        };
        let subscribed =
            raw.subscribe.iter().map(|sub| subscribed(sub, raw.start.as_deref())).collect::<Result<Vec<_>, _>>()?;
        let ordered = raw.order.as_deref() == Some("key");
        if ordered && let Some(keyless) = subscribed.iter().find(|sub| sub.subscription.key.is_none()) {
            return Err(ManifestError::NoKey { stream: keyless.subscription.stream.to_string() });
        }
        let streams = subscribed.iter().map(|sub| sub.subscription.stream.to_string()).collect();
        let route = Route::new(streams, raw.emit.clone())?;
        let default = RetryPolicy::default();
        let backoff = Backoff {
            base: raw.backoff.base.map_or(default.backoff.base, |span| span.0),
            factor: raw.backoff.factor.unwrap_or(default.backoff.factor).max(1),
            max: raw.backoff.max.map_or(default.backoff.max, |span| span.0),
        };
        let retry = RetryPolicy {
            retries: raw.retries.unwrap_or(default.retries).min(RETRIES_MAX),
            backoff,
            crashes: raw.crashes.unwrap_or(default.crashes),
        };
        let limits = limits(&raw.limits)?;
        let group = raw.group.clone().unwrap_or_else(|| format!("group:{name}"));
        cofferdam_model::route::check_stream_name(&group)
            .map_err(|_| value("group", &group, "write letters, digits and . : _ - / only"))?;
        let manifest = Manifest {
            group,
            subscribed,
            ordered,
            route,
            instances,
            concurrency,
            retry,
            limits,
            config: raw.config,
            name,
            canonical,
        };
        Ok((manifest, sha256))
    }
}

fn limits(raw: &RawLimits) -> Result<Limits, ManifestError> {
    let default = Limits::default();
    let limits = Limits {
        memory_bytes: raw.memory.map_or(default.memory_bytes, |bytes| bytes.0),
        deadline: raw.deadline.map_or(default.deadline, |span| span.0),
        output_bytes: raw.output.map_or(default.output_bytes, |bytes| bytes.0),
        events: raw.events.unwrap_or(default.events),
        message_bytes: raw.message.map_or(default.message_bytes, |bytes| bytes.0),
        log_lines: raw.log_lines.unwrap_or(default.log_lines),
        log_bytes: raw.log.map_or(default.log_bytes, |bytes| bytes.0),
        host_calls: raw.host_calls.unwrap_or(default.host_calls),
        table_elements: raw.table_elements.unwrap_or(default.table_elements),
        random_bytes: raw.random.map_or(default.random_bytes, |bytes| bytes.0),
        events_per_second: raw.events_per_second,
        output_bytes_per_second: raw.output_per_second.map(|bytes| bytes.0),
    };
    if limits.memory_bytes < 64 << 10 {
        return Err(value("limits.memory", &limits.memory_bytes.to_string(), "one page of wasm memory is 64KiB"));
    }
    if limits.deadline < Duration::from_millis(1) {
        return Err(value("limits.deadline", &format!("{:?}", limits.deadline), "write at least \"1ms\""));
    }
    Ok(limits)
}

/// The limits of a delivery beside memory and deadline, by their keys in a manifest; `None` is no bound.
pub(crate) fn further_limits(limits: &Limits) -> [(&'static str, Option<u64>); 10] {
    // Taken apart, so that none is left out.
    let Limits {
        memory_bytes: _,
        deadline: _,
        output_bytes,
        events,
        log_lines,
        log_bytes,
        host_calls,
        table_elements,
        random_bytes,
        events_per_second,
        output_bytes_per_second,
        message_bytes,
    } = *limits;
    [
        ("output", Some(output_bytes)),
        ("events", Some(events.into())),
        ("message", Some(message_bytes)),
        ("log-lines", Some(log_lines.into())),
        ("log", Some(log_bytes)),
        ("host-calls", Some(host_calls)),
        ("table-elements", Some(table_elements)),
        ("random", Some(random_bytes)),
        ("events-per-second", events_per_second),
        ("output-per-second", output_bytes_per_second),
    ]
}

/// Which of them are bytes.
pub(crate) const LIMITS_IN_BYTES: [&str; 5] = ["output", "message", "log", "random", "output-per-second"];

fn subscribed(raw: &RawSubscription, common_start: Option<&str>) -> Result<Subscribed, ManifestError> {
    let table = match raw {
        RawSubscription::Stream(stream) => {
            return Ok(Subscribed { subscription: Subscription::plain(stream), start: start(common_start)? });
        }
        RawSubscription::Table(table) => table,
    };
    let codec = match table.codec.as_deref() {
        None | Some("envelope") => Codec::Envelope,
        Some("fields") => Codec::Fields,
        Some(text) => match text.strip_prefix("field:").filter(|name| !name.is_empty()) {
            Some(name) => Codec::Field(name.to_owned()),
            None => return Err(value("codec", text, "write \"envelope\", \"fields\" or \"field:<name>\"")),
        },
    };
    let pointers = table.key.iter().chain(table.rules.keys());
    for pointer in pointers {
        if !pointer.starts_with('/') {
            return Err(value("key or where", pointer, "write a JSON pointer, such as \"/src_ip\""));
        }
    }
    let rule = |raw: &RawRule| match raw {
        RawRule::OneOf(values) => WhereRule::OneOf(values.clone()),
        RawRule::Prefix(raw) => WhereRule::Prefix(raw.prefix.clone()),
        RawRule::Exists(raw) => WhereRule::Exists(raw.exists),
        RawRule::Equal(value) => WhereRule::OneOf(vec![value.clone()]),
    };
    let rules = table.rules.iter().map(|(pointer, raw)| (pointer.clone(), rule(raw))).collect();
    let subscription = Subscription { stream: table.stream.as_str().into(), codec, key: table.key.clone(), rules };
    Ok(Subscribed { subscription, start: start(table.start.as_deref().or(common_start))? })
}

fn start(text: Option<&str>) -> Result<StartRule, ManifestError> {
    Ok(match text {
        None => StartRule::Default,
        Some("new") => StartRule::New,
        Some("oldest") => StartRule::Oldest,
        Some(text) => {
            let wanted = "write \"new\", \"oldest\", an age such as \"-1h\", a time such as \"2026-11-24T08:00:00Z\", a day such as \
                          \"2026-11-24\", or an entry id such as \"1795418457352-0\" (seconds since 1970 with 000 behind them)";
            match crate::quantity::parse_when(text) {
                Ok(crate::quantity::When::Ago(span)) => StartRule::Ago(span),
                Ok(crate::quantity::When::Id(id)) => StartRule::After(id.before()),
                Ok(crate::quantity::When::At(ms)) => StartRule::After(EntryId { ms, seq: 0 }.before()),
                Err(_) => return Err(value("start", text, wanted)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Manifest::parse(text, "p").unwrap_err().to_string()
    }

    #[test]
    fn everything_but_the_subscription_has_a_default() {
        let (manifest, sha256) = Manifest::parse("subscribe = [\"stream:attacks\"]", "classify").unwrap();
        assert_eq!((manifest.name.as_str(), manifest.group.as_str()), ("classify", "group:classify"));
        assert_eq!((manifest.retry.retries, manifest.limits.deadline), (3, Duration::from_secs(1)));
        assert_eq!(sha256, None);
    }

    #[test]
    fn the_long_form_of_a_subscription_is_understood() {
        let text = r#"
            emit = ["stream:alerts"]
            [[subscribe]]
            stream = "suricata"
            codec = "field:eve"
            key = "/src_ip"
            start = "oldest"
            where = { "/event_type" = ["alert", "ssh"], "/src_ip" = { prefix = "10." }, "/x" = { exists = false }, "/n" = 5 }
        "#;
        let (manifest, _) = Manifest::parse(text, "p").unwrap();
        let sub = &manifest.subscribed[0];
        assert_eq!(sub.subscription.codec, Codec::Field("eve".into()));
        assert_eq!((sub.start, sub.subscription.rules.len()), (StartRule::Oldest, 4));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_its_mend() {
        assert!(error("subscribe = []").contains("subscribes to no stream"));
        assert!(error("subscribe = [\"a\"]\nretires = 3").contains("unknown field `retires`"));
        assert!(error("subscribe = [\"a\"]\n[limits]\nmemory = \"64 potatoes\"").contains("64MiB"));
        assert!(error("subscribe = [\"a\"]\norder = \"key\"").contains("key = \"/src_ip\""));
        let one_of_two = "order = \"key\"\n[[subscribe]]\nstream = \"a\"\nkey = \"/k\"\n[[subscribe]]\nstream = \"b\"";
        assert!(error(one_of_two).contains("that of \"b\" has none"));
        let ordered = "order = \"key\"\n[[subscribe]]\nstream = \"a\"\nkey = \"/k\"";
        assert!(Manifest::parse(ordered, "p").unwrap().0.ordered);
        assert!(error("subscribe = [\"a\"]\ninstances = \"old\"").contains("\"fresh\" or \"reuse\""));
        assert!(error("subscribe = [\"a\"]\nstart = \"soon\"").contains("-1h"));
        assert!(error("name = \"a/b\"\nsubscribe = [\"a\"]").contains("letters, digits"));
        let misspelt = "[[subscribe]]\nstream = \"a\"\nwhere = { \"/x\" = { prefx = \"1\" } }";
        assert!(error(misspelt).contains("prefix"), "a misspelt rule must not filter everything away");
    }

    #[test]
    fn what_is_wrong_in_a_subscription_is_told_with_its_own_line() {
        let table = |text: &str| error(&format!("[[subscribe]]\nstream = \"a\"\n{text}"));
        let misspelt = table("starts = \"oldest\"");
        assert!(
            misspelt.starts_with("line 3, column 1: unknown field `starts`, expected one of `stream`"),
            "{misspelt}"
        );
        let wrong = [
            (table("codec = 5"), "line 3, column 9"),
            (table("where = 5"), "line 3, column 9"),
            (table("where = { \"/x\" = { prefix = 5 } }"), "line 3"),
            (table("where = { \"/x\" = { exists = true, prefix = \"a\" } }"), "no rule of where"),
            (table("where = { \"/x\" = 2026-11-29 }"), "no rule of where"),
            (
                error("emit = []\nsubscribe = [5]"),
                "line 2, column 14: invalid type: integer `5`, expected a stream's name",
            ),
            (error("subscribe = [\"a\"]\nconcurrency = -1"), "\"auto\" or a number of threads"),
            (error("subscribe = [\"a\"]\n[limits]\nmemory = 1.5"), "line 3, column 10: invalid type: floating point"),
        ];
        for (told, wanted) in wrong {
            assert!(told.contains(wanted) && !told.contains("untagged"), "{told}");
        }
    }

    #[test]
    fn the_canonical_text_of_every_form_stays_what_it_was() {
        let text = r#"
            concurrency = 4
            [[subscribe]]
            stream = "suricata"
            where = { "/a" = ["x", 1, 2.5, true], "/b" = { prefix = "10." }, "/c" = { exists = false }, "/d" = -5, "/e" = 0.5, "/f" = true, "/g" = "y", "/h" = nan }
        "#;
        let canonical = Manifest::parse(text, "p").unwrap().0.canonical;
        let wanted = r#""subscribe":[{"stream":"suricata","codec":null,"key":null,"start":null,"where":{"/a":["x",1,2.5,true],"/b":{"prefix":"10."},"/c":{"exists":false},"/d":-5,"/e":0.5,"/f":true,"/g":"y","/h":null}}]"#;
        assert!(canonical.contains(wanted) && canonical.contains(r#""concurrency":4"#), "{canonical}");
        let again: RawManifest = serde_json::from_str(&canonical).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), canonical, "it is read as it was written");
        let plain = Manifest::parse("subscribe = [\"a\"]\nconcurrency = \"auto\"", "p").unwrap().0.canonical;
        assert!(plain.contains(r#""subscribe":["a"]"#) && plain.contains(r#""concurrency":"auto""#), "{plain}");
    }

    #[test]
    fn a_value_beyond_its_bounds_is_refused_when_written_and_cut_when_kept() {
        for (line, bound) in [
            ("retries = 1001", "retries = \"1001\" is not understood: write 0 to 1000"),
            ("crashes = 0", "write 1 to 1000"),
            ("concurrency = 257", "1 to 256"),
            ("[backoff]\nfactor = 0", "backoff.factor"),
            ("[backoff]\nmax = \"2d\"", "24h at most"),
        ] {
            let text = format!("subscribe = [\"a\"]\n{line}");
            let told = Manifest::written(&text, "p").unwrap_err().to_string();
            assert!(told.contains(bound), "{told}");
            let kept = Manifest::parse(&text, "p").unwrap().0;
            assert!(kept.retry.retries <= 1_000 && kept.concurrency.unwrap_or(1) <= 256, "{line}");
        }
        assert!(
            Manifest::written("subscribe = [\"a\"]\nretries = 1000\nconcurrency = 256\n[backoff]\nmax = \"24h\"", "p")
                .is_ok()
        );
    }

    #[test]
    fn of_a_file_that_cannot_be_read_the_place_is_told_and_no_line_is_quoted() {
        assert_eq!(error("subscribe = [\"a\"]\n\n  retires = 3").split_once(',').unwrap().0, "line 3");
        let secret = error("hunter2 and more of it");
        assert!(secret.starts_with("line 1, column ") && !secret.contains("hunter2"), "{secret}");
        let long = error(&format!("subscribe = [\"a\"]\nx = {}", "[".repeat(1 << 20)));
        assert!(long.len() < 1_000, "{} bytes", long.len());
        let forged = error("\"a\\nERROR forged\\u001b[2J\" = 1");
        assert!(!forged.contains('\n') && !forged.contains('\u{1b}') && forged.contains("unknown field"), "{forged}");
    }

    #[test]
    fn streams_are_counted_before_they_are_compared() {
        let streams = |count: usize| (0..count).map(|at| format!("\"s{at}\"")).collect::<Vec<_>>().join(",");
        assert!(Manifest::parse(&format!("subscribe = [{}]", streams(256)), "p").is_ok());
        assert!(
            error(&format!("subscribe = [{}]", streams(257))).contains("subscribe names 257 streams, more than 256")
        );
        assert!(error(&format!("subscribe = [\"a\"]\nemit = [{}]", streams(257))).contains("emit names 257 streams"));
    }

    #[test]
    fn the_sha256_of_the_wasm_is_not_part_of_what_the_digest_covers() {
        let plain = Manifest::parse("subscribe = [\"a\"]", "p").unwrap().0;
        let (sealed, sha256) = Manifest::parse("sha256 = \"00\"\nsubscribe = [\"a\"]", "p").unwrap();
        assert_eq!(plain.canonical, sealed.canonical);
        assert_eq!(sha256.as_deref(), Some("00"));
    }

    #[test]
    fn a_name_that_is_written_down_and_one_that_the_file_gives_make_the_same_version() {
        let by_file = Manifest::parse("subscribe = [\"a\"]", "p").unwrap().0;
        let written = Manifest::parse("name = \"p\"\nsubscribe = [\"a\"]", "other").unwrap().0;
        assert_eq!(by_file.canonical, written.canonical);
    }
}
