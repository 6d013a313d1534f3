//! What a guest says: its log, and the two output streams that are turned into lines of it.
//!
//! Everything is capped here, where it arrives, so that a flood costs the host nothing. Lines are kept as the guest wrote
//! them: whoever prints them must escape what terminals obey.

use std::mem;

use crate::error::Stop;
use crate::invoke::{LogLevel, LogLine};

/// Longest line, in bytes; the rest of it is cut.
pub(crate) const LINE_BYTES_MAX: usize = 4_096;

/// The lines of one delivery.
pub(crate) struct Console {
    lines: Vec<LogLine>,
    lines_max: u32,
    bytes: u64,
    bytes_max: u64,
    dropped: u64,
    stdout: Stdout,
    stderr: Partial,
    /// The last lines on standard error, also when the log was full: they are the reason of a failure.
    last_stderr: String,
    /// Why the guest must end, found by a stream that could not say so itself.
    overflow: Option<usize>,
}

/// Where standard output goes.
enum Stdout {
    /// A handler's: into the log.
    Log(Partial),
    /// A command's: kept, it is the answer.
    Kept { bytes: Vec<u8>, bytes_max: usize },
}

/// A line that is not yet ended.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
}

impl Console {
    /// With `stdout_max`, standard output is an answer of at most that many bytes; without, it is log.
    pub(crate) fn new(lines_max: u32, bytes_max: u64, stdout_max: Option<usize>) -> Self {
        let stdout = match stdout_max {
            Some(bytes_max) => Stdout::Kept { bytes: Vec::new(), bytes_max },
            None => Stdout::Log(Partial::default()),
        };
        Console {
            lines: Vec::new(),
            lines_max,
            bytes: 0,
            bytes_max,
            dropped: 0,
            stdout,
            stderr: Partial::default(),
            last_stderr: String::new(),
            overflow: None,
        }
    }

    /// Forgets the delivery before.
    pub(crate) fn clear(&mut self) {
        self.lines.clear();
        (self.bytes, self.dropped, self.overflow) = (0, 0, None);
        self.last_stderr.clear();
        self.stderr.bytes.clear();
        match &mut self.stdout {
            Stdout::Log(partial) => partial.bytes.clear(),
            Stdout::Kept { bytes, .. } => bytes.clear(),
        }
    }

    /// One line for the log.
    pub(crate) fn line(&mut self, level: LogLevel, mut line: String) {
        if self.is_full() {
            self.dropped += 1;
            return;
        }
        if line.len() > LINE_BYTES_MAX {
            line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
            line.shrink_to_fit();
            line.push('…');
        }
        self.bytes += line.len() as u64;
        self.lines.push(LogLine { level, line });
    }

    fn is_full(&self) -> bool {
        self.lines.len() as u64 >= u64::from(self.lines_max) || self.bytes >= self.bytes_max
    }

    /// Bytes on standard output.
    pub(crate) fn stdout(&mut self, written: &[u8]) -> Result<(), Stop> {
        match &mut self.stdout {
            Stdout::Log(partial) => {
                let mut partial = mem::take(partial);
                let rest = self.skim(&mut partial, written);
                partial.push(rest, |line| self.line(LogLevel::Info, line));
                self.stdout = Stdout::Log(partial);
                Ok(())
            }
            Stdout::Kept { bytes, bytes_max } => {
                if bytes.len().saturating_add(written.len()) > *bytes_max {
                    self.overflow = Some(*bytes_max);
                    return Err(Stop::Output(*bytes_max));
                }
                bytes.extend_from_slice(written);
                Ok(())
            }
        }
    }

    /// Bytes on standard error.
    pub(crate) fn stderr(&mut self, written: &[u8]) {
        let mut partial = mem::take(&mut self.stderr);
        let rest = self.skim(&mut partial, written);
        partial.push(rest, |line| self.stderr_line(line));
        self.stderr = partial;
    }

