//! Looking without touching: which streams there are, and what Redis knows of streams and lanes at one moment.

use std::collections::HashMap;

use cofferdam_model::EntryId;
use redis::Value;

use crate::group::group_info;
use crate::reply::Reply;
use crate::{GroupInfo, LaneKeys, Ledger, RawEntry, Store, StreamError, retry_consumer};

/// Pending entries of a lane that a cut lists: above it one reply would hold Redis and this process up for too long.
const PENDING_MAX: usize = 200_000;
/// Entries of a redrive stream that a cut lists; they go as soon as they are settled.
const REDRIVEN_MAX: usize = 10_000;

/// What Redis tells of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamFacts {
    /// Entries that are there.
    pub length: u64,
    /// Entries that were ever added.
    pub entries_added: u64,
    /// The oldest entry that is there.
    pub first: Option<EntryId>,
    /// The last id that was given out.
    pub last: EntryId,
    /// The greatest id that was deleted by XDEL; trimming does not change it.
    pub max_deleted: EntryId,
}

impl StreamFacts {
    /// Entries that are gone, by whatever hand.
    pub fn removed(&self) -> u64 {
        self.entries_added.saturating_sub(self.length)
    }
}

/// A pending entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingEntry {
    /// Its id.
    pub id: EntryId,
    /// Who holds it.
    pub consumer: String,
}

/// What Redis knows of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneFacts {
    /// Its stream.
    pub stream: StreamFacts,
    /// Its group.
    pub group: GroupInfo,
    /// Its ledger.
    pub ledger: Ledger,
    /// Its pending entries, the oldest first; fewer than `group.pending` when there are very many.
    pub pending: Vec<PendingEntry>,
}

impl LaneFacts {
    /// How many of the listed pending entries are parked.
    pub fn parked(&self) -> u64 {
        let retry = retry_consumer();
        self.pending.iter().filter(|pending| pending.consumer == retry).count() as u64
    }
}

/// Lanes and streams as they were at one and the same moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// In the order asked; `None` where stream or group is missing.
    pub lanes: Vec<Option<LaneFacts>>,
    /// The entries of each lane's own stream, for lanes that read a redrive stream; empty for all others.
    pub redriven: Vec<Vec<RawEntry>>,
    /// In the order asked; `None` where there is no such stream.
    pub streams: Vec<Option<StreamFacts>>,
}

/// An entry, cut to what tells whose output it is: of millions of entries nothing else can be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: EntryId,
    /// Its `message_id` and its `cofferdam_source`, when it has both.
    pub marks: Option<(Vec<u8>, Vec<u8>)>,
}

/// Some entries of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenPage {
    /// The entries, the oldest first.
    pub entries: Vec<Seen>,
    /// How long their values were, for whoever chooses how many entries to ask for next.
    pub bytes: usize,
}

