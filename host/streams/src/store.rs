//! Connections, and what kind of server stands at their other end.

use std::sync::Arc;

use redis::{Cmd, FromRedisValue, Value};

use crate::StreamError;
use crate::format::Written;
use crate::link::{Link, RedisServer, Server, Through};
use crate::reply::Reply;
use crate::scripts::Scripts;
use crate::sentinel::{SENTINEL_SCHEME, Sentinels};

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// `redis` or `valkey`.
    pub server: String,
    /// Its own version.
    pub version: String,
    /// The Redis version that it is compatible with, as numbers.
    pub compatible: (u32, u32),
    /// `maxmemory-policy`; `None` when the user may not ask.
    pub eviction: Option<String>,
    /// `appendonly`; `None` when the user may not ask.
    pub append_only: Option<bool>,
    /// `appendfsync`.
    pub fsync: Option<String>,
    /// Whether cluster mode is on.
    pub cluster: bool,
    /// `master` or `slave`.
    pub role: String,
}

/// A server, by two connections: reads and settles do not wait for one another's replies.
#[derive(Clone)]
pub struct Store {
    pub(crate) reads: Arc<dyn Link>,
    pub(crate) writes: Arc<dyn Link>,
    server: Arc<dyn Server>,
    pub(crate) scripts: Arc<Scripts>,
    pub(crate) written: Written,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("at", &self.address()).finish()
    }
}

impl Store {
    /// Connects to `url`: `redis://host:port/db`, `redis+unix:///path`, or `redis+sentinel://host:port,host:port/master-name/db`,
    /// with user and password where needed.
    ///
    /// # Errors
    /// [`StreamError::Unreachable`] when nothing answers, [`StreamError::Denied`] when the password is wrong, and
    /// [`StreamError::Rejected`] when the url cannot be read.
    pub async fn connect(url: &str) -> Result<Self, StreamError> {
        match url.strip_prefix(SENTINEL_SCHEME) {
            Some(rest) => Store::open(Arc::new(Sentinels::new(rest)?)).await,
            None => Store::open(Arc::new(RedisServer::new(url)?)).await,
        }
    }

    /// Whether [`connect`](Self::connect) can read an url. Nothing is connected to.
    ///
    /// # Errors
    /// [`StreamError::Rejected`] with what is wrong.
    pub fn check_url(url: &str) -> Result<(), StreamError> {
        match url.strip_prefix(SENTINEL_SCHEME) {
            Some(rest) => Sentinels::new(rest).map(|_| ()),
            None => RedisServer::new(url).map(|_| ()),
        }
    }

    /// Connects to a server, whatever kind it is.
    ///
    /// # Errors
    /// Whatever opening a connection gives.
    pub async fn open(server: Arc<dyn Server>) -> Result<Self, StreamError> {
        let (reads, writes) = (server.open().await?, server.open().await?);
        Ok(Store { reads, writes, server, scripts: Scripts::shared(), written: Written::own() })
    }

    /// Where this store is, for people.
    pub fn address(&self) -> String {
        self.server.address()
    }

