//! Bytes to a compiled, linked, type-checked [`Plugin`]. Everything that can fail early fails here, with words that help.
//!
//! Which plugin is live is the caller's business; calling one is `invoke.rs`'s. Nothing here reads a file.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cofferdam_model::Route;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wasmtime::Module;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime_wasi::p2::bindings::sync::CommandPre;

use crate::artifact::{Artifact, compile};
use crate::bindings::{self, HANDLER_EXPORT, HandlerPre};
use crate::error::SandboxError;
use crate::quota::Quota;
use crate::store::State;
use crate::{Engine, LoadError, invoke, preview1, wasi};

/// Names that an error text lists before it says "and so on".
const NAMES_MAX: usize = 8;
/// What every component may import.
const ALLOWED: &str = "cofferdam:plugin/log@0.1.0, cofferdam:plugin/config@0.1.0 and the interfaces of wasi:cli, clocks, filesystem, io, random \
                       and sockets at 0.2 (all of them sealed)";
/// The export of a command that is a component, any 0.2.
const RUN_EXPORT: &str = "wasi:cli/run@0.2";

/// The sha256 of a version. What goes into it (the wasm, its manifest, its assets) is the caller's affair.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// One that was computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What one delivery may take. Every limit has a default; the manifest and the operator's policy set them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// All linear memory of an instance, in bytes.
    pub memory_bytes: u64,
    /// Wall-clock time, the start of the instance and every wait included.
    pub deadline: Duration,
    /// Bytes of all events together: streams, payloads, keys and attributes.
    pub output_bytes: u64,
    /// Events.
    pub events: u32,
    /// Log lines; further ones are dropped and counted.
    pub log_lines: u32,
    /// Bytes of all log lines together.
    pub log_bytes: u64,
    /// Calls of host functions, WASI's included.
    pub host_calls: u64,
    /// Elements of one table: functions that can be called by number. Never more than the engine's 100,000.
    pub table_elements: u64,
    /// Random bytes.
    pub random_bytes: u64,
    /// Events that all deliveries of the plugin on this host may give in a second, and bytes of them; `None` has no such bound.
    pub events_per_second: Option<u64>,
    /// The same for their bytes.
    pub output_bytes_per_second: Option<u64>,
    /// The largest message that is handed in; it also bounds what one host call may carry.
    pub message_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            // A Rust or C handler uses 1 to 2 MiB, Go 8, Python 20 to 40.
            memory_bytes: 64 * 1024 * 1024,
            // A hundred times what a slow handler takes; a stuck one is noticed while somebody looks.
            deadline: Duration::from_secs(1),
            output_bytes: 1024 * 1024,
            events: 1_000,
            // What somebody would read of one message.
            log_lines: 100,
            log_bytes: 64 * 1024,
            // A loop makes 58,000 calls in a millisecond: this ends a flood early, and no handler comes near it.
            host_calls: 100_000,
            // Go and Python need some 10,000.
            table_elements: 100_000,
            // Many thousand keys, and a millisecond of hashing.
            random_bytes: 1024 * 1024,
            events_per_second: None,
            output_bytes_per_second: None,
            message_bytes: 1024 * 1024,
        }
    }
}

impl Limits {
    /// Of each limit the smaller: what is asked for, under what is allowed.
    #[must_use]
    pub fn under(self, ceiling: &Limits) -> Limits {
        // A bound that only one of the two sets is the one that holds.
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Limits {
            memory_bytes: self.memory_bytes.min(ceiling.memory_bytes),
            deadline: self.deadline.min(ceiling.deadline),
            output_bytes: self.output_bytes.min(ceiling.output_bytes),
            events: self.events.min(ceiling.events),
            log_lines: self.log_lines.min(ceiling.log_lines),
            log_bytes: self.log_bytes.min(ceiling.log_bytes),
            host_calls: self.host_calls.min(ceiling.host_calls),
            table_elements: self.table_elements.min(ceiling.table_elements),
            random_bytes: self.random_bytes.min(ceiling.random_bytes),
            events_per_second: least(self.events_per_second, ceiling.events_per_second),
            output_bytes_per_second: least(self.output_bytes_per_second, ceiling.output_bytes_per_second),
            message_bytes: self.message_bytes.min(ceiling.message_bytes),
        }
    }

