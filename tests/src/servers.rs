//! What the tests of storage and topology stand on: a Redis that dies and comes back where it was, a forwarder that hosts
//! keep when the server behind it changes, a producer that remembers what it was promised, and a picture of all streams at
//! one moment.
//!
//! Nothing here is a mock: the servers are real, and so are their deaths. What a machine lacks is said aloud by [`skipped`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cofferdam_model::EntryId;
use redis::streams::{StreamInfoGroupsReply, StreamInfoStreamReply, StreamPendingCountReply, StreamRangeReply};
use serde_json::Value;
use tempfile::TempDir;

use crate::checker::{Left, fails_at_first, is_poison, outputs_of, payload};
use crate::{Host, Place, comes_true, program, root, wait_until};

/// The lease that the tests' configuration gives.
pub const LEASE: Duration = Duration::from_secs(2);

/// Whether the long variants were asked for: `COFFERDAM_CHAOS=full`.
pub fn full() -> bool {
    std::env::var_os("COFFERDAM_CHAOS").is_some_and(|value| value == "full")
}

/// Says that a test has not been run here, and why.
pub fn skipped(why: &str) {
    // On standard error, and not by `eprintln`, which the test program would hide.
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {name}: {why}");
}

/// A library of tests/shims, compiled to be loaded into a server by `LD_PRELOAD`.
///
/// # Errors
/// Why it cannot be had on this machine.
pub fn shim(name: &str, into: &Path) -> Result<PathBuf, String> {
    let library = into.join(format!("{name}.so"));
    let source = root().join("tests/shims").join(format!("{name}.c"));
    let output = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .args(["-ldl", "-lpthread"])
        .output()
        .map_err(|error| format!("no C compiler: cc: {error}"))?;
    if output.status.success() {
        return Ok(library);
    }
    Err(format!("cc cannot compile {}: {}", source.display(), String::from_utf8_lossy(&output.stderr).trim()))
}

/// A Redis on a port of the loopback that can be killed and started again where it was.
pub struct Server {
    child: Option<Child>,
    /// Its port, which it keeps.
    pub port: u16,
    /// Where its files are.
    pub directory: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, PathBuf)>,
    /// Its directory, when it is its own.
    own: Option<TempDir>,
}

impl Server {
    /// One with a directory of its own, not started.
    pub fn new(arguments: &[&str]) -> Self {
        let own = tempfile::Builder::new().prefix("cf-").tempdir().expect("a temporary directory can be made");
        let mut server = Self::at(own.path(), arguments);
        server.own = Some(own);
        server
    }

    /// One in a directory, not started.
    pub fn at(directory: &Path, arguments: &[&str]) -> Self {
        Server {
            child: None,
            port: free_port(),
            directory: directory.to_owned(),
            arguments: arguments.iter().map(|argument| String::from(*argument)).collect(),
            environment: Vec::new(),
            own: None,
        }
    }

    /// The same with a library loaded into it, and what that library reads from the environment.
    #[must_use]
    pub fn with(mut self, library: &Path, environment: &[(&str, &Path)]) -> Self {
        self.environment.push((String::from("LD_PRELOAD"), library.to_owned()));
        self.environment.extend(environment.iter().map(|(name, path)| (String::from(*name), path.to_path_buf())));
        self
    }

    /// A server over a copy of the files of this one: what its disk says, without its being asked.
    pub fn copy(&self) -> Self {
        let copy = Server::new(&self.arguments.iter().map(String::as_str).collect::<Vec<_>>());
        copy_files(&self.directory, &copy.directory);
        copy
    }

    /// Starts it and waits until it has loaded its data.
    pub fn start(&mut self) {
        assert!(self.try_start(), "redis cannot be started: {}", self.log());
    }

