//! What can go wrong before a call: the engine's own troubles and the precise reasons why a file does not become a plugin.
//!
//! How a *call* fails is [`cofferdam_model::Fault`]; `invoke.rs` makes it. [`Stop`] is how a function of ours ends a guest.

use std::io;
use std::time::Duration;

use crate::EngineConfig;

/// An error of the engine, with its chain of causes.
pub type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// The sandbox itself cannot work: the host's fault, and nothing that a plugin could mend.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The engine refuses its settings, or the machine has no address space for the slots.
    #[error("the wasm engine cannot start with {config:?}; fewer instances need less address space")]
    Engine {
        /// What was asked for.
        config: EngineConfig,
        /// The engine's words.
        #[source]
        source: Cause,
    },
    /// A memory limit beyond what this machine can address.
    #[error("a plugin memory of {bytes} bytes is more than this machine can address")]
    MemoryTooLarge {
        /// What was asked for.
        bytes: u64,
    },
    /// A thread could not be started.
    #[error("the thread {name} cannot be started")]
    Thread {
        /// Its name.
        name: String,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// A host function could not be offered to guests: a bug of ours.
    #[error("the host functions cannot be linked")]
    Link {
        /// The engine's words.
        #[source]
        source: Cause,
    },
}

/// Why a file is not a plugin. Every text says what is wrong and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The first bytes are not those of WebAssembly.
    #[error("this is not a WebAssembly file: {found}")]
    NotWasm {
        /// What it looks like instead, and what to do.
        found: String,
    },
    /// A header of WebAssembly with a version that does not exist.
    #[error("this WebAssembly file has the unknown version {version:#010x}: build it with a released toolchain")]
    UnknownVersion {
        /// The four bytes after the magic number.
        version: u32,
    },
    /// It has more of something than any toolchain makes, which is how files are made that compile for minutes.
    #[error("it has {count} {what}, and {most} is the most that is compiled")]
    TooMuch {
        /// How many.
        count: u64,
        /// Of what.
        what: &'static str,
        /// The cap.
        most: u64,
    },
    /// It ends early or is garbled.
    #[error(
        "it does not compile: {text} at offset {offset:#x}, so the file is cut off or garbled; copy or build it again"
    )]
    Malformed {
        /// The parser's words.
        text: String,
        /// Where, in bytes from the start.
        offset: u64,
    },
    /// It does not validate, uses a feature that is off, or cannot be compiled.
    #[error("it does not compile: {text}")]
    Compile {
        /// The compiler's words, with the offset in the file where there is one.
        text: String,
        /// The compiler's error.
        #[source]
        source: Cause,
    },
    /// A core module which is no program.
    #[error(
        "this is a core module without _start, so neither a component nor a command; it exports {exports}. Build for wasm32-wasip2 \
         (or make a component of it with `wasm-tools component new`), or export _start"
    )]
    NotACommand {
        /// What it exports instead.
        exports: String,
    },
    /// A component without any entry that is known.
    #[error("this component does not export {expected}; it exports {exports}{hint}")]
    NoHandler {
        /// The interface that is needed.
        expected: &'static str,
        /// What it exports instead.
        exports: String,
        /// What the nearest name suggests, or nothing.
        hint: String,
    },
    /// A component built against another version of the contract.
    #[error("this component exports {found}, and this host speaks {expected}: build it against the wit of this host")]
    WrongVersion {
        /// What it exports.
        found: String,
        /// What is needed.
        expected: &'static str,
    },
    /// The right name with the wrong type.
    #[error(
        "the export {name} has another signature than the contract's: {text}. Build it against the wit of this host, unchanged"
    )]
    WrongSignature {
        /// The export.
        name: String,
        /// Where the two differ.
        text: String,
    },
    /// It asks for something that nobody offers.
    #[error("it imports {name}, which this host does not offer{hint}. Allowed are {allowed}")]
    UnknownImport {
        /// The import.
        name: String,
        /// What the name suggests, or nothing.
        hint: &'static str,
        /// What there is.
        allowed: &'static str,
    },
    /// It imports a known interface with a function or type that is not there.
    #[error("its imports do not fit this host: {text}")]
    Imports {
        /// The engine's words.
        text: String,
        /// The engine's error.
        #[source]
        source: Cause,
    },
    /// Its smallest size is above its limit.
    #[error(
        "it needs {needed_bytes} bytes of memory to start and limits.memory grants {limit_bytes}: raise limits.memory in its manifest, \
         or build it with a smaller stack or heap"
    )]
    Memory {
        /// What it declares.
        needed_bytes: u64,
        /// The limit in force.
        limit_bytes: u64,
    },
    /// A limit that the engine was not made for.
    #[error("limits.memory is {limit_bytes} bytes, more than the {most_bytes} that this host was started with")]
    LimitTooHigh {
        /// The limit asked for.
        limit_bytes: u64,
        /// The engine's own.
        most_bytes: u64,
    },
    /// The first instance failed, before any message.
    #[error("a trial instance failed: {fault}")]
    Trial {
        /// How.
        fault: cofferdam_model::Fault,
        /// What it wrote before, a line each.
        log: Vec<String>,
    },
    /// The host's own trouble; the file may be fine.
    #[error("the host cannot load it now: {source}")]
    Sandbox {
        /// What.
        #[from]
        source: SandboxError,
    },
}

/// Why a function of the host ended the guest. It travels through the engine as an error and is read back by type.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// The deadline has passed, in wasm or in a wait.
    #[error("the deadline of {0:?} has passed")]
    Deadline(Duration),
    /// The guest ended itself.
    #[error("exit({0})")]
    Exit(i32),
    /// Too many calls of host functions.
    #[error("more than {0} calls of host functions")]
    HostCalls(u64),
    /// Too many random bytes.
    #[error("more than {0} random bytes in one delivery")]
    Random(u64),
    /// A command wrote more to its standard output than its events may have.
    #[error("more than {0} bytes on standard output")]
    Output(usize),
}