    /// Bytes that a command may write: its events as JSON, which escapes and quotes.
    pub(crate) fn stdout_bytes_max(&self) -> usize {
        let bytes = self.output_bytes.saturating_mul(2).saturating_add(u64::from(self.events) * 256);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}

/// Whether deliveries share an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Instances {
    /// A fresh instance for each delivery: no message can influence how the next is handled.
    #[default]
    Fresh,
    /// One instance a thread, for runtimes that start slowly; renewed on any fault, now and then, and when it grows.
    Reuse,
}

/// Everything about a plugin but its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginSpec {
    /// Its name, unique on this host.
    pub name: String,
    /// Its version.
    pub digest: Digest,
    /// What a delivery may take.
    pub limits: Limits,
    /// Whether deliveries share an instance. A command never does.
    pub instances: Instances,
    /// What `config.get` answers; a command's environment.
    pub config: BTreeMap<String, String>,
    /// Which streams its events may go to.
    pub route: Route,
}

/// How a plugin is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// A component that exports the handler's interface.
    Component,
    /// A program: one message on standard input, one event a line on standard output.
    Command,
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Abi::Component => "component",
            Abi::Command => "command",
        })
    }
}

/// A compiled plugin, ready for calls from any thread.
pub struct Plugin {
    engine: Engine,
    spec: Arc<PluginSpec>,
    pub(crate) code: Code,
    pub(crate) quota: Quota,
    /// Whether reports tell which functions of the host were called.
    pub(crate) recording: bool,
}

/// The three shapes of code that are run.
pub(crate) enum Code {
    Handler(HandlerPre<State>),
    Run(CommandPre<State>),
    Start(wasmtime::InstancePre<State>),
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PluginSpec { name, digest, .. } = &*self.spec;
        f.debug_struct("Plugin").field("name", name).field("digest", digest).finish_non_exhaustive()
    }
}

impl Plugin {
    /// Compiles, links and checks a plugin, and starts one instance of it for trial. Takes from milliseconds (Rust) to
    /// seconds (Python) of this thread; hostile code can make it take far longer, so the caller bounds it from outside.
    ///
    /// # Errors
    /// Says what is wrong with the file, or what it asks for in vain.
    pub fn load(engine: &Engine, wasm: &[u8], spec: PluginSpec) -> Result<Plugin, LoadError> {
        Plugin::from_artifact(engine, &compile(engine, wasm)?, spec)
    }

    /// The same from code that was compiled before, which takes milliseconds.
    ///
    /// # Errors
    /// Says what the file asks for in vain, or that the code is another engine's.
    pub fn from_artifact(engine: &Engine, artifact: &Artifact, spec: PluginSpec) -> Result<Plugin, LoadError> {
        let most_bytes = engine.config().memory_bytes_max;
        if spec.limits.memory_bytes > most_bytes {
            return Err(LoadError::LimitTooHigh { limit_bytes: spec.limits.memory_bytes, most_bytes });
        }
        let code = match artifact.kind()? {
            Kind::Component => component(engine, &artifact.component(engine)?)?,
            Kind::Module => module(engine, &artifact.module(engine)?, &spec)?,
        };
        let plugin =
            Plugin { engine: engine.clone(), spec: Arc::new(spec), code, quota: Quota::new(), recording: false };
        invoke::trial(&plugin)?;
        Ok(plugin)
    }

    /// From now on reports tell which functions of the host were called, for whoever tries a plugin out.
    #[must_use]
    pub fn recording(mut self) -> Plugin {
        self.recording = true;
        self
    }

    /// Everything about it but its code.
    pub fn spec(&self) -> &PluginSpec {
        &self.spec
    }

    /// How it is called.
    pub fn abi(&self) -> Abi {
        match self.code {
            Code::Handler(_) => Abi::Component,
            Code::Run(_) | Code::Start(_) => Abi::Command,
        }
    }

