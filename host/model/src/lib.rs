//! The vocabulary of Cofferdam and its one decision, without side effects.
//!
//! This crate never reads a clock, draws a random number, touches Redis, a file or a WebAssembly engine: time and jitter
//! arrive as arguments. It depends on the standard library and `thiserror` alone, so it builds in a second and can be tested
//! by table and by property.
//!
//! A message's life, in the words of this crate:
//!
//! ```text
//!  entry ──codec──▶ Message ─┐
//!    │ does not decode       │ with its token and its charged attempts
//!    ▼                       ▼
//!  Fault::Malformed       Delivery ──invoke──▶ Outcome or Fault ──decide──▶ Verdict ──settle──▶ one atomic write
//!                                                                             │
//!                    Commit · RetryAfter · DeadLetter · Release · LeavePending ◀┘
//! ```
//!
//! Read in this order: [`message`], [`outcome`], [`policy`], [`verdict`], [`breaker`], [`dead_letter`], [`route`], [`trial`], [`invariants`].

#![deny(
    clippy::wildcard_enum_match_arm,
    reason = "a new outcome must break the build until someone decides what becomes of it"
)]

pub mod breaker;
pub mod dead_letter;
pub mod invariants;
pub mod message;
pub mod outcome;
pub mod policy;
pub mod route;
pub mod trial;
pub mod verdict;

pub use breaker::Breaker;
pub use dead_letter::{Attempt, DeadLetter, ReasonCode};
pub use message::{Delivery, EntryId, Message, Token};
pub use outcome::{Blame, Event, Fault, Outcome};
pub use policy::{Backoff, RetryPolicy};
pub use route::{Route, RouteError, StreamPattern};
pub use verdict::{HostState, Situation, Verdict, decide};
