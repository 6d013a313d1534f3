//! Modules that are valid, as programs that are given a message. Bytes that are a module are taken as they are: so what was found can
//! be kept as modules, which `make test` runs without anything that makes them.
#![no_main]

#[path = "../properties/admission.rs"]
#[allow(dead_code, reason = "it is shared")]
mod admission;
#[path = "../properties/guest.rs"]
mod guest;
#[path = "../smith.rs"]
mod smith;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(module) = smith::module(bytes) {
        guest::holds(&module);
    }
});
