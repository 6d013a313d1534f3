//! Which streams a plugin reads and which it may write, proved consistent when built.

use std::collections::BTreeSet;
use std::fmt;

use crate::{Event, Fault, ReasonCode};

/// The stream that dead letters go to.
pub const DEAD_LETTER_STREAM: &str = "stream:dead_letter";
/// The stream that operator acts are written to.
pub const OPERATOR_LOG_STREAM: &str = "stream:operator_log";
/// The prefix of every other key of ours.
pub const RESERVED_PREFIX: &str = "cofferdam:";
/// The prefix of the attributes that only the host sets.
pub const RESERVED_ATTRIBUTE_PREFIX: &str = "cofferdam_";
/// The fields of the envelope, in the order that the original writes them.
pub const ENVELOPE_FIELDS: [&str; 7] =
    ["message_id", "payload", "priority", "timestamp", "producer_id", "retry_count", "max_retries"];
/// Longest name of a stream, in bytes.
pub const STREAM_NAME_BYTES_MAX: usize = 256;
/// Streams that one plugin may read, and that it may write: far more than any does, and few enough to look through for every event.
pub const STREAMS_MAX: usize = 256;
/// Attributes that one event may carry: far more than any schema needs, and few enough for one Redis command.
pub const ATTRIBUTES_MAX: usize = 256;
/// Plugins that a message and its descendants may pass, as promised in the wire format.
pub const HOPS_MAX: u32 = 8;

/// The name of a stream, or of all streams that begin alike: `stream:attacks`, `stream:*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPattern {
    text: String,
}

impl StreamPattern {
    /// Checks a pattern: a name, or a prefix followed by one `*` at the end.
    pub fn new(text: &str) -> Result<Self, RouteError> {
        let name = text.strip_suffix('*').unwrap_or(text);
        if !name.is_empty() || text == "*" {
            check_stream_name(if name.is_empty() { "any" } else { name })?;
            return Ok(StreamPattern { text: text.to_owned() });
        }
        Err(RouteError::EmptyName)
    }

    /// Whether a stream's name is one of those meant.
    pub fn matches(&self, stream: &str) -> bool {
        match self.text.strip_suffix('*') {
            Some(prefix) => stream.starts_with(prefix),
            None => stream == self.text,
        }
    }
}

impl fmt::Display for StreamPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is wrong with a plugin's streams.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// An empty name.
    #[error("a stream's name is empty")]
    EmptyName,
    /// Longer than [`STREAM_NAME_BYTES_MAX`].
    #[error("a stream's name has {bytes} bytes, more than {STREAM_NAME_BYTES_MAX}")]
    NameTooLong {
        /// Its length.
        bytes: usize,
    },
    /// Characters that no stream of ours has.
    #[error("the stream {name:?} has characters other than letters, digits and . : _ - / {{ }}")]
    BadName {
        /// The name.
        name: String,
    },
    /// One of the host's own keys.
    #[error("the stream {name:?} is the host's own")]
    Reserved {
        /// The name.
        name: String,
    },
    /// No subscription at all.
    #[error("it subscribes to no stream: write subscribe = [\"stream:attacks\"] into its manifest")]
    NoSubscription,
    /// More than [`STREAMS_MAX`].
    #[error("its {key} names {count} streams, more than {STREAMS_MAX}")]
    TooMany {
        /// `subscribe` or `emit`.
        key: &'static str,
        /// How many.
        count: usize,
    },
    /// The same stream twice.
    #[error("it subscribes to {name:?} twice")]
    SubscribedTwice {
        /// The name.
        name: String,
    },
    /// It would read what it writes.
    #[error("it emits to {name:?}, which it subscribes to: every event would come back to it")]
    OwnCycle {
        /// The name.
        name: String,
    },
}

/// Checks a stream's name: letters, digits and `. : _ - / { }`, of bounded length. Everything else is a typing error or an
/// attempt to write a key that another reader would take for something else.
pub fn check_stream_name(name: &str) -> Result<(), RouteError> {
    if name.is_empty() {
        return Err(RouteError::EmptyName);
    }
    if name.len() > STREAM_NAME_BYTES_MAX {
        return Err(RouteError::NameTooLong { bytes: name.len() });
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b".:_-/{}".contains(&b)) {
        return Err(RouteError::BadName { name: name.to_owned() });
    }
    Ok(())
}

