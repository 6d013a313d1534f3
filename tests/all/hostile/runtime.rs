use cofferdam_model::ReasonCode::{BadOutput, Deadline, HostCalls, Memory, Stack, Tables, Trap};

use super::Expect::{Fault, Handled, Refused};
use super::{Entry, Guest, arena, entry};

pub(crate) const ENTRIES: &[Entry] = &[
    entry!(1, "infinite loop", "deadline", Guest::new("01-spin", Fault(Deadline))),
    entry!(
        2,
        "start function that never ends",
        "trial instance under the deadline",
        Guest::new("02-start-spin", Refused("trial", "deadline"))
    ),
    entry!(
        3,
        "memory.grow bomb",
        "memory limit",
        Guest::new("03-memory-grow", Fault(Memory)),
        Guest::new("03-memory-touch", Fault(Memory))
    ),
    entry!(
        4,
        "memory of 4 GiB from the start",
        "memory limit",
        Guest::new("04-memory-4gib", Refused("compile", "memory"))
    ),
    entry!(
        5,
        "64-bit memory of 2^32 pages",
        "feature is off",
        Guest::new("05-memory64", Refused("compile", "does not compile"))
    ),
    entry!(6, "table.grow bomb", "table limit", Guest::new("06-table-grow", Fault(Tables))),
    entry!(
        7,
        "table of 4,000,000,000 elements",
        "table limit",
        Guest::new("07-table-4e9", Refused("compile", "table"))
    ),
    entry!(8, "endless recursion", "stack limit", Guest::new("08-recursion", Fault(Stack))),
    entry!(
        9,
        "recursion with frames of 20,000 locals",
        "cap on locals",
        Guest::new("09-wide-frames", Refused("caps", "locals in one function"))
    ),
    entry!(
        10,
        "recursion to the edge, then a host call",
        "stack limit, and room beside it",
        Guest::new("10-edge-then-host", Fault(Stack))
    ),
    entry!(11, "unreachable", "trap", Guest::new("11-unreachable", Fault(Trap))),
    entry!(12, "division by zero", "trap", Guest::new("12-divide-by-zero", Fault(Trap))),
    entry!(
        13,
        "memory.fill of 32 MB in a loop",
        "deadline, and memory limit",
        Guest::new("13-memory-fill", Fault(Deadline))
    ),
    entry!(14, "memory.copy in a loop", "deadline, and memory limit", Guest::new("14-memory-copy", Fault(Deadline))),
    entry!(15, "flood of host calls", "host-call limit", Guest::new("15-call-flood", Fault(HostCalls))),
    entry!(16, "endless tail calls", "deadline", Guest::new("16-tail-calls", Fault(Deadline))),
    entry!(
        17,
        "atomic wait on shared memory",
        "feature is off",
        Guest::new("17-shared-memory", Refused("compile", "does not compile"))
    ),
    entry!(
        18,
        "atomic wait on plain memory",
        "feature is off",
        Guest::new("18-atomic-wait", Refused("compile", "does not compile"))
    ),
    entry!(
        19,
        "list of collected objects",
        "feature is off",
        Guest::new("19-gc-list", Refused("compile", "does not compile"))
    ),
    entry!(
        20,
        "collected array of 4 GB",
        "feature is off",
        Guest::new("20-gc-array", Refused("compile", "does not compile"))
    ),
    entry!(
        21,
        "exception that nobody catches",
        "feature is off",
        Guest::new("21-exception", Refused("compile", "does not compile"))
    ),
    entry!(22, "ten memories", "feature is off", Guest::new("22-ten-memories", Refused("compile", "does not compile"))),
    entry!(23, "5,000 exports", "harmless", Guest::new("23-many-exports", Handled)),
    entry!(24, "load outside of memory", "trap", Guest::new("24-out-of-bounds", Fault(Trap))),
    entry!(25, "indirect call of another type", "trap", Guest::new("25-wrong-type", Fault(Trap))),
    entry!(26, "trap in cabi_realloc", "trap", Guest::new("26-realloc-traps", Fault(Trap))),
    entry!(
        27,
        "realloc that lies",
        "bounds and alignment checks",
        Guest::new("27-realloc-overlapping", Handled),
        Guest::new("27-realloc-unaligned", Fault(BadOutput)),
        Guest::new("27-realloc-outside", Fault(BadOutput)),
    ),
    entry!(28, "trap in post-return", "trap", Guest::new("28-post-return", Fault(Trap))),
    entry!(29, "host call from inside a lowering", "component model", Guest::new("29-reentrance", Fault(Trap))),
];

#[tokio::test(flavor = "multi_thread")]
async fn hostile_guests_that_burn_time_memory_and_stack() {
    arena::run("runtime", ENTRIES).await;
}
