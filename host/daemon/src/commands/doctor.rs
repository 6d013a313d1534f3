//! `doctor`: this machine and its Redis, looked at one thing after another, each with what to type to mend it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use cofferdam_model::route::{DEAD_LETTER_STREAM, OPERATOR_LOG_STREAM};
use cofferdam_streams::{Format, HostReport, LaneKeys, Retention, SHARED_RECORDS, ServerFacts, Store, StreamError};
use indicatif::HumanCount;
use serde_json::json;

use super::streams::{KNOWN_STREAMS, host_streams};
use crate::cli::Common;
use crate::clock;
use crate::config::{Config, show_stream_settings};
use crate::escape::safe;
use crate::exit::Failed;
use crate::quantity::show_bytes;
use crate::redis_child::find_program;
use crate::run_file::RunFile;
use crate::screen::line;

/// Further apart than this, `-10m` and the times in dead letters mislead.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(2);
/// Open files that a host with many plugins and connections needs.
const FILES_WANTED: u64 = 4_096;
/// Part of `maxmemory` above which it is time to act.
const MEMORY_USED_MAX: f64 = 0.8;
/// The first kernel that can tell which pages a plugin has written, which makes fresh instances cheap.
const KERNEL_WANTED: (u32, u32) = (6, 7);

/// Checks this machine and its Redis, and says what to type to mend what is wrong.
///
/// Each line is ok, warn or fail. Warnings do not fail: the exit code is 1 only when something must be mended.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Ok,
    Warn,
    Fail,
}

impl Health {
    fn word(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Warn => "warn",
            Health::Fail => "FAIL",
        }
    }
}

struct Finding {
    health: Health,
    what: &'static str,
    detail: String,
    /// What to do; empty when nothing is to be done.
    mend: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, health: Health, what: &'static str, detail: impl Into<String>, mend: impl Into<String>) {
        self.0.push(Finding { health, what, detail: detail.into(), mend: mend.into() });
    }

    fn ok(&mut self, what: &'static str, detail: impl Into<String>) {
        self.add(Health::Ok, what, detail, "");
    }

    fn failures(&self) -> usize {
        self.0.iter().filter(|finding| finding.health == Health::Fail).count()
    }
}

pub(crate) async fn run(common: &Common, _args: Args) -> Result<()> {
    let config = super::load_config(common)?;
    let mut findings = Findings::default();
    kernel(&mut findings);
    open_files(&mut findings);
    data_dir(&mut findings, &config.data_dir);
    let host = RunFile::find(&config.data_dir);
    running_host(&mut findings, host.as_ref(), &config);
    let url = config.redis_url.clone().or_else(|| host.map(|host| host.redis));
    server_program(&mut findings, url.is_some());
    match url {
        Some(url) => redis(&mut findings, &url).await,
        None => findings.ok("redis", "none is named and no host runs here; cofferdam run starts a private one"),
    }
    report(common, &findings)?;
    match findings.failures() {
        0 => Ok(()),
        1 => bail!(Failed(String::from("1 thing must be mended"))),
        count => bail!(Failed(format!("{count} things must be mended"))),
    }
}

fn report(common: &Common, findings: &Findings) -> Result<()> {
    if common.json {
        let all: Vec<_> = findings
            .0
            .iter()
            .map(|finding| {
                json!({
                    "check": finding.what, "health": finding.health.word().to_lowercase(),
                    "detail": finding.detail, "mend": finding.mend,
                })
            })
            .collect();
        line(&serde_json::to_string_pretty(&json!({ "ok": findings.failures() == 0, "checks": all }))?);
        return Ok(());
    }
    for finding in &findings.0 {
        line(&format!("{:<4}  {:<18}  {}", finding.health.word(), finding.what, safe(&finding.detail)));
        // Each command on a line of its own, so that it can be copied.
        for mend in finding.mend.lines() {
            line(&format!("{:24}  mend: {}", "", safe(mend)));
        }
    }
    Ok(())
}