    /// The same; false when it ends instead.
    pub fn try_start(&mut self) -> bool {
        assert!(self.child.is_none(), "it is running");
        let mut command = if self.arguments.first().is_some_and(|first| first == "--sentinel") {
            // A sentinel keeps its state in the file that it is started from.
            let mut command = Command::new("redis-server");
            command.arg(self.directory.join("sentinel.conf")).arg("--sentinel");
            command
        } else {
            let program = ["redis-server", "valkey-server"].into_iter().find(|name| crate::has(name));
            let mut command = Command::new(program.expect("no redis-server: make setup"));
            command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
            command.args(["--logfile", "redis.log", "--auto-aof-rewrite-percentage", "0"]).args(&self.arguments);
            command
        };
        let child = command
            .envs(self.environment.iter().map(|(name, path)| (name, path)))
            .current_dir(&self.directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis can be started");
        self.child = Some(child);
        wait_until("redis answers or ends", || self.answers() || !self.lives());
        if self.lives() {
            return true;
        }
        self.child = None;
        false
    }

    fn answers(&self) -> bool {
        self.try_connection().is_some_and(|mut it| redis::cmd("PING").query::<String>(&mut it).is_ok())
    }

    /// Whether it is running.
    pub fn lives(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Whether a library is really loaded into it: a loader may ignore one.
    pub fn has_loaded(&self, library: &Path) -> bool {
        let Some(child) = &self.child else { return false };
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap_or_default();
        maps.contains(&library.display().to_string())
    }

    /// Stops it as a machine that hangs does: connections stay, and nothing is answered.
    pub fn freeze(&self) {
        let child = self.child.as_ref().expect("it was started");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("it is there");
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn try_connection(&self) -> Option<redis::Connection> {
        connection(&self.url())
    }

    /// Asks it something that it must be able to answer, and that may be asked twice: a server that changes its role closes
    /// the connections of its clients.
    pub fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut answer = None;
        wait_until("the server answers", || {
            let Some(mut connection) = self.try_connection() else { return false };
            match command(words).query(&mut connection) {
                Ok(value) => answer = Some(value),
                Err(error) if error.is_io_error() => {}
                Err(error) => panic!("{words:?}: {error}"),
            }
            answer.is_some()
        });
        answer.expect("it was waited for")
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.directory.join("redis.log")).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(10).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the last lines of the log of the redis at {}:\n{}", self.port, self.log());
        }
        self.kill();
    }
}

/// A command of words.
pub fn command(words: &[&str]) -> redis::Cmd {
    let (name, arguments) = words.split_first().expect("a command has a name");
    let mut command = redis::cmd(name);
    command.arg(arguments);
    command
}

/// A connection that does not wait for ever; none when nobody is there.
pub fn connection(url: &str) -> Option<redis::Connection> {
    let client = redis::Client::open(url).expect("the url of a test");
    let connection = client.get_connection_with_timeout(Duration::from_secs(3)).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    Some(connection)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
    listener.local_addr().expect("it is bound").port()
}

fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a server's directory can be read").flatten() {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            fs::create_dir(&copy).expect("a temporary directory can be written");
            copy_files(&path, &copy);
        } else {
            fs::copy(&path, &copy).expect("a server's files can be copied");
        }
    }
}

/// An address that stays while the server behind it changes, as a virtual address or a name does after a failover.
pub struct Forwarder {
    /// Where it listens.
    pub port: u16,
    route: Arc<Route>,
}

struct Route {
    to: AtomicU16,
    /// Rises with every cut; the connections of an earlier one end.
    generation: AtomicU64,
    held: AtomicBool,
    ended: AtomicBool,
}

