//! One message through one plugin: `(Plugin, Message)` to an answer or a fault. The only reader of traps.
//!
//! ```text
//!  invoke ─▶ fresh store, or the slot's ─▶ instantiate ─▶ handle ─▶ check the answer ─▶ Outcome
//!                                              │            │            │
//!                                              └────────────┴────────────┴──────────▶ Fault, and the store is thrown away
//! ```
//!
//! What becomes of the result is not decided here. This file reads the clock only to say how long a call took.

use std::any::Any;
use std::fmt::Write as _;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_model::dead_letter::{TEXT_BYTES_MAX, TRAP_BYTES_MAX, truncated};
use cofferdam_model::{EntryId, Event, Fault, Message, Outcome, ReasonCode};
use serde::de::IgnoredAny;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, WasmBacktrace};

use crate::bindings::{self, Handler, HandlerPre};
use crate::engine::WASM_STACK_BYTES;
use crate::error::Stop;
use crate::mutants::planted;
use crate::plugin::{Code, Instances};
use crate::record::Calls;
use crate::store::{Delivery, State, new_store};
use crate::{LoadError, Plugin, PluginSpec, command};

/// Deliveries after which a reused instance is renewed: what it leaks or remembers is bounded, and a start costs nothing then.
const REUSES_MAX: u32 = 10_000;
/// Deliveries after which a reused instance should have all the memory that it needs.
const WARM_AFTER: u32 = 100;
/// How the engine says that the hostcall fuel is used up: its type for this is private. The tests of aliased strings fail if the
/// words change.
const TOO_MUCH_DATA: &str = "too much data is being copied";
/// Lines of a guest's last words that are kept with a trap: a panic writes two.
const LAST_WORDS_LINES: usize = 3;

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What the handler gets.
    pub message: &'a Message,
    /// Which charged try this is: 1 for the first.
    pub attempt: u32,
    /// The recorded start, in milliseconds since 1970: what the guest's wall clock shows.
    pub started_ms: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// The handler's answer, or how the call failed.
    pub result: Result<Outcome, Fault>,
    /// How long it took, the start of the instance included.
    pub took: Duration,
    /// The instance's linear memory at the end, in bytes.
    pub memory_bytes: u64,
    /// What it logged. Written by the guest: escape it before it is shown.
    pub log: Vec<LogLine>,
    /// Which functions of the host it called; empty unless that is recorded ([`Plugin::recording`]).
    pub calls: Calls,
}

/// One line that a handler logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: LogLevel,
    /// The line, without its end.
    pub line: String,
}

/// How much a line matters, in the guest's opinion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// For whoever writes the handler.
    Debug,
    /// Worth a line.
    Info,
    /// Odd.
    Warn,
    /// Wrong.
    Error,
}

/// A worker thread's place for a reused instance. Dropping it drops the instance.
#[derive(Default)]
pub struct Slot {
    live: Option<Live>,
    deadlines: u32,
}

/// An instance that has handled messages and may handle more.
struct Live {
    plugin: Arc<Plugin>,
    store: Store<State>,
    handler: Handler,
    calls: u32,
    /// Its memory after [`WARM_AFTER`] deliveries.
    warm_bytes: usize,
}

impl Slot {
    /// Gives up the instance, if there is one.
    pub fn clear(&mut self) {
        self.live = None;
    }

    /// Calls on this slot that were stopped at their deadline: their thread deserves less of the machine.
    pub fn deadlines(&self) -> u32 {
        self.deadlines
    }
}

/// Runs one message through a plugin, on this thread: its stack must have room for the guest's ([`crate::STACK_BYTES`]).
/// Never panics; a panic inside is a fault of the host.
pub fn invoke(plugin: &Arc<Plugin>, slot: &mut Slot, call: &Call<'_>) -> Report {
    invoke_within(plugin, slot, call, Duration::MAX)
}

