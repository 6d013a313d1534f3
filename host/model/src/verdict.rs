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
    /// Given back, to be tried again by whoever is able to; nothing is charged.
    Release {
        /// From now; zero when another host can take it at once.
        delay: Duration,
    },
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

/// What a decision has to know beside the result.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// The number of this charged try: 1 for the first.
    pub attempt: u32,
    /// Processes that have died of the message so far.
    pub deaths: u32,
    /// What the host is about to do.
    pub host: HostState,
    /// Whether the plugin's breaker is open: then failures say something of the plugin or of what it needs, not of the message.
    pub breaker_open: bool,
    /// A random number in `0.0..1.0`.
    pub jitter: f64,
}

/// Decides what becomes of a delivery.
///
/// A fault of the host never charges an attempt, nor does any failure while the breaker is open; a fault of the message is never
/// tried again; everything else is tried `1 + retries` times. A message whose process died is tried again until `crashes`
/// processes have.
pub fn decide(result: Result<Outcome, Fault>, policy: &RetryPolicy, at: Situation) -> Verdict {
    let (code, text, asked) = match result {
        Ok(Outcome::Events(events)) => return Verdict::Commit { events },
        Ok(Outcome::Reject { reason }) => return Verdict::DeadLetter { code: ReasonCode::Reject, text: reason },
        Ok(Outcome::Retry { reason, after }) => (ReasonCode::Retry, reason, after),
        Err(fault) => match (fault.blame(), at.host) {
            (Blame::Message, _) => return Verdict::DeadLetter { code: fault.code(), text: fault.to_string() },
            (Blame::Host, HostState::Stopping) => return Verdict::Release { delay: Duration::ZERO },
            (Blame::Host, HostState::Running) => return Verdict::LeavePending,
            (Blame::Crash, _) => {
                let (code, text, deaths) = (fault.code(), fault.to_string(), at.deaths.saturating_add(1));
                return match deaths < policy.crashes {
                    true => Verdict::RetryAfter { delay: policy.backoff.delay(deaths, at.jitter), code, text },
                    false => Verdict::DeadLetter { code, text },
                };
            }
            (Blame::Plugin, _) => (fault.code(), fault.to_string(), None),
        },
    };
    let delay = asked.map_or_else(|| policy.backoff.delay(at.attempt, at.jitter), Backoff::asked);
    if at.breaker_open {
        return Verdict::Release { delay };
    }
    if at.attempt > policy.retries {
        return Verdict::DeadLetter { code, text };
    }
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

    const FIRST: Situation =
        Situation { attempt: 1, deaths: 0, host: HostState::Running, breaker_open: false, jitter: 0.0 };

    fn judge(attempt: u32, result: Result<Outcome, Fault>) -> &'static str {
        name(&decide(result, &POLICY, Situation { attempt, ..FIRST }))
    }

    fn name(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Commit { .. } => "commit",
            Verdict::RetryAfter { .. } => "retry",
            Verdict::DeadLetter { .. } => "dead",
            Verdict::Release { .. } => "release",
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
            (Err(Fault::HostCrashes { hosts: 12 }), at_once),
            (Err(Fault::ProcessDied { text: text.clone() }), ["retry", "retry", "retry"]),
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
        let stopping = Situation { attempt: 9, host: HostState::Stopping, ..FIRST };
        assert_eq!(decide(Err(fault), &POLICY, stopping), Verdict::Release { delay: Duration::ZERO });
    }

    #[test]
    fn a_delay_that_the_handler_asks_for_is_honoured() {
        let asked = Ok(Outcome::Retry { reason: "busy".into(), after: Some(Duration::from_millis(700)) });
        let Verdict::RetryAfter { delay, .. } = decide(asked, &POLICY, Situation { jitter: 0.9, ..FIRST }) else {
            panic!("not a retry")
        };
        assert_eq!(delay, Duration::from_millis(700));
    }

    #[test]
    fn a_message_is_dead_lettered_when_as_many_processes_as_allowed_have_died_of_it_whatever_its_attempts() {
        let died = |deaths, attempt| {
            let fault = Fault::ProcessDied { text: "signal 6".into() };
            name(&decide(Err(fault), &POLICY, Situation { attempt, deaths, ..FIRST }))
        };
        assert_eq!([died(0, 1), died(1, 9), died(2, 1)], ["retry", "retry", "dead"]);
    }

    #[test]
    fn nothing_is_charged_while_the_breaker_is_open_but_what_is_the_messages_own_fault() {
        let open = |attempt, result| name(&decide(result, &POLICY, Situation { attempt, breaker_open: true, ..FIRST }));
        let trap = || Err(Fault::Trap { text: "x".into(), backtrace: String::new() });
        assert_eq!([open(1, trap()), open(9, trap())], ["release", "release"]);
        assert_eq!(open(9, Ok(Outcome::Retry { reason: "x".into(), after: None })), "release");
        assert_eq!(open(1, Ok(Outcome::Reject { reason: "x".into() })), "dead");
        assert_eq!(open(1, Err(Fault::Malformed { text: "x".into() })), "dead");
        assert_eq!(open(1, Ok(Outcome::Events(vec![]))), "commit");
    }

    proptest! {
        /// Any run of results ends in a commit or a dead letter within `1 + retries` charged attempts, and the host's own
        /// faults never charge one.
        #[test]
        fn any_run_of_results_ends_within_the_bound(
            picks in proptest::collection::vec((0usize..13, any::<bool>()), 0..200),
            jitter in 0.0f64..1.0,
        ) {
            let table = table();
            let (mut attempt, mut deaths, mut charged) = (1u32, 0u32, 0u32);
            for (pick, breaker_open) in picks {
                let Some((result, _)) = table.get(pick) else { continue };
                let blame = result.as_ref().err().map(Fault::blame);
                let at = Situation { attempt, deaths, host: HostState::Running, breaker_open, jitter };
                match decide(result.clone(), &POLICY, at) {
                    Verdict::Commit { .. } | Verdict::DeadLetter { .. } => { charged += 1; break }
                    Verdict::RetryAfter { .. } if blame == Some(Blame::Crash) => deaths += 1,
                    Verdict::RetryAfter { .. } => {
                        prop_assert!(blame != Some(Blame::Host) && !breaker_open);
                        charged += 1;
                        attempt += 1;
                    }
                    Verdict::Release { .. } => prop_assert!(breaker_open),
                    Verdict::LeavePending => prop_assert!(blame == Some(Blame::Host)),
                }
            }
            prop_assert!(charged <= 1 + POLICY.retries && deaths < POLICY.crashes.max(1));
        }
    }
}
