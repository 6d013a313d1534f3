//! Taking replies apart without copying their bytes.

use redis::Value;

use cofferdam_model::EntryId;

use crate::codec::RawFields;
use crate::{RawEntry, StreamError};

/// A reply, or a part of one, with the name of the command for the error.
pub(crate) struct Reply {
    pub(crate) command: &'static str,
}

impl Reply {
    pub(crate) fn unexpected(&self, detail: impl Into<String>) -> StreamError {
        StreamError::UnexpectedReply { command: self.command, detail: detail.into() }
    }

    pub(crate) fn array(&self, value: Value) -> Result<Vec<Value>, StreamError> {
        match value {
            Value::Array(items) | Value::Set(items) => Ok(items),
            Value::Map(pairs) => Ok(pairs.into_iter().flat_map(|(key, value)| [key, value]).collect()),
            Value::Nil => Ok(Vec::new()),
            other => Err(self.unexpected(format!("{other:?} instead of a list"))),
        }
    }

    pub(crate) fn bytes(&self, value: Value) -> Result<Vec<u8>, StreamError> {
        match value {
            Value::BulkString(bytes) => Ok(bytes),
            Value::SimpleString(text) => Ok(text.into_bytes()),
            Value::Okay => Ok(b"OK".to_vec()),
            Value::Int(number) => Ok(number.to_string().into_bytes()),
            other => Err(self.unexpected(format!("{other:?} instead of a string"))),
        }
    }

    pub(crate) fn text(&self, value: Value) -> Result<String, StreamError> {
        self.bytes(value).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn int(&self, value: &Value) -> Result<i64, StreamError> {
        match value {
            Value::Int(number) => Ok(*number),
            Value::BulkString(bytes) => std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| self.unexpected("a string instead of a number")),
            other => Err(self.unexpected(format!("{other:?} instead of a number"))),
        }
    }

    pub(crate) fn count(&self, value: &Value) -> Result<u64, StreamError> {
        Ok(u64::try_from(self.int(value)?).unwrap_or(0))
    }

    pub(crate) fn id(&self, value: Value) -> Result<EntryId, StreamError> {
        let text = self.text(value)?;
        text.parse().map_err(|_| self.unexpected(format!("{text:?} instead of an entry id")))
    }

    /// The fields of a flat list of names and values, such as XINFO gives.
    pub(crate) fn pairs(&self, value: Value) -> Result<Vec<(String, Value)>, StreamError> {
        let mut items = self.array(value)?.into_iter();
        let mut pairs = Vec::with_capacity(items.len() / 2);
        while let (Some(name), Some(value)) = (items.next(), items.next()) {
            pairs.push((self.text(name)?, value));
        }
        Ok(pairs)
    }

    /// One `[id, [name, value, …]]`.
    pub(crate) fn entry(&self, value: Value) -> Result<RawEntry, StreamError> {
        let mut parts = self.array(value)?.into_iter();
        let (Some(id), Some(fields)) = (parts.next(), parts.next()) else {
            return Err(self.unexpected("an entry without its two parts"));
        };
        Ok(RawEntry { id: self.id(id)?, fields: self.fields(fields)? })
    }

    pub(crate) fn fields(&self, value: Value) -> Result<RawFields, StreamError> {
        let mut items = self.array(value)?.into_iter();
        let mut fields = Vec::with_capacity(items.len() / 2);
        while let (Some(name), Some(value)) = (items.next(), items.next()) {
            fields.push((self.bytes(name)?, self.bytes(value)?));
        }
        Ok(fields)
    }

    pub(crate) fn entries(&self, value: Value) -> Result<Vec<RawEntry>, StreamError> {
        self.array(value)?.into_iter().map(|entry| self.entry(entry)).collect()
    }
}
