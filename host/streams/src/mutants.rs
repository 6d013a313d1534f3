//! Bugs on purpose. A test that cannot fail proves nothing, so each of these must be caught by the simulation and by a test with
//! real processes; `make mutants-table` shows by which.
//!
//! None of them is in a program for users: without the feature `mutants`, [`planted`] is always false and the compiler drops what
//! stands behind it.

/// The bugs, as `COFFERDAM_MUTANT` names them.
pub const MUTANTS: [&str; 13] = [
    // A settle asks neither for the owner nor for the token.
    "no-fence",
    // The ack comes before the outputs, which may then be refused.
    "ack-first",
    // What a lost reply left with us is looked for by reading the own history, which raises delivery counters.
    "history-read",
    // Our own trim counts entries and asks no group.
    "maxlen",
    // What silent hosts held runs in the host's own process, all at once.
    "batch-suspects",
    // A renewal takes whatever it names, whoever holds it by now.
    "heartbeat-no-fence",
    // The ack follows the settle in a transaction, which NOSCRIPT does not stop.
    "evalsha-in-multi",
    // A retry is published anew, under a new id and to every group.
    "readd-retry",
    // Parking is refused at the server's memory limit.
    "park-no-oom",
    // One unusable output key spoils the batch that it is settled with.
    "batch-fails-whole",
    // Claims and deaths of hosts are charged as attempts.
    "attempts-from-token",
    // Whoever was once the owner of a lane that keeps an order goes on as if it still were.
    "no-epoch",
    // Whoever owns a lane that keeps an order settles whatever a failover has taken back of what it finished.
    "no-finished",
];

/// Those of the sandbox and of the program, which know them by themselves; here so that a misspelt one is noticed.
#[cfg(feature = "mutants")]
const ELSEWHERE: [&str; 7] = [
    "no-deadline",
    "no-memory-limit",
    "small-stack",
    "no-hostcall-fuel",
    "no-output-cap",
    "no-compile-jail",
    "no-whole-file",
];

/// Whether the program is to have this bug. Never in a program for users.
#[cfg(not(feature = "mutants"))]
pub const fn planted(_name: &str) -> bool {
    false
}

/// Whether the program is to have this bug, by `COFFERDAM_MUTANT`, which is read once.
///
/// # Panics
/// When there is no such bug: a test of it would prove nothing.
#[cfg(feature = "mutants")]
#[allow(clippy::disallowed_methods, reason = "a test-only build chooses its bug by the environment")]
pub fn planted(name: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        let chosen = std::env::var("COFFERDAM_MUTANT").unwrap_or_default();
        let known = |name: &str| MUTANTS.contains(&name) || ELSEWHERE.contains(&name);
        assert!(chosen.is_empty() || known(&chosen), "there is no mutant {chosen:?}");
        chosen
    });
    assert!(MUTANTS.contains(&name), "{name} is not in the list of mutants");
    *CHOSEN == name
}

/// The older format that this program is to have, by `COFFERDAM_FORMAT`: how two versions of a host meet in a test.
#[cfg(feature = "mutants")]
#[allow(clippy::disallowed_methods, reason = "a test-only build chooses its format by the environment")]
pub(crate) fn older_format() -> Option<crate::Format> {
    std::env::var("COFFERDAM_FORMAT").ok()?.parse().ok()
}

/// Whether the format that older hosts know is to be ignored, by `COFFERDAM_FORMAT_IGNORED`.
#[cfg(feature = "mutants")]
#[allow(clippy::disallowed_methods, reason = "a test-only build chooses its bug by the environment")]
pub(crate) fn writes_newest() -> bool {
    std::env::var_os("COFFERDAM_FORMAT_IGNORED").is_some()
}

/// A script with the bugs that lie in its text: mutant, script, what must be there, and what stands there instead.
#[cfg(feature = "mutants")]
const REPLACED: [(&str, &str, &str, &str); 11] = [
    ("no-fence", "settle", "local ok = held[id] == token -- fence", "local ok = true"),
    (
        "ack-first",
        "settle",
        "local ok = held[id] == token -- fence",
        "local ok = held[id] == token\n  if ok then redis.call('XACK', input, group, id) end",
    ),
    ("maxlen", "trim", "'XTRIM', key, 'MINID', '~', safe, 'LIMIT', limit", "'XTRIM', key, 'MAXLEN', keep"),
    ("heartbeat-no-fence", "heartbeat", "if held[id] ~= token then -- fence", "if false then"),
    (
        "readd-retry",
        "park",
        "redis.call('XCLAIM', input, group, retry, 0, id, 'IDLE', longest - delay, 'JUSTID')",
        // Not for ever, because then what always fails would keep a test from its end.
        "local again = 0
    for f = 1, #entry[2], 2 do if entry[2][f] == 'again' then again = again + 1 end end
    if again < 3 then
      redis.call('XADD', input, '*', 'again', '1', unpack(entry[2]))
      redis.call('XACK', input, group, id)
      redis.call('HDEL', park, id, id .. ':entry')
    else
      redis.call('XCLAIM', input, group, retry, 0, id, 'IDLE', longest - delay, 'JUSTID')
    end",
    ),
    ("park-no-oom", "park", "#!lua flags=allow-oom", "#!lua"),
    (
        "batch-fails-whole",
        "settle",
        "if unusable[key] then usable = false end",
        "if next(unusable) then usable = false end",
    ),
    (
        "no-epoch",
        "settle",
        "owns(ledger, me, ARGV[8]) and (not ordered or (redis.call('HGET', ledger, 'finished') or '0') == ARGV[9])",
        "true",
    ),
    ("no-epoch", "take", "owns(ledger, me, ARGV[8])", "true"),
    ("no-epoch", "read", "owns(KEYS[2], ARGV[2], ARGV[3])", "true"),
    ("no-finished", "settle", "(redis.call('HGET', ledger, 'finished') or '0') == ARGV[9]", "true"),
];

/// The text of a script, with the bug that is planted in it.
pub(crate) fn mutated(script: &str, text: &str) -> String {
    #[cfg(feature = "mutants")]
    if let Some((_, _, from, to)) = REPLACED.iter().find(|(mutant, of, ..)| *of == script && planted(mutant)) {
        assert!(text.contains(from), "the mutant no longer finds {from:?} in {script}.lua");
        return text.replace(from, to);
    }
    let _ = script;
    text.to_owned()
}

#[cfg(all(test, feature = "mutants"))]
mod tests {
    #[test]
    fn every_bug_of_a_script_still_finds_its_place() {
        for (mutant, script, from, _) in super::REPLACED {
            let path = format!("{}/src/scripts/{script}.lua", env!("CARGO_MANIFEST_DIR"));
            assert!(std::fs::read_to_string(path).unwrap().contains(from), "{mutant} is lost in {script}.lua");
        }
    }
}
