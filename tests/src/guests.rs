//! Guests made from the text of `tests/hostile/`, and those that are too large to be written down.
//!
//! A file holds a whole `(module …)` or `(component …)`, or the functions of a handler, which `prelude.wat` is put before. A first
//! line `;;@ world NAME` or `;;@ utf16` says how it becomes a component.

use std::fmt::Write as _;
use std::fs;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::root;

/// The world of a handler that imports whatever WASI has for it.
const HANDLER_WORLD: &str = "hostile";

/// The names of the files, without `.wat`.
pub fn names() -> Vec<String> {
    let files = fs::read_dir(root().join("tests/hostile")).expect("the folder is part of the source tree");
    let names = files.filter_map(|file| Some(file.ok()?.file_name().to_str()?.strip_suffix(".wat")?.to_owned()));
    let mut names: Vec<String> = names.filter(|name| name != "prelude").collect();
    names.sort_unstable();
    names
}

/// The guest of a name: from its file, or made here.
pub fn build(name: &str) -> Vec<u8> {
    let file = root().join(format!("tests/hostile/{name}.wat"));
    match fs::read_to_string(&file) {
        Ok(text) => from_text(&text),
        Err(_) => generated(name).unwrap_or_else(|| panic!("there is no hostile guest {name}")),
    }
}

/// A guest from its text.
pub fn from_text(text: &str) -> Vec<u8> {
    let directive = text.lines().next().and_then(|line| line.strip_prefix(";;@ ")).unwrap_or_default();
    let encoding = if directive == "utf16" { StringEncoding::UTF16 } else { StringEncoding::UTF8 };
    let code = text.lines().find(|line| !line.starts_with(";;")).unwrap_or_default();
    let whole = code.starts_with("(module") || code.starts_with("(component");
    let full = if whole { text.to_owned() } else { handler_text(text) };
    let bytes = wat::parse_str(&full).unwrap_or_else(|error| panic!("{error}"));
    match directive.strip_prefix("world ") {
        Some(world) => component(world, bytes, encoding),
        None if whole => bytes,
        None => component(HANDLER_WORLD, bytes, encoding),
    }
}

/// A handler's text: its imports first, then what it does not bring itself of memory and allocation, then the rest.
fn handler_text(text: &str) -> String {
    let prelude = fs::read_to_string(root().join("tests/hostile/prelude.wat")).expect("it is part of the source tree");
    let (imports, rest): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("(import"));
    let memory = if text.contains("(memory (export") { "" } else { "(memory (export \"memory\") 2)" };
    let allocation = if text.contains("\"cabi_realloc\"") { "" } else { ALLOCATION };
    format!(
        "(module\n{}\n{memory}\n{allocation}\n{prelude}\n{}\n(export \"cofferdam:plugin/handler@0.1.0#handle\" (func $handle)))",
        imports.join("\n"),
        rest.join("\n")
    )
}

/// Gives out memory and never takes it back: an instance lives for one message.
const ALLOCATION: &str = r#"(global $heap (mut i32) (i32.const 32768))
(func (export "cabi_realloc") (param $old i32) (param $was i32) (param $align i32) (param $len i32) (result i32)
  (local $at i32)
  (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
  (global.set $heap (i32.add (local.get $at) (local.get $len)))
  (block $fits
    (br_if $fits (i32.le_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536))))
    (drop (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get $len) (i32.const 65536))))))
  (local.get $at))"#;

/// A component of a core module, in one of the worlds of `wasi.wit`.
fn component(world: &str, mut module: Vec<u8>, encoding: StringEncoding) -> Vec<u8> {
    let mut resolve = Resolve::default();
    resolve.push_path(root().join("wit")).expect("the contract is part of the source tree");
    resolve.push_file(root().join("tests/hostile/wasi.wit")).expect("it is part of the source tree");
    let (_, package) =
        resolve.package_names.iter().find(|(name, _)| name.namespace == "test").expect("wasi.wit has it");
    let world = resolve.select_world(&[*package], Some(world)).unwrap_or_else(|error| panic!("{error}"));
    embed_component_metadata(&mut module, &resolve, world, encoding).unwrap_or_else(|error| panic!("{error}"));
    // Not validated here: what is wrong with some of them is for the host to find.
    let encoded = ComponentEncoder::default().validate(false).module(&module).and_then(|mut encoder| encoder.encode());
    encoded.unwrap_or_else(|error| panic!("{error:#}"))
}

/// A program whose `_start` does nothing, with further items.
fn program(items: &str) -> Vec<u8> {
    let text = format!("(module (memory (export \"memory\") 1) (func (export \"_start\"))\n{items})");
    wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
}

/// `count` times what `one` writes.
fn repeated(count: usize, one: impl Fn(&mut String, usize)) -> String {
    let mut text = String::new();
    (0..count).for_each(|index| one(&mut text, index));
    text
}

