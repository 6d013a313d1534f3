//! What can go wrong between us and Redis, sorted by what the caller must do. The one place that reads error codes.

use redis::{Arg, Cmd, ErrorKind, RedisError, ServerErrorKind};

/// An error of the streams crate.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No connection, no answer in time, or a connection that broke: a write may or may not have happened.
    #[error("redis does not answer: {source}")]
    Unreachable {
        /// The client's error.
        source: RedisError,
    },
    /// A node that cannot serve now or is not the right one: loading, a replica, failing over, busy with a script.
    #[error("redis is not ready: {source}")]
    NotReady {
        /// The client's error.
        source: RedisError,
    },
    /// Redis refuses writes: at its memory limit, unable to save, or without the replicas it must have.
    #[error("redis refuses writes: {source}")]
    WritesRefused {
        /// The client's error.
        source: RedisError,
    },
    /// The stream or the group is gone: flushed, deleted, or an empty replica took over.
    #[error("the group or its stream is gone: {source}")]
    NoGroup {
        /// The client's error.
        source: RedisError,
    },
    /// A key that must be a stream, or one of our hashes, is something else.
    #[error("{} has the wrong type: {source}", .key.as_deref().unwrap_or("a key"))]
    WrongType {
        /// Its name, where the command names one key; a script's error may name it itself.
        key: Option<String>,
        /// The client's error.
        source: RedisError,
    },
    /// The user may not do this, or the password is wrong.
    #[error("redis denies access: {source}; check the user's ACL (cofferdam doctor lists what is needed)")]
    Denied {
        /// The client's error.
        source: RedisError,
    },
    /// An error reply that none of the above explains.
    #[error("redis answered with an error: {source}")]
    Rejected {
        /// The client's error.
        source: RedisError,
    },
    /// A reply of another shape than the command's documentation promises.
    #[error("redis gave an unexpected reply to {command}: {detail}")]
    UnexpectedReply {
        /// The command or script.
        command: &'static str,
        /// What was found.
        detail: String,
    },
    /// The server is too old, or set up in a way that loses data.
    #[error("{problem}; {mend}")]
    Unsuitable {
        /// What is wrong.
        problem: String,
        /// What to do.
        mend: String,
    },
}

/// What the caller must do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Send the same again after a pause; a fenced script may be repeated whatever became of the first.
    Repeat,
    /// Stop reading, and repeat the write until it is taken.
    StopReading,
    /// Create the group again at its floor, and say what may repeat.
    RecreateGroup,
    /// An operator must act; until then nothing of this lane can be written.
    Operator,
}

impl StreamError {
    /// What to do about it.
    pub fn remedy(&self) -> Remedy {
        match self {
            StreamError::Unreachable { .. } | StreamError::NotReady { .. } => Remedy::Repeat,
            StreamError::WritesRefused { .. } => Remedy::StopReading,
            StreamError::NoGroup { .. } => Remedy::RecreateGroup,
            StreamError::WrongType { .. }
            | StreamError::Denied { .. }
            | StreamError::Rejected { .. }
            | StreamError::UnexpectedReply { .. }
            | StreamError::Unsuitable { .. } => Remedy::Operator,
        }
    }

    /// The same, with the name of the key where a command was answered with an error about its key.
    pub(crate) fn to(self, command: &Cmd) -> Self {
        match self {
            StreamError::WrongType { key: None, source } => StreamError::WrongType { key: key_of(command), source },
            other => other,
        }
    }
}

/// The key that a command names, where it is one.
fn key_of(command: &Cmd) -> Option<String> {
    let mut words = command.args_iter().filter_map(|word| match word {
        Arg::Simple(word) => Some(String::from_utf8_lossy(word).into_owned()),
        _ => None,
    });
    match words.next()?.as_str() {
        "XINFO" | "XGROUP" | "MEMORY" => words.nth(1),
        "XREAD" | "XREADGROUP" | "EVALSHA" => None,
        _ => words.next(),
    }
}

/// How a script's error begins when its user may not send what the script sends: its code is only ERR. Redis 7.0, then later ones.
const DENIED_IN_SCRIPT: [&str; 2] = ["The user executing the script can't ", "ACL failure in script"];

