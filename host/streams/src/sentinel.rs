//! The master that Redis Sentinel names, wherever it is at the moment.
//!
//! ```text
//!   redis+sentinel://user:password@sentinel:26379,sentinel:26379/master-name/db
//! ```
//! User and password are for the Redis servers; the sentinels are asked without one, anew for every connection that is opened.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{ErrorKind, IntoConnectionInfo, RedisError, RedisFuture, RedisResult};
use tokio::sync::Mutex;

use crate::StreamError;
use crate::link::{Finder, Following, Opening, Server, connection_config};

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
        Box::pin(Following::open(self.shared.clone()))
    }

    fn address(&self) -> String {
        self.shared.address.clone()
    }
}

impl Finder for Shared {
    /// Opens a connection to the master of this moment, which has said of itself that it is one.
    fn find(&self) -> RedisFuture<'_, MultiplexedConnection> {
        Box::pin(self.search())
    }
}

impl Shared {
    async fn search(&self) -> RedisResult<MultiplexedConnection> {
        let search = async {
            let client = self.client.lock().await.async_get_client().await?;
            client.get_multiplexed_async_connection_with_config(&connection_config()).await
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
}
