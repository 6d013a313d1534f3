//! The harness of the end-to-end tests: a real Redis, real host processes, and waiting for conditions.
//!
//! Every server listens on a unix socket in a temporary directory and is stopped by its own process id.

/// What a run under fire must leave behind.
pub mod checker;
/// Guests from text, hostile ones among them.
pub mod guests;
/// What stands in the actor's streams at one moment.
pub mod picture;
/// A producer that remembers what it was promised.
pub mod producer;
/// A bad network between hosts and a Redis.
pub mod proxy;
/// Servers that die and come back, and who talks to them.
pub mod servers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cofferdam_streams::Store;
use tempfile::TempDir;

/// The longest that a test waits for a condition before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the tests stand in the source tree")
}

fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a program");
    // target/release/deps/all-…
    exe.ancestors().nth(2).expect("a test program stands in target/<profile>/deps").to_owned()
}

/// The program as users have it.
pub fn program() -> PathBuf {
    built("cofferdam")
}

/// The program with the bugs that tests must catch built in, to be chosen by `COFFERDAM_MUTANT`.
pub fn program_with_mutants() -> PathBuf {
    built("cofferdam-mutants")
}

fn built(name: &str) -> PathBuf {
    let path = target().join(name);
    assert!(path.is_file(), "{} is not built; run the tests with: make test", path.display());
    path
}

/// A plugin as plugins/build.sh has built it, by the path of its wasm below plugins/dist.
pub fn guest(name: &str) -> Vec<u8> {
    let path = root().join("plugins/dist").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run plugins/build.sh", path.display()))
}

/// A private Redis.
pub struct Redis {
    child: Child,
    directory: TempDir,
    arguments: Vec<String>,
}

impl Redis {
    /// Starts one without persistence.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with further arguments.
    pub fn start_with(arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("cf-").tempdir().expect("a temporary directory can be made");
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let redis = Redis { child: serve(&directory, &arguments), directory, arguments };
        redis.wait();
        redis
    }

