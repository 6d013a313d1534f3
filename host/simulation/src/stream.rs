//! A stream and its consumer groups, with the rules by which Redis 7.0 counts, reads and trims them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::listpack;

/// An entry's id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) ms: u64,
    pub(crate) seq: u64,
}

impl Id {
    pub(crate) const MIN: Id = Id { ms: 0, seq: 0 };
    pub(crate) const MAX: Id = Id { ms: u64::MAX, seq: u64::MAX };

    pub(crate) fn next(self) -> Option<Id> {
        match (self.seq.checked_add(1), self.ms.checked_add(1)) {
            (Some(seq), _) => Some(Id { ms: self.ms, seq }),
            (None, Some(ms)) => Some(Id { ms, seq: 0 }),
            (None, None) => None,
        }
    }

    pub(crate) fn previous(self) -> Option<Id> {
        match (self.seq.checked_sub(1), self.ms.checked_sub(1)) {
            (Some(seq), _) => Some(Id { ms: self.ms, seq }),
            (None, Some(ms)) => Some(Id { ms, seq: u64::MAX }),
            (None, None) => None,
        }
    }

    pub(crate) fn text(self) -> Vec<u8> {
        format!("{}-{}", self.ms, self.seq).into_bytes()
    }
}

/// An entry: its fields and values in turn. A deleted one keeps its place in its node.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) id: Id,
    pub(crate) fields: Arc<[Vec<u8>]>,
    deleted: bool,
}

/// Some entries in a row: the unit that an approximate trim removes.
#[derive(Clone, Debug)]
struct Node {
    bytes: usize,
    live: usize,
    /// The fields of its first entry; entries that have the same need fewer bytes.
    names: Arc<[Vec<u8>]>,
    entries: Vec<Entry>,
}

const NODE_BYTES: usize = 4_096;
pub(crate) const NODE_ENTRIES: usize = 100;

/// How far to trim.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trim {
    /// Down to this many entries.
    Length(u64),
    /// What has a smaller id.
    Before(Id),
}

/// A pending entry.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) consumer: Arc<[u8]>,
    pub(crate) delivered_ms: i64,
    pub(crate) deliveries: i64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Consumer {
    pub(crate) seen_ms: i64,
    pub(crate) pending: BTreeSet<Id>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    pub(crate) last_id: Id,
    /// Entries read since the stream began; unknown after a jump.
    pub(crate) entries_read: Option<i64>,
    pub(crate) pending: BTreeMap<Id, Pending>,
    pub(crate) consumers: BTreeMap<Arc<[u8]>, Consumer>,
}

impl Group {
    /// The consumer's name as it is kept, and the consumer, created where it is missing and seen now.
    pub(crate) fn meet(&mut self, name: &[u8], now: i64) -> Arc<[u8]> {
        if let Some((kept, _)) = self.consumers.get_key_value(name) {
            let kept = kept.clone();
            if let Some(consumer) = self.consumers.get_mut(name) {
                consumer.seen_ms = now;
            }
            return kept;
        }
        let kept: Arc<[u8]> = name.into();
        self.consumers.insert(kept.clone(), Consumer { seen_ms: now, pending: BTreeSet::new() });
        kept
    }

    /// Makes an entry pending for this consumer, whoever had it before.
    pub(crate) fn give(&mut self, id: Id, pending: Pending) {
        let new = pending.consumer.clone();
        if let Some(old) = self.pending.insert(id, pending) {
            if old.consumer == new {
                return;
            }
            if let Some(consumer) = self.consumers.get_mut(&old.consumer) {
                consumer.pending.remove(&id);
            }
        }
        if let Some(consumer) = self.consumers.get_mut(&new) {
            consumer.pending.insert(id);
        }
    }

    /// Takes an entry off the pending ones; whether it was there.
    pub(crate) fn release(&mut self, id: Id) -> bool {
        let Some(old) = self.pending.remove(&id) else { return false };
        if let Some(consumer) = self.consumers.get_mut(&old.consumer) {
            consumer.pending.remove(&id);
        }
        true
    }

