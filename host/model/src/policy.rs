//! Retry bounds and the arithmetic of backoff. Jitter arrives as an argument.

use std::time::Duration;

/// How long to wait before the next try: `base`, growing by `factor` with each failure, never more than `max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The delay after the first failure.
    pub base: Duration,
    /// What each further failure multiplies it by.
    pub factor: u32,
    /// The longest delay, unless the handler itself asks for more: [`Backoff::asked`].
    pub max: Duration,
}

impl Default for Backoff {
    /// 2 s, 8 s, 32 s … up to 5 minutes: three retries span the 40 seconds or so that a restart downstream takes.
    fn default() -> Self {
        Backoff { base: Duration::from_secs(2), factor: 4, max: Duration::from_secs(300) }
    }
}

/// The longest delay that anything can be parked for, in milliseconds: 24 hours. It is part of the name of the reserved
/// consumer that holds parked entries, and so of the format.
pub const DELAY_MS_MAX: u64 = 86_400_000;

impl Backoff {
    /// The delay after failure number `failures` (1 for the first). `jitter` in `0.0..1.0` takes up to half of it away, so
    /// that messages which failed together do not come back together.
    pub fn delay(&self, failures: u32, jitter: f64) -> Duration {
        let exponent = failures.saturating_sub(1).min(32);
        let grown = f64::from(self.factor.max(1)).powi(exponent.cast_signed());
        let longest = self.max.min(Duration::from_millis(DELAY_MS_MAX));
        let full = (self.base.as_secs_f64() * grown).min(longest.as_secs_f64());
        Duration::from_secs_f64(full * (1.0 - jitter.clamp(0.0, 1.0) / 2.0))
    }

    /// The delay that a handler asked for with `after-ms`: honoured up to [`DELAY_MS_MAX`], beyond the plugin's own `max`.
    pub fn asked(after: Duration) -> Duration {
        after.min(Duration::from_millis(DELAY_MS_MAX))
    }
}

/// How often a delivery is tried before it becomes a dead letter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Tries after the first.
    pub retries: u32,
    /// Waits between them.
    pub backoff: Backoff,
    /// Deaths of a process that ran the message and nothing else, before it is dead-lettered.
    pub crashes: u32,
}

/// Hosts that may fall silent while they hold a message, beyond [`RetryPolicy::crashes`], before it is dead-lettered unseen. A
/// message held by so many, in batches and then alone, kills them before it ever reaches a process of its own; one that is merely
/// unlucky is held by one or two.
pub const SILENT_HOSTS_SPARE: u64 = 8;

impl RetryPolicy {
    /// Whether more hosts have died with a message in hand than chance explains.
    pub fn is_host_killer(&self, silent_hosts: u64) -> bool {
        silent_hosts > u64::from(self.crashes) + SILENT_HOSTS_SPARE
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { retries: 3, backoff: Backoff::default(), crashes: 3 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_grows_by_the_factor_up_to_the_maximum() {
        let backoff = Backoff::default();
        let seconds: Vec<u64> = (1..=6).map(|n| backoff.delay(n, 0.0).as_secs()).collect();
        assert_eq!(seconds, [2, 8, 32, 128, 300, 300]);
    }

    #[test]
    fn jitter_takes_away_at_most_half() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(1, 1.0), Duration::from_secs(1));
        assert_eq!(backoff.delay(u32::MAX, 1.0), Duration::from_secs(150));
    }
}
