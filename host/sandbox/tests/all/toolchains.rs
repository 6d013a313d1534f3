//! Guests as real toolchains make them, when they have been built into `plugins/dist`.

use std::path::PathBuf;

use cofferdam_model::{Fault, Outcome};
use cofferdam_sandbox::{Abi, Instances, Slot};

use crate::guests::{call_in, load_with, message};

fn built() -> Vec<PathBuf> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/dist"));
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "wasm")).collect()
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that did nothing must say so")]
fn what_toolchains_make_loads_and_answers_fresh_and_reused() {
    let files = built();
    if files.is_empty() {
        eprintln!("SKIPPED: plugins/dist holds no guest; build the plugins first");
    }
    for path in files {
        let wasm = std::fs::read(&path).unwrap();
        for instances in [Instances::Fresh, Instances::Reuse] {
            let plugin = load_with(&wasm, |spec| {
                spec.instances = instances;
                spec.limits.deadline = std::time::Duration::from_secs(2);
                let all = ["attacks", "ai_decisions", "alerts", "forensics", "threat_intel", "bench_out"];
                let emit = all.iter().map(|name| format!("stream:{name}")).collect();
                spec.route = cofferdam_model::Route::new(vec!["in".to_owned()], emit).unwrap();
            });
            assert_eq!(plugin.abi(), Abi::Component, "{}", path.display());
            let mut slot = Slot::default();
            for payload in [r#"{"eventid":"cowrie.login.failed","src_ip":"203.0.113.7"}"#, "[]", "1"] {
                let report = call_in(&plugin, &mut slot, &message(payload));
                let answered =
                    matches!(&report.result, Ok(Outcome::Events(_) | Outcome::Reject { .. } | Outcome::Retry { .. }));
                assert!(answered, "{}: {:?} {:?}", path.display(), report.result, report.log);
            }
        }
    }
}

/// An ordinary program, without any SDK.
const PROGRAM: &str = r#"
use std::io::Read;
fn main() {
    let mut message = String::new();
    std::io::stdin().read_to_string(&mut message).unwrap();
    if message.contains("\"payload\":65") { eprintln!("rejected it"); std::process::exit(65) }
    if message.contains("\"payload\":2,") { panic!("boom") }
    if message.contains("\"payload\":3,") { std::thread::sleep(std::time::Duration::from_secs(60)) }
    let seen = (std::time::SystemTime::now(), std::time::Instant::now(), std::collections::hash_map::RandomState::new());
    let seen = format!("{seen:?} {:?}", std::env::vars().collect::<Vec<_>>());
    println!("{{\"stream\":\"out\",\"payload\":{seen:?}}}");
}"#;

#[test]
#[allow(clippy::print_stderr, reason = "a test that did nothing must say so")]
fn an_ordinary_rust_program_is_a_command() {
    let folder = std::env::temp_dir().join(format!("cofferdam-program-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (source, wasm) = (folder.join("program.rs"), folder.join("program.wasm"));
    std::fs::write(&source, PROGRAM).unwrap();
    let mut rustc = std::process::Command::new("rustc");
    rustc.args(["--edition=2024", "--target=wasm32-wasip2", "-O", "-Cstrip=debuginfo", "-o"]).arg(&wasm).arg(&source);
    let built = rustc.output().is_ok_and(|output| output.status.success());
    let bytes = std::fs::read(&wasm);
    let _ = std::fs::remove_dir_all(&folder);
    let (true, Ok(bytes)) = (built, bytes) else {
        eprintln!("SKIPPED: rustc has no target wasm32-wasip2");
        return;
    };
    let plugin = load_with(&bytes, |_| ());
    assert_eq!(plugin.abi(), Abi::Command);
    let run = |payload: &str| call_in(&plugin, &mut Slot::default(), &message(payload));
    let (once, again) = (run("1"), run("1"));
    assert_eq!(once.result, again.result, "a run again saw something else");
    assert!(matches!(&once.result, Ok(Outcome::Events(events)) if events[0].payload.contains("threshold")), "{once:?}");
    // The toolchain's exit(65) arrives as 1: WASI 0.2 knows success and failure, and std does not use its newer exit.
    let reason = "rejected it".to_owned();
    assert_eq!(run("65").result, Ok(Outcome::Retry { reason, after: None }));
    let panicked = run("2").result;
    assert!(
        matches!(&panicked, Err(Fault::Trap { text, backtrace }) if text.contains("boom") && backtrace.contains("main")),
        "{panicked:?}"
    );
    let slept = run("3");
    assert!(matches!(slept.result, Err(Fault::Deadline { .. })), "{:?}", slept.result);
}
