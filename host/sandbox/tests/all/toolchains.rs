//! Guests as real toolchains make them, when they have been built into `plugins/dist`.

use std::path::PathBuf;

use cofferdam_model::Outcome;
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
