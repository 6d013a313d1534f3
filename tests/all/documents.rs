//! Every code block of the README and of docs/ is run, parsed or loaded: what is shown there works.
//!
//! `sh` blocks of one document run in one new directory, in order, with the program first in PATH. `toml` blocks are manifests
//! when they subscribe to something and configurations otherwise. `json` is parsed, `wit` must stand in wit/. `text` is output.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cofferdam_tests::{cofferdam, errors, guest, program, root};
use tempfile::TempDir;

struct Block {
    language: String,
    text: String,
    place: String,
}

fn blocks(path: &Path) -> Vec<Block> {
    let text = fs::read_to_string(path).unwrap();
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => {
                let place = format!("{}:{}", path.strip_prefix(root()).unwrap().display(), number + 1);
                open = Some(Block { language: language.trim().to_owned(), text: String::new(), place });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{} ends inside a code block", path.display());
    found
}

fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md")];
    let docs = fs::read_dir(root().join("docs")).unwrap().flatten().map(|entry| entry.path());
    found.extend(docs.filter(|path| path.extension().is_some_and(|ending| ending == "md")));
    found.sort();
    found
}

fn run(document: &Path) {
    let directory = TempDir::new().unwrap();
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let path = format!("{}:{}", program().parent().unwrap().display(), inherited.to_string_lossy());
    let mut script = String::from("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT\n");
    for block in blocks(document) {
        match block.language.as_str() {
            "sh" => script.push_str(&format!("echo '--- {}' >&2\n{}", block.place, block.text)),
            "toml" => check_toml(&block, TempDir::new().unwrap().path()),
            "json" => drop(
                serde_json::from_str::<serde_json::Value>(&block.text)
                    .unwrap_or_else(|error| panic!("{}: {error}", block.place)),
            ),
            "wit" => {
                let contract = fs::read_to_string(root().join("wit/handler.wit")).unwrap();
                let squeeze = |text: &str| text.split_whitespace().collect::<String>();
                for line in block.text.lines().filter(|line| !line.trim().is_empty()) {
                    assert!(
                        squeeze(&contract).contains(&squeeze(line)),
                        "{}: {line:?} does not stand in wit/handler.wit",
                        block.place
                    );
                }
            }
            // Shown for the reader; a Rust handler is built and tested as one of the plugins.
            "text" | "rust" => {}
            other => panic!("{}: say what the block is: sh, toml, json, wit, rust or text, not {other:?}", block.place),
        }
    }
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(directory.path())
        .env("PATH", path)
        .env("XDG_STATE_HOME", directory.path().join("state"))
        .env("XDG_CONFIG_HOME", directory.path().join("config"))
        .env("SOURCE", root())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        document.display(),
        String::from_utf8_lossy(&output.stdout),
        errors(&output)
    );
}

fn check_toml(block: &Block, directory: &Path) {
    let is_manifest = block.text.contains("subscribe");
    if is_manifest {
        let wasm = directory.join("check.wasm");
        fs::write(&wasm, guest("test/actor.wasm")).unwrap();
        let manifest = directory.join("check.toml");
        fs::write(&manifest, &block.text).unwrap();
        let output =
            cofferdam(&["deploy", wasm.to_str().unwrap(), "--manifest", manifest.to_str().unwrap(), "--dry-run"]);
        assert!(output.status.success(), "{}: {}", block.place, errors(&output));
    } else {
        let config = directory.join("config.toml");
        fs::write(&config, &block.text).unwrap();
        let output = cofferdam(&["deploy", "/nonexistent.wasm", "--dry-run", "--config", config.to_str().unwrap()]);
        let text = errors(&output);
        assert!(text.contains("there is no file") || !text.contains("config.toml"), "{}: {text}", block.place);
    }
}

/// What is linked to in a document: the target of each `[…](…)` outside code blocks.
fn links(text: &str) -> Vec<String> {
    let mut in_block = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        !in_block && !fence
    });
    let targets = |line: &str| -> Vec<String> {
        line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
    };
    prose.flat_map(targets).collect()
}

/// The anchors of a document's headings, as they are made of them on the web.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_in_the_readme_and_the_documents_leads_somewhere() {
    let mut followed = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { document.clone() } else { document.with_file_name(path) };
            assert!(target.exists(), "{} links to {link}, and there is no such file", document.display());
            let there = || anchors(&fs::read_to_string(&target).unwrap()).iter().any(|known| known == anchor);
            assert!(
                anchor.is_empty() || there(),
                "{} links to {link}, and there is no such heading",
                document.display()
            );
            followed += 1;
        }
    }
    assert!(followed > 20, "only {followed} links were found: this test proves nothing");
}

#[test]
fn what_the_readme_and_the_documents_show_works() {
    for document in documents() {
        run(&document);
    }
}
