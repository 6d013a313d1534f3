//! The command ABI: a program without any SDK. One message as JSON on standard input, one event a line on standard output,
//! and an exit code.
//!
//! | exit | means |
//! |---|---|
//! | 0 | the events count |
//! | 65 | never: the last line on standard error is the reason |
//! | 75, any other | not now: the same |
//!
//! Preview 1 programs and components that use `exit-with-code` have all of these. The plain `exit` of WASI 0.2, which Rust's
//! std for wasm32-wasip2 uses, only knows success and failure: its every failure arrives as 1 and is a retry.
//!
//! A trap is a trap. Every delivery has a fresh instance: a program ends.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cofferdam_model::{Event, Fault, Message, Outcome, ReasonCode};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use wasmtime::Store;
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p2::pipe::MemoryInputPipe;

use crate::Plugin;
use crate::error::Stop;
use crate::invoke::{Call, Done, Phase, check, done, fault, too_many_calls};
use crate::plugin::{Code, runtime};
use crate::store::{Command, Delivery, State, new_store};
use crate::wasi::{Channel, Clock};

/// The exit code that means `reject`: EX_DATAERR of sysexits.h.
const EXIT_REJECT: i32 = 65;
/// Bytes of a line of standard output that a fault quotes.
const QUOTE_CHARS_MAX: usize = 120;

/// Runs a program over one message.
pub(crate) fn run(plugin: &Plugin, call: &Call<'_>, deadline: Duration) -> Done {
    let stdin = Bytes::from(message_json(call.message, call.attempt));
    let delivery = Delivery::new(call.message, call.attempt, call.started_ms, deadline);
    let mut store = new_store(plugin, delivery, Some(Command { stdin, preview1: None }));
    let ended = match &plugin.code {
        Code::Run(pre) => match pre.instantiate(&mut store) {
            Ok(command) => {
                let ended = command.wasi_cli_run().call_run(&mut store);
                exit_code(&mut store, ended.map(|result| i32::from(result.is_err())))
            }
            Err(error) => not_started(&mut store, &error),
        },
        Code::Start(pre) => start(&mut store, pre),
        Code::Handler(_) => Err(Fault::Host { text: "a handler was run as a command".to_owned() }),
    };
    let result = ended.and_then(|code| answer(&mut store, code));
    done(&mut store, result)
}

/// Runs the `_start` of a core module.
fn start(store: &mut Store<State>, pre: &wasmtime::InstancePre<State>) -> Result<i32, Fault> {
    let runtime = runtime().map_err(|error| Fault::Host { text: error.to_string() })?;
    let _entered = runtime.enter();
    prepare_preview1(store.data_mut());
    let instance = match pre.instantiate(&mut *store) {
        Ok(instance) => instance,
        Err(error) => return not_started(store, &error),
    };
    let ended = instance
        .get_typed_func::<(), ()>(&mut *store, "_start")
        .and_then(|start| start.call(&mut *store, ()).map(|()| 0));
    exit_code(store, ended)
}

fn prepare_preview1(state: &mut State) {
    let spec = Arc::clone(&state.spec);
    let (stdout, stderr) = (state.stream(Channel::Stdout), state.stream(Channel::Stderr));
    let Some(command) = &mut state.command else { return };
    let mut builder = WasiCtxBuilder::new();
    builder
        .stdin(MemoryInputPipe::new(std::mem::take(&mut command.stdin)))
        .stdout(stdout)
        .stderr(stderr)
        .arg(&spec.name)
        .wall_clock(Clock(Arc::clone(&state.wait.time)))
        .monotonic_clock(Clock(Arc::clone(&state.wait.time)));
    for (key, value) in &spec.config {
        builder.env(key, value);
    }
    command.preview1 = Some(builder.build_p1());
}

/// A start function can end the program too.
fn not_started(store: &mut Store<State>, error: &wasmtime::Error) -> Result<i32, Fault> {
    match error.downcast_ref::<Stop>() {
        Some(Stop::Exit(code)) => Ok(*code),
        _ => Err(fault(store, error, Phase::Start)),
    }
}

fn exit_code(store: &mut Store<State>, ended: wasmtime::Result<i32>) -> Result<i32, Fault> {
    let error = match ended {
        Ok(code) => return Ok(code),
        Err(error) => error,
    };
    match error.downcast_ref::<Stop>() {
        Some(Stop::Exit(code)) => Ok(*code),
        _ => Err(fault(store, &error, Phase::Call)),
    }
}

