//! The keys of the database, what they hold, and when they expire.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::stream::Stream;
use crate::{Refusal, refuse};

/// What a key holds.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Text(Arc<[u8]>),
    Hash(Arc<Hash>),
    Stream(Arc<Stream>),
}

impl Object {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Object::Text(_) => "string",
            Object::Hash(_) => "hash",
            Object::Stream(_) => "stream",
        }
    }
}

/// A hash that lists its fields in the order of their first writing, as a small hash of Redis does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hash {
    fields: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    next: u64,
}

impl Hash {
    pub(crate) fn get(&self, field: &[u8]) -> Option<&[u8]> {
        self.fields.get(field).map(|(_, value)| value.as_slice())
    }

    /// Whether the field is new.
    pub(crate) fn set(&mut self, field: &[u8], value: &[u8]) -> bool {
        if let Some((_, old)) = self.fields.get_mut(field) {
            *old = value.to_vec();
            return false;
        }
        self.fields.insert(field.to_vec(), (self.next, value.to_vec()));
        self.next += 1;
        true
    }

    pub(crate) fn remove(&mut self, field: &[u8]) -> bool {
        self.fields.remove(field).is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.fields.len()
    }

    pub(crate) fn in_order(&self) -> Vec<(&[u8], &[u8])> {
        let mut all: Vec<_> = self.fields.iter().map(|(field, (at, value))| (*at, field, value)).collect();
        all.sort_unstable_by_key(|(at, ..)| *at);
        all.into_iter().map(|(_, field, value)| (field.as_slice(), value.as_slice())).collect()
    }
}

/// The database.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keyspace {
    objects: BTreeMap<Arc<[u8]>, Object>,
    expiries: BTreeMap<Arc<[u8]>, u64>,
    /// How often a stream may have been changed, or a key replaced or deleted.
    stream_writes: u64,
}

pub(crate) const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

impl Keyspace {
    /// Deletes what has expired by now.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        if self.expiries.is_empty() {
            return;
        }
        let expired = self.expiries.iter().filter(|(_, when)| now_ms > **when);
        for key in expired.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.delete(&key);
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Object> {
        self.objects.get(key)
    }

    pub(crate) fn stream_writes(&self) -> u64 {
        self.stream_writes
    }

    pub(crate) fn put(&mut self, key: &[u8], object: Object) {
        self.stream_writes += 1;
        self.expiries.remove(key);
        if let Some(slot) = self.objects.get_mut(key) {
            *slot = object;
        } else {
            self.objects.insert(key.into(), object);
        }
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> bool {
        self.stream_writes += 1;
        self.expiries.remove(key);
        self.objects.remove(key).is_some()
    }

    pub(crate) fn clear(&mut self) {
        *self = Keyspace { stream_writes: self.stream_writes + 1, ..Self::default() };
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = (&[u8], &Object)> {
        self.objects.iter().map(|(key, object)| (&**key, object))
    }

    pub(crate) fn expires_at(&self, key: &[u8]) -> Option<u64> {
        self.expiries.get(key).copied()
    }

    pub(crate) fn set_expiry(&mut self, key: &[u8], when: u64) {
        self.expiries.insert(key.into(), when);
    }

    pub(crate) fn stream(&self, key: &[u8]) -> Result<Option<&Stream>, Refusal> {
        match self.objects.get(key) {
            None => Ok(None),
            Some(Object::Stream(stream)) => Ok(Some(stream)),
            Some(_) => refuse(WRONG_TYPE),
        }
    }

    pub(crate) fn stream_mut(&mut self, key: &[u8]) -> Result<Option<&mut Stream>, Refusal> {
        self.stream_writes += 1;
        match self.objects.get_mut(key) {
            None => Ok(None),
            Some(Object::Stream(stream)) => Ok(Some(Arc::make_mut(stream))),
            Some(_) => refuse(WRONG_TYPE),
        }
    }

    /// The stream of that name, a new one when there is none.
    pub(crate) fn stream_or_new(&mut self, key: &[u8]) -> Result<&mut Stream, Refusal> {
        if !self.objects.contains_key(key) {
            self.put(key, Object::Stream(Arc::default()));
        }
        match self.stream_mut(key)? {
            Some(stream) => Ok(stream),
            None => refuse(WRONG_TYPE),
        }
    }

    pub(crate) fn hash(&self, key: &[u8]) -> Result<Option<&Hash>, Refusal> {
        match self.objects.get(key) {
            None => Ok(None),
            Some(Object::Hash(hash)) => Ok(Some(hash)),
            Some(_) => refuse(WRONG_TYPE),
        }
    }

    pub(crate) fn hash_mut(&mut self, key: &[u8]) -> Result<Option<&mut Hash>, Refusal> {
        match self.objects.get_mut(key) {
            None => Ok(None),
            Some(Object::Hash(hash)) => Ok(Some(Arc::make_mut(hash))),
            Some(_) => refuse(WRONG_TYPE),
        }
    }

    pub(crate) fn hash_or_new(&mut self, key: &[u8]) -> Result<&mut Hash, Refusal> {
        if !self.objects.contains_key(key) {
            self.put(key, Object::Hash(Arc::default()));
        }
        match self.hash_mut(key)? {
            Some(hash) => Ok(hash),
            None => refuse(WRONG_TYPE),
        }
    }
}
