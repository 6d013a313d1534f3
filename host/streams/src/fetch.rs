//! The next entries: new ones, retries now due, and the suspects of a silent host.
//!
//! One doorbell a host: a blocking XREAD that only says which streams have news. The reads themselves never block, so that a
//! reply which nobody waits for any more cannot leave entries behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use cofferdam_model::{Attempt, EntryId, Token};

use crate::link::{Link, Through};
use crate::order::or_empty;
use crate::reply::Reply;
use crate::{LaneKeys, RawEntry, Store, StreamError, record, retry_consumer};

/// An entry that was taken over, with its past.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The entry.
    pub entry: RawEntry,
    /// The fence.
    pub token: Token,
    /// Its charged attempts.
    pub attempts: Vec<Attempt>,
    /// How often it was given back uncharged.
    pub releases: u32,
}

/// An entry in a consumer's hands, as one look saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its id.
    pub id: EntryId,
    /// Under which token it is held.
    pub token: Token,
    /// How long ago it was last claimed or renewed, by the server's clock. Zero, too, when that lies in the future of a clock that
    /// was set back.
    pub idle: Duration,
}

/// Who holds what in a group, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The server's clock, in milliseconds since 1970.
    pub now_ms: u64,
    /// Parked entries.
    pub parked: u64,
    /// Entries that the asking consumer itself holds.
    pub own: u64,
    /// Other consumers, with what each of them holds.
    pub holders: Vec<(Arc<str>, Vec<Watched>)>,
    /// Other consumers that hold nothing, and for how long they have been idle.
    pub idle: Vec<(String, Duration)>,
}

/// An entry whose holder is silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Its id.
    pub id: EntryId,
    /// Who holds it.
    pub holder: Arc<str>,
    /// Under which token.
    pub token: Token,
}

/// A consumer of a group, as XINFO CONSUMERS tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerInfo {
    /// Its name.
    pub name: String,
    /// Entries that it holds.
    pub pending: u64,
    /// Since it last did anything.
    pub idle: Duration,
}

