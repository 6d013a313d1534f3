//! The one trait between us and a server: a connection that takes commands. A real Redis stands behind it in production, an
//! in-memory model of one in the simulation, and everything else of this crate runs over either without knowing.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerError,
    ServerErrorKind, Value,
};
use tokio::sync::Mutex;

use crate::StreamError;

/// A connection. Commands of several callers may be under way on it at once; their replies keep their order.
pub trait Link: Send + Sync {
    /// Sends one command.
    fn send<'a>(&'a self, command: &'a Cmd) -> RedisFuture<'a, Value>;

    /// Sends several commands in one go; of their replies, `count` from `offset` on are given back. The numbers are redis-rs's
    /// affair: a transaction is several replies to it, of which the last one counts.
    fn send_all<'a>(&'a self, commands: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>>;
}

/// A future of [`Server::open`].
pub type Opening<'a> = std::pin::Pin<Box<dyn Future<Output = Result<Arc<dyn Link>, StreamError>> + Send + 'a>>;

/// Something that connections can be opened to.
pub trait Server: Send + Sync {
    /// Opens a further connection. A broken one opens itself again; what was under way on it fails.
    fn open(&self) -> Opening<'_>;

    /// Where it is, for people.
    fn address(&self) -> String;
}

/// A link as redis-rs wants it, for as long as one call.
pub(crate) struct Through<'a>(pub(crate) &'a dyn Link);

impl ConnectionLike for Through<'_> {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        self.0.send(cmd)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.0.send_all(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// Longest wait for a reply. The client's default of 500 ms is shorter than a slow fsync, and a blocking read needs its
/// block time on top: 2 s, so that shutdown and failover are noticed.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How every connection to a real server behaves.
pub(crate) fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
}

/// Whoever knows where the server is at the moment, and opens a connection to it.
pub(crate) trait Finder: Send + Sync {
    fn find(&self) -> RedisFuture<'_, MultiplexedConnection>;
}

/// A link that opens itself again. A connection that broke, that did not answer in time (it may be half open: nothing else tells),
/// or whose server is no longer the master, is forgotten: what was under way on it fails, and the next command goes by a new one.
/// What fails here is repeated by the caller, which every write of this crate is fenced for.
pub(crate) struct Following {
    finder: Arc<dyn Finder>,
    known: Mutex<Known>,
}

struct Known {
    connection: Option<MultiplexedConnection>,
    /// Rises with every new connection, so that a late failure of an old one does not end its successor.
    generation: u64,
}

impl Following {
    /// Opens one.
    pub(crate) async fn open(finder: Arc<dyn Finder>) -> Result<Arc<dyn Link>, StreamError> {
        let known = Known { connection: Some(finder.find().await?), generation: 0 };
        Ok(Arc::new(Following { finder, known: Mutex::new(known) }))
    }

    async fn current(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let mut known = self.known.lock().await;
        if let Some(connection) = &known.connection {
            return Ok((connection.clone(), known.generation));
        }
        let connection = self.finder.find().await?;
        known.generation += 1;
        known.connection = Some(connection.clone());
        Ok((connection, known.generation))
    }

    async fn forget(&self, generation: u64) {
        let mut known = self.known.lock().await;
        if known.generation == generation {
            known.connection = None;
        }
    }
}

impl Link for Following {
    fn send<'a>(&'a self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let (mut connection, generation) = self.current().await?;
            let reply = connection.req_packed_command(command).await;
            let lost = match &reply {
                Ok(value) => is_of_a_replica(value),
                Err(error) => is_lost(error),
            };
            if lost {
                self.forget(generation).await;
            }
            reply
        })
    }

    fn send_all<'a>(&'a self, commands: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let (mut connection, generation) = self.current().await?;
            let replies = connection.req_packed_commands(commands, offset, count).await;
            let lost = match &replies {
                Ok(values) => values.iter().any(is_of_a_replica),
                Err(error) => is_lost(error),
            };
            if lost {
                self.forget(generation).await;
            }
            replies
        })
    }
}

/// Whether an error means that this connection leads nowhere, or not to the master.
fn is_lost(error: &RedisError) -> bool {
    let broken = error.is_io_error() || error.is_timeout() || error.is_connection_dropped();
    let elsewhere = matches!(
        error.kind(),
        ErrorKind::Parse | ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
    );
    broken || elsewhere || error.code() == Some("UNBLOCKED")
}

/// Whether a reply, or a part of it, is the error of a server that is a replica now.
fn is_of_a_replica(reply: &Value) -> bool {
    let elsewhere = |error: &ServerError| {
        matches!(error.kind(), Some(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown))
            || error.code() == "UNBLOCKED"
    };
    match reply {
        Value::ServerError(error) => elsewhere(error),
        Value::Array(values) => {
            values.iter().any(|value| matches!(value, Value::ServerError(error) if elsewhere(error)))
        }
        _ => false,
    }
}

/// A Redis or a Valkey at one place.
pub(crate) struct RedisServer {
    client: redis::Client,
}

impl RedisServer {
    pub(crate) fn new(url: &str) -> Result<Self, StreamError> {
        Ok(RedisServer { client: redis::Client::open(url)? })
    }
}

impl Finder for redis::Client {
    fn find(&self) -> RedisFuture<'_, MultiplexedConnection> {
        Box::pin(async { self.get_multiplexed_async_connection_with_config(&connection_config()).await })
    }
}

impl Server for RedisServer {
    fn open(&self) -> Opening<'_> {
        Box::pin(Following::open(Arc::new(self.client.clone())))
    }

    fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_became_a_replica_is_left() {
        let reply = |text: &str| redis::parse_redis_value(text.as_bytes()).unwrap();
        assert!(is_of_a_replica(&reply("-READONLY You can't write against a read only replica.\r\n")));
        assert!(is_of_a_replica(&reply("-UNBLOCKED force unblock, instance state changed\r\n")));
        assert!(!is_of_a_replica(&reply("-NOSCRIPT No matching script.\r\n")));
        assert!(!is_of_a_replica(&reply("-OOM command not allowed\r\n")));
        assert!(!is_of_a_replica(&reply("+OK\r\n")));
    }
}
