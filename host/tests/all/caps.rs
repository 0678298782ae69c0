//! Structural caps: for each, a module exactly at it is a function that answers, and one past it is refused by the cap's name.

use hob::engine::build::CAPS;
use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, DataSection, ElementSection, Elements, EntityType, ExportKind, ExportSection, Function,
    FunctionSection, GlobalSection, GlobalType, ImportSection, Instruction, MemorySection, MemoryType, Module, RefType,
    TableSection, TableType, TypeSection, ValType,
};

use crate::harness::Node;
use crate::harness::wat::{component, wasm};

/// How many of each part a handler is to have in all. Zero means: as few as it needs.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    functions: usize,
    types: usize,
    imports: usize,
    exports: usize,
    segments: usize,
    body_bytes: usize,
    locals: usize,
    memories: usize,
    tables: usize,
    elements: usize,
    segment_elements: usize,
    nesting: usize,
    targets: usize,
    globals: usize,
}

/// A handler that answers 200 with an empty body, with that much beside it.
fn handler(counts: Counts) -> Vec<u8> {
    let page = MemoryType { minimum: 1, maximum: None, memory64: false, shared: false, page_size_log2: None };
    let mut module = Module::new();

    let mut types = TypeSection::new();
    types.ty().function([], []);
    types.ty().function([ValType::I32, ValType::I32], []);
    for number in 2..counts.types {
        // A type of its own for each number: its digits in base 2.
        types.ty().function((0..14).map(|bit| if number >> bit & 1 == 1 { ValType::I64 } else { ValType::I32 }), []);
    }
    module.section(&types);

    let mut imports = ImportSection::new();
    for _ in 0..counts.imports.max(1) {
        imports.import("hob1", "respond", EntityType::Function(1));
    }
    module.section(&imports);

    let mut functions = FunctionSection::new();
    for _ in 0..counts.functions.max(2) {
        functions.function(0);
    }
    module.section(&functions);

    let mut tables = TableSection::new();
    for number in 0..counts.tables.max(1) {
        let minimum = if number == 0 { counts.elements as u64 } else { 0 };
        tables.table(TableType { element_type: RefType::FUNCREF, table64: false, minimum, maximum: None, shared: false });
    }
    module.section(&tables);

    let mut memories = MemorySection::new();
    for _ in 0..counts.memories.max(1) {
        memories.memory(page);
    }
    module.section(&memories);

    let mut globals = GlobalSection::new();
    for _ in 0..counts.globals {
        globals.global(GlobalType { val_type: ValType::I32, mutable: true, shared: false }, &ConstExpr::i32_const(0));
    }
    module.section(&globals);

    let entry = u32::try_from(counts.imports.max(1)).unwrap();
    let mut exports = ExportSection::new();
    exports.export("memory", ExportKind::Memory, 0);
    exports.export("hob_handle", ExportKind::Func, entry);
    for number in 2..counts.exports {
        exports.export(&format!("e{number}"), ExportKind::Func, entry);
    }
    module.section(&exports);

    if counts.segment_elements > 0 {
        let mut elements = ElementSection::new();
        elements.declared(Elements::Functions(vec![entry; counts.segment_elements].into()));
        module.section(&elements);
    }

    module.section(&code(counts));

    let mut data = DataSection::new();
    for _ in 0..counts.segments {
        data.active(0, &ConstExpr::i32_const(0), []);
    }
    module.section(&data);
    module.finish()
}

/// The entry, one function with what is to be capped in bodies, and empty ones.
fn code(counts: Counts) -> CodeSection {
    let mut code = CodeSection::new();
    let mut entry = Function::new([]);
    // The record is all zero but for the status: i32.const 4, i32.const 200, i32.store16; then i32.const 0, i32.const 12, call 0.
    entry.raw([0x41, 4, 0x41, 0xc8, 0x01, 0x3b, 1, 0, 0x41, 0, 0x41, 12, 0x10, 0, 0x0b]);
    code.function(&entry);

    if counts.body_bytes > 0 {
        // No locals, no-operations, and the end.
        let mut body = vec![1; counts.body_bytes];
        (body[0], body[counts.body_bytes - 1]) = (0, 0x0b);
        code.raw(&body);
    } else {
        let locals = u32::try_from(counts.locals).unwrap();
        let mut large = Function::new((locals > 0).then_some((locals, ValType::I32)));
        // The body of the function is the first level.
        for _ in 1..counts.nesting {
            large.instruction(&Instruction::Block(BlockType::Empty));
        }
        for _ in 1..counts.nesting {
            large.instruction(&Instruction::End);
        }
        if counts.targets > 0 {
            large.instruction(&Instruction::I32Const(0));
            large.instruction(&Instruction::BrTable(vec![0; counts.targets].into(), 0));
        }
        large.instruction(&Instruction::End);
        code.function(&large);
    }
    let mut empty = Function::new([]);
    empty.instruction(&Instruction::End);
    for _ in 2..counts.functions {
        code.function(&empty);
    }
    code
}

