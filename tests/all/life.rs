use std::collections::BTreeMap;

use cofferdam_model::ReasonCode;
use cofferdam_streams::LaneKeys;
use cofferdam_streams::dead_letters::StoredLetter;
use cofferdam_tests::{Place, Redis, cofferdam, publish, wait_until};

use crate::operators::OPERATOR;

const QUICK_RETRIES: &str =
    "retries = 1\n[backoff]\nbase = \"50ms\"\n[limits]\ndeadline = \"200ms\"\nmemory = \"16MiB\"\n";

fn settled(redis: &Redis) -> bool {
    let groups = redis.cli(&["XINFO", "GROUPS", "stream:in"]);
    let fields: Vec<&str> = groups.lines().collect();
    let of = |name: &str| fields.iter().position(|field| *field == name).and_then(|at| fields.get(at + 1)).copied();
    of("pending") == Some("0") && of("lag") == Some("0")
}

async fn letters(redis: &Redis) -> Vec<StoredLetter> {
    redis.store().await.dead_letters("-", "+", 1_000).await.unwrap()
}

#[tokio::test]
async fn every_outcome_and_fault_ends_where_it_belongs_with_its_code_and_evidence() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor(QUICK_RETRIES);
    let acts = [
        ("emit", None),
        ("trap", Some(ReasonCode::Trap)),
        ("spin", Some(ReasonCode::Deadline)),
        ("retry", Some(ReasonCode::Retry)),
        ("reject", Some(ReasonCode::Reject)),
        ("grow", Some(ReasonCode::Memory)),
        ("elsewhere", Some(ReasonCode::NotGranted)),
        ("not-json", Some(ReasonCode::BadOutput)),
    ];
    publish(&redis, "stream:in", acts.iter().map(|(act, _)| format!(r#"{{"do":"{act}","seq":"{act}"}}"#)));
    publish(&redis, "stream:in", [String::from("this is not json")].into_iter());
    publish(&redis, "stream:in", [String::from(r#"{"do":"emit","n":0}"#)].into_iter());
    let _host = place.host(&redis, 1);
    wait_until("everything is settled", || settled(&redis));

    let by_act: BTreeMap<String, StoredLetter> = letters(&redis)
        .await
        .into_iter()
        .map(|letter| {
            let act =
                letter.original_message.pointer("/payload/do").and_then(|act| act.as_str()).unwrap_or("malformed");
            (act.to_owned(), letter.clone())
        })
        .collect();
    for (act, code) in acts.into_iter().chain([("malformed", Some(ReasonCode::Malformed))]) {
        let letter = by_act.get(act);
        assert_eq!(letter.map(|letter| letter.code.as_str()), code.map(ReasonCode::as_str), "{act}: {letter:?}");
        let Some(letter) = letter else { continue };
        assert!(letter.exact, "{act}: the original entry is not copied");
        assert!(!letter.original_id.is_empty() && letter.group == "group:actor", "{act}: {letter:?}");
        let tries = letter.attempts.as_array().map_or(0, Vec::len);
        let expected = match act {
            "reject" => 1,
            "malformed" => 0,
            _ => 2,
        };
        assert_eq!(tries, expected, "{act}: {:?}", letter.attempts);
    }
    assert_eq!(by_act.len(), 8);
    let trap = by_act.get("trap").unwrap();
    assert!(trap.log_tail.contains("the payload says trap"), "the panic's words are lost: {:?}", trap.log_tail);
    assert!(trap.trap.contains("handle"), "the backtrace names no function of the guest: {:?}", trap.trap);
    assert_eq!(redis.number(&["XLEN", "stream:out"]), 1);

    let store = redis.store().await;
    let tally = store.ledger(&LaneKeys::new("stream:in", "group:actor")).await.unwrap().tally;
    assert_eq!((tally.committed, tally.filtered, tally.dead, tally.outputs), (1, 1, 8, 1));
    assert_eq!(
        redis.number(&["HLEN", "cofferdam:park:stream:in|group:actor"]),
        0,
        "a settled message leaves no park record"
    );
}

#[tokio::test]
async fn a_message_that_is_retried_and_then_succeeds_leaves_one_output_and_no_dead_letter() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 3\n[backoff]\nbase = \"50ms\"\n");
    publish(&redis, "stream:in", [String::from(r#"{"do":"trap-below","n":3,"seq":1}"#)].into_iter());
    let _host = place.host(&redis, 1);
    wait_until("it has succeeded", || redis.number(&["XLEN", "stream:out"]) == 1);
    wait_until("it is settled", || settled(&redis));
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
    let tally = redis.store().await.ledger(&LaneKeys::new("stream:in", "group:actor")).await.unwrap().tally;
    assert_eq!((tally.committed, tally.retried), (1, 2));
}

#[tokio::test]
async fn a_redriven_message_comes_to_the_failing_group_alone_with_fresh_attempts_and_the_same_identity() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 0\n");
    let other = "name = \"other\"\nsubscribe = [\"stream:in\"]\nemit = [\"stream:other_out\"]\nstart = \"oldest\"\nretries = 0\n";
    place.put("other", &cofferdam_tests::guest("test/actor.wasm"), other);
    publish(&redis, "stream:in", [String::from(r#"{"do":"trap-below","n":2,"seq":1,"to":"stream:out"}"#)].into_iter());
    let _host = place.host(&redis, 1);
    wait_until("both groups have failed on it", || redis.number(&["XLEN", "stream:dead_letter"]) == 2);
    let store = redis.store().await;
    let all = letters(&redis).await;
    let letter = all.iter().find(|letter| letter.group == "group:actor").unwrap();
    // The mended version: it no longer minds the first attempt.
    place.put_actor("retries = 2\n[backoff]\nbase = \"20ms\"\n");
    wait_until("the mended version is live", || {
        let report = redis.cli(&["--raw", "GET", &redis.cli(&["--raw", "KEYS", "cofferdam:host:*"])]);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap_or_default();
        let plugins = report["plugins"].as_array().cloned().unwrap_or_default();
        plugins.iter().any(|plugin| plugin["name"] == "actor" && plugin["digest"] != letter.digest.as_str())
    });
    assert!(store.redrive(letter, "group:actor", &OPERATOR).await.unwrap().is_some());
    assert!(store.redrive(letter, "group:actor", &OPERATOR).await.unwrap().is_none(), "twice is a no-op");
    wait_until("it has gone through", || redis.number(&["XLEN", "stream:out"]) == 1);
    let output = redis.cli(&["XRANGE", "stream:out", "-", "+"]);
    assert!(output.contains(&format!("stream:in/{}/0/1", letter.original_id)), "{output}");
    wait_until("its redrive entry is gone", || redis.number(&["XLEN", "cofferdam:redrive:group:actor"]) == 0);
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 1, "the other group's dead letter stays");
    assert_eq!(redis.number(&["XLEN", "stream:other_out"]), 0, "the other group never sees it");
}

#[test]
fn a_message_that_has_passed_more_than_eight_plugins_is_a_loop() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    for hops in ["7", "8"] {
        redis.cli(&["XADD", "stream:in", "*", "payload", r#"{"do":"emit"}"#, "cofferdam_hops", hops]);
    }
    let _host = place.host(&redis, 1);
    wait_until("both are settled", || settled(&redis));
    assert_eq!((redis.number(&["XLEN", "stream:out"]), redis.number(&["XLEN", "stream:dead_letter"])), (1, 1));
    assert!(redis.cli(&["XRANGE", "stream:dead_letter", "-", "+"]).contains("\nloop\n"));
}

#[test]
fn trimming_keeps_what_any_group_has_not_finished() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    redis.cli(&["XGROUP", "CREATE", "stream:in", "group:slow", "0", "MKSTREAM"]);
    publish(&redis, "stream:in", (0..3_000).map(|seq| format!(r#"{{"do":"emit","n":0,"seq":{seq}}}"#)));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let trim = || {
        runtime.block_on(async {
            let store = redis.store().await;
            let retention = cofferdam_streams::Retention { entries: 100, ..Default::default() };
            store.trim("stream:in", &retention, 0).await.unwrap()
        })
    };
    let _host = place.host(&redis, 1);
    wait_until("one group has finished", || {
        redis.number(&["HGET", "cofferdam:ledger:stream:in|group:actor", "filtered"]) == 3_000
    });
    let blocked = trim();
    assert_eq!((blocked.removed, blocked.blocked_by.as_deref()), (0, Some("group:slow")));
    assert_eq!(redis.number(&["XLEN", "stream:in"]), 3_000);
    // The slow group reads all and acknowledges all but one in the middle: nothing from there on may go.
    let read = redis.cli(&["XREADGROUP", "GROUP", "group:slow", "c", "COUNT", "3000", "STREAMS", "stream:in", ">"]);
    let ids: Vec<&str> = read.lines().filter(|line| line.contains('-') && !line.contains('{')).collect();
    assert_eq!(ids.len(), 3_000);
    for chunk in
        ids.iter().copied().enumerate().filter(|(at, _)| *at != 1_500).map(|(_, id)| id).collect::<Vec<_>>().chunks(500)
    {
        let mut command = vec!["XACK", "stream:in", "group:slow"];
        command.extend(chunk);
        redis.cli(&command);
    }
    trim();
    let left = redis.number(&["XLEN", "stream:in"]);
    assert!((1_500..=1_600).contains(&left), "{left} entries are left");
    assert!(redis.cli(&["XRANGE", "stream:in", ids[1_500], ids[1_500]]).contains("payload"));
}

#[test]
fn trimming_keeps_what_a_group_that_was_set_back_has_yet_to_read() {
    let redis = Redis::start();
    publish(&redis, "stream:in", (0..1_000).map(|seq| format!(r#"{{"seq":{seq}}}"#)));
    redis.cli(&["XGROUP", "CREATE", "stream:in", "group:replay", "0"]);
    redis.cli(&["XREADGROUP", "GROUP", "group:replay", "c", "COUNT", "1000", "STREAMS", "stream:in", ">"]);
    // All but the last.
    let end = redis.cli(&["XINFO", "STREAM", "stream:in", "FULL", "COUNT", "1"]);
    let last = end.lines().skip_while(|line| *line != "last-generated-id").nth(1).unwrap().to_owned();
    let pending = redis.cli(&["XPENDING", "stream:in", "group:replay", "-", "+", "1000"]);
    let ids: Vec<&str> = pending.lines().filter(|line| line.contains('-') && *line != last).collect();
    assert_eq!(ids.len(), 999);
    redis.cli(&[&["XACK", "stream:in", "group:replay"][..], &ids].concat());
    redis.cli(&["XGROUP", "SETID", "stream:in", "group:replay", "0"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let trimmed = runtime.block_on(async {
        let retention = cofferdam_streams::Retention { entries: 100, ..Default::default() };
        redis.store().await.trim("stream:in", &retention, 0).await.unwrap()
    });
    assert_eq!((trimmed.removed, trimmed.blocked_by.as_deref()), (0, Some("group:replay")));
}

#[test]
fn a_plugin_that_was_removed_for_good_and_comes_back_begins_as_a_new_one() {
    let (redis, place) = (Redis::start(), Place::new());
    let manifest = "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\nstart = \"new\"\n";
    let put = || place.put("actor", &cofferdam_tests::guest("test/actor.wasm"), manifest);
    let emit = |range: std::ops::Range<u64>| {
        publish(&redis, "stream:in", range.map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    };
    emit(0..1);
    put();
    let host = place.host(&redis, 1);
    wait_until("the group is there", || host.log().contains("created the group"));
    emit(1..6);
    wait_until("it is handled", || redis.number(&["XLEN", "stream:out"]) == 5);
    for file in ["actor.wasm", "actor.toml"] {
        std::fs::remove_file(place.plugins().join(file)).unwrap();
    }
    wait_until("it is paused", || {
        String::from_utf8_lossy(&cofferdam(&["status", "--redis", &redis.url()]).stdout).contains("paused")
    });
    redis.cli(&["XGROUP", "DESTROY", "stream:in", "group:actor"]);
    redis.cli(&["DEL", "cofferdam:ledger:stream:in|group:actor", "cofferdam:redrive:group:actor"]);
    redis.cli(&["DEL", "cofferdam:ledger:cofferdam:redrive:group:actor|group:actor"]);
    put();
    wait_until("it is back", || redis.cli(&["XINFO", "GROUPS", "stream:in"]).contains("group:actor"));
    emit(6..8);
    wait_until("what is new is handled", || redis.number(&["XLEN", "stream:out"]) >= 7);
    wait_until("all is settled", || redis.number(&["XPENDING", "stream:in", "group:actor"]) == 0);
    assert_eq!(redis.number(&["XLEN", "stream:out"]), 7, "what it had handled before was handled again");
}

#[test]
fn a_group_that_is_lost_with_all_its_records_reads_from_the_oldest_entry_and_never_from_the_end() {
    let (redis, place) = (Redis::start(), Place::new());
    let manifest = "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\nstart = \"new\"\n";
    place.put("actor", &cofferdam_tests::guest("test/actor.wasm"), manifest);
    let host = place.host(&redis, 1);
    wait_until("the group is there", || host.log().contains("created the group"));
    redis.cli(&["FLUSHALL"]);
    publish(&redis, "stream:in", (0..5).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    wait_until("what came after the loss is handled", || redis.number(&["XLEN", "stream:out"]) == 5);
}

#[test]
fn a_group_is_created_again_at_its_floor_and_nothing_unfinished_is_missed() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("retries = 5\n[backoff]\nbase = \"1s\"\nfactor = 1\n");
    let host = place.host(&redis, 1);
    wait_until("the group is there", || host.log().contains("created the group"));
    publish(&redis, "stream:in", [String::from(r#"{"do":"trap-below","n":3,"seq":0}"#)].into_iter());
    publish(&redis, "stream:in", (1..10).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    wait_until("its neighbours are through", || redis.number(&["XLEN", "stream:out"]) == 9);
    redis.cli(&["XGROUP", "DESTROY", "stream:in", "group:actor"]);
    publish(&redis, "stream:in", [String::from(r#"{"do":"emit","seq":10}"#)].into_iter());
    // The one that was waiting for its retry is read again; those after it may repeat, and the log says so.
    wait_until("the unfinished one is through", || {
        redis.cli(&["XRANGE", "stream:out", "-", "+"]).contains(r#""seq":0"#)
    });
    wait_until("the new one is through", || redis.cli(&["XRANGE", "stream:out", "-", "+"]).contains(r#""seq":10"#));
    assert!(host.log().contains("may repeat"), "{}", host.log());
}