impl Forwarder {
    /// One in front of a port.
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
        let own = listener.local_addr().expect("it is bound").port();
        let route = Arc::new(Route {
            to: AtomicU16::new(port),
            generation: AtomicU64::new(0),
            held: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let shared = route.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                // A refused connection is closed at once, by its drop.
                let Ok(server) = TcpStream::connect(("127.0.0.1", shared.to.load(Ordering::Relaxed))) else { continue };
                let born = shared.generation.load(Ordering::Relaxed);
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone(), to.try_clone());
                    if let (Ok(from), Ok(to)) = (from, to) {
                        let route = shared.clone();
                        std::thread::spawn(move || pump(from, to, &route, born));
                    }
                }
            }
        });
        Forwarder { port: own, route }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Points it at another port, and ends what was connected.
    pub fn switch(&self, port: u16) {
        self.route.to.store(port, Ordering::Relaxed);
        self.route.held.store(false, Ordering::Relaxed);
        self.route.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// From now on nothing passes, and nobody is told: what is sent now is lost with the next switch.
    pub fn hold(&self) {
        self.route.held.store(true, Ordering::Relaxed);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.route.ended.store(true, Ordering::Relaxed);
        self.route.generation.fetch_add(1, Ordering::Relaxed);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, route: &Route, born: u64) {
    let _ = from.set_read_timeout(Some(Duration::from_millis(20)));
    let _ = to.set_nodelay(true);
    let mut bytes = vec![0; 64 << 10];
    while route.generation.load(Ordering::Relaxed) == born {
        if route.held.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(length) => {
                // Read before the hold and not yet passed on: it waits, and is lost with a cut.
                while route.held.load(Ordering::Relaxed) && route.generation.load(Ordering::Relaxed) == born {
                    std::thread::sleep(Duration::from_millis(5));
                }
                if route.generation.load(Ordering::Relaxed) != born || to.write_all(&bytes[..length]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// When a producer takes an entry for accepted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// When XADD answers.
    Reply,
    /// When a replica has it too: `WAIT 1`.
    Replica,
}

/// Entries that a producer sends in one go, and how often: some 200 in a second.
const SENT_AT_ONCE: u64 = 10;
const SENT_EVERY: Duration = Duration::from_millis(50);

/// A producer at work: it numbers its payloads, sends each one once, and remembers which were accepted.
pub struct Producer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Promised>,
}

/// What a producer was promised.
pub struct Promised {
    /// The accepted numbers, and when their acceptance was read.
    pub accepted: BTreeMap<u64, Instant>,
    /// How many were sent without an answer: they may be there or not.
    pub unknown: u64,
    /// How many were refused by an error, and the first error.
    pub refused: u64,
    /// The first error that Redis answered.
    pub error: Option<String>,
    /// The first number that was not sent.
    pub next: u64,
}

impl Producer {
    /// Starts to publish on `stream:in`, from a number on.
    pub fn start(url: &str, first: u64, promise: Promise) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, stopped) = (String::from(url), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut promised = Promised { accepted: BTreeMap::new(), unknown: 0, refused: 0, error: None, next: first };
            let mut link = None;
            while !stopped.load(Ordering::Relaxed) {
                if link.is_none() {
                    link = connection(&url);
                }
                if let Some(connection) = &mut link
                    && !send(connection, promise, &mut promised)
                {
                    link = None;
                }
                std::thread::sleep(SENT_EVERY);
            }
            promised
        });
        Producer { stop, thread }
    }

    /// Stops it.
    pub fn stop(self) -> Promised {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a producer does not panic")
    }
}

/// Sends the next few; false when the connection broke.
fn send(connection: &mut redis::Connection, promise: Promise, promised: &mut Promised) -> bool {
    let sent = promised.next..promised.next + SENT_AT_ONCE;
    promised.next = sent.end;
    let mut pipe = redis::pipe();
    for seq in sent.clone() {
        pipe.cmd("XADD").arg("stream:in").arg("*").arg("payload").arg(payload(seq)).arg("producer_id").arg("tests");
    }
    if promise == Promise::Replica {
        pipe.cmd("WAIT").arg(1).arg(1_000);
    }
    let Ok(mut replies) = pipe.ignore_errors().query::<Vec<redis::RedisResult<redis::Value>>>(connection) else {
        promised.unknown += SENT_AT_ONCE;
        return false;
    };
    let held = match promise {
        Promise::Reply => true,
        Promise::Replica => matches!(replies.pop(), Some(Ok(redis::Value::Int(1..)))),
    };
    for (seq, reply) in sent.zip(replies) {
        match reply {
            Ok(_) if held => {
                promised.accepted.insert(seq, Instant::now());
            }
            Ok(_) => promised.unknown += 1,
            Err(error) => {
                promised.refused += 1;
                promised.error.get_or_insert_with(|| error.to_string());
            }
        }
    }
    true
}

