//! Kinds of functions: what bytes may be, and on which lane of the engine they run.
//!
//! Owns the names of the kinds, as they are stored and shown. Knows nothing about how a kind is detected (`build/detect.rs`) or
//! called (`call.rs`).

use std::fmt;
use std::str::FromStr;

/// What a function is, decided by looking at its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Core module with Hob's handler entry.
    Handler,
    /// Core module with `_start`.
    Command,
    /// Component that exports `wasi:cli/run` 0.2.
    Command02,
    /// Component that exports `wasi:cli/run` 0.3.
    Command03,
    /// Component that exports `wasi:http/incoming-handler` 0.2.
    Http02,
    /// Component that exports `wasi:http/handler` 0.3.
    Http03,
}

/// Which of the two engines runs it. The asynchronous component model costs every call of a 0.2 component about a tenth
/// (`docs/decisions/0003-two-lanes.md`), and without it a 0.3 component cannot even be parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Core modules and components of WASI 0.2.
    Plain,
    /// Components that import or export anything of WASI 0.3.
    Concurrent,
}

/// Kind and lane of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// What it is.
    pub kind: Kind,
    /// Where it runs.
    pub lane: Lane,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Handler, Self::Command, Self::Command02, Self::Command03, Self::Http02, Self::Http03];

    /// The stored and shown name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handler => "handler",
            Self::Command => "command",
            Self::Command02 => "command-0.2",
            Self::Command03 => "command-0.3",
            Self::Http02 => "http-0.2",
            Self::Http03 => "http-0.3",
        }
    }

    /// Whether it is a component, and not a core module.
    #[must_use]
    pub fn is_component(self) -> bool {
        !matches!(self, Self::Handler | Self::Command)
    }

    /// Whether its output is a response only because Hob makes it one.
    #[must_use]
    pub fn is_command(self) -> bool {
        matches!(self, Self::Command | Self::Command02 | Self::Command03)
    }
}

/// Appended to the kind of a 0.2 component that needs the concurrent lane for something it imports.
const CONCURRENT: &str = "+async";

impl Shape {
    /// Whether the kind alone puts it on the concurrent lane.
    fn implied(kind: Kind) -> Lane {
        if matches!(kind, Kind::Command03 | Kind::Http03) { Lane::Concurrent } else { Lane::Plain }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.lane == Self::implied(self.kind) { "" } else { CONCURRENT };
        write!(f, "{}{suffix}", self.kind.as_str())
    }
}

/// A stored kind that this host does not know: it was written by a newer one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind of function '{0}': it was stored by another version of hob; deploy the function again")]
pub struct UnknownKind(String);

impl FromStr for Shape {
    type Err = UnknownKind;
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let (name, concurrent) = match text.strip_suffix(CONCURRENT) {
            Some(name) => (name, true),
            None => (text, false),
        };
        let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or_else(|| UnknownKind(text.into()))?;
        Ok(Self { kind, lane: if concurrent { Lane::Concurrent } else { Self::implied(kind) } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_round_trip() {
        for kind in Kind::ALL {
            for lane in [Shape::implied(kind), Lane::Concurrent] {
                let shape = Shape { kind, lane };
                assert_eq!(shape.to_string().parse::<Shape>().unwrap(), shape);
            }
        }
        assert!("handler2".parse::<Shape>().is_err() && "".parse::<Shape>().is_err());
    }
}
