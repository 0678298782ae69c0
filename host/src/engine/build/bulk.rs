//! Bulk operations in parts, so that no single instruction of a guest keeps its thread.
//!
//! Wasmtime looks at a guest's deadline where it enters a function, where a loop goes back and before a bulk operation, never within one, and
//! `memory.copy`, `memory.fill` and `memory.init` are one for as much as 4 GiB: about a second for each GiB, and many times that where two
//! threads touch new memory at once (docs/decisions/0036). So each module is rewritten before it is compiled: such an instruction calls a function
//! that is added at the module's end, which does the same in a loop, [`PART`] by [`PART`].
//!
//! Owns the rewriting. Runs only in the build process, after the caps were checked and before anything is compiled; knows nothing about what
//! the module is for. Invariants: what a guest computes stays the same, all indices and exports too; what was rewritten once is not rewritten
//! again, for the module of a snapshot comes back when it is compiled anew. What is not valid stays so, and is refused by whoever compiles it.
//!
//! Operations on tables are left as they are: a table has at most 100,000 elements.

use std::collections::BTreeMap;
use std::ops::Range;

use wasm_encoder::{BlockType, CodeSection, Component, Encode as _, Function, InstructionSink, Module, RawSection};
use wasmparser::{BinaryReader, DataKind, FunctionBody, Operator, Parser, Payload, Result, TypeRef};

use super::caps::MEMORIES;

/// Bytes that one instruction moves at most: 0.1 ms of memory that nobody touched yet, 2 us of other.
const PART: u32 = 64 << 10;
/// Ids of sections: of a component, and of the subsection of `name` that has functions.
const CORE_MODULE: u8 = 1;
const COMPONENT: u8 = 4;
const FUNCTION_NAMES: u8 = 1;
/// The type of all functions that are added: three `i32` and no result.
const TYPE: [u8; 6] = [0x60, 3, 0x7f, 0x7f, 0x7f, 0];

/// Rewrites a module, or each module in a component.
///
/// # Errors
/// When the bytes are no Wasm.
///
/// # Cost
/// Two passes over the code of modules that have such operations, one over that of others.
pub(super) fn in_parts(wasm: Vec<u8>) -> Result<Vec<u8>> {
    let rewritten = binary(&wasm, PART)?;
    Ok(rewritten.unwrap_or(wasm))
}

/// What `wasm` becomes, if anything in it changes.
fn binary(wasm: &[u8], part: u32) -> Result<Option<Vec<u8>>> {
    if Parser::is_component(wasm) { component(wasm, part) } else { module(wasm, part) }
}

fn component(wasm: &[u8], part: u32) -> Result<Option<Vec<u8>>> {
    let mut sections = Vec::new();
    let mut reader = BinaryReader::new(wasm.get(HEADER..).unwrap_or_default(), HEADER);
    while !reader.eof() {
        let id = reader.read_u8()?;
        let data = section(&mut reader)?;
        let rewritten = match id {
            // What has the other's header is not valid. The caps have a number of levels.
            CORE_MODULE if !Parser::is_component(data) => module(data, part)?,
            COMPONENT if Parser::is_component(data) => component(data, part)?,
            _ => None,
        };
        sections.push((id, data, rewritten));
    }
    if sections.iter().all(|(.., rewritten)| rewritten.is_none()) {
        return Ok(None);
    }
    let mut out = Component::new();
    for (id, data, rewritten) in &sections {
        out.section(&RawSection { id: *id, data: rewritten.as_deref().unwrap_or(data) });
    }
    Ok(Some(out.finish()))
}

/// Magic and version.
const HEADER: usize = 8;

fn section<'a>(reader: &mut BinaryReader<'a>) -> Result<&'a [u8]> {
    let len = reader.read_var_u32()?;
    reader.read_bytes(len as usize)
}

fn module(wasm: &[u8], part: u32) -> Result<Option<Vec<u8>>> {
    let plan = Plan::of(wasm, part)?;
    if plan.helpers.is_empty() {
        return Ok(None);
    }
    let mut out = Module::new();
    let mut code = CodeSection::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        let raw = |range: Range<usize>| wasm.get(range).unwrap_or_default();
        match &payload {
            Payload::TypeSection(types) => {
                let data = longer(raw(types.range()), &[TYPE.to_vec()])?;
                out.section(&RawSection { id: wasm_encoder::SectionId::Type.into(), data: &data });
            }
            Payload::FunctionSection(functions) => {
                let ty = encoded(plan.types);
                let data = longer(raw(functions.range()), &vec![ty; plan.helpers.len()])?;
                out.section(&RawSection { id: wasm_encoder::SectionId::Function.into(), data: &data });
            }
            Payload::CodeSectionEntry(body) => {
                code.raw(&plan.rewritten(wasm, body)?);
                if code.len() == plan.bodies {
                    plan.helpers.keys().for_each(|bulk| {
                        code.raw(&bulk.helper(plan.part));
                    });
                    out.section(&code);
                }
            }
            // Places in the code, which have moved.
            Payload::CustomSection(custom)
                if custom.name().starts_with("metadata.code.") || custom.name().starts_with(".debug_") => {}
            Payload::CustomSection(custom) if custom.name() == "name" => {
                let named = plan.named(custom.data()).unwrap_or_else(|_| custom.data().to_vec());
                out.section(&wasm_encoder::CustomSection { name: "name".into(), data: named.into() });
            }
            other => {
                if let Some((id, range)) = other.as_section().filter(|(id, _)| *id != u8::from(wasm_encoder::SectionId::Code)) {
                    out.section(&RawSection { id, data: raw(range) });
                }
            }
        }
    }
    Ok(Some(out.finish()))
}

