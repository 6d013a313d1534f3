//! An in-memory model of a Redis server: enough of Redis 7.0 to run every command and every script of `cofferdam-streams`.
//!
//! It has no clock, no threads and no randomness of its own: time comes with each command, and the same commands give the same
//! replies. A [`Model`] is plain data, and a clone of it is a snapshot. What it answers is compared with a real server, reply
//! by reply, in `tests/differential/`.

pub mod check;
mod command;
pub mod host;
mod keyspace;
mod listpack;
pub mod run;
pub mod scenario;
mod scripts;
mod stream;
mod stream_commands;
pub mod world;

pub use check::Violation;
pub use run::{Report, run};
pub use scenario::Scenario;

use std::sync::Arc;

use cofferdam_model::EntryId;
use redis::{RedisError, RedisResult, Value};

use crate::command::Denied;
use crate::keyspace::Keyspace;
use crate::scripts::Library;

/// The data of a server at one moment. Clone is a snapshot: a replica's state, or a point of history to go back to; what is
/// not written to afterwards is shared with the original.
#[derive(Clone, Debug, Default)]
pub struct Model {
    keys: Keyspace,
    library: Library,
    out_of_memory: bool,
    read_only: bool,
}

/// Who holds what of a stream: by group and entry, the consumer and the delivery counter. In order.
pub(crate) type Leases = Vec<((Arc<[u8]>, EntryId), (Arc<[u8]>, i64))>;

/// An error reply without its dash: a code, a space and words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) String);

pub(crate) type Reply = Result<Value, Refusal>;

pub(crate) fn refuse<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(text.into()))
}

impl From<Refusal> for RedisError {
    fn from(refusal: Refusal) -> Self {
        // By way of the client's own parser, so that the error is what the client makes of such a reply.
        let line = format!("-{}\r\n", refusal.0.replace(['\r', '\n'], " "));
        match redis::parse_redis_value(line.as_bytes()).and_then(Value::extract_error) {
            Err(error) => error,
            Ok(_) => RedisError::from((redis::ErrorKind::Parse, "an error reply that is none", line)),
        }
    }
}

impl Model {
    /// An empty server that is a master and has memory to spare.
    pub fn new() -> Self {
        Self::default()
    }

    /// Carries out one command (its name and its arguments) at `now_ms`, the server's wall clock in milliseconds since 1970,
    /// which may go backwards. Replies have the shape that RESP2 gives them. Nothing ever blocks: where a server would wait,
    /// the reply is nil.
    ///
    /// # Errors
    /// The error replies of Redis, as the client's errors.
    pub fn execute(&mut self, now_ms: u64, arguments: &[&[u8]]) -> RedisResult<Value> {
        self.keys.expire(now_ms);
        Ok(self.carry_out(now_ms, arguments)?)
    }

    /// Carries out several commands as MULTI and EXEC do: one that could not be queued keeps all from being done, and one that
    /// fails when its turn comes takes nothing back.
    ///
    /// # Errors
    /// `EXECABORT` when a command could not be queued.
    pub fn transaction(&mut self, now_ms: u64, commands: &[&[&[u8]]]) -> RedisResult<Vec<RedisResult<Value>>> {
        self.keys.expire(now_ms);
        // At its memory limit a server queues nothing at all, not even what reads.
        if self.out_of_memory || commands.iter().any(|arguments| self.admit(arguments).is_err()) {
            let text = "EXECABORT Transaction discarded because of previous errors.";
            return Err(Refusal(text.to_owned()).into());
        }
        let carry_out = |arguments: &&[&[u8]]| self.carry_out(now_ms, arguments).map_err(RedisError::from);
        Ok(commands.iter().map(carry_out).collect())
    }

    /// Puts the server at its memory limit, or gives it memory again. At the limit, commands that may need memory are refused.
    pub fn set_out_of_memory(&mut self, on: bool) {
        self.out_of_memory = on;
    }

    /// Whether it is at its memory limit.
    pub fn is_out_of_memory(&self) -> bool {
        self.out_of_memory
    }

    /// Makes the server a replica, which refuses writes, or a master again.
    pub fn set_read_only(&mut self, on: bool) {
        self.read_only = on;
    }

    /// Forgets the scripts it was taught, as a restart does.
    pub fn forget_scripts(&mut self) {
        self.library = Library::default();
    }

    /// Who holds what of a stream.
    pub(crate) fn leases(&self, key: &str) -> Leases {
        let Ok(Some(stream)) = self.keys.stream(key.as_bytes()) else { return Leases::new() };
        let mut leases = Leases::with_capacity(stream.groups.values().map(|group| group.pending.len()).sum());
        for (name, group) in &stream.groups {
            leases.extend(group.pending.iter().map(|(id, pending)| {
                let place = (name.clone(), EntryId { ms: id.ms, seq: id.seq });
                (place, (pending.consumer.clone(), pending.deliveries))
            }));
        }
        leases
    }

    /// How often streams have been opened for writing: while it stays the same, no lease has moved.
    pub(crate) fn stream_writes(&self) -> u64 {
        self.keys.stream_writes()
    }

    /// What stands between a client's command and its execution.
    fn admit(&self, arguments: &[&[u8]]) -> Result<command::Known, Refusal> {
        let mut known = command::known(arguments, false)?;
        if known.runs_script
            && let Some(announced) = scripts::announced(self, arguments)
        {
            (known.writes, known.needs_memory) = (announced.writes, announced.needs_memory);
        }
        if self.out_of_memory && known.needs_memory {
            return refuse(Denied::OUT_OF_MEMORY);
        }
        if self.read_only && known.writes {
            return refuse(Denied::READ_ONLY);
        }
        Ok(known)
    }

    fn carry_out(&mut self, now_ms: u64, arguments: &[&[u8]]) -> Reply {
        let known = self.admit(arguments)?;
        command::run(self, &known, now_ms, arguments)
    }
}
