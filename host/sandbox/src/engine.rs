//! Every engine knob, and the clock that stops handlers.
//!
//! One [`Engine`] serves the whole process. Its ticker thread does two things every [`TICK`]: it raises the engine's epoch, at
//! which running guests look up, and it moves the *steady clock* on by the time that has passed. Deadlines are measured on
//! that clock and not on the machine's: when the whole process was stopped or starved, the clock moves by [`STALL_MAX`] at
//! most, so that nobody is charged for the time in which nothing could run. When no call is running, the ticker sleeps.
//!
//! What a plugin may do is decided in `store.rs` and `imports.rs`; nothing here knows a plugin.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Enabled, PoolingAllocationConfig};

use crate::{Digest, SandboxError};

/// How often running guests look up. A handler is stopped within two ticks of its deadline.
pub const TICK: Duration = Duration::from_millis(5);
/// The most that one tick adds to the steady clock: ten times the tick. A longer gap means that the host itself was stopped.
const STALL_MAX: Duration = Duration::from_millis(50);
/// Idle ticks before the ticker sleeps: long enough that a steady trickle of messages does not wake it for each.
const IDLE_TICKS: u32 = 20;

/// Stack of a guest, in bytes: 512 KiB holds the recursion of ordinary parsers, and a thread of ours holds it four times.
pub const WASM_STACK_BYTES: usize = 512 * 1024;
/// Memory of a slot that stays resident between two instances, so that resetting it is a copy and not a system call.
const KEEP_RESIDENT_BYTES: usize = 4 * 1024 * 1024;
/// The same for tables.
const TABLE_KEEP_RESIDENT_BYTES: usize = 1024 * 1024;
/// Slots kept warm beyond those in use; each may hold [`KEEP_RESIDENT_BYTES`].
const WARM_SLOTS_MAX: u32 = 8;
/// Core instances in one component: Python's toolchain makes about 50.
const CORE_INSTANCES_MAX: u32 = 100;
/// Linear memories in one component: one for every module that was composed into it.
const MEMORIES_MAX: u32 = 4;
/// Tables in one component.
const TABLES_MAX: u32 = 8;
/// Elements of one table: Go and Python need some 10,000.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 100_000;
/// Bookkeeping of one instance in the host: 8 MiB fits the largest guests that the toolchains make.
const INSTANCE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Frames kept of a backtrace: what a dead letter has room for.
pub(crate) const BACKTRACE_FRAMES_MAX: usize = 64;

/// What the operator's machine has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Instances that can be alive at once: the worker threads of all plugins and two more.
    pub instances_max: u32,
    /// The largest linear memory that any plugin can be granted, in bytes.
    pub memory_bytes_max: u64,
}

/// The one engine of the process. Cloning it is a reference count.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    wasmtime: wasmtime::Engine,
    config: EngineConfig,
    ticker: Arc<Ticker>,
    thread: Thread,
}