fn kernel(findings: &mut Findings) {
    let Ok(text) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else {
        findings.add(
            Health::Warn,
            "kernel",
            "not Linux: fresh instances are reset by writing pages, which is slower",
            "",
        );
        return;
    };
    let text = text.trim();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let found: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= KERNEL_WANTED {
        findings.ok("kernel", format!("{text}: fresh instances are reset by their dirty pages alone"));
    } else {
        let (major, minor) = KERNEL_WANTED;
        let detail =
            format!("{text}: works, and fresh instances are slower than from {major}.{minor} on (no PAGEMAP_SCAN)");
        findings.add(Health::Warn, "kernel", detail, "");
    }
}

fn open_files(findings: &mut Findings) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < FILES_WANTED => {
            let detail = format!("at most {limit}; many plugins and connections need more");
            findings.add(Health::Warn, "open files", detail, format!("ulimit -n {FILES_WANTED}"));
        }
        Some(limit) => findings.ok("open files", format!("at most {}", HumanCount(limit))),
        None => findings.ok("open files", "no limit"),
    }
}

fn data_dir(findings: &mut Findings, dir: &Path) {
    const WHAT: &str = "data directory";
    let shown = dir.display();
    let meta = match dir.metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return missing_data_dir(findings, dir),
        Err(error) => return findings.add(Health::Fail, WHAT, format!("{shown}: {error}"), "name another: --data DIR"),
    };
    let me = rustix::process::geteuid().as_raw();
    if !meta.is_dir() {
        findings.add(Health::Fail, WHAT, format!("{shown} is no directory"), "name another: --data DIR");
    } else if meta.uid() != me {
        findings.add(
            Health::Fail,
            WHAT,
            format!("{shown} belongs to another user (uid {})", meta.uid()),
            "name another: --data DIR",
        );
    } else if rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_err() {
        findings.add(Health::Fail, WHAT, format!("{shown} cannot be written"), format!("chmod u+rwx '{shown}'"));
    } else if meta.permissions().mode() & 0o022 != 0 {
        let detail = format!("{shown} can be written by others: they could change what runs");
        findings.add(Health::Fail, WHAT, detail, format!("chmod go-w '{shown}'"));
    } else if meta.permissions().mode() & 0o077 != 0 {
        findings.add(Health::Warn, WHAT, format!("{shown} can be read by others"), format!("chmod 700 '{shown}'"));
    } else {
        findings.ok(WHAT, format!("{shown} is writable and private"));
    }
}

fn missing_data_dir(findings: &mut Findings, dir: &Path) {
    let parent = dir.ancestors().skip(1).find(|parent| parent.is_dir());
    let writable = parent.is_some_and(|parent| rustix::fs::access(parent, rustix::fs::Access::WRITE_OK).is_ok());
    if writable {
        findings.ok("data directory", format!("{} is not there yet; it can be made", dir.display()));
    } else {
        let detail = format!("{} is not there and cannot be made", dir.display());
        findings.add(Health::Fail, "data directory", detail, "name another: --data DIR");
    }
}

fn running_host(findings: &mut Findings, host: Option<&RunFile>, config: &Config) {
    match host {
        Some(host) => {
            findings.ok("host", format!("runs here as process {}, plugins in {}", host.pid, host.plugins.display()))
        }
        None => findings.ok("host", format!("none runs here (no {})", config.data_dir.join("run.json").display())),
    }
}

fn server_program(findings: &mut Findings, has_redis: bool) {
    match find_program() {
        Ok(program) => findings.ok("server program", program.display().to_string()),
        Err(_) if has_redis => {
            findings.ok("server program", "none is installed, and none is needed with a Redis of your own")
        }
        Err(error) => {
            let text = error.to_string();
            let mend = text.split_once("Install one: ").map_or(text.as_str(), |(_, mend)| mend);
            findings.add(Health::Fail, "server program", "neither redis-server nor valkey-server is installed", mend);
        }
    }
}

