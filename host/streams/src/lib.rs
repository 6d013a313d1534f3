//! Everything that Cofferdam does to Redis: groups, reads, the atomic settle, retries, dead letters, trimming.
//!
//! This crate never runs a guest, never decides what becomes of a delivery (the model crate does), and never reads a clock or
//! a random number: times arrive as arguments. Only commands of Redis 7.0 are used.
//!
//! ```text
//!   XADD ─▶ stream ──fetch──▶ RawEntry ──codec──▶ Message ··· verdict ──settle──▶ outputs + ack, parked, or dead letter
//!             ▲                                                                  │
//!             └────────── take (due retries, suspects of a silent host) ◀── park ┘
//! ```

mod approvals;
mod audit;
pub mod codec;
pub mod dead_letters;
mod error;
mod fetch;
mod format;
mod group;
mod keys;
mod ledger;
mod link;
mod mutants;
mod operator_log;
mod order;
mod presence;
mod record;
mod reply;
mod scripts;
mod sentinel;
mod settle;
mod store;
mod survey;
mod trim;
mod versions;

pub use approvals::Approvals;
pub use audit::{Audit, Rescued};
pub use codec::{Codec, Decoded, RawEntry, Subscription, WhereRule, decode};
pub use error::{Remedy, StreamError};
pub use fetch::{ConsumerInfo, Doorbell, Look, Suspect, TakeFor, Taken, Watched};
pub use format::Format;
pub use group::{Ensured, GroupInfo, Start};
pub use keys::{LaneKeys, SHARED_RECORDS, redrive_stream, retry_consumer};
pub use ledger::{Ledger, Tally};
pub use link::{Link, Opening, Server};
pub use mutants::{MUTANTS, planted};
pub use operator_log::Act;
pub use order::{Owned, Tenure, Unfinished};
pub use presence::HostReport;
pub use record::read as read_record;
pub use settle::{Decided, Evidence, Holding, SettleContext, Settled, VersionStamp, output_id};
pub use store::{ServerFacts, Store};
pub use survey::{Cut, LaneFacts, PendingEntry, Seen, SeenPage, StreamFacts};
pub use trim::{Retention, Trimmed};
pub use versions::{Pin, VersionFacts, VersionFiles};

/// The Lua scripts as they are sent, by name: for comparing a model of a server with a real one.
pub fn script_texts() -> Vec<(&'static str, String)> {
    scripts::Scripts::shared().texts()
}
