//! Every reason not to load a file, with its words.

use cofferdam_sandbox::LoadError;

use crate::guests::{component, echo, engine, handler_text, refused, refused_with};

fn says(error: &LoadError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
    assert!(text.starts_with(|c: char| c.is_lowercase()) && !text.ends_with('.'), "{text:?}");
}

#[test]
fn what_is_not_wasm_is_called_by_its_name() {
    says(&refused(b""), &["empty"]);
    says(&refused(b"\0asm"), &["ends within its header"]);
    says(&refused(b"\0asm\x02\0\0\0"), &["unknown version 0x00000002"]);
    says(&refused(b"\x7fELF\x02\x01\x01 and so on"), &["ELF", "wasm32-wasip2"]);
    says(&refused(b"\x7fELF\x02\x01\x01 .wasmtime.engine"), &["cwasm", "compiles itself"]);
    says(&refused(b"\x1f\x8b\x08"), &["gzip", "Unpack"]);
    says(&refused(b"PK\x03\x04"), &["zip"]);
    says(&refused(b"(module (func))"), &["text form", "wasm-tools parse"]);
    says(&refused(b"#!/bin/sh\necho hello"), &["a text that begins with", "#!/bin/sh"]);
    says(&refused(&[0xde, 0xad, 0xbe, 0xef]), &["begins with [de, ad, be, ef]"]);
}

#[test]
fn a_core_module_that_is_no_program_says_what_it_exports() {
    let wasm = wat::parse_str(r#"(module (func (export "add")))"#).unwrap();
    says(&refused(&wasm), &["without _start", "exports add", "wasm-tools component new"]);
    let wasm = wat::parse_str(r#"(module (import "env" "print" (func)) (func (export "_start")))"#).unwrap();
    says(&refused(&wasm), &["imports env::print", "wasi_snapshot_preview1"]);
}

#[test]
fn a_component_without_the_handler_says_what_it_exports_and_guesses() {
    let near = component("near", r#"(module (func (export "handel")))"#);
    says(
        &refused(&near),
        &["does not export cofferdam:plugin/handler@0.1.0", "exports handel", "inside the interface"],
    );
    let nothing = wat::parse_str("(component)").unwrap();
    says(&refused(&nothing), &["it exports nothing"]);
}

#[test]
fn another_version_and_another_signature_are_told_apart() {
    let realloc = r#"(memory (export "memory") 1)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)"#;
    let other =
        format!(r#"(module {realloc} (func (export "cofferdam:plugin/handler@0.2.0#handle") (param i32 i32)))"#);
    let other = component("other-version", &other);
    says(&refused(&other), &["exports cofferdam:plugin/handler@0.2.0", "speaks cofferdam:plugin/handler@0.1.0"]);
    let wrong = r#"(component
        (core module $m (func (export "f") (result i32) i32.const 1))
        (core instance $i (instantiate $m))
        (func $f (result u32) (canon lift (core func $i "f")))
        (instance $handler (export "handle" (func $f)))
        (export "cofferdam:plugin/handler@0.1.0" (instance $handler)))"#;
    says(&refused(&wat::parse_str(wrong).unwrap()), &["another signature", "expected 1-tuple, found 0-tuple"]);
    let missing = r#"(component (instance $handler) (export "cofferdam:plugin/handler@0.1.0" (instance $handler)))"#;
    says(&refused(&wat::parse_str(missing).unwrap()), &["no function `handle`"]);
}

#[test]
fn an_import_that_nobody_offers_is_named() {
    let http = handler_text(
        r#"(import "wasi:http/outgoing-handler@0.2.3" "handle" (func $http))"#,
        "",
        "(call $http) (i32.const 0)",
    );
    says(
        &refused(&component("wants-http", &http)),
        &["imports wasi:http/outgoing-handler@0.2.3", "no network", "Allowed are cofferdam:plugin/log@0.1.0"],
    );
}

#[test]
fn code_that_does_not_validate_is_refused_with_its_place() {
    let mut broken =
        wat::parse_str(r#"(module (func (export "_start") (result i32) i32.const 1 drop i32.const 2))"#).unwrap();
    let last = broken.len() - 2;
    broken[last] = 0xff;
    says(&refused(&broken), &["does not compile", "offset"]);
    let mut cut = echo();
    cut.truncate(cut.len() / 2);
    says(&refused(&cut), &["does not compile"]);
}

#[test]
fn features_that_are_off_are_refused() {
    for wat in [
        r#"(module (memory (export "memory") i64 1) (func (export "_start")))"#,
        r#"(module (memory 1) (memory 1) (func (export "_start")))"#,
        r#"(module (memory 1 2 shared) (func (export "_start")))"#,
        r#"(module (type (struct)) (func (export "_start")))"#,
        r#"(module (tag) (func (export "_start")))"#,
        r#"(module (memory 65536) (func (export "_start")))"#,
        r#"(module (table 4000000000 funcref) (func (export "_start")))"#,
    ] {
        let error = refused(&wat::parse_str(wat).unwrap());
        assert!(matches!(error, LoadError::Compile { .. } | LoadError::Memory { .. }), "{wat}: {error:?}");
    }
}

#[test]
fn a_trap_at_the_start_is_told_with_what_was_logged() {
    let wasm = component("handler", &handler_text("", "(func $bad unreachable) (start $bad)", "(i32.const 0)"));
    says(&refused(&wasm), &["a trial instance failed", "unreachable"]);
}

#[test]
fn memory_that_a_program_needs_is_compared_with_its_limit() {
    let wasm = wat::parse_str(r#"(module (memory (export "memory") 32) (func (export "_start")))"#).unwrap();
    let error = refused_with(&wasm, |spec| spec.limits.memory_bytes = 1 << 20);
    says(&error, &["needs 2097152 bytes", "grants 1048576", "raise limits.memory"]);
    let error = refused_with(&wasm, |spec| spec.limits.memory_bytes = 1 << 40);
    says(&error, &["more than the 67108864"]);
    assert_eq!(engine().config().memory_bytes_max, 64 << 20);
}