/// An operation that one instruction does. All take a destination, a source or a value, and a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Bulk {
    Copy { to: u32, from: u32 },
    Fill { memory: u32 },
    Init { memory: u32, data: u32 },
}

impl Bulk {
    /// What the instruction does, if it can be valid: the caps have a number of memories.
    fn of(operator: &Operator<'_>) -> Option<Self> {
        let bulk = match *operator {
            Operator::MemoryCopy { dst_mem, src_mem } => Self::Copy { to: dst_mem, from: src_mem },
            Operator::MemoryFill { mem } => Self::Fill { memory: mem },
            Operator::MemoryInit { data_index, mem } => Self::Init { memory: mem, data: data_index },
            _ => return None,
        };
        let highest = match bulk {
            Self::Copy { to, from } => to.max(from),
            Self::Fill { memory } | Self::Init { memory, .. } => memory,
        };
        (u64::from(highest) < MEMORIES.max).then_some(bulk)
    }

    /// What the function that does it is called in backtraces.
    fn name(self) -> &'static str {
        match self {
            Self::Copy { .. } => "memory.copy",
            Self::Fill { .. } => "memory.fill",
            Self::Init { .. } => "memory.init",
        }
    }

    /// Memory and the local that has the address in it, of all that it touches.
    fn places(self) -> Vec<(u32, u32)> {
        match self {
            Self::Copy { to, from } => vec![(to, AT), (from, FROM)],
            Self::Fill { memory } | Self::Init { memory, .. } => vec![(memory, AT)],
        }
    }

    fn emit(self, code: &mut InstructionSink<'_>) {
        match self {
            Self::Copy { to, from } => code.memory_copy(to, from),
            Self::Fill { memory } => code.memory_fill(memory),
            Self::Init { memory, data } => code.memory_init(memory, data),
        };
    }

    /// The whole of what the locals say.
    fn emit_rest(self, code: &mut InstructionSink<'_>) {
        code.local_get(AT).local_get(FROM).local_get(LEN);
        self.emit(code);
    }

    /// The body of the function that does it, in parts of `part` bytes.
    fn helper(self, part: u32) -> Vec<u8> {
        let mut function = Function::new([]);
        let code = &mut function.instructions();
        let size = part.cast_signed();
        code.local_get(LEN).i32_const(size).i32_gt_u().if_(BlockType::Empty);
        // Past the end nothing is written at all, so then it is left to the one instruction, which traps. (A data segment's end shows when a part
        // passes it; but whoever traps is gone, and nobody sees what was written before.)
        for (index, (memory, address)) in self.places().into_iter().enumerate() {
            code.local_get(address).i64_extend_i32_u().local_get(LEN).i64_extend_i32_u().i64_add();
            code.memory_size(memory).i64_extend_i32_u().i64_const(16).i64_shl().i64_gt_u();
            if index > 0 {
                code.i32_or();
            }
        }
        code.if_(BlockType::Empty);
        self.emit_rest(code);
        code.return_().end();
        if let Self::Copy { .. } = self {
            // What lies behind is read before it is written over: from the end.
            code.local_get(AT).local_get(FROM).i32_gt_u().if_(BlockType::Empty).loop_(BlockType::Empty);
            code.local_get(LEN).i32_const(size).i32_sub().local_set(LEN);
            code.local_get(AT).local_get(LEN).i32_add().local_get(FROM).local_get(LEN).i32_add().i32_const(size);
            self.emit(code);
            code.local_get(LEN).i32_const(size).i32_gt_u().br_if(0).end();
            self.emit_rest(code);
            code.return_().end();
        }
        code.loop_(BlockType::Empty).local_get(AT).local_get(FROM).i32_const(size);
        self.emit(code);
        let moving: &[u32] = if let Self::Fill { .. } = self { &[AT] } else { &[AT, FROM] };
        for local in moving {
            code.local_get(*local).i32_const(size).i32_add().local_set(*local);
        }
        code.local_get(LEN).i32_const(size).i32_sub().local_tee(LEN).i32_const(size).i32_gt_u().br_if(0).end().end();
        self.emit_rest(code);
        code.end();
        function.into_raw_body()
    }
}

/// Locals of an added function.
const AT: u32 = 0;
const FROM: u32 = 1;
const LEN: u32 = 2;

/// What one pass over a module found.
#[derive(Default)]
struct Plan {
    part: u32,
    types: u32,
    /// Functions with those that are imported.
    functions: u32,
    bodies: u32,
    /// Data segments, as they are announced before the code.
    segments: u32,
    /// Index of the function that does it.
    helpers: BTreeMap<Bulk, u32>,
}

