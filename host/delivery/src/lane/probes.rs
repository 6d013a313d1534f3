//! The part of a lane that minds its plugin's breaker: how deliveries went, and the one message that is tried while it is open.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cofferdam_model::breaker::Change;
use cofferdam_model::{Breaker, EntryId};
use tokio::time::Instant;

use super::Lane;

/// What a lane says while its plugin's breaker is open.
const BREAKER_OPEN: &str = "half of the last 100 deliveries failed: reading has stopped, one message at a time is tried, and nothing is charged until it works again";

/// A plugin's breaker, shared by its lanes.
#[derive(Debug)]
pub struct PluginBreaker {
    breaker: Mutex<Breaker>,
    pub(super) began: Instant,
}

impl PluginBreaker {
    /// A closed one.
    pub fn new() -> Self {
        PluginBreaker { breaker: Mutex::default(), began: Instant::now() }
    }

    /// The breaker, and the time on its own clock.
    pub(super) fn now(&self) -> (MutexGuard<'_, Breaker>, Duration) {
        (self.breaker.lock().unwrap_or_else(PoisonError::into_inner), Instant::now() - self.began)
    }

    pub(super) fn is_open(&self) -> bool {
        self.now().0.is_open()
    }
}

impl Default for PluginBreaker {
    fn default() -> Self {
        Self::new()
    }
}

impl Lane {
    /// This read is a probe.
    pub(super) fn begin_probe(&mut self, parked: bool) {
        self.parts.breaker.now().0.begin_probe();
        self.probing = true;
        self.probe_parked = !parked;
    }

    /// Tells the breaker how a delivery went.
    pub(super) fn note_result(&mut self, entry: EntryId, failed: Option<bool>) {
        if self.probe == Some(entry) {
            return self.end_probe(failed);
        }
        let Some(failed) = failed else { return };
        let change = {
            let (mut breaker, now) = self.parts.breaker.now();
            breaker.note(failed, now)
        };
        self.tell(change);
    }

    pub(super) fn end_probe(&mut self, failed: Option<bool>) {
        self.probe = None;
        if std::mem::take(&mut self.probing) {
            let change = {
                let (mut breaker, now) = self.parts.breaker.now();
                breaker.probed(failed, now)
            };
            self.tell(change);
        }
    }

    fn tell(&self, change: Option<Change>) {
        let plugin = &self.parts.plugin;
        match change {
            None => {}
            Some(Change::Opened) => {
                self.parts.counters.hold_back(BREAKER_OPEN);
                tracing::error!(%plugin, stream = %self.parts.keys.stream, "{BREAKER_OPEN}");
            }
            Some(Change::Closed { after }) => {
                self.parts.counters.hold_back("");
                tracing::warn!(%plugin, stream = %self.parts.keys.stream, ?after, "it works again: reading goes on");
            }
        }
    }
}
