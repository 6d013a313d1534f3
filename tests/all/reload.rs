use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use cofferdam_tests::{Place, Redis, guest, publish, wait_until};
use serde_json::Value;

fn live_digest(redis: &Redis) -> String {
    let key = redis.cli(&["--raw", "KEYS", "cofferdam:host:*"]);
    let report: Value = serde_json::from_str(&redis.cli(&["--raw", "GET", &key])).unwrap_or_default();
    let plugins = report["plugins"].as_array().cloned().unwrap_or_default();
    let actor = plugins.iter().find(|plugin| plugin["name"] == "actor");
    actor.and_then(|plugin| plugin["digest"].as_str()).unwrap_or_default().to_owned()
}

fn manifest(version: usize) -> String {
    format!("[config]\nversion = \"{version}\"\n")
}

/// The ways in which a deployment goes wrong.
fn break_something(place: &Place, way: usize, wasm: &[u8]) {
    let (wasm_file, manifest_file) = (place.plugins().join("actor.wasm"), place.plugins().join("actor.toml"));
    match way % 5 {
        // A copy that was cut off: sections are missing.
        0 => fs::write(&wasm_file, &wasm[..wasm.len() / 2]).unwrap(),
        // Not wasm at all, with a manifest that vouches for it.
        1 => place.put_actor_with(b"\x7fELF this is no wasm", "[config]\nversion = \"broken\"\n"),
        // A manifest that cannot be read.
        2 => fs::write(&manifest_file, "subscribe = [\"stream:in\"").unwrap(),
        // A manifest with a typing error in a limit.
        3 => fs::write(&manifest_file, "subscribe = [\"stream:in\"]\n[limits]\nmemroy = \"1MiB\"\n").unwrap(),
        // Written in pieces, as cp does it.
        _ => {
            let (first, second) = wasm.split_at(wasm.len() / 3);
            fs::write(&wasm_file, first).unwrap();
            std::thread::sleep(Duration::from_millis(30));
            let mut file = fs::OpenOptions::new().append(true).open(&wasm_file).unwrap();
            std::io::Write::write_all(&mut file, second).unwrap();
        }
    }
}

trait PutActor {
    fn put_actor_with(&self, wasm: &[u8], more: &str);
}

impl PutActor for Place {
    fn put_actor_with(&self, wasm: &[u8], more: &str) {
        let manifest = format!(
            "subscribe = [\"stream:in\"]\nemit = [\"stream:out\", \"stream:wrong_type\"]\nstart = \"oldest\"\n{more}"
        );
        self.put("actor", wasm, &manifest);
    }
}

