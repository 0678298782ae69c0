//! Structural caps: how large each part of a module may be.
//!
//! Owns the numbers, and the one pass over a binary that counts. Runs only in the build process. Source of the numbers: the
//! largest well-behaved guests that were measured (interpreters compiled to Wasm), with room to spare.

use wasmparser::{ElementItems, FunctionBody, Operator, Payload, TableType, TypeRef};

use super::Refused;

/// A cap by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    /// What is counted.
    pub name: &'static str,
    /// The most there may be.
    pub max: u64,
}

const fn cap(name: &'static str, max: u64) -> Cap {
    Cap { name, max }
}

/// All caps; each is of one core module, but the first and the last.
pub const CAPS: [Cap; 15] = [
    cap("core modules", 64),
    cap("functions", 100_000),
    cap("types", 10_000),
    cap("imports", 2_000),
    cap("exports", 10_000),
    cap("data segments", 20_000),
    cap("bytes of one function body", 1 << 20),
    cap("locals of one function", 50_000),
    cap("memories", 2),
    cap("tables", 4),
    cap("table elements", 100_000),
    cap("levels of nesting", 1_000),
    cap("targets of one br_table", 10_000),
    cap("globals", 50_000),
    cap("levels of components", 32),
];

pub(super) const MODULES: Cap = CAPS[0];
const FUNCTIONS: Cap = CAPS[1];
const TYPES: Cap = CAPS[2];
const IMPORTS: Cap = CAPS[3];
const EXPORTS: Cap = CAPS[4];
const DATA: Cap = CAPS[5];
const BODY: Cap = CAPS[6];
const LOCALS: Cap = CAPS[7];
pub(super) const MEMORIES: Cap = CAPS[8];
const TABLES: Cap = CAPS[9];
const ELEMENTS: Cap = CAPS[10];
const NESTING: Cap = CAPS[11];
const BR_TABLE: Cap = CAPS[12];
const GLOBALS: Cap = CAPS[13];
pub(super) const LEVELS: Cap = CAPS[14];

impl Cap {
    /// Passes a count up to the cap.
    pub(super) fn check(self, count: u64) -> Result<(), Refused> {
        if count <= self.max {
            return Ok(());
        }
        let detail = format!("the module has {count} {}, this host takes at most {}", self.name, self.max);
        Err(Refused { over_cap: true, ..Refused::unfit(detail, "split the function, or leave out what it does not need") })
    }
}

/// What was counted in one core module so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Whether the binary comes back from this node: it was within every cap, and has more of some things since.
    is_own: bool,
    memories: u64,
    tables: u64,
    elements: u64,
    has_state: bool,
    has_exports: bool,
    pub(super) memory_bytes_min: u64,
}

impl Counts {
    /// `is_own`: of a binary that this node made of one that was within every cap.
    pub(super) fn new(is_own: bool) -> Self {
        Self { is_own, ..Self::default() }
    }

    /// Whether it has memories or globals of its own and no section of exports.
    pub(super) fn has_hidden_state(&self) -> bool {
        self.has_state && !self.has_exports
    }

    fn check(&self, cap: Cap, count: u64) -> Result<(), Refused> {
        if self.is_own { Ok(()) } else { cap.check(count) }
    }

    /// Counts one section or function body of the module.
    pub(super) fn add(&mut self, payload: &Payload<'_>) -> Result<(), Malformed> {
        match payload {
            Payload::TypeSection(section) => self.check(TYPES, section.count().into())?,
            Payload::FunctionSection(section) => self.check(FUNCTIONS, section.count().into())?,
            Payload::ExportSection(section) => {
                self.has_exports = true;
                self.check(EXPORTS, section.count().into())?;
            }
            Payload::GlobalSection(section) => {
                self.has_state = true;
                self.check(GLOBALS, section.count().into())?;
            }
            Payload::DataSection(section) => self.check(DATA, section.count().into())?,
            Payload::DataCountSection { count, .. } => self.check(DATA, (*count).into())?,
            Payload::ImportSection(section) => {
                self.check(IMPORTS, section.count().into())?;
                for import in section.clone().into_imports() {
                    match import?.ty {
                        // Its pages are those of whoever defines it.
                        TypeRef::Memory(_) => self.memory(0)?,
                        TypeRef::Table(table) => self.table(&table)?,
                        _ => {}
                    }
                }
            }
            Payload::MemorySection(section) => {
                self.has_state = true;
                for memory in section.clone() {
                    self.memory(memory?.initial)?;
                }
            }
            Payload::TableSection(section) => {
                for table in section.clone() {
                    self.table(&table?.ty)?;
                }
            }
            Payload::ElementSection(section) => {
                for element in section.clone() {
                    let count = match element?.items {
                        ElementItems::Functions(items) => items.count(),
                        ElementItems::Expressions(_, items) => items.count(),
                    };
                    self.check(ELEMENTS, count.into())?;
                }
            }
            Payload::CodeSectionEntry(body) if !self.is_own => function(body)?,
            _ => {}
        }
        Ok(())
    }

    fn memory(&mut self, pages: u64) -> Result<(), Refused> {
        self.memories += 1;
        self.memory_bytes_min = self.memory_bytes_min.saturating_add(pages.saturating_mul(64 << 10));
        self.check(MEMORIES, self.memories)
    }

    fn table(&mut self, table: &TableType) -> Result<(), Refused> {
        self.tables += 1;
        self.elements = self.elements.saturating_add(table.initial);
        self.check(TABLES, self.tables)?;
        self.check(ELEMENTS, self.elements)
    }
}

fn function(body: &FunctionBody<'_>) -> Result<(), Malformed> {
    let range = body.range();
    BODY.check((range.end - range.start) as u64)?;
    let mut locals = 0u64;
    for local in body.get_locals_reader()? {
        locals = locals.saturating_add(u64::from(local?.0));
        LOCALS.check(locals)?;
    }
    let mut depth = 1u64;
    let mut operators = body.get_operators_reader()?;
    while !operators.eof() {
        match operators.read()? {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => {
                depth += 1;
                NESTING.check(depth)?;
            }
            Operator::End => depth = depth.saturating_sub(1),
            Operator::BrTable { targets } => BR_TABLE.check(targets.len().into())?,
            _ => {}
        }
    }
    Ok(())
}

/// Why counting stopped.
#[derive(Debug)]
pub(super) enum Malformed {
    /// A cap was passed.
    Refused(Refused),
    /// The bytes are no Wasm.
    Parse(wasmparser::BinaryReaderError),
}

impl From<Refused> for Malformed {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<wasmparser::BinaryReaderError> for Malformed {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        Self::Parse(error)
    }
}
