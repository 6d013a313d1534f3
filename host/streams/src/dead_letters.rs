//! Reading dead letters, sending them back and discarding them. Every historic shape can be read.

use serde_json::Value as Json;

use cofferdam_model::EntryId;
use cofferdam_model::route::{DEAD_LETTER_STREAM, OPERATOR_LOG_STREAM};

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
    /// The JSON view of the message.
    pub original_message: Json,
    /// The original entry's fields: byte for byte when the settle script copied them, rebuilt from the JSON view otherwise.
    pub original_fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the fields are the copy.
    pub exact: bool,
    /// Whether the entry had more fields than the copy.
    pub truncated: bool,
}

/// Who acts on dead letters, for the operator log.
#[derive(Clone, Copy, Debug)]
pub struct Operator<'a> {
    /// When, in ISO 8601.
    pub at: &'a str,
    /// `user@machine`.
    pub who: &'a str,
    /// The reason given; empty when none was.
    pub why: &'a str,
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
                "orig_truncated" => letter.truncated = true,
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

    /// What it lacks of the entry that was published; `None` when it has all. What the original program wrote is all that there
    /// ever was of it.
    pub fn lacks(&self) -> Option<&'static str> {
        if self.truncated {
            return Some("only the first 3,000 fields of the entry were kept");
        }
        let rebuilt = !self.exact && !self.group.is_empty() && !self.original_fields.is_empty();
        rebuilt.then_some(
            "the entry was gone before it could be copied: the seven fields of the envelope are left, as its view tells them",
        )
    }

    /// An act on it, as the operator log keeps it. What was discarded is found there by its stream, id and group.
    fn act(&self, verb: &str, what: &str, by: &Operator<'_>) -> [(&'static str, String); 10] {
        [
            ("at", by.at.to_owned()),
            ("who", by.who.to_owned()),
            ("verb", verb.to_owned()),
            ("what", what.to_owned()),
            ("why", by.why.to_owned()),
            ("letter", self.id.to_string()),
            ("stream", self.original_stream.clone()),
            ("id", self.original_id.clone()),
            ("group", self.group.clone()),
            ("digest", self.digest.clone()),
        ]
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

    /// Sends a dead letter back to `group` and writes the act down, in one atomic step. `None` when it is no longer there.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn redrive(
        &self,
        letter: &StoredLetter,
        group: &str,
        by: &Operator<'_>,
    ) -> Result<Option<EntryId>, StreamError> {
        let script = &self.scripts.redrive;
        let keys = [DEAD_LETTER_STREAM, &redrive_stream(group), &letter.ledger(), OPERATOR_LOG_STREAM];
        let mut call = script.call(&keys);
        let fields = letter.sent_back();
        call.arg(letter.id.to_string()).arg(group).arg(fields.len() * 2);
        for (name, value) in fields {
            call.arg(name).arg(value);
        }
        let what = format!("{} {} to {group}", letter.original_stream, letter.original_id);
        for (name, value) in letter.act("dlq.redrive", &what, by) {
            call.arg(name).arg(value);
        }
        let r = Reply { command: "redrive" };
        let id = r.text(script.send(&*self.writes, &call).await?)?;
        if id.is_empty() {
            return Ok(None);
        }
        id.parse().map(Some).map_err(|_| r.unexpected(format!("{id:?} instead of an entry id")))
    }

    /// Deletes a dead letter for good and writes the act down, in one atomic step; whether it was there.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn discard(&self, letter: &StoredLetter, by: &Operator<'_>) -> Result<bool, StreamError> {
        let script = &self.scripts.discard;
        let mut call = script.call(&[DEAD_LETTER_STREAM, &letter.ledger(), OPERATOR_LOG_STREAM]);
        call.arg(letter.id.to_string());
        let group = if letter.group.is_empty() { "-" } else { &letter.group };
        let what = format!("{} {} of {group}", letter.original_stream, letter.original_id);
        for (name, value) in letter.act("dlq.discard", &what, by) {
            call.arg(name).arg(value);
        }
        Ok(Reply { command: "discard" }.int(&script.send(&*self.writes, &call).await?)? == 1)
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
