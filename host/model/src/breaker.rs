//! The breaker: when most of what a plugin is given fails, the fault is hardly with the messages. Then reading stops, one message
//! at a time is tried, and nothing is charged, until what failed works again.
//!
//! Pure: time arrives as an argument, as the time since any fixed point.

use std::collections::VecDeque;
use std::time::Duration;

/// Deliveries that are looked at.
pub const WINDOW: usize = 100;
/// Failures among them that open the breaker.
pub const FAILURES_MAX: usize = WINDOW / 2;
/// Probes in a row that must succeed before it closes: one lucky message does not end an outage.
pub const PROBES: u32 = 3;
/// Time between probes: doubled after each that fails.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Counts the failures of one plugin's deliveries.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    /// Whether each of the last deliveries failed.
    last: VecDeque<bool>,
    failed: usize,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    since: Duration,
    next: Duration,
    pause: Duration,
    passed: u32,
    probing: bool,
}

/// What may be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As much as there is room for.
    Free,
    /// One message, as a probe: [`Breaker::begin_probe`].
    Probe,
    /// Nothing until then.
    Wait {
        /// The time of the next probe.
        until: Duration,
    },
}

/// How a result changed the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has opened.
    Opened,
    /// It has closed again, after so long.
    Closed {
        /// How long it was open.
        after: Duration,
    },
}

impl Breaker {
    /// Whether it is open: then no attempt is charged.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// What may be read now.
    pub fn reading(&self, now: Duration) -> Reading {
        match self.open {
            None => Reading::Free,
            Some(open) if !open.probing && now >= open.next => Reading::Probe,
            Some(open) => Reading::Wait { until: open.next.max(now + PAUSE_MIN / 10) },
        }
    }

    /// Counts an ordinary delivery. While open, what had been under way says nothing new.
    pub fn note(&mut self, failed: bool, now: Duration) -> Option<Change> {
        if self.open.is_some() {
            return None;
        }
        if self.last.len() == WINDOW && self.last.pop_front() == Some(true) {
            self.failed -= 1;
        }
        self.last.push_back(failed);
        self.failed += usize::from(failed);
        if self.failed < FAILURES_MAX {
            return None;
        }
        self.last.clear();
        self.failed = 0;
        self.open = Some(Open { since: now, next: now + PAUSE_MIN, pause: PAUSE_MIN, passed: 0, probing: false });
        Some(Change::Opened)
    }

    /// One message is being tried; no other is until its result is in.
    pub fn begin_probe(&mut self) {
        if let Some(open) = &mut self.open {
            open.probing = true;
        }
    }

    /// The result of a probe; `None` when it came to none (nothing to read, a fault of the host, a lost lease).
    pub fn probed(&mut self, failed: Option<bool>, now: Duration) -> Option<Change> {
        let open = self.open.as_mut()?;
        open.probing = false;
        match failed {
            None => open.next = now + PAUSE_MIN,
            Some(true) => {
                open.passed = 0;
                open.next = now + open.pause;
                open.pause = (open.pause * 2).min(PAUSE_MAX);
            }
            Some(false) => {
                open.passed += 1;
                open.next = now;
                if open.passed >= PROBES {
                    let after = now.saturating_sub(open.since);
                    self.open = None;
                    return Some(Change::Closed { after });
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        let changes: Vec<_> = (0..FAILURES_MAX).filter_map(|_| breaker.note(true, at(0))).collect();
        assert_eq!(changes, [Change::Opened]);
        breaker
    }

    #[test]
    fn it_opens_when_half_of_the_last_hundred_have_failed_and_never_before() {
        let mut breaker = Breaker::default();
        for index in 0..1_000 {
            // 49 of every 100.
            assert_eq!(breaker.note(index % 100 < 49, at(0)), None);
        }
        for index in 0..51 {
            assert_eq!(breaker.note(false, at(0)), None, "{index}");
        }
        let opened = (0..50).find(|_| breaker.note(true, at(0)).is_some());
        assert_eq!(opened, Some(49));
    }

    #[test]
    fn one_probe_at_a_time_and_ever_rarer_while_they_fail() {
        let mut breaker = opened();
        assert!(matches!(breaker.reading(at(0)), Reading::Wait { .. }));
        assert_eq!(breaker.reading(at(1)), Reading::Probe);
        breaker.begin_probe();
        assert!(matches!(breaker.reading(at(60)), Reading::Wait { .. }), "one is under way");
        let mut now = at(1);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert_eq!(breaker.probed(Some(true), now), None);
            let Reading::Wait { until } = breaker.reading(now) else { panic!("it must wait") };
            pauses.push((until - now).as_secs());
            now = until;
            breaker.begin_probe();
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn it_closes_after_three_probes_in_a_row_and_leftovers_do_not_count() {
        let mut breaker = opened();
        for _ in 0..100 {
            assert_eq!(breaker.note(false, at(2)), None);
        }
        for failed in [false, false, true, false, false] {
            breaker.begin_probe();
            assert_eq!(breaker.probed(Some(failed), at(5)), None);
        }
        breaker.begin_probe();
        assert_eq!(breaker.probed(None, at(6)), None);
        breaker.begin_probe();
        assert_eq!(breaker.probed(Some(false), at(9)), Some(Change::Closed { after: at(9) }));
        assert_eq!(breaker.reading(at(9)), Reading::Free);
    }
}