async fn redis(findings: &mut Findings, url: &str) {
    let store = match Store::connect(url).await {
        Ok(store) => store,
        Err(error) => {
            let mend = match error {
                StreamError::Denied { .. } => "put user and password into the url: redis://user:password@host:6379",
                _ => "is it running, and is this the right address? redis-cli -u URL PING",
            };
            return findings.add(Health::Fail, "redis", error.to_string(), mend);
        }
    };
    findings.ok("redis", format!("answers at {}", store.address()));
    // One thing that may not be looked at must not hide the others.
    let outcome = server(findings, &store).await;
    note(findings, "server", outcome);
    let outcome = memory(findings, &store).await;
    note(findings, "memory", outcome);
    let outcome = clocks(findings, &store).await;
    note(findings, "clocks", outcome);
    permissions(findings, &store).await;
    let outcome = format(findings, &store).await;
    note(findings, "format", outcome);
    let outcome = key_types(findings, &store).await;
    note(findings, "key types", outcome);
    let outcome = letters(findings, &store).await;
    note(findings, "dead letters", outcome);
    let outcome = hosts(findings, &store).await;
    note(findings, "hosts", outcome);
}

fn note(findings: &mut Findings, what: &'static str, outcome: Result<(), StreamError>) {
    match outcome {
        Ok(()) => {}
        Err(StreamError::Denied { .. }) => {
            findings.add(Health::Fail, what, "this user may not look at it, and a host must", GRANTS);
        }
        Err(error) => findings.add(Health::Fail, what, error.to_string(), ""),
    }
}

async fn server(findings: &mut Findings, store: &Store) -> Result<(), StreamError> {
    let facts = store.facts().await?;
    let version = format!("{} {}", facts.server, facts.version);
    if facts.compatible < (7, 0) {
        findings.add(
            Health::Fail,
            "version",
            format!("{version} is too old"),
            "install Redis 7.0 or Valkey 7.2, or newer",
        );
    } else {
        findings.ok("version", version);
    }
    if facts.cluster {
        findings.add(
            Health::Fail,
            "cluster",
            "this is a Redis Cluster",
            "use a single master (with replicas or Sentinel)",
        );
    }
    if facts.role == "slave" {
        findings.add(
            Health::Fail,
            "role",
            "this is a replica: nothing can be written here",
            "name the master's address",
        );
    }
    durability(findings, &facts);
    Ok(())
}

fn durability(findings: &mut Findings, facts: &ServerFacts) {
    match facts.eviction.as_deref() {
        Some("noeviction") => findings.ok("eviction", "noeviction"),
        Some(policy) => {
            let detail =
                format!("maxmemory-policy is {policy}: Redis may throw a whole stream away, its pending entries too");
            findings.add(Health::Fail, "eviction", detail, "redis-cli CONFIG SET maxmemory-policy noeviction");
        }
        None => findings.add(Health::Warn, "eviction", "this user may not read CONFIG: make sure it is noeviction", ""),
    }
    let always = "redis-cli CONFIG SET appendfsync always";
    match (facts.append_only, facts.fsync.as_deref()) {
        (None, _) => findings.add(
            Health::Warn,
            "durability",
            "this user may not read CONFIG: make sure that appendonly is on",
            "",
        ),
        (Some(false), _) => {
            let detail = "appendonly is off: a restart loses everything since the last snapshot";
            findings.add(Health::Warn, "durability", detail, format!("redis-cli CONFIG SET appendonly yes\n{always}"));
        }
        (Some(true), Some("always")) => findings.ok("durability", "append-only, with an fsync for every write"),
        (Some(true), fsync) => {
            let detail =
                format!("appendfsync is {}: a power cut can lose the last second or two", fsync.unwrap_or("unknown"));
            findings.add(Health::Warn, "durability", detail, always);
        }
    }
}

