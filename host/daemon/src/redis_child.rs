//! The private Redis: a `redis-server` or `valkey-server` child on a unix socket under the data directory.
//!
//! Append-only with an fsync for every write: group commit makes that cheap, and a laptop that loses power loses nothing. The
//! data directory is locked, so two hosts never share it; a server that a killed host left behind is adopted, never doubled.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::exit::Environment;

/// The longest path that a unix socket may have on Linux is 107 bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// How long a server may load its append-only file before it is given up on: 60 s.
const ANSWER_TRIES: u32 = 1_200;
const ANSWER_PAUSE: Duration = Duration::from_millis(50);

/// A private Redis that this process started or adopted.
#[derive(Debug)]
pub(crate) struct RedisChild {
    url: String,
    pid: u32,
    child: Option<Child>,
    // Held for as long as this lives.
    _lock: File,
}

/// A host that ends early takes its server along; what is still running then writes its files and ends.
impl Drop for RedisChild {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        if matches!(child.try_wait(), Ok(None))
            && let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed())
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

impl RedisChild {
    /// Starts the private Redis of a data directory, or adopts the one that is running there.
    ///
    /// # Errors
    /// [`Environment`] when no server program is installed, when another host uses the directory, and when the server does
    /// not come up.
    pub(crate) async fn start(data: &Path) -> Result<Self> {
        let dir = data.join("redis");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        restrict(&dir)?;
        let lock = lock(data)?;
        let dir = dir.canonicalize()?;
        let socket = dir.join("redis.sock");
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            bail!(Environment(format!(
                "the path {} is too long for a socket: choose a shorter --data",
                socket.display()
            )));
        }
        let url = format!("redis+unix://{}", socket.display());
        let pid_file = dir.join("redis.pid");
        // Somebody who listens there is a server, however busy: a second one in this folder would destroy the first one's files.
        if UnixStream::connect(&socket).is_ok() {
            let pid: u32 =
                std::fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            for _ in 0..ANSWER_TRIES {
                if answers(&url).await {
                    tracing::info!(pid, "adopted the private redis that an earlier host left running");
                    return Ok(RedisChild { url, pid, child: None, _lock: lock });
                }
                tokio::time::sleep(ANSWER_PAUSE).await;
            }
            bail!(Environment(format!(
                "a redis (pid {pid}) holds {} and does not answer; wait until it has loaded its data, or stop it: kill {pid}",
                dir.display()
            )));
        }
        let program = find_program()?;
        let log = File::create(dir.join("redis.log"))?;
        let mut command = Command::new(&program);
        command.arg("-").current_dir(&dir).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        // Of its own process group: Ctrl-C is for the host, which stops the server after its last write.
        command.process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let stdin = child.stdin.take();
        let mut started = RedisChild { url, pid: child.id(), child: Some(child), _lock: lock };
        if let Some(mut stdin) = stdin {
            stdin.write_all(settings(&socket, &pid_file).as_bytes())?;
        }
        started.wait_until_ready(&dir).await?;
        Ok(started)
    }

    async fn wait_until_ready(&mut self, dir: &Path) -> Result<()> {
        // Loading a large append-only file takes a while; a server that exits has said why in its log.
        for _ in 0..ANSWER_TRIES {
            if answers(&self.url).await {
                return Ok(());
            }
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                let log = std::fs::read_to_string(dir.join("redis.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(3).collect();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join(" | ");
                bail!(Environment(format!("the private redis ended at once ({status}): {tail}")));
            }
            tokio::time::sleep(ANSWER_PAUSE).await;
        }
        bail!(Environment(format!(
            "the private redis did not answer within 60 s; its log is {}",
            dir.join("redis.log").display()
        )))
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Stops it, after everything is on disk.
    pub(crate) async fn stop(mut self) {
        if let Ok(client) = redis::Client::open(self.url.as_str())
            && let Ok(mut connection) = client.get_multiplexed_async_connection().await
        {
            let _: redis::RedisResult<()> = redis::cmd("SHUTDOWN").query_async(&mut connection).await;
        }
        for _ in 0..100 {
            let gone = match &mut self.child {
                Some(child) => matches!(child.try_wait(), Ok(Some(_))),
                // Not our child: whoever has to reap it may take his time, so the socket is asked and not the process.
                None => UnixStream::connect(self.url.trim_start_matches("redis+unix://")).is_err(),
            };
            if gone {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tracing::warn!(pid = self.pid, "the private redis did not stop within 5 s and was left running");
    }
}

fn restrict(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?)
}

/// Locks the data directory for this process.
pub(crate) fn lock(data: &Path) -> Result<File> {
    let path = data.join("lock");
    let file = File::options().create(true).truncate(false).write(true).read(true).open(&path)?;
    if file.try_lock().is_err() {
        bail!(Environment(format!(
            "another host is using the data directory {}; stop it, or give this one its own with --data DIR \
             (hosts that shall share work share a Redis: --redis URL)",
            data.display()
        )));
    }
    Ok(file)
}

async fn answers(url: &str) -> bool {
    let Ok(client) = redis::Client::open(url) else { return false };
    let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return false };
    redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
}

fn settings(socket: &Path, pid_file: &Path) -> String {
    let quoted = |path: &Path| format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""));
    format!(
        "port 0\nunixsocket {}\nunixsocketperm 700\npidfile {}\ndaemonize no\n\
         appendonly yes\nappendfsync always\nsave \"\"\nmaxmemory-policy noeviction\n\
         stream-node-max-entries 100\nstream-node-max-bytes 16384\nclient-output-buffer-limit normal 0 0 0\n",
        quoted(socket),
        quoted(pid_file)
    )
}

/// The server program on this machine.
pub(crate) fn find_program() -> Result<PathBuf> {
    let path = crate::config::environment("PATH").unwrap_or_default();
    for name in ["valkey-server", "redis-server"] {
        if let Some(found) = path.split(':').map(|dir| Path::new(dir).join(name)).find(|file| file.is_file()) {
            return Ok(found);
        }
    }
    bail!(Environment(format!(
        "neither redis-server nor valkey-server is installed. Install one: {}\n\
         or use a Redis of your own: cofferdam run --redis redis://127.0.0.1:6379",
        install_command()
    )))
}

/// The one command that installs a server on this system.
fn install_command() -> &'static str {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let is = |word: &str| {
        release.lines().any(|line| (line.starts_with("ID=") || line.starts_with("ID_LIKE=")) && line.contains(word))
    };
    if is("debian") || is("ubuntu") {
        "sudo apt-get install -y redis-server"
    } else if is("fedora") || is("rhel") {
        "sudo dnf install -y valkey"
    } else if is("alpine") {
        "sudo apk add valkey"
    } else if is("arch") {
        "sudo pacman -S --noconfirm valkey"
    } else if cfg!(target_os = "macos") {
        "brew install valkey"
    } else {
        "your system's package redis or valkey"
    }
}
