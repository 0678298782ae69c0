//! `hob logs`.

use clap::Args;

use super::client::Event;
use super::output::{self, Format};
use super::text::{clean, time};
use super::{Ctx, Failure};
use crate::control::wire::LogEntry;
use crate::id::FunctionName;

/// Arguments of `hob logs`.
#[derive(Debug, Args)]
pub(super) struct Logs {
    /// Name of the function
    name: FunctionName,
    /// Go on with what it logs from now on
    #[arg(short, long)]
    follow: bool,
    /// How many of the entries that are there to begin with
    #[arg(long, value_name = "N", default_value_t = 100)]
    tail: usize,
}

impl Logs {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let client = ctx.client()?;
        if !self.follow {
            let entries = client.logs(&self.name, self.tail)?;
            return match ctx.format {
                Format::Json => Ok(output::json(&entries)?),
                Format::Text => Ok(output::raw(entries.iter().map(show).collect::<String>().as_bytes())?),
            };
        }
        let mut events = client.follow(&self.name, self.tail)?;
        while let Some(event) = events.next()? {
            match (event, ctx.format) {
                (Event::Entry(entry), Format::Json) => output::json_line(&entry)?,
                (Event::Entry(entry), Format::Text) => output::raw(show(&entry).as_bytes())?,
                (Event::Remark(remark), _) => output::note(clean(&remark)),
            }
        }
        output::note("the daemon ended the stream: the function was removed, or the daemon stops");
        Ok(())
    }
}

/// One line: time, level, source, invocation, and the guest's words, never at its start and never in control of the terminal.
pub(super) fn show(entry: &LogEntry) -> String {
    let LogEntry { level, source, invocation, text, .. } = entry;
    format!("{} {:5} {:6} [{}] {}\n", time(entry.time_ms), clean(level), clean(source), clean(invocation), clean(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_forge_a_line() {
        let entry = LogEntry {
            seq: 1,
            time_ms: 0,
            invocation: "01J".into(),
            revision: 1,
            source: "stdout".into(),
            level: "info".into(),
            text: "a\n1970-01-01 error host [x] \x1b[31mforged".into(),
        };
        let line = "1970-01-01T00:00:00.000Z info  stdout [01J] a\\n1970-01-01 error host [x] \\u{1b}[31mforged\n";
        assert_eq!(show(&entry), line);
    }
}
