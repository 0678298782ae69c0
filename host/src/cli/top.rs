//! `hob top`: what functions use now.
//!
//! Owns the table and its screen. It shows what was used within the minute that runs and the one before, so that what it says does not depend on
//! when it was started. Invariant: however it ends, the terminal is as it was: it sets no mode, and leaves the second screen that it draws on.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;

use super::output::{self, Format};
use super::text::{bytes, clean, span, table};
use super::{Ctx, Failure, interrupt};
use crate::control::wire::{MinuteUsage, TenantUsage, UsageReport, UsedInfo};
use crate::limits::parse_time;

/// To the second screen, without the cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the corner; what is behind the end of a line, and below the last, goes.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST: &str = "\x1b[J";
/// Functions that are drawn where nobody knows how high the screen is.
const ROWS: usize = 20;
/// Lines above the functions.
const HEAD: usize = 3;

/// Arguments of `hob top`.
#[derive(Debug, Args)]
pub(super) struct Top {
    /// Of all tenants, for an admin of the tenant `default`
    #[arg(long)]
    all: bool,
    /// Print the table once and end, as when standard output is no terminal
    #[arg(long)]
    once: bool,
    /// How often the table is drawn anew
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let least = Duration::from_millis(100);
    parse_time(text).filter(|time| *time >= least).ok_or_else(|| "expected a time of 100ms or more, such as 2s".into())
}

impl Top {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let client = ctx.client()?;
        let query = format!("minutes=2&all={}", self.all);
        if self.once || ctx.format == Format::Json || !std::io::stdout().is_terminal() {
            interrupt::on_signal(|| ())?;
            let report = client.usage(&query)?;
            return match ctx.format {
                Format::Json => Ok(output::json(&report)?),
                Format::Text => Ok(output::raw(show(&report, usize::MAX).as_bytes())?),
            };
        }
        // Nothing is drawn before the first answer: an error stands on the screen that it belongs to.
        let mut report = client.usage(&query)?;
        let _screen = Screen::enter()?;
        loop {
            let rows = height().map_or(ROWS, |height| height.saturating_sub(HEAD + 1));
            let text = show(&report, rows).replace('\n', &format!("{REST_OF_LINE}\n"));
            output::raw(format!("{HOME}{text}{REST}").as_bytes())?;
            std::thread::sleep(self.interval);
            report = client.usage(&query)?;
        }
    }
}

/// The second screen of the terminal, until this is dropped.
struct Screen;

impl Screen {
    fn enter() -> Result<Self, Failure> {
        interrupt::on_signal(leave_for_good)?;
        output::raw(ENTER.as_bytes())?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

fn leave() {
    // Nobody is left to tell if it is gone.
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(LEAVE.as_bytes()).and_then(|()| stdout.flush());
}

/// As [`leave`], and nothing is drawn after it: the lock is not given back, and the process ends.
fn leave_for_good() {
    std::mem::forget(std::io::stdout().lock());
    leave();
}

/// Lines of the terminal, if it says.
fn height() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_row)).filter(|rows| *rows > HEAD + 1)
}

/// A function, or what is left of its tenant.
struct Row {
    name: String,
    used: UsedInfo,
}

/// What was used in the minutes that were asked for.
fn sum(minutes: &[MinuteUsage]) -> UsedInfo {
    let mut sum = UsedInfo::default();
    for MinuteUsage { used, .. } in minutes {
        sum.invocations += used.invocations;
        sum.cpu_ms += used.cpu_ms;
        sum.wall_ms += used.wall_ms;
        for (phase, ms) in &used.phases_ms {
            *sum.phases_ms.entry(phase.clone()).or_default() += ms;
        }
        sum.bytes_in += used.bytes_in;
        sum.bytes_out += used.bytes_out;
        sum.requests += used.requests;
        sum.data_operations += used.data_operations;
        sum.memory_bytes_max = sum.memory_bytes_max.max(used.memory_bytes_max);
    }
    sum
}

fn rows(tenant: &TenantUsage, is_one: bool) -> Vec<Row> {
    let name = |function: &str| if is_one { clean(function) } else { clean(&format!("{}/{function}", tenant.tenant)) };
    let functions = tenant.functions.iter().map(|function| Row { name: name(&function.name), used: sum(&function.minutes) });
    functions.collect()
}

