//! House rules that a test can see.

use std::fs;
use std::path::{Path, PathBuf};

use cofferdam_tests::root;

fn files(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && name != "dist" && !name.starts_with('.') {
            files(&path, ending, found);
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

fn sources(below: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&root().join(below), ".rs", &mut found);
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn arrows_between_crates_go_one_way() {
    let allowed = [
        ("model", vec!["thiserror"]),
        ("sandbox", vec!["cofferdam-model"]),
        ("streams", vec!["cofferdam-model"]),
        ("delivery", vec!["cofferdam-model", "cofferdam-streams"]),
    ];
    for (name, ours) in allowed {
        let manifest = fs::read_to_string(root().join(format!("host/{name}/Cargo.toml"))).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        for line in dependencies.lines().filter(|line| line.starts_with("cofferdam-")) {
            assert!(ours.iter().any(|ours| line.starts_with(ours)), "{name} must not know {line}");
        }
        let banned: &[&str] = match name {
            "model" => &["tokio", "redis", "wasmtime", "serde"],
            "sandbox" => &["redis", "notify", "reqwest"],
            "delivery" => &["redis", "wasmtime", "notify", "rand"],
            _ => &["wasmtime", "notify"],
        };
        for word in banned {
            assert!(!dependencies.lines().any(|line| line.starts_with(word)), "{name} must not depend on {word}");
        }
    }
}

#[test]
fn nothing_trims_by_length_alone_and_nothing_reads_its_own_history() {
    for (path, text) in sources("host").into_iter().filter(|(path, _)| !path.ends_with("tests.rs")) {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            assert!(!line.contains("arg(\"MAXLEN\")"), "{}: MAXLEN knows no groups", path.display());
        }
    }
    for (path, text) in sources("host/streams/src") {
        for (at, _) in text.match_indices("cmd(\"XREADGROUP\")") {
            let (before, after) = (text[..at].lines().rev().take(2), text[at..].lines().take(4));
            let planted = before.into_iter().any(|line| line.contains("planted(\"history-read\")"));
            let new = after.into_iter().any(|line| line.contains("arg(\">\")"));
            assert!(planted || new, "{}: a history that is read raises delivery counters", path.display());
        }
    }
    let mut scripts = Vec::new();
    files(&root().join("host/streams/src/scripts"), ".lua", &mut scripts);
    for path in scripts {
        let trims = fs::read_to_string(&path).unwrap().matches("'MAXLEN'").count();
        // The one that may is for a stream without groups.
        assert_eq!(trims, usize::from(path.ends_with("trim.lua")), "{}: MAXLEN knows no groups", path.display());
    }
}

#[test]
fn unsafe_code_stands_in_one_file_alone() {
    for (path, text) in sources("host") {
        let found = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains("unsafe {")
                || code.contains("allow(unsafe_code")
                || code.contains("unsafe fn")
                || code.contains("unsafe impl")
        });
        // Loading compiled code is unsafe by nature; that file says why it is right.
        let allowed = path.ends_with("sandbox/src/artifact.rs");
        assert_eq!(found, allowed, "{}: unsafe code stands in artifact.rs and nowhere else", path.display());
    }
}

#[test]
fn every_item_of_the_contract_is_documented() {
    let wit = fs::read_to_string(root().join("wit/handler.wit")).unwrap();
    let mut documented = false;
    for line in wit.lines().map(str::trim) {
        let item = ["package ", "interface ", "record ", "variant ", "enum ", "world "]
            .iter()
            .any(|word| line.starts_with(word))
            || line.contains(": func(")
            || (line.ends_with(',') && line.contains(':'));
        assert!(
            !item || documented || line.starts_with("export") || line.starts_with("import"),
            "not documented: {line}"
        );
        documented = line.starts_with("///");
    }
}

#[test]
fn every_reason_code_is_documented() {
    let text = fs::read_to_string(root().join("docs/reason-codes.md")).unwrap();
    for code in cofferdam_model::ReasonCode::ALL {
        assert!(text.contains(&format!("`{code}`")), "docs/reason-codes.md does not explain {code}");
    }
}

#[test]
fn every_guest_of_the_tests_is_claimed_by_one() {
    let tests: String = sources("tests").into_iter().map(|(_, text)| text).collect();
    for entry in fs::read_dir(root().join("tests/guests")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(tests.contains(&format!("test/{name}.wasm")), "no test uses the guest {name}");
    }
}
