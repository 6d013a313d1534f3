//! The one trait between us and a server: a connection that takes commands. A real Redis stands behind it in production, an
//! in-memory model of one in the simulation, and everything else of this crate runs over either without knowing.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::{Cmd, Pipeline, RedisFuture, Value};

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
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A Redis or a Valkey.
pub(crate) struct RedisServer {
    client: redis::Client,
}

impl RedisServer {
    pub(crate) fn new(url: &str) -> Result<Self, StreamError> {
        Ok(RedisServer { client: redis::Client::open(url)? })
    }
}

impl Server for RedisServer {
    fn open(&self) -> Opening<'_> {
        Box::pin(async {
            let manager = self.client.get_connection_manager_with_config(connection_config()).await?;
            Ok(Arc::new(Managed(manager)) as Arc<dyn Link>)
        })
    }

    fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }
}

fn connection_config() -> ConnectionManagerConfig {
    ConnectionManagerConfig::new()
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_min_delay(Duration::from_millis(50))
        .set_max_delay(Duration::from_secs(1))
        .set_number_of_retries(2)
}

struct Managed(ConnectionManager);

impl Link for Managed {
    fn send<'a>(&'a self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let mut connection = self.0.clone();
        Box::pin(async move { connection.req_packed_command(command).await })
    }

    fn send_all<'a>(&'a self, commands: &'a Pipeline, offset: usize, count: usize) -> RedisFuture<'a, Vec<Value>> {
        let mut connection = self.0.clone();
        Box::pin(async move { connection.req_packed_commands(commands, offset, count).await })
    }
}
