//! The Lua scripts and how they are called. Each script's own header says what its keys and arguments are.
//!
//! A script is sent by its digest; a server that does not know it (restart, failover, `SCRIPT FLUSH`) is given the text and
//! asked again. Never inside MULTI: there, `NOSCRIPT` does not stop the rest of the transaction.

use redis::{Cmd, ErrorKind, ServerErrorKind, Value};

use crate::StreamError;
use crate::link::{Link, Through};

/// One script: its text, and the sha1 under which Redis keeps it.
#[derive(Debug)]
pub(crate) struct Script {
    text: String,
    sha: String,
}

impl Script {
    fn new(name: &str, text: &str) -> Self {
        let text = mutated(name, text);
        let sha = redis::Script::new(&text).get_hash().to_owned();
        Script { text, sha }
    }

    /// A call with its keys; arguments are appended to it with [`Cmd::arg`].
    pub(crate) fn call(&self, keys: &[&str]) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.sha).arg(keys.len()).arg(keys);
        command
    }

    /// Sends a call, teaching the server the script when it does not know it.
    pub(crate) async fn send(&self, link: &dyn Link, call: &Cmd) -> Result<Value, StreamError> {
        let mut result = link.send(call).await.and_then(Value::extract_error);
        if matches!(&result, Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)) {
            let () = redis::cmd("SCRIPT").arg("LOAD").arg(&self.text).query_async(&mut Through(link)).await?;
            result = link.send(call).await.and_then(Value::extract_error);
        }
        Ok(result?)
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Scripts {
    pub(crate) settle: Script,
    pub(crate) park: Script,
    pub(crate) take: Script,
    pub(crate) heartbeat: Script,
    pub(crate) trim: Script,
    pub(crate) redrive: Script,
    pub(crate) drop_consumer: Script,
    pub(crate) audit: Script,
    pub(crate) rescue: Script,
}

impl Scripts {
    pub(crate) fn new() -> Self {
        Scripts {
            settle: Script::new("settle", include_str!("scripts/settle.lua")),
            park: Script::new("park", include_str!("scripts/park.lua")),
            take: Script::new("take", include_str!("scripts/take.lua")),
            heartbeat: Script::new("heartbeat", include_str!("scripts/heartbeat.lua")),
            trim: Script::new("trim", include_str!("scripts/trim.lua")),
            redrive: Script::new("redrive", include_str!("scripts/redrive.lua")),
            drop_consumer: Script::new("drop_consumer", include_str!("scripts/drop_consumer.lua")),
            audit: Script::new("audit", include_str!("scripts/audit.lua")),
            rescue: Script::new("rescue", include_str!("scripts/rescue.lua")),
        }
    }
}

#[cfg(not(feature = "mutants"))]
fn mutated(_name: &str, text: &str) -> String {
    text.to_owned()
}

/// The bugs that tests must catch, planted by `COFFERDAM_MUTANT`. Each replaces text that must be there.
#[cfg(feature = "mutants")]
#[allow(clippy::disallowed_methods, reason = "a test-only build chooses its bug by the environment")]
fn mutated(name: &str, text: &str) -> String {
    let replace = |from: &str, to: &str| {
        assert!(text.contains(from), "the mutant no longer finds {from:?} in {name}.lua");
        text.replace(from, to)
    };
    match (std::env::var("COFFERDAM_MUTANT").unwrap_or_default().as_str(), name) {
        ("no-fence", "settle") => replace("local ok = held[id] == token -- fence", "local ok = true"),
        ("ack-first", "settle") => replace(
            "local ok = held[id] == token -- fence",
            "local ok = redis.call('XACK', input, group, id) == 1 and false",
        ),
        _ => text.to_owned(),
    }
}