impl Store {
    /// Reads new entries for this consumer, without waiting. Each comes with the token 1.
    ///
    /// # Errors
    /// [`StreamError::NoGroup`] when the group is gone, and whatever else Redis answers.
    pub async fn fetch_new(&self, lane: &LaneKeys, consumer: &str, count: usize) -> Result<Vec<RawEntry>, StreamError> {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&*lane.group).arg(consumer).arg("COUNT").arg(count);
        command.arg("STREAMS").arg(&*lane.stream).arg(">");
        single_stream(self.query(&command).await?)
    }

    /// Takes over parked entries whose retry is due. Also says how many were found, those saved or buried included.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn take_due(
        &self,
        lane: &LaneKeys,
        me: &TakeFor<'_>,
        count: usize,
    ) -> Result<(u64, Vec<Taken>), StreamError> {
        let script = &self.scripts.take;
        let mut call = self.take_call(lane, me, &retry_consumer());
        call.arg(cofferdam_model::policy::DELAY_MS_MAX)
            .arg(count)
            .arg(me.now)
            .arg(me.plugin)
            .arg(or_empty(me.epoch))
            .arg(0);
        taken(script.send(&*self.reads, &call).await?)
    }

    /// Takes over entries of one holder, each if it is still held under its token, whatever its idle time: whoever asks has
    /// watched them for long enough. The holder may be oneself: an entry that is gone from the stream then leaves its tombstone.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn take_suspects(
        &self,
        lane: &LaneKeys,
        me: &TakeFor<'_>,
        holder: &str,
        suspects: &[(EntryId, Token)],
    ) -> Result<(u64, Vec<Taken>), StreamError> {
        let script = &self.scripts.take;
        let mut call = self.take_call(lane, me, holder);
        call.arg(0).arg(1).arg(me.now).arg(me.plugin).arg(or_empty(me.epoch)).arg(suspects.len());
        for (id, token) in suspects {
            call.arg(id.to_string()).arg(token.0);
        }
        taken(script.send(&*self.reads, &call).await?)
    }

    fn take_call(&self, lane: &LaneKeys, me: &TakeFor<'_>, from: &str) -> redis::Cmd {
        let dead = cofferdam_model::route::DEAD_LETTER_STREAM;
        let mut call = self.scripts.take.call(&[&lane.stream, &lane.ledger, &lane.park, dead, &lane.redrive]);
        call.arg(&*lane.group).arg(me.consumer).arg(from);
        call
    }

    /// Looks at who holds what in a lane's group: for every consumer but `me` and the reserved one, its entries and when each was
    /// last claimed or renewed.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn look(&self, lane: &LaneKeys, me: &str) -> Result<Look, StreamError> {
        let r = Reply { command: "XPENDING" };
        let consumers = self.consumers(lane).await?;
        let reserved = retry_consumer();
        let pending = |name: &str| consumers.iter().find(|consumer| consumer.name == name).map_or(0, |c| c.pending);
        let (parked, own) = (pending(&reserved), pending(me));
        let others: Vec<ConsumerInfo> =
            consumers.into_iter().filter(|other| !other.name.starts_with('~') && other.name != me).collect();
        let mut pipe = redis::pipe();
        // Not in a transaction: at its memory limit a server queues nothing, not even what reads.
        pipe.cmd("TIME");
        for other in others.iter().filter(|other| other.pending > 0) {
            pipe.cmd("XPENDING").arg(&*lane.stream).arg(&*lane.group).arg("-").arg("+").arg(SCAN_MAX).arg(&other.name);
        }
        let mut replies = self.pipeline_of_reads::<Vec<Value>>(&pipe).await?.into_iter();
        let mut time = r.array(replies.next().unwrap_or(Value::Nil))?.into_iter();
        let (Some(seconds), Some(micros)) = (time.next(), time.next()) else {
            return Err(r.unexpected("a time without its two parts"));
        };
        let now_ms = r.count(&seconds)? * 1_000 + r.count(&micros)? / 1_000;
        let mut look = Look { now_ms, parked, own, holders: Vec::new(), idle: Vec::new() };
        for other in others {
            if other.pending == 0 {
                look.idle.push((other.name, other.idle));
                continue;
            }
            let mut held = Vec::new();
            for item in r.array(replies.next().unwrap_or(Value::Nil))? {
                let mut parts = r.array(item)?.into_iter();
                let (Some(id), Some(idle), Some(count)) = (parts.next(), parts.nth(1), parts.next()) else {
                    return Err(r.unexpected("a pending entry without its four parts"));
                };
                let idle = Duration::from_millis(r.count(&idle)?);
                held.push(Watched { id: r.id(id)?, token: Token(r.count(&count)?), idle });
            }
            look.holders.push((other.name.into(), held));
        }
        Ok(look)
    }

    /// How many entries are parked.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn parked(&self, lane: &LaneKeys) -> Result<u64, StreamError> {
        let consumers = self.consumers(lane).await?;
        let retry = retry_consumer();
        Ok(consumers.into_iter().find(|consumer| consumer.name == retry).map_or(0, |consumer| consumer.pending))
    }

    /// The consumers of a lane's group.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn consumers(&self, lane: &LaneKeys) -> Result<Vec<ConsumerInfo>, StreamError> {
        let r = Reply { command: "XINFO CONSUMERS" };
        let reply: Value =
            self.query(redis::cmd("XINFO").arg("CONSUMERS").arg(&*lane.stream).arg(&*lane.group)).await?;
        let mut consumers = Vec::new();
        for value in r.array(reply)? {
            let mut info = ConsumerInfo { name: String::new(), pending: 0, idle: Duration::ZERO };
            for (name, value) in r.pairs(value)? {
                match name.as_str() {
                    "name" => info.name = r.text(value)?,
                    "pending" => info.pending = r.count(&value)?,
                    "idle" => info.idle = Duration::from_millis(r.count(&value)?),
                    _ => {}
                }
            }
            consumers.push(info);
        }
        Ok(consumers)
    }

    /// Renews the lease of deliveries; gives back those whose lease is lost.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn heartbeat(
        &self,
        lane: &LaneKeys,
        consumer: &str,
        held: &[(EntryId, Token)],
    ) -> Result<Vec<EntryId>, StreamError> {
        let (Some(first), Some(last)) = (held.iter().map(|h| h.0).min(), held.iter().map(|h| h.0).max()) else {
            return Ok(Vec::new());
        };
        let script = &self.scripts.heartbeat;
        let mut call = script.call(&[&lane.stream]);
        call.arg(&*lane.group).arg(consumer).arg(first.to_string()).arg(last.to_string());
        call.arg(SCAN_MAX).arg(held.len());
        for (id, token) in held {
            call.arg(id.to_string()).arg(token.0);
        }
        let r = Reply { command: "heartbeat" };
        let lost = r.array(script.send(&*self.writes, &call).await?)?;
        lost.into_iter().map(|id| r.id(id)).collect()
    }

    /// An entry of the lane with its charged attempts and releases; `None` when it is no longer in the stream.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn past_of(
        &self,
        lane: &LaneKeys,
        id: EntryId,
    ) -> Result<Option<(RawEntry, Vec<Attempt>, u32)>, StreamError> {
        let id = id.to_string();
        let Some(entry) = self.range(&lane.stream, &id, &id, 1).await?.into_iter().next() else { return Ok(None) };
        let text: Option<String> = self.query(redis::cmd("HGET").arg(&lane.park).arg(&id)).await?;
        let (attempts, releases) = record::read(&text.unwrap_or_default());
        Ok(Some((entry, attempts, releases)))
    }

    /// The entries that Redis believes this consumer holds: after a lost reply, some of them are unknown to the host.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn held_by(&self, lane: &LaneKeys, consumer: &str) -> Result<Vec<(EntryId, Token)>, StreamError> {
        if crate::planted("history-read") {
            let mut history = redis::cmd("XREADGROUP");
            history.arg("GROUP").arg(&*lane.group).arg(consumer).arg("COUNT").arg(SCAN_MAX);
            self.query::<Value>(history.arg("STREAMS").arg(&*lane.stream).arg("0")).await?;
        }
        let r = Reply { command: "XPENDING" };
        let mut command = redis::cmd("XPENDING");
        command.arg(&*lane.stream).arg(&*lane.group).arg("-").arg("+").arg(SCAN_MAX).arg(consumer);
        let mut held = Vec::new();
        for item in r.array(self.query(&command).await?)? {
            let mut parts = r.array(item)?.into_iter();
            if let (Some(id), Some(count)) = (parts.next(), parts.nth(2)) {
                held.push((r.id(id)?, Token(r.count(&count)?)));
            }
        }
        Ok(held)
    }
}

