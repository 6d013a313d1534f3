//! A producer that remembers what it was promised.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::checker::payload;
use crate::servers::connection;

/// When a producer takes an entry for accepted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// When XADD answers.
    Reply,
    /// When a replica has it too: `WAIT 1`.
    Replica,
}

/// Entries that a producer sends in one go, and how often: some 200 in a second.
const SENT_AT_ONCE: u64 = 10;
const SENT_EVERY: Duration = Duration::from_millis(50);

/// A producer at work: it numbers its payloads, sends each one once, and remembers which were accepted.
pub struct Producer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Promised>,
}

/// What a producer was promised.
pub struct Promised {
    /// The accepted numbers, and when their acceptance was read.
    pub accepted: BTreeMap<u64, Instant>,
    /// How many were sent without an answer: they may be there or not.
    pub unknown: u64,
    /// How many were refused by an error, and the first error.
    pub refused: u64,
    /// The first error that Redis answered.
    pub error: Option<String>,
    /// The first number that was not sent.
    pub next: u64,
}

impl Producer {
    /// Starts to publish on `stream:in`, from a number on.
    pub fn start(url: &str, first: u64, promise: Promise) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, stopped) = (String::from(url), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut promised = Promised { accepted: BTreeMap::new(), unknown: 0, refused: 0, error: None, next: first };
            let mut link = None;
            while !stopped.load(Ordering::Relaxed) {
                if link.is_none() {
                    link = connection(&url);
                }
                if let Some(connection) = &mut link
                    && !send(connection, promise, &mut promised)
                {
                    link = None;
                }
                std::thread::sleep(SENT_EVERY);
            }
            promised
        });
        Producer { stop, thread }
    }

    /// Stops it.
    pub fn stop(self) -> Promised {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a producer does not panic")
    }
}

/// Sends the next few; false when the connection broke.
fn send(connection: &mut redis::Connection, promise: Promise, promised: &mut Promised) -> bool {
    let sent = promised.next..promised.next + SENT_AT_ONCE;
    promised.next = sent.end;
    let mut pipe = redis::pipe();
    for seq in sent.clone() {
        pipe.cmd("XADD").arg("stream:in").arg("*").arg("payload").arg(payload(seq)).arg("producer_id").arg("tests");
    }
    if promise == Promise::Replica {
        pipe.cmd("WAIT").arg(1).arg(1_000);
    }
    let Ok(mut replies) = pipe.ignore_errors().query::<Vec<redis::RedisResult<redis::Value>>>(connection) else {
        promised.unknown += SENT_AT_ONCE;
        return false;
    };
    let held = match promise {
        Promise::Reply => true,
        Promise::Replica => matches!(replies.pop(), Some(Ok(redis::Value::Int(1..)))),
    };
    for (seq, reply) in sent.zip(replies) {
        match reply {
            Ok(_) if held => {
                promised.accepted.insert(seq, Instant::now());
            }
            Ok(_) => promised.unknown += 1,
            Err(error) => {
                promised.refused += 1;
                promised.error.get_or_insert_with(|| error.to_string());
            }
        }
    }
    true
}