/// The table. `most`: functions that it has.
fn show(report: &UsageReport, most: usize) -> String {
    let is_one = report.tenants.len() == 1;
    let mut all: Vec<Row> = report.tenants.iter().flat_map(|tenant| rows(tenant, is_one)).collect();
    all.sort_by(|a, b| b.used.cpu_ms.total_cmp(&a.used.cpu_ms).then_with(|| a.name.cmp(&b.name)));
    let seconds = Duration::from_millis(60_000 + report.passed_ms).as_secs_f64();
    let of_tenants: Vec<UsedInfo> = report.tenants.iter().map(|tenant| sum(&tenant.minutes)).collect();
    let running: u64 = report.tenants.iter().map(|tenant| tenant.running).sum();
    let memory: u64 = report.tenants.iter().map(|tenant| tenant.memory_bytes).sum();
    let cpu_ms: f64 = of_tenants.iter().map(|used| used.cpu_ms).sum();
    let invocations: u64 = of_tenants.iter().map(|used| used.invocations).sum();
    let mut text = format!(
        "{running} running with {}; in the last {seconds:.0} s {invocations} invocations, {:.1} % of a processor\n\n",
        bytes(memory),
        cpu_ms / seconds / 10.0
    );
    let mut lines = vec![
        [
            "FUNCTION",
            "CPU %",
            "RUNS/S",
            "CPU/RUN",
            "WALL/RUN",
            "QUEUE/RUN",
            "START/RUN",
            "MEMORY",
            "IN/S",
            "OUT/S",
            "REQUESTS/S",
            "DATA/S",
        ]
        .map(String::from)
        .to_vec(),
    ];
    lines.extend(all.iter().take(most).map(|Row { name, used }| line(name, used, seconds)));
    text.push_str(&table(&lines));
    if all.len() > most {
        // Writing into a String cannot fail.
        let _ = write!(text, "and {} more", all.len() - most);
    }
    text
}

fn line(name: &str, used: &UsedInfo, seconds: f64) -> Vec<String> {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    let [count, bytes_in, bytes_out, requests, operations] =
        [used.invocations, used.bytes_in, used.bytes_out, used.requests, used.data_operations].map(|count| count as f64);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and bytes of a second are few")]
    let rate = |sum: f64| bytes((sum / seconds) as u64);
    let each = |ms: f64| match used.invocations {
        0 => "-".into(),
        _ => span(Duration::from_secs_f64((ms / 1e3 / count).max(0.0))),
    };
    let phase = |name: &str| used.phases_ms.get(name).copied().unwrap_or_default();
    vec![
        name.to_owned(),
        format!("{:.1}", used.cpu_ms / seconds / 10.0),
        format!("{:.1}", count / seconds),
        each(used.cpu_ms),
        each(used.wall_ms),
        each(phase("queue")),
        each(["load", "verify", "instantiate", "enter"].map(phase).iter().sum()),
        bytes(used.memory_bytes_max),
        rate(bytes_in),
        rate(bytes_out),
        format!("{:.1}", requests / seconds),
        format!("{:.1}", operations / seconds),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::FunctionUsage;

    fn tenant(name: &str, functions: &[(&str, f64)]) -> TenantUsage {
        let minutes = |cpu_ms| {
            let phases_ms = [("queue", 30.0), ("load", 60.0), ("enter", 120.0)].map(|(name, ms)| (name.to_owned(), ms)).into();
            let used = UsedInfo {
                invocations: 60,
                cpu_ms,
                wall_ms: 2.0 * cpu_ms,
                phases_ms,
                bytes_in: 120 << 10,
                data_operations: 6,
                ..UsedInfo::default()
            };
            vec![MinuteUsage { at_ms: 0, used: used.clone() }, MinuteUsage { at_ms: 60_000, used }]
        };
        let function = |(name, cpu_ms): &(&str, f64)| FunctionUsage {
            name: (*name).into(),
            total: UsedInfo::default(),
            minutes: minutes(*cpu_ms),
        };
        TenantUsage {
            tenant: name.into(),
            running: 1,
            memory_bytes: 1 << 20,
            total: UsedInfo::default(),
            minutes: minutes(functions.iter().map(|(_, cpu_ms)| cpu_ms).sum()),
            functions: functions.iter().map(function).collect(),
            other: UsedInfo::default(),
            refused: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn who_uses_most_stands_first_and_names_are_harmless() {
        let mut report =
            UsageReport { minute_ms: 0, passed_ms: 60_000, tenants: vec![tenant("a", &[("low", 60.0), ("\x1b[2J", 600.0)])] };
        let text = show(&report, 10);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "1 running with 1.0 MiB; in the last 120 s 120 invocations, 1.1 % of a processor");
        let first: Vec<_> = lines[3].split_whitespace().collect();
        let expected = "\\u{1b}[2J 1.0 1.0 10.00 ms 20.00 ms 500 us 3.00 ms 0 B 2.0 KiB 0 B 0.0 0.1";
        assert_eq!(first.join(" "), expected, "{text}");
        assert!(lines[4].starts_with("low"), "{text}");
        report.tenants.push(tenant("b", &[("top", 6000.0)]));
        let text = show(&report, 1);
        assert!(text.contains("\nb/top") && !text.contains("a/low") && text.ends_with("and 2 more"), "{text}");
    }
}