    /// Sends one command on the reading connection. For commands without a method of their own.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StreamError> {
        let reply = command.query_async(&mut Through(&*self.reads)).await;
        reply.map_err(|error| StreamError::from(error).to(command))
    }

    /// Sends several commands in one go on the writing connection; their replies in order.
    ///
    /// # Errors
    /// The first error among the replies.
    pub async fn pipeline<T: FromRedisValue>(&self, commands: &redis::Pipeline) -> Result<T, StreamError> {
        Ok(commands.query_async(&mut Through(&*self.writes)).await?)
    }

    /// The same on the reading connection, for commands that only look.
    pub(crate) async fn pipeline_of_reads<T: FromRedisValue>(
        &self,
        commands: &redis::Pipeline,
    ) -> Result<T, StreamError> {
        Ok(commands.query_async(&mut Through(&*self.reads)).await?)
    }

    /// Asks the server what it is.
    ///
    /// # Errors
    /// Whatever Redis answers to INFO; a CONFIG that the user may not read is no error.
    pub async fn facts(&self) -> Result<ServerFacts, StreamError> {
        let info: String = self.query(redis::cmd("INFO").arg("everything")).await?;
        let of = |name: &str| {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(|v| v.trim().to_owned())
        };
        let compatible = of("redis_version").unwrap_or_default();
        let mut numbers = compatible.split('.').map(|part| part.parse().unwrap_or(0));
        let mut facts = ServerFacts {
            server: of("server_name").unwrap_or_else(|| String::from("redis")),
            version: of("valkey_version").unwrap_or_else(|| compatible.clone()),
            compatible: (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)),
            cluster: of("cluster_enabled").as_deref() == Some("1"),
            role: of("role").unwrap_or_default(),
            ..ServerFacts::default()
        };
        for name in ["maxmemory-policy", "appendonly", "appendfsync"] {
            let Ok(value) = self.query::<Vec<String>>(redis::cmd("CONFIG").arg("GET").arg(name)).await else {
                continue;
            };
            let value = value.into_iter().nth(1);
            match name {
                "maxmemory-policy" => facts.eviction = value,
                "appendonly" => facts.append_only = value.map(|v| v == "yes"),
                _ => facts.fsync = value,
            }
        }
        Ok(facts)
    }

    /// Checks that the server can keep our promises, and that what is stored there is of our format. Gives back what is
    /// only worth a warning.
    ///
    /// # Errors
    /// [`StreamError::Unsuitable`] with the problem and the mend.
    pub async fn check(&self) -> Result<Vec<String>, StreamError> {
        let facts = self.facts().await?;
        let unsuitable = |problem: String, mend: &str| Err(StreamError::Unsuitable { problem, mend: mend.to_owned() });
        if facts.compatible < (7, 0) {
            let problem =
                format!("{} {} is too old: Cofferdam needs Redis 7.0 or Valkey 7.2", facts.server, facts.version);
            return unsuitable(problem, "upgrade the server");
        }
        if facts.cluster {
            return unsuitable("this is a Redis Cluster".into(), "use a single master (with replicas or Sentinel)");
        }
        if let Some(policy) = facts.eviction.as_deref().filter(|policy| *policy != "noeviction") {
            let problem =
                format!("maxmemory-policy is {policy}: Redis may throw a whole stream away, its pending entries too");
            return unsuitable(problem, "run: redis-cli CONFIG SET maxmemory-policy noeviction");
        }
        self.check_format().await?;
        let mut warnings = Vec::new();
        match (facts.append_only, facts.fsync.as_deref()) {
            (Some(false), _) => warnings.push(String::from(
                "appendonly is off: a restart of Redis loses everything since its last snapshot; run: redis-cli CONFIG SET appendonly yes",
            )),
            (Some(true), Some("always")) | (None, _) => {}
            (Some(true), fsync) => warnings.push(format!(
                "appendfsync is {}: a power cut can lose the last second or two; CONFIG SET appendfsync always loses nothing",
                fsync.unwrap_or("unknown")
            )),
        }
        if facts.eviction.is_none() {
            warnings.push(String::from("this user may not read CONFIG: make sure that maxmemory-policy is noeviction"));
        }
        Ok(warnings)
    }

    /// What kind of key this is: `stream`, `none`, or something that no event can be written to.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn key_type(&self, key: &str) -> Result<String, StreamError> {
        self.query(redis::cmd("TYPE").arg(key)).await
    }

    /// Deletes a consumer that holds nothing.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn drop_consumer(&self, stream: &str, group: &str, consumer: &str) -> Result<bool, StreamError> {
        let script = &self.scripts.drop_consumer;
        let mut call = script.call(&[stream]);
        call.arg(group).arg(consumer);
        let reply = script.send(&*self.writes, &call).await?;
        Ok(Reply { command: "drop_consumer" }.int(&reply)? == 1)
    }

    /// Entries of a stream by range, oldest first.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn range(
        &self,
        stream: &str,
        from: &str,
        to: &str,
        count: usize,
    ) -> Result<Vec<crate::RawEntry>, StreamError> {
        let reply: Value =
            self.query(redis::cmd("XRANGE").arg(stream).arg(from).arg(to).arg("COUNT").arg(count)).await?;
        Reply { command: "XRANGE" }.entries(reply)
    }

    /// Entries of a stream by range, newest first.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn range_back(
        &self,
        stream: &str,
        to: &str,
        from: &str,
        count: usize,
    ) -> Result<Vec<crate::RawEntry>, StreamError> {
        let reply: Value =
            self.query(redis::cmd("XREVRANGE").arg(stream).arg(to).arg(from).arg("COUNT").arg(count)).await?;
        Reply { command: "XREVRANGE" }.entries(reply)
    }

    /// Waits for entries after `after`, no longer than 2 s; none when none came. On a connection of the caller's own.
    ///
    /// # Errors
    /// Whatever Redis answers.
    pub async fn wait_for(
        connection: &dyn Link,
        stream: &str,
        after: &str,
        count: usize,
    ) -> Result<Vec<crate::RawEntry>, StreamError> {
        let mut command = redis::cmd("XREAD");
        command.arg("BLOCK").arg(2_000).arg("COUNT").arg(count).arg("STREAMS").arg(stream).arg(after);
        let reply: Value = command.query_async(&mut Through(connection)).await?;
        crate::fetch::single_stream(reply)
    }

    /// A further connection, for somebody who blocks.
    ///
    /// # Errors
    /// Whatever the connection attempt gives.
    pub async fn further_connection(&self) -> Result<Arc<dyn Link>, StreamError> {
        self.server.open().await
    }
}
