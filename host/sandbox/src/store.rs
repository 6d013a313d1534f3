//! What one instance owns in the host: its limits, its meters, and the delivery that it is handling.
//!
//! Functions that a guest may call are in `imports.rs` and `wasi.rs`; they count themselves here. Turning what the meters say
//! into a fault is `invoke.rs`'s business.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cofferdam_model::{EntryId, Message};
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, Store, UpdateDeadline};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::console::Console;
use crate::engine::{TABLE_ELEMENTS_MAX, TICK};
use crate::error::Stop;
use crate::mutants::planted;
use crate::record::Calls;
use crate::time::{Random, VirtualTime};
use crate::{Engine, Plugin, PluginSpec};

/// Tables and core instances of one instance: the most that the engine's slots have room for.
const PARTS_MAX: usize = 100;
/// Handles (streams, pollables, errors) that a guest can hold at once: each costs the host some 100 bytes.
const HANDLES_MAX: usize = 10_000;
/// Room in the hostcall fuel for one event beside its text: the record itself and a few attributes.
const EVENT_FUEL: u64 = 512;
/// Room for the small calls: a log line, a write to a stream.
const CALL_FUEL: u64 = 128 * 1024;

/// What an instance owns in the host.
pub(crate) struct State {
    pub(crate) spec: Arc<PluginSpec>,
    pub(crate) meter: Meter,
    pub(crate) delivery: Delivery,
    /// Handles that the guest holds: streams, pollables.
    pub(crate) table: ResourceTable,
    pub(crate) wait: Wait,
    pub(crate) random: Option<Random>,
    console: Option<Arc<Mutex<Console>>>,
    /// What a command reads and writes; `None` in the handler's world.
    pub(crate) command: Option<Command>,
    /// What was called, when it is recorded.
    pub(crate) calls: Option<Calls>,
    /// For the parts of WASI that are never used by a sealed guest but must be there to be refused: made at first use.
    sealed: Option<WasiCtx>,
}

/// What a command has beside a handler.
pub(crate) struct Command {
    /// The message, as JSON, for components.
    pub(crate) stdin: bytes::Bytes,
    /// Preview 1, for core modules.
    pub(crate) preview1: Option<WasiP1Ctx>,
}

/// Which delivery this is: all that time and randomness may depend on.
pub(crate) struct Delivery {
    pub(crate) stream: Arc<str>,
    pub(crate) id: EntryId,
    pub(crate) attempt: u32,
    pub(crate) started_ms: u64,
    /// How long it may take.
    pub(crate) deadline: Duration,
}

/// Counts what the guest takes, and remembers what it was refused.
#[derive(Default)]
pub(crate) struct Meter {
    memory_limit: usize,
    /// All linear memories of the instance together, in bytes.
    pub(crate) memory_bytes: usize,
    /// Whether memory beyond the limit was asked for and refused.
    pub(crate) memory_refused: Option<usize>,
    table_elements_max: usize,
    /// The elements of a table that was asked for and refused.
    pub(crate) table_refused: Option<usize>,
    host_calls: u64,
    host_calls_max: u64,
}

/// The clocks, for whoever has to wait: the steady one that deadlines are measured on, and the guest's own.
#[derive(Clone)]
pub(crate) struct Wait {
    pub(crate) engine: Engine,
    pub(crate) deadline: Duration,
    pub(crate) deadline_at: Duration,
    pub(crate) time: Arc<VirtualTime>,
}

impl Wait {
    /// Whether the deadline has passed.
    pub(crate) fn check(&self) -> Result<(), Stop> {
        if self.engine.now() >= self.deadline_at && !planted("no-deadline") {
            Err(Stop::Deadline(self.deadline))
        } else {
            Ok(())
        }
    }

    /// Waits, but never past the deadline. `None` waits for ever, so until the deadline.
    pub(crate) fn sleep(&self, duration: Option<Duration>) -> Result<(), Stop> {
        let began = std::time::Instant::now();
        loop {
            self.check()?;
            let left = duration.map_or(TICK, |whole| whole.saturating_sub(began.elapsed()));
            if left.is_zero() {
                return Ok(());
            }
            // In steps of a tick: the steady clock is the judge, and it stands still while the host does.
            std::thread::sleep(left.min(TICK));
        }
    }
}

impl State {
    /// Counts one call of a host function, named as in [`crate::record`].
    pub(crate) fn host_call(&mut self, name: &'static str) -> Result<(), Stop> {
        self.noted(name);
        self.meter.host_calls += 1;
        self.meter.check_calls()
    }

    /// Records a call that is counted elsewhere.
    pub(crate) fn noted(&mut self, name: &'static str) -> &mut Self {
        if let Some(calls) = &mut self.calls {
            *calls.entry(name.into()).or_default() += 1;
        }
        self
    }

