//! How people write sizes, durations and times: `64MiB`, `1s`, `-10m`, RFC 3339, an entry id.

use std::fmt;
use std::time::Duration;

use cofferdam_model::EntryId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes: `1048576`, `64KiB`, `1MiB`, `2GiB`, `10MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

/// A duration: `500ms`, `2s`, `5m`, `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

/// A moment, as it is asked for on the command line and in manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// This long before now: `-10m`.
    Ago(Duration),
    /// A time, in milliseconds since 1970: RFC 3339.
    At(u64),
    /// An entry id.
    Id(EntryId),
}

pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = match text.get(digits.len()..)?.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return None,
    };
    digits.trim().replace('_', "").parse::<u64>().ok()?.checked_mul(unit)
}

/// The longest duration that is read: whoever adds a multiple of it to a time that can be gets a time that can be.
const SPAN_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

pub(crate) fn parse_span(text: &str) -> Option<Duration> {
    humantime::parse_duration(text.trim()).ok().filter(|span| *span <= SPAN_MAX)
}

pub(crate) fn parse_when(text: &str) -> Option<When> {
    let text = text.trim();
    if let Some(age) = text.strip_prefix('-') {
        return parse_span(age).map(When::Ago);
    }
    if let Ok(stamp) = text.parse::<jiff::Timestamp>() {
        return u64::try_from(stamp.as_millisecond()).ok().map(When::At);
    }
    text.parse().ok().map(When::Id)
}

impl When {
    /// The first id at or after this moment.
    pub(crate) fn id(self, now_ms: u64) -> EntryId {
        match self {
            When::Ago(span) => {
                EntryId { ms: now_ms.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)), seq: 0 }
            }
            When::At(ms) => EntryId { ms, seq: 0 },
            When::Id(id) => id,
        }
    }
}

/// For clap: a moment.
pub(crate) fn when_argument(text: &str) -> Result<When, String> {
    parse_when(text).ok_or_else(|| {
        String::from(
            "write an age such as -10m, a time such as 2026-11-24T08:00:00Z, or an entry id such as 1795418457352-0",
        )
    })
}

/// For clap: a duration.
pub(crate) fn span_argument(text: &str) -> Result<Duration, String> {
    parse_span(text).ok_or_else(|| String::from("write a duration such as 500ms, 30s or 5m"))
}

/// Bytes for people.
pub(crate) fn show_bytes(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{:.1} GiB", b as f64 / f64::from(1u32 << 30)),
        b if b >= 1 << 20 => format!("{:.1} MiB", b as f64 / f64::from(1u32 << 20)),
        b if b >= 1 << 10 => format!("{:.1} KiB", b as f64 / 1024.0),
        b => format!("{b} B"),
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show_bytes(self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Bytes(bytes)),
            Written::Text(text) => parse_bytes(&text).map(Bytes).ok_or_else(|| {
                serde::de::Error::custom(format!("{text:?} is not a size: write 64MiB, 512KiB or a number of bytes"))
            }),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_span(&text)
            .map(Span)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a duration: write 500ms, 2s, 5m or 1h")))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&humantime::format_duration(self.0).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_moments_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("64MiB"), Some(64 << 20));
        assert_eq!(parse_bytes("10 MB"), Some(10_000_000));
        assert_eq!(parse_bytes("1_000"), Some(1_000));
        assert_eq!(parse_bytes("64 potatoes"), None);
        assert_eq!(parse_bytes("99999999999GiB"), None);
        assert_eq!(parse_when("-10m"), Some(When::Ago(Duration::from_secs(600))));
        assert_eq!(parse_when("1970-01-01T00:00:01Z"), Some(When::At(1_000)));
        assert_eq!(parse_when("5-1"), Some(When::Id(EntryId { ms: 5, seq: 1 })));
        assert_eq!(parse_when("yesterday-ish"), None);
    }

    #[test]
    fn a_duration_beyond_all_reckoning_is_none() {
        assert_eq!(parse_span("99y").map(|span| span.as_secs() / 86_400), Some(36_159));
        assert_eq!(parse_span("300000000000y"), None);
    }
}
