use std::fs;

use cofferdam_tests::{Host, Place, Redis, cofferdam, cofferdam_in, errors, guest, program, publish, wait_until};

#[test]
fn an_unknown_configuration_key_is_named_with_its_place_and_ends_with_2() {
    let place = Place::new();
    let file = place.directory.path().join("bad.toml");
    fs::write(&file, "[redis]\nurl = \"redis://127.0.0.1:1\"\n[delivery]\nleese = \"5s\"\n").unwrap();
    let output = cofferdam(&["status", "--config", file.to_str().unwrap()]);
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("leese") && text.contains("bad.toml"), "{text}");
}

#[test]
fn a_value_in_the_configuration_that_means_nothing_is_named_and_ends_with_2() {
    let place = Place::new();
    let file = place.directory.path().join("bad.toml");
    for (wrong, said) in [
        ("[policy.default]\ninstances = [\"old\"]\n", "\"old\" is not understood"),
        ("[policy.default]\nread = [\"a*b\"]\n", "read: "),
        ("[policy]\nrequire-signature = true\n", "signing-keys = [\"RW…\"]"),
        ("[plugins]\ndir = 3\n", "dir = 3 is not a path"),
        ("[redis]\nurl = \"${NOT_CLOSED\"\n", "is not closed by }"),
    ] {
        fs::write(&file, wrong).unwrap();
        let output = cofferdam(&["status", "--config", file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2), "{wrong}: {}", errors(&output));
        assert!(errors(&output).contains(said), "{wrong}: {}", errors(&output));
    }
}

#[test]
fn a_refused_connection_says_where_and_ends_with_3() {
    let place = Place::new();
    let data = place.directory.path().join("data");
    let output = cofferdam_in(
        place.directory.path(),
        &["run", "--redis", "redis://127.0.0.1:1", "--data", data.to_str().unwrap()],
    );
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("127.0.0.1:1") && text.to_lowercase().contains("refused"), "{text}");
}

#[test]
fn no_running_host_says_what_to_type_and_ends_with_3() {
    let place = Place::new();
    let output = cofferdam_in(place.directory.path(), &["status"]);
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("cofferdam run") && text.contains("--redis"), "{text}");
}

#[test]
fn no_server_program_says_how_to_install_one_and_ends_with_3() {
    let place = Place::new();
    let output = std::process::Command::new(program())
        .args(["run", "--data"])
        .arg(place.directory.path().join("data"))
        .current_dir(place.directory.path())
        .env("PATH", place.directory.path())
        .output()
        .unwrap();
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("neither redis-server nor valkey-server") && text.contains("install"), "{text}");
}

#[test]
fn a_redis_that_may_throw_streams_away_is_refused_with_the_command_that_mends_it() {
    let (redis, place) = (Redis::start_with(&["--maxmemory-policy", "allkeys-lru"]), Place::new());
    let data = place.directory.path().join("data");
    let output =
        cofferdam_in(place.directory.path(), &["run", "--redis", &redis.url(), "--data", data.to_str().unwrap()]);
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("allkeys-lru") && text.contains("CONFIG SET maxmemory-policy noeviction"), "{text}");
}

#[test]
fn a_second_host_on_the_same_data_directory_is_refused() {
    let (redis, place) = (Redis::start(), Place::new());
    let first = place.host(&redis, 1);
    wait_until("the first host is up", || first.data.join("run.json").is_file());
    let data = first.data.to_str().unwrap();
    let output = cofferdam_in(place.directory.path(), &["run", "--redis", &redis.url(), "--data", data]);
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("another host is using the data directory"), "{text}");
}