impl Store {
    /// Entries of a stream by range, oldest first, cut to what tells whose outputs they are.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn seen(&self, stream: &str, from: &str, to: &str, count: usize) -> Result<SeenPage, StreamError> {
        let r = Reply { command: "XRANGE" };
        let range = self.query(redis::cmd("XRANGE").arg(stream).arg(from).arg(to).arg("COUNT").arg(count)).await?;
        let mut page = SeenPage::default();
        for value in r.array(range)? {
            let mut parts = r.array(value)?.into_iter();
            let (Some(id), Some(fields)) = (parts.next(), parts.next()) else {
                return Err(r.unexpected("an entry without its two parts"));
            };
            let (mut message_id, mut source) = (None, None);
            let mut fields = r.array(fields)?.into_iter();
            while let (Some(Value::BulkString(name)), Some(Value::BulkString(value))) = (fields.next(), fields.next()) {
                page.bytes += value.len();
                match name.as_slice() {
                    b"message_id" if message_id.is_none() => message_id = Some(value),
                    b"cofferdam_source" if source.is_none() => source = Some(value),
                    _ => {}
                }
            }
            page.entries.push(Seen { id: r.id(id)?, marks: message_id.zip(source) });
        }
        Ok(page)
    }

    /// The names of all streams of this database, sorted, and whether the search came to its end within `looks` calls of SCAN
    /// (each looks at about 1,000 keys).
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn stream_names(&self, looks: usize) -> Result<(Vec<String>, bool), StreamError> {
        let (mut cursor, mut found) = (0u64, Vec::new());
        for _ in 0..looks {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("COUNT").arg(1_000).arg("TYPE").arg("stream");
            let (next, keys): (u64, Vec<Vec<u8>>) = self.query(&scan).await?;
            found.extend(keys.into_iter().filter_map(|key| String::from_utf8(key).ok()));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        found.sort();
        found.dedup();
        Ok((found, cursor == 0))
    }

    /// What Redis tells of a stream; `None` when there is none of that name.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn stream_facts(&self, stream: &str) -> Result<Option<StreamFacts>, StreamError> {
        if self.key_type(stream).await? != "stream" {
            return Ok(None);
        }
        let reply: Value = self.query(redis::cmd("XINFO").arg("STREAM").arg(stream)).await?;
        stream_facts(&Reply { command: "XINFO STREAM" }, reply).map(Some)
    }

    /// The state of lanes and streams at one moment: everything is read within one transaction, so that what moves from one
    /// place to another is seen in exactly one of them.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn cut(&self, lanes: &[LaneKeys], streams: &[String]) -> Result<Cut, StreamError> {
        let lane_there = self.lanes_there(lanes).await?;
        let stream_there = self.streams_there(streams).await?;
        let mut pipe = redis::pipe();
        pipe.atomic();
        for (lane, _) in lanes.iter().zip(&lane_there).filter(|(_, there)| **there) {
            pipe.cmd("XINFO").arg("STREAM").arg(&*lane.stream).cmd("XINFO").arg("GROUPS").arg(&*lane.stream);
            pipe.cmd("HGETALL").arg(&lane.ledger);
            pipe.cmd("XPENDING").arg(&*lane.stream).arg(&*lane.group).arg("-").arg("+").arg(PENDING_MAX);
            let listed = if lane.is_redrive() { REDRIVEN_MAX } else { 0 };
            pipe.cmd("XRANGE").arg(&*lane.stream).arg("-").arg("+").arg("COUNT").arg(listed);
        }
        for (stream, _) in streams.iter().zip(&stream_there).filter(|(_, there)| **there) {
            pipe.cmd("XINFO").arg("STREAM").arg(stream);
        }
        if pipe.is_empty() {
            return Ok(Cut {
                lanes: vec![None; lanes.len()],
                redriven: vec![Vec::new(); lanes.len()],
                streams: vec![None; streams.len()],
            });
        }
        let replies: Vec<Value> = self.pipeline(&pipe).await?;
        let mut replies = replies.into_iter();
        let mut cut = Cut::default();
        for (lane, there) in lanes.iter().zip(lane_there) {
            let (facts, redriven) = if there { lane_facts(lane, &mut replies)? } else { (None, Vec::new()) };
            cut.lanes.push(facts);
            cut.redriven.push(redriven);
        }
        for there in stream_there {
            let r = Reply { command: "XINFO STREAM" };
            let facts = if there { replies.next().map(|reply| stream_facts(&r, reply)).transpose()? } else { None };
            cut.streams.push(facts);
        }
        Ok(cut)
    }

    async fn lanes_there(&self, lanes: &[LaneKeys]) -> Result<Vec<bool>, StreamError> {
        let mut there = Vec::with_capacity(lanes.len());
        for lane in lanes {
            there.push(self.group(&lane.stream, &lane.group).await?.is_some());
            // Were it no hash, the error of the transaction would not say which key that is.
            let _: u64 = self.query(redis::cmd("HLEN").arg(&lane.ledger)).await?;
        }
        Ok(there)
    }

    async fn streams_there(&self, streams: &[String]) -> Result<Vec<bool>, StreamError> {
        if streams.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for stream in streams {
            pipe.cmd("TYPE").arg(stream);
        }
        let types: Vec<String> = self.pipeline(&pipe).await?;
        Ok(types.into_iter().map(|kind| kind == "stream").collect())
    }
}

fn lane_facts(
    lane: &LaneKeys,
    replies: &mut impl Iterator<Item = Value>,
) -> Result<(Option<LaneFacts>, Vec<RawEntry>), StreamError> {
    let r = Reply { command: "a cut" };
    let mut next = || replies.next().ok_or_else(|| r.unexpected("fewer replies than commands"));
    let (stream, groups, ledger, pending, entries) = (next()?, next()?, next()?, next()?, next()?);
    let stream = stream_facts(&r, stream)?;
    let mut group = None;
    for value in r.array(groups)? {
        let info = group_info(&r, value)?;
        if info.name == *lane.group {
            group = Some(info);
        }
    }
    let mut fields = HashMap::new();
    for (name, value) in r.pairs(ledger)? {
        fields.insert(name, r.text(value)?);
    }
    let mut listed = Vec::new();
    for item in r.array(pending)? {
        let mut parts = r.array(item)?.into_iter();
        if let (Some(id), Some(consumer)) = (parts.next(), parts.next()) {
            listed.push(PendingEntry { id: r.id(id)?, consumer: r.text(consumer)? });
        }
    }
    let facts = group.map(|group| LaneFacts { stream, group, ledger: Ledger::read(&fields), pending: listed });
    Ok((facts, r.entries(entries)?))
}

fn stream_facts(r: &Reply, reply: Value) -> Result<StreamFacts, StreamError> {
    let mut facts = StreamFacts::default();
    for (name, value) in r.pairs(reply)? {
        match name.as_str() {
            "length" => facts.length = r.count(&value)?,
            "entries-added" => facts.entries_added = r.count(&value)?,
            "last-generated-id" => facts.last = r.id(value)?,
            "max-deleted-entry-id" => facts.max_deleted = r.id(value)?,
            "first-entry" if value != Value::Nil => facts.first = Some(r.entry(value)?.id),
            _ => {}
        }
    }
    Ok(facts)
}