/// What a picture is taken with: one script, because at its memory limit Redis does not even queue a transaction.
const PICTURE: &str = "#!lua flags=no-writes,allow-oom
return {
  redis.call('XINFO', 'GROUPS', 'stream:in'),
  redis.call('XPENDING', 'stream:in', 'group:actor', '-', '+', 10000000),
  redis.call('XRANGE', 'stream:in', '-', '+'),
  redis.call('XRANGE', 'stream:out', '-', '+'),
  redis.call('XRANGE', 'stream:dead_letter', '-', '+'),
  redis.call('HGET', 'cofferdam:ledger:stream:in|group:actor', 'retried')
}";

/// All streams of the actor at one moment.
pub struct Picture {
    /// What stands in the input: ids and numbers.
    pub input: BTreeMap<EntryId, u64>,
    delivered: EntryId,
    pending: BTreeSet<EntryId>,
    outputs: BTreeMap<(u64, u64), usize>,
    dead: BTreeMap<u64, usize>,
    /// Attempts that were charged and parked.
    charged: u64,
}

impl Picture {
    /// Takes it.
    ///
    /// # Errors
    /// Why the server cannot say.
    pub fn try_of(url: &str) -> Result<Self, String> {
        let mut connection = connection(url).ok_or("nobody is there")?;
        let (groups, pending, input, outputs, dead, charged): (
            StreamInfoGroupsReply,
            StreamPendingCountReply,
            StreamRangeReply,
            StreamRangeReply,
            StreamRangeReply,
            Option<u64>,
        ) = redis::cmd("EVAL").arg(PICTURE).arg(0).query(&mut connection).map_err(|error| error.to_string())?;
        let id = |text: &str| text.parse::<EntryId>().expect("redis writes ids");
        let group = groups.groups.into_iter().find(|group| group.name == "group:actor").ok_or("no group")?;
        let mut picture = Picture {
            delivered: id(&group.last_delivered_id),
            pending: pending.ids.iter().map(|pending| id(&pending.id)).collect(),
            input: input.ids.iter().map(|entry| (id(&entry.id), number(entry, "payload", "seq"))).collect(),
            outputs: BTreeMap::new(),
            dead: BTreeMap::new(),
            charged: charged.unwrap_or(0),
        };
        for entry in &outputs.ids {
            let output = (number(entry, "payload", "seq"), number(entry, "payload", "index"));
            *picture.outputs.entry(output).or_default() += 1;
        }
        for entry in &dead.ids {
            *picture.dead.entry(number(entry, "orig:payload", "seq")).or_default() += 1;
        }
        Ok(picture)
    }

    /// Takes it.
    pub fn of(url: &str) -> Self {
        Self::try_of(url).unwrap_or_else(|error| panic!("no picture of {url}: {error}"))
    }

    /// Waits until everything is settled, and takes it then; or as it is when that does not come.
    pub fn at_rest(url: &str, patience: Duration) -> Self {
        comes_true(patience, || unsettled(url) == Some(0));
        Self::of(url)
    }

    /// How many outputs there are.
    pub fn outputs(&self) -> usize {
        self.outputs.values().sum()
    }

    /// How many entries the group holds or has not read.
    pub fn unsettled(&self) -> u64 {
        self.input.keys().filter(|id| !self.is_done(**id)).count() as u64
    }

    fn is_done(&self, id: EntryId) -> bool {
        id <= self.delivered && !self.pending.contains(&id)
    }

    /// The accepted numbers that are not in the input.
    pub fn missing(&self, accepted: &BTreeSet<u64>) -> BTreeSet<u64> {
        let there: BTreeSet<u64> = self.input.values().copied().collect();
        accepted.difference(&there).copied().collect()
    }

    /// What breaks the rule that an acknowledgement and its outputs are one: each input is not acknowledged and without
    /// effect, or acknowledged with all of it; and there is no effect without its input. True at every moment.
    pub fn torn(&self) -> Vec<String> {
        let mut torn = Vec::new();
        for (&id, &seq) in &self.input {
            let (found, dead) = (self.outputs_of(seq), self.dead.contains_key(&seq));
            let whole = found == outputs_of(seq) && dead == is_poison(seq);
            if self.is_done(id) && !whole {
                torn.push(format!("{seq} is acknowledged with {found} outputs, dead: {dead}"));
            }
            if !self.is_done(id) && (found > 0 || dead) {
                torn.push(format!("{seq} is not acknowledged, and has {found} outputs, dead: {dead}"));
            }
        }
        let there: BTreeSet<u64> = self.input.values().copied().collect();
        for seq in self.outputs.keys().map(|(seq, _)| seq).chain(self.dead.keys()) {
            if !there.contains(seq) {
                torn.push(format!("{seq} has effects and is not in the input"));
            }
        }
        torn
    }