    pub(crate) fn shared_spec(&self) -> &Arc<PluginSpec> {
        &self.spec
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

pub(crate) enum Kind {
    Component,
    Module,
}

/// What the bytes are, by their head. Only WebAssembly ever reaches the compiler, and nothing compiled elsewhere is loaded.
pub(crate) fn kind(bytes: &[u8]) -> Result<Kind, LoadError> {
    let not = |found: &str| Err(LoadError::NotWasm { found: found.to_owned() });
    match bytes {
        [] => not("the file is empty"),
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(Kind::Module),
        [b'\0', b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(Kind::Component),
        [b'\0', b'a', b's', b'm', a, b, c, d, ..] => {
            Err(LoadError::UnknownVersion { version: u32::from_le_bytes([*a, *b, *c, *d]) })
        }
        [b'\0', b'a', b's', b'm', ..] => not("it ends within its header; copy it again"),
        [0x7f, b'E', b'L', b'F', ..] if is_cwasm(bytes) => not(
            "it is code that wasmtime compiled (a .cwasm). This host compiles itself: give it the .wasm it was made from",
        ),
        [0x7f, b'E', b'L', b'F', ..] => {
            not("it is a program or library for this machine (ELF). Build it for wasm32-wasip2")
        }
        [0x1f, 0x8b, ..] => not("it is compressed with gzip. Unpack it first"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => not("it is compressed with zstd. Unpack it first"),
        [b'P', b'K', ..] => not("it is a zip archive. Unpack it first"),
        [b'M', b'Z', ..] => not("it is a program for Windows. Build it for wasm32-wasip2"),
        _ => text(bytes).map_or_else(
            || not(&format!("it begins with {:02x?}", bytes.get(..bytes.len().min(8)).unwrap_or_default())),
            |found| not(&found),
        ),
    }
}

/// Whether wasmtime made these bytes, by their header, or by a name in a header that another version wrote.
fn is_cwasm(bytes: &[u8]) -> bool {
    wasmtime::Engine::detect_precompiled(bytes).is_some()
        || bytes.windows(9).take(65_536).any(|window| window == b".wasmtime")
}

/// What to say of a text file.
fn text(bytes: &[u8]) -> Option<String> {
    let head = bytes.get(..bytes.len().min(4_096)).unwrap_or_default();
    let head = String::from_utf8_lossy(head);
    let head = head.trim_start();
    if head.starts_with("(module") || head.starts_with("(component") || head.starts_with(";;") {
        return Some(
            "it is WebAssembly in its text form. Turn it into the binary form with `wasm-tools parse`".to_owned(),
        );
    }
    let first = head.lines().next().unwrap_or_default();
    let shown: String = first.chars().take(40).collect();
    let plain = !shown.is_empty() && !head.contains(['\0', '\u{fffd}']);
    plain.then(|| format!("it is a text that begins with {shown:?}"))
}

/// Links a component, and finds out which of the two worlds it belongs to.
fn component(engine: &Engine, component: &Component) -> Result<Code, LoadError> {
    let ty = component.component_type();
    let exports: Vec<String> = ty.exports(engine.wasmtime()).map(|(name, _)| name.to_owned()).collect();
    let is_handler = exports.iter().any(|name| name == HANDLER_EXPORT);
    if !is_handler && !exports.iter().any(|name| name.starts_with(RUN_EXPORT)) {
        return Err(no_handler(&exports));
    }
    for (name, _) in ty.imports(engine.wasmtime()) {
        check_import(name)?;
    }
    let linker = component_linker(engine)?;
    let imports_error = |error: wasmtime::Error| LoadError::Imports { text: chain(&error), source: error.into() };
    let pre = linker.instantiate_pre(component).map_err(imports_error)?;
    let wrong = |name: &str| {
        let name = name.to_owned();
        move |error: wasmtime::Error| LoadError::WrongSignature { name, text: chain(&error) }
    };
    if is_handler {
        check_handler_type(component).map_err(wrong(HANDLER_EXPORT))?;
        Ok(Code::Handler(HandlerPre::new(pre).map_err(wrong(HANDLER_EXPORT))?))
    } else {
        Ok(Code::Run(CommandPre::new(pre).map_err(wrong(RUN_EXPORT))?))
    }
}

/// Compares the handler's type with the contract's, before an instance exists.
fn check_handler_type(component: &Component) -> wasmtime::Result<()> {
    use wasmtime::component::types::ComponentItem;
    let (_, instance) =
        component.get_export(None, HANDLER_EXPORT).ok_or_else(|| wasmtime::Error::msg("there is no such export"))?;
    let (item, _) = component
        .get_export(Some(&instance), "handle")
        .ok_or_else(|| wasmtime::Error::msg("it has no function `handle`"))?;
    match item {
        ComponentItem::ComponentFunc(func) => bindings::check_type(component, &func),
        _ => Err(wasmtime::Error::msg("`handle` is no function")),
    }
}

fn component_linker(engine: &Engine) -> Result<Linker<State>, SandboxError> {
    let mut linker = Linker::new(engine.wasmtime());
    let linked = wasi::add_to_linker(&mut linker)
        .and_then(|()| bindings::add_to_linker::<HasSelf<State>>(&mut linker, |state| state));
    linked.map_err(|error| SandboxError::Link { source: error.into() })?;
    Ok(linker)
}

/// Why a component with these exports is no plugin.
fn no_handler(exports: &[String]) -> LoadError {
    let own = "cofferdam:plugin/handler";
    if let Some(found) = exports.iter().find(|name| name.split('@').next() == Some(own)) {
        return LoadError::WrongVersion { found: found.clone(), expected: HANDLER_EXPORT };
    }
    let hint = exports.iter().find_map(|name| {
        let plain = name.split('@').next().unwrap_or(name);
        let last = plain.rsplit(['/', ':']).next().unwrap_or(plain);
        if name.contains('/') && plain.starts_with("cofferdam:") {
            Some(format!("; did you mean to export {HANDLER_EXPORT} where it says {name}?"))
        } else if name.starts_with("wasi:http") {
            Some("; it is an HTTP component, made for another host".to_owned())
        } else if last.starts_with("handel") || last.starts_with("handl") {
            Some(format!(
                "; {name} must be inside the interface: write `export cofferdam:plugin/handler@0.1.0` in its world"
            ))
        } else {
            None
        }
    });
    LoadError::NoHandler { expected: HANDLER_EXPORT, exports: list(exports), hint: hint.unwrap_or_default() }
}

/// Whether an import of a component is one that the host offers, by its name.
pub(crate) fn check_import(name: &str) -> Result<(), LoadError> {
    const WASI: [&str; 6] =
        ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"];
    const OWN: [&str; 3] = ["cofferdam:plugin/types", "cofferdam:plugin/log", "cofferdam:plugin/config"];
    let (plain, version) = name.split_once('@').unwrap_or((name, ""));
    let known_wasi = WASI.iter().any(|prefix| plain.starts_with(prefix)) && version.starts_with("0.2.");
    let known_own = OWN.contains(&plain) && version.starts_with("0.1.");
    if known_wasi || known_own {
        return Ok(());
    }
    let hint = if plain.starts_with("wasi:http") {
        ": a plugin has no network of its own"
    } else if plain.starts_with("wasi:") && version.starts_with("0.3") {
        ": this is WASI 0.3; build for 0.2"
    } else if plain.starts_with("cofferdam:") {
        ": it was built against another version of the contract"
    } else {
        ""
    };
    Err(LoadError::UnknownImport { name: name.to_owned(), hint, allowed: ALLOWED })
}

/// Links a core module: a preview 1 program.
fn module(engine: &Engine, module: &Module, spec: &PluginSpec) -> Result<Code, LoadError> {
    if module.get_export("_start").is_none() {
        let exports: Vec<String> = module.exports().map(|export| export.name().to_owned()).collect();
        return Err(LoadError::NotACommand { exports: list(&exports) });
    }
    if let Some(import) = module.imports().find(|import| import.module() != preview1::MODULE) {
        let name = format!("{}::{}", import.module(), import.name());
        let hint = ": a program can only import preview 1 of WASI";
        return Err(LoadError::UnknownImport { name, hint, allowed: preview1::MODULE });
    }
    let needed_bytes = module.resources_required().max_initial_memory_size.unwrap_or(0).saturating_mul(65_536);
    if needed_bytes > spec.limits.memory_bytes {
        return Err(LoadError::Memory { needed_bytes, limit_bytes: spec.limits.memory_bytes });
    }
    let linker = preview1::linker(engine.wasmtime()).map_err(|error| SandboxError::Link { source: error.into() })?;
    let pre = linker
        .instantiate_pre(module)
        .map_err(|error| LoadError::Imports { text: chain(&error), source: error.into() })?;
    Ok(Code::Start(pre))
}

pub(crate) fn compile_error(error: wasmtime::Error) -> LoadError {
    LoadError::Compile { text: chain(&error), source: error.into() }
}

/// An error of the engine with its causes, on one line and of bounded length.
fn chain(error: &wasmtime::Error) -> String {
    let text = format!("{error:#}").replace('\n', " ");
    cofferdam_model::dead_letter::truncated(&text, cofferdam_model::dead_letter::TEXT_BYTES_MAX)
}

/// The first few names, for an error's text.
fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    let shown: Vec<String> =
        names.iter().take(NAMES_MAX).map(|name| name.chars().take(80).collect::<String>()).collect();
    let more = names.len().saturating_sub(NAMES_MAX);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// The runtime that wasmtime-wasi's preview 1 wants to find: entered around a command, never driven, because nothing that a
/// command can reach waits on it.
pub(crate) fn runtime() -> Result<&'static tokio::runtime::Handle, SandboxError> {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.handle());
    }
    let made = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|source| SandboxError::Thread { name: "commands".into(), source })?;
    Ok(RUNTIME.get_or_init(|| made).handle())
}
