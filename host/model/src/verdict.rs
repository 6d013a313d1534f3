//! The heart: what becomes of a delivery. One pure, exhaustive function.

use std::time::Duration;

use crate::policy::Backoff;
use crate::{Blame, Event, Fault, Outcome, ReasonCode, RetryPolicy};

/// What becomes of a delivery. The streams crate carries it out in one atomic write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Outputs and ack together; no outputs at all means filtered.
    Commit {
        /// In the order the handler gave them.
        events: Vec<Event>,
    },
    /// Charged, and parked until it is due.
    RetryAfter {
        /// From now.
        delay: Duration,
        /// Why, for the attempt's record.
        code: ReasonCode,
        /// The words for it.
        text: String,
    },
    /// Not tried again; the evidence goes to the dead letters together with the ack.
    DeadLetter {
        /// Why.
        code: ReasonCode,
        /// The words for it.
        text: String,
    },
    /// Given back, to be tried again at once by whoever is able to; nothing is charged.
    Release,
    /// Nothing is written: the entry stays with this consumer, which runs it again when it can.
    LeavePending,
}

/// What the host itself is about to do, which a verdict must respect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostState {
    /// Carrying on.
    Running,
    /// Leaving: what cannot be finished is given back to the others.
    Stopping,
}

/// Decides what becomes of a delivery.
///
/// `attempt` is the number of this charged try (1 for the first), `jitter` a random number in `0.0..1.0`. A fault of the host
/// never charges an attempt; a fault of the message is never tried again; everything else is tried `1 + retries` times.
pub fn decide(
    attempt: u32,
    result: Result<Outcome, Fault>,
    policy: &RetryPolicy,
    host: HostState,
    jitter: f64,
) -> Verdict {
    let (code, text, asked) = match result {
        Ok(Outcome::Events(events)) => return Verdict::Commit { events },
        Ok(Outcome::Reject { reason }) => return Verdict::DeadLetter { code: ReasonCode::Reject, text: reason },
        Ok(Outcome::Retry { reason, after }) => (ReasonCode::Retry, reason, after),
        Err(fault) => match (fault.blame(), host) {
            (Blame::Message, _) => return Verdict::DeadLetter { code: fault.code(), text: fault.to_string() },
            (Blame::Host, HostState::Stopping) => return Verdict::Release,
            (Blame::Host, HostState::Running) => return Verdict::LeavePending,
            (Blame::Plugin, _) => (fault.code(), fault.to_string(), None),
        },
    };
    if attempt > policy.retries {
        return Verdict::DeadLetter { code, text };
    }
    let delay = asked.map_or_else(|| policy.backoff.delay(attempt, jitter), Backoff::asked);
    Verdict::RetryAfter { delay, code, text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        retries: 3,
        backoff: Backoff { base: Duration::from_secs(2), factor: 4, max: Duration::from_secs(300) },
        crashes: 3,
    };

    fn judge(attempt: u32, result: Result<Outcome, Fault>) -> &'static str {
        name(&decide(attempt, result, &POLICY, HostState::Running, 0.0))
    }

    fn name(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Commit { .. } => "commit",
            Verdict::RetryAfter { .. } => "retry",
            Verdict::DeadLetter { .. } => "dead",
            Verdict::Release => "release",
            Verdict::LeavePending => "leave",
        }
    }

    /// Every outcome and fault there is, each with the verdict below, at and above the bound of attempts.
    fn table() -> Vec<(Result<Outcome, Fault>, [&'static str; 3])> {
        let text = String::from("x");
        let retried = ["retry", "dead", "dead"];
        let at_once = ["dead", "dead", "dead"];
        let bad = Fault::BadOutput { code: ReasonCode::BadOutput, text: text.clone() };
        vec![
            (Ok(Outcome::Events(vec![])), ["commit", "commit", "commit"]),
            (Ok(Outcome::Retry { reason: text.clone(), after: None }), retried),
            (Ok(Outcome::Reject { reason: text.clone() }), at_once),
            (Err(Fault::Trap { text: text.clone(), backtrace: String::new() }), retried),
            (Err(Fault::Deadline { deadline: Duration::from_secs(1) }), retried),
            (Err(Fault::Memory { limit_bytes: 1, text: text.clone() }), retried),
            (Err(bad), retried),
            (Err(Fault::Malformed { text: text.clone() }), at_once),
            (Err(Fault::TooLarge { bytes: 2, limit_bytes: 1 }), at_once),
            (Err(Fault::Loop { hops: 9, limit: 8 }), at_once),
            (Err(Fault::HostCrashes { crashes: 4 }), at_once),
            (Err(Fault::Host { text }), ["leave", "leave", "leave"]),
        ]
    }

    #[test]
    fn every_result_has_its_verdict_below_at_and_above_the_bound() {
        for (result, expected) in table() {
            for (attempt, expected) in [3, 4, 5].into_iter().zip(expected) {
                assert_eq!(judge(attempt, result.clone()), expected, "attempt {attempt} of {result:?}");
            }
        }
    }

    #[test]
    fn a_stopping_host_gives_back_what_it_could_not_run() {
        let fault = Fault::Host { text: "shutting down".into() };
        assert_eq!(decide(9, Err(fault), &POLICY, HostState::Stopping, 0.0), Verdict::Release);
    }

    #[test]
    fn a_delay_that_the_handler_asks_for_is_honoured() {
        let asked = Ok(Outcome::Retry { reason: "busy".into(), after: Some(Duration::from_millis(700)) });
        let Verdict::RetryAfter { delay, .. } = decide(1, asked, &POLICY, HostState::Running, 0.9) else {
            panic!("not a retry")
        };
        assert_eq!(delay, Duration::from_millis(700));
    }

    proptest! {
        /// Any run of results ends in a commit or a dead letter within `1 + retries` charged attempts, and the host's own
        /// faults never charge one.
        #[test]
        fn any_run_of_results_ends_within_the_bound(picks in proptest::collection::vec(0usize..12, 0..200), jitter in 0.0f64..1.0) {
            let table = table();
            let (mut attempt, mut charged) = (1u32, 0u32);
            for pick in picks {
                let Some((result, _)) = table.get(pick) else { continue };
                let host_fault = matches!(result, Err(fault) if fault.blame() == Blame::Host);
                match decide(attempt, result.clone(), &POLICY, HostState::Running, jitter) {
                    Verdict::Commit { .. } | Verdict::DeadLetter { .. } => { charged += 1; break }
                    Verdict::RetryAfter { .. } => { prop_assert!(!host_fault); charged += 1; attempt += 1 }
                    Verdict::Release | Verdict::LeavePending => prop_assert!(host_fault),
                }
            }
            prop_assert!(charged <= 1 + POLICY.retries);
        }
    }
}