/// The guests that a program writes better than a person.
fn generated(name: &str) -> Option<Vec<u8>> {
    Some(match name {
        "09-wide-frames" => {
            let locals = "i64 ".repeat(20_000);
            let uses = repeated(20_000, |text, index| {
                let _ = write!(text, "(local.set {} (i64.add (local.get {index}) (i64.const 1)))", index + 1);
            });
            from_text(&format!(
                "(func $deeper (param i64) (result i64) (local {locals}) {uses}\n(i64.add (local.get 7) (call $deeper (local.get 20000))))\n\
                 (func $handle (param $m i32) (result i32) (drop (call $deeper (i64.const 1))) (i32.const 0))"
            ))
        }
        "23-many-exports" => {
            let exports = repeated(5_000, |text, index| {
                let _ = writeln!(text, "(export \"x{index}\" (func $f))");
            });
            program(&format!("(func $f)\n{exports}"))
        }
        "37-huge-variant" => {
            let cases = repeated(10_000, |text, index| {
                let _ = write!(text, "(case \"c{index}\")");
            });
            let text = format!(
                "(component (type $v (variant {cases})) (export $t \"t\" (type $v))
                 (core module $m (func (export \"handle\") (param i32)))
                 (core instance $i (instantiate $m))
                 (func $handle (param \"message\" $t) (canon lift (core func $i \"handle\")))
                 (instance $handler (export \"handle\" (func $handle)))
                 (export \"cofferdam:plugin/handler@0.1.0\" (instance $handler)))"
            );
            wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
        }
        // Loops in loops, each with all locals alive: what the register allocator has to look at grows with the square.
        "61-nested-loops" => {
            let (depth, locals) = (900, 400);
            let uses = repeated(locals, |text, index| {
                let _ = write!(
                    text,
                    "(local.set {index} (i64.add (local.get {index}) (local.get {})))",
                    (index * 7 + 1) % locals
                );
            });
            let (open, close) = ("(loop ".repeat(depth), ")".repeat(depth));
            let types = "i64 ".repeat(locals);
            program(&format!(
                "(func (export \"f\") (local {types}) {open} {uses} (br_if 0 (i64.eqz (local.get 0))) {close})"
            ))
        }
        "62-many-functions" => program(&"(func)".repeat(50_000)),
        "63-long-function" => program(&format!(
            "(func (export \"f\") (param i32) (result i32) (local.get 0) {})",
            "i32.const 1 i32.add ".repeat(100_000)
        )),
        "64-many-locals" => program(&format!("(func (export \"f\") (local {}))", "i64 ".repeat(49_000))),
        "65-large-br-table" => program(&format!(
            "(func (export \"f\") (param i32) (block (br_table {} 0 (local.get 0))))",
            "0 ".repeat(100_000)
        )),
        "66-loads-and-stores" => program(&format!(
            "(func (export \"f\") {})",
            "(i32.store (i32.const 0) (i32.load (i32.const 4)))".repeat(25_000)
        )),
        "67-thousand-results" => {
            let results = "i32 ".repeat(1_000);
            program(&format!(
                "(func $many (result {results}) {})\n(func (export \"f\") {})",
                "i32.const 1 ".repeat(1_000),
                format!("call $many {}", "drop ".repeat(1_000)).repeat(50)
            ))
        }
        "68-many-types" => {
            let types = repeated(100_000, |text, index| {
                let _ = write!(
                    text,
                    "(type $t{index} (list {}))",
                    if index == 0 { "u8".to_owned() } else { format!("$t{}", (index - 1) / 2) }
                );
            });
            wat::parse_str(format!("(component {types})")).unwrap_or_else(|error| panic!("{error}"))
        }
        "69-many-instances" => {
            let instances = "(core instance (instantiate $m))".repeat(1_000);
            let text = format!(
                "(component (core module $m (func (export \"handle\")))
                 {instances}
                 (core instance $i (instantiate $m))
                 (func $handle (canon lift (core func $i \"handle\")))
                 (instance $handler (export \"handle\" (func $handle)))
                 (export \"cofferdam:plugin/handler@0.1.0\" (instance $handler)))"
            );
            wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
        }
        "70-custom-section" => {
            let mut bytes = program("");
            let payload: u32 = 128 << 20;
            // A custom section: its id, its length as LEB128, a name of one letter, and nothing but zeros.
            bytes.push(0);
            let mut length = payload;
            while length >= 0x80 {
                bytes.push((length & 0x7f) as u8 | 0x80);
                length >>= 7;
            }
            bytes.push(length as u8);
            bytes.extend_from_slice(&[1, b'x']);
            bytes.resize(bytes.len() + payload as usize - 2, 0);
            bytes
        }
        "71-elf" => fs::read("/proc/self/exe").expect("this program has a file").into_iter().take(1 << 20).collect(),
        "71-cwasm" => {
            let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
            bytes.resize(64, 0);
            bytes.extend_from_slice(b".wasmtime.engine");
            bytes
        }
        // Cut between two sections: what is left is a whole module, without what came after.
        "72-truncated" => {
            let mut whole = program("(func (export \"f\") (result i32) (i32.const 1))");
            let module = whole.clone();
            whole.extend_from_slice(&[0, 3, 1, b'x', b'y']);
            assert!(whole.len() > module.len());
            module
        }
        "73-empty" => Vec::new(),
        "73-header" => b"\0asm\x01\0\0\0".to_vec(),
        "73-random" => {
            let mut seed = 0x9e37_79b9_u32;
            (0..4_096)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 24) as u8
                })
                .collect()
        }
        "73-gzip" => {
            let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
            bytes.resize(4_096, 0);
            bytes
        }
        _ => return None,
    })
}

/// A file with a custom section at its end.
pub fn with_section(mut wasm: Vec<u8>, name: &str, data: &[u8]) -> Vec<u8> {
    let leb = |mut number: usize| {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let body = [leb(name.len()), name.as_bytes().to_vec(), data.to_vec()].concat();
    wasm.push(0);
    wasm.extend(leb(body.len()));
    wasm.extend(body);
    wasm
}
