//! Entry fields to [`Message`], and back: pure. A malformed entry is a value, never a skip and never its neighbours' affair.
//!
//! The wire format is the original's, so its producers and consumers work unchanged: seven fields, all strings, each with a
//! default. What else an entry holds becomes attributes.

use std::borrow::Cow;
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::Value as Json;

use cofferdam_model::{EntryId, Message};

/// Names and values, any bytes.
pub type RawFields = Vec<(Vec<u8>, Vec<u8>)>;

/// An entry as Redis stores it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawEntry {
    /// Its id.
    pub id: EntryId,
    /// Its fields in the order stored.
    pub fields: RawFields,
}

impl RawEntry {
    /// Names and values together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.fields.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum()
    }
}

/// How an entry's fields become a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// The original's seven fields; the payload stands in `payload`.
    #[default]
    Envelope,
    /// The named field is the payload, the rest are attributes: `eve` (Suricata), `body` (Redpanda Connect), `msg` (rsyslog).
    Field(String),
    /// The whole entry becomes one JSON object of strings.
    Fields,
}

/// One rule of a subscription's `where`, by JSON pointer into the payload.
#[derive(Clone, Debug, PartialEq)]
pub enum WhereRule {
    /// The value is one of these.
    OneOf(Vec<Json>),
    /// The value is a string that begins with this.
    Prefix(String),
    /// There is such a value (or there is none).
    Exists(bool),
}

/// What a plugin reads, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// The stream.
    pub stream: Arc<str>,
    /// How its entries become messages.
    pub codec: Codec,
    /// JSON pointer to the key.
    pub key: Option<String>,
    /// All must hold, or the message is filtered before any instance exists.
    pub rules: Vec<(String, WhereRule)>,
}

impl Subscription {
    /// A stream in the envelope codec, unfiltered.
    pub fn plain(stream: &str) -> Self {
        Subscription { stream: stream.into(), codec: Codec::Envelope, key: None, rules: Vec::new() }
    }
}

/// What became of an entry's fields.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// A message for the handler.
    Message(Message),
    /// A message that the subscription's `where` does not want.
    Filtered(Message),
    /// The marker that the original writes when it creates a stream: acknowledged and skipped.
    Init(Message),
    /// It does not decode. The message holds what could be read, for the dead letter.
    Malformed {
        /// The field, and what is wrong with it.
        text: String,
        /// What could be read.
        message: Message,
    },
}

/// Where a message from a redrive stream comes from, and what it has been through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The stream it was published on.
    pub stream: String,
    /// Its id there.
    pub id: EntryId,
    /// How often it has been sent back.
    pub redrives: u32,
    /// The park record that it was rescued with; empty for an ordinary redrive.
    pub record: String,
}

/// Takes the fields that a redrive added off an entry; `None` when it is an ordinary entry.
pub fn take_origin(entry: &mut RawEntry) -> Option<Origin> {
    let mut origin = Origin::default();
    let mut found = false;
    entry.fields.retain(|(name, value)| {
        let text = || String::from_utf8_lossy(value).into_owned();
        match name.as_slice() {
            b"cofferdam_stream" => origin.stream = text(),
            b"cofferdam_id" => {
                origin.id = text().parse().unwrap_or_default();
                found = true;
            }
            b"cofferdam_redrives" => origin.redrives = text().parse().unwrap_or(0),
            b"cofferdam_record" => origin.record = text(),
            _ => return true,
        }
        false
    });
    found.then_some(origin)
}

/// Decodes an entry. `id` and `stream` are those it was published under.
pub fn decode(entry: RawEntry, id: EntryId, subscription: &Subscription) -> Decoded {
    let mut message = Message {
        id,
        message_id: String::new(),
        stream: subscription.stream.clone(),
        payload: String::new(),
        priority: 2,
        timestamp: String::new(),
        producer_id: String::new(),
        key: None,
        attributes: Vec::new(),
    };
    let broken = entry
        .fields
        .iter()
        .find(|(name, value)| std::str::from_utf8(name).is_err() || std::str::from_utf8(value).is_err());
    if let Some((name, _)) = broken {
        let text = format!("the field {:?} is not UTF-8", String::from_utf8_lossy(name));
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        message.attributes = entry.fields.iter().map(|(name, value)| (lossy(name), lossy(value))).collect();
        return malformed(message, text);
    }
    let fields = entry.fields.into_iter().map(|(name, value)| (owned_text(name), owned_text(value)));
    let problem = match &subscription.codec {
        Codec::Envelope => return envelope(message, fields, subscription),
        Codec::Field(wanted) => {
            let mut payload = None;
            for (name, value) in fields {
                if name == *wanted && payload.is_none() {
                    payload = Some(value)
                } else {
                    message.attributes.push((name, value))
                }
            }
            match payload {
                Some(payload) => {
                    message.payload = payload;
                    None
                }
                None => {
                    Some(format!("it has no field {wanted:?}, which codec = \"field:{wanted}\" names as the payload"))
                }
            }
        }
        Codec::Fields => {
            let mut object = serde_json::Map::new();
            for (name, value) in fields {
                // What the host needs of an entry it needs in every codec: hops above all, or a cycle would never end.
                if name.starts_with("cofferdam_") || name == "traceparent" {
                    message.attributes.push((name.clone(), value.clone()));
                }
                object.insert(name, Json::String(value));
            }
            message.payload = Json::Object(object).to_string();
            None
        }
    };
    message.message_id = id.to_string();
    message.producer_id = String::from("unknown");
    match problem {
        Some(text) => malformed(message, text),
        None => checked(message, subscription),
    }
}

