//! The names of our keys, and of the reserved consumer that holds parked entries.

use std::sync::Arc;

use cofferdam_model::policy::DELAY_MS_MAX;

/// Where the format version of everything we write under `cofferdam:` stands, as `major.minor`.
pub(crate) const FORMAT_KEY: &str = "cofferdam:format";
/// How many entries hosts have trimmed away, by stream: what else is gone, somebody else took.
pub(crate) const TRIMMED_KEY: &str = "cofferdam:trimmed";
/// The prefix of the reports of live hosts.
pub(crate) const HOST_PREFIX: &str = "cofferdam:host:";

/// A mark that is gone with everything else when Redis is emptied.
pub(crate) const MARK_KEY: &str = "cofferdam:mark";

/// Which plugins are held to a version, and why.
pub(crate) const PINS_KEY: &str = "cofferdam:pins";

/// What is known of a plugin's versions.
pub(crate) fn versions_key(plugin: &str) -> String {
    format!("cofferdam:versions:{plugin}")
}

/// The files of a version.
pub(crate) fn version_key(digest: &str) -> String {
    format!("cofferdam:version:{digest}")
}

/// The reserved consumer of parked entries. The longest delay is part of its name, because an entry's due time is kept as
/// its idle time counted back from it.
pub fn retry_consumer() -> String {
    format!("~retry/{DELAY_MS_MAX}")
}

/// What plugins have been allowed, and which versions are approved by name.
pub(crate) const APPROVALS_KEY: &str = "cofferdam:approvals";

/// The records that all plugins share, each a hash.
pub const SHARED_RECORDS: [&str; 3] = [TRIMMED_KEY, PINS_KEY, APPROVALS_KEY];

/// The stream on which a group gets back what was sent back from the dead letters.
pub fn redrive_stream(group: &str) -> String {
    format!("cofferdam:redrive:{group}")
}

/// The keys of one lane: a group on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneKeys {
    /// The stream that the lane reads.
    pub stream: Arc<str>,
    /// The group it reads with.
    pub group: Arc<str>,
    /// The group's redrive stream; the same as `stream` for the lane that reads it.
    pub redrive: Arc<str>,
    pub(crate) ledger: String,
    pub(crate) park: String,
}

impl LaneKeys {
    /// The keys of a group on a stream.
    pub fn new(stream: &str, group: &str) -> Self {
        LaneKeys {
            stream: stream.into(),
            group: group.into(),
            redrive: redrive_stream(group).into(),
            ledger: format!("cofferdam:ledger:{stream}|{group}"),
            park: format!("cofferdam:park:{stream}|{group}"),
        }
    }

    /// The keys of its records, each a hash.
    pub fn records(&self) -> [&str; 2] {
        [&self.ledger, &self.park]
    }

    /// Whether this lane reads its group's redrive stream.
    pub fn is_redrive(&self) -> bool {
        self.stream == self.redrive
    }
}
