use cofferdam_model::ReasonCode::{
    BadOutput, BadStreamName, CallBytes, Loop, NotGranted, OutputLimit, ReservedField, ReservedStream, Trap,
};

use super::Expect::{Fault, Faults, Handled, Refused};
use super::{Entry, Guest, arena, entry};

const NAMES: &[cofferdam_model::ReasonCode] =
    &[NotGranted, BadStreamName, BadStreamName, BadStreamName, BadStreamName, ReservedStream, ReservedStream];

pub(crate) const ENTRIES: &[Entry] = &[
    entry!(
        30,
        "30 MB in one argument, again and again",
        "bytes of one call",
        Guest::new("30-huge-argument", Fault(CallBytes))
    ),
    entry!(
        31,
        "600,000 aliased strings as answer",
        "bytes of one call",
        Guest::new("31-aliased-result", Fault(OutputLimit))
    ),
    entry!(32, "string of 4 GiB", "bounds check", Guest::new("32-length-4g", Fault(BadOutput))),
    entry!(33, "text that is no UTF-8", "answer is checked", Guest::new("33-invalid-utf8", Fault(BadOutput))),
    entry!(34, "half a surrogate pair", "answer is checked", Guest::new("34-lone-surrogate", Fault(BadOutput))),
    entry!(35, "10^6 empty events", "bytes of one call", Guest::new("35-million-empty", Fault(OutputLimit))),
    entry!(
        36,
        "lists nested five deep",
        "contract's types",
        Guest::new("36-nested-lists", Refused("world", "signature"))
    ),
    entry!(37, "variant of 10,000 cases", "contract's types", Guest::new("37-huge-variant", Refused("world", ""))),
    entry!(
        38,
        "10^6 tiny outputs",
        "bytes of one call",
        Guest::new("38-million-outputs", Fault(OutputLimit)),
        Guest::new("38-many-outputs", Fault(OutputLimit))
    ),
    entry!(39, "one output of 60 MB", "bytes of one call", Guest::new("39-huge-output", Fault(OutputLimit))),
    entry!(40, "stream outside of its grant", "route", Guest::new("40-not-granted", Fault(NotGranted))),
    entry!(
        41,
        "two plugins in a cycle",
        "hop counter",
        Guest::new("41-cycle-a", Fault(Loop)).emitting("stream:41-cycle-b"),
        Guest::new("41-cycle-b", Fault(Loop)).emitting("stream:41-cycle-a"),
    ),
    entry!(42, "stream names that are none, or the host's", "route", Guest::new("42-stream-names", Faults(NAMES))),
    entry!(43, "forged fields of the host", "route", Guest::new("43-forged-fields", Faults(&[ReservedField; 4]))),
    entry!(44, "50,000 log lines", "log limit", Guest::new("44-log-flood", Handled)),
    entry!(45, "forged log lines", "escaping", Guest::new("45-forged-log", Handled)),
    entry!(46, "last words of 10 MB", "log limit", Guest::new("46-huge-panic", Fault(Trap))),
    entry!(47, "reason of 10 MB", "bytes of one call", Guest::new("47-huge-reason", Fault(OutputLimit))),
    entry!(
        48,
        "another plugin's state",
        "nothing is offered",
        Guest::new("48-foreign-state", Refused("world", "cofferdam:plugin/state"))
    ),
    entry!(
        49,
        "flood of state writes",
        "nothing is offered",
        Guest::new("49-state-flood", Refused("world", "cofferdam:plugin/state"))
    ),
    entry!(
        50,
        "success without having read the message",
        "harmless: counted as filtered",
        Guest::new("50-unread", Handled)
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn hostile_guests_that_answer_what_they_must_not() {
    arena::run("data", ENTRIES).await;
}
