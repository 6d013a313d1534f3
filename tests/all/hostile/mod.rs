//! Guests that mean harm: the 80 ways in which a plugin can go wrong or be made to, one small guest for each, run in a real host with a
//! real Redis beside a good plugin. `make sandbox-table` writes what they did into docs/sandbox.md.

/// The host that they all run in, and what it must look like afterwards.
mod arena;
/// What they answer, and what they hand to the host.
mod data;
/// Files that must not become plugins.
mod load;
/// What a protection is worth: the same guests without it.
mod mutants;
/// What they do with the processor and with memory.
mod runtime;
/// Many good plugins, one of them hostile at times.
mod siege;
/// What they ask of the system.
mod wasi;

use cofferdam_model::ReasonCode;

/// One line of the table.
pub(crate) struct Entry {
    /// 1 to 80.
    pub(crate) number: u32,
    pub(crate) what: &'static str,
    /// Which protection it runs into.
    pub(crate) stopped_by: &'static str,
    pub(crate) guests: &'static [Guest],
}

/// A plugin of an entry.
#[derive(Clone, Copy)]
pub(crate) struct Guest {
    /// Of its file in tests/hostile/.
    pub(crate) name: &'static str,
    /// Lines of its manifest beyond the usual.
    pub(crate) manifest: &'static str,
    pub(crate) emit: &'static str,
    pub(crate) messages: u32,
    pub(crate) expect: Expect,
}

/// What must become of it.
#[derive(Clone, Copy)]
pub(crate) enum Expect {
    /// Every message is a dead letter with this code.
    Fault(ReasonCode),
    /// The message with the number n is a dead letter with the n-th code.
    Faults(&'static [ReasonCode]),
    /// One message in so many is a dead letter with this code; the others are handled.
    OneIn(u32, ReasonCode),
    /// It does no harm, and its messages are handled.
    Handled,
    /// It never runs: the step of admission that refuses it, and a part of the reason.
    Refused(&'static str, &'static str),
    /// The same, because its bytes are not those that its manifest vouches for.
    NotWhole,
    /// It is dear to compile, and goes live all the same: neither for long nor at the cost of the host.
    Compiles,
}

impl Guest {
    /// With the usual limits, and two messages.
    pub(crate) const fn new(name: &'static str, expect: Expect) -> Guest {
        Guest { name, manifest: "", emit: "stream:hout", messages: 2, expect }
    }

    pub(crate) const fn with(self, manifest: &'static str) -> Guest {
        Guest { manifest, ..self }
    }

    pub(crate) const fn emitting(self, emit: &'static str) -> Guest {
        Guest { emit, ..self }
    }

    pub(crate) const fn messages(self, messages: u32) -> Guest {
        Guest { messages, ..self }
    }
}

/// An entry of one guest with the usual manifest.
macro_rules! entry {
    ($number:literal, $what:literal, $by:literal, $($guest:expr),+ $(,)?) => {
        $crate::hostile::Entry { number: $number, what: $what, stopped_by: $by, guests: &[$($guest),+] }
    };
}
pub(crate) use entry;

#[test]
fn every_hostile_entry_is_claimed_once_and_every_guest_by_an_entry() {
    let entries: Vec<&Entry> =
        [runtime::ENTRIES, data::ENTRIES, wasi::ENTRIES, load::ENTRIES, load::CRASH].into_iter().flatten().collect();
    let mut numbers: Vec<u32> = entries.iter().map(|entry| entry.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=80).collect::<Vec<u32>>());
    let claimed: Vec<&str> = entries.iter().flat_map(|entry| entry.guests).map(|guest| guest.name).collect();
    for name in cofferdam_tests::guests::names() {
        assert!(claimed.contains(&name.as_str()), "tests/hostile/{name}.wat belongs to no entry");
    }
}
