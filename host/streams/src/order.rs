//! Lanes that keep an order: who owns one, what its owner reads, and what is unfinished when it changes hands.
//!
//! The scripts that settle and take are told the owner's epoch as well ([`crate::SettleContext`], [`crate::TakeFor`]), and write
//! nothing for an owner of the past; a settle is told what the owner has finished, too ([`Tenure`]). Parking asks for neither: what
//! is parked is as unfinished as before, and whoever leaves must be able to let go.

use std::sync::Arc;

use redis::Value;

use cofferdam_model::{EntryId, Token};

use crate::fetch::single_stream;
use crate::reply::Reply;
use crate::{LaneKeys, RawEntry, Store, StreamError};

/// What came of asking for a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owned {
    /// It is still ours.
    Still,
    /// It has become ours, under this epoch, which this consumer has not had before.
    Mine(u64),
    /// Somebody else owns it. The text changes with every sign of life of that owner.
    Other(String),
}

/// By what right the owner of a lane settles: while Redis knows of this epoch and of exactly as much that was finished under it.
///
/// The history of Redis can lose its end (a failover, a power cut). Then fewer messages are finished than the owner knows of, and
/// none may take effect until it has seen which are unfinished again. So only one settle of a lane is under way at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// The epoch.
    pub epoch: u64,
    /// How many messages the owner has finished under it.
    pub finished: u64,
}

impl Tenure {
    /// Of whoever does not own the lane, or does not know what is finished: every settle is refused.
    pub const NONE: Tenure = Tenure { epoch: 0, finished: 0 };
}

/// An entry of a group that is not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its id.
    pub id: EntryId,
    /// Who holds it: a host, or the reserved consumer of parked entries.
    pub holder: Arc<str>,
    /// Under which token.
    pub token: Token,
}

/// Rows of one XPENDING, and entries of one look-up: what keeps Redis busy for a few milliseconds.
const PAGE: usize = 10_000;
const ENTRIES: usize = 500;

impl Store {
    /// Becomes the owner of a lane that has none, or whose owner has been `silent` in this state for too long; renews when
    /// `epoch` is that of the present ownership. `last` is the last epoch that this consumer has had, 0 for none.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn own(
        &self,
        lane: &LaneKeys,
        consumer: &str,
        epoch: Option<u64>,
        last: u64,
        silent: Option<&str>,
    ) -> Result<Owned, StreamError> {
        let script = &self.scripts.own;
        let mut call = script.call(&[&lane.ledger]);
        call.arg(consumer).arg(or_empty(epoch)).arg(silent.unwrap_or_default()).arg(last);
        let r = Reply { command: "own" };
        let mut parts = r.array(script.send(&*self.writes, &call).await?)?.into_iter();
        let (Some(mine), Some(state)) = (parts.next(), parts.next()) else {
            return Err(r.unexpected("an answer without its two parts"));
        };
        Ok(match r.int(&mine)? {
            0 => Owned::Other(r.text(state)?),
            1 => Owned::Still,
            _ => Owned::Mine(r.count(&state)?),
        })
    }

    /// Gives a lane up.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn disown(&self, lane: &LaneKeys, consumer: &str, epoch: u64) -> Result<(), StreamError> {
        let script = &self.scripts.disown;
        let mut call = script.call(&[&lane.ledger]);
        call.arg(consumer).arg(epoch);
        script.send(&*self.writes, &call).await.map(drop)
    }

    /// As [`Store::fetch_new`], for the owner of a lane; nothing when it is not the owner any more.
    ///
    /// # Errors
    /// [`StreamError::NoGroup`] when the group is gone, and whatever else Redis answers.
    pub async fn fetch_owned(
        &self,
        lane: &LaneKeys,
        consumer: &str,
        epoch: u64,
        count: usize,
    ) -> Result<Vec<RawEntry>, StreamError> {
        let script = &self.scripts.read;
        let mut call = script.call(&[&lane.stream, &lane.ledger]);
        call.arg(&*lane.group).arg(consumer).arg(epoch).arg(count);
        single_stream(script.send(&*self.reads, &call).await?)
    }

    /// Everything in a lane's group that is not acknowledged, in the order of the ids.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn unfinished(&self, lane: &LaneKeys) -> Result<Vec<Unfinished>, StreamError> {
        let r = Reply { command: "XPENDING" };
        let mut all: Vec<Unfinished> = Vec::new();
        loop {
            let from = all.last().map_or_else(|| String::from("-"), |last| format!("({}", last.id));
            let mut command = redis::cmd("XPENDING");
            command.arg(&*lane.stream).arg(&*lane.group).arg(from).arg("+").arg(PAGE);
            let page = r.array(self.query::<Value>(&command).await?)?;
            let more = page.len() == PAGE;
            for item in page {
                let mut parts = r.array(item)?.into_iter();
                let (Some(id), Some(holder), Some(count)) = (parts.next(), parts.next(), parts.nth(1)) else {
                    return Err(r.unexpected("a pending entry without its four parts"));
                };
                all.push(Unfinished { id: r.id(id)?, holder: r.text(holder)?.into(), token: Token(r.count(&count)?) });
            }
            if !more {
                return Ok(all);
            }
        }
    }

    /// How many messages the owner of a lane has finished under its epoch. To be asked before [`Store::unfinished`]: a failover in
    /// between then shows at the next settle.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn finished(&self, lane: &LaneKeys) -> Result<u64, StreamError> {
        let finished: Option<u64> = self.query(redis::cmd("HGET").arg(&lane.ledger).arg("finished")).await?;
        Ok(finished.unwrap_or(0))
    }

    /// Which of these entries a lane's group has yet to give out: they are in the stream, and the group stands before them.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn unread(&self, lane: &LaneKeys, ids: &[EntryId]) -> Result<Vec<EntryId>, StreamError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let position = self.group(&lane.stream, &lane.group).await?.map(|group| group.last_delivered);
        let mut unread = Vec::new();
        for id in ids.iter().filter(|id| Some(**id) > position) {
            let text = id.to_string();
            if !self.range(&lane.stream, &text, &text, 1).await?.is_empty() {
                unread.push(*id);
            }
        }
        Ok(unread)
    }

    /// These entries, from their parked copies where somebody trimmed them away. What is nowhere is left out.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn entries_or_copies(&self, lane: &LaneKeys, ids: &[EntryId]) -> Result<Vec<RawEntry>, StreamError> {
        let (r, script) = (Reply { command: "entries" }, &self.scripts.entries);
        let mut entries = Vec::with_capacity(ids.len());
        for part in ids.chunks(ENTRIES) {
            let mut call = script.call(&[&lane.stream, &lane.park]);
            for id in part {
                call.arg(id.to_string());
            }
            entries.extend(r.entries(script.send(&*self.reads, &call).await?)?);
        }
        Ok(entries)
    }
}

/// A number as the scripts take it: empty when there is none.
pub(crate) fn or_empty(number: Option<u64>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}
