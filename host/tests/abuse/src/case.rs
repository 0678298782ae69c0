//! What a case is: one attack of `docs/abuse.md`, and what it may see.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::http::{self, Conn, Reply};
use crate::node::{HOME, Node};
use crate::victim::{Clients, Refusals};

/// One of the two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    Data,
    Control,
}

/// Whether an attack uses up processors, so that its victim's times are bounded in milliseconds and not by a factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processor {
    Spared,
    Burnt,
}

/// Whether the node bounds the connections of each address, and how many addresses attackers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressCap {
    /// It does not, so far as it can be told not to; from a hundred.
    Off,
    /// It does; from one.
    On,
}

/// The setting of that bound.
pub(crate) const ADDRESS_CAP: &str = "net.connections_per_address";

/// What it is set to where it is one.
pub(crate) const PER_ADDRESS: usize = 50;

/// How much of an attack is run, and whether times are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Short,
    Long,
}

/// Whether each answer that the attackers got must be counted by the node, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Books {
    /// Faults of every code rise by exactly what was answered.
    Balance,
    /// By no less: some clients do not wait for their answers.
    AtLeast,
    /// What is refused before anybody looks at it is not counted.
    Closed,
}

/// A case that is run beside the victim.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) row: &'static str,
    pub(crate) name: &'static str,
    pub(crate) door: Door,
    pub(crate) settings: &'static [&'static str],
    /// In place of those, in a long run.
    pub(crate) long_settings: &'static [&'static str],
    /// What must be there before the node is, in the folder that has the node's; further arguments of the node.
    pub(crate) prepare: fn(&Path) -> anyhow::Result<Vec<String>>,
    pub(crate) files_max: Option<u64>,
    /// Descriptors that the node may keep for longer than it has to be as before.
    pub(crate) kept: u64,
    pub(crate) address_cap: AddressCap,
    pub(crate) processor: Processor,
    pub(crate) clients: Clients,
    pub(crate) refusals: Refusals,
    pub(crate) books: Books,
    /// What attackers may see: `504 cpu-deadline`, `closed`; with a `*` at the end, whatever begins like it. The first must
    /// be seen, unless a `?` stands before it.
    pub(crate) expects: &'static [&'static str],
    pub(crate) setup: fn(&Stage<'_>) -> anyhow::Result<Ready>,
    pub(crate) attack: fn(&Stage<'_>, &mut Seen) -> anyhow::Result<()>,
}

/// A case that starts and ends nodes of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Alone {
    pub(crate) row: &'static str,
    pub(crate) name: &'static str,
    pub(crate) expects: &'static [&'static str],
    pub(crate) run: fn(&Ground<'_>, &mut Seen) -> anyhow::Result<Ready>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Beside(Case),
    Alone(Alone),
    /// A row that is not run yet, and why.
    Missing {
        row: &'static str,
        name: &'static str,
        why: &'static str,
    },
}

impl Kind {
    pub(crate) fn row(&self) -> &'static str {
        match self {
            Self::Beside(case) => case.row,
            Self::Alone(case) => case.row,
            Self::Missing { row, .. } => row,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Beside(case) => case.name,
            Self::Alone(case) => case.name,
            Self::Missing { name, .. } => name,
        }
    }
}

/// Whether a case can be run on this machine, with this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ready {
    Yes,
    Skipped(String),
}