    /// What must be looked at of bytes that were written: all of them, or when the log is full only the last line that they end and
    /// the one that they begin. The lines before are counted as dropped.
    fn skim<'a>(&mut self, partial: &mut Partial, written: &'a [u8]) -> &'a [u8] {
        if !self.is_full() {
            return written;
        }
        let last_end = |bytes: &[u8]| bytes.iter().rposition(|&byte| byte == b'\n');
        let before_last = last_end(written).and_then(|last| last_end(written.get(..last)?));
        let Some((skipped, rest)) = before_last.and_then(|at| written.split_at_checked(at + 1)) else { return written };
        self.dropped += skipped.iter().filter(|&&byte| byte == b'\n').count() as u64;
        partial.bytes.clear();
        rest
    }

    fn stderr_line(&mut self, line: String) {
        self.last_stderr.clone_from(&line);
        self.line(LogLevel::Warn, line);
    }

    /// Ends the lines that were begun. Called once, when the guest is done.
    pub(crate) fn finish(&mut self) {
        if let Stdout::Log(partial) = &mut self.stdout
            && let Some(line) = partial.take()
        {
            self.line(LogLevel::Info, line);
        }
        if let Some(line) = self.stderr.take() {
            self.stderr_line(line);
        }
    }

    /// The log, with a last line that says how many lines there was no room for.
    pub(crate) fn take_lines(&mut self) -> Vec<LogLine> {
        let mut lines = mem::take(&mut self.lines);
        if self.dropped > 0 {
            let line = format!("{} more lines were dropped: limits.log is reached", self.dropped);
            lines.push(LogLine { level: LogLevel::Warn, line });
        }
        lines
    }

    /// A command's answer.
    pub(crate) fn take_stdout(&mut self) -> Vec<u8> {
        match &mut self.stdout {
            Stdout::Kept { bytes, .. } => mem::take(bytes),
            Stdout::Log(_) => Vec::new(),
        }
    }

    /// The last line on standard error; empty when there was none.
    pub(crate) fn last_stderr(&self) -> &str {
        &self.last_stderr
    }

    /// Whether standard output ran over, and at what size.
    pub(crate) fn overflow(&self) -> Option<usize> {
        self.overflow
    }

    /// What the guest wrote last as warnings, for the text of a trap: a panic's message.
    pub(crate) fn last_words(&self, lines_max: usize) -> String {
        let warnings = self.lines.iter().filter(|line| line.level == LogLevel::Warn && !line.line.trim().is_empty());
        // Rust's advice about an environment that a guest does not have.
        let mut words: Vec<&str> =
            warnings.map(|line| line.line.trim()).filter(|line| !line.starts_with("note: run with")).collect();
        words.drain(..words.len().saturating_sub(lines_max));
        words.join(" / ")
    }
}

impl Partial {
    /// Adds bytes and hands on each line that they end. What does not fit a line is dropped.
    fn push(&mut self, written: &[u8], mut ended: impl FnMut(String)) {
        let mut parts = written.split(|&byte| byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            let room = LINE_BYTES_MAX.saturating_add(4).saturating_sub(self.bytes.len());
            self.bytes.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
            if parts.peek().is_some() {
                ended(self.take().unwrap_or_default());
            }
        }
    }

    fn take(&mut self) -> Option<String> {
        if self.bytes.is_empty() {
            return None;
        }
        Some(String::from_utf8_lossy(&mem::take(&mut self.bytes)).trim_end_matches('\r').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|line| line.line.as_str()).collect()
    }

    #[test]
    fn lines_are_put_together_over_writes_and_counted_when_there_is_no_room() {
        let mut console = Console::new(2, 1_000, None);
        console.stderr(b"one\ntw");
        console.stderr(b"o\nthree\nfo");
        // The log is full from here on: what lies between is counted and not looked at.
        console.stderr(b"ur\n\n\nlast\nand mo");
        assert_eq!(console.last_stderr(), "last");
        console.stderr(b"re");
        console.finish();
        assert_eq!(console.last_stderr(), "and more");
        assert_eq!(texts(&console.take_lines()), ["one", "two", "6 more lines were dropped: limits.log is reached"]);
    }

    #[test]
    fn a_flood_of_line_ends_on_standard_output_is_counted() {
        let mut console = Console::new(1, 1_000, None);
        for _ in 0..3 {
            console.stdout(&[b'\n'; 10_000]).unwrap();
        }
        assert_eq!(texts(&console.take_lines()), ["", "29999 more lines were dropped: limits.log is reached"]);
    }
}
