use std::fs;
use std::path::PathBuf;

use cofferdam_tests::guests::with_section;
use cofferdam_tests::{Host, Place, Redis, cofferdam, guest, program, publish, wait_until};

const MANIFEST: &str = "subscribe = [\"stream:in\"]\nemit = [\"stream:out\"]\n";

/// A program of functions that each nest loops over many locals: small, valid, under every cap, and dear to compile.
fn bomb(functions: usize, loops: usize) -> Vec<u8> {
    let locals = "i64 ".repeat(1_000);
    let open: String = (0..loops)
        .map(|depth| format!("loop local.get {} local.set {} ", depth * 7 % 1_000, depth * 13 % 1_000))
        .collect();
    let close = "local.get 0 i64.eqz br_if 0 end ".repeat(loops);
    let function = format!("(func (local {locals}) {open}{close})");
    let text =
        format!(r#"(module (memory (export "memory") 1) (func (export "_start")) {})"#, function.repeat(functions));
    wat::parse_str(text).unwrap()
}

fn code_files(host: &Host) -> Vec<PathBuf> {
    // The host makes the folder when it starts.
    let entries = fs::read_dir(host.data.join("compiled")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|ending| ending == "code")).collect()
}

#[test]
fn bombs_for_the_compiler_are_refused_with_the_number_while_a_neighbour_goes_on() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let limits = [("COFFERDAM__LIMITS__COMPILE_TIME", "2s"), ("COFFERDAM__LIMITS__COMPILE_MEMORY", "200MiB")];
    let mut host =
        Host::start(&program(), &redis.url(), &place.directory.path().join("data"), &place.plugins(), &limits);
    publish(&redis, "stream:in", (0..10).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    wait_until("the neighbour is live", || redis.number(&["XLEN", "stream:out"]) == 10);
    // Many times as long as it may take, on any machine.
    place.put("slow", &bomb(4_000, 100), MANIFEST);
    place.put("deep", &bomb(1, 101), MANIFEST);
    publish(&redis, "stream:in", (10..500).map(|seq| format!(r#"{{"do":"emit","seq":{seq}}}"#)));
    let refused = |plugin: &str, parts: [&str; 2]| {
        let status = place.plugins().join(format!("{plugin}.status.txt"));
        wait_until("its refusal is told beside the file", || {
            fs::read_to_string(&status).is_ok_and(|text| parts.iter().all(|part| text.contains(part)))
        });
    };
    refused("deep", ["caps: it has 101 loops nested in one function", "100 is the most"]);
    refused("slow", ["compile: ", "in cofferdam.toml"]);
    wait_until("the neighbour has gone on", || redis.number(&["XLEN", "stream:out"]) == 500);
    assert!(host.lives());
    assert_eq!(redis.number(&["XLEN", "stream:dead_letter"]), 0);
    let text = fs::read_to_string(place.plugins().join("slow.status.txt")).unwrap();
    assert!(
        text.contains("2s of processor time") || text.contains("of memory") || text.contains("by the clock"),
        "{text}"
    );
}

#[test]
fn code_is_compiled_once_and_again_when_its_seal_is_broken() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let answers = |count: u64| {
        publish(&redis, "stream:in", [String::from(r#"{"do":"emit"}"#)].into_iter());
        wait_until("it is live and answers", || redis.number(&["XLEN", "stream:out"]) == count);
    };
    let host = place.host(&redis, 1);
    answers(1);
    let files = code_files(&host);
    assert_eq!(files.len(), 1, "one version, one file: {files:?}");
    let good = fs::read(&files[0]).unwrap();
    let written = fs::metadata(&files[0]).unwrap().modified().unwrap();
    host.stop();
    // The next host takes it as it is.
    let host = place.host(&redis, 1);
    answers(2);
    assert_eq!(fs::metadata(&files[0]).unwrap().modified().unwrap(), written, "it was not compiled again");
    host.stop();
    // Somebody changes the machine code.
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0xff;
    fs::write(&files[0], &bad).unwrap();
    let host = place.host(&redis, 1);
    answers(3);
    assert!(host.log().contains("wrong seal"), "{}", host.log());
    assert_ne!(fs::read(&files[0]).unwrap(), bad, "it was compiled again");
}

#[test]
fn code_that_was_compiled_elsewhere_is_never_loaded() {
    let (redis, place) = (Redis::start(), Place::new());
    let host = place.host(&redis, 1);
    // What this very program has compiled, taken out of its own cache and offered as a plugin.
    place.put_actor("");
    wait_until("the cache has code", || !code_files(&host).is_empty());
    let code = fs::read(&code_files(&host)[0]).unwrap();
    place.put("native", &code[32..], MANIFEST);
    let status = place.plugins().join("native.status.txt");
    wait_until("it is refused and called by its name", || {
        fs::read_to_string(&status).is_ok_and(|text| text.contains("a .cwasm") && text.contains("compiles itself"))
    });
    // And a component that is cut off after a whole section, which would be valid, against its manifest's sha256.
    let wasm = guest("test/actor.wasm");
    place.put("short", &wasm, MANIFEST);
    fs::write(place.plugins().join("short.wasm"), &wasm[..8]).unwrap();
    let status = place.plugins().join("short.status.txt");
    wait_until("the cut is noticed", || fs::read_to_string(&status).is_ok_and(|text| text.contains("whole file: ")));
}

#[test]
fn a_version_whose_own_cases_fail_is_refused_with_the_first_of_them_until_they_are_mended() {
    let (redis, place) = (Redis::start(), Place::new());
    let cases = |expect: &str| {
        let text = format!("[[case]]\nname = \"it answers\"\nmessage = {{ do = \"emit\" }}\nexpect = {expect:?}\n");
        fs::write(place.plugins().join("actor.test.toml"), text).expect("the folder can be written");
    };
    cases("filtered");
    place.put_actor("");
    let host = place.host(&redis, 1);
    let status = place.plugins().join("actor.status.txt");
    let said = |part: &str| fs::read_to_string(&status).is_ok_and(|text| text.contains(part));
    wait_until("its case is told", || said("cases: 1 of 1 cases in actor.test.toml do not come out as expected"));
    assert!(said("\"it answers\": expected filtered, got 1 events") && said("ok       compile"));
    publish(&redis, "stream:in", [String::from(r#"{"do":"emit"}"#)].into_iter());
    fs::write(
        place.plugins().join("actor.test.toml"),
        "[[case]]\nname = \"it answers\"\nmessage = { do = \"emit\" }\n[[case.events]]\nstream = \"stream:out\"\n",
    )
    .expect("the folder can be written");
    wait_until("it runs", || redis.number(&["XLEN", "stream:out"]) == 1);
    wait_until("every step is told", || said("ok       cases       1 of 1 as expected") && said("ok       approval"));
    // A version that is worse leaves the one that runs where it is.
    cases("filtered");
    wait_until("it is refused again", || said("REFUSED  cases"));
    assert!(said("actor: running"));
    let (data, url) = (host.data.to_string_lossy().into_owned(), redis.url());
    wait_until("plugins NAME shows the steps", || {
        let shown = cofferdam(&["plugins", "actor", "--data", &data, "--redis", &url]);
        String::from_utf8_lossy(&shown.stdout).contains("REFUSED  cases")
    });
}

/// Processor time of a host, in hundredths of a second.
fn ticks(host: &Host) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", host.pid())).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[test]
fn cases_that_take_for_ever_end_when_their_time_or_the_host_does_and_their_neighbours_are_loaded() {
    let (redis, place) = (Redis::start(), Place::new());
    let step = "{ payload = { do = \"emit\", busy_us = 25000000 } }";
    let cases =
        format!("[[case]]\nname = \"slow\"\nsequence = [{}]\nexpect = \"filtered\"\n", vec![step; 200].join(", "));
    let status = place.plugins().join("slow.status.txt");
    fs::write(place.plugins().join("slow.test.toml"), cases).unwrap();
    let manifest = format!("{MANIFEST}[limits]\ndeadline = \"30s\"\n");
    place.put("slow", &guest("test/actor.wasm"), &manifest);
    place.put("tidy", &guest("test/actor.wasm"), "subscribe = [\"stream:tidy\"]\nemit = [\"stream:out\"]\n");
    let host = place.host(&redis, 1);
    wait_until("the cases run", || ticks(&host) > 200);
    let took = host.stop();
    assert!(took < std::time::Duration::from_secs(20), "it took {took:?} to stop");
    assert!(!status.exists(), "nothing was decided");
    let _host = place.host(&redis, 1);
    wait_until("their time is over", || {
        fs::read_to_string(&status)
            .is_ok_and(|text| text.contains("0 of 1 cases took 30s, and that is all the time there is"))
    });
    wait_until("the next plugin is loaded", || redis.cli(&["XINFO", "GROUPS", "stream:tidy"]).contains("group:tidy"));
}

#[test]
fn what_a_plugins_author_makes_long_or_forges_is_told_short_and_escaped() {
    let (redis, place) = (Redis::start(), Place::new());
    place.put_actor("");
    let put = |name: &str, wasm: &[u8]| {
        fs::write(place.plugins().join(format!(".{name}")), wasm).unwrap();
        fs::rename(place.plugins().join(format!(".{name}")), place.plugins().join(format!("{name}.wasm"))).unwrap();
    };
    let inside = |name: &str, manifest: &str| {
        put(name, &with_section(guest("test/actor.wasm"), "cofferdam:manifest", manifest.as_bytes()));
    };
    let streams = |count: usize| (0..count).map(|at| format!("\"s{at}\"")).collect::<Vec<_>>().join(",");
    let host = place.host(&redis, 1);
    inside("large", &format!("subscribe = [{}]\n", streams(120_000)));
    inside("many", &format!("subscribe = [{}]\n", streams(60_000)));
    inside("line", &format!("subscribe = [\"a\"]\nx = {}", "[".repeat(1_000_000)));
    inside("forged", "\"a\\n2026-01-01T00:00:00Z ERROR FAKE\\u001b[2J\" = 1");
    let export = "\\1b[2J\\1b]0;OWNED\\07\\0aFAKE: running";
    let code = wat::parse_str(format!("(module (func (export \"{export}\")))")).unwrap();
    place.put("named", &code, MANIFEST);
    // A link out of the folder, to what only the host may read.
    let secret = place.directory.path().join("secret");
    fs::write(&secret, "hunter2 is the password\n").unwrap();
    std::os::unix::fs::symlink(&secret, place.plugins().join("link.toml")).unwrap();
    put("link", &guest("test/actor.wasm"));
    for (name, part) in [
        ("large", "more than 1048576"),
        ("many", "its subscribe names 60000 streams, more than 256"),
        ("line", "manifest: line 2, column "),
        ("forged", "FAKE"),
        ("named", "FAKE"),
        ("link", "manifest: line 1, column "),
    ] {
        let status = place.plugins().join(format!("{name}.status.txt"));
        wait_until(&format!("{name} is refused"), || fs::read_to_string(&status).is_ok_and(|text| text.contains(part)));
        let text = fs::read_to_string(&status).unwrap();
        assert!(text.len() < 20_000, "{name}: {} bytes", text.len());
        let raw =
            |text: &str| text.contains('\u{1b}') || text.lines().any(|line| line.trim_start().starts_with("FAKE"));
        assert!(!raw(&text) && !text.contains("hunter2"), "{text}");
    }
    let log = host.log();
    assert!(log.len() < 100_000, "{} bytes", log.len());
    assert!(!log.contains("OWNED\u{7}") && !log.contains("hunter2"), "{log}");
    assert!(!log.lines().any(|line| line.starts_with("FAKE") || line.starts_with("2026-01-01")), "{log}");
    // On a terminal too.
    let file = place.plugins().join("named.wasm");
    for verb in ["test", "inspect"] {
        let mut arguments = vec![verb, file.to_str().unwrap()];
        arguments.extend((verb == "test").then_some("/dev/null"));
        let shown = cofferdam(&arguments);
        let text = [shown.stdout, shown.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(text.contains("FAKE") && !text.contains('\u{1b}') && !text.contains("\nFAKE"), "{verb}: {text:?}");
    }
    publish(&redis, "stream:in", [String::from(r#"{"do":"emit"}"#)].into_iter());
    wait_until("the neighbour goes on", || redis.number(&["XLEN", "stream:out"]) == 1);
}
