//! Any fields, as an entry of a stream and as a dead letter.
#![no_main]

#[path = "../properties/entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::holds(bytes));