async fn memory(findings: &mut Findings, store: &Store) -> Result<(), StreamError> {
    let info: String = store.query(redis::cmd("INFO").arg("memory")).await?;
    let of = |name: &str| -> Option<u64> {
        info.lines().find_map(|text| text.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
    };
    let (used, most) = (of("used_memory").unwrap_or(0), of("maxmemory").unwrap_or(0));
    if most == 0 {
        let detail = format!("{} used, no maxmemory: Redis grows until the machine has no more", show_bytes(used));
        findings.ok("memory", detail);
    } else if used as f64 > most as f64 * MEMORY_USED_MAX {
        let detail = format!(
            "{} of {} used: at the limit nothing can be published or committed",
            show_bytes(used),
            show_bytes(most)
        );
        let mend =
            format!("redis-cli CONFIG SET maxmemory {}\ncofferdam streams --all   # what takes the room", most * 2);
        findings.add(Health::Warn, "memory", detail, mend);
    } else {
        findings.ok("memory", format!("{} of {} used", show_bytes(used), show_bytes(most)));
    }
    Ok(())
}

async fn clocks(findings: &mut Findings, store: &Store) -> Result<(), StreamError> {
    let before = clock::now_ms();
    let (seconds, micros): (u64, u64) = store.query(&redis::cmd("TIME")).await?;
    // Half-way between asking and the answer.
    let here = before.midpoint(clock::now_ms());
    let there = seconds * 1_000 + micros / 1_000;
    let apart = Duration::from_millis(here.abs_diff(there));
    if apart > CLOCKS_APART_MAX {
        let way = if there > here { "ahead of" } else { "behind" };
        let detail =
            format!("Redis is {apart:?} {way} this machine: times in dead letters and -10m will be off by that");
        findings.add(Health::Warn, "clocks", detail, "timedatectl set-ntp true   # on both machines");
    } else {
        findings.ok("clocks", format!("{apart:?} apart"));
    }
    Ok(())
}

/// What a host's user needs, in groups; each other stream that plugins read or write needs its pattern too.
const GRANTS: &str = "redis-cli ACL SETUSER NAME +@stream +@hash +@string +@scripting +@transaction +@connection +scan +type +del \
                      +exists +pexpire +time +info +config|get +memory|usage +acl|whoami +acl|dryrun '~stream:*' '~cofferdam:*'";

/// Commands that a host sends, each with a key or a channel that it would name.
const NEEDED: &[&[&str]] = &[
    &["XADD", "stream:attacks", "*", "a", "b"],
    &["XREADGROUP", "GROUP", "g", "c", "STREAMS", "stream:attacks", ">"],
    &["XREAD", "COUNT", "1", "STREAMS", "stream:attacks", "0"],
    &["XACK", "stream:attacks", "g", "0-1"],
    &["XCLAIM", "stream:attacks", "g", "c", "0", "0-1"],
    &["XPENDING", "stream:attacks", "g"],
    &["XRANGE", "stream:attacks", "-", "+"],
    &["XREVRANGE", "stream:attacks", "+", "-"],
    &["XDEL", DEAD_LETTER_STREAM, "0-1"],
    &["XLEN", "stream:attacks"],
    &["XTRIM", "stream:attacks", "MINID", "0"],
    &["XADD", DEAD_LETTER_STREAM, "*", "a", "b"],
    &["XADD", OPERATOR_LOG_STREAM, "*", "a", "b"],
    &["XADD", "cofferdam:redrive:g", "*", "a", "b"],
    &["XGROUP", "CREATE", "stream:attacks", "g", "0", "MKSTREAM"],
    &["XGROUP", "DELCONSUMER", "stream:attacks", "g", "c"],
    &["XINFO", "STREAM", "stream:attacks"],
    &["XINFO", "GROUPS", "stream:attacks"],
    &["XINFO", "CONSUMERS", "stream:attacks", "g"],
    &["HLEN", "cofferdam:park:x"],
    &["HSCAN", "cofferdam:park:x", "0"],
    &["HSET", "cofferdam:park:x", "a", "b"],
    &["HSETNX", "cofferdam:ledger:x", "a", "b"],
    &["HINCRBY", "cofferdam:ledger:x", "a", "1"],
    &["HGET", "cofferdam:park:x", "a"],
    &["HMGET", "cofferdam:ledger:x", "a", "b"],
    &["HGETALL", "cofferdam:ledger:x"],
    &["HDEL", "cofferdam:park:x", "a"],
    &["SET", "cofferdam:host:x", "a"],
    &["GET", "cofferdam:format"],
    &["DEL", "cofferdam:host:x"],
    &["PEXPIRE", "cofferdam:lock:trim", "1"],
    &["SETNX", "cofferdam:format", "1"],
    &["EXISTS", "cofferdam:park:x"],
    &["TYPE", "stream:attacks"],
    &["EVALSHA", "x", "1", "stream:attacks"],
    &["SCRIPT", "LOAD", "return 1"],
    &["SCAN", "0"],
    &["TIME"],
    &["INFO"],
    &["PING"],
    &["MULTI"],
    &["EXEC"],
];

/// Commands that are granted by their second word, because of a further one nobody here has need.
const CONTAINERS: &[&str] = &["SCRIPT", "XGROUP", "XINFO"];

/// The name by which an ACL grants a command.
fn granted_by(words: &[&str]) -> String {
    let named = if words.first().is_some_and(|first| CONTAINERS.contains(first)) { 2 } else { 1 };
    words.iter().take(named).map(|word| word.to_lowercase()).collect::<Vec<_>>().join("|")
}

async fn permissions(findings: &mut Findings, store: &Store) {
    const WHAT: &str = "permissions";
    let user: String = match store.query(redis::cmd("ACL").arg("WHOAMI")).await {
        Ok(user) => user,
        Err(_) => return findings.add(Health::Warn, WHAT, "this user may not ask what it may do (ACL WHOAMI)", ""),
    };
    let (mut refused, mut keys) = (BTreeSet::<String>::new(), BTreeSet::<String>::new());
    for needed in NEEDED {
        let mut command = redis::cmd("ACL");
        command.arg("DRYRUN").arg(&user).arg(*needed);
        match store.query::<String>(&command).await {
            Ok(answer) if answer == "OK" => {}
            Ok(answer) => {
                // Which of a command's words is its key does not matter to the mend: it names all patterns.
                if answer.contains("key") {
                    keys.extend(needed.get(1).map(|key| (*key).to_owned()));
                } else {
                    refused.insert(granted_by(needed));
                }
            }
            // Another server may not know DRYRUN, or this user may not use it: what is refused shows itself at work.
            Err(_) => {
                let detail = format!("user {user:?} may not ask in advance (ACL DRYRUN)");
                return findings.add(Health::Warn, WHAT, detail, "");
            }
        }
    }
    if refused.is_empty() && keys.is_empty() {
        return findings.ok(WHAT, format!("user {user:?} may do all that is needed"));
    }
    let lacking: Vec<String> = refused.iter().chain(&keys).cloned().collect();
    let detail = format!("user {user:?} may not use: {}", lacking.join(", "));
    let grants: Vec<String> = refused.iter().map(|command| format!("+{command}")).collect();
    let mend = format!("redis-cli ACL SETUSER {user} {} '~stream:*' '~cofferdam:*'", grants.join(" "));
    findings.add(Health::Fail, WHAT, detail, mend);
}

async fn format(findings: &mut Findings, store: &Store) -> Result<(), StreamError> {
    // Only looked at: a doctor leaves no mark.
    let found: Option<String> = store.query(redis::cmd("GET").arg("cofferdam:format")).await?;
    match found {
        None => findings.ok("format", "no host has used this Redis yet"),
        Some(found) => match Format::own().check(&found) {
            Ok(()) => findings.ok("format", found),
            Err(StreamError::Unsuitable { problem, mend }) => findings.add(Health::Fail, "format", problem, mend),
            Err(error) => return Err(error),
        },
    }
    Ok(())
}

async fn key_types(findings: &mut Findings, store: &Store) -> Result<(), StreamError> {
    let mut names: BTreeSet<String> = KNOWN_STREAMS.iter().map(|name| (*name).to_owned()).collect();
    let lanes = store.lanes().await?;
    names.extend(lanes.iter().map(|(stream, _)| stream.clone()));
    names.extend(host_streams(store).await?);
    let mut wrong = 0;
    let of_lanes = lanes.iter().flat_map(|(stream, group)| LaneKeys::new(stream, group).records().map(str::to_owned));
    for record in of_lanes.chain(SHARED_RECORDS.map(str::to_owned)) {
        let kind = store.key_type(&record).await?;
        if kind != "hash" && kind != "none" {
            wrong += 1;
            let detail =
                format!("{record} is a {kind}, and hosts keep a hash there: they can do nothing that needs it");
            // Under a name of ours it would be taken for the record of another group.
            findings.add(Health::Fail, "key types", detail, format!("redis-cli RENAME '{record}' 'old:{record}'"));
        }
    }
    for name in &names {
        let kind = store.key_type(name).await?;
        if kind != "stream" && kind != "none" {
            wrong += 1;
            let detail = format!("{name} is a {kind}: nothing can be read from it or written to it");
            findings.add(Health::Fail, "key types", detail, format!("redis-cli RENAME {name} {name}:old"));
        }
    }
    if wrong == 0 {
        findings.ok(
            "key types",
            format!("none of {} stream names is taken by something else, and every record is a hash", names.len()),
        );
    }
    Ok(())
}

async fn letters(findings: &mut Findings, store: &Store) -> Result<(), StreamError> {
    // A key of another type is reported with the other key types.
    let facts = store.stream_facts(DEAD_LETTER_STREAM).await?;
    match facts.map_or(0, |facts| facts.length) {
        0 => findings.ok("dead letters", "none"),
        count => {
            let detail = format!("{} wait for somebody to look at them", HumanCount(count));
            findings.add(Health::Warn, "dead letters", detail, "cofferdam dlq list");
        }
    }
    Ok(())
}

async fn hosts(findings: &mut Findings, store: &Store) -> Result<(), StreamError> {
    let hosts = store.hosts().await?;
    let own = env!("CARGO_PKG_VERSION");
    let versions: BTreeSet<&str> = hosts.iter().map(|host| host.version.as_str()).collect();
    let names: Vec<String> = hosts.iter().map(|host| format!("{} ({})", host.consumer, host.version)).collect();
    if hosts.is_empty() {
        let lanes = store.lanes().await?;
        if lanes.is_empty() {
            findings.ok("hosts", "none alive, and nothing waits for one");
        } else {
            findings.add(Health::Warn, "hosts", "none alive: nothing is handled at the moment", "cofferdam run");
        }
    } else if versions.len() > 1 || !versions.contains(own) {
        let detail = format!("{}; this program is {own}", names.join(", "));
        findings.add(
            Health::Warn,
            "hosts",
            detail,
            "bring all to one version; during an upgrade this is as it should be",
        );
    } else {
        findings.ok("hosts", names.join(", "));
    }
    let who: BTreeSet<&str> = hosts.iter().filter_map(|host| host.consumer.split('/').next()).collect();
    if who.len() < hosts.len() {
        let detail = "two hosts run under one machine's name: more than one on a machine, or two machines of one name";
        findings.add(Health::Warn, "host names", detail, "");
    }
    settings(findings, &hosts);
    Ok(())
}

/// Settings that all hosts must have alike, because they share what these are about.
fn settings(findings: &mut Findings, hosts: &[HostReport]) {
    const WHAT: &str = "host settings";
    // Those of earlier versions do not say.
    let hosts: Vec<&HostReport> = hosts.iter().filter(|host| host.lease_ms > 0).collect();
    let mut differ = false;
    let lease =
        |host: &HostReport| format!("lease = {}", humantime::format_duration(Duration::from_millis(host.lease_ms)));
    if let Some(detail) = difference(&hosts, lease) {
        differ = true;
        let detail = format!("{detail}: the shorter one takes over what others are still at work on");
        findings.add(
            Health::Warn,
            WHAT,
            detail,
            "give all hosts the same [delivery] lease, and restart those you change",
        );
    }
    let usual = show_stream_settings(&Retention::default(), None);
    let streams: BTreeSet<&String> = hosts.iter().flat_map(|host| host.streams.keys()).collect();
    for stream in streams {
        let of = |host: &HostReport| host.streams.get(stream).unwrap_or(&usual).clone();
        if let Some(detail) = difference(&hosts, of) {
            differ = true;
            let detail = format!("{stream}: {detail}: whichever of them trims goes by its own");
            let mend = format!("give all hosts the same [streams.\"{stream}\"], and restart those you change");
            findings.add(Health::Warn, WHAT, detail, mend);
        }
    }
    if hosts.len() > 1 && !differ {
        findings.ok(WHAT, "all have the same lease and the same settings of streams");
    }
}

/// Which hosts have which setting; `None` when all have the same.
fn difference(hosts: &[&HostReport], setting: impl Fn(&HostReport) -> String) -> Option<String> {
    let mut by_setting: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for host in hosts {
        by_setting.entry(setting(host)).or_default().push(&host.consumer);
    }
    let texts: Vec<String> =
        by_setting.iter().map(|(setting, hosts)| format!("{setting} on {}", hosts.join(", "))).collect();
    (texts.len() > 1).then(|| texts.join("; "))
}
