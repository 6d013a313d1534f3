//! Retention: streams are trimmed only below what every group has finished. Never MAXLEN, which knows no groups.

use std::time::Duration;

use cofferdam_model::EntryId;

use crate::keys::TRIMMED_KEY;
use crate::reply::Reply;
use crate::{Store, StreamError};

/// How much of a stream is kept after every group has finished with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Entries.
    pub entries: u64,
    /// Age; no limit when `None`.
    pub age: Option<Duration>,
    /// Groups that are not waited for.
    pub ignored_groups: Vec<String>,
}

impl Default for Retention {
    /// 100,000 entries, as the original keeps.
    fn default() -> Self {
        Retention { entries: 100_000, age: None, ignored_groups: Vec::new() }
    }
}

/// What a trim did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Entries removed.
    pub removed: u64,
    /// The group whose unfinished entries stopped it.
    pub blocked_by: Option<String>,
    /// Entries above the retention that remain.
    pub excess: u64,
}

/// Entries that one call of the script removes at most, so that Redis is never busy for long.
const TRIM_STEP: u64 = 10_000;
/// Who trims a stream at the moment.
const TRIM_LOCK: &str = "cofferdam:lock:trim";

impl Store {
    /// Whether this consumer is the one that trims for the next `lives`.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn may_trim(&self, consumer: &str, lives: Duration) -> Result<bool, StreamError> {
        let mut lock = redis::cmd("SET");
        lock.arg(TRIM_LOCK).arg(consumer).arg("NX").arg("PX").arg(lives.as_millis() as u64);
        let taken: Option<String> = self.query(&lock).await?;
        if taken.is_some() {
            return Ok(true);
        }
        let holder: Option<String> = self.query(redis::cmd("GET").arg(TRIM_LOCK)).await?;
        if holder.as_deref() != Some(consumer) {
            return Ok(false);
        }
        // Two trimmers at once do no harm (the script decides anew each time), so extending needs no fence.
        let () = self.query(redis::cmd("PEXPIRE").arg(TRIM_LOCK).arg(lives.as_millis() as u64)).await?;
        Ok(true)
    }

    /// Trims a stream to its retention, in small steps.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn trim(&self, stream: &str, retention: &Retention, now_ms: u64) -> Result<Trimmed, StreamError> {
        let script = &self.scripts.trim;
        let oldest = retention.age.map_or_else(String::new, |age| {
            let ms = now_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
            EntryId { ms, seq: 0 }.to_string()
        });
        let r = Reply { command: "trim" };
        let mut total = Trimmed::default();
        loop {
            let mut call = script.call(&[stream, TRIMMED_KEY]);
            call.arg(retention.entries).arg(&oldest).arg(TRIM_STEP).arg(&retention.ignored_groups);
            let reply = r.array(script.send(&*self.writes, &call).await?)?;
            let [removed, blocker, excess] = reply.try_into().map_err(|_| r.unexpected("not three parts"))?;
            let removed = r.count(&removed)?;
            total.removed += removed;
            total.blocked_by = Some(r.text(blocker)?).filter(|name| !name.is_empty());
            total.excess = r.count(&excess)?;
            if removed == 0 || total.excess == 0 {
                return Ok(total);
            }
        }
    }
}