impl From<RedisError> for StreamError {
    fn from(source: RedisError) -> Self {
        match source.kind() {
            // A reply that cannot be read to its end is one whose connection broke in the middle: the server died, or left.
            ErrorKind::Io | ErrorKind::Parse | ErrorKind::ClusterConnectionNotFound => {
                return StreamError::Unreachable { source };
            }
            ErrorKind::AuthenticationFailed => return StreamError::Denied { source },
            ErrorKind::Server(kind) => match kind {
                ServerErrorKind::BusyLoading
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::NoScript => return StreamError::NotReady { source },
                ServerErrorKind::NoPerm => return StreamError::Denied { source },
                _ => {}
            },
            _ => {}
        }
        match source.code() {
            Some("OOM" | "MISCONF" | "NOREPLICAS") => StreamError::WritesRefused { source },
            Some("BUSY" | "UNBLOCKED") => StreamError::NotReady { source },
            Some("NOGROUP") => StreamError::NoGroup { source },
            Some("WRONGTYPE" | "BADDEAD") => StreamError::WrongType { key: None, source },
            Some("NOAUTH" | "WRONGPASS" | "NOPERM") => StreamError::Denied { source },
            _ if source.detail().is_some_and(|text| DENIED_IN_SCRIPT.iter().any(|words| text.starts_with(words))) => {
                StreamError::Denied { source }
            }
            _ if source.is_io_error() || source.is_timeout() || source.is_connection_dropped() => {
                StreamError::Unreachable { source }
            }
            _ => StreamError::Rejected { source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str) -> StreamError {
        let text = format!("-{code} something\r\n");
        let value = redis::parse_redis_value(text.as_bytes()).unwrap();
        value.extract_error().unwrap_err().into()
    }

    #[test]
    fn every_error_code_of_a_stream_host_has_its_remedy() {
        let table = [
            ("NOGROUP", Remedy::RecreateGroup),
            ("UNBLOCKED", Remedy::Repeat),
            ("READONLY", Remedy::Repeat),
            ("MASTERDOWN", Remedy::Repeat),
            ("LOADING", Remedy::Repeat),
            ("CLUSTERDOWN", Remedy::Repeat),
            ("TRYAGAIN", Remedy::Repeat),
            ("NOSCRIPT", Remedy::Repeat),
            ("BUSY", Remedy::Repeat),
            ("OOM", Remedy::StopReading),
            ("MISCONF", Remedy::StopReading),
            ("NOREPLICAS", Remedy::StopReading),
            ("WRONGTYPE", Remedy::Operator),
            ("BADDEAD", Remedy::Operator),
            ("NOPERM", Remedy::Operator),
            ("NOAUTH", Remedy::Operator),
            ("ERR", Remedy::Operator),
        ];
        for (code, remedy) in table {
            assert_eq!(of(code).remedy(), remedy, "{code}");
        }
    }

    #[test]
    fn what_a_script_may_not_send_is_told_from_other_errors_of_scripts() {
        let said = [
            "ERR The user executing the script can't run this command or subcommand script: 06321069, on @user_script:1.",
            "ERR The user executing the script can't access at least one of the keys mentioned in the command arguments script: a2, on @user_script:2.",
            "ERR ACL failure in script: User h has no permissions to run the 'xpending' command script: 06321069, on @user_script:1.",
            "ERR ACL failure in script: No permissions to access a key script: a2e69d92, on @user_script:1.",
        ];
        for text in said {
            assert!(of(text).to_string().contains("check the user's ACL"), "{}", of(text));
        }
        let other = of("ERR user_script:1: attempt to index a nil value script: a2e69d92, on @user_script:1.");
        assert!(matches!(other, StreamError::Rejected { .. }), "{other}");
    }

    #[test]
    fn a_key_of_the_wrong_type_is_named_by_the_command_that_found_it() {
        let found = |words: &[&str]| {
            let mut command = redis::cmd(words[0]);
            command.arg(&words[1..]);
            of("WRONGTYPE").to(&command).to_string()
        };
        assert!(found(&["HGETALL", "a"]).starts_with("a has the wrong type"));
        assert!(found(&["XINFO", "GROUPS", "b"]).starts_with("b has the wrong type"));
        assert!(found(&["XREAD", "STREAMS", "c", "0"]).starts_with("a key has the wrong type"));
    }
}
