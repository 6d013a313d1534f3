//! Approvals: which versions of a plugin may ask for more than those before, and what the plugin has been allowed so far.

use crate::keys::APPROVALS_KEY;
use crate::operator_log::Act;
use crate::{Store, StreamError};

/// What is known of a plugin's approvals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approvals {
    /// What its versions have been allowed so far, as the host wrote it; `None` before its first.
    pub allowed: Option<String>,
    /// Whether the version that was asked about is approved by name.
    pub approved: bool,
}

impl Store {
    /// What is known of a plugin's approvals, and whether this version is among them.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn approvals(&self, plugin: &str, digest: &str) -> Result<Approvals, StreamError> {
        let mut command = redis::cmd("HMGET");
        command.arg(APPROVALS_KEY).arg(plugin).arg(field(plugin, digest));
        let (allowed, approved): (Option<String>, Option<String>) = self.query(&command).await?;
        Ok(Approvals { allowed, approved: approved.is_some() })
    }

    /// Notes what a plugin is allowed from now on: a version that asks for no more needs no approval.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn allow(&self, plugin: &str, allowed: &str) -> Result<(), StreamError> {
        self.query(redis::cmd("HSET").arg(APPROVALS_KEY).arg(plugin).arg(allowed)).await
    }

    /// Approves a version, and writes the act down: both or neither.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn approve(&self, act: &Act<'_>) -> Result<(), StreamError> {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("HSET").arg(APPROVALS_KEY).arg(field(act.plugin, act.digest)).arg(act.who).ignore();
        pipe.add_command(act.command()).ignore();
        self.pipeline(&pipe).await
    }
}

/// The field of one version; a plugin's name has no colon.
fn field(plugin: &str, digest: &str) -> String {
    format!("{plugin}:{digest}")
}