fn owned_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn malformed(message: Message, text: String) -> Decoded {
    Decoded::Malformed { text, message }
}

fn envelope(
    mut message: Message,
    fields: impl Iterator<Item = (String, String)>,
    subscription: &Subscription,
) -> Decoded {
    let (mut payload, mut priority) = (None, None);
    for (name, value) in fields {
        match name.as_str() {
            "payload" => payload = Some(value),
            "priority" => priority = Some(value),
            "message_id" => message.message_id = value,
            "timestamp" => message.timestamp = value,
            "producer_id" => message.producer_id = value,
            _ => message.attributes.push((name, value)),
        }
    }
    if message.message_id.is_empty() {
        message.message_id = message.id.to_string();
    }
    if message.producer_id.is_empty() {
        message.producer_id.push_str("unknown");
    }
    let is_marker = payload.is_none()
        && message.attributes.len() == 1
        && message.attributes.iter().all(|(name, value)| name == "init" && value == "true");
    message.payload = payload.unwrap_or_else(|| String::from("{}"));
    if is_marker {
        return Decoded::Init(message);
    }
    if let Some(text) = priority {
        match text.parse::<i64>() {
            Ok(number) => {
                message.priority = u8::try_from(number.clamp(1, 4)).unwrap_or(2);
                if i64::from(message.priority) != number {
                    message.attributes.push((String::from("cofferdam_priority"), text));
                }
            }
            Err(_) => {
                let shown: String = text.chars().take(40).collect();
                message.attributes.push((String::from("priority"), text));
                return malformed(message, format!("priority is {shown:?}, not a whole number"));
            }
        }
    }
    checked(message, subscription)
}

/// The checks that every codec ends in: strict JSON, the key, the filter.
fn checked(mut message: Message, subscription: &Subscription) -> Decoded {
    match strict_json(&message.payload) {
        Ok(Cow::Borrowed(_)) => {}
        Ok(Cow::Owned(strict)) => {
            message.payload = strict;
            message.attributes.push((String::from("cofferdam_nonfinite"), String::from("true")));
        }
        Err(error) => return malformed(message, format!("payload is not JSON: {error}")),
    }
    if subscription.key.is_none() && subscription.rules.is_empty() {
        return Decoded::Message(message);
    }
    let json: Json = match serde_json::from_str(&message.payload) {
        Ok(json) => json,
        Err(error) => return malformed(message, format!("payload cannot be searched: {error}")),
    };
    message.key = subscription.key.as_ref().and_then(|pointer| json.pointer(pointer)).map(|value| match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    });
    let wanted = subscription.rules.iter().all(|(pointer, rule)| holds(rule, json.pointer(pointer)));
    if wanted { Decoded::Message(message) } else { Decoded::Filtered(message) }
}

fn holds(rule: &WhereRule, value: Option<&Json>) -> bool {
    match rule {
        WhereRule::OneOf(values) => value.is_some_and(|value| values.contains(value)),
        WhereRule::Prefix(prefix) => value.and_then(Json::as_str).is_some_and(|text| text.starts_with(prefix.as_str())),
        WhereRule::Exists(wanted) => value.is_some() == *wanted,
    }
}

/// Checks that a text is JSON, and replaces what Python's `json` writes beyond the standard (`NaN`, `Infinity`,
/// `-Infinity`) by `null`. Nothing else of the text is touched, so that large integers survive.
pub fn strict_json(text: &str) -> Result<Cow<'_, str>, serde_json::Error> {
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Ok(Cow::Borrowed(text)),
        Err(error) => {
            let Some(repaired) = without_nonfinite(text) else { return Err(error) };
            serde_json::from_str::<IgnoredAny>(&repaired)?;
            Ok(Cow::Owned(repaired))
        }
    }
}

/// The text with every bare `NaN`, `Infinity` and `-Infinity` outside strings replaced; `None` when there is none.
fn without_nonfinite(text: &str) -> Option<String> {
    const WORDS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut in_string, mut replaced) = (text, false, false);
    while let Some(first) = rest.chars().next() {
        let word = WORDS.into_iter().find(|word| !in_string && rest.starts_with(word));
        let taken = match (first, word) {
            (_, Some(word)) => {
                out.push_str("null");
                replaced = true;
                rest = rest.get(word.len()..).unwrap_or_default();
                continue;
            }
            ('\\', None) if in_string => 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
            ('"', None) => {
                in_string = !in_string;
                1
            }
            (other, None) => other.len_utf8(),
        };
        let (piece, after) = rest.split_at_checked(taken)?;
        out.push_str(piece);
        rest = after;
    }
    replaced.then_some(out)
}

#[cfg(test)]
mod tests;
