//! Output: data to standard output, words to standard error, progress only where somebody looks.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::environment;

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Colours that are used.
#[derive(Debug, Clone, Copy)]
pub(super) enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// Whether to colour: never with `NO_COLOR`, always with `CLICOLOR_FORCE`, else when both streams end at a terminal, because
/// coloured words go to either.
static COLOURED: LazyLock<bool> = LazyLock::new(|| {
    let set = |name| environment::var(name).is_some_and(|value| !value.is_empty());
    if set("NO_COLOR") {
        return false;
    }
    let forced = environment::var("CLICOLOR_FORCE").is_some_and(|value| !value.is_empty() && value != "0");
    forced || io::stdout().is_terminal() && io::stderr().is_terminal()
});

/// Whether words are coloured.
pub(super) fn coloured() -> bool {
    *COLOURED
}

/// A word in a colour, if colours are wanted.
pub(super) fn paint(colour: Colour, word: &str) -> String {
    if coloured() { format!("\x1b[{}m{word}\x1b[0m", colour as u8) } else { word.into() }
}

/// Whoever read standard output has had enough: `hob ls | head`.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub(super) struct Closed;

/// Writes bytes of data, as they are.
///
/// # Errors
/// [`Closed`], or that standard output cannot be written.
pub(super) fn raw(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        other => other.context("cannot write to standard output"),
    }
}

/// Writes one line of data. Errors as [`raw`].
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    raw(format!("{text}\n").as_bytes())
}

/// Writes one JSON document. Errors as [`raw`].
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Writes one JSON document on one line, for streams. Errors as [`raw`].
pub(super) fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string(value)?)
}

/// Tells the user something that is not data.
pub(super) fn note(text: impl Display) {
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(io::stderr(), "{text}");
}

/// How a line looks that turns.
const SPINNER: &str = "{spinner} {prefix} {elapsed} {msg}";
/// How often it does.
const TICK: Duration = Duration::from_millis(100);

/// A line that turns while something happens whose length nobody knows. Invisible unless standard error is a terminal.
pub(super) fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    go_on(&bar, what);
    bar
}

/// Turns a bar into a line as [`spinner`] makes it, for what comes after the bytes.
pub(super) fn go_on(bar: &ProgressBar, what: &str) {
    let style = ProgressStyle::with_template(SPINNER);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.set_prefix(what.to_owned());
    bar.reset_elapsed();
    bar.enable_steady_tick(TICK);
}

/// A bar for a number of bytes. Invisible unless standard error is a terminal.
pub(super) fn byte_bar(what: &str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    let style = ProgressStyle::with_template("{prefix} [{bar:40}] {bytes} of {total_bytes}, {bytes_per_sec}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(what.to_owned());
    bar
}
