use wasmtime::{Config, Engine, Instance, Store, Trap, UpdateDeadline};

use super::*;

/// Bytes of a part in tests, so that small memories have many.
const SMALL: u32 = 16;
const PAGE: u32 = 64 << 10;

/// One function for each operation, of two memories, and of data that is longer than a part and shorter.
const ALL: &str = r#"(module $all
    (memory $m (export "m") 1) (memory $n (export "n") 1)
    (data $long "0123456789abcdefghijklmnopqrstuvwxyz") (data $short "xyz") (data (i32.const 7) "active")
    (func $copy (export "copy") (param i32 i32 i32) (memory.copy (local.get 0) (local.get 1) (local.get 2)))
    (func (export "across") (param i32 i32 i32) (memory.copy $n $m (local.get 0) (local.get 1) (local.get 2)))
    (func (export "fill") (param i32 i32 i32) (memory.fill $n (local.get 0) (local.get 1) (local.get 2)))
    (func (export "long") (param i32 i32 i32) (memory.init $m $long (local.get 0) (local.get 1) (local.get 2)))
    (func (export "short") (param i32 i32 i32) (memory.init $n $short (local.get 0) (local.get 1) (local.get 2)))
    (func (export "constant") (param i32 i32 i32)
        (memory.copy (local.get 0) (local.get 1) (i32.const 16)) (memory.fill (local.get 0) (local.get 1) (i32.const 17)))
    (func (export "drop") (param i32 i32 i32) (data.drop $long))
    (func (export "twice") (param i32 i32 i32)
        (memory.fill $m (local.get 0) (local.get 1) (local.get 2))
        (block (loop (memory.copy (local.get 1) (local.get 0) (local.get 2)) (br 1))) nop))"#;

fn rewritten(wasm: &[u8], part: u32) -> Vec<u8> {
    let out = binary(wasm, part).unwrap().expect("something changes");
    wasmparser::Validator::new().validate_all(&out).unwrap();
    assert_eq!(binary(&out, part).unwrap(), None, "once is enough");
    out
}

/// How many operations are left that may be long.
fn left(wasm: &[u8], part: u32) -> usize {
    let mut left = 0;
    for payload in Parser::new(0).parse_all(wasm) {
        if let Payload::CodeSectionEntry(body) = payload.unwrap() {
            each(wasm, &body, part, |_, _| left += 1).unwrap();
        }
    }
    left
}

fn compiled(wasm: &[u8]) -> wasmtime::Module {
    let mut config = Config::new();
    config.epoch_interruption(true).wasm_multi_memory(true);
    wasmtime::Module::from_binary(&Engine::new(&config).unwrap(), wasm).unwrap()
}

struct Guest(Store<u64>, Instance);

impl Guest {
    fn new(wasm: &[u8]) -> Self {
        Self::of(&compiled(wasm))
    }

    fn of(module: &wasmtime::Module) -> Self {
        let mut store = Store::new(module.engine(), 0);
        store.set_epoch_deadline(1);
        let instance = Instance::new(&mut store, module, &[]).unwrap();
        Self(store, instance)
    }

    /// From now on each look at the deadline is counted, and passes.
    fn counting(mut self) -> Self {
        self.0.epoch_deadline_callback(|mut store| {
            *store.data_mut() += 1;
            Ok(UpdateDeadline::Continue(0))
        });
        self.0.set_epoch_deadline(0);
        self
    }

    fn call(&mut self, name: &str, args: (u32, u32, u32)) -> Result<(), Trap> {
        let function = self.1.get_typed_func::<(u32, u32, u32), ()>(&mut self.0, name).unwrap();
        function.call(&mut self.0, args).map_err(|error| *error.downcast_ref().unwrap())
    }

    fn memories(&mut self, mut each: impl FnMut(&mut [u8])) {
        for name in ["m", "n"] {
            let memory = self.1.get_memory(&mut self.0, name).unwrap();
            each(memory.data_mut(&mut self.0));
        }
    }
}

