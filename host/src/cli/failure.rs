//! Failures: what a command says when it did not do what it was asked, and with which code the process exits.

use std::io::{self, Write};

use crate::control::wire::Problem;
use crate::fault::{Code, Fault};
use crate::net::status::status;

use super::output::{self, Format};
use super::text::clean;

/// Exit codes, the same for every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Anything that has no code of its own.
    Failure = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No such function, revision or file of a project.
    NotFound = 3,
    /// Not allowed.
    Auth = 4,
    /// No daemon answers.
    Unreachable = 5,
    /// The guest trapped, exited with an error, or answered nonsense.
    Guest = 6,
    /// A deadline passed.
    Timeout = 124,
}

/// A command that failed: one sentence, its causes, and one command to try next.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    error: anyhow::Error,
    /// What the daemon calls it, if it said so.
    problem: Option<String>,
    /// What the daemon advises, in words.
    hint: Option<String>,
    /// A command to type.
    next: String,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::Failure, error, problem: None, hint: None, next: "hob doctor".into() }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        anyhow::Error::from(error).into()
    }
}

/// For `map_err`: the error with a command to try next.
pub(super) fn next<E: Into<anyhow::Error>>(command: impl Into<String>) -> impl FnOnce(E) -> Failure {
    let command = command.into();
    move |error| Failure::from(error.into()).next(command)
}

impl Failure {
    /// A failure with a sentence of its own.
    pub(super) fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Self { exit, ..Self::from(anyhow::Error::msg(sentence.into())) }
    }

    /// A failure of a guest, or of its way to run.
    pub(super) fn from_fault(fault: &Fault) -> Self {
        let exit = exit_of(status(fault.code).as_u16());
        Self { hint: fault.hint.as_ref().map(ToString::to_string), ..Self::new(exit, fault.detail.to_string()) }
    }

    /// What a daemon answered instead of what it was asked for. `function`: which one it was about, for the next command.
    pub(super) fn from_problem(problem: Problem, function: Option<&str>) -> Self {
        let exit = exit_of(problem.status);
        let of = |command: &str| function.map_or_else(|| "hob ls".into(), |name| format!("hob {command} {name}"));
        // A hint that ends in a command knows better what it is about.
        let hinted =
            problem.hint.as_ref().and_then(|hint| hint.rsplit(": ").next()).filter(|command| command.starts_with("hob "));
        let next = match exit {
            _ if hinted.is_some() => hinted.map(clean).unwrap_or_default(),
            Exit::NotFound => "hob ls".into(),
            Exit::Auth if problem.code == "unauthenticated" => "hob --token-file FILE ls".into(),
            Exit::Auth => "hob token --help".into(),
            Exit::Guest | Exit::Timeout => of("logs"),
            _ => match problem.code.as_str() {
                "conflict" | "precondition-failed" | "concurrency" | "body-too-large" => of("inspect"),
                "not-deployable" | "module-over-cap" | "build-over-limit" | "bad-manifest" => "hob deploy --help".into(),
                _ => "hob doctor".into(),
            },
        };
        Self { hint: problem.hint, problem: Some(problem.code), ..Self::new(exit, problem.detail).next(next) }
    }

    /// The same with a command to try next.
    #[must_use]
    pub(super) fn next(mut self, command: impl Into<String>) -> Self {
        self.next = command.into();
        self
    }

    /// The same with advice in words.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with another code.
    #[must_use]
    pub(super) fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// The same with what was being done before it.
    #[must_use]
    pub(super) fn context(mut self, doing: impl Into<String>) -> Self {
        self.error = self.error.context(doing.into());
        self
    }

    /// Whether it is what the daemon calls so.
    pub(super) fn is(&self, code: Code) -> bool {
        self.problem.as_deref() == Some(code.as_str())
    }

    /// What failed, without its causes.
    pub(super) fn sentence(&self) -> String {
        self.error.to_string()
    }

    /// The code to exit with.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.exit as u8
    }

    /// Whether all that failed is that nobody reads standard output any more.
    pub(super) fn is_closed_output(&self) -> bool {
        self.error.is::<output::Closed>()
    }

    /// Writes the failure to standard error, as text or as one line of JSON.
    pub fn show(&self, format: Format) {
        // Nobody is left to tell if standard error is gone.
        let _ = match format {
            Format::Text => io::stderr().write_all(self.text().as_bytes()),
            Format::Json => writeln!(io::stderr(), "{}", self.json()),
        };
    }

    fn text(&self) -> String {
        let mut said = self.error.to_string();
        let mut text = format!("{} {}\n", output::paint(output::Colour::Red, "error:"), clean(&said));
        for cause in self.error.chain().skip(1).map(ToString::to_string) {
            // Many sentences end with their cause.
            if !said.contains(&cause) {
                text.push_str(&format!("  caused by: {}\n", clean(&cause)));
                said = cause;
            }
        }
        // Nor is one command named twice.
        if let Some(hint) = self.hint.as_ref().filter(|hint| !hint.ends_with(&self.next)) {
            text.push_str(&format!("  hint: {}\n", clean(hint)));
        }
        text.push_str(&format!("  next: {}\n", self.next));
        text
    }

    fn json(&self) -> serde_json::Value {
        let causes: Vec<_> = self.error.chain().skip(1).map(ToString::to_string).collect();
        serde_json::json!({
            "error": self.error.to_string(),
            "causes": causes,
            "hint": self.hint,
            "next": self.next,
            "exit": self.code(),
        })
    }
}

