//! Seeds of the simulation: many without a failure, each the same twice, and the bugs that are planted on purpose found.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cofferdam_simulation::scenario::FAILOVERS_FROM;
use cofferdam_simulation::{Report, Scenario, run};

/// Runs seeds on all cores, and gives the first failure.
fn first_failure(seeds: Range<u64>) -> Option<(u64, Report)> {
    let (next, failure) = (AtomicU64::new(seeds.start), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while failure.lock().is_ok_and(|failure| failure.is_none()) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let report = run(&Scenario::new(seed));
                    if !report.violations.is_empty() {
                        failure.lock().expect("nobody panics while holding it").get_or_insert((seed, report));
                    }
                }
            });
        }
    });
    failure.into_inner().expect("nobody panics while holding it")
}

#[allow(clippy::disallowed_methods, reason = "a test-only build chooses its bug by the environment")]
fn mutant() -> Option<String> {
    std::env::var("COFFERDAM_MUTANT").ok().filter(|name| !name.is_empty())
}

#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
fn keep_every_promise(seeds: Range<u64>) {
    if let Some(mutant) = mutant() {
        return println!("SKIPPED: this program has the bug {mutant}");
    }
    if let Some((seed, report)) = first_failure(seeds) {
        let words: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
        panic!(
            "seed {seed} failed:\n  {}\nsee it whole with: cargo run --release -p cofferdam-simulation -- {seed}",
            words.join("\n  ")
        );
    }
}

#[test]
fn ten_thousand_seeds_keep_every_promise() {
    keep_every_promise(0..10_000);
}

#[test]
fn two_thousand_seeds_of_failovers_keep_the_order_of_keys() {
    keep_every_promise(FAILOVERS_FROM..FAILOVERS_FROM + 2_000);
}

#[test]
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
fn seeds_that_have_found_a_defect_do_not_find_it_again() {
    if let Some(mutant) = mutant() {
        return println!("SKIPPED: this program has the bug {mutant}");
    }
    // A failover took back that an entry had been read, and the next of its key did not wait for it to be read again.
    let unread = [2_035_034, 2_059_787, 3_017_582, 3_034_274];
    // A host that had lost an ordered lane did not give back what had waited there.
    let kept = [2_078_291, 3_035_231];
    // A group was created again at a floor beyond all ids of a stream that had begun anew under a clock that was set back.
    let beyond = [3_132_943];
    // A park took notice of a clock that was set back, and forgot the parked entries that somebody had trimmed.
    let trimmed = [3_339_433];
    // A failover took back what came before a message that was running, which took effect all the same; on a host that was leaving too.
    let running = [4_343_714, 7_833_143];
    // A failover took back an ownership or a read; what had run before counted for what was given out anew under the same numbers.
    let repeated = [1_000_000_070_323, 1_000_000_097_869];
    for seed in unread.into_iter().chain(running).chain(repeated).chain(kept).chain(beyond).chain(trimmed) {
        assert_eq!(run(&Scenario::new(seed)).violations, [], "seed {seed}");
    }
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    for seed in (0..2_000).step_by(50) {
        let of = |report: Report| (report.trace, report.commands, report.took, report.violations);
        let (first, second) = (of(run(&Scenario::new(seed))), of(run(&Scenario::new(seed))));
        assert_eq!(first, second, "seed {seed} gave two runs");
    }
}

/// What the simulation says of a bug within 5,000 seeds.
fn with_bug(name: &str, from: u64) -> String {
    let found = std::process::Command::new(env!("CARGO_BIN_EXE_simulate"))
        .args(["--from", &from.to_string(), "--seeds", "5000", "--failures", "1"])
        .env("COFFERDAM_MUTANT", name)
        .output()
        .expect("the simulation runs");
    String::from_utf8_lossy(&found.stderr).into_owned()
}

/// A process has one bug, chosen by its environment, so each of them runs in a process of its own.
#[test]
#[allow(clippy::print_stdout, reason = "a test that is skipped says so, and one that measures what it found")]
fn every_bug_that_is_planted_is_found_within_a_few_thousand_seeds() {
    if !cfg!(feature = "mutants") {
        return println!(
            "SKIPPED: built without the bugs; run it with: cargo test --release -p cofferdam-simulation --features mutants"
        );
    }
    for name in cofferdam_streams::MUTANTS {
        // Where the order of keys is broken, among failovers.
        let text: String = [0, FAILOVERS_FROM].map(|from| with_bug(name, from)).concat();
        let first: Vec<&str> = text.lines().filter(|line| !line.is_empty()).take(2).collect();
        println!("{name}: {}", first.join(" "));
        assert!(text.contains(" failed; "), "{name} was not found:\n{text}");
    }
}
