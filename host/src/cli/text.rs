//! Text for terminals: escaping, sizes, times and tables.

use std::time::{Duration, UNIX_EPOCH};

/// Makes text of a guest or a daemon harmless for a terminal: control characters, line ends among them, and the invisible ones
/// that reorder text are written as escapes, so that nothing can pass for something else.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' || reorders(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Whether a character changes the order in which others are shown (Unicode Bidirectional Algorithm, UAX 9) or ends a line.
fn reorders(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A number of bytes with at most one decimal: `118 KiB`.
pub(super) fn bytes(number: u64) -> String {
    bytesize::ByteSize(number).display().iec().to_string()
}

/// A Unix time in milliseconds as `2026-08-20T09:30:00.123Z`.
pub(super) fn time(unix_ms: u64) -> String {
    // The year 9999 is the last one that the format has.
    let bounded = unix_ms.min(253_402_300_799_999);
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(bounded)).to_string()
}

/// A time span with three digits that mean something: `0.95 us`, `61.9 us`, `4.10 ms`, `1.20 s`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if time.is_zero() => "0 us".into(),
        _ if seconds < 1e-5 => format!("{:.2} us", seconds * 1e6),
        _ if seconds < 1e-4 => format!("{:.1} us", seconds * 1e6),
        _ if seconds < 1e-3 => format!("{:.0} us", seconds * 1e6),
        _ if seconds < 1.0 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

/// Rows as lines with aligned columns; the last column is not padded.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_the_cursor_is_escaped() {
        for (text, expected) in [
            ("plain äöü ✔\ttab", "plain äöü ✔\ttab"),
            ("a\nb\r", "a\\nb\\r"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("\u{202e}evil\u{2066}\u{2028}", "\\u{202e}evil\\u{2066}\\u{2028}"),
        ] {
            assert_eq!(clean(text), expected);
        }
    }

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59.999Z");
        assert_eq!(span(Duration::ZERO), "0 us");
        assert_eq!(span(Duration::from_nanos(950)), "0.95 us");
        assert_eq!(span(Duration::from_nanos(61_900)), "61.9 us");
        assert_eq!(span(Duration::from_micros(619)), "619 us");
        assert_eq!(span(Duration::from_micros(4_100)), "4.10 ms");
        assert_eq!(span(Duration::from_millis(1_200)), "1.20 s");
        assert_eq!(bytes(118 << 10), "118.0 KiB");
    }

    #[test]
    fn columns_are_aligned() {
        let row = |cells: [&str; 2]| cells.map(String::from).to_vec();
        assert_eq!(table(&[row(["a", "b"]), row(["long", ""])]), "a     b\nlong\n");
        assert_eq!(table(&[]), "");
    }
}
