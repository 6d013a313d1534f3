//! What the tests of storage and topology stand on: a Redis that dies and comes back where it was, and a forwarder that hosts
//! keep when the server behind it changes.
//!
//! Nothing here is a mock: the servers are real, and so are their deaths. What a machine lacks is said aloud by [`skipped`].

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::picture::unsettled;
use crate::{Host, Place, program, root, wait_until};

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
