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
    /// Of the circles that were asked about, those that are allowed.
    pub cycles: Vec<String>,
}

impl Store {
    /// What is known of a plugin's approvals, and whether this version and these circles are among them.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn approvals(&self, plugin: &str, digest: &str, cycles: &[String]) -> Result<Approvals, StreamError> {
        let mut command = redis::cmd("HMGET");
        command.arg(APPROVALS_KEY).arg(plugin).arg(field(plugin, digest));
        for cycle in cycles {
            command.arg(cycle_field(cycle));
        }
        let found: Vec<Option<String>> = self.query(&command).await?;
        let mut found = found.into_iter();
        let (allowed, approved) = (found.next().flatten(), found.next().flatten().is_some());
        let allowed_cycles = cycles.iter().zip(found).filter(|(_, found)| found.is_some());
        Ok(Approvals { allowed, approved, cycles: allowed_cycles.map(|(cycle, _)| cycle.clone()).collect() })
    }

    /// Notes what a plugin is allowed from now on: a version that asks for no more needs no approval. The circles that it closes
    /// are allowed to every plugin in them.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn allow(&self, plugin: &str, allowed: &str, cycles: &[String]) -> Result<(), StreamError> {
        let mut command = redis::cmd("HSET");
        command.arg(APPROVALS_KEY).arg(plugin).arg(allowed);
        for cycle in cycles {
            command.arg(cycle_field(cycle)).arg(plugin);
        }
        self.query(&command).await
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

/// The field of one circle; no plugin's begins with a colon.
fn cycle_field(cycle: &str) -> String {
    format!(":cycle:{cycle}")
}
