//! What goes to a terminal: lines, tables, and progress where somebody waits.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

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