/// The same with another deadline, when that is shorter than the plugin's own.
pub fn invoke_within(plugin: &Arc<Plugin>, slot: &mut Slot, call: &Call<'_>, deadline: Duration) -> Report {
    let deadline = deadline.min(plugin.spec().limits.deadline);
    let began = Instant::now();
    let _running = plugin.engine().running();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut done = run(plugin, slot, call, deadline);
        if let Ok(Outcome::Events(events)) = &done.result
            && let Err(fault) = within_quota(plugin, events)
        {
            done.result = Err(fault);
        }
        done
    }));
    let done = ran.unwrap_or_else(|panic| {
        slot.clear();
        let text = format!("a bug of the host: it panicked with {:?}", panic_text(panic.as_ref()));
        Done { result: Err(Fault::Host { text }), memory_bytes: 0, log: Vec::new(), calls: Calls::new() }
    });
    if matches!(done.result, Err(Fault::Deadline { .. })) {
        slot.deadlines += 1;
    }
    Report {
        result: done.result,
        took: began.elapsed(),
        memory_bytes: done.memory_bytes,
        log: done.log,
        calls: done.calls,
    }
}

/// A report without its time.
pub(crate) struct Done {
    pub(crate) result: Result<Outcome, Fault>,
    pub(crate) memory_bytes: u64,
    pub(crate) log: Vec<LogLine>,
    pub(crate) calls: Calls,
}

fn run(plugin: &Arc<Plugin>, slot: &mut Slot, call: &Call<'_>, deadline: Duration) -> Done {
    let spec = plugin.spec();
    match &plugin.code {
        Code::Handler(pre) => match spec.instances {
            Instances::Fresh => fresh(plugin, pre, call, deadline),
            Instances::Reuse => reuse(plugin, pre, slot, call, deadline),
        },
        Code::Run(_) | Code::Start(_) => command::run(plugin, call, deadline),
    }
}

/// A new instance for this message alone.
fn fresh(plugin: &Plugin, pre: &HandlerPre<State>, call: &Call<'_>, deadline: Duration) -> Done {
    let mut store = new_store(plugin, delivery(call, deadline), None);
    let result = match pre.instantiate(&mut store) {
        Ok(handler) => handle(&mut store, &handler, call),
        Err(error) => Err(fault(&mut store, &error, Phase::Start)),
    };
    done(&mut store, result)
}

/// The slot's instance, renewed when it is another plugin's, worn out or grown.
fn reuse(plugin: &Arc<Plugin>, pre: &HandlerPre<State>, slot: &mut Slot, call: &Call<'_>, deadline: Duration) -> Done {
    let kept = slot.live.take().filter(|live| Arc::ptr_eq(&live.plugin, plugin) && live.is_fit());
    let mut live = match kept {
        Some(mut live) => {
            live.store.data_mut().begin(delivery(call, deadline));
            live.store.set_epoch_deadline(1);
            live
        }
        None => {
            let mut store = new_store(plugin, delivery(call, deadline), None);
            match pre.instantiate(&mut store) {
                Ok(handler) => Live { plugin: Arc::clone(plugin), store, handler, calls: 0, warm_bytes: 0 },
                Err(error) => {
                    let fault = fault(&mut store, &error, Phase::Start);
                    return done(&mut store, Err(fault));
                }
            }
        }
    };
    let result = handle(&mut live.store, &live.handler, call);
    let done = done(&mut live.store, result);
    live.calls += 1;
    if live.calls == WARM_AFTER {
        live.warm_bytes = live.store.data().meter.memory_bytes;
    }
    // After a fault nobody knows what state the instance is in: it is dropped.
    if done.result.is_ok() {
        slot.live = Some(live);
    }
    done
}

impl Live {
    /// Whether it may handle another message: not worn out, not near its limit, not twice as large as when it was warm.
    fn is_fit(&self) -> bool {
        let meter = &self.store.data().meter;
        let limit = usize::try_from(self.plugin.spec().limits.memory_bytes).unwrap_or(usize::MAX);
        let grown = self.calls > WARM_AFTER && meter.memory_bytes > self.warm_bytes.saturating_mul(2);
        let near_limit =
            self.calls > WARM_AFTER && meter.memory_bytes > limit / 2 && meter.memory_bytes > self.warm_bytes;
        self.calls < REUSES_MAX && !grown && !near_limit
    }
}

