//! Text from outside made harmless: on a terminal, in a log, in a report.

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
