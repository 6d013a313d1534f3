//! Threads that belong to one plugin: started when there is work, stopped when there is none, so that the kernel shares the
//! machine between plugins as it does between programs.
//!
//! The queue has no bound of its own: the caller limits what is in flight. What a job is, is the caller's affair too.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Slot;
use crate::engine::WASM_STACK_BYTES;
use crate::invoke::panic_text;
use crate::mutants::planted;

/// Stack of a thread that calls guests: the guest's own and 2 MiB for the host's functions.
pub const STACK_BYTES: usize = WASM_STACK_BYTES + 2 * 1024 * 1024;
/// How long a thread waits for work before it ends.
pub const IDLE: Duration = Duration::from_secs(10);
/// The niceness of a thread on which a guest ran into its deadline: such guests get what the others leave.
const LOW_PRIORITY: i32 = 10;
/// How long such a thread lives on: a priority that was lowered cannot be raised again, so the thread is replaced.
const LOW_PRIORITY_FOR: Duration = Duration::from_secs(30);

type Run<J> = Arc<dyn Fn(&mut Slot, J) + Send + Sync>;

/// The threads of one plugin. Dropping it lets them finish what is queued and then end; it does not wait for them.
pub struct Workers<J: Send + 'static> {
    shared: Arc<Shared<J>>,
}

struct Shared<J> {
    name: String,
    threads_max: usize,
    idle: Duration,
    run: Run<J>,
    queue: Mutex<Queue<J>>,
    /// Something was queued, or the end has come.
    changed: Condvar,
    /// A thread has ended.
    ended: Condvar,
}

struct Queue<J> {
    jobs: VecDeque<J>,
    threads: usize,
    waiting: usize,
    running: usize,
    closed: bool,
}

/// A job that could not be taken, given back.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused<J>(pub J);

impl<J> fmt::Display for Refused<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no thread could be started for the job")
    }
}

impl<J: Send + 'static> fmt::Debug for Workers<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers")
            .field("name", &self.shared.name)
            .field("pending", &self.pending())
            .finish_non_exhaustive()
    }
}

impl<J: Send + 'static> Workers<J> {
    /// Threads for the plugin `name`, at most `threads_max` (and at least one). None is started yet. `run` does one job; a
    /// panic in it ends that job only.
    pub fn new(name: &str, threads_max: usize, run: impl Fn(&mut Slot, J) + Send + Sync + 'static) -> Self {
        Workers::with_idle(name, threads_max, IDLE, run)
    }

    /// The same with another time after which an idle thread ends.
    pub fn with_idle(
        name: &str,
        threads_max: usize,
        idle: Duration,
        run: impl Fn(&mut Slot, J) + Send + Sync + 'static,
    ) -> Self {
        let queue = Queue { jobs: VecDeque::new(), threads: 0, waiting: 0, running: 0, closed: false };
        Workers {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                threads_max: threads_max.max(1),
                idle,
                run: Arc::new(run),
                queue: Mutex::new(queue),
                changed: Condvar::new(),
                ended: Condvar::new(),
            }),
        }
    }

    /// Queues a job and starts a thread for it if none is free and one more is allowed. Never blocks on a job.
    ///
    /// # Errors
    /// Gives the job back when there is no thread at all and the system refuses one.
    pub fn submit(&self, job: J) -> Result<(), Refused<J>> {
        let mut queue = self.shared.lock();
        queue.jobs.push_back(job);
        if queue.waiting >= queue.jobs.len() || queue.threads >= self.shared.threads_max {
            self.shared.changed.notify_one();
            return Ok(());
        }
        match start(&self.shared) {
            Ok(()) => {
                queue.threads += 1;
                Ok(())
            }
            Err(error) if queue.threads > 0 => {
                tracing::warn!(plugin = %self.shared.name, %error, threads = queue.threads, "no further thread can be started");
                self.shared.changed.notify_one();
                Ok(())
            }
            Err(error) => {
                tracing::error!(plugin = %self.shared.name, %error, "no thread can be started");
                match queue.jobs.pop_back() {
                    Some(job) => Err(Refused(job)),
                    None => Ok(()),
                }
            }
        }
    }

    /// Jobs that are queued or running.
    pub fn pending(&self) -> usize {
        let queue = self.shared.lock();
        queue.jobs.len() + queue.running
    }

    /// Threads alive now.
    pub fn threads(&self) -> usize {
        self.shared.lock().threads
    }

    /// Finishes what is queued, ends the threads, and waits for them up to `patience`. Blocks: not for an async executor.
    /// Says whether all have ended.
    pub fn close(self, patience: Duration) -> bool {
        let shared = Arc::clone(&self.shared);
        drop(self);
        let queue = shared.lock();
        let waited = shared.ended.wait_timeout_while(queue, patience, |queue| queue.threads > 0);
        waited.map_or_else(|poisoned| poisoned.into_inner().0.threads, |(queue, _)| queue.threads) == 0
    }
}

impl<J: Send + 'static> Drop for Workers<J> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl<J> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts one thread; the caller counts it, under the same lock.
fn start<J: Send + 'static>(shared: &Arc<Shared<J>>) -> std::io::Result<()> {
    let own = Arc::clone(shared);
    let name = format!("plugin:{}", shared.name.replace('\0', "?"));
    let stack_bytes = if planted("small-stack") { WASM_STACK_BYTES } else { STACK_BYTES };
    thread::Builder::new().name(name).stack_size(stack_bytes).spawn(move || work(&own)).map(drop)
}

/// One thread's life: job after job, until there is none for a while, or it is to be replaced.
fn work<J: Send + 'static>(shared: &Arc<Shared<J>>) {
    let mut slot = Slot::default();
    let mut lowered: Option<Instant> = None;
    let mut queue = shared.lock();
    loop {
        if lowered.is_some_and(|since| since.elapsed() > LOW_PRIORITY_FOR) && !queue.closed {
            // Its successor takes over the queue; when none can be started, this thread goes on.
            if queue.jobs.is_empty() || start(shared).map(|()| queue.threads += 1).is_ok() {
                break;
            }
            lowered = Some(Instant::now());
        }
        let Some(job) = queue.jobs.pop_front() else {
            if queue.closed {
                break;
            }
            queue.waiting += 1;
            let (woken, timeout) =
                shared.changed.wait_timeout(queue, shared.idle).unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            queue.waiting -= 1;
            if timeout.timed_out() && queue.jobs.is_empty() {
                break;
            }
            continue;
        };
        queue.running += 1;
        drop(queue);
        let stopped = slot.deadlines();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (shared.run)(&mut slot, job))) {
            let text = panic_text(panic.as_ref());
            tracing::error!(plugin = %shared.name, %text, "a bug of the host: a job panicked");
            slot.clear();
        }
        if slot.deadlines() > stopped && lowered.is_none() {
            lower_priority();
            lowered = Some(Instant::now());
        }
        queue = shared.lock();
        queue.running -= 1;
    }
    // The instance goes before the thread counts as ended: whoever waited for the end has its slot back.
    drop(queue);
    drop(slot);
    shared.lock().threads -= 1;
    shared.ended.notify_all();
}

/// Lowers this thread alone. Best effort: a machine that refuses runs as fairly as it did before.
fn lower_priority() {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), LOW_PRIORITY);
}
