//! What the guard looks at: the numbers of one lane at one moment, and the way back for what waited and was lost.

use cofferdam_model::EntryId;
use cofferdam_model::invariants::{Balance, delivered_is_settled_or_pending, trimmed_unread, was_given};
use cofferdam_model::route::DEAD_LETTER_STREAM;
use redis::Value;

use crate::keys::TRIMMED_KEY;
use crate::reply::Reply;
use crate::{LaneKeys, Store, StreamError, retry_consumer};

/// Park records that one call looks at, about: each costs Redis some microseconds.
const RESCUE_STEP: usize = 1_000;

/// The numbers of a lane at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Entries in the stream.
    pub length: u64,
    /// Entries that were ever added to it.
    pub entries_added: u64,
    /// Entries that hosts trimmed away; none of a stream that was deleted and has begun anew since.
    pub trimmed_by_us: u64,
    /// The oldest entry that is there.
    pub first: Option<EntryId>,
    /// The last id that the stream has given out.
    pub last: EntryId,
    /// The group's position.
    pub last_delivered: EntryId,
    /// Entries delivered and not acknowledged.
    pub pending: u64,
    /// Entries ever delivered, when Redis can tell.
    pub entries_read: Option<u64>,
    /// Entries still to be delivered, when Redis can tell.
    pub lag: Option<u64>,
    /// Entries with a park record.
    pub records: u64,
    /// Entries that wait for their retry.
    pub parked: u64,
    /// Entries that were read before the ledger began, when that is known.
    pub base_read: Option<u64>,
    /// Entries that the ledger counts as settled.
    pub settled: u64,
    /// Bytes of the dead letters that it left and nobody has sent back or discarded. Below zero for a lane whose letters another
    /// lane of the group left.
    pub dead_bytes: i64,
}

impl Audit {
    /// Entries that somebody else than a host removed, since the stream began.
    pub fn removed_by_others(&self) -> u64 {
        self.entries_added.saturating_sub(self.length).saturating_sub(self.trimmed_by_us)
    }

    /// Entries that were taken away before the group read them: at least so many, as the ends of the stream tell.
    pub fn trimmed_unread(&self) -> u64 {
        let Some(read) = self.entries_read else { return 0 };
        let after_at_most = if self.at_end() { 0 } else { self.length };
        trimmed_unread(self.entries_added, read, after_at_most, self.removed_by_others())
    }

    /// Entries that are neither settled nor pending and that the group may never have seen: at most so many. Redis 8 counts what was
    /// trimmed unread as read (redis/redis#13958).
    pub fn trimmed_as_read(&self) -> u64 {
        match self.balance() {
            Some(Balance::Missing(count)) => count.min(self.removed_by_others()),
            _ => 0,
        }
    }

    /// Whether all that was read is settled or pending; `None` when Redis cannot tell how many were read.
    pub fn balance(&self) -> Option<Balance> {
        let from_lag = self.lag.map(|lag| self.entries_added.saturating_sub(lag));
        let (read, before) = (self.entries_read.or(from_lag)?, self.base_read?);
        let read = was_given(self.entries_added, read, self.at_end(), self.removed_by_others());
        // Not taken from what was read, which begins anew where the stream does.
        let settled = self.settled.saturating_add(before);
        match delivered_is_settled_or_pending(settled, self.pending, read) {
            // Redis's count of what was read may be too low; at the end it will show.
            Balance::Surplus(_) if !self.at_end() && settled.saturating_add(self.pending) <= self.entries_added => None,
            balance => Some(balance),
        }
    }

    fn at_end(&self) -> bool {
        self.last_delivered >= self.last
    }

    /// Entries that are still to be read.
    pub fn behind(&self) -> u64 {
        if self.at_end() { 0 } else { self.lag.unwrap_or(self.length).min(self.length) }
    }
}

