//! How people write sizes, durations and times: `64MiB`, `1s`, `-10m`, RFC 3339, an entry id.

use std::fmt;
use std::time::Duration;

use cofferdam_model::EntryId;
use serde::de::{self, Unexpected, Visitor};
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

/// The earliest moment that an entry id may stand for, in milliseconds since 1970: some day of 1973. What is below was meant as
/// seconds since 1970 or as a month, and an act on all since then would be an act on everything.
const ID_MS_MIN: u64 = 100_000_000_000;

/// Reads a moment.
///
/// # Errors
/// What to write instead.
pub(crate) fn parse_when(text: &str) -> Result<When, &'static str> {
    let text = text.trim();
    let unreadable = "write an age such as -10m, a time such as 2026-11-24T08:00:00Z, a day such as 2026-11-24, or an entry id such as \
                      1795418457352-0";
    if let Some(age) = text.strip_prefix('-') {
        return parse_span(age).map(When::Ago).ok_or(unreadable);
    }
    // A day is its beginning in UTC.
    let stamp = text.parse::<jiff::Timestamp>().or_else(|_| format!("{text}T00:00:00Z").parse());
    if let Ok(stamp) = stamp {
        return u64::try_from(stamp.as_millisecond()).map(When::At).map_err(|_| unreadable);
    }
    match text.parse::<EntryId>() {
        // 0 is the beginning, whenever that was.
        Ok(id) if id.ms == 0 || id.ms >= ID_MS_MIN => Ok(When::Id(id)),
        Ok(_) => Err(
            "as an entry id that is a moment just after 1970: write seconds since 1970 with 000 behind them, a day as \
                      2027-01-01, or the beginning as 0",
        ),
        Err(_) => Err(unreadable),
    }
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
    parse_when(text).map_err(str::to_owned)
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

/// Bytes as they are written in a configuration, exactly.
pub(crate) fn write_bytes(bytes: u64) -> String {
    match bytes {
        b if b > 0 && b % (1 << 30) == 0 => format!("{}GiB", b >> 30),
        b if b > 0 && b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
        b if b > 0 && b % (1 << 10) == 0 => format!("{}KiB", b >> 10),
        b => b.to_string(),
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show_bytes(self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 64MiB, or a number of bytes")
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Bytes, E> {
                u64::try_from(bytes).map(Bytes).map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                let wrong = || E::custom(format!("{text:?} is not a size: write 64MiB, 512KiB or a number of bytes"));
                parse_bytes(text).map(Bytes).ok_or_else(wrong)
            }
        }
        deserializer.deserialize_any(Written)
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
        assert_eq!(parse_when("-10m"), Ok(When::Ago(Duration::from_secs(600))));
        assert_eq!(parse_when("1970-01-01T00:00:01Z"), Ok(When::At(1_000)));
        assert_eq!(parse_when("1970-01-02"), Ok(When::At(86_400_000)));
        assert_eq!(parse_when("1795418457352-1"), Ok(When::Id(EntryId { ms: 1_795_418_457_352, seq: 1 })));
        assert_eq!(parse_when("0"), Ok(When::Id(EntryId::ZERO)));
        assert_eq!(parse_when("0-0"), Ok(When::Id(EntryId::ZERO)));
        assert!(parse_when("yesterday-ish").unwrap_err().contains("an age"));
        assert!(parse_when("2027-01-01T08:00:00").unwrap_err().contains("an age"), "in which zone is not said");
    }

    #[test]
    fn seconds_since_1970_and_a_month_are_not_taken_for_entries_of_1970() {
        for text in ["1795418457", "2027-01", "5-1"] {
            assert!(parse_when(text).unwrap_err().contains("000 behind them"), "{text}");
        }
    }

    #[test]
    fn a_duration_beyond_all_reckoning_is_none() {
        assert_eq!(parse_span("99y").map(|span| span.as_secs() / 86_400), Some(36_159));
        assert_eq!(parse_span("300000000000y"), None);
    }
}
