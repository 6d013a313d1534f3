use cofferdam_tests::{Place, Redis, cofferdam, cofferdam_in, errors, publish, wait_until};

#[test]
fn the_demo_tells_its_story_and_ends_with_nothing_lost_and_nothing_doubled() {
    let place = Place::new();
    let output = cofferdam_in(place.directory.path(), &["demo"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}\n{}", errors(&output));
    for part in ["23 dead letters", "387 alerts", "nothing lost, nothing doubled"] {
        assert!(told.contains(part), "{part:?} is missing:\n{told}");
    }
    let left: Vec<_> =
        std::fs::read_dir(place.directory.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["plugins"], "the demo leaves something behind");
}

#[test]
fn status_plugins_and_streams_tell_what_is_there_as_text_and_as_json() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    publish(&redis, "stream:in", (0..10).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    let host = place.host(&redis, 1);
    wait_until("all is handled", || redis.number(&["XLEN", "stream:out"]) == 10);
    wait_until("the host has reported", || {
        host.data.join("run.json").is_file() && !redis.cli(&["KEYS", "cofferdam:host:*"]).is_empty()
    });
    let data = host.data.to_str().unwrap();
    for verb in ["status", "plugins", "streams"] {
        let text = cofferdam(&[verb, "--data", data]);
        let shown = String::from_utf8_lossy(&text.stdout).into_owned();
        assert!(
            text.status.success() && shown.contains("stream:in") | shown.contains("actor"),
            "{verb}: {shown}{}",
            errors(&text)
        );
        let json = cofferdam(&[verb, "--json", "--data", data]);
        let parsed: Result<serde_json::Value, _> = serde_json::from_slice(&json.stdout);
        assert!(parsed.is_ok(), "{verb} --json: {}", String::from_utf8_lossy(&json.stdout));
    }
    let verified = cofferdam(&["verify", "--data", data]);
    assert!(verified.status.success(), "{}{}", String::from_utf8_lossy(&verified.stdout), errors(&verified));
}

#[test]
fn verify_finds_an_output_that_somebody_doubled_and_one_that_is_missing() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    publish(&redis, "stream:in", (0..10).map(|seq| format!(r#"{{"do":"emit","n":2,"seq":{seq}}}"#)));
    let _host = place.host(&redis, 1);
    wait_until("all is handled", || redis.number(&["XLEN", "stream:out"]) == 20);
    let verify = || cofferdam(&["verify", "--redis", &redis.url()]);
    wait_until("all is settled and verified", || verify().status.success());
    let first = redis.cli(&["XRANGE", "stream:out", "-", "+", "COUNT", "1"]);
    let lines: Vec<&str> = first.lines().collect();
    redis.cli(&["XDEL", "stream:out", lines[0]]);
    let missing = verify();
    assert_eq!(missing.status.code(), Some(1), "{}", String::from_utf8_lossy(&missing.stdout));
    let mut again = vec!["XADD", "stream:out", "*"];
    again.extend(&lines[1..]);
    redis.cli(&again);
    redis.cli(&again);
    let doubled = verify();
    assert_eq!(doubled.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&doubled.stdout).contains("VIOLATED"));
}