/// The reply of the script `take`.
fn taken(reply: Value) -> Result<(u64, Vec<Taken>), StreamError> {
    let r = Reply { command: "take" };
    let mut items = r.array(reply)?.into_iter();
    let found = items.next().map_or(Ok(0), |count| r.count(&count))?;
    let mut taken = Vec::with_capacity(items.len());
    for item in items {
        let mut parts = r.array(item)?.into_iter();
        let (Some(id), Some(token), Some(past), Some(fields)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(r.unexpected("an entry without its four parts"));
        };
        let (attempts, releases) = record::read(&r.text(past)?);
        let entry = RawEntry { id: r.id(id)?, fields: r.fields(fields)? };
        taken.push(Taken { entry, token: Token(r.count(&token)?), attempts, releases });
    }
    Ok((found, taken))
}

/// Entries of one consumer that a ranged XPENDING may return: more than any lane keeps in flight.
pub(crate) const SCAN_MAX: usize = 100_000;

/// Who takes over, and when.
#[derive(Clone, Copy, Debug)]
pub struct TakeFor<'a> {
    /// The new consumer.
    pub consumer: &'a str,
    /// The plugin, for a tombstone.
    pub plugin: &'a str,
    /// The time, ISO 8601, for a tombstone.
    pub now: &'a str,
    /// Under which epoch it owns the lane, when the lane keeps an order.
    pub epoch: Option<u64>,
}

