//! The Lua scripts and how they are called. Each script's own header says what its keys and arguments are.
//!
//! A script is sent by its digest; a server that does not know it (restart, failover, `SCRIPT FLUSH`) is given the text and
//! asked again. Never inside MULTI: there, `NOSCRIPT` does not stop the rest of the transaction.

use std::sync::{Arc, OnceLock};

use redis::{Cmd, ErrorKind, ServerErrorKind, Value};

use crate::StreamError;
use crate::link::{Link, Through};
use crate::mutants::mutated;

/// What several scripts share, by the line that stands for it in each.
const SHARED_PARTS: [(&str, &str); 6] = [
    ("-- include clock.lua\n", include_str!("scripts/clock.lua")),
    ("-- include leave.lua\n", include_str!("scripts/leave.lua")),
    ("-- include less.lua\n", include_str!("scripts/less.lua")),
    ("-- include need.lua\n", include_str!("scripts/need.lua")),
    ("-- include owns.lua\n", include_str!("scripts/owns.lua")),
    ("-- include save.lua\n", include_str!("scripts/save.lua")),
];

/// One script: its text, and the sha1 under which Redis keeps it.
#[derive(Debug)]
pub(crate) struct Script {
    text: String,
    sha: String,
}

impl Script {
    fn new(name: &str, text: &str) -> Self {
        let text = SHARED_PARTS.iter().fold(text.to_owned(), |text, (line, part)| text.replace(line, part));
        let text = mutated(name, &text);
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

    /// The mutant `evalsha-in-multi`: the call and an ack in one transaction.
    #[cfg(feature = "mutants")]
    pub(crate) async fn send_in_multi(&self, link: &dyn Link, call: &Cmd, ack: &Cmd) -> Result<Value, StreamError> {
        let mut pipe = redis::pipe();
        pipe.atomic().add_command(call.clone()).add_command(ack.clone()).ignore();
        let mut result: redis::RedisResult<Vec<Value>> = pipe.query_async(&mut Through(link)).await;
        if result.as_ref().is_err_and(|error| error.to_string().to_uppercase().contains("NOSCRIPT")) {
            let () = redis::cmd("SCRIPT").arg("LOAD").arg(&self.text).query_async(&mut Through(link)).await?;
            result = pipe.query_async(&mut Through(link)).await;
        }
        Ok(result?.into_iter().next().unwrap_or(Value::Nil).extract_error()?)
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
    pub(crate) discard: Script,
    pub(crate) drop_consumer: Script,
    pub(crate) audit: Script,
    pub(crate) forget_trimmed: Script,
    pub(crate) rescue: Script,
    pub(crate) own: Script,
    pub(crate) disown: Script,
    pub(crate) read: Script,
    pub(crate) entries: Script,
    pub(crate) create_group: Script,
}

/// They are the same for every store.
static SHARED: OnceLock<Arc<Scripts>> = OnceLock::new();

impl Scripts {
    pub(crate) fn shared() -> Arc<Self> {
        SHARED.get_or_init(|| Arc::new(Scripts::new())).clone()
    }

    /// Their texts as they are sent, by name.
    pub(crate) fn texts(&self) -> Vec<(&'static str, String)> {
        let of = |name, script: &Script| (name, script.text.clone());
        vec![
            of("settle", &self.settle),
            of("park", &self.park),
            of("take", &self.take),
            of("heartbeat", &self.heartbeat),
            of("trim", &self.trim),
            of("redrive", &self.redrive),
            of("discard", &self.discard),
            of("drop_consumer", &self.drop_consumer),
            of("audit", &self.audit),
            of("forget_trimmed", &self.forget_trimmed),
            of("rescue", &self.rescue),
            of("own", &self.own),
            of("disown", &self.disown),
            of("read", &self.read),
            of("entries", &self.entries),
            of("create_group", &self.create_group),
        ]
    }

    fn new() -> Self {
        Scripts {
            settle: Script::new("settle", include_str!("scripts/settle.lua")),
            park: Script::new("park", include_str!("scripts/park.lua")),
            take: Script::new("take", include_str!("scripts/take.lua")),
            heartbeat: Script::new("heartbeat", include_str!("scripts/heartbeat.lua")),
            trim: Script::new("trim", include_str!("scripts/trim.lua")),
            redrive: Script::new("redrive", include_str!("scripts/redrive.lua")),
            discard: Script::new("discard", include_str!("scripts/discard.lua")),
            drop_consumer: Script::new("drop_consumer", include_str!("scripts/drop_consumer.lua")),
            audit: Script::new("audit", include_str!("scripts/audit.lua")),
            forget_trimmed: Script::new("forget_trimmed", include_str!("scripts/forget_trimmed.lua")),
            rescue: Script::new("rescue", include_str!("scripts/rescue.lua")),
            own: Script::new("own", include_str!("scripts/own.lua")),
            disown: Script::new("disown", include_str!("scripts/disown.lua")),
            read: Script::new("read", include_str!("scripts/read.lua")),
            entries: Script::new("entries", include_str!("scripts/entries.lua")),
            create_group: Script::new("create_group", include_str!("scripts/create_group.lua")),
        }
    }
}