type Setup = fn(&Stage<'_>) -> anyhow::Result<Ready>;
pub(crate) type Attack = fn(&Stage<'_>, &mut Seen) -> anyhow::Result<()>;

/// A case with what most have: an attack on the data port that spares the processors.
pub(crate) const fn case(
    row: &'static str,
    name: &'static str,
    expects: &'static [&'static str],
    setup: Setup,
    attack: Attack,
) -> Case {
    Case {
        row,
        name,
        door: Door::Data,
        settings: &[],
        long_settings: &[],
        prepare: |_| Ok(Vec::new()),
        files_max: None,
        kept: 0,
        address_cap: AddressCap::Off,
        processor: Processor::Spared,
        clients: Clients::Renew,
        refusals: Refusals::Never,
        books: Books::Balance,
        expects,
        setup,
        attack,
    }
}

impl Case {
    pub(crate) const fn burns(self) -> Self {
        Self { processor: Processor::Burnt, ..self }
    }

    pub(crate) const fn settings(self, settings: &'static [&'static str]) -> Self {
        Self { settings, ..self }
    }

    pub(crate) const fn in_long(self, long_settings: &'static [&'static str]) -> Self {
        Self { long_settings, ..self }
    }

    pub(crate) const fn prepared(self, prepare: fn(&Path) -> anyhow::Result<Vec<String>>) -> Self {
        Self { prepare, ..self }
    }

    pub(crate) const fn keeps(self, kept: u64) -> Self {
        Self { kept, ..self }
    }

    pub(crate) const fn at_control(self) -> Self {
        Self { door: Door::Control, ..self }
    }

    pub(crate) const fn books(self, books: Books) -> Self {
        Self { books, ..self }
    }

    pub(crate) const fn files_max(self, files: u64) -> Self {
        Self { files_max: Some(files), ..self }
    }

    pub(crate) const fn one_address(self, name: &'static str, expects: &'static [&'static str]) -> Self {
        Self { name, expects, address_cap: AddressCap::On, ..self }
    }

    pub(crate) const fn victim_keeps_its_connections(self) -> Self {
        Self { clients: Clients::Keep, ..self }
    }

    pub(crate) const fn victim_may_be_refused(self) -> Self {
        Self { refusals: Refusals::Typed, ..self }
    }

    /// Whether attackers may see this.
    pub(crate) fn may_see(expects: &[&str], key: &str) -> bool {
        expects.iter().map(|expected| expected.trim_start_matches('?')).any(|expected| match expected.strip_suffix('*') {
            Some(begin) => key.starts_with(begin),
            None => expected == key,
        })
    }
}

/// What an attack has seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) statuses: BTreeMap<String, u64>,
    pub(crate) complaints: Vec<String>,
    pub(crate) notes: Vec<String>,
    /// What is judged only where times are.
    pub(crate) slow: Vec<String>,
}

/// Complaints that are kept of one attack.
const COMPLAINTS_MAX: usize = 8;

impl Seen {
    pub(crate) fn saw(&mut self, key: &str) {
        *self.statuses.entry(key.to_owned()).or_default() += 1;
    }

    /// An answer; one that calls itself a bug of Hob is a complaint whatever the case expects.
    pub(crate) fn answered(&mut self, reply: Option<&Reply>) {
        match reply {
            Some(reply) => {
                if reply.header("hob-error").is_some_and(|code| code == "internal" || reply.status == 500) {
                    self.complain(format!("a bug of Hob: {}", reply.text()));
                }
                self.saw(&reply.key());
            }
            None => self.saw("closed"),
        }
    }

    pub(crate) fn complain(&mut self, what: impl Into<String>) {
        if self.complaints.len() < COMPLAINTS_MAX {
            self.complaints.push(what.into());
        }
    }

    /// A complaint unless it holds.
    pub(crate) fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.complain(what());
        }
    }

    pub(crate) fn note(&mut self, what: impl Into<String>) {
        self.notes.push(what.into());
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (key, count) in other.statuses {
            *self.statuses.entry(key).or_default() += count;
        }
        other.complaints.into_iter().for_each(|what| self.complain(what));
        self.notes.extend(other.notes);
        self.slow.extend(other.slow);
    }
}

/// What a case of its own has: the binary, and a folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) dir: &'a Path,
    pub(crate) scale: Scale,
}

impl Ground<'_> {
    pub(crate) fn times<T>(&self, short: T, long: T) -> T {
        match self.scale {
            Scale::Short => short,
            Scale::Long => long,
        }
    }
}

/// Where an attack takes place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage<'a> {
    pub(crate) node: &'a Node,
    pub(crate) binary: &'a Path,
    pub(crate) door: Door,
    pub(crate) address_cap: AddressCap,
    pub(crate) scale: Scale,
    /// 0, 1, 2: the same attack again.
    pub(crate) round: usize,
}

/// Addresses that attackers come from.
const ATTACKERS: u8 = 100;

