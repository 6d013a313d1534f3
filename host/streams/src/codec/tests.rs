use super::*;

fn raw(fields: &[(&str, &str)]) -> RawEntry {
    let fields = fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
    RawEntry { id: EntryId { ms: 7, seq: 1 }, fields }
}

fn envelope_of(fields: &[(&str, &str)]) -> Decoded {
    decode(raw(fields), EntryId { ms: 7, seq: 1 }, &Subscription::plain("stream:attacks"))
}

fn message(decoded: Decoded) -> Message {
    match decoded {
        Decoded::Message(message) => message,
        other => panic!("not a message: {other:?}"),
    }
}

#[test]
fn an_entry_without_fields_is_an_empty_message_with_the_documented_defaults() {
    let message = message(envelope_of(&[("note", "x")]));
    assert_eq!((message.message_id.as_str(), message.payload.as_str()), ("7-1", "{}"));
    assert_eq!((message.priority, message.producer_id.as_str()), (2, "unknown"));
    assert_eq!(message.attributes, [("note".to_owned(), "x".to_owned())]);
}

#[test]
fn the_init_marker_is_told_apart_from_a_message_that_carries_such_a_field() {
    assert!(matches!(envelope_of(&[("init", "true")]), Decoded::Init(_)));
    assert!(matches!(envelope_of(&[("init", "true"), ("payload", "{}")]), Decoded::Message(_)));
}

#[test]
fn python_numbers_beyond_json_become_null_and_large_integers_survive() {
    let payload =
        r#"{"nan": NaN, "inf": [Infinity, -Infinity], "big": 1180591620717411303424, "s": "NaN \" Infinity"}"#;
    let message = message(envelope_of(&[("payload", payload)]));
    assert_eq!(
        message.payload,
        r#"{"nan": null, "inf": [null, null], "big": 1180591620717411303424, "s": "NaN \" Infinity"}"#
    );
    assert_eq!(message.attribute("cofferdam_nonfinite"), Some("true"));
}

#[test]
fn what_does_not_decode_says_which_field_and_keeps_what_it_could_read() {
    for (fields, part) in [
        (vec![("payload", "not json")], "payload is not JSON"),
        (vec![("payload", "{\"a\": nan}")], "payload is not JSON"),
        (vec![("payload", "{}"), ("priority", "high")], "priority is \"high\""),
    ] {
        let Decoded::Malformed { text, .. } = envelope_of(&fields) else { panic!("{fields:?} decoded") };
        assert!(text.contains(part), "{text}");
    }
    let mut entry = raw(&[("payload", "{}")]);
    entry.fields.push((b"raw".to_vec(), vec![0xff, 0x41]));
    let decoded = decode(entry, EntryId::ZERO, &Subscription::plain("s"));
    let Decoded::Malformed { text, message } = decoded else { panic!("bytes decoded") };
    assert!(text.contains("\"raw\" is not UTF-8"), "{text}");
    assert_eq!(message.attributes.len(), 2);
}

#[test]
fn a_priority_out_of_range_is_clamped_and_kept() {
    let message = message(envelope_of(&[("payload", "{}"), ("priority", "9")]));
    assert_eq!((message.priority, message.attribute("cofferdam_priority")), (4, Some("9")));
}

#[test]
fn the_field_codec_takes_one_field_as_the_payload_and_the_rest_as_attributes() {
    let subscription = Subscription { codec: Codec::Field("eve".into()), ..Subscription::plain("suricata") };
    let decoded =
        decode(raw(&[("eve", r#"{"event_type":"alert"}"#), ("host", "a")]), EntryId { ms: 7, seq: 1 }, &subscription);
    let message = message(decoded);
    assert_eq!(message.payload, r#"{"event_type":"alert"}"#);
    assert_eq!(message.attribute("host"), Some("a"));
    assert!(matches!(decode(raw(&[("host", "a")]), EntryId::ZERO, &subscription), Decoded::Malformed { .. }));
}

#[test]
fn the_fields_codec_makes_one_object_of_the_entry() {
    let subscription = Subscription { codec: Codec::Fields, ..Subscription::plain("s") };
    let message = message(decode(raw(&[("a", "1"), ("b", "x\"y")]), EntryId::ZERO, &subscription));
    assert_eq!(message.payload, r#"{"a":"1","b":"x\"y"}"#);
}

#[test]
fn where_and_key_look_into_the_payload() {
    let subscription = Subscription {
        key: Some("/src_ip".into()),
        rules: vec![
            ("/event_type".into(), WhereRule::OneOf(vec!["alert".into(), "ssh".into()])),
            ("/src_ip".into(), WhereRule::Prefix("10.".into())),
            ("/drop".into(), WhereRule::Exists(false)),
        ],
        ..Subscription::plain("s")
    };
    let of = |payload: &str| decode(raw(&[("payload", payload)]), EntryId::ZERO, &subscription);
    assert_eq!(message(of(r#"{"event_type":"ssh","src_ip":"10.0.0.1"}"#)).key.as_deref(), Some("10.0.0.1"));
    assert!(matches!(of(r#"{"event_type":"dns","src_ip":"10.0.0.1"}"#), Decoded::Filtered(_)));
    assert!(matches!(of(r#"{"event_type":"ssh","src_ip":"11.0.0.1"}"#), Decoded::Filtered(_)));
    assert!(matches!(of(r#"{"event_type":"ssh","src_ip":"10.0.0.1","drop":1}"#), Decoded::Filtered(_)));
}

#[test]
fn a_redriven_entry_gives_back_where_it_came_from() {
    let mut entry = raw(&[
        ("cofferdam_stream", "stream:attacks"),
        ("cofferdam_id", "5-1"),
        ("cofferdam_redrives", "2"),
        ("payload", "{}"),
    ]);
    let origin = take_origin(&mut entry).unwrap();
    assert_eq!((origin.stream.as_str(), origin.id, origin.redrives), ("stream:attacks", EntryId { ms: 5, seq: 1 }, 2));
    assert_eq!(entry.fields.len(), 1);
    assert_eq!(take_origin(&mut raw(&[("payload", "{}")])), None);
}