#[test]
fn it_does_what_one_instruction_does() {
    let wasm = wat::parse_str(ALL).unwrap();
    let rewritten = rewritten(&wasm, SMALL);
    // All but the copy of 16 bytes; what is left is of the short segment.
    assert_eq!((left(&wasm, SMALL), left(&rewritten, SMALL)), (8, 1));
    let modules = [compiled(&rewritten), compiled(&wasm)];
    let begun: Vec<u8> = (0..PAGE).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
    let pair = || {
        let mut guests = [Guest::of(&modules[0]), Guest::of(&modules[1])];
        guests.iter_mut().for_each(|guest| guest.memories(|memory| memory.copy_from_slice(&begun)));
        guests
    };
    let lengths = [0, 1, 15, 16, 17, 32, 36, 37, 1000, PAGE - 1, PAGE, PAGE + 1, u32::MAX];
    let places = [0, 1, 7, 20, 40, 900, PAGE - 16, PAGE - 1, PAGE, u32::MAX - 15];
    let (mut ended, mut trapped) = (0, 0);
    for name in ["long", "copy", "across", "fill", "short", "constant", "twice"] {
        let mut guests = pair();
        for args in lengths.into_iter().flat_map(|len| places.map(|at| places.map(|from| (at, from, len)))).flatten() {
            let [is, should] = guests.each_mut().map(|guest| guest.call(name, args));
            assert_eq!(is, should, "{name} {args:?}");
            if is.is_ok() {
                ended += 1;
                let [is, should] = guests.each_mut().map(|guest| {
                    let mut memories = Vec::new();
                    guest.memories(|memory| memories.push(memory.to_vec()));
                    memories
                });
                assert!(is == should, "{name} {args:?}");
            } else {
                trapped += 1;
                // The trap ends the instance. Of a segment that was too short, the parts before its end were written.
                guests = pair();
            }
        }
    }
    assert!(ended > 1000 && trapped > 1000, "{ended}, {trapped}");
    let mut guest = Guest::of(&modules[0]);
    assert_eq!(guest.call("long", (0, 0, 36)), Ok(()));
    guest.call("drop", (0, 0, 0)).unwrap();
    assert_eq!(guest.call("long", (0, 0, 36)), Err(Trap::MemoryOutOfBounds));
}

#[test]
fn the_last_bytes_of_four_gibibytes_are_not_passed() {
    // An address past them would be a small one again.
    let wasm = wat::parse_str(ALL.replace("1) (memory $n (export \"n\") 1)", "65536) (memory $n (export \"n\") 1)")).unwrap();
    let mut guest = Guest::new(&rewritten(&wasm, SMALL));
    let end = u32::MAX - 31;
    assert_eq!(guest.call("copy", (end, 0, 32)), Ok(()));
    for args in [(end, 0, 64), (0, end, 64), (end, end - 16, 64), (end - 16, end, 64)] {
        assert_eq!(guest.call("copy", args), Err(Trap::MemoryOutOfBounds), "{args:?}");
    }
}

#[test]
fn a_deadline_is_looked_at_between_parts() {
    let wasm = wat::parse_str(ALL).unwrap();
    let parts = u64::from(PAGE / SMALL);
    for (name, args) in [("fill", (0, 7, PAGE)), ("copy", (0, 0, PAGE)), ("copy", (1, 0, PAGE - 1)), ("across", (0, 0, PAGE))] {
        let mut whole = Guest::new(&wasm).counting();
        whole.call(name, args).unwrap();
        let outside = *whole.0.data();
        assert!(outside < 4, "{name}: where functions begin and before the operation, and nowhere else: {outside}");
        let mut guest = Guest::new(&rewritten(&wasm, SMALL)).counting();
        guest.call(name, args).unwrap();
        assert!((parts..parts + 8).contains(guest.0.data()), "{name}: {} of {parts}", guest.0.data());
    }
}

#[test]
fn modules_at_every_depth_of_a_component() {
    let module = ALL.replacen("(module $all", "(core module", 1);
    let wasm = wat::parse_str(format!("(component {module} (component {module} (core module)))")).unwrap();
    let rewritten = rewritten(&wasm, PART);
    let of = |wasm: &[u8]| Parser::new(0).parse_all(wasm).filter(|p| matches!(p, Ok(Payload::CodeSectionEntry(_)))).count();
    // Copying within and across, filling one and the other; no segment is longer than a part.
    assert_eq!(of(&rewritten), of(&wasm) + 2 * 4);
    assert_eq!(left(&rewritten, PART), 2 * 2, "short and long");
}

#[test]
fn what_has_none_stays_as_it_is() {
    for text in ["(module)", "(module (func nop) (memory 1) (data \"x\"))", "(component)", "(component (core module (func nop)))"]
    {
        let wasm = wat::parse_str(text).unwrap();
        assert_eq!(in_parts(wasm.clone()).unwrap(), wasm);
    }
    let wasm = wat::parse_str(ALL).unwrap();
    assert!(binary(&wasm[..wasm.len() - 1], PART).is_err(), "and half a module is none");
}

#[test]
fn functions_that_are_added_have_names() {
    let out = rewritten(&wat::parse_str(ALL).unwrap(), PART);
    let mut names = Vec::new();
    for payload in Parser::new(0).parse_all(&out) {
        if let Payload::CustomSection(custom) = payload.unwrap()
            && let wasmparser::KnownCustom::Name(section) = custom.as_known()
        {
            for subsection in section {
                if let wasmparser::Name::Function(functions) = subsection.unwrap() {
                    names.extend(functions.into_iter().map(|naming| naming.map(|naming| (naming.index, naming.name)).unwrap()));
                }
            }
        }
    }
    let expected = [(0, "copy"), (8, "memory.copy"), (9, "memory.copy"), (10, "memory.fill"), (11, "memory.fill")];
    assert_eq!(names, expected);
}
