//! Suspects: entries whose holder has been silent for a whole lease.
//!
//! Redis's idle times tell, as long as its clock and its connections can be trusted. After an outage, or a step of the server's
//! clock, they cannot: everything looks abandoned at once, or (a clock that was set back by two hours) nothing does for two hours.
//! Then silence is measured by this host's own monotonic clock: what nobody has claimed or renewed between looks that span a lease.
//! A wrong guess costs a second run, of which one is refused; nobody is charged for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::{EntryId, Token};
use cofferdam_streams::{Look, Suspect};
use tokio::time::Instant;

/// What a lane has seen of the entries in other hosts' hands.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: BTreeMap<(Arc<str>, EntryId), Seen>,
    /// The last look: our clock, and the server's.
    last: Option<(Instant, u64)>,
    /// Until when idle times mean nothing.
    distrust_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    token: Token,
    /// When it was last touched, in milliseconds by the server's clock; `None` for this very millisecond, or the future.
    touched_ms: Option<u64>,
    since: Instant,
}

/// What a look brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Noticed {
    pub(crate) suspects: VecDeque<Suspect>,
    /// How far the server's clock was set back since the last look.
    pub(crate) set_back: Option<Duration>,
    /// How far it was set forward.
    pub(crate) set_forward: Option<Duration>,
}

/// Steps of the server's clock below this are the drift of clocks and the time of a reply.
const STEP_MIN: Duration = Duration::from_secs(2);

impl Watch {
    /// Redis could not be reached: nobody could renew anything.
    pub(crate) fn forget(&mut self, now: Instant, lease: Duration) {
        self.seen.clear();
        self.distrust_until = Some(now + lease);
    }

    /// Takes in a look at `now`.
    pub(crate) fn take_in(&mut self, look: Look, now: Instant, lease: Duration) -> Noticed {
        let mut noticed = Noticed::default();
        if let Some((at, server_ms)) = self.last {
            let ours = now - at;
            let theirs = |ms: u64| Duration::from_millis(ms);
            let expected = server_ms + u64::try_from(ours.as_millis()).unwrap_or(u64::MAX);
            noticed.set_back = Some(theirs(expected.saturating_sub(look.now_ms))).filter(|step| *step > STEP_MIN);
            noticed.set_forward = Some(theirs(look.now_ms.saturating_sub(expected))).filter(|step| *step > STEP_MIN);
            // Whoever has not looked for so long may have been stopped together with everybody else.
            if ours > lease {
                self.seen.clear();
            }
            if ours > lease || noticed.set_forward.is_some() {
                self.distrust_until = Some(now + lease);
            }
        }
        self.last = Some((now, look.now_ms));
        let mut seen = BTreeMap::new();
        for (holder, held) in look.holders {
            for entry in held {
                let key = (holder.clone(), entry.id);
                let idle_ms = u64::try_from(entry.idle.as_millis()).unwrap_or(u64::MAX);
                let touched_ms = (idle_ms > 0).then(|| look.now_ms.saturating_sub(idle_ms));
                let untouched =
                    |before: &Seen| before.token == entry.token && same(before.touched_ms, touched_ms, lease);
                let since = self.seen.get(&key).filter(|before| untouched(before)).map_or(now, |before| before.since);
                let trusted = self.distrust_until.is_none_or(|until| now >= until);
                if now - since >= lease || (trusted && entry.idle >= lease) {
                    noticed.suspects.push_back(Suspect { id: entry.id, holder: holder.clone(), token: entry.token });
                }
                seen.insert(key, Seen { token: entry.token, touched_ms, since });
            }
        }
        self.seen = seen;
        noticed
    }
}

