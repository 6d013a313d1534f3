//! How a verb finds the running host: `<data>/run.json`, written when a host is ready and taken away when it leaves.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What a running host tells the verbs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunFile {
    /// Its process.
    pub(crate) pid: u32,
    /// Its consumer name: host and boot.
    pub(crate) consumer: String,
    /// Its Redis. May hold a password: the file is the user's alone.
    pub(crate) redis: String,
    /// Its watched folder.
    pub(crate) plugins: PathBuf,
    /// Since when, in milliseconds since 1970.
    pub(crate) started_ms: u64,
}

impl RunFile {
    fn path(data: &Path) -> PathBuf {
        data.join("run.json")
    }

    /// Writes the file, readable by the user alone, in one step.
    pub(crate) fn write(&self, data: &Path) -> Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let text = serde_json::to_string_pretty(self)?;
        let temporary = data.join(format!(".run.json.{}", self.pid));
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        std::fs::rename(&temporary, Self::path(data))
            .with_context(|| format!("cannot write {}", Self::path(data).display()))
    }

    /// The file of a host that is alive; `None` when there is none, or its process is gone.
    pub(crate) fn find(data: &Path) -> Option<RunFile> {
        let found: RunFile = serde_json::from_str(&std::fs::read_to_string(Self::path(data)).ok()?).ok()?;
        process_lives(found.pid).then_some(found)
    }

    /// Takes the file away.
    pub(crate) fn remove(data: &Path) {
        let _ = std::fs::remove_file(Self::path(data));
    }
}

/// Whether a process is there.
pub(crate) fn process_lives(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}
