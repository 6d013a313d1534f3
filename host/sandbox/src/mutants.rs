//! Protections that can be switched off on purpose, so that the hostile guests are seen to do the harm that each one prevents.
//!
//! None of this is in a program for users: without the feature `mutants`, [`planted`] is always false and the compiler drops what
//! stands behind it.

/// The missing protections, as `COFFERDAM_MUTANT` names them.
#[cfg(feature = "mutants")]
const MUTANTS: [&str; 5] = [
    // A running guest is never stopped.
    "no-deadline",
    // Memory grows as far as the engine's slots go.
    "no-memory-limit",
    // A thread has room for the guest's stack, and none for the host's functions on top of it.
    "small-stack",
    // A call between guest and host carries whatever the guest says.
    "no-hostcall-fuel",
    // Events are neither counted nor weighed.
    "no-output-cap",
];

/// Whether the program is to lack this protection. Never in a program for users.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn planted(_name: &str) -> bool {
    false
}

/// Whether the program is to lack this protection, by `COFFERDAM_MUTANT`, which is read once. Other crates have other bugs under
/// the same variable.
#[cfg(feature = "mutants")]
#[allow(clippy::disallowed_methods, reason = "a test-only build chooses its bug by the environment")]
pub(crate) fn planted(name: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| std::env::var("COFFERDAM_MUTANT").unwrap_or_default());
    assert!(MUTANTS.contains(&name), "{name} is not in the list of mutants");
    *CHOSEN == name
}
