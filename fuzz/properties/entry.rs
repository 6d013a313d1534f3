//! What must be true of every entry that a producer adds, and of every dead letter that somebody finds or forges: it decodes into a
//! message that keeps the contract or into a dead letter that says why; sent back, it is what it was.
//!
//! The bytes of an input are: one that chooses the subscription, then fields that end in 0xFF, each a name and a value with 0xFE
//! between them. Neither byte is ever part of UTF-8; the others that are not are left for the fields.

use std::borrow::Cow;

use cofferdam_model::EntryId;
use cofferdam_streams::codec::{strict_json, take_origin};
use cofferdam_streams::dead_letters::StoredLetter;
use cofferdam_streams::{Codec, Decoded, RawEntry, Subscription, WhereRule, decode};
use serde::de::IgnoredAny;
use serde_json::Value as Json;

const ID: EntryId = EntryId { ms: 1_795_418_457_352, seq: 7 };

/// Fails when it is not so.
pub(crate) fn holds(bytes: &[u8]) {
    let Some((&choice, fields)) = bytes.split_first() else { return };
    let fields = fields.split(|&byte| byte == 0xff).filter(|field| !field.is_empty());
    let fields = fields.map(|field| match field.iter().position(|&byte| byte == 0xfe) {
        Some(at) => {
            let (name, value) = field.split_at(at);
            (name.to_vec(), value.get(1..).unwrap_or_default().to_vec())
        }
        None => (field.to_vec(), Vec::new()),
    });
    let entry = RawEntry { id: ID, fields: fields.collect() };
    decodes(entry.clone(), &subscription(choice));
    comes_back(entry.clone());
    origin(entry);
}

fn subscription(choice: u8) -> Subscription {
    let mut subscription = Subscription::plain("stream:attacks");
    subscription.codec = match choice % 3 {
        0 => Codec::Envelope,
        1 => Codec::Field(String::from("eve")),
        _ => Codec::Fields,
    };
    if choice & 4 != 0 {
        subscription.key = Some(String::from("/src_ip"));
    }
    if choice & 8 != 0 {
        subscription.rules = vec![
            (String::from("/event_type"), WhereRule::OneOf(vec![Json::from("alert"), Json::from(7)])),
            (String::from("/src_ip"), WhereRule::Prefix(String::from("203."))),
            (String::from("/a/0"), WhereRule::Exists(choice & 16 != 0)),
        ];
    }
    subscription
}

fn decodes(entry: RawEntry, subscription: &Subscription) {
    let utf8 = entry.fields.iter().all(|(name, value)| str::from_utf8(name).is_ok() && str::from_utf8(value).is_ok());
    let decoded = decode(entry, ID, subscription);
    let message = match &decoded {
        Decoded::Message(message) | Decoded::Filtered(message) | Decoded::Init(message) => {
            assert!(utf8, "what is not UTF-8 became a message");
            assert!(is_json(&message.payload), "the payload is not JSON: {:?}", message.payload);
            message
        }
        Decoded::Malformed { text, message } => {
            assert!(!text.is_empty(), "malformed for no reason");
            message
        }
    };
    assert!((1..=4).contains(&message.priority), "priority {}", message.priority);
    assert_eq!((message.id, &*message.stream), (ID, "stream:attacks"));
    if !matches!(decoded, Decoded::Malformed { .. }) {
        assert!(!message.message_id.is_empty() && !message.producer_id.is_empty());
    }
    if subscription.rules.is_empty() {
        assert!(!matches!(decoded, Decoded::Filtered(_)), "filtered by no rule");
    }
    sanitised(&message.payload);
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// JSON stays as it is, byte for byte; what Python writes beyond it becomes JSON; the rest is refused.
fn sanitised(text: &str) {
    match strict_json(text) {
        Ok(Cow::Borrowed(same)) => assert!(same == text && is_json(text)),
        Ok(Cow::Owned(mended)) => {
            assert!(!is_json(text), "JSON was changed");
            assert!(is_json(&mended), "mended into what is no JSON: {mended:?}");
            assert!(["NaN", "Infinity"].iter().any(|word| text.contains(word)), "mended without a reason");
        }
        Err(_) => assert!(!is_json(text), "JSON was refused"),
    }
}

/// A dead letter in whatever shape can be read, and what is sent back of it says where it comes from and is otherwise its entry.
fn comes_back(entry: RawEntry) {
    let letter = StoredLetter::read(entry);
    let mut again = RawEntry { id: ID, fields: letter.sent_back() };
    let origin = take_origin(&mut again).expect("what is sent back says so");
    assert_eq!(origin.stream, letter.original_stream);
    assert_eq!(origin.id, letter.original_id.parse().unwrap_or(letter.id), "it has lost who it is");
    assert_eq!(origin.redrives, letter.redrives.saturating_add(1), "it forgets how often it was sent back");
    assert!(origin.record.is_empty(), "a producer's record was believed");
    let theirs = |(name, _): &&(Vec<u8>, Vec<u8>)| !OURS.contains(&name.as_slice());
    assert!(again.fields.iter().eq(letter.original_fields.iter().filter(theirs)), "its fields are others");
}

/// The fields that a redrive adds.
const OURS: [&[u8]; 4] = [b"cofferdam_stream", b"cofferdam_id", b"cofferdam_redrives", b"cofferdam_record"];

/// An entry of a redrive stream keeps nothing of what was added.
fn origin(mut entry: RawEntry) {
    take_origin(&mut entry);
    assert!(!entry.fields.iter().any(|(name, _)| OURS.contains(&name.as_slice())), "ours are left in it");
}