    /// Kills it as a crash would, and starts it again on what it has left, at the same place.
    pub fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = serve(&self.directory, &self.arguments);
        self.wait();
    }

    fn wait(&self) {
        wait_until("redis answers", || self.cli(&["PING"]) == "PONG");
    }

    /// The path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("r.sock")
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// What redis-cli says to a command.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output =
            Command::new("redis-cli").arg("-s").arg(self.socket()).args(arguments).output().expect("redis-cli runs");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// A number that redis-cli says; 0 for anything else.
    pub fn number(&self, arguments: &[&str]) -> u64 {
        self.cli(arguments).parse().unwrap_or(0)
    }

    /// The store, as the host uses it.
    pub async fn store(&self) -> Store {
        Store::connect(&self.url()).await.expect("the test's redis answers")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(directory: &TempDir, arguments: &[String]) -> Child {
    let program =
        ["redis-server", "valkey-server"].into_iter().find(|name| has(name)).expect("no redis-server: make setup");
    Command::new(program)
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
        .arg(directory.path().join("r.sock"))
        .args(arguments)
        .current_dir(directory.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis can be started")
}

fn has(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Waits for a condition, and fails the test when it does not come true.
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(comes_true(PATIENCE, condition), "waited in vain until {what}");
}

/// Whether a condition comes true in time.
pub fn comes_true(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    condition()
}

/// A folder of plugins and of data, and the hosts that work there.
pub struct Place {
    /// Everything of the test.
    pub directory: TempDir,
}

impl Place {
    /// A new one.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("cf-").tempdir().expect("a temporary directory can be made");
        fs::create_dir(directory.path().join("plugins")).expect("it is new");
        Place { directory }
    }

    /// The watched folder.
    pub fn plugins(&self) -> PathBuf {
        self.directory.path().join("plugins")
    }

    /// Puts a plugin into the watched folder, as a producer of plugins would by hand, with a manifest that vouches for it.
    pub fn put(&self, name: &str, wasm: &[u8], manifest: &str) {
        let sha256 = cofferdam_sandbox::Digest::of(wasm);
        let wasm_file = self.plugins().join(format!(".{name}.wasm"));
        fs::write(&wasm_file, wasm).expect("the folder can be written");
        fs::rename(wasm_file, self.plugins().join(format!("{name}.wasm"))).expect("a rename in one folder");
        let manifest_file = self.plugins().join(format!(".{name}.toml"));
        fs::write(&manifest_file, format!("sha256 = \"{sha256}\"\n{manifest}")).expect("the folder can be written");
        fs::rename(manifest_file, self.plugins().join(format!("{name}.toml"))).expect("a rename in one folder");
    }

    /// Puts the actor, which does what each payload says.
    pub fn put_actor(&self, more: &str) {
        let manifest = format!(
            "subscribe = [\"stream:in\"]\nemit = [\"stream:out\", \"stream:wrong_type\"]\nstart = \"oldest\"\n{more}"
        );
        self.put("actor", &guest("test/actor.wasm"), &manifest);
    }

    /// Starts a host here. `number` tells hosts of one place apart.
    pub fn host(&self, redis: &Redis, number: usize) -> Host {
        Host::start(
            &program(),
            &redis.url(),
            &self.directory.path().join(format!("data{number}")),
            &self.plugins(),
            &[],
        )
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

/// A host process.
pub struct Host {
    child: Child,
    /// Its data directory.
    pub data: PathBuf,
    log: PathBuf,
}

/// A configuration for tests: leases run out soon, and no output is trimmed before it has been counted.
pub const QUICK: &str = "[delivery]\nlease = \"2s\"\ngrace = \"5s\"\n[streams.\"stream:out\"]\nkeep = 10000000\n[streams.\"stream:in\"]\nkeep = 10000000\n";

impl Host {
    /// Starts `program run`.
    pub fn start(program: &Path, redis: &str, data: &Path, plugins: &Path, environment: &[(&str, &str)]) -> Self {
        fs::create_dir_all(data).expect("a temporary directory can be written");
        let config = data.join("cofferdam.toml");
        fs::write(&config, QUICK).expect("a temporary directory can be written");
        let log = data.join("log");
        let file =
            fs::OpenOptions::new().create(true).append(true).open(&log).expect("a temporary directory can be written");
        let mut command = Command::new(program);
        command.arg("run").arg("--redis").arg(redis).arg("--data").arg(data).arg("--plugins").arg(plugins);
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        command.envs(environment.iter().copied()).env_remove("COFFERDAM_LOG");
        Host { child: command.spawn().expect("the host can be started"), data: data.to_owned(), log }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).expect("a process id is positive");
        rustix::process::kill_process(pid, signal).expect("the host is there");
    }

    /// Kills it as the kernel does when memory runs out.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it as a service manager does; how long it took.
    pub fn stop(self) -> Duration {
        self.stop_by(rustix::process::Signal::TERM)
    }

    /// Stops it gracefully with another signal.
    pub fn stop_by(mut self, signal: rustix::process::Signal) -> Duration {
        let began = Instant::now();
        self.signal(signal);
        let mut ended = None;
        wait_until("the host has stopped", || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
        });
        assert!(ended.is_some_and(|status| status.success()), "it did not stop by itself: {ended:?}");
        began.elapsed()
    }

    /// Whether it is running.
    pub fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            // What plugins say in a test is known, and would leave no room for what the host has to say.
            let tail: Vec<&str> = log.lines().rev().filter(|line| !line.contains(" plugin: ")).take(25).collect();
            eprintln!(
                "the last lines of {}:\n{}",
                self.log.display(),
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Approves what waits of a plugin, as soon as a host has reported that it does.
pub fn approve(host: &Host, redis: &Redis, plugin: &str, reason: &str) -> Output {
    let (data, url) = (host.data.to_string_lossy().into_owned(), redis.url());
    let mut done = None;
    wait_until("something waits, and is approved", || {
        let ran = cofferdam(&["approve", plugin, "--data", &data, "--redis", &url, "--reason", reason]);
        done = Some(ran).filter(|ran| ran.status.success());
        done.is_some()
    });
    done.expect("it was just there")
}

/// Runs the program with arguments to its end.
pub fn cofferdam(arguments: &[&str]) -> Output {
    cofferdam_in(Path::new("."), arguments)
}

/// The same in a directory.
pub fn cofferdam_in(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(program())
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .env_remove("COFFERDAM_LOG")
        .env("XDG_CONFIG_HOME", directory)
        .env("XDG_STATE_HOME", directory)
        .output()
        .expect("the program runs")
}

/// What a program wrote to standard error.
pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Publishes payloads in the envelope, through redis-cli's mass insertion.
pub fn publish(redis: &Redis, stream: &str, payloads: impl Iterator<Item = String>) {
    use std::io::Write;
    let mut bytes = Vec::new();
    for payload in payloads {
        let arguments = ["XADD", stream, "*", "payload", &payload, "priority", "2", "producer_id", "tests"];
        let _ = write!(bytes, "*{}\r\n", arguments.len());
        for argument in arguments {
            let _ = write!(bytes, "${}\r\n{argument}\r\n", argument.len());
        }
    }
    let mut child = Command::new("redis-cli")
        .arg("-s")
        .arg(redis.socket())
        .arg("--pipe")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-cli runs");
    child.stdin.take().expect("it is piped").write_all(&bytes).expect("redis-cli reads");
    assert!(child.wait().expect("redis-cli ends").success());
}
