//! The original pipeline failed in seven ways that its authors never saw. Each is a test here, under the name of the failure.

use cofferdam_tests::{Place, Redis, publish, wait_until};

fn group_field(redis: &Redis, field: &str) -> Option<String> {
    let groups = redis.cli(&["XINFO", "GROUPS", "stream:in"]);
    let lines: Vec<&str> = groups.lines().collect();
    lines.iter().position(|line| *line == field).and_then(|at| lines.get(at + 1)).map(|value| (*value).to_owned())
}

fn pending(redis: &Redis) -> u64 {
    group_field(redis, "pending").and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[test]
fn failure_1_entries_are_acknowledged_by_their_entry_id_and_not_by_their_message_id() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    for number in 0..50 {
        let id = format!("8f14e45f-ceea-467f-9575-{number:012}");
        redis.cli(&["XADD", "stream:in", "*", "message_id", &id, "payload", r#"{"do":"emit"}"#]);
    }
    let _host = place.host(&redis, 1);
    wait_until("all outputs are there", || redis.number(&["XLEN", "stream:out"]) == 50);
    wait_until("nothing is pending", || pending(&redis) == 0);
}

#[test]
fn failure_2_a_message_that_always_fails_reaches_the_dead_letters() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 3\n[backoff]\nbase = \"20ms\"\n");
    // The producer's own counters must not steer us.
    redis.cli(&["XADD", "stream:in", "*", "payload", r#"{"do":"trap"}"#, "retry_count", "0", "max_retries", "99"]);
    let _host = place.host(&redis, 1);
    wait_until("it is a dead letter", || redis.number(&["XLEN", "stream:dead_letter"]) == 1);
    assert!(redis.cli(&["XRANGE", "stream:dead_letter", "-", "+"]).contains("\"retry_count\":4"));
}

#[test]
fn failure_3_a_retry_that_fails_is_not_acknowledged() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 5\n[backoff]\nbase = \"300ms\"\nfactor = 1\n");
    publish(&redis, "stream:in", [String::from(r#"{"do":"trap-below","n":4}"#)].into_iter());
    let _host = place.host(&redis, 1);
    let mut seen_pending = false;
    wait_until("the fourth try has succeeded", || {
        seen_pending |= pending(&redis) == 1;
        redis.number(&["XLEN", "stream:out"]) == 1
    });
    assert!(seen_pending, "it was never pending between its tries");
    wait_until("nothing is pending", || pending(&redis) == 0);
}

#[test]
fn failure_4_one_poison_entry_does_not_take_its_batch_along() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let good = |count: usize| publish(&redis, "stream:in", (0..count).map(|_| String::from(r#"{"do":"emit"}"#)));
    good(20);
    redis.cli(&["XADD", "stream:in", "*", "payload", "{broken"]);
    good(20);
    redis.cli(&["XADD", "stream:in", "*", "payload", "{}", "priority", "high"]);
    redis.cli(&["XADD", "stream:in", "*", "payload", "\u{fffd}", "x", "y"]);
    good(20);
    let _host = place.host(&redis, 1);
    wait_until("all good ones are through", || redis.number(&["XLEN", "stream:out"]) == 60);
    wait_until("all bad ones are dead letters", || redis.number(&["XLEN", "stream:dead_letter"]) == 3);
    wait_until("nothing is pending", || pending(&redis) == 0);
}

#[test]
fn failure_5_an_idle_host_reads_without_errors_and_wakes_at_once() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let host = place.host(&redis, 1);
    wait_until("the host is ready", || host.log().contains("created the group"));
    // Longer than the block and the reply timeout together, in which the original's reads failed.
    std::thread::sleep(std::time::Duration::from_secs(8));
    publish(&redis, "stream:in", [String::from(r#"{"do":"emit"}"#)].into_iter());
    wait_until("it is handled", || redis.number(&["XLEN", "stream:out"]) == 1);
    let log = host.log();
    let trouble: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "))
        .filter(|line| !line.contains("appendonly"))
        .collect();
    assert!(trouble.is_empty(), "{trouble:?}");
}

#[test]
fn failure_6_what_a_crashed_host_held_is_taken_over_by_the_next() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("concurrency = 1\n");
    publish(&redis, "stream:in", (0..200).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":20000}}"#)));
    let first = place.host(&redis, 1);
    wait_until("the host holds entries", || pending(&redis) > 5);
    first.kill();
    assert!(pending(&redis) > 0);
    let _second = place.host(&redis, 2);
    wait_until("all outputs are there", || redis.number(&["XLEN", "stream:out"]) == 200);
    wait_until("nothing is pending", || pending(&redis) == 0);
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
}

#[test]
fn failure_7_young_entries_at_the_head_do_not_hide_stale_ones_behind() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    redis.cli(&["XGROUP", "CREATE", "stream:in", "group:actor", "0", "MKSTREAM"]);
    publish(&redis, "stream:in", (0..450).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    let read = |consumer: &str, count: &str| {
        let reply =
            redis.cli(&["XREADGROUP", "GROUP", "group:actor", consumer, "COUNT", count, "STREAMS", "stream:in", ">"]);
        reply.lines().filter(|line| line.contains('-') && !line.contains('{')).map(str::to_owned).collect::<Vec<_>>()
    };
    // More young entries at the head than anybody's scan is long, held by somebody alive …
    let young = read("alive/1", "400");
    // … and stale ones behind, whose holder is gone.
    read("gone/1", "50");
    let _host = place.host(&redis, 1);
    let mut keep_alive = vec!["XCLAIM", "stream:in", "group:actor", "alive/1", "0"];
    keep_alive.extend(young.iter().map(String::as_str));
    keep_alive.push("JUSTID");
    wait_until("the stale ones are through", || {
        redis.cli(&keep_alive);
        redis.number(&["XLEN", "stream:out"]) == 50
    });
    assert_eq!(pending(&redis), 400, "what somebody alive holds is his");
}
