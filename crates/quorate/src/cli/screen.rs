//! Where output goes and what it looks like.
//!
//! Data goes to standard output, everything else to standard error, so that a pipe gets data only.
//! Text is composed without colour; [`paint`] colours the few symbols that carry a state, and
//! `anstream` takes the colours out again where nobody sees them. So a symbol never depends on
//! its colour, and a snapshot in a test is what a person reads.

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, Table, presets};
use quorate_model::time::WallTime;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For people with wide screens: more columns
    Wide,
    /// For programs
    Json,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

impl Colour {
    /// Decides for the whole process.
    pub(crate) fn choose(self) {
        match self {
            Colour::Auto => anstream::ColorChoice::Auto,
            Colour::Always => anstream::ColorChoice::Always,
            Colour::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }
}

/// Both streams of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    pub format: Format,
    pub quiet: bool,
}

impl Screen {
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    pub(crate) fn is_wide(self) -> bool {
        self.format == Format::Wide
    }

    /// Writes a result for people.
    pub(crate) fn data(self, text: &str) {
        if !text.is_empty() {
            stop_if_nobody_reads(writeln!(anstream::stdout(), "{}", paint(text.trim_end())));
        }
    }

    /// Writes a result for programs: indented for a terminal, one line otherwise.
    pub(crate) fn json<T: Serialize>(self, value: &T) {
        let text = if std::io::stdout().is_terminal() {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        // Views have string keys only, which is all that can go wrong.
        let text = text.expect("views are valid JSON");
        stop_if_nobody_reads(writeln!(anstream::stdout(), "{text}"));
    }

    /// Writes bytes as they are.
    pub(crate) fn raw(self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        stop_if_nobody_reads(out.write_all(bytes).and_then(|()| out.flush()));
    }

    /// Writes a message that is no result.
    pub(crate) fn say(self, text: &str) {
        if !self.quiet {
            // Nothing is left to tell when standard error is closed.
            let _ = writeln!(anstream::stderr(), "{}", paint(text.trim_end()));
        }
    }

    /// Shows how far something is, on one line that the next call replaces. Nothing unless a
    /// person watches.
    pub(crate) fn progress(self, text: &str) {
        if self.animates() {
            let mut err = anstream::stderr();
            let _ = write!(err, "\r\x1b[2K{}", paint(text)).and_then(|()| err.flush());
        }
    }

    /// Says how far something is where [`Screen::progress`] shows nothing.
    pub(crate) fn tell(self, text: &str) {
        if !self.animates() && !self.is_json() {
            self.say(text);
        }
    }

    /// Takes the progress line away.
    pub(crate) fn progress_over(self) {
        if self.animates() {
            let mut err = anstream::stderr();
            let _ = write!(err, "\r\x1b[2K").and_then(|()| err.flush());
        }
    }

    fn animates(self) -> bool {
        !self.quiet && !self.is_json() && std::io::stderr().is_terminal()
    }
}

/// `quorate events | head` ends here, without a word.
fn stop_if_nobody_reads(written: std::io::Result<()>) {
    if let Err(error) = written {
        let closed = error.kind() == std::io::ErrorKind::BrokenPipe;
        std::process::exit(if closed { 0 } else { 1 });
    }
}

/// Colours the symbols that carry a state.
pub(crate) fn paint(text: &str) -> String {
    let mut painted = String::with_capacity(text.len() + 64);
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            painted.push('\n');
        }
        for (word_number, word) in line.split(' ').enumerate() {
            if word_number > 0 {
                painted.push(' ');
            }
            let colour = match word {
                "✔" | "●" | "+" => AnsiColor::Green,
                "▲" | "!" | "~" => AnsiColor::Yellow,
                "✕" => AnsiColor::Red,
                "○" => AnsiColor::BrightBlack,
                "error:" => AnsiColor::Red,
                "why:" | "fix:" => AnsiColor::Cyan,
                _ => {
                    painted.push_str(word);
                    continue;
                }
            };
            let style = Style::new().fg_color(Some(colour.into())).bold();
            painted.push_str(&format!("{style}{word}{style:#}"));
        }
    }
    painted
}

/// A table without borders. Columns in `right` (by number) hold figures and are set flush right.
pub(crate) fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(|title| Cell::new(*title)));
    for row in rows {
        table.add_row(row);
    }
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// A measured span: `0.05 s`, `1.2 s`, `34 s`.
pub(crate) fn took(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    if seconds < 1.0 {
        format!("{seconds:.2} s")
    } else if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else {
        format!("{seconds:.0} s")
    }
}

/// How long something lasts already, in its two largest units: `3d 4h`, `5m 2s`, `12s`.
pub(crate) fn age(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// A moment for people: `2026-11-21 12:04:31Z`, to the millisecond if `exact`.
pub(crate) fn moment(at: WallTime, exact: bool) -> String {
    match i64::try_from(at.as_micros()).map(jiff::Timestamp::from_microsecond) {
        Ok(Ok(time)) if exact => time.strftime("%Y-%m-%d %H:%M:%S%.3fZ").to_string(),
        Ok(Ok(time)) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        _ => "-".into(),
    }
}

/// This machine's clock.
pub(crate) fn wall_now() -> WallTime {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_as_exact_as_they_are_short() {
        for (ms, text) in [(3, "0.00 s"), (48, "0.05 s"), (904, "0.90 s"), (1_234, "1.2 s"), (9_960, "10 s")] {
            assert_eq!(took(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn ages_show_two_units() {
        for (seconds, text) in [(12, "12s"), (302, "5m 2s"), (7_260, "2h 1m"), (273_600, "3d 4h")] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_moment_is_shown_in_utc() {
        assert_eq!(moment(WallTime(1_700_000_000_123_456), false), "2023-11-14 22:13:20Z");
        assert_eq!(moment(WallTime(1_700_000_000_123_456), true), "2023-11-14 22:13:20.123Z");
    }

    #[test]
    fn colours_only_touch_symbols() {
        let painted = paint("web  ● joined\n! look");
        assert_eq!(anstream::adapter::strip_str(&painted).to_string(), "web  ● joined\n! look");
        assert_ne!(painted, "web  ● joined\n! look");
        assert_eq!(paint("a+b!"), "a+b!");
    }
}