#[test]
fn a_hundred_swaps_under_load_half_of_them_broken_fail_no_message_and_activate_no_bad_version() {
    let (redis, place) = (Redis::start(), Place::new());
    let wasm = guest("test/actor.wasm");
    place.put_actor(&manifest(0));
    let _host = place.host(&redis, 1);
    wait_until("the first version is live", || !live_digest(&redis).is_empty());
    let mut published = 0;
    let mut good = BTreeSet::from([String::from("0")]);
    for swap in 1..=100 {
        if swap % 2 == 0 {
            place.put_actor(&manifest(swap));
            good.insert(swap.to_string());
        } else {
            break_something(&place, swap / 2, &wasm);
        }
        publish(
            &redis,
            "stream:in",
            (published..published + 200).map(|seq| format!(r#"{{"do":"emit","seq":{seq},"busy_us":50}}"#)),
        );
        published += 200;
        std::thread::sleep(Duration::from_millis(if swap % 4 == 0 { 500 } else { 120 }));
    }
    place.put_actor(&manifest(1_000));
    good.insert(String::from("1000"));
    wait_until("the last good version is live", || {
        publish(&redis, "stream:in", [format!(r#"{{"do":"emit","seq":{published}}}"#)].into_iter());
        published += 1;
        std::thread::sleep(Duration::from_millis(100));
        redis.cli(&["XREVRANGE", "stream:out", "+", "-", "COUNT", "1"]).contains(r#""version":"1000""#)
    });
    wait_until("all outputs are there", || redis.number(&["XLEN", "stream:out"]) == published);
    let mut versions = BTreeSet::new();
    let mut seqs = BTreeSet::new();
    for line in redis.cli(&["XRANGE", "stream:out", "-", "+"]).lines().filter(|line| line.starts_with("{\"")) {
        let event: Value = serde_json::from_str(line).unwrap();
        versions.insert(event["version"].as_str().unwrap().to_owned());
        assert!(seqs.insert(event["seq"].as_u64().unwrap()), "{line} is there twice");
    }
    assert_eq!(seqs.len() as u64, published);
    assert!(versions.is_subset(&good), "versions that were never good have run: {versions:?}");
    assert!(versions.len() > 10, "so few swaps were seen that this proves little: {versions:?}");
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
    let retried = redis.number(&["HGET", "cofferdam:ledger:stream:in|group:actor", "retried"]);
    assert_eq!(retried, 0, "messages failed because of a swap");
}

#[test]
fn a_file_that_is_gone_pauses_its_plugin_and_loses_nothing() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let host = place.host(&redis, 1);
    wait_until("it is live", || !live_digest(&redis).is_empty());
    fs::remove_file(place.plugins().join("actor.wasm")).unwrap();
    wait_until("it is paused", || host.log().contains("paused, nothing is dropped"));
    publish(&redis, "stream:in", (0..20).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(redis.number(&["XLEN", "stream:out"]), 0, "a paused plugin reads nothing");
    place.put_actor("");
    wait_until("it has gone on", || redis.number(&["XLEN", "stream:out"]) == 20);
}

#[test]
fn a_wasm_without_a_manifest_waits_and_says_so_beside_the_file() {
    let (redis, place) = (Redis::start(), Place::new());
    fs::write(place.plugins().join("lonely.wasm"), guest("test/actor.wasm")).unwrap();
    let _host = place.host(&redis, 1);
    let status = place.plugins().join("lonely.status.txt");
    wait_until("the status file says what is missing", || {
        fs::read_to_string(&status).is_ok_and(|text| text.contains("write lonely.toml"))
    });
    // Then the manifest comes, and it goes live without a restart.
    fs::write(
        place.plugins().join("lonely.toml"),
        "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\nstart = \"oldest\"\n",
    )
    .unwrap();
    publish(&redis, "stream:in", [String::from(r#"{"do":"emit"}"#)].into_iter());
    wait_until("it is live", || redis.number(&["XLEN", "stream:out"]) == 1);
    wait_until("the status file says so", || {
        fs::read_to_string(&status).is_ok_and(|text| text.contains("lonely: running"))
    });
}

#[test]
fn both_layouts_and_a_swapped_folder_are_seen() {
    let (redis, place) = (Redis::start(), Place::new());
    let _host = place.host(&redis, 1);
    let folder = |version: &str| {
        let staging = place.directory.path().join(format!("actor-{version}"));
        fs::create_dir(&staging).unwrap();
        fs::write(staging.join("actor.wasm"), guest("test/actor.wasm")).unwrap();
        let text = format!(
            "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\nstart = \"oldest\"\n[config]\nversion = \"{version}\"\n"
        );
        fs::write(staging.join("actor.toml"), text).unwrap();
        staging
    };
    fs::rename(folder("one"), place.plugins().join("actor")).unwrap();
    wait_until("the folder is live", || !live_digest(&redis).is_empty());
    let first = live_digest(&redis);
    let second = folder("two");
    fs::rename(place.plugins().join("actor"), place.directory.path().join("old")).unwrap();
    fs::rename(second, place.plugins().join("actor")).unwrap();
    wait_until("its successor is live", || !live_digest(&redis).is_empty() && live_digest(&redis) != first);
}

#[test]
fn a_pipe_among_the_plugins_and_a_group_that_is_taken_stop_nobody() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let host = place.host(&redis, 1);
    wait_until("it is live", || !live_digest(&redis).is_empty());
    let pipe = place.plugins().join("pipe.wasm");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let thief = "name = \"thief\"\ngroup = \"group:actor\"\nsubscribe = [\"stream:in\"]\nemit = []\n";
    place.put("thief", &guest("test/actor.wasm"), thief);
    wait_until("the second user of the group is refused", || {
        host.log().contains("each would take the other's messages")
    });
    publish(&redis, "stream:in", (0..50).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    wait_until("nothing is lost to either", || redis.number(&["XLEN", "stream:out"]) == 50);
}

#[test]
fn a_pipe_or_a_link_in_the_place_of_a_status_file_is_replaced() {
    let (redis, place) = (Redis::start(), Place::new());
    let pipe = place.plugins().join("actor.status.txt");
    let link = place.plugins().join("other.status.txt");
    let elsewhere = place.directory.path().join("elsewhere");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::write(&elsewhere, "not theirs").unwrap();
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    // What a host left that was killed as it wrote.
    fs::write(place.plugins().join(".actor.status.txt.new"), "half").unwrap();
    place.put_actor("");
    place.put("other", b"no wasm", "subscribe = [\"stream:other\"]\n");
    let _host = place.host(&redis, 1);
    let said = |path: &std::path::Path, part: &str| {
        path.is_file() && fs::read_to_string(path).is_ok_and(|text| text.contains(part))
    };
    wait_until("it is told", || said(&pipe, "actor: running") && said(&link, "other: "));
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "not theirs");
    publish(&redis, "stream:in", [String::from(r#"{"do":"emit"}"#)].into_iter());
    wait_until("messages are handled", || redis.number(&["XLEN", "stream:out"]) == 1);
}
