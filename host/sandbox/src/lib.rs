//! The sandbox: compiles plugins, runs one message through one plugin under hard limits, and says what came of it.
//!
//! ```text
//!  bytes ──Plugin::load──▶ Plugin ──────────▶ Arc<Plugin> ──┐
//!                                                           ├─invoke──▶ Report { Outcome or Fault, time, memory, log }
//!  Workers (threads of one plugin) ──Slot──▶ Message ───────┘
//! ```
//!
//! What can be relied on: a guest reaches nothing but the functions of `imports.rs` and `wasi.rs`; it is stopped at its
//! deadline, in wasm or in a wait; what it takes of the host's memory is bounded by its limits; what it sees is a function of
//! (digest, stream, id, attempt, recorded start); and no message meets the instance of another unless the plugin asks for it.
//!
//! This crate never touches Redis, a file or the network, and it never reads the wall clock. It decides nothing about
//! retries. Read in this order: [`engine`], [`artifact`], `prepass`, [`plugin`], [`describe`], `store`, `imports` and `wasi`, [`invoke`], `command`,
//! [`workers`], [`record`].

pub mod artifact;
mod bindings;
mod command;
mod console;
pub mod describe;
pub mod engine;
pub mod error;
mod imports;
pub mod invoke;
mod mutants;
pub mod plugin;
mod prepass;
mod preview1;
mod quota;
pub mod record;
mod store;
mod time;
mod wasi;
pub mod workers;

pub use artifact::{Artifact, compile};
pub use describe::{Description, MANIFEST_SECTION, describe, embedded_manifest};
pub use engine::{Engine, EngineConfig, WASM_STACK_BYTES as GUEST_STACK_BYTES};
pub use error::{LoadError, SandboxError};
pub use invoke::{Call, LogLevel, LogLine, Report, Slot, invoke, invoke_within};
pub use plugin::{Abi, Digest, Instances, Limits, Plugin, PluginSpec};
pub use workers::{Refused, STACK_BYTES, Workers};
