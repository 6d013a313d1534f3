use std::time::Duration;

use cofferdam_tests::{Place, Redis, cofferdam, cofferdam_in, comes_true, errors, program, publish, wait_until};

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
fn a_demo_or_benchmark_that_is_stopped_leaves_nothing_behind() {
    for (arguments, at_work) in
        [(vec!["demo"], "2. "), (vec!["bench", "--messages", "2000000", "--arms", "native"], "")]
    {
        let directory = tempfile::tempdir().unwrap();
        let told = directory.path().join("told");
        let mut child = std::process::Command::new(program())
            .args(&arguments)
            .current_dir(directory.path())
            .env("TMPDIR", directory.path())
            .stdout(std::fs::File::create(&told).unwrap())
            .spawn()
            .unwrap();
        let sockets = || {
            let all = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
            all.lines().filter(|line| line.contains(directory.path().to_str().unwrap())).count()
        };
        wait_until("it is at work", || {
            sockets() > 0 && std::fs::read_to_string(&told).unwrap_or_default().contains(at_work)
        });
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{arguments:?}");
        assert_eq!(sockets(), 0, "{arguments:?}: a server is left");
        let left: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(left.iter().all(|name| name == "told" || name == "plugins"), "{arguments:?}: {left:?}");
    }
}

#[test]
fn status_plugins_and_streams_tell_what_is_there_as_text_and_as_json() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    publish(&redis, "stream:in", (0..10).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    let host = place.host(&redis, 1);
    wait_until("all is handled", || redis.number(&["XLEN", "stream:out"]) == 10);
    let shows =
        |verb: &str, data: &str| String::from_utf8_lossy(&cofferdam(&[verb, "--data", data]).stdout).into_owned();
    wait_until("the host has reported", || shows("plugins", host.data.to_str().unwrap()).contains("running"));
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
fn verify_finds_an_output_that_somebody_doubled_and_an_entry_that_was_acknowledged_without_its_outputs() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    publish(&redis, "stream:in", (0..10).map(|seq| format!(r#"{{"do":"emit","n":2,"seq":{seq}}}"#)));
    let host = place.host(&redis, 1);
    wait_until("all is handled", || redis.number(&["XLEN", "stream:out"]) == 20);
    let verify = || cofferdam(&["verify", "--redis", &redis.url()]);
    wait_until("all is settled and verified", || verify().status.success());
    host.stop();

    let first = redis.cli(&["XRANGE", "stream:out", "-", "+", "COUNT", "1"]);
    let lines: Vec<&str> = first.lines().collect();
    let mut again = vec!["XADD", "stream:out", "*"];
    again.extend(&lines[1..]);
    let copy = redis.cli(&again);
    let doubled = verify();
    assert_eq!(doubled.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&doubled.stdout).contains("VIOLATED"));
    redis.cli(&["XDEL", "stream:out", &copy]);
    assert!(verify().status.success());

    // A consumer that acknowledges first and dies: the entry is gone from the group, and nothing came of it.
    publish(&redis, "stream:in", [String::from("{}")].into_iter());
    let read = redis.cli(&["XREADGROUP", "GROUP", "group:actor", "hasty", "STREAMS", "stream:in", ">"]);
    redis.cli(&["XACK", "stream:in", "group:actor", read.lines().nth(1).unwrap()]);
    let lost = verify();
    assert_eq!(lost.status.code(), Some(1), "{}", String::from_utf8_lossy(&lost.stdout));
}

#[test]
fn a_plugin_whose_manifest_gives_no_name_is_deployed_and_seen_as_live() {
    let (redis, place) = (Redis::start(), Place::new());
    let host = place.host(&redis, 1);
    wait_until("the host is up", || host.data.join("run.json").is_file());
    let wasm = place.directory.path().join("nameless.wasm");
    std::fs::write(&wasm, cofferdam_tests::guest("test/actor.wasm")).unwrap();
    std::fs::write(wasm.with_extension("toml"), "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\n").unwrap();
    let deployed =
        cofferdam(&["deploy", wasm.to_str().unwrap(), "--data", host.data.to_str().unwrap(), "--wait", "20s"]);
    assert!(deployed.status.success(), "{}", errors(&deployed));
    assert!(String::from_utf8_lossy(&deployed.stdout).contains("nameless"));
}

#[test]
fn output_that_cannot_be_written_ends_with_1_and_a_reader_who_has_gone_away_with_0() {
    let place = Place::new();
    place.put_actor("");
    let inspect = |out: std::process::Stdio| {
        let mut command = std::process::Command::new(program());
        command.args(["inspect", "--json"]).arg(place.plugins().join("actor.wasm")).stdout(out);
        command.env("XDG_CONFIG_HOME", place.plugins()).stderr(std::process::Stdio::piped()).output().unwrap()
    };
    let full = inspect(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into());
    assert_eq!(full.status.code(), Some(1), "{}", errors(&full));
    assert!(errors(&full).contains("cannot write to standard output: No space left"), "{}", errors(&full));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let left = inspect(writer.into());
    assert_eq!((left.status.code(), errors(&left).as_str()), (Some(0), ""));
}

#[test]
fn a_plugin_or_a_stream_that_is_not_there_is_named_and_ends_with_1() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let host = place.host(&redis, 1);
    let data = host.data.to_str().unwrap();
    let says = |arguments: &[&str]| cofferdam(&[arguments, &["--data", data]].concat());
    let told = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    wait_until("the host has reported", || told(&says(&["plugins"])).contains("running"));
    redis.cli(&["SET", "stream:word", "x"]);

    let both = says(&["plugins", "actor", "nope"]);
    assert_eq!(both.status.code(), Some(1));
    assert!(told(&both).contains("running") && errors(&both).contains("no host runs a plugin \"nope\""));
    let json = says(&["plugins", "nope", "--json"]);
    assert_eq!((json.status.code(), told(&json).trim()), (Some(1), "[]"));
    assert!(!told(&says(&["plugins", "nope"])).contains("no plugins"));

    let streams = says(&["streams", "stream:in", "nope", "stream:word"]);
    assert_eq!(streams.status.code(), Some(1));
    assert!(told(&streams).contains("group:actor") && errors(&streams).contains("there is no stream nope"));
    assert!(errors(&streams).contains("stream:word is a string and not a stream"), "{}", errors(&streams));
    assert!(!told(&says(&["streams", "nope"])).contains("no streams yet"));
}

#[test]
fn a_log_in_json_is_one_object_a_line_from_the_first_one_on() {
    let (redis, place) = (Redis::start(), Place::new());
    let log = place.directory.path().join("log");
    let mut host = std::process::Command::new(program())
        .args(["run", "--log-format", "json", "--redis", &redis.url(), "--data"])
        .arg(place.directory.path().join("data"))
        .arg("--plugins")
        .arg(place.plugins())
        .env("XDG_CONFIG_HOME", place.directory.path())
        .env_remove("COFFERDAM_LOG")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let text = || std::fs::read_to_string(&log).unwrap();
    let runs = comes_true(Duration::from_secs(60), || text().contains("is running"));
    host.kill().unwrap();
    host.wait().unwrap();
    assert!(runs, "{}", text());
    for line in text().lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
    let said = text();
    let banner = said.lines().find(|line| line.contains("cofferdam is running")).unwrap();
    assert!(banner.contains("\"plugins\":") && banner.contains("\"redis\":"), "{banner}");
}