impl Stage<'_> {
    /// How much, in a short run and in a long one.
    pub(crate) fn times<T>(&self, short: T, long: T) -> T {
        match self.scale {
            Scale::Short => short,
            Scale::Long => long,
        }
    }

    /// The port under attack.
    pub(crate) fn addr(&self) -> SocketAddr {
        match self.door {
            Door::Data => self.node.data,
            Door::Control => self.node.control,
        }
    }

    /// How a function is reached at this port.
    pub(crate) fn target(&self, function: &str) -> String {
        match self.door {
            Door::Data => format!("/{function}"),
            Door::Control => format!("/v1/functions/{function}/invoke"),
        }
    }

    /// Where connections come from.
    pub(crate) fn from(&self) -> Vec<Ipv4Addr> {
        match self.address_cap {
            AddressCap::Off => (0..usize::from(ATTACKERS)).map(attacker).collect(),
            AddressCap::On => vec![attacker(0)],
        }
    }

    pub(crate) fn connect(&self, index: usize) -> std::io::Result<Conn> {
        let from = match self.address_cap {
            AddressCap::Off => attacker(index),
            AddressCap::On => attacker(0),
        };
        Conn::open(self.addr(), from)
    }

    /// One request by an attacker, counted.
    pub(crate) fn ask(
        &self,
        index: usize,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        seen: &mut Seen,
    ) -> Option<Reply> {
        match self.connect(index) {
            Ok(mut conn) => {
                conn.request(method, target, headers, body);
                let reply = conn.reply();
                seen.answered(reply.as_ref());
                reply
            }
            Err(error) => {
                seen.saw(&format!("{:?}", error.kind()));
                None
            }
        }
    }

    /// `GET` of a function, counted.
    pub(crate) fn get(&self, index: usize, function: &str, seen: &mut Seen) -> Option<Reply> {
        self.ask(index, "GET", &self.target(function), &[], b"", seen)
    }

    /// A deploy by an attacker, counted.
    pub(crate) fn deploy(&self, index: usize, name: &str, wasm: &[u8], manifest: &str, seen: &mut Seen) -> anyhow::Result<Reply> {
        let reply = self.node.deploy(attacker(index), name, wasm, manifest)?;
        seen.answered(Some(&reply));
        Ok(reply)
    }

    /// So many attackers at once, each on a thread of its own.
    pub(crate) fn crowd(&self, count: usize, seen: &mut Seen, act: impl Fn(usize, &mut Seen) + Sync) {
        let all = std::thread::scope(|scope| {
            let act = &act;
            let started: Vec<_> = (0..count)
                .map(|index| {
                    scope.spawn(move || {
                        let mut seen = Seen::default();
                        act(index, &mut seen);
                        seen
                    })
                })
                .collect();
            started.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        for one in all {
            match one {
                Ok(one) => seen.merge(one),
                Err(_) => seen.complain("an attacker panicked: a bug of the suite"),
            }
        }
    }
}

/// The address of an attacker: never the victim's.
pub(crate) fn attacker(index: usize) -> Ipv4Addr {
    let last = u8::try_from(index % usize::from(ATTACKERS)).unwrap_or(0);
    Ipv4Addr::new(127, 0, 0, 2 + last)
}

/// A setup that deploys one function.
pub(crate) fn deployed(stage: &Stage<'_>, name: &str, wat: &str, manifest: &str) -> anyhow::Result<Ready> {
    stage.node.deploy_wat(name, wat, manifest)?;
    Ok(Ready::Yes)
}

/// A setup that has nothing to do.
#[expect(clippy::unnecessary_wraps, reason = "the type of every setup")]
pub(crate) fn nothing(_: &Stage<'_>) -> anyhow::Result<Ready> {
    Ok(Ready::Yes)
}

/// Asks until it is so, for as long as `patience`; whether it came to be.
pub(crate) fn eventually(patience: Duration, mut is_so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<bool> {
    let began = std::time::Instant::now();
    loop {
        if is_so()? {
            return Ok(true);
        }
        if began.elapsed() > patience {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A request by whoever looks after the node, to the data port.
pub(crate) fn home(node: &Node, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> anyhow::Result<Reply> {
    http::request(node.data, HOME, method, target, headers, body)
}