/// Whether two looks saw the same touch. A server takes a few milliseconds over a long reply; a renewal comes at least a quarter
/// of a lease after the last.
fn same(before_ms: Option<u64>, now_ms: Option<u64>, lease: Duration) -> bool {
    match (before_ms, now_ms) {
        (Some(before), Some(now)) => Duration::from_millis(before.abs_diff(now)) < lease / 8,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_streams::Watched;

    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn look(now_ms: u64, touched_ms: u64) -> Look {
        let idle = Duration::from_millis(now_ms.saturating_sub(touched_ms));
        let held = vec![Watched { id: EntryId { ms: 1, seq: 0 }, token: Token(1), idle }];
        Look { now_ms, parked: 0, own: 0, holders: vec![("dead/1".into(), held)], idle: Vec::new() }
    }

    /// Looks every 10 s of our own clock; `server` gives the server's clock and the entry's last touch for each.
    fn looks(server: impl Fn(u64) -> (u64, u64), count: u64) -> Vec<usize> {
        let (mut watch, began) = (Watch::default(), Instant::now());
        (0..count)
            .map(|index| {
                let (now_ms, touched_ms) = server(index);
                let now = began + Duration::from_secs(10 * index);
                watch.take_in(look(now_ms, touched_ms), now, LEASE).suspects.len()
            })
            .collect()
    }

    #[test]
    fn an_entry_is_a_suspect_after_a_lease_without_a_touch_and_not_before() {
        assert_eq!(looks(|index| (1_000_000 + 10_000 * index, 999_000), 5), [0, 0, 0, 1, 1]);
        assert_eq!(looks(|index| (1_000_000 + 10_000 * index, 990_000), 5), [0, 0, 1, 1, 1]);
        assert_eq!(looks(|index| (1_000_000 + 10_000 * index, 970_000), 2), [1, 1], "a new host trusts the idle times");
        assert_eq!(looks(|index| (1_000_000 + 10_000 * index, 999_000 + 10_000 * index), 9), [0; 9]);
    }

    #[test]
    fn a_clock_that_is_stepped_neither_makes_suspects_nor_hides_them() {
        // An hour forward at the second look: the idle time jumps, the touch does not.
        let forward = |index: u64| (1_000_000 + 10_000 * index + if index > 0 { 3_600_000 } else { 0 }, 999_000);
        assert_eq!(looks(forward, 4), [0, 0, 0, 1]);
        // Two hours back: the touch lies in the future, so the idle time is 0 for two hours.
        let back = |index: u64| match index {
            0 => (9_000_000, 8_999_000),
            _ => (1_800_000 + 10_000 * index, 8_999_000),
        };
        assert_eq!(looks(back, 6), [0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn what_was_silent_while_redis_could_not_be_reached_or_we_were_stopped_begins_anew() {
        let (mut watch, began) = (Watch::default(), Instant::now());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let silent = |seconds: u64| look(1_000_000 + seconds * 1_000, 999_000);
        watch.take_in(silent(0), at(0), LEASE);
        assert!(watch.take_in(silent(35), at(35), LEASE).suspects.is_empty(), "we were stopped ourselves");
        watch.take_in(silent(50), at(50), LEASE);
        watch.forget(at(60), LEASE);
        assert!(watch.take_in(silent(66), at(66), LEASE).suspects.is_empty());
        assert!(watch.take_in(silent(89), at(89), LEASE).suspects.is_empty());
        assert_eq!(watch.take_in(silent(97), at(97), LEASE).suspects.len(), 1);
    }

    #[test]
    fn steps_of_the_servers_clock_are_noticed() {
        let (mut watch, began) = (Watch::default(), Instant::now());
        watch.take_in(look(9_000_000, 9_000_000), began, LEASE);
        let back = watch.take_in(look(1_810_000, 9_000_000), began + Duration::from_secs(10), LEASE);
        assert_eq!((back.set_back, back.set_forward), (Some(Duration::from_secs(7_200)), None));
        let forward = watch.take_in(look(5_420_000, 9_000_000), began + Duration::from_secs(20), LEASE);
        assert_eq!((forward.set_back, forward.set_forward), (None, Some(Duration::from_secs(3_600))));
    }
}