/// An error about a name whose text does not repeat the name, which a guest may have chosen to be long.
fn short(error: &RouteError) -> String {
    match error {
        RouteError::BadName { .. } => String::from("use letters, digits and . : _ - / { } only"),
        RouteError::EmptyName
        | RouteError::NameTooLong { .. }
        | RouteError::Reserved { .. }
        | RouteError::NoSubscription
        | RouteError::TooMany { .. }
        | RouteError::SubscribedTwice { .. }
        | RouteError::OwnCycle { .. } => error.to_string(),
    }
}

/// Whether a stream is the host's own to write: dead letters, the operator log and everything under `cofferdam:`.
pub fn is_reserved(stream: &str) -> bool {
    stream == DEAD_LETTER_STREAM || stream == OPERATOR_LOG_STREAM || stream.starts_with(RESERVED_PREFIX)
}

/// The streams of one plugin. Building one proves that no name is malformed, reserved, doubled or read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    subscribe: Vec<String>,
    emit: Vec<String>,
}

impl Route {
    /// Builds the route of a plugin.
    ///
    /// # Errors
    /// Names the first stream that is malformed, reserved, subscribed twice, or both read and written; or there are too many.
    pub fn new(subscribe: Vec<String>, emit: Vec<String>) -> Result<Self, RouteError> {
        if subscribe.is_empty() {
            return Err(RouteError::NoSubscription);
        }
        for (key, streams) in [("subscribe", &subscribe), ("emit", &emit)] {
            if streams.len() > STREAMS_MAX {
                return Err(RouteError::TooMany { key, count: streams.len() });
            }
        }
        let mut read = BTreeSet::new();
        for name in &subscribe {
            check_stream_name(name)?;
            // A plugin that read the dead letters and failed on one would write the next, and so on for ever.
            if name.starts_with(RESERVED_PREFIX) || name == DEAD_LETTER_STREAM {
                return Err(RouteError::Reserved { name: name.clone() });
            }
            if !read.insert(name) {
                return Err(RouteError::SubscribedTwice { name: name.clone() });
            }
        }
        for name in &emit {
            check_stream_name(name)?;
            if is_reserved(name) {
                return Err(RouteError::Reserved { name: name.clone() });
            }
            if read.contains(name) {
                return Err(RouteError::OwnCycle { name: name.clone() });
            }
        }
        Ok(Route { subscribe, emit })
    }

    /// The streams it reads.
    pub fn subscribe(&self) -> &[String] {
        &self.subscribe
    }

    /// The streams it may write.
    pub fn emit(&self) -> &[String] {
        &self.emit
    }

    /// Whether the events of one delivery may go where they are bound, under the names they carry.
    ///
    /// # Errors
    /// [`Fault::BadOutput`] with the code, the number of the event (from 0) and the mend.
    pub fn check(&self, events: &[Event]) -> Result<(), Fault> {
        events.iter().enumerate().try_for_each(|(index, event)| self.check_event(index, event))
    }