/// A module with `count` of what the cap of this name counts.
fn module(cap: &str, count: usize) -> Vec<u8> {
    let none = Counts::default();
    let counts = match cap {
        "core modules" => return wasm(&component(&"(core module)".repeat(count - 1))),
        "levels of components" => {
            return wasm(&component(&["(component ".repeat(count - 1), ")".repeat(count - 1)].concat()));
        }
        "functions" => Counts { functions: count, ..none },
        "types" => Counts { types: count, ..none },
        "imports" => Counts { imports: count, ..none },
        "exports" => Counts { exports: count, ..none },
        "data segments" => Counts { segments: count, ..none },
        "bytes of one function body" => Counts { body_bytes: count, ..none },
        "locals of one function" => Counts { locals: count, ..none },
        "memories" => Counts { memories: count, ..none },
        "tables" => Counts { tables: count, ..none },
        "table elements" => Counts { elements: count, ..none },
        "levels of nesting" => Counts { nesting: count, ..none },
        "targets of one br_table" => Counts { targets: count, ..none },
        "globals" => Counts { globals: count, ..none },
        other => panic!("the cap '{other}' has no test: say here how to reach it"),
    };
    handler(counts)
}

#[track_caller]
fn check_refused(node: &Node, name: &str, max: u64, wasm: &[u8]) {
    let problem = node.deploy("past", wasm, "").problem(422, "module-over-cap");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(name) && detail.contains(&max.to_string()), "{name}: {detail}");
    assert!(problem["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{problem}");
}

#[test]
fn past_every_cap() {
    let node = Node::start(&[]);
    for cap in CAPS {
        check_refused(&node, cap.name, cap.max, &module(cap.name, usize::try_from(cap.max).unwrap() + 1));
    }
    // Elements count in segments too, and memories and tables when they are imported.
    let max = CAPS.iter().find(|cap| cap.name == "table elements").unwrap().max;
    let elements = Counts { segment_elements: usize::try_from(max).unwrap() + 1, ..Counts::default() };
    check_refused(&node, "table elements", max, &handler(elements));
    let memories =
        "(module (import \"a\" \"b\" (memory 1)) (import \"a\" \"c\" (memory 1)) (memory 1) (func (export \"_start\")))";
    check_refused(&node, "memories", 2, &wasm(memories));
    // In a component the caps hold for each module inside.
    let inside = component(&format!("(core module {})", "(memory 1)".repeat(3)));
    check_refused(&node, "memories", 2, &wasm(&inside));
    node.control.get("/v1/functions/past").problem(404, "not-found");
}

#[test]
fn at_every_cap() {
    let node = Node::start(&[]);
    for cap in CAPS {
        let wasm = module(cap.name, usize::try_from(cap.max).unwrap());
        let reply = node.deploy("at", &wasm, "");
        assert!(matches!(reply.status(), 200 | 201), "{}: {} {}", cap.name, reply.status(), reply.text());
        assert_eq!(node.data.get("/at").good(), b"", "{}", cap.name);
    }
}

/// A core module that is to become a component, and imports `count` functions that take a text.
fn unfinished(count: usize) -> Vec<u8> {
    let functions: String = (0..count).map(|n| format!("call{n}: func(text: string);")).collect();
    let types = format!("package test:caps; interface calls {{ {functions} }} world caps {{ import calls; }}");
    let mut resolve = wit_parser::Resolve::new();
    let package = resolve.push_str("caps.wit", &types).unwrap();
    let world = resolve.select_world(&[package], None).unwrap();
    let imports: String =
        (0..count).map(|n| format!("(import \"test:caps/calls\" \"call{n}\" (func (param i32 i32)))")).collect();
    let mut module = wasm(&format!("(module {imports} (memory (export \"memory\") 1) (func (export \"_start\")))"));
    wit_component::embed_component_metadata(&mut module, &resolve, world, wit_component::StringEncoding::UTF8).unwrap();
    module
}

#[test]
fn a_module_within_the_caps_whose_component_is_not() {
    let node = Node::start(&[]);
    let max = CAPS.iter().find(|cap| cap.name == "imports").unwrap().max;
    let count = usize::try_from(max).unwrap();
    // Its component has a module that puts each function that needs the memory into a table: it imports them all, and two more.
    check_refused(&node, "imports", max, &unfinished(count));
    check_refused(&node, "imports", max, &unfinished(count - 1));
    // With two less it is within the caps, and refused for what it imports.
    let refused = node.deploy("past", &unfinished(count - 2), "").problem(422, "not-deployable");
    assert!(refused["detail"].as_str().unwrap().contains("test:caps/calls"), "{refused}");
    node.control.get("/v1/functions/past").problem(404, "not-found");
}

#[test]
fn an_upload_at_and_past_its_size() {
    let node = Node::start(&["data.upload_bytes_max=64KiB"]);
    let padded = |len: usize| {
        // A custom section of the length that is missing: its head takes 1 + 3 + 1 bytes, its name is empty.
        let mut wasm = handler(Counts::default());
        let rest = len - wasm.len() - 4;
        wasm.push(0);
        wasm.extend([(rest & 0x7f) as u8 | 0x80, (rest >> 7 & 0x7f) as u8 | 0x80, (rest >> 14) as u8]);
        wasm.resize(len, 0);
        wasm
    };
    assert_eq!(node.deploy("a", &padded(65_536), "").status(), 201);
    node.deploy("a", &padded(65_537), "").problem(413, "body-too-large");
    node.deploy("a", &padded(65_537), "args = []\n").problem(413, "body-too-large");
    assert_eq!(node.inspect("a")["revision"], 1);
}
