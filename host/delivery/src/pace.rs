//! How much a lane takes in hand: by how long one message has taken of late, and how large entries were.

use std::time::Duration;

use crate::lane::DeliveryConfig;

/// Work that one thread is given at a time.
const JOB_TIME: Duration = Duration::from_millis(2);
const JOB_MAX: usize = 64;

/// How fast a plugin is and what comes to it.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// What one message takes: a moving average.
    took: Option<Duration>,
    /// What one entry takes in memory, in bytes: the largest of late. It rises at once, because the next read may be hundreds of
    /// its like, and falls slowly.
    size: u64,
}

impl Pace {
    pub(crate) fn note(&mut self, took: Duration) {
        self.took = Some(self.took.map_or(took, |average| (average * 31 + took) / 32));
    }

    /// Deliveries that may be held: a third of the lease at this pace, and never so few that threads starve.
    pub(crate) fn ahead(&self, threads: usize, delivery: DeliveryConfig) -> usize {
        let Some(took) = self.took else { return (threads * 32).min(delivery.in_flight_max) };
        let per_thread = (delivery.lease / 3).as_nanos() / took.as_nanos().max(1);
        let ahead = usize::try_from(per_thread).unwrap_or(usize::MAX).saturating_mul(threads);
        ahead.clamp(threads, delivery.in_flight_max.max(threads))
    }

    pub(crate) fn note_size(&mut self, bytes: u64) {
        self.size = bytes.max(self.size - self.size.saturating_sub(bytes).div_ceil(32));
    }

    /// Entries that fit into so many bytes, if they are as large as those of late.
    pub(crate) fn fitting(&self, bytes: u64) -> usize {
        usize::try_from(bytes / self.size.max(1)).unwrap_or(usize::MAX)
    }

    /// Deliveries in one job.
    pub(crate) fn job_size(&self) -> usize {
        let Some(took) = self.took else { return 4 };
        usize::try_from(JOB_TIME.as_nanos() / took.as_nanos().max(1)).unwrap_or(JOB_MAX).clamp(1, JOB_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELIVERY: DeliveryConfig = DeliveryConfig {
        lease: Duration::from_secs(30),
        grace: Duration::from_secs(10),
        in_flight_max: 2_048,
        in_flight_bytes_max: 64 << 20,
    };

    #[test]
    fn what_is_read_ahead_is_bounded_by_a_third_of_the_lease_at_the_recent_pace() {
        let mut pace = Pace::default();
        assert_eq!(pace.ahead(2, DELIVERY), 64);
        pace.note(Duration::from_secs(1));
        assert_eq!(pace.ahead(2, DELIVERY), 20);
        assert_eq!(pace.job_size(), 1);
        let mut quick = Pace::default();
        quick.note(Duration::from_micros(10));
        assert_eq!((quick.ahead(2, DELIVERY), quick.job_size()), (2_048, 64));
        let mut slow = Pace::default();
        slow.note(Duration::from_secs(600));
        assert_eq!(slow.ahead(2, DELIVERY), 2);
    }

    #[test]
    fn what_fits_is_told_by_the_largest_entries_of_late() {
        let mut pace = Pace::default();
        assert_eq!(pace.fitting(0), 0);
        pace.note_size(1_000);
        assert_eq!(pace.fitting(10_000), 10);
        pace.note_size(10_000);
        assert_eq!(pace.fitting(10_000), 1);
        (0..400).for_each(|_| pace.note_size(100));
        assert!((80..=100).contains(&pace.fitting(10_000)), "{pace:?}");
    }
}
