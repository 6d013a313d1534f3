//! How many events, and bytes of them, all deliveries of one plugin may give in a second on this host. What goes beyond it is a
//! fault of the delivery that went beyond it; its neighbours are not touched.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cofferdam_model::{Fault, ReasonCode};

use crate::Limits;

/// What is counted at a time.
const SECOND: Duration = Duration::from_secs(1);

/// The count of one second, shared by the threads of a plugin.
pub(crate) struct Quota {
    counted: Mutex<Counted>,
}

struct Counted {
    since: Instant,
    events: u64,
    bytes: u64,
}

impl Quota {
    pub(crate) fn new() -> Self {
        Quota { counted: Mutex::new(Counted { since: Instant::now(), events: 0, bytes: 0 }) }
    }

    /// Counts the events of one delivery, and their bytes. Costs nothing when no bound is set: the bytes are not added up then.
    ///
    /// # Errors
    /// [`ReasonCode::OutputRate`] when they are more than is left of this second; they are not counted then, and a delivery whose
    /// own events are more than a second's will never fit.
    pub(crate) fn take(&self, limits: &Limits, events: u64, bytes: impl FnOnce() -> u64) -> Result<(), Fault> {
        let bounds = [
            (limits.events_per_second, "events", "limits.events-per-second"),
            (limits.output_bytes_per_second, "bytes of events", "limits.output-per-second"),
        ];
        if bounds.iter().all(|(most, ..)| most.is_none()) {
            return Ok(());
        }
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.since.elapsed() >= SECOND {
            *counted = Counted { since: Instant::now(), events: 0, bytes: 0 };
        }
        let sums = [counted.events.saturating_add(events), counted.bytes.saturating_add(bytes())];
        for ((most, what, key), sum) in bounds.into_iter().zip(sums) {
            if let Some(most) = most.filter(|most| sum > *most) {
                let text = format!("{sum} {what} within a second are more than {key} allows ({most})");
                return Err(Fault::BadOutput { code: ReasonCode::OutputRate, text });
            }
        }
        [counted.events, counted.bytes] = sums;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holds_what_is_granted_and_says_what_it_does_not() {
        let quota = Quota::new();
        let limits = Limits { events_per_second: Some(10), output_bytes_per_second: Some(1_000), ..Limits::default() };
        let refused = |events, bytes| quota.take(&limits, events, || bytes).unwrap_err().to_string();
        assert_eq!(quota.take(&limits, 6, || 100), Ok(()));
        assert!(refused(5, 1).contains("11 events within a second are more than limits.events-per-second allows (10)"));
        assert!(refused(1, 901).contains("1001 bytes of events"));
        assert_eq!(quota.take(&limits, 4, || 900), Ok(()), "what was refused is not counted");
        assert_eq!(quota.take(&Limits::default(), 1_000_000, || 1 << 40), Ok(()), "no bound is set");
    }
}