fn delivery(call: &Call<'_>, deadline: Duration) -> Delivery {
    Delivery::new(call.message, call.attempt, call.started_ms, deadline)
}

/// Hands the message in and checks what comes out.
fn handle(store: &mut Store<State>, handler: &Handler, call: &Call<'_>) -> Result<Outcome, Fault> {
    let message = call.message;
    let id = message.id.to_string();
    let attributes: Vec<(&str, &str)> = message.attributes.iter().map(|(key, value)| (&**key, &**value)).collect();
    let lowered = bindings::Message {
        id: &id,
        message_id: &message.message_id,
        stream: &message.stream,
        payload: &message.payload,
        priority: message.priority,
        timestamp: &message.timestamp,
        received_ms: message.received_ms(),
        producer_id: &message.producer_id,
        attempt: call.attempt,
        key: message.key.as_deref(),
        attributes: &attributes,
    };
    match handler.cofferdam_plugin_handler().call_handle(&mut *store, lowered) {
        Ok(answer) => check(&store.data().spec, bindings::outcome(answer)),
        Err(error) => Err(fault(store, &error, Phase::Call)),
    }
}

/// Whether an answer keeps the contract.
pub(crate) fn check(spec: &PluginSpec, outcome: Outcome) -> Result<Outcome, Fault> {
    match outcome {
        Outcome::Events(events) => check_events(spec, &events).map(|()| Outcome::Events(events)),
        Outcome::Retry { reason, after } => Ok(Outcome::Retry { reason: bounded(reason), after }),
        Outcome::Reject { reason } => Ok(Outcome::Reject { reason: bounded(reason) }),
    }
}

/// Whether the plugin may give that much in this second.
fn within_quota(plugin: &Plugin, events: &[Event]) -> Result<(), Fault> {
    plugin.quota.take(&plugin.spec().limits, events.len() as u64, || events.iter().map(event_bytes).sum())
}

fn check_events(spec: &PluginSpec, events: &[Event]) -> Result<(), Fault> {
    let over = |text: String| Err(Fault::BadOutput { code: ReasonCode::OutputLimit, text });
    let (events_max, bytes_max) = (spec.limits.events, spec.limits.output_bytes);
    let capped = !planted("no-output-cap");
    if capped && events.len() as u64 > u64::from(events_max) {
        return over(format!("{} events are more than limits.events allows ({events_max})", events.len()));
    }
    let bytes: u64 = events.iter().map(event_bytes).sum();
    if capped && bytes > bytes_max {
        return over(format!("{bytes} bytes of events are more than limits.output allows ({bytes_max})"));
    }
    spec.route.check(events)?;
    for (index, event) in events.iter().enumerate() {
        if let Err(error) = serde_json::from_str::<IgnoredAny>(&event.payload) {
            let shown: String = event.payload.chars().take(60).collect();
            let text = format!("the payload of event {index} is not JSON: {error}; it begins with {shown:?}");
            return Err(Fault::BadOutput { code: ReasonCode::BadOutput, text });
        }
    }
    Ok(())
}

fn event_bytes(event: &Event) -> u64 {
    let attributes: usize = event.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    let key = event.key.as_ref().map_or(0, String::len);
    (event.stream.len() + event.payload.len() + key + attributes) as u64
}

fn bounded(text: String) -> String {
    if text.len() <= TEXT_BYTES_MAX { text } else { truncated(&text, TEXT_BYTES_MAX) }
}

/// Closes the books of a call.
pub(crate) fn done(store: &mut Store<State>, result: Result<Outcome, Fault>) -> Done {
    let state = store.data_mut();
    let log = state.console_if_used().map(|mut console| {
        console.finish();
        console.take_lines()
    });
    let calls = state.calls.as_mut().map(mem::take).unwrap_or_default();
    Done { result, memory_bytes: state.meter.memory_bytes as u64, log: log.unwrap_or_default(), calls }
}

