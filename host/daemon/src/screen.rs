//! What goes to a terminal: lines, tables, and progress where somebody waits.

use std::fmt;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::{Cell, ColumnConstraint, ContentArrangement, Row, Width, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Set by a verb that has something to put in order before it ends.
static OUTLIVES_READER: AtomicBool = AtomicBool::new(false);

/// From now on the program goes on when nobody reads its output any more.
pub(crate) fn outlive_reader() {
    OUTLIVES_READER.store(true, Ordering::Relaxed);
}

/// Writes a line to standard output. A reader who has gone away ends the program, as every filter does; what cannot be written for
/// another reason ends it as failed.
pub(crate) fn line(text: &str) {
    let Err(error) = writeln!(std::io::stdout().lock(), "{text}") else { return };
    if OUTLIVES_READER.load(Ordering::Relaxed) {
        return;
    }
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    note(&format!("cofferdam: cannot write to standard output: {error}"));
    std::process::exit(1);
}

/// Writes a line to standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The user and the machine, for the operator log.
pub(crate) fn who() -> String {
    let user = crate::config::environment("USER").or_else(|| crate::config::environment("LOGNAME"));
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::geteuid().as_raw()));
    let host =
        std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| crate::config::environment("HOSTNAME"));
    format!("{user}@{}", host.as_deref().map_or("?", str::trim))
}

/// Columns up to here are never narrowed: numbers, times, states.
const NARROW: usize = 20;
/// The longest word that a column is not made narrower than: a sha256 in hexadecimal.
const WORD_MAX: usize = 64;
/// Blanks beside a column.
const PADDING: usize = 2;

/// A plain table. On a terminal its texts are wrapped between words to fit; words and numbers are never broken. Columns that do not
/// fit even so stand below the others, in a part of their own that begins with the first column.
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Of the terminal, in characters; `None` when the output goes elsewhere.
    width: Option<usize>,
}

/// An empty table with these columns.
pub(crate) fn table(header: &[&str]) -> Table {
    Table { header: header.iter().map(|name| name.to_uppercase()).collect(), rows: Vec::new(), width: terminal_width() }
}

/// The width of the terminal in characters; `None` when the output goes elsewhere.
pub(crate) fn terminal_width() -> Option<usize> {
    if std::io::stdout().is_terminal() { comfy_table::Table::new().width().map(usize::from) } else { None }
}

impl Table {
    /// Adds a row.
    pub(crate) fn add_row<T: Into<Row>>(&mut self, row: T) {
        self.rows.push(row.into().cell_iter().map(Cell::content).collect());
    }

    /// Whether it has no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Its lines, as they are shown.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.to_string().lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
    }

    /// How wide a column is, and the least that it may be made.
    fn widths(&self, column: usize) -> (usize, usize) {
        let rows = self.rows.iter().filter_map(|row| row.get(column));
        let cells: Vec<&String> = self.header.get(column).into_iter().chain(rows).collect();
        let widest = |parts: &mut dyn Iterator<Item = &str>| parts.map(|part| part.chars().count()).max().unwrap_or(0);
        let whole = widest(&mut cells.iter().flat_map(|cell| cell.lines()));
        let word = widest(&mut cells.iter().flat_map(|cell| cell.split_whitespace()));
        (whole, word.clamp(NARROW, WORD_MAX).min(whole))
    }

    /// The columns of each part, by their numbers: as many as fit side by side.
    fn parts(&self) -> Vec<Vec<usize>> {
        let room = self.width.unwrap_or(usize::MAX);
        let least = |column: usize| self.widths(column).1 + PADDING;
        let (mut parts, mut part, mut used) = (Vec::new(), vec![0], least(0));
        for column in 1..self.header.len() {
            if used + least(column) > room && part.len() > 1 {
                parts.push(std::mem::replace(&mut part, vec![0]));
                used = least(0);
            }
            part.push(column);
            used += least(column);
        }
        parts.push(part);
        parts
    }

    /// Some columns, arranged.
    fn part(&self, columns: &[usize]) -> comfy_table::Table {
        let of = |row: &[String]| -> Vec<String> {
            columns.iter().map(|&column| row.get(column).cloned().unwrap_or_default()).collect()
        };
        let mut part = comfy_table::Table::new();
        part.load_style(presets::NOTHING).set_header(of(&self.header));
        self.rows.iter().for_each(|row| _ = part.add_row(of(row)));
        let Some(width) = self.width else {
            part.set_content_arrangement(ContentArrangement::Disabled);
            return part;
        };
        let short = |width: usize| u16::try_from(width).unwrap_or(u16::MAX);
        part.set_content_arrangement(ContentArrangement::Dynamic).set_width(short(width));
        part.set_constraints(columns.iter().map(|&column| match self.widths(column) {
            (whole, least) if least >= whole => ColumnConstraint::ContentWidth,
            (_, least) => ColumnConstraint::LowerBoundary(Width::Fixed(short(least + PADDING))),
        }));
        part
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, columns) in self.parts().iter().enumerate() {
            let between = if at > 0 { "\n\n" } else { "" };
            write!(f, "{between}{}", self.part(columns))?;
        }
        Ok(())
    }
}

/// A progress bar on standard error; invisible when nobody looks, or when nothing tells how much there is.
pub(crate) fn progress(total: u64, what: &str) -> ProgressBar {
    if total == 0 || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{msg:<16} {bar:24} {human_pos:>9}/{human_len} {eta:>4}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
    bar.set_message(what.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_wrapped_between_words_and_words_and_numbers_never() {
        let digest = "0123456789ab".repeat(3);
        let mut table = table(&["version", "handled", "why", "failed"]);
        table.add_row([
            digest.as_str(),
            "46,720",
            "most of its deliveries failed, and few of those before",
            "69 (0.7 %)",
        ]);
        for width in [60, 80, 100] {
            table.width = Some(width);
            let shown = table.to_string();
            for whole in [digest.as_str(), "46,720", "deliveries", "69 (0.7 %)", "HANDLED"] {
                assert!(shown.contains(whole), "{whole} at {width}:\n{shown}");
            }
            assert!(table.lines().all(|line| line.trim_end().chars().count() <= width), "{width}:\n{shown}");
        }
        table.width = None;
        assert_eq!(table.lines().count(), 2, "in a file a row is a line");
    }
}
