//! Reading dead letters, sending them back and discarding them. Every historic shape can be read.

use serde_json::Value as Json;

use cofferdam_model::EntryId;
use cofferdam_model::route::DEAD_LETTER_STREAM;

use crate::codec::RawFields;
use crate::reply::Reply;
use crate::{LaneKeys, RawEntry, Store, StreamError, redrive_stream};

/// A dead letter as it stands in the stream. Fields of historic shapes that lack them are empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredLetter {
    /// Its own id among the dead letters.
    pub id: EntryId,
    /// Where the message was published.
    pub original_stream: String,
    /// Its id there.
    pub original_id: String,
    /// The group that gave up on it; empty in the original's shapes, which had none.
    pub group: String,
    /// The plugin.
    pub plugin: String,
    /// The version.
    pub digest: String,
    /// The reason code; `max-retries` for the original's.
    pub code: String,
    /// The words for it.
    pub reason: String,
    /// When, as written.
    pub failed_at: String,
    /// Charged attempts: JSON list.
    pub attempts: Json,
    /// The wasm backtrace.
    pub trap: String,
    /// The last log lines.
    pub log_tail: String,
    /// How often it had been sent back before.
    pub redrives: u32,
    /// What it weighs in the quota; 0 when it was never counted.
    pub bytes: u64,
    /// The JSON view of the message.
    pub original_message: Json,
    /// The original entry's fields: byte for byte when the settle script copied them, rebuilt from the JSON view otherwise.
    pub original_fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the fields are the copy.
    pub exact: bool,
}

impl StoredLetter {
    /// The ledger that counts it: of the lane that first read its message.
    fn ledger(&self) -> String {
        LaneKeys::new(&self.original_stream, &self.group).ledger
    }

    /// Reads one, in our shape or in any that the original wrote (one JSON field, with or without `reason`; or the keys of that
    /// JSON directly as fields).
    pub fn read(entry: RawEntry) -> Self {
        let mut letter = StoredLetter { id: entry.id, ..StoredLetter::default() };
        let mut view = serde_json::Map::new();
        for (name, value) in entry.fields {
            if let Some(original) = name.strip_prefix(b"orig:") {
                letter.original_fields.push((original.to_vec(), value));
                letter.exact = true;
                continue;
            }
            let text = String::from_utf8_lossy(&value).into_owned();
            match String::from_utf8_lossy(&name).as_ref() {
                "payload" => {
                    if let Ok(Json::Object(object)) = serde_json::from_str(&text) {
                        view = object;
                    }
                }
                "original_stream" => letter.original_stream = text,
                "original_id" => letter.original_id = text,
                "group" => letter.group = text,
                "plugin" => letter.plugin = text,
                "digest" => letter.digest = text,
                "code" => letter.code = text,
                "reason" => letter.reason = text,
                "attempts" => letter.attempts = serde_json::from_str(&text).unwrap_or(Json::Null),
                "trap" => letter.trap = text,
                "log_tail" => letter.log_tail = text,
                "redrives" => letter.redrives = text.parse().unwrap_or(0),
                "bytes" => letter.bytes = text.parse().unwrap_or(0),
                "failed_at" => letter.failed_at = text,
                "original_message" => {
                    letter.original_message = serde_json::from_str(&text).unwrap_or(Json::String(text))
                }
                _ => {}
            }
        }
        let of = |name: &str| view.get(name).and_then(Json::as_str).unwrap_or_default().to_owned();
        for (field, name) in [
            (&mut letter.original_stream, "original_stream"),
            (&mut letter.reason, "reason"),
            (&mut letter.failed_at, "failed_at"),
        ] {
            if field.is_empty() {
                *field = of(name);
            }
        }
        if let Some(message) = view.remove("original_message") {
            letter.original_message = message;
        }
        if letter.code.is_empty() {
            letter.code = String::from("max-retries");
        }
        if !letter.exact {
            letter.original_fields = rebuilt(&letter.original_message);
        }
        letter
    }

    /// The entry that sends it back: where it comes from, and then the fields of its message.
    pub fn sent_back(&self) -> RawFields {
        // Anybody can write a dead letter. One whose id is none must not share an identity with the next such.
        let id = self.original_id.parse().unwrap_or(self.id).to_string();
        let redrives = self.redrives.saturating_add(1).to_string();
        let ours = [
            ("cofferdam_stream", self.original_stream.clone()),
            ("cofferdam_id", id),
            ("cofferdam_redrives", redrives),
        ];
        // A letter that had been sent back before, or a producer that writes such fields itself, must not speak over ours.
        let reserved: [&[u8]; 4] = [b"cofferdam_stream", b"cofferdam_id", b"cofferdam_redrives", b"cofferdam_record"];
        let theirs = self.original_fields.iter().filter(|(name, _)| !reserved.contains(&name.as_slice())).cloned();
        let ours = ours.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), value.into_bytes()));
        ours.chain(theirs).collect()
    }
}