impl Plan {
    fn of(wasm: &[u8], part: u32) -> Result<Self> {
        let mut plan = Self { part, ..Self::default() };
        // Of data segments that are there to be copied from.
        let mut lengths = Vec::new();
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::TypeSection(types) => plan.types = types.count(),
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        plan.functions += u32::from(matches!(import?.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)));
                    }
                }
                Payload::FunctionSection(functions) => {
                    plan.bodies = functions.count();
                    plan.functions = plan.functions.saturating_add(functions.count());
                }
                Payload::DataCountSection { count, .. } => plan.segments = count,
                Payload::CodeSectionEntry(body) => plan.look(wasm, &body)?,
                Payload::DataSection(data) => {
                    for segment in data {
                        let segment = segment?;
                        lengths.push(if let DataKind::Passive = segment.kind { segment.data.len() } else { 0 });
                    }
                }
                _ => {}
            }
        }
        let is_long = |data: u32| lengths.get(data as usize).is_some_and(|len| *len > part as usize);
        plan.helpers.retain(|bulk, _| if let Bulk::Init { data, .. } = bulk { is_long(*data) } else { true });
        for (index, helper) in (plan.functions..).zip(plan.helpers.values_mut()) {
            *helper = index;
        }
        Ok(plan)
    }

    /// Notes what a body does in bulk.
    fn look(&mut self, wasm: &[u8], body: &FunctionBody<'_>) -> Result<()> {
        let Self { part, segments, helpers, .. } = self;
        each(wasm, body, *part, |bulk, _| {
            if !matches!(bulk, Bulk::Init { data, .. } if data >= *segments) {
                helpers.insert(bulk, 0);
            }
        })
    }

    /// A body that calls functions for what it did in bulk.
    fn rewritten(&self, wasm: &[u8], body: &FunctionBody<'_>) -> Result<Vec<u8>> {
        let range = body.range();
        let mut out = Vec::with_capacity(range.len() + range.len() / 16);
        let mut copied = range.start;
        each(wasm, body, self.part, |bulk, at| {
            if let Some(helper) = self.helpers.get(&bulk) {
                out.extend_from_slice(wasm.get(copied..at.start).unwrap_or_default());
                InstructionSink::new(&mut out).call(*helper);
                copied = at.end;
            }
        })?;
        out.extend_from_slice(wasm.get(copied..range.end).unwrap_or_default());
        Ok(out)
    }

    /// The section of names with those of what was added.
    fn named(&self, names: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(names.len() + 64);
        let mut reader = BinaryReader::new(names, 0);
        while !reader.eof() {
            let id = reader.read_u8()?;
            let data = section(&mut reader)?;
            out.push(id);
            if id == FUNCTION_NAMES {
                let added = self.helpers.iter().map(|(bulk, index)| {
                    let mut name = encoded(*index);
                    bulk.name().encode(&mut name);
                    name
                });
                longer(data, &added.collect::<Vec<_>>())?.encode(&mut out);
            } else {
                data.encode(&mut out);
            }
        }
        Ok(out)
    }
}

/// Calls `found` with each operation that may be long, and where it is.
fn each(wasm: &[u8], body: &FunctionBody<'_>, part: u32, mut found: impl FnMut(Bulk, Range<usize>)) -> Result<()> {
    let mut operators = body.get_operators_reader()?;
    // Of a length that is a small constant wasmtime makes a few moves in place (up to 128 bytes in 48.0.8).
    let mut is_short = false;
    while !operators.eof() {
        let (operator, at) = operators.read_with_offset()?;
        if let Some(bulk) = Bulk::of(&operator).filter(|bulk| !is_short && !is_helper(wasm, body, *bulk, part)) {
            found(bulk, at..operators.original_position());
        }
        is_short = matches!(operator, Operator::I32Const { value } if value.cast_unsigned() <= part);
    }
    Ok(())
}

/// Whether the body is what was added for `bulk` when the module was rewritten before.
fn is_helper(wasm: &[u8], body: &FunctionBody<'_>, bulk: Bulk, part: u32) -> bool {
    let body = wasm.get(body.range()).unwrap_or_default();
    // What is longer is not made to be compared, for each instruction of it.
    body.len() < HELPER_BYTES_MAX && body == bulk.helper(part)
}

/// Longer than any function that is added.
const HELPER_BYTES_MAX: usize = 512;

/// A section that is a list, with more in it.
fn longer(list: &[u8], more: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut reader = BinaryReader::new(list, 0);
    let count = reader.read_var_u32()?;
    let mut out = encoded(count.saturating_add(u32::try_from(more.len()).unwrap_or(u32::MAX)));
    out.extend_from_slice(reader.read_bytes(reader.bytes_remaining())?);
    more.iter().for_each(|item| out.extend_from_slice(item));
    Ok(out)
}

fn encoded(number: u32) -> Vec<u8> {
    let mut out = Vec::new();
    number.encode(&mut out);
    out
}

#[cfg(test)]
mod tests;
