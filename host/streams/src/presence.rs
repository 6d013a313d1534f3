//! Which hosts are alive, and what each says of its plugins: one key a host that expires by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::keys::HOST_PREFIX;
use crate::{Store, StreamError};

/// What a host says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// Its consumer name: host and boot.
    pub consumer: String,
    /// Its program's version.
    pub version: String,
    /// The format that it would write if it were alone; hosts of format 1.0 did not say.
    #[serde(default = "first_format")]
    pub format: String,
    /// Its process id.
    pub pid: u32,
    /// Since when, in milliseconds since 1970.
    pub started_ms: u64,
    /// When it said so, in milliseconds since 1970.
    pub reported_ms: u64,
    /// After how much silence it takes over what others hold, in milliseconds; 0 of a host that did not say.
    #[serde(default)]
    pub lease_ms: u64,
    /// What it is told of streams, as text by stream: how much of them it keeps, and what they may take.
    #[serde(default)]
    pub streams: BTreeMap<String, String>,
    /// Its plugins, as the daemon describes them.
    pub plugins: serde_json::Value,
}

fn first_format() -> String {
    String::from("1.0")
}

impl Store {
    /// Publishes a report that is forgotten after `lives` unless renewed.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn report(&self, report: &HostReport, lives: Duration) -> Result<(), StreamError> {
        let text = serde_json::to_string(report).expect("a report always serializes");
        let mut command = redis::cmd("SET");
        command.arg(format!("{HOST_PREFIX}{}", report.consumer)).arg(text).arg("PX").arg(lives.as_millis() as u64);
        self.query(&command).await
    }

    /// Takes a report back: the host has left.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn report_gone(&self, consumer: &str) -> Result<(), StreamError> {
        self.query(redis::cmd("DEL").arg(format!("{HOST_PREFIX}{consumer}"))).await
    }

    /// The reports of all hosts that are alive.
    ///
    /// # Errors
    /// Whatever Redis answers; a report of another version that cannot be read is left out.
    pub async fn hosts(&self) -> Result<Vec<HostReport>, StreamError> {
        let mut hosts = Vec::new();
        for key in self.keys_with_prefix(HOST_PREFIX).await? {
            let text: Option<String> = self.query(redis::cmd("GET").arg(&key)).await?;
            hosts.extend(text.and_then(|text| serde_json::from_str(&text).ok()));
        }
        Ok(hosts)
    }
}
