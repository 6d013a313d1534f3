//! The delivery loop: what moves a message from its stream to its verdict and back to Redis, for one plugin on one stream.
//!
//! It runs over two traits. [`cofferdam_streams::Link`] is the connection to Redis, or to a model of it; [`Runner`] is whoever
//! calls the plugin: wasmtime on the plugin's own threads, or the simulation. This crate never reads the wall clock, draws a
//! random number or starts a thread itself ([`Surroundings`] does), so that the simulation runs the very code that users run.
//!
//! Read [`pipeline`] first: it is the life of a message on one page.

mod counters;
mod doorbell;
mod key_queues;
mod lane;
mod pace;
pub mod pipeline;
mod runner;
mod suspects;

pub use counters::{Counters, Counts, Doing};
pub use doorbell::Bells;
pub use lane::{DeliveryConfig, Gate, Lane, LaneParts, Mode, PARKED_MAX, PluginBreaker};
pub use pipeline::Reader;
pub use runner::{Job, Ran, Runner, Surroundings, Terms, iso};
