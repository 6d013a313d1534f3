use cofferdam_model::ReasonCode::{Deadline, HostCalls, OutputLimit, Random, Trap};

use super::Expect::{Fault, Handled, Refused};
use super::{Entry, Guest, arena, entry};

pub(crate) const ENTRIES: &[Entry] = &[
    entry!(51, "exit(0) in the middle of a message", "an exit is a failure", Guest::new("51-exit-zero", Fault(Trap))),
    entry!(
        52,
        "exit(0) in its start function",
        "trial instance",
        Guest::new("52-exit-in-start", Refused("trial", "exit(0)"))
    ),
    entry!(
        53,
        "sleep of an hour",
        "waits end at the deadline",
        Guest::new("53-sleep", Fault(Deadline)),
        Guest::new("53-poll-oneoff", Fault(Deadline)),
    ),
    entry!(
        54,
        "flood of clock readings",
        "host-call limit, and a coarse clock",
        Guest::new("54-clock", Fault(HostCalls))
    ),
    entry!(55, "2 GiB of random bytes", "random limit", Guest::new("55-random", Fault(Random))),
    entry!(56, "standard output without an end", "output limit", Guest::new("56-stdout-flood", Fault(OutputLimit))),
    entry!(57, "files by path, link and number", "no folder is open", Guest::new("57-files", Handled)),
    entry!(58, "socket and name lookup", "no network is there", Guest::new("58-network", Handled)),
    entry!(59, "environment and arguments", "empty", Guest::new("59-environment", Handled)),
    entry!(
        60,
        "thread of its own",
        "nothing is offered",
        Guest::new("60-thread-spawn", Refused("world", "thread-spawn"))
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn hostile_guests_that_reach_for_the_system() {
    arena::run("wasi", ENTRIES).await;
}
