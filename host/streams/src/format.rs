//! The format of what we write under `cofferdam:`, and how hosts of neighbouring versions share one Redis.
//!
//! A minor version only adds: a host of the one before leaves what it does not know unread. So hosts whose minor versions are one
//! apart may work side by side, and while an older one lives, all write what it writes: it lowers `cofferdam:format` when it comes,
//! the others look there with every report, and the newest raises it again when no older host is left.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::keys::FORMAT_KEY;
use crate::{Store, StreamError};

/// A format version. `1.1` added the time at which each attempt began to the records of attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Format {
    /// Another one cannot be read.
    pub major: u32,
    /// A later one has more.
    pub minor: u32,
}

/// What this program writes when it may.
const NEWEST: Format = Format { major: 1, minor: 1 };

impl Format {
    /// What this program writes when no older host lives.
    pub fn own() -> Format {
        #[cfg(feature = "mutants")]
        if let Some(older) = crate::mutants::older_format() {
            return older;
        }
        NEWEST
    }

    /// Whether records of attempts say when each began.
    pub(crate) fn has_start(self) -> bool {
        self >= Format { major: 1, minor: 1 }
    }

    /// Whether a program of this format can work with data of the format that `found` names.
    ///
    /// # Errors
    /// [`StreamError::Unsuitable`] with the two versions and the mend.
    pub fn check(self, found: &str) -> Result<(), StreamError> {
        self.refuses(found.parse()?).map_or(Ok(()), Err)
    }

    /// Why a program of this format and data of another do not go together, and what to do; `None` when they do.
    fn refuses(self, found: Format) -> Option<StreamError> {
        let mend = if found.major != self.major || found.minor > self.minor + 1 {
            "use the Cofferdam version that wrote them, or another Redis database"
        } else if found.minor + 1 < self.minor {
            "run a Cofferdam version between the two first, until none of the older hosts is left"
        } else {
            return None;
        };
        let problem = format!("the data in this Redis have format {found}, and this is Cofferdam for format {self}");
        Some(StreamError::Unsuitable { problem, mend: mend.to_owned() })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Format {
    type Err = StreamError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        numbers.map(|(major, minor)| Format { major, minor }).ok_or_else(|| StreamError::Unsuitable {
            problem: format!("{FORMAT_KEY} holds {text:?}, which is no format version such as {NEWEST}"),
            mend: format!("if nothing else uses this Redis: redis-cli SET {FORMAT_KEY} {NEWEST}"),
        })
    }
}

/// The format that is written now, shared by everything that writes.
#[derive(Clone, Debug)]
pub(crate) struct Written(Arc<AtomicU32>);

impl Written {
    pub(crate) fn own() -> Self {
        Written(Arc::new(AtomicU32::new(Format::own().minor)))
    }

    pub(crate) fn format(&self) -> Format {
        Format { major: NEWEST.major, minor: self.0.load(Ordering::Relaxed) }
    }

    fn set(&self, format: Format) {
        self.0.store(format.minor, Ordering::Relaxed);
    }
}

impl Store {
    /// The format that this store writes now.
    pub fn format(&self) -> Format {
        self.written.format()
    }

    /// Whether this program can work with what is stored here. Changes nothing but a Redis that has no format yet.
    ///
    /// # Errors
    /// [`StreamError::Unsuitable`] with the two versions and the mend.
    pub(crate) async fn check_format(&self) -> Result<(), StreamError> {
        let own = Format::own();
        let mut pipe = redis::pipe();
        pipe.cmd("SETNX").arg(FORMAT_KEY).arg(own.to_string()).ignore().cmd("GET").arg(FORMAT_KEY);
        let (found,): (String,) = self.pipeline(&pipe).await?;
        own.check(&found)
    }

    /// Agrees with the other hosts on the format to write: called when a host comes and with each of its reports.
    ///
    /// # Errors
    /// Whatever Redis answers, and [`StreamError::Unsuitable`] when the data are of a format that this program cannot work with:
    /// what was agreed before goes on.
    pub async fn agree_on_format(&self) -> Result<Format, StreamError> {
        let own = Format::own();
        let found: Option<String> = self.query(redis::cmd("GET").arg(FORMAT_KEY)).await?;
        // A flushed Redis has none; nobody has written anything yet.
        let found = found.map_or(Ok(own), |text| text.parse())?;
        if let Some(refusal) = own.refuses(found) {
            return Err(refusal);
        }
        let wanted =
            if found < own && self.oldest_host().await?.is_some_and(|oldest| oldest < own) { found } else { own };
        if wanted != found {
            let () = self.query(redis::cmd("SET").arg(FORMAT_KEY).arg(wanted.to_string())).await?;
            tracing::info!(from = %found, to = %wanted, "the format of what all hosts write");
        }
        #[cfg(feature = "mutants")]
        let wanted = if crate::mutants::writes_newest() { own } else { wanted };
        self.written.set(wanted);
        Ok(wanted)
    }

    /// The oldest format among the hosts that are alive.
    async fn oldest_host(&self) -> Result<Option<Format>, StreamError> {
        let hosts = self.hosts().await?;
        Ok(hosts.iter().filter_map(|host| host.format.parse().ok()).min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_go_together_and_others_are_told_what_to_do() {
        let of = |minor| Format { major: 1, minor };
        assert!(of(1).refuses(of(0)).is_none() && of(1).refuses(of(1)).is_none() && of(1).refuses(of(2)).is_none());
        let mend = |own: Format, found: Format| own.refuses(found).map(|error| error.to_string()).unwrap_or_default();
        assert!(mend(of(1), of(3)).contains("format 1.3") && mend(of(1), of(3)).contains("version that wrote them"));
        assert!(mend(of(3), of(1)).contains("between the two"));
        assert!(mend(of(1), Format { major: 2, minor: 0 }).contains("another Redis database"));
    }

    #[test]
    fn a_format_reads_back_and_nonsense_says_what_to_type() {
        assert_eq!(NEWEST.to_string().parse::<Format>().unwrap(), NEWEST);
        let error = "soup".parse::<Format>().unwrap_err().to_string();
        assert!(error.contains("\"soup\"") && error.contains("redis-cli SET cofferdam:format"), "{error}");
    }
}
