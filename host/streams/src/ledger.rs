//! The ledger: what each group has settled, counted by the settle script itself, for `verify` and `status`.

use std::collections::HashMap;

use crate::{LaneKeys, Store, StreamError};

/// What a lane has settled since its ledger began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages committed with at least one output.
    pub committed: u64,
    /// Messages committed without outputs.
    pub filtered: u64,
    /// Dead letters.
    pub dead: u64,
    /// Outputs written.
    pub outputs: u64,
    /// Charged failures that were parked.
    pub retried: u64,
    /// Deliveries given back uncharged.
    pub released: u64,
    /// Entries that a foreign trim took and a parked copy saved.
    pub rescued: u64,
}

impl Tally {
    /// Adds another lane's counts.
    pub fn add(&mut self, other: Tally) {
        self.committed += other.committed;
        self.filtered += other.filtered;
        self.dead += other.dead;
        self.outputs += other.outputs;
        self.retried += other.retried;
        self.released += other.released;
        self.rescued += other.rescued;
    }
}

/// The ledger of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The counts.
    pub tally: Tally,
    /// Entries that the group had read before our count began; unknown when Redis could not tell.
    pub base_read: Option<u64>,
    /// Where the group started.
    pub start: Option<String>,
    /// Where the group would be created again.
    pub floor: Option<String>,
}

impl Ledger {
    /// Reads one from the fields of its hash.
    pub(crate) fn read(fields: &HashMap<String, String>) -> Self {
        let number = |name: &str| fields.get(name).and_then(|text| text.parse::<u64>().ok());
        let count = |name: &str| number(name).unwrap_or(0);
        let tally = Tally {
            committed: count("committed"),
            filtered: count("filtered"),
            dead: count("dead"),
            outputs: count("outputs"),
            retried: count("retried"),
            released: count("released"),
            rescued: count("rescued"),
        };
        let (start, floor) = (fields.get("start").cloned(), fields.get("floor").cloned());
        Ledger { tally, base_read: number("base_read"), start, floor }
    }
}

impl Store {
    /// Reads the ledger of a lane.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn ledger(&self, lane: &LaneKeys) -> Result<Ledger, StreamError> {
        let fields: HashMap<String, String> = self.query(redis::cmd("HGETALL").arg(&lane.ledger)).await?;
        Ok(Ledger::read(&fields))
    }

    /// Every lane that has a ledger here, as (stream, group).
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn lanes(&self) -> Result<Vec<(String, String)>, StreamError> {
        let mut lanes = Vec::new();
        for key in self.keys_with_prefix("cofferdam:ledger:").await? {
            let name = key.strip_prefix("cofferdam:ledger:").unwrap_or_default();
            if let Some((stream, group)) = name.rsplit_once('|') {
                lanes.push((stream.to_owned(), group.to_owned()));
            }
        }
        lanes.sort();
        Ok(lanes)
    }

    pub(crate) async fn keys_with_prefix(&self, prefix: &str) -> Result<Vec<String>, StreamError> {
        let (mut cursor, mut found) = (0u64, Vec::new());
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(1_000);
            let (next, keys): (u64, Vec<String>) = self.query(&scan).await?;
            found.extend(keys);
            cursor = next;
            if cursor == 0 {
                found.sort();
                found.dedup();
                return Ok(found);
            }
        }
    }
}
