//! Preview 1 for commands: wasmtime-wasi's, with three functions of ours in place of its own.
//!
//! Waiting must end at the deadline, randomness must be the delivery's, and an exit code must arrive as it was given.

use wasmtime::{Caller, Extern, Linker};
use wasmtime_wasi::p1::{WasiP1Ctx, add_to_linker_sync};

use crate::error::Stop;
use crate::store::State;

/// The module that preview 1 is imported from.
pub(crate) const MODULE: &str = "wasi_snapshot_preview1";
/// Subscriptions of one wait: a program of one thread that cannot open anything has four things to wait for.
const SUBSCRIPTIONS_MAX: usize = 64;

const ERRNO_SUCCESS: i32 = 0;
const ERRNO_BADF: u16 = 8;
const ERRNO_FAULT: i32 = 21;
const ERRNO_INVAL: i32 = 28;

/// Everything that a program may import.
pub(crate) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    add_to_linker_sync(&mut linker, context)?;
    linker.allow_shadowing(true);
    linker.func_wrap(MODULE, "poll_oneoff", poll_oneoff)?;
    linker.func_wrap(MODULE, "random_get", random_get)?;
    linker.func_wrap(MODULE, "proc_exit", |_: Caller<'_, State>, code: i32| -> wasmtime::Result<()> {
        Err(Stop::Exit(code).into())
    })?;
    linker.allow_shadowing(false);
    Ok(linker)
}

fn context(state: &mut State) -> &mut WasiP1Ctx {
    // Counted here because wasmtime-wasi asks for its context once a call; the flood is stopped at the next tick.
    let _ = state.host_call(MODULE);
    state.command.as_mut().and_then(|command| command.preview1.as_mut()).expect("a command's store has preview 1")
}

fn random_get(mut caller: Caller<'_, State>, pointer: i32, len: i32) -> wasmtime::Result<i32> {
    caller.data_mut().host_call("wasi_snapshot_preview1#random_get")?;
    let bytes = caller.data_mut().random().bytes(u64::from(len.cast_unsigned()))?;
    Ok(if write(&mut caller, pointer, &bytes).is_some() { ERRNO_SUCCESS } else { ERRNO_FAULT })
}

/// One thing that is waited for.
struct Subscription {
    userdata: u64,
    kind: Kind,
}

enum Kind {
    /// Due at this time of the guest's clock.
    Clock { at_ns: u64 },
    /// A stream: always ready, if there is one.
    Stream { tag: u8, file: u32 },
}

fn poll_oneoff(
    mut caller: Caller<'_, State>,
    subscriptions: i32,
    events: i32,
    count: i32,
    stored: i32,
) -> wasmtime::Result<i32> {
    caller.data_mut().host_call("wasi_snapshot_preview1#poll_oneoff")?;
    let count = usize::try_from(count.cast_unsigned()).unwrap_or(usize::MAX);
    if count == 0 || count > SUBSCRIPTIONS_MAX {
        return Ok(ERRNO_INVAL);
    }
    let Some(asked) = read_subscriptions(&mut caller, subscriptions, count) else { return Ok(ERRNO_FAULT) };
    let wait = caller.data().wait.clone();
    let stream_ready = asked.iter().any(|one| matches!(one.kind, Kind::Stream { .. }));
    let earliest = asked.iter().filter_map(|one| match one.kind {
        Kind::Clock { at_ns } => Some(at_ns),
        Kind::Stream { .. } => None,
    });
    if let Some(at_ns) = earliest.min().filter(|_| !stream_ready) {
        let left = std::time::Duration::from_nanos(at_ns.saturating_sub(wait.time.now_ns()));
        wait.sleep(Some(left))?;
        wait.time.slept_until(at_ns);
    }
    let now_ns = wait.time.now_ns();
    let mut written = 0u32;
    for one in asked {
        let (error, tag, bytes) = match one.kind {
            Kind::Clock { at_ns } if at_ns > now_ns => continue,
            Kind::Clock { .. } => (0, 0, 0u64),
            Kind::Stream { tag, file: 0..=2 } => (0, tag, 1),
            Kind::Stream { tag, .. } => (ERRNO_BADF, tag, 0),
        };
        let mut event = [0u8; 32];
        put(&mut event, 0, &one.userdata.to_le_bytes());
        put(&mut event, 8, &error.to_le_bytes());
        put(&mut event, 10, &[tag]);
        put(&mut event, 16, &bytes.to_le_bytes());
        let at = events.wrapping_add((written * 32).cast_signed());
        if write(&mut caller, at, &event).is_none() {
            return Ok(ERRNO_FAULT);
        }
        written += 1;
    }
    Ok(if write(&mut caller, stored, &written.to_le_bytes()).is_some() { ERRNO_SUCCESS } else { ERRNO_FAULT })
}

/// Reads the guest's list of `count` records of 48 bytes; `None` when it is not in its memory.
fn read_subscriptions(caller: &mut Caller<'_, State>, pointer: i32, count: usize) -> Option<Vec<Subscription>> {
    const BYTES: usize = 48;
    const ABSOLUTE: u16 = 1;
    const MONOTONIC: u32 = 1;
    let memory = caller.get_export("memory").and_then(Extern::into_memory)?;
    let (data, state) = memory.data_and_store_mut(&mut *caller);
    let start = usize::try_from(pointer.cast_unsigned()).ok()?;
    let bytes = data.get(start..start.checked_add(count.checked_mul(BYTES)?)?)?;
    let now_ns = state.wait.time.now_ns();
    let wall_ns = state.wait.time.wall_ms().saturating_mul(1_000_000);
    let one = |record: &[u8]| {
        let userdata = u64::from_le_bytes(array(record, 0)?);
        let tag = *record.get(8)?;
        let word = u32::from_le_bytes(array(record, 16)?);
        let kind = if tag == 0 {
            let timeout = u64::from_le_bytes(array(record, 24)?);
            let absolute = u16::from_le_bytes(array(record, 40)?) & ABSOLUTE != 0;
            let at_ns = match (absolute, word == MONOTONIC) {
                (false, _) => now_ns.saturating_add(timeout),
                (true, true) => timeout,
                (true, false) => now_ns.saturating_add(timeout.saturating_sub(wall_ns)),
            };
            Kind::Clock { at_ns }
        } else {
            Kind::Stream { tag, file: word }
        };
        Some(Subscription { userdata, kind })
    };
    bytes.chunks_exact(BYTES).map(one).collect()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn put(event: &mut [u8; 32], at: usize, bytes: &[u8]) {
    if let Some(place) = event.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Writes into the guest's memory; `None` when it has none there.
fn write(caller: &mut Caller<'_, State>, pointer: i32, bytes: &[u8]) -> Option<()> {
    let memory = caller.get_export("memory").and_then(Extern::into_memory)?;
    memory.write(caller, usize::try_from(pointer.cast_unsigned()).ok()?, bytes).ok()
}
