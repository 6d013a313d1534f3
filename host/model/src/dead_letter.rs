//! The record of a delivery that will not be tried again: reason codes, the evidence of each attempt, truncation.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::EntryId;

/// Declares the reason codes once: the enum, its stable text and the sentence that the documentation prints.
macro_rules! reason_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal;)+) => {
        /// Why a delivery failed, in a stable word. Counted, shown, and kept in dead letters; documented one by one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ReasonCode { $($(#[doc = $doc])+ $name,)+ }

        impl ReasonCode {
            /// Every code there is, in the order of the documentation.
            pub const ALL: &'static [ReasonCode] = &[$(ReasonCode::$name,)+];

            /// The stable text.
            pub const fn as_str(self) -> &'static str {
                match self { $(ReasonCode::$name => $text,)+ }
            }

            /// What it means, as the documentation says it.
            pub const fn meaning(self) -> &'static str {
                match self { $(ReasonCode::$name => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

reason_codes! {
    /// The handler returned `retry`, once more than `retries` allows.
    Retry = "retry";
    /// The handler returned `reject`: it will never be able to handle this message.
    Reject = "reject";
    /// The handler trapped: a panic, unreachable code, a bad memory access, an exit in mid-handler.
    Trap = "trap";
    /// The handler recursed deeper than the stack that it has.
    Stack = "stack";
    /// The handler ran past `limits.deadline` and was stopped.
    Deadline = "deadline";
    /// The handler failed after it was refused memory beyond `limits.memory`.
    Memory = "memory";
    /// The handler failed after it was refused a table beyond `limits.table-elements`.
    Tables = "tables";
    /// The handler made more calls of host functions than `limits.host-calls`.
    HostCalls = "host-calls";
    /// One call of a host function carried more than the host takes at once: about twice `limits.output`.
    CallBytes = "call-bytes";
    /// The handler asked for more random bytes than `limits.random`.
    Random = "random";
    /// The handler's answer breaks the contract: a payload that is not JSON, a priority outside 1 to 4, a line that is no event.
    BadOutput = "bad-output";
    /// The handler returned more events than `limits.events` or more bytes than `limits.output`.
    OutputLimit = "output-limit";
    /// The handler returned more events or bytes within a second than `limits.outputs-per-second` or `limits.output-per-second`.
    OutputRate = "output-rate";
    /// The handler emitted to a stream that its manifest's `emit` does not name or the operator does not grant.
    NotGranted = "not-granted";
    /// The handler emitted to a stream that only the host writes: dead letters, the operator log, `cofferdam:*`.
    ReservedStream = "reserved-stream";
    /// The handler emitted to a name that no stream can have: empty, too long, or with other characters than letters, digits and . : _ - / { }.
    BadStreamName = "bad-stream-name";
    /// The handler set a field that is the host's: `cofferdam_*`, or one of the envelope's.
    ReservedField = "reserved-field";
    /// The stream that the event goes to exists and is not a stream.
    BadOutputKey = "bad-output-key";
    /// The entry does not decode into a message: its payload is not JSON, its priority no number, a field not UTF-8.
    Malformed = "malformed";
    /// The entry is larger than `limits.message`.
    TooLarge = "too-large";
    /// The message has passed more than 8 plugins.
    Loop = "loop";
    /// Hosts died while they held the message, `crashes` times while they held it alone.
    HostCrashes = "host-crashes";
    /// Somebody trimmed or deleted the entry before it was handled; what is left of it stands in the dead letter.
    PayloadTrimmed = "payload-trimmed";
    /// The host could not run the handler. Never the reason of a dead letter: nothing is charged.
    Host = "host";
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no reason code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a reason code")]
pub struct ReasonCodeError {
    /// What was read.
    pub text: String,
}

impl FromStr for ReasonCode {
    type Err = ReasonCodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = ReasonCode::ALL.iter().copied().find(|code| code.as_str() == text);
        found.ok_or_else(|| ReasonCodeError { text: text.chars().take(64).collect() })
    }
}

/// What one charged attempt left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it failed, in milliseconds since 1970.
    pub at_ms: u64,
    /// The consumer (host and boot) that ran it.
    pub host: String,
    /// The version that ran it: the full sha256 of the plugin; empty when none did.
    pub digest: String,
    /// How it failed.
    pub code: ReasonCode,
    /// The words for it, cut to [`TEXT_BYTES_MAX`].
    pub text: String,
    /// How long it ran.
    pub took: Duration,
    /// The guest's linear memory at its end, in bytes.
    pub memory_bytes: u64,
    /// When it began, in milliseconds since 1970: what the guest's clock said at its start. Unknown of attempts that hosts of
    /// format 1.0 recorded, and of those that no code ran in.
    pub started_ms: Option<u64>,
}

/// A delivery that will not be tried again, with the evidence. The original entry's fields are copied beside it by the
/// settle script itself, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where the entry was published.
    pub stream: String,
    /// Its id there.
    pub id: EntryId,
    /// The group that gave up on it.
    pub group: String,
    /// The plugin.
    pub plugin: String,
    /// The version that ran last; empty when none did.
    pub digest: String,
    /// Why.
    pub code: ReasonCode,
    /// The words for it, cut to [`TEXT_BYTES_MAX`].
    pub reason: String,
    /// When, in milliseconds since 1970.
    pub failed_at_ms: u64,
    /// Every charged attempt, the last one included.
    pub attempts: Vec<Attempt>,
    /// The wasm backtrace of the last trap, cut to [`TRAP_BYTES_MAX`]; empty when it was none.
    pub trap: String,
    /// The last lines that the handler logged, cut to [`LOG_TAIL_BYTES_MAX`].
    pub log_tail: String,
    /// How often the message had been sent back before.
    pub redrives: u32,
}

/// Longest reason or error text that is kept, in bytes: enough for a sentence and a path, too little to fill Redis with.
pub const TEXT_BYTES_MAX: usize = 2_048;
/// Longest backtrace that is kept, in bytes: some 60 frames.
pub const TRAP_BYTES_MAX: usize = 8_192;
/// Longest log tail that is kept, in bytes.
pub const LOG_TAIL_BYTES_MAX: usize = 4_096;

/// Cuts a text to at most `bytes_max` bytes at a character's boundary, and says so at its end.
pub fn truncated(text: &str, bytes_max: usize) -> String {
    const MARK: &str = " …(cut)";
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes_max.saturating_sub(MARK.len()));
    let mut cut = text.get(..end).unwrap_or_default().to_owned();
    cut.push_str(MARK);
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_code_reads_back_from_its_text_and_means_something() {
        for code in ReasonCode::ALL {
            assert_eq!(code.as_str().parse::<ReasonCode>().unwrap(), *code);
            assert!(code.meaning().len() > 20, "{code} is not documented");
        }
        assert!("nonsense".parse::<ReasonCode>().is_err());
    }

    #[test]
    fn a_text_is_cut_at_a_character_and_says_so() {
        assert_eq!(truncated("short", 10), "short");
        let cut = truncated(&"é".repeat(100), 51);
        assert!(cut.len() <= 51 && cut.ends_with("…(cut)"), "{cut}");
    }
}