    /// Deletes a consumer and what it held; how much that was.
    pub(crate) fn drop_consumer(&mut self, name: &[u8]) -> usize {
        let Some(consumer) = self.consumers.remove(name) else { return 0 };
        for id in &consumer.pending {
            self.pending.remove(id);
        }
        consumer.pending.len()
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    nodes: BTreeMap<Id, Arc<Node>>,
    pub(crate) length: u64,
    pub(crate) last_id: Id,
    pub(crate) first_id: Id,
    pub(crate) max_deleted_id: Id,
    pub(crate) entries_added: u64,
    pub(crate) groups: BTreeMap<Arc<[u8]>, Arc<Group>>,
}

impl Stream {
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// About the bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        let pending: usize = self.groups.values().map(|group| group.pending.len()).sum();
        512 + self.nodes.values().map(|node| node.bytes).sum::<usize>() + pending * 547
    }

    /// Adds an entry whose id is greater than all before.
    pub(crate) fn append(&mut self, id: Id, fields: Arc<[Vec<u8>]>) {
        let total: usize = fields.iter().map(Vec::len).sum();
        let room = self
            .nodes
            .last_key_value()
            .is_some_and(|(_, node)| node.bytes + total < NODE_BYTES && node.entries.len() < NODE_ENTRIES);
        if !room {
            let names = fields.iter().step_by(2).map(|name| listpack::string(name)).sum::<usize>();
            let head = listpack::integer(1) + 2 * listpack::integer(0) + listpack::integer(count(&fields));
            let bytes = listpack::EMPTY + head + names;
            self.nodes.insert(id, Arc::new(Node { bytes, live: 0, names: fields.clone(), entries: Vec::new() }));
        }
        if let Some(mut last) = self.nodes.last_entry() {
            let first = *last.key();
            Arc::make_mut(last.get_mut()).append(first, id, fields);
        }
        self.length += 1;
        self.entries_added += 1;
        self.last_id = id;
        if self.length == 1 {
            self.first_id = id;
        }
    }

    /// The entry of this id, unless it was deleted.
    pub(crate) fn entry(&self, id: Id) -> Option<&Entry> {
        let (_, node) = self.nodes.range(..=id).next_back()?;
        let at = node.entries.binary_search_by_key(&id, |entry| entry.id).ok()?;
        node.entries.get(at).filter(|entry| !entry.deleted)
    }

    /// The entries from `start` to `end`, both included.
    pub(crate) fn range(&self, start: Id, end: Id) -> impl DoubleEndedIterator<Item = &Entry> {
        // The node that may hold the start begins before it.
        let from = self.nodes.range(..=start).next_back().map_or(start, |(first, _)| *first);
        let nodes = (from <= end).then(|| self.nodes.range(from..=end)).into_iter().flatten();
        nodes.flat_map(move |(_, node)| {
            let at = node.entries.partition_point(|entry| entry.id < start);
            let to = node.entries.partition_point(|entry| entry.id <= end);
            node.entries.get(at..to).unwrap_or_default().iter().filter(|entry| !entry.deleted)
        })
    }

    pub(crate) fn first(&self) -> Option<&Entry> {
        self.range(Id::MIN, Id::MAX).next()
    }

    pub(crate) fn last(&self) -> Option<&Entry> {
        self.range(Id::MIN, Id::MAX).next_back()
    }

    /// Deletes an entry; whether it was there.
    pub(crate) fn delete(&mut self, id: Id) -> bool {
        let Some((&first, node)) = self.nodes.range_mut(..=id).next_back() else { return false };
        let Ok(at) = node.entries.binary_search_by_key(&id, |entry| entry.id) else { return false };
        let node = Arc::make_mut(node);
        let Some(entry) = node.entries.get_mut(at).filter(|entry| !entry.deleted) else { return false };
        entry.deleted = true;
        node.live -= 1;
        if node.live == 0 {
            self.nodes.remove(&first);
        }
        self.length -= 1;
        self.max_deleted_id = self.max_deleted_id.max(id);
        if id == self.first_id {
            self.first_id = self.first().map_or(Id::MIN, |entry| entry.id);
        }
        true
    }

