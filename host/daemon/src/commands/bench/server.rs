//! A Redis of the benchmark's own, and the processes that it measures.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cofferdam_streams::Store;

use crate::exit::Failed;

/// A throw-away Redis on a unix socket; stopped when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) url: String,
    pub(crate) store: Store,
}

impl Server {
    pub(crate) async fn start(fsync: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("cofferdam-bench-").tempdir()?;
        let socket = directory.path().join("r.sock");
        let append = if fsync == "no" { "no" } else { "yes" };
        let child = Command::new(crate::redis_child::find_program()?)
            .args(["--port", "0", "--save", "", "--appendonly", append, "--maxmemory-policy", "noeviction"])
            .args(["--appendfsync", if fsync == "no" { "everysec" } else { fsync }])
            .arg("--unixsocket")
            .arg(&socket)
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start redis")?;
        let url = format!("redis+unix://{}", socket.display());
        let mut child = KillOnError(Some(child));
        for _ in 0..200 {
            if let Ok(store) = Store::connect(&url).await {
                let child = child.0.take().context("the server is there")?;
                return Ok(Server { child, directory, url, store });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!(Failed(String::from("the benchmark's redis did not come up")))
    }

    /// CPU time that the server has used.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_of(self.child.id())
    }
}

struct KillOnError(Option<Child>);

impl Drop for KillOnError {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that is measured; stopped when dropped.
pub(crate) struct Measuree(Child);

impl Measuree {
    /// Starts this program with other arguments.
    pub(crate) fn this_program(arguments: &[&str]) -> Result<Self> {
        let program: PathBuf = std::env::current_exe()?;
        Self::program(&program, arguments)
    }

    pub(crate) fn program(program: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("COFFERDAM_LOG", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Measuree(command.spawn().with_context(|| format!("cannot start {}", program.display()))?))
    }

    /// CPU time that it has used.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_of(self.0.id())
    }

    /// Whether it has ended.
    pub(crate) fn ended(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Measuree {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        for _ in 0..100 {
            if self.ended() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// User and system time of a process, from the kernel's own count in clock ticks of 10 ms.
fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name may hold spaces; it ends with the last parenthesis.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}
