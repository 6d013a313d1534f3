use std::time::Duration;

use cofferdam_tests::checker::full_length;
use cofferdam_tests::proxy::{Behaviour, Commands, Proxy};
use cofferdam_tests::{Host, Redis, wait_until};

use crate::network::Work;

/// What an operator reads of an error that passes by itself, or when the server has found its place again.
const NOT_READY: &str = "redis is not ready";
/// What an operator reads of an error that somebody has to mend.
const REFUSES_WRITES: &str = "redis refuses writes";

/// The errors of a server that cannot serve: code, the words of a server, and what the log must say of it beside them.
const ERRORS: [(&str, &str, &str); 12] = [
    ("READONLY", "You can't write against a read only replica.", NOT_READY),
    ("LOADING", "Redis is loading the dataset in memory", NOT_READY),
    ("BUSY", "Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", NOT_READY),
    ("NOREPLICAS", "Not enough good replicas to write.", REFUSES_WRITES),
    ("MISCONF", "Errors writing to the AOF file: No space left on device", REFUSES_WRITES),
    ("CLUSTERDOWN", "The cluster is down", NOT_READY),
    ("MASTERDOWN", "Link with MASTER is down and replica-serve-stale-data is set to 'no'.", NOT_READY),
    ("TRYAGAIN", "Multiple keys request during rehashing of slot", NOT_READY),
    ("MOVED", "3999 127.0.0.1:6381", NOT_READY),
    ("ASK", "3999 127.0.0.1:6382", NOT_READY),
    ("NOSCRIPT", "No matching script. Please use EVAL.", NOT_READY),
    ("OOM", "command not allowed when used memory > 'maxmemory'.", REFUSES_WRITES),
];

/// The longest pause of a host is 5 s, and then there may be work that has come together.
const A_FEW_SECONDS: Duration = Duration::from_secs(20);

#[test]
fn every_error_of_a_server_that_cannot_serve_is_named_waited_out_and_charged_to_nobody() {
    let redis = Redis::start();
    let proxy = Proxy::before(&redis);
    let mut work = Work::start(redis, &proxy.url());
    let (each, commands): (u64, &[Commands]) = match full_length() {
        true => (5_000, &[Commands::Scripts, Commands::Reads, Commands::All]),
        false => (600, &[Commands::Scripts, Commands::Reads]),
    };
    for (code, words, meaning) in ERRORS {
        let mut refused = 0;
        for commands in commands {
            proxy.set(Behaviour::Refuse(*commands, code, words));
            work.publish_for(Duration::from_millis(each));
            // On a busy machine, or after a long pause, it may be a while until somebody asks.
            wait_until("a command was refused", || proxy.seen().refused > 0);
            refused += proxy.seen().refused;
        }
        proxy.set(Behaviour::Pass);
        let took = work.settled_within(A_FEW_SECONDS);
        let logs: String = work.hosts.iter().map(Host::log).collect();
        let named = logs.lines().find(|line| line.contains(meaning) && line.contains(words));
        let named = named.unwrap_or_else(|| panic!("no line of a log says {meaning:?} and {words:?}"));
        println!("{code}: {refused} commands refused; at rest {took:?} after the end; said: {}", named.trim());
    }
    work.nothing_lost_doubled_or_charged();
}

// What a host reads while it cannot settle is work that it does for nothing, and that others could not do either: it must
// notice with the first refusal.
#[test]
fn while_settles_are_refused_reading_stops_within_a_second() {
    let redis = Redis::start();
    let proxy = Proxy::before(&redis);
    let mut work = Work::start(redis, &proxy.url());
    let mut late_reads = 0;
    for (code, words, _) in ERRORS.into_iter().filter(|(_, _, meaning)| *meaning == REFUSES_WRITES) {
        // So often that each host soon has something to read, and is refused: only then does it know.
        let often = Duration::from_millis(100);
        work.publish_every(often, Duration::from_millis(500));
        proxy.set(Behaviour::Refuse(Commands::Settles, code, words));
        work.publish_every(often, Duration::from_secs(4));
        let seen = proxy.seen();
        proxy.set(Behaviour::Pass);
        let first = seen.first_refusal.expect("a settle was refused");
        let after = |since: Duration| seen.reads_with_entries.iter().filter(|at| **at > first + since).count();
        let last = seen.reads_with_entries.last().map(|last| last.saturating_duration_since(first));
        println!(
            "{code}: {} settles refused; reads that brought entries after the first refusal: {}, a second later still {}, the last after {:?}",
            seen.refused,
            after(Duration::ZERO),
            after(Duration::from_secs(1)),
            last.unwrap_or_default()
        );
        late_reads += after(Duration::from_secs(1));
        println!("at rest {:?} after the end", work.settled_within(A_FEW_SECONDS));
    }
    work.nothing_lost_doubled_or_charged();
    assert_eq!(late_reads, 0);
}
