//! Small guests and what it takes to call them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cofferdam_model::{EntryId, Fault, Message, Outcome, Route};
use cofferdam_sandbox::{
    Call, Digest, Engine, EngineConfig, Instances, Limits, LoadError, Plugin, PluginSpec, Report, Slot, invoke,
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The parts of WASI that the guests below use, at a version older than the host's.
const WASI: &str = include_str!("../../../../tests/hostile/wasi.wit");

/// The worlds above over the contract of the repository.
fn resolve() -> Resolve {
    let mut resolve = Resolve::default();
    resolve.push_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit")).unwrap();
    resolve.push_source("wasi.wit", WASI).unwrap();
    resolve
}

/// A component of a core module's text and one of the worlds above.
pub(crate) fn component(world: &str, wat: &str) -> Vec<u8> {
    let mut module = wat::parse_str(wat).unwrap_or_else(|error| panic!("{error}\n{wat}"));
    let resolve = resolve();
    let (_, package) = resolve.package_names.iter().find(|(name, _)| name.namespace == "test").unwrap();
    let world = resolve.select_world(&[*package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

/// A handler whose body is given; `{imports}` and further items stand outside of it. At its hand: `$m` (the message's place),
/// `$event (slot, pointer, length)`, `$ok (count)`, `$payload`, and the texts at 1024 ("out"), 1040 (`{"a":1}`).
pub(crate) fn handler_text(imports: &str, items: &str, body: &str) -> String {
    format!(
        r#"(module
  (import "cofferdam:plugin/log@0.1.0" "write" (func $log (param i32 i32 i32)))
  {imports}
  (memory (export "memory") 2)
  (global $heap (mut i32) (i32.const 32768))
  (data (i32.const 1024) "out")
  (data (i32.const 1040) "{{\"a\":1}}")
  (data (i32.const 1060) "not yours")
  (data (i32.const 1080) "cofferdam_plugin")
  (data (i32.const 1100) "hello\n")
  (func $alloc (export "cabi_realloc") (param $old i32) (param $was i32) (param $align i32) (param $len i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get $len)))
    (block $fits
      (br_if $fits (i32.le_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536))))
      (drop (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get $len) (i32.const 65536))))))
    (local.get $at))
  (func $event (param $slot i32) (param $pointer i32) (param $len i32)
    (local $at i32)
    (local.set $at (i32.add (i32.const 4096) (i32.mul (local.get $slot) (i32.const 40))))
    (memory.fill (local.get $at) (i32.const 0) (i32.const 40))
    (i32.store (local.get $at) (i32.const 1024))
    (i32.store offset=4 (local.get $at) (i32.const 3))
    (i32.store offset=8 (local.get $at) (local.get $pointer))
    (i32.store offset=12 (local.get $at) (local.get $len)))
  (func $ok (param $count i32) (result i32)
    (memory.fill (i32.const 2048) (i32.const 0) (i32.const 64))
    (i32.store offset=8 (i32.const 2048) (i32.const 4096))
    (i32.store offset=12 (i32.const 2048) (local.get $count))
    (i32.const 2048))
  (func $fail (param $tag i32) (param $pointer i32) (param $len i32) (result i32)
    (memory.fill (i32.const 2048) (i32.const 0) (i32.const 64))
    (i32.store8 (i32.const 2048) (i32.const 1))
    (i32.store8 offset=8 (i32.const 2048) (local.get $tag))
    (i32.store offset=16 (i32.const 2048) (local.get $pointer))
    (i32.store offset=20 (i32.const 2048) (local.get $len))
    (i32.const 2048))
  (func $echo (param $m i32) (result i32)
    (call $event (i32.const 0) (i32.load offset=24 (local.get $m)) (i32.load offset=28 (local.get $m)))
    (call $ok (i32.const 1)))
  {items}
  (func $handle (export "cofferdam:plugin/handler@0.1.0#handle") (param $m i32) (result i32)
    {body}))
"#
    )
}

pub(crate) fn handler(imports: &str, items: &str, body: &str) -> Vec<u8> {
    component("handler", &handler_text(imports, items, body))
}