/// The entries of a read of one stream.
pub(crate) fn single_stream(reply: Value) -> Result<Vec<RawEntry>, StreamError> {
    let r = Reply { command: "XREADGROUP" };
    let Some(stream) = r.array(reply)?.into_iter().next() else { return Ok(Vec::new()) };
    match r.array(stream)?.into_iter().nth(1) {
        Some(entries) => r.entries(entries),
        None => Err(r.unexpected("a stream without entries")),
    }
}

/// The doorbell: says which streams have entries that nobody here has looked for yet.
#[derive(Debug)]
pub struct Doorbell {
    /// By stream: the last id that was there when its lanes were last told to look.
    seen: HashMap<Arc<str>, EntryId>,
}

/// Longest block of the doorbell: short enough to notice a shutdown, a failover and a changed list of streams.
const BLOCK_MS: u64 = 2_000;

impl Doorbell {
    /// A doorbell that has seen nothing.
    pub fn new() -> Self {
        Doorbell { seen: HashMap::new() }
    }

    /// Waits for news on any of `streams` (at most 2 s) and names those that have some. The connection is the caller's own:
    /// it blocks.
    ///
    /// # Errors
    /// Whatever Redis answers; the doorbell can be asked again.
    pub async fn wait(&mut self, connection: &dyn Link, streams: &[Arc<str>]) -> Result<Vec<Arc<str>>, StreamError> {
        let r = Reply { command: "XREAD" };
        let fresh: Vec<Arc<str>> = streams.iter().filter(|stream| !self.seen.contains_key(*stream)).cloned().collect();
        if !fresh.is_empty() {
            self.advance(connection, &fresh).await?;
            return Ok(fresh);
        }
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(BLOCK_MS).arg("STREAMS");
        for stream in streams {
            command.arg(&**stream);
        }
        for stream in streams {
            command.arg(self.seen.get(stream).copied().unwrap_or_default().to_string());
        }
        let reply: Value = command.query_async(&mut Through(connection)).await?;
        let mut rung = Vec::new();
        for item in r.array(reply)? {
            let name = r.array(item)?.into_iter().next().map_or(Ok(String::new()), |name| r.text(name))?;
            rung.extend(streams.iter().find(|stream| ***stream == *name).cloned());
        }
        // The end of the stream is noted before anybody looks: what comes later rings again.
        self.advance(connection, &rung).await?;
        Ok(rung)
    }

    async fn advance(&mut self, connection: &dyn Link, streams: &[Arc<str>]) -> Result<(), StreamError> {
        if streams.is_empty() {
            return Ok(());
        }
        let r = Reply { command: "XREVRANGE" };
        let mut pipe = redis::pipe();
        for stream in streams {
            pipe.cmd("XREVRANGE").arg(&**stream).arg("+").arg("-").arg("COUNT").arg(1);
        }
        let replies: Vec<Value> = pipe.query_async(&mut Through(connection)).await?;
        for (stream, reply) in streams.iter().zip(replies) {
            let last = r.entries(reply)?.first().map_or(EntryId::ZERO, |entry| entry.id);
            let seen = self.seen.entry(stream.clone()).or_default();
            // A stream that was deleted and begun again has smaller ids.
            *seen = last;
        }
        Ok(())
    }
}

impl Default for Doorbell {
    fn default() -> Self {
        Self::new()
    }
}
