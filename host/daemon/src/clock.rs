//! The wall clock, read here and passed down as a value.

use jiff::Timestamp;

pub(crate) use cofferdam_delivery::iso;

/// Now, in milliseconds since 1970.
#[allow(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// A time for people: to the second.
pub(crate) fn short(ms: u64) -> String {
    let stamp = Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(0)).unwrap_or_default();
    stamp.strftime("%Y-%m-%d %H:%M:%S").to_string()
}