    fn outputs_of(&self, seq: u64) -> usize {
        self.outputs.range((seq, 0)..(seq + 1, 0)).count()
    }

    /// The same judgement as [`crate::checker::check`], over what really stands in the input.
    pub fn left(&self) -> Left {
        let twice = |count: &&usize| **count > 1;
        let mut left = Left {
            doubled: self.outputs.values().filter(twice).count() + self.dead.values().filter(twice).count(),
            unsettled: self.unsettled(),
            ..Left::default()
        };
        for &seq in self.input.values() {
            left.note(outputs_of(seq), self.outputs_of(seq), self.dead.contains_key(&seq));
        }
        left
    }

    /// Attempts that were charged, and those that had to be: two for each poison (its third makes it a dead letter), one for
    /// each message that fails at first. More means that somebody paid for a fault that was not his.
    pub fn charges(&self) -> (u64, u64) {
        let due = |seq: u64| if is_poison(seq) { 2 } else { u64::from(fails_at_first(seq)) };
        (self.charged, self.input.values().map(|seq| due(*seq)).sum())
    }

    /// Fails the test unless everything ended as it must.
    pub fn assert_good(&self) {
        let (left, (charged, due)) = (self.left(), self.charges());
        println!(
            "{} entries, {} outputs, {} dead letters, {charged} attempts charged: {left:?}",
            self.input.len(),
            self.outputs(),
            self.dead.len()
        );
        assert_eq!(left, Left::default());
        assert_eq!(self.torn(), Vec::<String>::new());
        assert_eq!(charged, due, "attempts were charged that no message had to pay for, or some were forgotten");
    }
}

fn number(entry: &redis::streams::StreamId, field: &str, name: &str) -> u64 {
    let text: Option<String> = entry.get(field);
    let json: Option<Value> = text.as_deref().and_then(|text| serde_json::from_str(text).ok());
    json.and_then(|json| json[name].as_u64()).unwrap_or_else(|| panic!("no {name} in {entry:?}"))
}

/// How many entries the actor's group holds, and one more when there are some that it has not read; none when the server
/// cannot say. The lag that Redis tells is no help: a promoted replica does not know it.
pub fn unsettled(url: &str) -> Option<usize> {
    let mut connection = connection(url)?;
    let (stream, groups): (StreamInfoStreamReply, StreamInfoGroupsReply) = redis::pipe()
        .add_command(command(&["XINFO", "STREAM", "stream:in"]))
        .add_command(command(&["XINFO", "GROUPS", "stream:in"]))
        .query(&mut connection)
        .ok()?;
    let group = groups.groups.into_iter().find(|group| group.name == "group:actor")?;
    Some(group.pending + usize::from(group.last_delivered_id != stream.last_generated_id))
}

/// Two hosts with the actor at a url, ready to work.
pub fn two_hosts(place: &Place, url: &str) -> [Host; 2] {
    two_hosts_seen_at(place, url, url)
}

/// The same for a url that is not the server's own: where the server is told apart.
pub fn two_hosts_seen_at(place: &Place, url: &str, server: &str) -> [Host; 2] {
    place.put_actor("retries = 2\ncrashes = 3\n[backoff]\nbase = \"100ms\"\n");
    let start = |number: usize| {
        let data = place.directory.path().join(format!("data{number}"));
        Host::start(&program(), url, &data, &place.plugins(), &[])
    };
    let hosts = [start(1), start(2)];
    wait_until("the group is there and both hosts have said so", || {
        let Some(mut connection) = connection(server) else { return false };
        let hosts: Vec<String> = command(&["KEYS", "cofferdam:host:*"]).query(&mut connection).unwrap_or_default();
        hosts.len() == 2 && unsettled(server).is_some()
    });
    hosts
}