/// What the ticker thread and the callers share.
struct Ticker {
    /// The steady clock, in nanoseconds since the engine was made.
    clock_ns: AtomicU64,
    /// Calls that are running.
    running: AtomicUsize,
    /// Whether the thread sleeps until somebody calls.
    parked: AtomicBool,
    stop: AtomicBool,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Engine {
    /// Makes the engine and starts its ticker. Reserves address space for every slot; memory is only taken by use.
    ///
    /// # Errors
    /// When the machine has not enough address space for the slots, or refuses the thread.
    pub fn new(config: EngineConfig) -> Result<Engine, SandboxError> {
        let wasmtime = wasmtime::Engine::new(&engine_config(config)?)
            .map_err(|source| SandboxError::Engine { config, source: source.into() })?;
        let ticker = Arc::new(Ticker {
            clock_ns: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let (shared, weak) = (Arc::clone(&ticker), wasmtime.weak());
        let thread = thread::Builder::new()
            .name("epoch".into())
            .spawn(move || tick(&shared, || weak.upgrade().map(|engine| engine.increment_epoch()).is_some()))
            .map_err(|source| SandboxError::Thread { name: "epoch".into(), source })?
            .thread()
            .clone();
        Ok(Engine { inner: Arc::new(Inner { wasmtime, config, ticker, thread }) })
    }

    /// What it was made with.
    pub fn config(&self) -> EngineConfig {
        self.inner.config
    }

    /// Names the compiler and its settings: code that was compiled under another name does not run here.
    pub fn compatibility(&self) -> Digest {
        let mut hasher = Sha256Hasher(Sha256::new());
        self.inner.wasmtime.precompile_compatibility_hash().hash(&mut hasher);
        Digest::from_bytes(hasher.0.finalize().into())
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner.wasmtime
    }

    /// The steady clock.
    pub(crate) fn now(&self) -> Duration {
        Duration::from_nanos(self.inner.ticker.clock_ns.load(Ordering::Relaxed))
    }

    /// Keeps the ticker awake for as long as the guard lives.
    pub(crate) fn running(&self) -> Running<'_> {
        let ticker = &self.inner.ticker;
        // The order matters: the ticker says that it parks and then looks for calls; here a call says that it runs and then
        // looks whether the ticker parks. One of the two always sees the other.
        ticker.running.fetch_add(1, Ordering::SeqCst);
        if ticker.parked.load(Ordering::SeqCst) {
            self.inner.thread.unpark();
        }
        Running { ticker }
    }

    /// The time on the steady clock at which a call that starts now has used up `deadline`. One tick is added because the
    /// clock may be about to move: a handler gets all of its time, and at most two ticks more.
    pub(crate) fn deadline(&self, deadline: Duration) -> Duration {
        self.now().saturating_add(deadline).saturating_add(TICK)
    }
}

/// The standard library's own hasher is not the same in every release.
struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

/// One running call.
pub(crate) struct Running<'a> {
    ticker: &'a Ticker,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.ticker.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.ticker.stop.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// The ticker thread. `raise` raises the epoch and says whether the engine still lives.
fn tick(ticker: &Ticker, raise: impl Fn() -> bool) {
    let mut last = Instant::now();
    let mut idle_ticks = 0;
    while !ticker.stop.load(Ordering::SeqCst) {
        idle_ticks = if ticker.running.load(Ordering::SeqCst) == 0 { idle_ticks + 1 } else { 0 };
        if idle_ticks > IDLE_TICKS {
            ticker.parked.store(true, Ordering::SeqCst);
            if ticker.running.load(Ordering::SeqCst) == 0 && !ticker.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            ticker.parked.store(false, Ordering::SeqCst);
            (last, idle_ticks) = (Instant::now(), 0);
            continue;
        }
        thread::sleep(TICK);
        let now = Instant::now();
        let passed = now.duration_since(last).min(STALL_MAX);
        last = now;
        let passed_ns = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        ticker.clock_ns.fetch_add(passed_ns, Ordering::Relaxed);
        if !raise() {
            return;
        }
    }
}

/// The engine's settings, with the reason for each.
fn engine_config(limits: EngineConfig) -> Result<Config, SandboxError> {
    let memory_bytes_max = usize::try_from(limits.memory_bytes_max)
        .map_err(|_| SandboxError::MemoryTooLarge { bytes: limits.memory_bytes_max })?;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(limits.instances_max)
        .total_core_instances(limits.instances_max.saturating_mul(CORE_INSTANCES_MAX))
        .total_memories(limits.instances_max.saturating_mul(MEMORIES_MAX))
        .total_tables(limits.instances_max.saturating_mul(TABLES_MAX))
        // Calls are synchronous and run on their thread's own stack; the pool of others would be 2 GB of address space, writable.
        .total_stacks(1)
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(MEMORIES_MAX)
        .max_tables_per_component(TABLES_MAX)
        .max_component_instance_size(INSTANCE_BYTES_MAX)
        .max_core_instance_size(INSTANCE_BYTES_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(memory_bytes_max)
        .max_unused_warm_slots(WARM_SLOTS_MAX.min(limits.instances_max))
        // These two only help together: the kernel names the dirty pages, and only those are reset.
        .pagemap_scan(Enabled::Auto)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES);

    let mut config = Config::new();
    config
        .allocation_strategy(pool)
        // What stops a loop. The checks take 1.6 of the 8.4 µs of a reused call of the benchmark's handler (measured without them);
        // inlining by this compiler would give back 0.15 of that for three times the time to compile.
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK_BYTES)
        // Without signals-based traps the Spectre mitigations of memory and table accesses would go too.
        .signals_based_traps(true)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(BACKTRACE_FRAMES_MAX))
        // Names come from the name section. Debug information is a parser more on hostile bytes, without a deadline.
        .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable)
        // Replays must answer the same on another processor.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        // Nothing that a handler does not need: most holes of recent years were in these. Exceptions, threads, typed function
        // references and the asynchronous ABI are off because the engine is built without them.
        .gc_support(false)
        .wasm_gc(false)
        .shared_memory(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_custom_page_sizes(false)
        .wasm_stack_switching(false)
        .concurrency_support(false);
    Ok(config)
}