/// What a search for lost retries found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rescued {
    /// Where to go on; 0 when all were looked at.
    pub cursor: u64,
    /// Entries given back.
    pub back: u64,
    /// Entries of which only a tombstone among the dead letters is left.
    pub tombstones: u64,
}

impl Store {
    /// The numbers of a lane; `None` when its stream or its group is missing.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn audit(&self, lane: &LaneKeys) -> Result<Option<Audit>, StreamError> {
        let r = Reply { command: "audit" };
        let mut call = self.scripts.audit.call(&[&*lane.stream, &lane.ledger, &lane.park, TRIMMED_KEY]);
        call.arg(&*lane.group).arg(retry_consumer());
        let values = r.array(self.scripts.audit.send(&*self.reads, &call).await?)?;
        let Ok(values) = <[Value; 14]>::try_from(values) else { return Ok(None) };
        let [
            length,
            added,
            ours,
            first,
            last,
            delivered,
            pending,
            read,
            lag,
            records,
            parked,
            base,
            settled,
            dead_bytes,
        ] = values;
        let known = |value: &Value| -> Result<Option<u64>, StreamError> { Ok(u64::try_from(r.int(value)?).ok()) };
        let (length, entries_added, mut trimmed_by_us) = (r.count(&length)?, r.count(&added)?, r.count(&ours)?);
        if trimmed_by_us > entries_added.saturating_sub(length) {
            trimmed_by_us = 0;
            // When Redis takes no writes just now, the next look does it.
            let forget = self.scripts.forget_trimmed.call(&[&*lane.stream, TRIMMED_KEY]);
            if let Err(error) = self.scripts.forget_trimmed.send(&*self.writes, &forget).await {
                tracing::debug!(stream = &*lane.stream, %error, "cannot forget what was trimmed of the stream before");
            }
        }
        Ok(Some(Audit {
            length,
            entries_added,
            trimmed_by_us,
            first: r.text(first)?.parse().ok(),
            last: r.id(last)?,
            last_delivered: r.id(delivered)?,
            pending: r.count(&pending)?,
            entries_read: known(&read)?,
            lag: known(&lag)?,
            records: r.count(&records)?,
            parked: r.count(&parked)?,
            base_read: if lane.is_redrive() { Some(known(&base)?.unwrap_or(0)) } else { known(&base)? },
            settled: r.count(&settled)?,
            dead_bytes: r.int(&dead_bytes)?,
        }))
    }

    /// Forgets what the dead letters of a lane weigh: none are left.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn forget_dead_bytes(&self, lane: &LaneKeys) -> Result<(), StreamError> {
        self.query(redis::cmd("HDEL").arg(&lane.ledger).arg("dead_bytes")).await
    }

    /// How much memory a stream takes, about; 0 when there is none, `None` when the user may not ask.
    pub async fn stream_bytes(&self, stream: &str) -> Option<u64> {
        let bytes: Option<u64> = self.query(redis::cmd("MEMORY").arg("USAGE").arg(stream)).await.ok()?;
        Some(bytes.unwrap_or(0))
    }

    /// Looks at some park records, and gives those back to the group whose entries are no longer pending.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn rescue(&self, lane: &LaneKeys, cursor: u64, now: &str, plugin: &str) -> Result<Rescued, StreamError> {
        let r = Reply { command: "rescue" };
        let keys = [&*lane.stream, &lane.ledger, &lane.park, DEAD_LETTER_STREAM, &lane.redrive];
        let mut call = self.scripts.rescue.call(&keys);
        call.arg(&*lane.group).arg(cursor).arg(RESCUE_STEP).arg(now).arg(plugin);
        let values = r.array(self.scripts.rescue.send(&*self.writes, &call).await?)?;
        let [next, back, tombstones] = values.try_into().map_err(|_| r.unexpected("not three parts"))?;
        let cursor = r.text(next)?.parse().unwrap_or(0);
        Ok(Rescued { cursor, back: r.count(&back)?, tombstones: r.count(&tombstones)? })
    }
}
