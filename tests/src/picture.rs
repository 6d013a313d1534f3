//! A picture of all streams of the actor at one moment, and what must be true of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cofferdam_model::EntryId;
use redis::streams::{StreamInfoGroupsReply, StreamInfoStreamReply, StreamPendingCountReply, StreamRangeReply};
use serde_json::Value;

use crate::checker::{Left, fails_at_first, is_poison, outputs_of};
use crate::comes_true;
use crate::servers::{command, connection};

/// What a picture is taken with: one script, because at its memory limit Redis does not even queue a transaction.
const PICTURE: &str = "#!lua flags=no-writes,allow-oom
return {
  redis.call('XINFO', 'GROUPS', 'stream:in'),
  redis.call('XPENDING', 'stream:in', 'group:actor', '-', '+', 10000000),
  redis.call('XRANGE', 'stream:in', '-', '+'),
  redis.call('XRANGE', 'stream:out', '-', '+'),
  redis.call('XRANGE', 'stream:dead_letter', '-', '+'),
  redis.call('HGET', 'cofferdam:ledger:stream:in|group:actor', 'retried')
}";

/// All streams of the actor at one moment.
pub struct Picture {
    /// What stands in the input: ids and numbers.
    pub input: BTreeMap<EntryId, u64>,
    delivered: EntryId,
    pending: BTreeSet<EntryId>,
    outputs: BTreeMap<(u64, u64), usize>,
    dead: BTreeMap<u64, usize>,
    /// Attempts that were charged and parked.
    charged: u64,
}

impl Picture {
    /// Takes it.
    ///
    /// # Errors
    /// Why the server cannot say.
    pub fn try_of(url: &str) -> Result<Self, String> {
        let mut connection = connection(url).ok_or("nobody is there")?;
        let (groups, pending, input, outputs, dead, charged): (
            StreamInfoGroupsReply,
            StreamPendingCountReply,
            StreamRangeReply,
            StreamRangeReply,
            StreamRangeReply,
            Option<u64>,
        ) = redis::cmd("EVAL").arg(PICTURE).arg(0).query(&mut connection).map_err(|error| error.to_string())?;
        let id = |text: &str| text.parse::<EntryId>().expect("redis writes ids");
        let group = groups.groups.into_iter().find(|group| group.name == "group:actor").ok_or("no group")?;
        let mut picture = Picture {
            delivered: id(&group.last_delivered_id),
            pending: pending.ids.iter().map(|pending| id(&pending.id)).collect(),
            input: input.ids.iter().map(|entry| (id(&entry.id), number(entry, "payload", "seq"))).collect(),
            outputs: BTreeMap::new(),
            dead: BTreeMap::new(),
            charged: charged.unwrap_or(0),
        };
        for entry in &outputs.ids {
            let output = (number(entry, "payload", "seq"), number(entry, "payload", "index"));
            *picture.outputs.entry(output).or_default() += 1;
        }
        for entry in &dead.ids {
            *picture.dead.entry(number(entry, "orig:payload", "seq")).or_default() += 1;
        }
        Ok(picture)
    }

    /// Takes it.
    pub fn of(url: &str) -> Self {
        Self::try_of(url).unwrap_or_else(|error| panic!("no picture of {url}: {error}"))
    }

    /// Waits until everything is settled, and takes it then; or as it is when that does not come.
    pub fn at_rest(url: &str, patience: Duration) -> Self {
        comes_true(patience, || unsettled(url) == Some(0));
        Self::of(url)
    }

    /// How many outputs there are.
    pub fn outputs(&self) -> usize {
        self.outputs.values().sum()
    }

    /// How many entries the group holds or has not read.
    pub fn unsettled(&self) -> u64 {
        self.input.keys().filter(|id| !self.is_done(**id)).count() as u64
    }

    fn is_done(&self, id: EntryId) -> bool {
        id <= self.delivered && !self.pending.contains(&id)
    }