/// Where a call was when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The instance was being made; its start function may have run.
    Start,
    /// The handler ran, or its answer was being read.
    Call,
}

/// Turns an error of the engine into a fault. By type, never by text, but for one type that the engine keeps to itself.
pub(crate) fn fault(store: &mut Store<State>, error: &wasmtime::Error, phase: Phase) -> Fault {
    let state = store.data_mut();
    let backtrace = backtrace(error);
    let (last_words, overflow) = match state.console_if_used() {
        Some(mut console) => {
            console.finish();
            (console.last_words(LAST_WORDS_LINES), console.overflow())
        }
        None => (String::new(), None),
    };
    // A program of preview 1 is stopped at the next tick only: what it comes to until then must not decide how it failed.
    if let Err(stop) = state.meter.check_calls() {
        return limit(too_many_calls(&stop), &last_words, backtrace);
    }
    if let Some(bytes) = overflow {
        let text = format!("{}: more than limits.output allows", Stop::Output(bytes));
        return Fault::BadOutput { code: ReasonCode::OutputLimit, text };
    }
    if let Some(stop) = error.downcast_ref::<Stop>() {
        let reached = match stop {
            Stop::Deadline(deadline) => return Fault::Deadline { deadline: *deadline },
            Stop::Output(_) => {
                let text = format!("{stop}: more than limits.output allows");
                return Fault::BadOutput { code: ReasonCode::OutputLimit, text };
            }
            Stop::Exit(_) => {
                let text = format!("the guest called {stop} in mid-handler; a handler returns its answer");
                return trap(text, &last_words, backtrace);
            }
            Stop::HostCalls(_) => too_many_calls(stop),
            Stop::Random(_) => (ReasonCode::Random, format!("it asked for {stop}: see limits.random")),
        };
        return limit(reached, &last_words, backtrace);
    }
    if let Some(limit) = error.downcast_ref::<PoolConcurrencyLimitError>() {
        return Fault::Host { text: format!("no instance is free: {limit}") };
    }
    let limit_bytes = state.spec.limits.memory_bytes;
    let cause = error.downcast_ref::<Trap>().map_or_else(|| root(error), |trap| described(*trap));
    if let Some(asked) = state.meter.memory_refused {
        let text = with_last_words(format!("it asked for {asked} bytes; then {cause}"), &last_words);
        return Fault::Memory { limit_bytes, text };
    }
    if let Some(asked) = state.meter.table_refused {
        let allowed = state.spec.limits.table_elements;
        let text =
            format!("a table of {asked} elements is more than limits.table-elements allows ({allowed}); then {cause}");
        return limit((ReasonCode::Tables, text), &last_words, backtrace);
    }
    if let Some(trapped) = error.downcast_ref::<Trap>() {
        if *trapped == Trap::StackOverflow {
            return limit(
                (ReasonCode::Stack, format!("{cause} for its {WASM_STACK_BYTES} bytes")),
                &last_words,
                backtrace,
            );
        }
        return trap(cause, &last_words, backtrace);
    }
    if cause.starts_with(TOO_MUCH_DATA) && !backtrace.is_empty() {
        let text = String::from("a call of a host function carried more than about twice limits.output");
        return limit((ReasonCode::CallBytes, text), &last_words, backtrace);
    }
    match phase {
        // A guest that does not start has been refused at load; what is left is the machine.
        Phase::Start if backtrace.is_empty() => Fault::Host { text: format!("no instance could be made: {cause}") },
        Phase::Call if backtrace.is_empty() => bad_answer(&cause),
        Phase::Start | Phase::Call => trap(cause, &last_words, backtrace),
    }
}

/// A call that made too many of the host's functions, however it ended.
pub(crate) fn too_many_calls(stop: &Stop) -> (ReasonCode, String) {
    (ReasonCode::HostCalls, format!("it made {stop}: see limits.host-calls"))
}

