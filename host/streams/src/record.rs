//! The park record: what a delivery has been through, as JSON in the park hash (and in the `attempts` of a dead letter).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use cofferdam_model::dead_letter::{TEXT_BYTES_MAX, truncated};
use cofferdam_model::{Attempt, ReasonCode};

use crate::Format;

/// One charged attempt, as stored.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StoredAttempt {
    at_ms: u64,
    host: String,
    digest: String,
    code: String,
    text: String,
    took_us: u64,
    memory_bytes: u64,
    /// Since format 1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started_ms: Option<u64>,
}

impl StoredAttempt {
    fn new(attempt: &Attempt, format: Format) -> Self {
        StoredAttempt {
            at_ms: attempt.at_ms,
            host: attempt.host.clone(),
            digest: attempt.digest.clone(),
            code: attempt.code.to_string(),
            text: truncated(&attempt.text, TEXT_BYTES_MAX),
            took_us: u64::try_from(attempt.took.as_micros()).unwrap_or(u64::MAX),
            memory_bytes: attempt.memory_bytes,
            started_ms: attempt.started_ms.filter(|_| format.has_start()),
        }
    }
}

impl From<StoredAttempt> for Attempt {
    fn from(stored: StoredAttempt) -> Self {
        Attempt {
            at_ms: stored.at_ms,
            host: stored.host,
            digest: stored.digest,
            // A code of a later version is still a charged attempt.
            code: stored.code.parse().unwrap_or(ReasonCode::Retry),
            text: stored.text,
            took: Duration::from_micros(stored.took_us),
            memory_bytes: stored.memory_bytes,
            started_ms: stored.started_ms,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    attempts: Vec<StoredAttempt>,
    #[serde(default)]
    releases: u32,
}

/// Writes a record.
pub(crate) fn write(attempts: &[Attempt], releases: u32, format: Format) -> String {
    let stored = Stored { attempts: stored(attempts, format), releases };
    serde_json::to_string(&stored).expect("strings and numbers always serialize")
}

/// Reads a record: the charged attempts, and how often it was given back. An empty text, or one that nothing of ours wrote, is
/// a delivery without a past.
pub fn read(text: &str) -> (Vec<Attempt>, u32) {
    let stored: Stored = serde_json::from_str(text).unwrap_or_default();
    (stored.attempts.into_iter().map(Attempt::from).collect(), stored.releases)
}

fn stored(attempts: &[Attempt], format: Format) -> Vec<StoredAttempt> {
    attempts.iter().map(|attempt| StoredAttempt::new(attempt, format)).collect()
}

/// The attempts of a dead letter, as a JSON list.
pub(crate) fn write_attempts(attempts: &[Attempt], format: Format) -> String {
    serde_json::to_string(&stored(attempts, format)).expect("strings and numbers always serialize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_nonsense_is_a_delivery_without_a_past() {
        let attempt = Attempt {
            at_ms: 5,
            host: "a/b".into(),
            digest: "d".into(),
            code: ReasonCode::Trap,
            text: "boom".into(),
            took: Duration::from_micros(7),
            memory_bytes: 9,
            started_ms: Some(4),
        };
        let written = |minor| read(&write(std::slice::from_ref(&attempt), 2, Format { major: 1, minor }));
        assert_eq!(written(1), (vec![attempt.clone()], 2));
        let without = Attempt { started_ms: None, ..attempt.clone() };
        assert_eq!(written(0), (vec![without], 2), "a host of format 1.0 does not know when an attempt began");
        assert_eq!(read(""), (vec![], 0));
        assert_eq!(read("{not json"), (vec![], 0));
    }
}