/// The exit code for an answer that Hob made.
fn exit_of(status: u16) -> Exit {
    match status {
        401 | 403 => Exit::Auth,
        404 => Exit::NotFound,
        502 => Exit::Guest,
        504 => Exit::Timeout,
        _ => Exit::Failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_have_their_exit_codes() {
        for (code, exit) in [
            (Code::NotFound, 3),
            (Code::GuestTrap, 6),
            (Code::GuestExit, 6),
            (Code::ResponseTooLarge, 6),
            (Code::CpuDeadline, 124),
            (Code::WallDeadline, 124),
            (Code::NotDeployable, 1),
            (Code::Overloaded, 1),
        ] {
            assert_eq!(Failure::from_fault(&Fault::new(code, "x")).code(), exit, "{code}");
        }
    }

    #[test]
    fn a_failure_names_its_causes_and_one_command() {
        let error = anyhow::anyhow!("the \x1b[2J bottom").context("the top");
        let text = Failure::from(error).next("hob ls").hint("look").text();
        assert_eq!(text, "error: the top\n  caused by: the \\u{1b}[2J bottom\n  hint: look\n  next: hob ls\n");
    }

    #[test]
    fn a_hint_that_ends_in_a_command_is_next() {
        let next = |hint: Option<&str>| {
            let hint = hint.map(ToOwned::to_owned);
            let problem =
                serde_json::json!({ "type": "", "title": "", "status": 409, "code": "conflict", "detail": "x", "hint": hint });
            Failure::from_problem(serde_json::from_value(problem).unwrap(), Some("f")).next
        };
        assert_eq!(next(Some("hob bucket inspect b")), "hob bucket inspect b");
        assert_eq!(next(Some("list them with: hob token ls")), "hob token ls");
        for hint in [None, Some("look at hob ls"), Some("first: look")] {
            assert_eq!(next(hint), "hob inspect f", "{hint:?}");
        }
    }

    #[test]
    fn nothing_is_said_twice() {
        let error = anyhow::anyhow!("no room").context("cannot write: no room; remove something");
        let text = Failure::from(error).next("hob ls").hint("list them with: hob ls").text();
        assert_eq!(text, "error: cannot write: no room; remove something\n  next: hob ls\n");
    }
}
