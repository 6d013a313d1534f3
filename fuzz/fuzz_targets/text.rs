//! Any text, as a manifest and as a configuration. The program is no library: the files that read them are taken as they are.
#![no_main]
#![allow(dead_code, reason = "the program uses more of these files than this does")]

#[path = "../../host/daemon/src/config.rs"]
mod config;
#[path = "../../host/daemon/src/escape.rs"]
mod escape;
#[path = "../../host/daemon/src/exit.rs"]
mod exit;
#[path = "../../host/daemon/src/manifest.rs"]
mod manifest;
#[path = "../../host/daemon/src/quantity.rs"]
mod quantity;
#[path = "../../host/daemon/src/signature.rs"]
mod signature;
#[path = "../properties/text.rs"]
mod text;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| text::holds(bytes));
