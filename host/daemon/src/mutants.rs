//! Protections of the program that can be switched off on purpose, so that files are seen to do the harm that each one prevents.
//!
//! None of this is in a program for users: without the feature `mutants`, [`planted`] is always false and the compiler drops what
//! stands behind it.

/// The missing protections, as `COFFERDAM_MUTANT` names them.
#[cfg(feature = "mutants")]
const MUTANTS: [&str; 2] = [
    // The compiler takes what memory and time it likes.
    "no-compile-jail",
    // A file is tried as it is found: not quiet, not read twice, whatever sha256 its manifest gives.
    "no-whole-file",
];

/// Whether the program is to lack this protection. Never in a program for users.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn planted(_name: &str) -> bool {
    false
}

/// Whether the program is to lack this protection, by `COFFERDAM_MUTANT`. Other crates have other bugs under the same variable.
#[cfg(feature = "mutants")]
pub(crate) fn planted(name: &str) -> bool {
    assert!(MUTANTS.contains(&name), "{name} is not in the list of mutants");
    crate::config::environment("COFFERDAM_MUTANT").as_deref() == Some(name)
}