    /// Trims; an approximate trim removes whole nodes only. Not more than `limit` entries, unless it is 0.
    pub(crate) fn trim(&mut self, trim: Trim, approximate: bool, limit: u64) -> u64 {
        let mut removed = 0;
        while let Some(mut first) = self.nodes.first_entry() {
            let node = first.get_mut();
            let live = node.live as u64;
            if matches!(trim, Trim::Length(keep) if self.length <= keep) || (limit > 0 && removed + live > limit) {
                break;
            }
            let whole = match trim {
                Trim::Length(keep) => self.length - live >= keep,
                Trim::Before(id) => node.entries.last().is_none_or(|entry| entry.id < id),
            };
            if whole {
                first.remove();
                self.length -= live;
                removed += live;
                continue;
            }
            if approximate {
                break;
            }
            let node = Arc::make_mut(node);
            for entry in &mut node.entries {
                let enough = match trim {
                    Trim::Length(keep) => self.length <= keep,
                    Trim::Before(id) => entry.id >= id,
                };
                if enough {
                    break;
                }
                if !entry.deleted {
                    entry.deleted = true;
                    node.live -= 1;
                    self.length -= 1;
                    removed += 1;
                }
            }
            break;
        }
        if self.length == 0 {
            self.first_id = Id::MIN;
        } else if removed > 0 {
            self.first_id = self.first().map_or(Id::MIN, |entry| entry.id);
        }
        removed
    }

    /// Whether an entry at or after `start` was deleted by XDEL, as far as the stream remembers.
    fn has_tombstones_from(&self, start: Id) -> bool {
        self.length > 0 && self.first_id <= self.max_deleted_id && start <= self.max_deleted_id
    }

    /// How many entries were ever added up to this id, where that can be told.
    fn distance_from_beginning(&self, id: Id) -> Option<i64> {
        let (added, length) = (self.entries_added as i64, self.length as i64);
        if added == 0 {
            return Some(0);
        }
        if (length == 0 && id <= self.last_id) || id == self.last_id {
            return Some(added);
        }
        if id > self.last_id {
            return None;
        }
        if self.max_deleted_id == Id::MIN || self.max_deleted_id < self.first_id {
            if id < self.first_id {
                return Some(added - length);
            }
            if id == self.first_id {
                return Some(added - length + 1);
            }
        }
        None
    }

    /// How many entries a group has still to read, where that can be told.
    pub(crate) fn lag(&self, group: &Group) -> Option<i64> {
        let added = self.entries_added as i64;
        if added == 0 {
            return Some(0);
        }
        match group.entries_read {
            Some(read) if !self.has_tombstones_from(group.last_id) => Some(added - read),
            _ => self.distance_from_beginning(group.last_id).map(|read| added - read),
        }
    }

    /// What a group has read when it stands at `id` after its next entry.
    pub(crate) fn read_after(&self, read: Option<i64>, id: Id) -> Option<i64> {
        match read {
            Some(read) if !self.has_tombstones_from(id) => Some(read + 1),
            read if self.entries_added == 0 => read,
            _ => self.distance_from_beginning(id),
        }
    }
}

impl Node {
    fn append(&mut self, first: Id, id: Id, fields: Arc<[Vec<u8>]>) {
        let same = fields.len() == self.names.len()
            && fields.iter().step_by(2).zip(self.names.iter().step_by(2)).all(|(name, master)| name == master);
        let difference = |now: u64, then: u64| listpack::integer(now.wrapping_sub(then) as i64);
        let mut bytes =
            listpack::integer(i64::from(same) * 2) + difference(id.ms, first.ms) + difference(id.seq, first.seq);
        bytes += fields.iter().skip(1).step_by(2).map(|value| listpack::string(value)).sum::<usize>();
        let mut elements = count(&fields) + 3;
        if !same {
            bytes += fields.iter().step_by(2).map(|name| listpack::string(name)).sum::<usize>();
            bytes += listpack::integer(count(&fields));
            elements += count(&fields) + 1;
        }
        self.bytes += bytes + listpack::integer(elements);
        self.live += 1;
        self.entries.push(Entry { id, fields, deleted: false });
    }
}

/// How many fields are in a list of fields and values.
fn count(fields: &[Vec<u8>]) -> i64 {
    (fields.len() / 2) as i64
}
