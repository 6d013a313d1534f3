//! Any bytes, as a file that somebody drops.
#![no_main]

#[path = "../properties/admission.rs"]
#[allow(dead_code, reason = "it is shared")]
mod admission;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| admission::holds(bytes));