/// The fields that the original's publisher wrote, from the JSON view of its message.
fn rebuilt(message: &Json) -> Vec<(Vec<u8>, Vec<u8>)> {
    let Some(object) = message.as_object() else { return Vec::new() };
    let text = |value: &Json| match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    };
    let known = object.iter().filter(|(name, _)| cofferdam_model::route::ENVELOPE_FIELDS.contains(&name.as_str()));
    known.map(|(name, value)| (name.clone().into_bytes(), text(value).into_bytes())).collect()
}

impl Store {
    /// Dead letters by range of their own ids, oldest first.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn dead_letters(&self, from: &str, to: &str, count: usize) -> Result<Vec<StoredLetter>, StreamError> {
        if self.key_type(DEAD_LETTER_STREAM).await? == "none" {
            return Ok(Vec::new());
        }
        let entries = self.range(DEAD_LETTER_STREAM, from, to, count).await?;
        Ok(entries.into_iter().map(StoredLetter::read).collect())
    }

    /// Sends a dead letter back to `group`, in one atomic step. `None` when it is no longer there.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn redrive(&self, letter: &StoredLetter, group: &str) -> Result<Option<EntryId>, StreamError> {
        let script = &self.scripts.redrive;
        let mut call = script.call(&[DEAD_LETTER_STREAM, &redrive_stream(group), &letter.ledger()]);
        let fields = letter.sent_back();
        call.arg(letter.id.to_string()).arg(group).arg(fields.len() * 2);
        for (name, value) in fields {
            call.arg(name).arg(value);
        }
        let r = Reply { command: "redrive" };
        let id = r.text(script.send(&*self.writes, &call).await?)?;
        if id.is_empty() {
            return Ok(None);
        }
        id.parse().map(Some).map_err(|_| r.unexpected(format!("{id:?} instead of an entry id")))
    }

    /// What takes a dead letter's bytes out of the count when it is discarded: a command, to be sent with the deletion.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn uncount(&self, letter: &StoredLetter) -> Result<Option<redis::Cmd>, StreamError> {
        // A ledger that was removed with its plugin stays removed.
        if letter.bytes == 0 || self.key_type(&letter.ledger()).await? != "hash" {
            return Ok(None);
        }
        let mut command = redis::cmd("HINCRBY");
        command.arg(letter.ledger()).arg("dead_bytes").arg(-i64::try_from(letter.bytes).unwrap_or(i64::MAX));
        Ok(Some(command))
    }

    /// Deletes a dead letter; whether it was there.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn discard(&self, id: EntryId) -> Result<bool, StreamError> {
        let count: u64 = self.query(redis::cmd("XDEL").arg(DEAD_LETTER_STREAM).arg(id.to_string())).await?;
        Ok(count == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(fields: &[(&str, &str)]) -> StoredLetter {
        let fields = fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
        StoredLetter::read(RawEntry { id: EntryId { ms: 9, seq: 0 }, fields })
    }

    #[test]
    fn the_three_historic_shapes_can_be_read() {
        let message = r#"{"message_id":"m","stream":"stream:attacks","payload":{"a":1},"priority":3,"retry_count":3}"#;
        let code = format!(
            r#"{{"original_stream":"stream:attacks","original_message":{message},"failed_at":"t","retry_count":3}}"#
        );
        let essay = format!(
            r#"{{"original_stream":"stream:attacks","original_message":{message},"failed_at":"t","reason":"Max retries exceeded"}}"#
        );
        for fields in [
            vec![("payload", code.as_str())],
            vec![("payload", essay.as_str())],
            vec![
                ("original_stream", "stream:attacks"),
                ("original_message", message),
                ("failed_at", "t"),
                ("reason", "x"),
            ],
        ] {
            let letter = letter(&fields);
            assert_eq!((letter.original_stream.as_str(), letter.code.as_str()), ("stream:attacks", "max-retries"));
            let payload = letter.original_fields.iter().find(|(name, _)| name == b"payload").unwrap();
            assert_eq!(payload.1, br#"{"a":1}"#);
            assert!(!letter.exact);
        }
    }

    #[test]
    fn the_copy_of_the_original_entry_is_taken_before_the_json_view() {
        let letter = letter(&[
            ("payload", "{}"),
            ("original_id", "5-1"),
            ("code", "trap"),
            ("orig:payload", "raw \u{1}"),
            ("orig:x", "y"),
        ]);
        assert!(letter.exact);
        assert_eq!(letter.original_fields[0], (b"payload".to_vec(), b"raw \x01".to_vec()));
        assert_eq!(letter.code, "trap");
    }

    #[test]
    fn a_forged_letter_is_sent_back_under_an_id_of_its_own_and_counts_no_further_than_a_number_goes() {
        let letter = letter(&[("original_id", "5-es"), ("redrives", "4294967295"), ("orig:payload", "{}")]);
        let mut entry = RawEntry { id: letter.id, fields: letter.sent_back() };
        let origin = crate::codec::take_origin(&mut entry).unwrap();
        assert_eq!((origin.id, origin.redrives), (EntryId { ms: 9, seq: 0 }, u32::MAX));
    }
}