#[test]
fn an_unreadable_wasm_is_refused_with_its_step_and_the_live_version_goes_on() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let host = place.host(&redis, 1);
    wait_until("it is live", || host.log().contains("live plugin=\"actor\""));
    let bad = place.directory.path().join("actor.wasm");
    fs::write(&bad, b"<html>not found</html>").unwrap();
    fs::write(bad.with_extension("toml"), "subscribe = [\"stream:in\"]\n").unwrap();
    let data = host.data.to_str().unwrap();
    let output = cofferdam(&["deploy", bad.to_str().unwrap(), "--data", data]);
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("refused at the step \"compile\"") && text.contains("not a WebAssembly file"), "{text}");
    // The same by hand, past every check of deploy.
    place.put("actor", b"<html>not found</html>", "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\n");
    wait_until("the host has refused it", || host.log().contains("refused:"));
    publish(&redis, "stream:in", [String::from(r#"{"do":"emit"}"#)].into_iter());
    wait_until("the live version goes on", || redis.number(&["XLEN", "stream:out"]) == 1);
    wait_until("the host's report says so", || {
        let output = cofferdam(&["plugins", "--data", data]);
        String::from_utf8_lossy(&output.stdout).contains("the live version goes on")
    });
}

#[test]
fn a_missing_stream_is_named_with_those_that_are_there() {
    let redis = Redis::start();
    redis.cli(&["XADD", "stream:attacks", "*", "payload", "{}"]);
    let output = cofferdam(&["tail", "stream:atacks", "--no-follow", "--redis", &redis.url()]);
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("stream:atacks") && text.contains("stream:attacks"), "{text}");
}

#[test]
fn an_output_key_of_the_wrong_type_costs_that_message_alone() {
    let (redis, place) = (Redis::start(), Place::new());
    redis.cli(&["SET", "stream:wrong_type", "I am a string"]);
    place.put_actor("");
    let to = |stream: &str, seq: usize| format!(r#"{{"do":"emit","seq":{seq},"to":"{stream}"}}"#);
    publish(
        &redis,
        "stream:in",
        (0..50).map(|seq| if seq == 25 { to("stream:wrong_type", seq) } else { to("stream:out", seq) }),
    );
    let _host = place.host(&redis, 1);
    wait_until("its neighbours are through", || redis.number(&["XLEN", "stream:out"]) == 49);
    wait_until("it is a dead letter", || redis.number(&["XLEN", "stream:dead_letter"]) == 1);
    let letter = redis.cli(&["XRANGE", "stream:dead_letter", "-", "+"]);
    assert!(letter.contains("\nbad-output-key\n") && letter.contains("stream:wrong_type"), "{letter}");
    assert_eq!(redis.cli(&["GET", "stream:wrong_type"]), "I am a string");
}

#[test]
fn a_line_that_is_not_json_is_refused_with_its_number() {
    let (redis, place) = (Redis::start(), Place::new());
    let file = place.directory.path().join("events.jsonl");
    fs::write(&file, "{\"a\":1}\n{\"a\":2}\n{broken\n{\"a\":4}\n").unwrap();
    let publish = |more: &[&str]| {
        let mut arguments = vec!["publish", file.to_str().unwrap(), "--stream", "stream:in"];
        let url = redis.url();
        arguments.extend(["--redis", &url]);
        arguments.extend(more);
        cofferdam(&arguments)
    };
    let stopped = publish(&[]);
    assert_eq!(stopped.status.code(), Some(1));
    assert!(errors(&stopped).contains("events.jsonl:3"), "{}", errors(&stopped));
    assert_eq!(redis.number(&["XLEN", "stream:in"]), 2);
    let skipped = publish(&["--on-error", "skip"]);
    assert!(errors(&skipped).contains(":3"), "{}", errors(&skipped));
    assert_eq!(redis.number(&["XLEN", "stream:in"]), 5);
}

#[test]
fn a_redis_that_goes_away_and_comes_back_costs_nothing() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let mut host: Host = place.host(&redis, 1);
    wait_until("it is live", || host.log().contains("live plugin=\"actor\""));
    for round in 0..10 {
        publish(
            &redis,
            "stream:in",
            (0..100).map(|seq| format!(r#"{{"do":"emit","seq":{},"busy_us":100}}"#, round * 100 + seq)),
        );
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    }
    wait_until("all outputs are there", || redis.number(&["XLEN", "stream:out"]) == 1_000);
    assert!(host.lives());
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
    assert_eq!(
        redis.number(&["HGET", "cofferdam:ledger:stream:in|group:actor", "retried"]),
        0,
        "a network fault charged an attempt"
    );
}

#[test]
fn a_subscription_to_a_key_that_is_no_stream_does_not_stop_the_others() {
    let (redis, place) = (Redis::start(), Place::new());
    redis.cli(&["SET", "stream:not_one", "a string"]);
    let bad = "name = \"bad\"\nsubscribe = [\"stream:not_one\"]\nemit = []\n";
    place.put("bad", &cofferdam_tests::guest("test/actor.wasm"), bad);
    place.put_actor("");
    let host = place.host(&redis, 1);
    wait_until("the bad one says why it does not read", || {
        host.log().contains("stream:not_one") && host.log().contains("WRONGTYPE")
    });
    for round in 1..=3 {
        publish(&redis, "stream:in", [String::from(r#"{"do":"emit"}"#)].into_iter());
        wait_until("its neighbour goes on", || redis.number(&["XLEN", "stream:out"]) == round);
    }
}

#[test]
fn a_plugin_whose_settles_are_refused_does_not_stop_its_neighbours() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let other = "subscribe = [\"stream:in\"]\nemit = [\"stream:out\", \"stream:wrong_type\"]\nstart = \"oldest\"\n";
    place.put("other", &guest("test/actor.wasm"), other);
    let host = place.host(&redis, 1);
    let groups = || redis.cli(&["XINFO", "GROUPS", "stream:in"]);
    wait_until("both groups are there", || groups().contains("group:actor") && groups().contains("group:other"));
    let ledger = "cofferdam:ledger:stream:in|group:actor";
    redis.cli(&["SET", ledger, "no hash"]);
    for round in 1..=5 {
        publish(&redis, "stream:in", (0..20).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
        wait_until("the neighbour has done this round", || redis.number(&["XLEN", "stream:out"]) == round * 20);
        wait_until("the other has stopped reading", || host.log().contains("reading has stopped"));
    }
    redis.cli(&["DEL", ledger]);
    wait_until("the other has caught up", || redis.number(&["XLEN", "stream:out"]) == 200);
}

#[test]
fn an_entry_too_large_to_be_told_of_whole_is_a_dead_letter_and_its_neighbours_go_on() {
    let (redis, place) = (Redis::start(), Place::new());
    // As with the usual 512 MiB, only sooner: escaped, this payload is six times as long.
    redis.cli(&["CONFIG", "SET", "proto-max-bulk-len", "8mb"]);
    place.put_actor("");
    let host = place.host(&redis, 1);
    wait_until("the group is there", || host.log().contains("created the group"));
    let add = "return redis.call('XADD', KEYS[1], '*', 'payload', string.rep(string.char(1), 2000000))";
    let id = redis.cli(&["EVAL", add, "1", "stream:in"]);
    publish(&redis, "stream:in", (0..20).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    wait_until("its neighbours are handled", || redis.number(&["XLEN", "stream:out"]) == 20);
    wait_until("it is a dead letter", || redis.number(&["XLEN", "stream:dead_letter"]) == 1);
    wait_until("nothing is pending", || redis.cli(&["XPENDING", "stream:in", "group:actor"]).starts_with('0'));
    let shown = cofferdam(&["dlq", "list", "--json", "--redis", &redis.url()]);
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(text.contains(&id) && text.contains("payload_truncated"), "{:.2000}", text);
    let whole = "return #redis.call('XRANGE', KEYS[1], '-', '+')[1][2][26]";
    assert!(host.log().lines().all(|line| !line.contains("cannot settle")), "{}", host.log());
    assert_eq!(redis.number(&["EVAL", whole, "1", "stream:dead_letter"]), 2_000_000, "the copy is not whole");
}

#[test]
fn large_entries_are_read_ahead_by_their_bytes() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let add = "for seq = 1, 600 do redis.call('XADD', KEYS[1], '*', 'payload', '{\"do\":\"emit\",\"n\":0,\"fill\":\"' .. string.rep('x', 1000000) .. '\"}') end";
    redis.cli(&["EVAL", add, "1", "stream:in"]);
    let mut most = 0;
    let host = place.host(&redis, 1);
    wait_until("all are handled", || {
        let pending = redis.cli(&["XPENDING", "stream:in", "group:actor"]);
        most = most.max(pending.lines().next().and_then(|count| count.parse().ok()).unwrap_or(0));
        redis.number(&["HGET", "cofferdam:ledger:stream:in|group:actor", "filtered"]) == 600
    });
    println!("600 entries of 1 MB: at most {most} in hand");
    // 64 MiB, and what one read brings before anything is known of their size.
    assert!((2..=67).contains(&most), "{most} of them were in hand at once");
    drop(host);
}

#[test]
fn a_redis_that_cannot_be_used_is_named_and_a_wrong_url_ends_with_2_and_the_forms_of_one() {
    let place = Place::new();
    let status = |url: &str| cofferdam_in(place.directory.path(), &["status", "--redis", url]);
    let away = status("redis://me:hunter2@127.0.0.1:1");
    assert_eq!(away.status.code(), Some(3), "{}", errors(&away));
    assert!(errors(&away).contains("cannot use the redis at redis://…@127.0.0.1:1"), "{}", errors(&away));
    for wrong in ["127.0.0.1:6379", "", "redis+sentinel://127.0.0.1"] {
        let output = status(wrong);
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(2), "{wrong}: {text}");
        assert!(text.contains("redis://host:port/db, redis+unix:///path, or redis+sentinel://"), "{wrong}: {text}");
    }
}

#[test]
fn a_value_out_of_its_bounds_is_refused_with_the_bound_and_not_changed() {
    let place = Place::new();
    place.put_actor("retries = 1001\n");
    let wasm = place.plugins().join("actor.wasm");
    let output = cofferdam_in(place.directory.path(), &["inspect", wasm.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "{}", errors(&output));
    assert!(errors(&output).contains("write 0 to 1000"), "{}", errors(&output));
}

#[test]
fn a_log_filter_that_is_not_understood_is_told() {
    let place = Place::new();
    let output = std::process::Command::new(program())
        .arg("status")
        .env("COFFERDAM_LOG", "a=b=c")
        .env("XDG_CONFIG_HOME", place.directory.path())
        .env("XDG_STATE_HOME", place.directory.path())
        .output()
        .unwrap();
    assert!(errors(&output).contains("COFFERDAM_LOG=\"a=b=c\" is not understood"), "{}", errors(&output));
}
