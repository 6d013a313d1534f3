//! The master that Redis Sentinel names, wherever it is at the moment.
//!
//! ```text
//!   redis+sentinel://user:password@sentinel:26379,sentinel:26379/master-name/db
//! ```
//! User and password are for the Redis servers; the sentinels are asked without one. A connection that broke, or whose server
//! is no longer the master, is forgotten: what was under way on it fails, and the next command asks the sentinels anew. What
//! fails here is repeated by the caller, which every write of this crate is fenced for.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, IntoConnectionInfo, Pipeline, RedisError, RedisFuture, RedisResult,
    ServerError, ServerErrorKind, Value,
};
use tokio::sync::Mutex;

use crate::StreamError;
use crate::link::{CONNECT_TIMEOUT, Link, Opening, RESPONSE_TIMEOUT, Server};

/// What an url of Sentinel begins with.
pub(crate) const SENTINEL_SCHEME: &str = "redis+sentinel://";
/// The port of a sentinel that names none.
const SENTINEL_PORT: u16 = 26_379;
/// All sentinels together are given this long to name a master that answers.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The sentinels of one master.
pub(crate) struct Sentinels {
    shared: Arc<Shared>,
}

struct Shared {
    /// One search at a time: all links of a host lose their master in the same moment.
    client: Mutex<SentinelClient>,
    address: String,
}

impl Sentinels {
    /// Reads what follows the scheme in an url.
    pub(crate) fn new(rest: &str) -> Result<Self, StreamError> {
        let (credentials, places) = match rest.rsplit_once('@') {
            Some((credentials, places)) => (format!("{credentials}@"), places),
            None => (String::new(), rest),
        };
        let mut parts = places.trim_end_matches('/').splitn(3, '/');
        let (hosts, master, db) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
        if hosts.is_empty() || master.is_empty() {
            return Err(wrong(
                "a sentinel's url is redis+sentinel://host:port,host:port/master-name or …/master-name/db",
            ));
        }
        let addresses: Vec<String> = hosts.split(',').map(|host| format!("redis://{}", with_port(host))).collect();
        // Everything but the address of the master stands in an url of Redis, which reads it: escapes, the number.
        let template = format!("redis://{credentials}unknown/{}", db.unwrap_or("0")).into_connection_info()?;
        let node = SentinelNodeConnectionInfo::default().set_redis_connection_info(template.redis_settings().clone());
        let client = SentinelClient::build(addresses, master.to_owned(), Some(node), SentinelServerType::Master)?;
        let address = format!("{master} by sentinel {hosts}");
        Ok(Sentinels { shared: Arc::new(Shared { client: Mutex::new(client), address }) })
    }
}

fn wrong(detail: &'static str) -> StreamError {
    RedisError::from((ErrorKind::InvalidClientConfig, detail)).into()
}

fn with_port(host: &str) -> String {
    match host.rsplit_once(':') {
        Some((_, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => host.to_owned(),
        _ => format!("{host}:{SENTINEL_PORT}"),
    }
}

impl Server for Sentinels {
    fn open(&self) -> Opening<'_> {
        Box::pin(async {
            let connection = self.shared.find().await?;
            let known = Mutex::new(Known { connection: Some(connection), generation: 0 });
            Ok(Arc::new(Following { shared: self.shared.clone(), known }) as Arc<dyn Link>)
        })
    }

    fn address(&self) -> String {
        self.shared.address.clone()
    }
}

impl Shared {
    /// Opens a connection to the master of this moment, which has said of itself that it is one.
    async fn find(&self) -> RedisResult<MultiplexedConnection> {
        let search = async {
            let client = self.client.lock().await.async_get_client().await?;
            let config = AsyncConnectionConfig::new()
                .set_response_timeout(Some(RESPONSE_TIMEOUT))
                .set_connection_timeout(Some(CONNECT_TIMEOUT));
            client.get_multiplexed_async_connection_with_config(&config).await
        };
        match tokio::time::timeout(SEARCH_TIMEOUT, search).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) if error.kind() == ErrorKind::AuthenticationFailed => Err(error),
            // During a failover the sentinels name nobody, or somebody who is not there yet. Whatever they say, it comes to
            // this: there is no master now.
            Ok(Err(error)) => Err(nobody(&error.to_string())),
            Err(_) => Err(nobody("no answer in time")),
        }
    }
}

fn nobody(why: &str) -> RedisError {
    std::io::Error::new(std::io::ErrorKind::NotConnected, format!("the sentinels name no master that answers: {why}"))
        .into()
}

/// A link that goes wherever the master is.
struct Following {
    shared: Arc<Shared>,
    known: Mutex<Known>,
}

struct Known {
    connection: Option<MultiplexedConnection>,
    /// Rises with every new connection, so that a late failure of an old one does not end its successor.
    generation: u64,
}

impl Following {
    async fn current(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let mut known = self.known.lock().await;
        if let Some(connection) = &known.connection {
            return Ok((connection.clone(), known.generation));
        }
        let connection = self.shared.find().await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_url_of_sentinel_names_the_sentinels_and_the_master() {
        let address = |rest: &str| Sentinels::new(rest).map(|sentinels| sentinels.address());
        assert_eq!(address("a:1,b:2/master").unwrap(), "master by sentinel a:1,b:2");
        assert_eq!(address("user:p%40ss@a,b:2/master/3").unwrap(), "master by sentinel a,b:2");
        for bad in ["", "a:1", "a:1/", "/master", "a:1/master/x", "a:1/master/1/2"] {
            assert!(address(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_sentinel_without_a_port_has_the_usual_one() {
        assert_eq!(with_port("a"), "a:26379");
        assert_eq!(with_port("a:1"), "a:1");
        assert_eq!(with_port("[::1]"), "[::1]:26379");
        assert_eq!(with_port("[::1]:2"), "[::1]:2");
    }

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
