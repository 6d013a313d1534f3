use std::fs;

use cofferdam_tests::guests::with_section;
use cofferdam_tests::{cofferdam_in, errors, guest};
use serde_json::Value;
use tempfile::TempDir;

fn inspect(place: &TempDir, arguments: &[&str]) -> String {
    let mut all = vec!["inspect", "plugin.wasm"];
    all.extend(arguments);
    let output = cofferdam_in(place.path(), &all);
    assert!(output.status.success(), "{}", errors(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn place(wasm: &[u8]) -> TempDir {
    let place = TempDir::new().unwrap();
    fs::write(place.path().join("plugin.wasm"), wasm).unwrap();
    place
}

#[test]
fn a_component_says_what_it_is_made_of_and_its_limits_stand_beside_what_is_granted() {
    let place = place(&guest("test/actor.wasm"));
    fs::write(place.path().join("plugin.toml"), "subscribe = [\"stream:in\"]\n[limits]\nmemory = \"1GiB\"\n").unwrap();
    let json: Value = serde_json::from_str(&inspect(&place, &["--json"])).unwrap();
    assert_eq!(json["abi"], "component");
    assert!(json["functions"].as_u64().unwrap() > 10 && json["memories"].as_array().unwrap().len() == 1, "{json}");
    assert!(json["producers"].to_string().contains("rustc"), "{json}");
    let manifest = &json["manifest"];
    assert_eq!(
        (&manifest["limits_asked"]["memory"], &manifest["limits"]["memory"]),
        (&(1 << 30).into(), &(256 << 20).into())
    );
    assert!(json["compile_seconds"].as_f64().unwrap() > 0.0 && json["not_ready"] == Value::Array(Vec::new()), "{json}");
    assert!(inspect(&place, &[]).contains("what it could do"));
}

#[test]
fn an_embedded_manifest_is_read_and_one_beside_the_file_replaces_it() {
    let embedded = b"name = \"inside\"\nsubscribe = [\"stream:in\"]\n";
    let place = place(&with_section(guest("test/actor.wasm"), "cofferdam:manifest", embedded));
    assert_eq!(serde_json::from_str::<Value>(&inspect(&place, &["--json"])).unwrap()["manifest"]["name"], "inside");
    fs::write(place.path().join("plugin.toml"), "name = \"beside\"\nsubscribe = [\"stream:in\"]\n").unwrap();
    assert_eq!(serde_json::from_str::<Value>(&inspect(&place, &["--json"])).unwrap()["manifest"]["name"], "beside");
}

#[test]
fn a_file_that_no_compiler_takes_is_looked_at_all_the_same_and_its_names_do_no_harm() {
    // A body with a type error: (module (func (result i32))) without a value.
    let mut wasm = b"\0asm\x01\0\0\0".to_vec();
    wasm.extend([1, 5, 1, 0x60, 0, 1, 0x7f, 3, 2, 1, 0, 10, 4, 1, 2, 0, 0x0b]);
    let place = place(&with_section(wasm, "evil\x1b[31m", b"x"));
    let shown = inspect(&place, &[]);
    assert!(shown.contains("1 functions") && shown.contains("evil\\u{1b}[31m"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    assert!(
        shown.contains("nobody vouches for it")
            && shown.contains("imports nothing")
            && shown.contains("not ready: compile: "),
        "{shown}"
    );
}

#[test]
fn limits_that_the_policy_cuts_and_a_sha256_of_another_file_are_told() {
    let place = place(&guest("test/actor.wasm"));
    let manifest = "sha256 = \"00\"\nsubscribe = [\"stream:in\"]\n[limits]\nmemory = \"1GiB\"\ndeadline = \"10m\"\n";
    fs::write(place.path().join("plugin.toml"), manifest).unwrap();
    let shown = inspect(&place, &[]);
    for wanted in [
        "memory 1.0 GiB is cut to 256.0 MiB; to grant it: [policy.plugins.plugin] memory = \"1GiB\"",
        "deadline 10m is cut to 30s",
        "not ready: the wasm's sha256 is ",
    ] {
        assert!(shown.contains(wanted), "{wanted} is missing:\n{shown}");
    }
    let folder = cofferdam_in(place.path(), &["inspect", "."]);
    assert!(errors(&folder).contains("is a folder"), "{}", errors(&folder));
}