/// Gives the payload back as one event.
pub(crate) fn echo() -> Vec<u8> {
    handler("", "", "(call $echo (local.get $m))")
}

/// The engine of all tests.
pub(crate) fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new(EngineConfig { instances_max: 16, memory_bytes_max: 64 << 20 }).unwrap())
}

pub(crate) fn spec(name: &str) -> PluginSpec {
    PluginSpec {
        name: name.to_owned(),
        digest: Digest::of(name.as_bytes()),
        limits: Limits { deadline: Duration::from_millis(200), ..Limits::default() },
        instances: Instances::Fresh,
        config: BTreeMap::from([("threshold".to_owned(), "5".to_owned())]),
        route: Route::new(vec!["in".to_owned()], vec!["out".to_owned()]).unwrap(),
    }
}

pub(crate) fn load(wasm: &[u8]) -> Arc<Plugin> {
    load_with(wasm, |_| ())
}

pub(crate) fn load_with(wasm: &[u8], change: impl FnOnce(&mut PluginSpec)) -> Arc<Plugin> {
    let mut spec = spec("guest");
    change(&mut spec);
    Arc::new(Plugin::load(engine(), wasm, spec).unwrap_or_else(|error| panic!("{error}")))
}

pub(crate) fn refused(wasm: &[u8]) -> LoadError {
    refused_with(wasm, |_| ())
}

pub(crate) fn refused_with(wasm: &[u8], change: impl FnOnce(&mut PluginSpec)) -> LoadError {
    let mut spec = spec("guest");
    change(&mut spec);
    match Plugin::load(engine(), wasm, spec) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error,
    }
}

pub(crate) fn message(payload: &str) -> Message {
    Message {
        id: EntryId { ms: 1_795_418_457_352, seq: 3 },
        message_id: "m-1".into(),
        stream: Arc::from("in"),
        payload: payload.into(),
        priority: 2,
        timestamp: "2026-11-23T07:20:57".into(),
        producer_id: "test".into(),
        key: None,
        attributes: vec![("sensor".into(), "hp-1".into())],
    }
}

pub(crate) const STARTED_MS: u64 = 1_795_418_457_400;

/// One call on a slot of its own.
pub(crate) fn call(plugin: &Arc<Plugin>) -> Report {
    call_in(plugin, &mut Slot::default(), &message(r#"{"n":1}"#))
}

pub(crate) fn call_in(plugin: &Arc<Plugin>, slot: &mut Slot, message: &Message) -> Report {
    invoke(plugin, slot, &Call { message, attempt: 1, started_ms: STARTED_MS })
}

pub(crate) fn fault(plugin: &Arc<Plugin>) -> Fault {
    let report = call(plugin);
    report.result.expect_err("the call went well")
}

/// The payloads of the events.
pub(crate) fn payloads(report: &Report) -> Vec<&str> {
    match &report.result {
        Ok(Outcome::Events(events)) => events.iter().map(|event| event.payload.as_str()).collect(),
        other => panic!("no events: {other:?}"),
    }
}

/// What a call may take beyond its deadline.
const LATE_MAX: Duration = Duration::from_millis(20);
/// Tries to see it: on a machine that is busy with something else, this thread itself is late.
const TRIES: u32 = 20;

/// A call that must be stopped at its deadline, and not before.
#[allow(clippy::print_stderr, reason = "a measurement, for whoever runs the test with --nocapture")]
pub(crate) fn stopped_in_time(plugin: &Arc<Plugin>) {
    // One at a time: two loops beside each other on two cores measure the kernel.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let deadline = plugin.spec().limits.deadline;
    let mut late = Vec::new();
    for _ in 0..TRIES {
        let report = call(plugin);
        assert_eq!(report.result, Err(Fault::Deadline { deadline }));
        assert!(report.took >= deadline, "stopped {:?} too early", deadline - report.took);
        late.push(report.took - deadline);
        if report.took - deadline <= LATE_MAX {
            eprintln!("stopped {:?} after the deadline", report.took - deadline);
            return;
        }
    }
    panic!("always stopped too late: {late:?}");
}
