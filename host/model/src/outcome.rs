//! What came back: the handler's own answer, or how the call itself failed and whose fault that is.

use std::time::Duration;

use crate::ReasonCode;

/// One output of a handler, bound for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The stream it goes to.
    pub stream: String,
    /// JSON text.
    pub payload: String,
    /// 1 to 4; the incoming message's when `None`.
    pub priority: Option<u8>,
    /// Kept as the attribute `key`.
    pub key: Option<String>,
    /// Further fields of the entry.
    pub attributes: Vec<(String, String)>,
}

/// The handler's own answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, with these outputs; none at all means that the handler dropped the message on purpose.
    Events(Vec<Event>),
    /// Not now.
    Retry {
        /// The handler's words.
        reason: String,
        /// The delay it asked for.
        after: Option<Duration>,
    },
    /// Never.
    Reject {
        /// The handler's words.
        reason: String,
    },
}

/// Whose fault a failed call is. It alone decides whether an attempt is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The handler failed on this message: charged, tried again within the bound.
    Plugin,
    /// The message can never be handled: dead-lettered at once.
    Message,
    /// A process died of it: tried again apart, up to `crashes` times; no attempt of the handler's is charged.
    Crash,
    /// The host could not make the call (no instance free, shutting down, its own error): not charged, given back.
    Host,
}

/// How a call failed that gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The guest trapped: unreachable code, a bad memory access, a panic, or an exit in mid-handler.
    #[error("the handler trapped: {text}")]
    Trap {
        /// What the engine says of it, with the guest's own panic text when it wrote one.
        text: String,
        /// The wasm backtrace, innermost frame first; empty when there is none.
        backtrace: String,
    },
    /// It ran past its deadline and was stopped.
    #[error("the handler ran past its deadline of {deadline:?}")]
    Deadline {
        /// The limit in force.
        deadline: Duration,
    },
    /// It asked for more memory than its limit, and failed on it.
    #[error("the handler needed more memory than its limit of {limit_bytes} bytes: {text}")]
    Memory {
        /// The limit in force.
        limit_bytes: u64,
        /// How it failed.
        text: String,
    },
    /// It took more of something than it may: stack, tables, calls of the host, random bytes.
    #[error("the handler went beyond a limit: {text}")]
    Limit {
        /// Of what.
        code: ReasonCode,
        /// The limit in force, and how it failed.
        text: String,
        /// The wasm backtrace, innermost frame first; empty when there is none.
        backtrace: String,
    },
    /// Its answer breaks the contract: an event over a cap, to a stream it may not write, not JSON, a reserved name.
    #[error("bad output: {text}")]
    BadOutput {
        /// Which of the contract's rules.
        code: ReasonCode,
        /// The place and the mend.
        text: String,
    },
    /// The entry does not decode into a message.
    #[error("the entry does not decode: {text}")]
    Malformed {
        /// The field and what is wrong with it.
        text: String,
    },
    /// The entry is larger than `limits.message`.
    #[error("the entry has {bytes} bytes, more than limits.message allows ({limit_bytes})")]
    TooLarge {
        /// The entry's fields and values together.
        bytes: u64,
        /// The limit in force.
        limit_bytes: u64,
    },
    /// It has gone through too many plugins: most likely a cycle.
    #[error("the message has passed {hops} plugins, more than {limit}: a cycle from an emit back to a subscription?")]
    Loop {
        /// Plugins passed so far.
        hops: u32,
        /// The limit in force.
        limit: u32,
    },
    /// The process that ran it, and nothing beside it, died.
    #[error("its process died with it: {text}")]
    ProcessDied {
        /// How it died.
        text: String,
    },
    /// Far more hosts fell silent while they held this message than chance explains.
    #[error("{hosts} hosts died while they held this message")]
    HostCrashes {
        /// How many.
        hosts: u64,
    },
    /// The host could not make the call.
    #[error("the host could not run the handler: {text}")]
    Host {
        /// Why.
        text: String,
    },
}

impl Fault {
    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        match self {
            Fault::Trap { .. }
            | Fault::Deadline { .. }
            | Fault::Memory { .. }
            | Fault::Limit { .. }
            | Fault::BadOutput { .. } => Blame::Plugin,
            Fault::Malformed { .. } | Fault::TooLarge { .. } | Fault::Loop { .. } | Fault::HostCrashes { .. } => {
                Blame::Message
            }
            Fault::ProcessDied { .. } => Blame::Crash,
            Fault::Host { .. } => Blame::Host,
        }
    }

    /// The stable code under which it is counted and dead-lettered.
    pub fn code(&self) -> ReasonCode {
        match self {
            Fault::Trap { .. } => ReasonCode::Trap,
            Fault::Deadline { .. } => ReasonCode::Deadline,
            Fault::Memory { .. } => ReasonCode::Memory,
            Fault::Limit { code, .. } | Fault::BadOutput { code, .. } => *code,
            Fault::Malformed { .. } => ReasonCode::Malformed,
            Fault::TooLarge { .. } => ReasonCode::TooLarge,
            Fault::Loop { .. } => ReasonCode::Loop,
            Fault::ProcessDied { .. } | Fault::HostCrashes { .. } => ReasonCode::HostCrashes,
            Fault::Host { .. } => ReasonCode::Host,
        }
    }

    /// The wasm backtrace, when there is one.
    pub fn backtrace(&self) -> Option<&str> {
        match self {
            Fault::Trap { backtrace, .. } | Fault::Limit { backtrace, .. } if !backtrace.is_empty() => Some(backtrace),
            Fault::Trap { .. }
            | Fault::Limit { .. }
            | Fault::Deadline { .. }
            | Fault::Memory { .. }
            | Fault::BadOutput { .. }
            | Fault::Malformed { .. }
            | Fault::TooLarge { .. }
            | Fault::Loop { .. }
            | Fault::ProcessDied { .. }
            | Fault::HostCrashes { .. }
            | Fault::Host { .. } => None,
        }
    }
}
