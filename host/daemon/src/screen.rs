//! What goes to a terminal: escaped, in tables, with progress where somebody waits.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Bytes from attackers are never printed raw: control characters, escape sequences and what turns text around become
/// visible escapes.
pub(crate) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let turns =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || turns { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// The longest text about one plugin, in bytes: far more than anybody reads, and far less than its author can make of a file.
const TEXT_BYTES_MAX: usize = 4_096;

/// The same for a text of several lines, whose ends stay, cut to 4 KiB.
pub(crate) fn safe_lines(text: &str) -> String {
    let head = text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or_default();
    let mut safe = head.split('\n').map(safe).collect::<Vec<_>>().join("\n");
    if safe.len() > TEXT_BYTES_MAX || head.len() < text.len() {
        safe.truncate(safe.floor_char_boundary(TEXT_BYTES_MAX));
        safe.push('…');
    }
    safe
}

/// One line, cut to `width` characters.
pub(crate) fn safe_cut(text: &str, width: usize) -> String {
    let safe = safe(text);
    if safe.chars().count() <= width {
        return safe;
    }
    let mut cut: String = safe.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// Set by a verb that has something to put in order before it ends.
static OUTLIVES_READER: AtomicBool = AtomicBool::new(false);

/// From now on the program goes on when nobody reads its output any more.
pub(crate) fn outlive_reader() {
    OUTLIVES_READER.store(true, Ordering::Relaxed);
}

/// Writes a line to standard output. A reader who has gone away ends the program, as every filter does.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").is_err() && !OUTLIVES_READER.load(Ordering::Relaxed) {
        std::process::exit(0);
    }
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

/// A plain table that fits the terminal.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    if !std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table
}

/// A progress bar on standard error; invisible when nobody looks.
pub(crate) fn progress(total: u64, what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
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
    fn bytes_from_attackers_are_never_printed_raw() {
        assert_eq!(safe("a\u{1b}[31mred\u{7}"), "a\\u{1b}[31mred\\u{7}");
        assert_eq!(safe("evil\u{202e}txt.exe"), "evil\\u{202e}txt.exe");
        assert_eq!(safe("café 测试 😀"), "café 测试 😀");
        assert_eq!(safe_cut("abcdef", 4), "abc…");
    }

    #[test]
    fn a_text_of_lines_is_escaped_and_cut_and_keeps_its_lines() {
        assert_eq!(safe_lines("one\n    two\u{1b}[2J\r"), "one\n    two\\u{1b}[2J\\r");
        let long = safe_lines(&"\u{1}".repeat(1 << 20));
        assert!(long.len() <= TEXT_BYTES_MAX + '…'.len_utf8() && long.ends_with('…'), "{} bytes", long.len());
        assert_eq!(safe_lines(&long), long, "a text that goes two ways is not cut twice");
    }
}