/// The answer could not be read: it is too large, or not what the contract's types say.
fn bad_answer(cause: &str) -> Fault {
    if cause.starts_with(TOO_MUCH_DATA) {
        let text = "the answer is far larger than limits.output and limits.events allow".to_owned();
        return Fault::BadOutput { code: ReasonCode::OutputLimit, text };
    }
    let text = bounded(format!("the answer cannot be read: {cause}"));
    Fault::BadOutput { code: ReasonCode::BadOutput, text }
}

fn limit((code, text): (ReasonCode, String), last_words: &str, backtrace: String) -> Fault {
    Fault::Limit { code, text: bounded(with_last_words(text, last_words)), backtrace }
}

fn trap(cause: String, last_words: &str, backtrace: String) -> Fault {
    Fault::Trap { text: bounded(with_last_words(cause, last_words)), backtrace }
}

fn with_last_words(mut text: String, last_words: &str) -> String {
    if !last_words.is_empty() {
        let _ = write!(text, "; its last words: {last_words}");
    }
    text
}

/// A trap in words that say more than the engine's where something is known about it.
fn described(trap: Trap) -> String {
    let known = match trap {
        Trap::StackOverflow => "the call stack is exhausted: it recurses too deep",
        Trap::UnreachableCodeReached => "unreachable code was reached: most likely a panic or an abort",
        _ => return trap.to_string().trim_start_matches("wasm trap: ").to_owned(),
    };
    known.to_owned()
}

fn root(error: &wasmtime::Error) -> String {
    error.root_cause().to_string()
}

/// The frames, innermost first, with the names that the wasm brings; empty when no wasm ran.
fn backtrace(error: &wasmtime::Error) -> String {
    let Some(trace) = error.downcast_ref::<WasmBacktrace>() else { return String::new() };
    let mut text = String::new();
    for (depth, frame) in trace.frames().iter().enumerate() {
        let name = frame.func_name().map_or_else(|| format!("function {}", frame.func_index()), readable);
        let offset = frame.module_offset().map(|offset| format!(" at {offset:#x}")).unwrap_or_default();
        let _ = writeln!(text, "{depth}: {name}{offset}");
        if text.len() > TRAP_BYTES_MAX {
            break;
        }
    }
    truncated(text.trim_end(), TRAP_BYTES_MAX)
}

/// A function's name for people: demangled, of bounded length, without anything that a terminal obeys.
fn readable(name: &str) -> String {
    const NAME_CHARS_MAX: usize = 200;
    // Bounded first: a demangled name can be much longer than a mangled one, and both are the guest's choice.
    let short = name.get(..name.floor_char_boundary(1_024)).unwrap_or_default();
    let mut plain = String::new();
    let _ = write!(Bounded(&mut plain, NAME_CHARS_MAX * 4), "{:#}", rustc_demangle::demangle(short));
    plain.chars().take(NAME_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A writer that stops at a size.
struct Bounded<'a>(&'a mut String, usize);

impl std::fmt::Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if self.0.len() + text.len() > self.1 {
            return Err(std::fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "something that is no text".to_owned())
}

/// Starts one instance of a plugin that has just been compiled, under its limits, and throws it away.
pub(crate) fn trial(plugin: &Plugin) -> Result<(), LoadError> {
    let Code::Handler(pre) = &plugin.code else { return Ok(()) };
    let _running = plugin.engine().running();
    let deadline = plugin.spec().limits.deadline;
    let delivery = Delivery { stream: Arc::from("trial"), id: EntryId::ZERO, attempt: 1, started_ms: 0, deadline };
    let mut store = new_store(plugin, delivery, None);
    let Err(error) = pre.instantiate(&mut store) else { return Ok(()) };
    let fault = fault(&mut store, &error, Phase::Start);
    let needed = store.data().meter.memory_refused;
    if let (Fault::Memory { limit_bytes, .. }, Some(needed), false) = (&fault, needed, error.is::<Trap>()) {
        return Err(LoadError::Memory { needed_bytes: needed as u64, limit_bytes: *limit_bytes });
    }
    let log = done(&mut store, Ok(Outcome::Events(Vec::new()))).log;
    Err(LoadError::Trial { fault, log: log.into_iter().map(|line| line.line).collect() })
}
