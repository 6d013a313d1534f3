//! What the loop needs from outside: somebody who runs deliveries, a wall clock and chance.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cofferdam_model::{Delivery, Fault, HostState, Outcome, RetryPolicy};
use cofferdam_streams::{Evidence, VersionStamp};
use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;

/// What holds for the deliveries of one version of a plugin.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Which version, as outputs and dead letters say.
    pub stamp: Arc<VersionStamp>,
    /// Its retry bounds.
    pub retry: RetryPolicy,
    /// The largest entry that it is given, in bytes.
    pub message_bytes_max: u64,
    /// Digests of versions that were rolled back: what failed under them is not charged to the message.
    pub forgiven: Vec<String>,
}

/// Whoever runs deliveries. None of its methods waits.
pub trait Runner: Send + Sync {
    /// What holds for deliveries that begin now; `None` when no version is live.
    fn terms(&self) -> Option<Arc<Terms>>;

    /// Deliveries that run at once.
    fn threads(&self) -> usize;

    /// Queues a job. Its results go to the job's own channel.
    ///
    /// # Errors
    /// Gives the job back when nothing can run it now: the host's own trouble.
    fn submit(&self, job: Job) -> Result<(), Job>;

    /// Queues a job that may kill the process which runs it: it runs where that harms nobody.
    ///
    /// # Errors
    /// As [`Runner::submit`].
    fn submit_apart(&self, job: Job) -> Result<(), Job>;
}

/// The wall clock and chance, read here and passed down as values.
pub trait Surroundings: Send + Sync {
    /// Now, in milliseconds since 1970.
    fn now_ms(&self) -> u64;

    /// A random number in `0.0..1.0`.
    fn random(&self) -> f64;
}

/// A time in ISO 8601 with microseconds and the zone, as every reader of the envelope's `timestamp` takes it.
pub fn iso(ms: u64) -> String {
    let stamp = Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(0)).unwrap_or_default();
    stamp.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string()
}

/// A delivery that has been run, or could not be.
#[derive(Debug)]
pub struct Ran {
    /// The delivery.
    pub delivery: Delivery,
    /// What came back.
    pub result: Result<Outcome, Fault>,
    /// Under which terms; `None` when there were none any more.
    pub terms: Option<Arc<Terms>>,
    /// What the run left behind.
    pub evidence: Evidence,
    /// What the host was about to do.
    pub host: HostState,
}

/// Deliveries on their way to whoever runs them, in order. What is dropped unrun goes back as a fault of the host, so that
/// nothing which was handed out is ever forgotten.
#[derive(Debug)]
pub struct Job {
    deliveries: VecDeque<Delivery>,
    /// The other end is held by the lane.
    reply: UnboundedSender<Vec<Ran>>,
    /// Set when the host is leaving: what has not begun is given back.
    stopping: Arc<AtomicBool>,
    done: Vec<Ran>,
}

impl Job {
    pub(crate) fn new(
        deliveries: impl Iterator<Item = Delivery>,
        reply: UnboundedSender<Vec<Ran>>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        Job { deliveries: deliveries.collect(), reply, stopping, done: Vec::new() }
    }

    /// The delivery that is to run now; `None` when all have.
    pub fn current(&self) -> Option<&Delivery> {
        self.deliveries.front()
    }

    /// Whether the host is leaving, so that nothing new is to be begun.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The current delivery has come to this.
    pub fn finish(&mut self, result: Result<Outcome, Fault>, terms: Option<Arc<Terms>>, evidence: Evidence) {
        let host = if self.is_stopping() { HostState::Stopping } else { HostState::Running };
        if let Some(delivery) = self.deliveries.pop_front() {
            self.done.push(Ran { delivery, result, terms, evidence, host });
        }
    }

    /// Hands back what has been run so far, so that a slow neighbour does not hold up its settle.
    pub fn hand_back(&mut self) {
        if !self.done.is_empty() {
            // Nobody listens any more when the lane is gone: the entries stay pending and are found again.
            let _ = self.reply.send(std::mem::take(&mut self.done));
        }
    }

    /// Takes the deliveries of a job that nobody could run.
    pub(crate) fn refused(mut self) -> VecDeque<Delivery> {
        std::mem::take(&mut self.deliveries)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        while self.current().is_some() {
            let text = String::from("its run was lost, by a stopping host or a bug of the host");
            self.finish(Err(Fault::Host { text }), None, Evidence::default());
        }
        self.hand_back();
    }
}