    /// Where lines go. Shared with the streams that the guest holds; made at first use.
    pub(crate) fn console_shared(&mut self) -> &Arc<Mutex<Console>> {
        let limits = self.spec.limits;
        let stdout_max = self.command.is_some().then(|| limits.stdout_bytes_max());
        self.console
            .get_or_insert_with(|| Arc::new(Mutex::new(Console::new(limits.log_lines, limits.log_bytes, stdout_max))))
    }

    /// The console, to write to.
    pub(crate) fn console(&mut self) -> MutexGuard<'_, Console> {
        self.console_shared().lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The console, if anything was ever written.
    pub(crate) fn console_if_used(&self) -> Option<MutexGuard<'_, Console>> {
        self.console.as_ref().map(|console| console.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The generator of this delivery.
    pub(crate) fn random(&mut self) -> &mut Random {
        let (spec, delivery) = (&self.spec, &self.delivery);
        self.random.get_or_insert_with(|| {
            Random::new(&spec.digest, &delivery.stream, delivery.id, delivery.attempt, spec.limits.random_bytes)
        })
    }

    /// Makes a reused instance ready for its next delivery. Its memory and its handles stay; everything that is counted,
    /// time and randomness begin anew.
    pub(crate) fn begin(&mut self, delivery: Delivery) {
        self.wait.deadline = delivery.deadline;
        self.wait.deadline_at = self.wait.engine.deadline(delivery.deadline);
        self.wait.time.begin(delivery.started_ms);
        self.meter.host_calls = 0;
        self.meter.memory_refused = None;
        self.meter.table_refused = None;
        self.random = None;
        self.delivery = delivery;
        if let Some(mut console) = self.console_if_used() {
            console.clear();
        }
    }
}

impl Delivery {
    pub(crate) fn new(message: &Message, attempt: u32, started_ms: u64, deadline: Duration) -> Self {
        Delivery { stream: Arc::clone(&message.stream), id: message.id, attempt, started_ms, deadline }
    }
}

impl Meter {
    pub(crate) fn check_calls(&self) -> Result<(), Stop> {
        if self.host_calls > self.host_calls_max { Err(Stop::HostCalls(self.host_calls_max)) } else { Ok(()) }
    }
}

/// A store for one instance of a plugin, with every limit in force and the deadline running: a start function counts too.
pub(crate) fn new_store(plugin: &Plugin, delivery: Delivery, command: Option<Command>) -> Store<State> {
    let (engine, spec) = (plugin.engine(), plugin.shared_spec());
    let limits = spec.limits;
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES_MAX);
    let state = State {
        spec: Arc::clone(spec),
        meter: Meter {
            memory_limit: usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX),
            table_elements_max: usize::try_from(limits.table_elements).unwrap_or(usize::MAX).min(TABLE_ELEMENTS_MAX),
            host_calls_max: limits.host_calls,
            ..Meter::default()
        },
        wait: Wait {
            engine: engine.clone(),
            deadline: delivery.deadline,
            deadline_at: engine.deadline(delivery.deadline),
            time: Arc::new(VirtualTime::new(delivery.started_ms)),
        },
        delivery,
        table,
        random: None,
        console: None,
        command,
        calls: plugin.recording.then(Calls::new),
        sealed: None,
    };
    let mut store = Store::new(engine.wasmtime(), state);
    store.limiter(|state| &mut state.meter);
    // What one call may carry from the guest into the host: the largest answer that can be right, and no more.
    let answer = limits.output_bytes.saturating_mul(2).saturating_add(u64::from(limits.events) * EVENT_FUEL);
    let fuel = answer.max(limits.message_bytes).saturating_add(CALL_FUEL);
    let fuel = if planted("no-hostcall-fuel") { u64::MAX } else { fuel };
    store.set_hostcall_fuel(usize::try_from(fuel).unwrap_or(usize::MAX));
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|store| {
        let state = store.data();
        state.wait.check()?;
        // Functions of WASI that are not ours are counted but cannot fail; they are stopped here.
        state.meter.check_calls()?;
        Ok(UpdateDeadline::Continue(1))
    });
    store
}

impl ResourceLimiter for Meter {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.memory_bytes.saturating_sub(current).saturating_add(desired);
        if total > self.memory_limit && !planted("no-memory-limit") {
            self.memory_refused = Some(total);
            return Ok(false);
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > self.table_elements_max {
            self.table_refused = Some(desired);
            return Ok(false);
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        PARTS_MAX
    }

    fn tables(&self) -> usize {
        PARTS_MAX
    }

    fn memories(&self) -> usize {
        PARTS_MAX
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.meter.host_calls += 1;
        let ctx = self.sealed.get_or_insert_with(|| {
            WasiCtxBuilder::new().allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false).build()
        });
        WasiCtxView { ctx, table: &mut self.table }
    }
}
