//! Consumer groups: where they start, and how one that was lost comes back.

use cofferdam_model::EntryId;
use redis::Value;

use crate::reply::Reply;
use crate::{LaneKeys, Store, StreamError};

/// Where a new group starts to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what comes after its creation.
    New,
    /// With the oldest entry that is there.
    Oldest,
    /// After this id.
    After(EntryId),
}

/// What had to be done so that the group is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was there.
    Existed,
    /// It is new, and reads what comes after this id (`$` for the end of the stream).
    Created {
        /// As given to XGROUP CREATE.
        after: String,
    },
    /// It had been there and was lost; it stands at its floor again, and what was settled beyond the floor may repeat.
    Recreated {
        /// As given to XGROUP CREATE: before the oldest entry when the stream has begun anew.
        floor: String,
        /// The last id that was settled before the loss.
        last_settled: String,
    },
}

/// What Redis tells of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// Consumers that it knows, dead ones too.
    pub consumers: u64,
    /// Entries delivered and not acknowledged.
    pub pending: u64,
    /// The last id that it has delivered.
    pub last_delivered: EntryId,
    /// Entries ever delivered, when Redis can tell.
    pub entries_read: Option<u64>,
    /// Entries still to be delivered, when Redis can tell.
    pub lag: Option<u64>,
}

impl Store {
    /// Makes sure that the group of a lane is there, creating it (and the stream) where needed.
    ///
    /// # Errors
    /// [`StreamError::WrongType`] when the key is not a stream, and whatever else Redis answers.
    pub async fn ensure_group(&self, lane: &LaneKeys, start: Start) -> Result<Ensured, StreamError> {
        let floor: Vec<Option<String>> =
            self.query(redis::cmd("HMGET").arg(&lane.ledger).arg("floor").arg("last_id").arg("start")).await?;
        let mut known = floor.into_iter();
        let (floor, last, started) = (known.next().flatten(), known.next().flatten(), known.next().flatten());
        let after = match (&floor, &started) {
            (Some(floor), _) => stands_at(floor),
            // Lost before anything was settled: it starts again where it started, never at the end.
            (None, Some(started)) => started.clone(),
            (None, None) => match start {
                Start::New => self.last_id(&lane.stream).await?.to_string(),
                Start::Oldest => String::from("0-0"),
                Start::After(id) => id.to_string(),
            },
        };
        // An operator may ask for a start that lies ahead; what we noted ourselves never did.
        let asked = matches!(start, Start::After(id) if floor.is_none() && id.to_string() == after);
        let noted = (floor.is_some() || started.is_some()) && !asked;
        let mut create = self.scripts.create_group.call(&[&lane.stream]);
        create.arg(&*lane.group).arg(&after).arg(u8::from(noted));
        let after = match self.scripts.create_group.send(&*self.reads, &create).await {
            Ok(after) => Reply { command: "create_group" }.text(after)?,
            Err(StreamError::Rejected { source }) if source.code() == Some("BUSYGROUP") => {
                self.note_joined(lane).await?;
                return Ok(Ensured::Existed);
            }
            Err(error) => return Err(error),
        };
        let base = self.read_so_far(lane).await?.map(|(read, _)| read);
        let mut pipe = redis::pipe();
        pipe.cmd("HSETNX").arg(&lane.ledger).arg("start").arg(&after).ignore();
        if let Some(base) = base {
            pipe.cmd("HSETNX").arg(&lane.ledger).arg("base_read").arg(base).ignore();
        }
        let () = self.pipeline(&pipe).await?;
        if floor.is_none() && started.is_none() {
            return Ok(Ensured::Created { after });
        }
        Ok(Ensured::Recreated { last_settled: last.unwrap_or_else(|| after.clone()), floor: after })
    }

    /// A group that somebody else created: what it had read and acknowledged before us is not in our ledger.
    async fn note_joined(&self, lane: &LaneKeys) -> Result<(), StreamError> {
        let Some((read, group)) = self.read_so_far(lane).await? else { return Ok(()) };
        let mut pipe = redis::pipe();
        pipe.cmd("HSETNX").arg(&lane.ledger).arg("start").arg(group.last_delivered.to_string()).ignore();
        pipe.cmd("HSETNX").arg(&lane.ledger).arg("base_read").arg(read.saturating_sub(group.pending)).ignore();
        self.pipeline(&pipe).await
    }

    /// How many entries lie before the group's position. Redis does not say so of a group that has read nothing yet, but of
    /// one that stands at either end of its stream it knows the lag, which says the same. `None` when it can tell neither.
    async fn read_so_far(&self, lane: &LaneKeys) -> Result<Option<(u64, GroupInfo)>, StreamError> {
        let Some(facts) = self.cut(std::slice::from_ref(lane), &[]).await?.lanes.into_iter().next().flatten() else {
            return Ok(None);
        };
        let from_lag = facts.group.lag.map(|lag| facts.stream.entries_added.saturating_sub(lag));
        Ok(facts.group.entries_read.or(from_lag).map(|read| (read, facts.group)))
    }

    /// The last id that a stream has given out; zero when there is no such stream.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn last_id(&self, stream: &str) -> Result<EntryId, StreamError> {
        let reply: Result<Value, _> = self.query(redis::cmd("XINFO").arg("STREAM").arg(stream)).await;
        let reply = match reply {
            Err(StreamError::Rejected { source })
                if source.detail().is_some_and(|text| text.contains("no such key")) =>
            {
                return Ok(EntryId::ZERO);
            }
            other => other?,
        };
        let r = Reply { command: "XINFO STREAM" };
        let last = r.pairs(reply)?.into_iter().find(|(name, _)| name == "last-generated-id");
        last.map_or(Ok(EntryId::ZERO), |(_, id)| r.id(id))
    }

    /// The groups of a stream; none when there is no such stream.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn groups(&self, stream: &str) -> Result<Vec<GroupInfo>, StreamError> {
        if self.key_type(stream).await? != "stream" {
            return Ok(Vec::new());
        }
        let r = Reply { command: "XINFO GROUPS" };
        let reply: Value = self.query(redis::cmd("XINFO").arg("GROUPS").arg(stream)).await?;
        r.array(reply)?.into_iter().map(|group| group_info(&r, group)).collect()
    }

    /// One group of a stream.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn group(&self, stream: &str, name: &str) -> Result<Option<GroupInfo>, StreamError> {
        Ok(self.groups(stream).await?.into_iter().find(|group| group.name == name))
    }
}

/// The id that a floor names: `<id` is just before that id.
fn stands_at(floor: &str) -> String {
    match floor.strip_prefix('<').and_then(|id| id.parse::<EntryId>().ok()) {
        Some(pending) => pending.before().to_string(),
        None => floor.to_owned(),
    }
}

pub(crate) fn group_info(r: &Reply, value: Value) -> Result<GroupInfo, StreamError> {
    let mut info = GroupInfo::default();
    for (name, value) in r.pairs(value)? {
        match name.as_str() {
            "name" => info.name = r.text(value)?,
            "consumers" => info.consumers = r.count(&value)?,
            "pending" => info.pending = r.count(&value)?,
            "last-delivered-id" => info.last_delivered = r.id(value)?,
            "entries-read" if value != Value::Nil => info.entries_read = Some(r.count(&value)?),
            "lag" if value != Value::Nil => info.lag = Some(r.count(&value)?),
            _ => {}
        }
    }
    Ok(info)
}
