//! Lines of JSON, from a file or from standard input, plain or packed with gzip: what is on each, and what is wrong with it.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use cofferdam_streams::codec::strict_json;
use flate2::bufread::MultiGzDecoder;

use crate::escape::{safe, safe_cut};

/// The longest line that is taken: far above any event, far below what Redis takes.
const LINE_BYTES_MAX: usize = 16 << 20;

/// What a line holds.
pub(crate) enum Line {
    /// JSON text.
    Event(String),
    /// Nothing: a blank line, a lone bracket or comma.
    Nothing,
    Refused(Refused),
}

/// A line that is no event, and why.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) file: String,
    pub(crate) line: u64,
    pub(crate) reason: String,
    start: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; the line begins: {}", safe(&self.file), self.line, self.reason, self.start)
    }
}

/// A source of lines, read from the start to the end.
pub(crate) struct JsonLines {
    name: String,
    input: Box<dyn BufRead>,
    buffer: Vec<u8>,
    number: u64,
}

impl JsonLines {
    /// Opens a file, or standard input by the name `-`. `read` counts the bytes that have come from it, packed or not.
    pub(crate) fn open(file: &Path, read: Arc<AtomicU64>) -> Result<Self> {
        let stdin = file.as_os_str() == "-";
        let name = if stdin { String::from("(standard input)") } else { file.display().to_string() };
        let raw: Box<dyn Read> = if stdin { Box::new(std::io::stdin()) } else { Box::new(File::open(file)?) };
        let mut input = BufReader::with_capacity(1 << 16, Counted { inner: raw, read });
        // By its content and not by its name: rotated logs are packed under any name. What is no gzip passes untouched.
        let packed = input.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let input: Box<dyn BufRead> = match packed {
            true => Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(input))),
            false => Box::new(input),
        };
        Ok(JsonLines { name, input, buffer: Vec::new(), number: 0 })
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// The source cannot be read any further.
    pub(crate) fn next(&mut self) -> Result<Option<Line>> {
        let buffer = &mut self.buffer;
        buffer.clear();
        if self.input.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', buffer)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let found = if buffer.len() > LINE_BYTES_MAX && buffer.last() != Some(&b'\n') {
            skip_line(&mut self.input)?;
            Err(format!("it is longer than {LINE_BYTES_MAX} bytes"))
        } else {
            event_of(buffer, self.number == 1)
        };
        Ok(Some(match found {
            Ok(Some(text)) => Line::Event(text),
            Ok(None) => Line::Nothing,
            Err(reason) => {
                let start = String::from_utf8_lossy(buffer.get(..200).unwrap_or(buffer));
                let start = safe_cut(start.trim_end(), 60);
                Line::Refused(Refused { file: self.name.clone(), line: self.number, reason, start })
            }
        }))
    }
}

/// Passes over the rest of a line without keeping it.
fn skip_line(input: &mut Box<dyn BufRead>) -> std::io::Result<()> {
    loop {
        let chunk = input.fill_buf()?;
        let (length, end) = match chunk.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (chunk.len(), chunk.is_empty()),
        };
        input.consume(length);
        if end {
            return Ok(());
        }
    }
}

/// Counts what passes, for the progress bar.
struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// The event of a line; `None` when it has none. A line that is JSON as it stands is not touched; only where it is not, the
/// punctuation of a list around it is taken off.
fn event_of(bytes: &[u8], first: bool) -> Result<Option<String>, String> {
    let bytes = if first { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes) } else { bytes };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.trim_matches([' ', '\t', '\r', '\n']),
        Err(error) => return Err(format!("it is not UTF-8 (byte {})", error.valid_up_to() + 1)),
    };
    if matches!(text, "" | "[" | "]" | "," | "]," | "[]") {
        return Ok(None);
    }
    let error = match strict_json(text) {
        Ok(_) => return Ok(Some(text.to_owned())),
        Err(error) => error,
    };
    let bare = |text: &str| text.trim_matches([' ', '\t']).to_owned();
    let without_comma = bare(text.strip_suffix(',').unwrap_or(text));
    let without_start = bare(without_comma.strip_prefix(['[', ',']).unwrap_or(&without_comma));
    let without_end = bare(without_start.strip_suffix(']').unwrap_or(&without_start));
    let found = [without_comma, without_start, without_end].into_iter().find(|text| strict_json(text).is_ok());
    match found {
        Some(text) => Ok(Some(text)),
        // The parser counts lines within the text it was given, which is one line: only its column says something.
        None if text == "{" => {
            Err(String::from("one event must stand on one line; make it so with: jq -c '.[]? // .'"))
        }
        None => Err(format!("it is not JSON: {}", error.to_string().replace("at line 1 ", "at "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_json_is_not_touched() {
        let text = r#"{"big": 1180591620717411303424, "nan": NaN}"#;
        assert_eq!(event_of(text.as_bytes(), false).unwrap().as_deref(), Some(text));
        assert_eq!(event_of(b"[1,2]\r\n", false).unwrap().as_deref(), Some("[1,2]"));
        assert_eq!(event_of(b"\xef\xbb\xbf{}\n", true).unwrap().as_deref(), Some("{}"));
    }

    #[test]
    fn the_punctuation_of_a_list_is_taken_off() {
        for line in ["[{\"a\":[1]},", "{\"a\":[1]},", "{\"a\":[1]}]", " {\"a\":[1]} ,\r\n", ",{\"a\":[1]}"] {
            assert_eq!(event_of(line.as_bytes(), false).unwrap().as_deref(), Some("{\"a\":[1]}"), "{line}");
        }
        for line in ["", "[", "]", ",", "\r\n", "],"] {
            assert_eq!(event_of(line.as_bytes(), false).unwrap(), None, "{line}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused_with_the_reason() {
        assert!(event_of(b"not json", false).unwrap_err().contains("not JSON"));
        assert!(event_of(b"{\"a\": \"\xff\"}", false).unwrap_err().contains("not UTF-8"));
        assert!(event_of(b"  {\n", false).unwrap_err().contains("one line"));
    }
}
