//! The wall clock, read here and passed down as a value.

use jiff::Timestamp;

/// Now, in milliseconds since 1970.
#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// A time in ISO 8601 with microseconds and the zone, as every reader of the envelope's `timestamp` takes it.
pub(crate) fn iso(ms: u64) -> String {
    let stamp = Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(0)).unwrap_or_default();
    stamp.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string()
}

/// The same for people: to the second.
pub(crate) fn short(ms: u64) -> String {
    let stamp = Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(0)).unwrap_or_default();
    stamp.strftime("%Y-%m-%d %H:%M:%S").to_string()
}
