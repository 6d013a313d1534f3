//! The time and the chance of a delivery: both functions of which delivery it is, so that it can be run again and answer the
//! same. Nothing here reads a clock of the machine.

use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use cofferdam_model::EntryId;
use sha2::{Digest as _, Sha256};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::Pollable;

use crate::Digest;
use crate::error::Stop;

/// Where the monotonic clock begins: one second, because Go takes a zero for a broken clock.
const BEGIN_NS: u64 = 1_000_000_000;
/// What one reading adds, in nanoseconds: time must pass for whoever watches it, and this is coarse enough to measure nothing.
const STEP_NS: u64 = 1_000;
/// Resolution that guests are told of, in nanoseconds.
pub(crate) const RESOLUTION_NS: u64 = STEP_NS;

/// The clocks that a guest sees. They move by a step at every reading and by the length of every finished sleep, and by
/// nothing else.
#[derive(Debug)]
pub(crate) struct VirtualTime {
    started_ms: AtomicU64,
    now_ns: AtomicU64,
    /// The earliest alarm that was found not due since [`VirtualTime::rest`].
    wake_ns: AtomicU64,
}

impl VirtualTime {
    pub(crate) fn new(started_ms: u64) -> Self {
        VirtualTime {
            started_ms: AtomicU64::new(started_ms),
            now_ns: AtomicU64::new(BEGIN_NS),
            wake_ns: AtomicU64::new(u64::MAX),
        }
    }

    /// Begins anew for the next delivery.
    pub(crate) fn begin(&self, started_ms: u64) {
        self.started_ms.store(started_ms, Ordering::Relaxed);
        self.now_ns.store(BEGIN_NS, Ordering::Relaxed);
    }

    /// A reading of the monotonic clock, in nanoseconds.
    pub(crate) fn monotonic_ns(&self) -> u64 {
        self.now_ns.fetch_add(STEP_NS, Ordering::Relaxed).saturating_add(STEP_NS)
    }

    /// A reading of the wall clock, in whole milliseconds since 1970: the recorded start, and the time that has passed on
    /// the other clock since.
    pub(crate) fn wall_ms(&self) -> u64 {
        let passed_ns = self.monotonic_ns().saturating_sub(BEGIN_NS);
        self.started_ms.load(Ordering::Relaxed).saturating_add(passed_ns / 1_000_000)
    }

    /// The time without a reading.
    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Relaxed)
    }

    /// Forgets the alarms that were found not due.
    pub(crate) fn rest(&self) {
        self.wake_ns.store(u64::MAX, Ordering::Relaxed);
    }

    /// The earliest of them since.
    pub(crate) fn wake_ns(&self) -> Option<u64> {
        Some(self.wake_ns.load(Ordering::Relaxed)).filter(|&wake| wake != u64::MAX)
    }

    /// Moves on to the end of a sleep.
    pub(crate) fn slept_until(&self, wake_ns: u64) {
        self.now_ns.fetch_max(wake_ns, Ordering::Relaxed);
    }
}

/// A time that a guest waits for.
pub(crate) struct Alarm {
    pub(crate) at_ns: u64,
    pub(crate) time: Arc<VirtualTime>,
}

#[async_trait]
impl Pollable for Alarm {
    async fn ready(&mut self) {
        future::poll_fn(|_| {
            if self.time.now_ns() >= self.at_ns {
                return Poll::Ready(());
            }
            self.time.wake_ns.fetch_min(self.at_ns, Ordering::Relaxed);
            Poll::Pending
        })
        .await;
    }
}

/// Random bytes of one delivery: SHA-256 over the delivery's name and a counter. Stable for ever, unlike the generators of
/// libraries, and no secret: a guest that needs one must be given it.
pub(crate) struct Random {
    seed: [u8; 32],
    blocks: u64,
    block: [u8; 32],
    used: usize,
    given: u64,
    given_max: u64,
}

impl Random {
    /// Of the delivery named, at most `given_max` bytes.
    pub(crate) fn new(digest: &Digest, stream: &str, id: EntryId, attempt: u32, given_max: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"cofferdam random 1");
        hash.update(digest.as_bytes());
        hash.update((stream.len() as u64).to_le_bytes());
        hash.update(stream.as_bytes());
        hash.update(id.ms.to_le_bytes());
        hash.update(id.seq.to_le_bytes());
        hash.update(attempt.to_le_bytes());
        Random { seed: hash.finalize().into(), blocks: 0, block: [0; 32], used: 32, given: 0, given_max }
    }

    /// That many bytes, asked for by a guest.
    ///
    /// # Errors
    /// When the delivery has had its share; found before anything is allocated.
    pub(crate) fn bytes(&mut self, len: u64) -> Result<Vec<u8>, Stop> {
        self.take(len)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        self.fill(&mut bytes);
        Ok(bytes)
    }

    /// Eight of them as a number.
    pub(crate) fn number(&mut self) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        self.take(bytes.len() as u64)?;
        self.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn take(&mut self, len: u64) -> Result<(), Stop> {
        self.given = self.given.saturating_add(len);
        if self.given > self.given_max { Err(Stop::Random(self.given_max)) } else { Ok(()) }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.used == self.block.len() {
                let mut hash = Sha256::new();
                hash.update(self.seed);
                hash.update(self.blocks.to_le_bytes());
                self.block = hash.finalize().into();
                self.blocks += 1;
                self.used = 0;
            }
            *byte = self.block.get(self.used).copied().unwrap_or_default();
            self.used += 1;
        }
    }
}
