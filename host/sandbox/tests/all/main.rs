//! The sandbox from outside: real guests, written as text, under real limits.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "test code: a panic is how it fails, also in helpers that stand outside of a test function"
)]

mod calls;
mod commands;
mod guests;
mod hostile;
mod loading;
mod threads;
mod toolchains;
