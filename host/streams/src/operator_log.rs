//! The operator log: who did what to this system, and why. Only ever appended to.

use cofferdam_model::route::OPERATOR_LOG_STREAM;
use redis::Cmd;

use crate::{Store, StreamError};

/// An act, as the log keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Act<'a> {
    /// When, in ISO 8601.
    pub at: &'a str,
    /// `user@machine`, or the consumer name of a host that acted by itself.
    pub who: &'a str,
    /// What kind of act: `rollback`, `unpin`, `approve`, …
    pub verb: &'a str,
    /// In words.
    pub what: &'a str,
    /// The reason given; empty when none was.
    pub why: &'a str,
    /// The plugin it is about.
    pub plugin: &'a str,
    /// The version it is about.
    pub digest: &'a str,
}

impl Act<'_> {
    /// The command that appends it, to be sent with what it is about.
    pub fn command(&self) -> Cmd {
        let mut command = redis::cmd("XADD");
        command.arg(OPERATOR_LOG_STREAM).arg("*");
        for (name, value) in [
            ("at", self.at),
            ("who", self.who),
            ("verb", self.verb),
            ("what", self.what),
            ("why", self.why),
            ("plugin", self.plugin),
            ("digest", self.digest),
        ] {
            command.arg(name).arg(value);
        }
        command
    }
}

impl Store {
    /// Appends an act.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn log_act(&self, act: &Act<'_>) -> Result<(), StreamError> {
        let mut pipe = redis::pipe();
        pipe.add_command(act.command()).ignore();
        self.pipeline(&pipe).await
    }
}