    fn check_event(&self, index: usize, event: &Event) -> Result<(), Fault> {
        let bad = |code, text| Err(Fault::BadOutput { code, text });
        if !self.emit.contains(&event.stream) {
            let stream: String = event.stream.chars().take(80).collect();
            if let Err(error) = check_stream_name(&event.stream) {
                let text =
                    format!("event {index} goes to {stream:?}, which no stream can be called: {}", short(&error));
                return bad(ReasonCode::BadStreamName, text);
            }
            if is_reserved(&event.stream) {
                let text = format!("event {index} goes to {stream:?}, which only the host writes");
                return bad(ReasonCode::ReservedStream, text);
            }
            let text = format!("event {index} goes to {stream:?}; the manifest's emit names {:?}", self.emit);
            return bad(ReasonCode::NotGranted, text);
        }
        if event.priority.is_some_and(|priority| !(1..=4).contains(&priority)) {
            let text = format!("event {index} has priority {}; use 1 to 4", event.priority.unwrap_or(0));
            return bad(ReasonCode::BadOutput, text);
        }
        if event.attributes.len() > ATTRIBUTES_MAX {
            let text = format!("event {index} has {} attributes, more than {ATTRIBUTES_MAX}", event.attributes.len());
            return bad(ReasonCode::OutputLimit, text);
        }
        for (name, _) in &event.attributes {
            let name = name.as_str();
            let reserved = name.starts_with(RESERVED_ATTRIBUTE_PREFIX) || name == "key" || name == "init";
            if reserved || name.is_empty() || ENVELOPE_FIELDS.contains(&name) {
                let name: String = name.chars().take(80).collect();
                return bad(ReasonCode::ReservedField, format!("event {index} sets {name:?}, a field of the host's"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(subscribe: &[&str], emit: &[&str]) -> Result<Route, RouteError> {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Route::new(own(subscribe), own(emit))
    }

    fn event(stream: &str) -> Event {
        Event { stream: stream.into(), payload: "{}".into(), priority: None, key: None, attributes: vec![] }
    }

    #[test]
    fn a_route_refuses_names_that_are_malformed_reserved_doubled_or_read_back() {
        assert!(route(&["stream:attacks"], &["stream:alerts"]).is_ok());
        assert_eq!(route(&[], &[]), Err(RouteError::NoSubscription));
        assert!(matches!(route(&["a b"], &[]), Err(RouteError::BadName { .. })));
        assert!(matches!(route(&["a", "a"], &[]), Err(RouteError::SubscribedTwice { .. })));
        assert!(matches!(route(&["a"], &["a"]), Err(RouteError::OwnCycle { .. })));
        assert!(matches!(route(&["a"], &["b"; 257]), Err(RouteError::TooMany { key: "emit", count: 257 })));
        assert!(matches!(route(&["a"; 257], &[]), Err(RouteError::TooMany { key: "subscribe", .. })));
        assert!(matches!(route(&["cofferdam:format"], &[]), Err(RouteError::Reserved { .. })));
        assert!(matches!(route(&["a"], &[DEAD_LETTER_STREAM]), Err(RouteError::Reserved { .. })));
        assert!(matches!(route(&[DEAD_LETTER_STREAM], &["stream:alerts"]), Err(RouteError::Reserved { .. })));
        assert!(route(&[OPERATOR_LOG_STREAM], &["stream:alerts"]).is_ok());
    }

    #[test]
    fn an_event_outside_the_route_is_a_fault_with_its_own_code() {
        let route = route(&["stream:attacks"], &["stream:alerts"]).unwrap();
        let code = |event: Event| route.check(&[event]).err().map(|fault| fault.code());
        assert_eq!(code(event("stream:alerts")), None);
        assert_eq!(code(event("stream:other")), Some(ReasonCode::NotGranted));
        assert_eq!(code(event("stream:dead_letter")), Some(ReasonCode::ReservedStream));
        assert_eq!(code(event("cofferdam:format")), Some(ReasonCode::ReservedStream));
        for name in ["", "stream:a\nb", "stream:a\0b"] {
            assert_eq!(code(event(name)), Some(ReasonCode::BadStreamName), "{name:?}");
        }
        assert_eq!(code(event(&"a".repeat(10_000))), Some(ReasonCode::BadStreamName));
        let mut forged = event("stream:alerts");
        forged.attributes.push(("cofferdam_plugin".into(), "other".into()));
        assert_eq!(code(forged), Some(ReasonCode::ReservedField));
        let mut doubled = event("stream:alerts");
        doubled.attributes.push(("payload".into(), "{}".into()));
        assert_eq!(code(doubled), Some(ReasonCode::ReservedField));
        let mut loud = event("stream:alerts");
        loud.priority = Some(9);
        assert_eq!(code(loud), Some(ReasonCode::BadOutput));
    }

    #[test]
    fn a_pattern_matches_a_name_or_a_prefix() {
        assert!(StreamPattern::new("stream:*").unwrap().matches("stream:attacks"));
        assert!(!StreamPattern::new("stream:*").unwrap().matches("suricata"));
        assert!(StreamPattern::new("suricata").unwrap().matches("suricata"));
        assert!(StreamPattern::new("*").unwrap().matches("anything"));
        assert!(StreamPattern::new("").is_err());
    }
}