/// What an exit code and the streams mean.
fn answer(store: &mut Store<State>, code: i32) -> Result<Outcome, Fault> {
    let state = store.data_mut();
    // It may have ended before the tick at which it would have been stopped.
    if let Err(stop) = state.meter.check_calls() {
        let (code, text) = too_many_calls(&stop);
        return Err(Fault::Limit { code, text, backtrace: String::new() });
    }
    let spec = Arc::clone(&state.spec);
    let mut console = state.console();
    console.finish();
    let outcome = match code {
        0 => Outcome::Events(events(&console.take_stdout())?),
        _ => {
            let reason = match console.last_stderr() {
                "" => format!("exit code {code}, and nothing on standard error"),
                line => line.to_owned(),
            };
            if code == EXIT_REJECT { Outcome::Reject { reason } } else { Outcome::Retry { reason, after: None } }
        }
    };
    drop(console);
    check(&spec, outcome)
}

/// The message as a program reads it: one line of JSON.
fn message_json(message: &Message, attempt: u32) -> Vec<u8> {
    let mut json = Vec::with_capacity(message.payload.len() + 512);
    json.push(b'{');
    field(&mut json, "id", &message.id.to_string());
    field(&mut json, "message_id", &message.message_id);
    field(&mut json, "stream", &*message.stream);
    json.extend_from_slice(b"\"payload\":");
    // Embedded as the JSON that it is. A line's end can only stand between two tokens of it, where a space does as well.
    json.extend(message.payload.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
    json.push(b',');
    field(&mut json, "priority", &message.priority);
    field(&mut json, "timestamp", &message.timestamp);
    field(&mut json, "received_ms", &message.received_ms());
    field(&mut json, "producer_id", &message.producer_id);
    field(&mut json, "attempt", &attempt);
    field(&mut json, "key", &message.key);
    json.extend_from_slice(b"\"attributes\":{");
    for (name, value) in &message.attributes {
        field(&mut json, name, value);
    }
    if json.ends_with(b",") {
        json.pop();
    }
    json.extend_from_slice(b"}}\n");
    json
}

fn field<T: Serialize + ?Sized>(json: &mut Vec<u8>, name: &str, value: &T) {
    // Strings and numbers into memory: there is nothing that could fail.
    let _ = serde_json::to_writer(&mut *json, name);
    json.push(b':');
    let _ = serde_json::to_writer(&mut *json, value);
    json.push(b',');
}

/// One line of standard output.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    stream: Option<String>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    priority: Option<u8>,
    key: Option<String>,
    #[serde(default)]
    attributes: Attributes,
    state: Option<IgnoredAny>,
}

/// Attributes in the order written.
#[derive(Default)]
struct Attributes(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Attributes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Attributes, A::Error> {
                let mut attributes = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    attributes.push(entry);
                }
                Ok(Attributes(attributes))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// Reads standard output: an event a line; empty lines are nothing.
fn events(stdout: &[u8]) -> Result<Vec<Event>, Fault> {
    let lines = stdout.split(|&byte| byte == b'\n').enumerate();
    let lines = lines.map(|(number, line)| (number + 1, line.trim_ascii())).filter(|(_, line)| !line.is_empty());
    lines.map(|(number, line)| event(number, line)).collect()
}

fn event(number: usize, bytes: &[u8]) -> Result<Event, Fault> {
    let bad = |why: &str| {
        let quoted: String = String::from_utf8_lossy(bytes).chars().take(QUOTE_CHARS_MAX).collect();
        let text = format!("line {number} of standard output {why}: {quoted:?}");
        Fault::BadOutput { code: ReasonCode::BadOutput, text }
    };
    let line: Line<'_> = serde_json::from_slice(bytes).map_err(|error| {
        bad(&format!("is no event ({error}); write {{\"stream\": …, \"payload\": …}}, and logs to standard error"))
    })?;
    if line.state.is_some() {
        return Err(bad("changes state, which this version does not have yet"));
    }
    match (line.stream, line.payload) {
        (Some(stream), Some(payload)) => Ok(Event {
            stream,
            payload: payload.get().to_owned(),
            priority: line.priority,
            key: line.key,
            attributes: line.attributes.0,
        }),
        (None, _) => Err(bad("names no stream")),
        (_, None) => Err(bad("has no payload")),
    }
}