    /// The accepted numbers that are not in the input.
    pub fn missing(&self, accepted: &BTreeSet<u64>) -> BTreeSet<u64> {
        let there: BTreeSet<u64> = self.input.values().copied().collect();
        accepted.difference(&there).copied().collect()
    }

    /// What breaks the rule that an acknowledgement and its outputs are one: each input is not acknowledged and without
    /// effect, or acknowledged with all of it; and there is no effect without its input. True at every moment.
    pub fn torn(&self) -> Vec<String> {
        let mut torn = Vec::new();
        for (&id, &seq) in &self.input {
            let (found, dead) = (self.outputs_of(seq), self.dead.contains_key(&seq));
            let whole = found == outputs_of(seq) && dead == is_poison(seq);
            if self.is_done(id) && !whole {
                torn.push(format!("{seq} is acknowledged with {found} outputs, dead: {dead}"));
            }
            if !self.is_done(id) && (found > 0 || dead) {
                torn.push(format!("{seq} is not acknowledged, and has {found} outputs, dead: {dead}"));
            }
        }
        let there: BTreeSet<u64> = self.input.values().copied().collect();
        for seq in self.outputs.keys().map(|(seq, _)| seq).chain(self.dead.keys()) {
            if !there.contains(seq) {
                torn.push(format!("{seq} has effects and is not in the input"));
            }
        }
        torn
    }

    fn outputs_of(&self, seq: u64) -> usize {
        self.outputs.range((seq, 0)..(seq + 1, 0)).count()
    }

    /// The same judgement as [`crate::checker::check`], over what really stands in the input.
    pub fn left(&self) -> Left {
        let twice = |count: &&usize| **count > 1;
        let mut left = Left {
            doubled: self.outputs.values().filter(twice).count() + self.dead.values().filter(twice).count(),
            unsettled: self.unsettled(),
            ..Left::default()
        };
        for &seq in self.input.values() {
            left.note(outputs_of(seq), self.outputs_of(seq), self.dead.contains_key(&seq));
        }
        left
    }

    /// Attempts that were charged, and those that had to be: two for each poison (its third makes it a dead letter), one for
    /// each message that fails at first. More means that somebody paid for a fault that was not his.
    pub fn charges(&self) -> (u64, u64) {
        let due = |seq: u64| if is_poison(seq) { 2 } else { u64::from(fails_at_first(seq)) };
        (self.charged, self.input.values().map(|seq| due(*seq)).sum())
    }

    /// Fails the test unless everything ended as it must.
    pub fn assert_good(&self) {
        let (left, (charged, due)) = (self.left(), self.charges());
        println!(
            "{} entries, {} outputs, {} dead letters, {charged} attempts charged: {left:?}",
            self.input.len(),
            self.outputs(),
            self.dead.len()
        );
        assert_eq!(left, Left::default());
        assert_eq!(self.torn(), Vec::<String>::new());
        assert_eq!(charged, due, "attempts were charged that no message had to pay for, or some were forgotten");
    }
}

fn number(entry: &redis::streams::StreamId, field: &str, name: &str) -> u64 {
    let text: Option<String> = entry.get(field);
    let json: Option<Value> = text.as_deref().and_then(|text| serde_json::from_str(text).ok());
    json.and_then(|json| json[name].as_u64()).unwrap_or_else(|| panic!("no {name} in {entry:?}"))
}

/// How many entries the actor's group holds, and one more when there are some that it has not read; none when the server
/// cannot say. The lag that Redis tells is no help: a promoted replica does not know it.
pub fn unsettled(url: &str) -> Option<usize> {
    let mut connection = connection(url)?;
    let (stream, groups): (StreamInfoStreamReply, StreamInfoGroupsReply) = redis::pipe()
        .add_command(command(&["XINFO", "STREAM", "stream:in"]))
        .add_command(command(&["XINFO", "GROUPS", "stream:in"]))
        .query(&mut connection)
        .ok()?;
    let group = groups.groups.into_iter().find(|group| group.name == "group:actor")?;
    Some(group.pending + usize::from(group.last_delivered_id != stream.last_generated_id))
}
