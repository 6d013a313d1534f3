//! Suspects: entries that a silent host held when it died, or whose lease ran out unseen.
//!
//! Any of them may be what killed it, so they are taken one at a time, apart from the lane, and run alone: a message's host
//! deaths are then evidence against that one message, and its neighbours are not dead-lettered with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cofferdam_model::Verdict;
use cofferdam_sandbox::Workers;
use cofferdam_streams::{Decided, SettleContext, StreamError, TakeFor, Taken};
use tokio::sync::{mpsc, watch};

use crate::clock;
use crate::lane::{LaneShared, Mode};
use crate::pipeline::{Job, Reader, Received, receive};

/// How long a consumer that holds nothing is kept, in leases: long enough that no slow host is taken for a dead one.
const CONSUMER_KEPT_LEASES: u32 = 120;

/// Looks for suspects of one lane until told to stop.
pub(crate) struct Suspects {
    pub(crate) shared: Arc<LaneShared>,
    /// The thread that suspects run on, apart from the lane's.
    pub(crate) workers: Arc<Workers<Job>>,
    pub(crate) reader: Reader,
    pub(crate) mode: watch::Receiver<Mode>,
}

impl Suspects {
    /// Runs until told to stop.
    pub(crate) async fn run(mut self) {
        loop {
            // A third of the lease, and not in step with other hosts.
            let pause = (self.shared.delivery.lease / 3).mul_f64(0.75 + rand::random::<f64>() / 2.0);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.mode.changed() => if changed.is_err() { return },
            }
            match *self.mode.borrow_and_update() {
                Mode::Stop => return,
                Mode::Pause => continue,
                Mode::Run => {}
            }
            let round = self.round().await;
            *self.shared.suspect.lock().unwrap_or_else(PoisonError::into_inner) = None;
            if let Err(error) = round {
                // A suspect may have become ours in a reply that never came.
                self.shared.reconcile.store(true, Ordering::Relaxed);
                tracing::debug!(stream = %self.shared.keys.stream, %error, "cannot look for suspects now");
            }
        }
    }

    async fn round(&self) -> Result<(), StreamError> {
        let shared = &self.shared;
        for consumer in shared.store.consumers(&shared.keys).await? {
            if consumer.name.starts_with('~') {
                continue;
            }
            // One's own entries are the lane's affair: it renews what it knows, and finds what it does not.
            if *consumer.name == *shared.consumer {
                continue;
            }
            if consumer.pending == 0 {
                if consumer.idle > shared.delivery.lease * CONSUMER_KEPT_LEASES {
                    shared.store.drop_consumer(&shared.keys.stream, &shared.keys.group, &consumer.name).await?;
                }
                continue;
            }
            while *self.mode.borrow() == Mode::Run && shared.seat.current().is_some() {
                let stamp = clock::iso(clock::now_ms());
                let me = TakeFor { consumer: &shared.consumer, plugin: &shared.plugin, now: &stamp };
                let (found, taken) =
                    shared.store.take_suspect(&shared.keys, &me, &consumer.name, shared.delivery.lease).await?;
                if found == 0 {
                    break;
                }
                for suspect in taken {
                    self.run_alone(suspect).await?;
                }
            }
        }
        Ok(())
    }

    /// Runs one suspect with nothing beside it in its job, renewing its lease while it runs, and settles it.
    async fn run_alone(&self, suspect: Taken) -> Result<(), StreamError> {
        let shared = &self.shared;
        let Some(version) = shared.seat.current() else { return Ok(()) };
        let held = [(suspect.entry.id, suspect.token)];
        *shared.suspect.lock().unwrap_or_else(PoisonError::into_inner) = Some(suspect.entry.id);
        shared.counters.received(1);
        let decided = match receive(suspect, &self.reader, &version) {
            Received::Settle(decided) => decided,
            Received::Deliver(delivery) => {
                let (reply, mut verdict) = mpsc::unbounded_channel();
                let stopping = Arc::new(AtomicBool::new(false));
                let job =
                    Job { deliveries: vec![delivery], seat: shared.seat.clone(), reply, stopping: stopping.clone() };
                // No thread to be had: it stays pending, and its lease runs out again.
                if self.workers.submit(job).is_err() {
                    return Ok(());
                }
                let mut heartbeat = tokio::time::interval(shared.delivery.lease / 3);
                heartbeat.tick().await;
                let mut mode = self.mode.clone();
                loop {
                    tokio::select! {
                        decided = verdict.recv() => match decided.and_then(|mut batch| batch.pop()) {
                            Some(decided) => break decided,
                            None => return Ok(()),
                        },
                        _ = heartbeat.tick() => {
                            shared.store.heartbeat(&shared.keys, &shared.consumer, &held).await?;
                        }
                        _ = mode.changed(), if !stopping.load(Ordering::Relaxed) => {
                            stopping.store(*mode.borrow() == Mode::Stop, Ordering::Relaxed);
                        }
                    }
                }
            }
        };
        self.settle(decided).await
    }

    async fn settle(&self, decided: Decided) -> Result<(), StreamError> {
        let shared = &self.shared;
        // The host's own trouble: it stays pending, and its lease runs out again.
        if decided.verdict == Verdict::LeavePending {
            shared.counters.settled(cofferdam_streams::Settled::LeaseLost);
            return Ok(());
        }
        let mut pause = Duration::from_millis(100);
        loop {
            let now_ms = clock::now_ms();
            let now = clock::iso(now_ms);
            let cx = SettleContext { lane: &shared.keys, consumer: &shared.consumer, now_ms, now: &now };
            match shared.store.settle(&cx, std::slice::from_ref(&decided)).await {
                Ok(settled) => {
                    settled.into_iter().for_each(|settled| shared.counters.settled(settled));
                    return Ok(());
                }
                Err(error) if *self.mode.borrow() == Mode::Stop => return Err(error),
                Err(error) => {
                    tracing::warn!(stream = %shared.keys.stream, %error, "cannot settle a suspect; trying again")
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}
