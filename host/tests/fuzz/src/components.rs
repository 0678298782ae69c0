//! Host calls of components: as `abi.rs`, with one guest that imports all that a component of WASI 0.2 can. Where a number that is no handle
//! ends the guest, it keeps the handles that it is given, the last one of each kind, and most often passes those.

use anyhow::{Context as _, ensure};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::abi::{AbiVariant, FlatTypes, WasmType};
use wit_parser::{
    Handle, Int, InterfaceId, LiftLowerAbi, ManglingAndAbi, Resolve, ResourceIntrinsic, SizeAlign, SourceMap, Type, TypeDefKind,
    TypeId, WasmImport, WorldId, WorldItem, WorldKey,
};

use crate::calls::{AS_IT_IS, Given, Import, MEMORY_LEN, Numbers, PLACE, WORDS, fuzz, heads, number, switch};
use crate::report::Report;

/// One group of files for each package, those that others use first.
const PACKAGES: [&[&str]; 13] = [
    &[include_str!("../wit/wasi/io.wit")],
    &[include_str!("../wit/wasi/clocks.wit")],
    &[include_str!("../wit/wasi/random.wit")],
    &[include_str!("../wit/wasi/filesystem.wit")],
    &[include_str!("../wit/wasi/sockets.wit")],
    &[include_str!("../wit/wasi/cli.wit")],
    &[include_str!("../wit/wasi/http.wit")],
    &[include_str!("../wit/wasi/config.wit")],
    &[
        include_str!("../../../wit/blobstore/deps/io/error.wit"),
        include_str!("../../../wit/blobstore/deps/io/poll.wit"),
        include_str!("../../../wit/blobstore/deps/io/streams.wit"),
        include_str!("../../../wit/blobstore/deps/io/world.wit"),
    ],
    &[
        include_str!("../../../wit/blobstore/blobstore.wit"),
        include_str!("../../../wit/blobstore/container.wit"),
        include_str!("../../../wit/blobstore/types.wit"),
        include_str!("../../../wit/blobstore/world.wit"),
    ],
    &[
        include_str!("../../../wit/keyvalue/atomic.wit"),
        include_str!("../../../wit/keyvalue/batch.wit"),
        include_str!("../../../wit/keyvalue/store.wit"),
        include_str!("../../../wit/keyvalue/watch.wit"),
        include_str!("../../../wit/keyvalue/world.wit"),
    ],
    &[
        include_str!("../../../wit/keyvalue2/atomic.wit"),
        include_str!("../../../wit/keyvalue2/batch.wit"),
        include_str!("../../../wit/keyvalue2/store.wit"),
        include_str!("../../../wit/keyvalue2/watch.wit"),
        include_str!("../../../wit/keyvalue2/world.wit"),
    ],
    &[include_str!("../wit/all.wit")],
];

/// What components may import: the packages, and the world of all of them.
fn world() -> anyhow::Result<(Resolve, WorldId)> {
    let (mut resolve, mut last) = (Resolve::default(), None);
    for (number, files) in PACKAGES.iter().enumerate() {
        let mut map = SourceMap::default();
        for (file, text) in files.iter().enumerate() {
            map.push_str(&format!("{number}-{file}.wit"), *text);
        }
        let group = map.parse().map_err(|(_, error)| anyhow::anyhow!("package {number}: {error:?}"))?;
        last = Some(resolve.push_group(group).map_err(|error| anyhow::anyhow!("package {number}: {error:?}"))?);
    }
    let package = last.context("there are packages")?;
    let world = *resolve.packages[package].worlds.values().next().context("there is a world")?;
    Ok((resolve, world))
}

/// All functions of a world's imports, as a core module within a component sees them, and the ends of all its resources.
struct Imports<'a> {
    resolve: &'a Resolve,
    sizes: SizeAlign,
    /// Kinds of resources.
    kinds: Vec<TypeId>,
    all: Vec<Import>,
}

const ABI: ManglingAndAbi = ManglingAndAbi::Legacy(LiftLowerAbi::Sync);

impl<'a> Imports<'a> {
    fn of(resolve: &'a Resolve, world: WorldId) -> anyhow::Result<Self> {
        let mut sizes = SizeAlign::default();
        sizes.fill(resolve);
        let mut this = Self { resolve, sizes, kinds: Vec::new(), all: Vec::new() };
        for (key, item) in &resolve.worlds[world].imports {
            if let WorldItem::Interface { id, .. } = item {
                this.add(key, *id);
            }
        }
        ensure!(this.all.len() > 250, "{} imports are fewer than there are", this.all.len());
        Ok(this)
    }

    fn add(&mut self, key: &WorldKey, id: InterfaceId) {
        let interface = &self.resolve.interfaces[id];
        for func in interface.functions.values() {
            let (module, name) = self.resolve.wasm_import_name(ABI, WasmImport::Func { interface: Some(key), func });
            let signature = self.resolve.wasm_signature(AbiVariant::GuestImport, func);
            let mut import = Import::plain(module, name, names(&signature.params), names(&signature.results));
            if !signature.indirect_params {
                let mut index = 0;
                for param in &func.params {
                    if let Some(kind) = self.handle(&param.ty) {
                        import.handles[index] = Some(kind);
                    }
                    index += self.flat_len(&param.ty);
                }
            }
            import.gives = func.result.as_ref().and_then(|ty| self.given(ty));
            self.all.push(import);
        }
        for resource in interface.types.values().filter(|id| matches!(self.resolve.types[**id].kind, TypeDefKind::Resource)) {
            let intrinsic = ResourceIntrinsic::ImportedDrop;
            let import = WasmImport::ResourceIntrinsic { interface: Some(key), resource: *resource, intrinsic };
            let (module, name) = self.resolve.wasm_import_name(ABI, import);
            let kind = self.kind(*resource);
            let handles = vec![Some(kind)];
            self.all.push(Import { handles, ..Import::plain(module, name, vec!["i32".into()], Vec::new()) });
        }
    }

    fn flat_len(&self, ty: &Type) -> usize {
        let mut room = [WasmType::I32; 64];
        let mut flat = FlatTypes::new(&mut room);
        self.resolve.push_flat(ty, &mut flat);
        flat.to_vec().len()
    }

    /// The number of a kind of resources, by whatever name it was reached.
    fn kind(&mut self, mut id: TypeId) -> usize {
        while let TypeDefKind::Type(Type::Id(other)) = self.resolve.types[id].kind {
            id = other;
        }
        match self.kinds.iter().position(|kind| *kind == id) {
            Some(kind) => kind,
            None => {
                self.kinds.push(id);
                self.kinds.len() - 1
            }
        }
    }

    fn handle(&mut self, ty: &Type) -> Option<usize> {
        let Type::Id(id) = ty else { return None };
        match self.resolve.types[*id].kind {
            TypeDefKind::Handle(Handle::Own(of) | Handle::Borrow(of)) => Some(self.kind(of)),
            TypeDefKind::Type(other) => self.handle(&other),
            _ => None,
        }
    }

    /// The handle that a call gives: as it is, or as what it has if it went well.
    fn given(&mut self, ty: &Type) -> Option<Given> {
        if let Some(kind) = self.handle(ty) {
            return Some(Given { kind, at: None });
        }
        let Type::Id(id) = ty else { return None };
        let (of, cases, tag) = match &self.resolve.types[*id].kind {
            TypeDefKind::Option(of) => (*of, [None, Some(*of)], 1),
            TypeDefKind::Result(result) => (result.ok?, [result.ok, result.err], 0),
            _ => return None,
        };
        let kind = self.handle(&of)?;
        let offset = self.sizes.payload_offset(Int::U8, cases.iter().map(Option::as_ref)).size_wasm32();
        Some(Given { kind, at: Some((offset, tag)) })
    }
}

fn names(types: &[WasmType]) -> Vec<String> {
    let name = |ty: &WasmType| match ty {
        WasmType::I32 | WasmType::Pointer | WasmType::Length => "i32",
        WasmType::I64 | WasmType::PointerOrI64 => "i64",
        WasmType::F32 => "f32",
        WasmType::F64 => "f64",
    };
    types.iter().map(|ty| name(ty).to_owned()).collect()
}

/// A component whose handler makes the calls of its request's body.
fn component(world: WorldId, imports: &Imports<'_>) -> anyhow::Result<Vec<u8>> {
    let Imports { resolve, kinds, all: imports, .. } = imports;
    let (http, io) = ("wasi:http/types@", "wasi:io/streams@0.2.12");
    let consume = number(imports, http, "[method]incoming-request.consume")?;
    let stream = number(imports, http, "[method]incoming-body.stream")?;
    let read = number(imports, io, "[method]input-stream.blocking-read")?;
    let (heads, switch) = (heads(imports)?, switch(imports)?);
    let globals: String = (0..kinds.len()).map(|kind| format!("(global $r{kind} (mut i32) (i32.const 0))")).collect();
    let handle_of = |number: usize, index: usize| imports[number].handles[index].context("it has a handle there");
    let (request, body, input) = (handle_of(consume, 0)?, handle_of(stream, 0)?, handle_of(read, 0)?);
    let reply = handle_of(number(imports, http, "[static]response-outparam.set")?, 0)?;
    // What a call gives lies at PLACE; what the host allocates lies behind the first memory, and grows it.
    let text = format!(
        r#"(module {heads}
  (memory (export "memory") {pages} 64)
  (data (i32.const 0) "{WORDS}")
  {globals}
  (func $handle (param $there i32) (param $given i32) (result i32)
    (select (local.get $there) (local.get $given) (i32.lt_u (local.get $given) (i32.const {AS_IT_IS}))))
  (global $free (mut i32) (i32.const {MEMORY_LEN}))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
    (if (i32.gt_u (local.get 3) (i32.const {most})) (then unreachable))
    (global.set $free (i32.add (local.get $at) (local.get 3)))
    (block $fits (loop $grows
      (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
      (br_if $grows (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))
      unreachable))
    (local.get $at))
  (func $must (if (i32.load8_u (i32.const {PLACE})) (then unreachable)))
  (func (export "wasi:http/incoming-handler@0.2.12#handle") (param i32 i32) (local $at i32) (local $end i32)
    (global.set $r{request} (local.get 0))
    (global.set $r{reply} (local.get 1))
    (call $f{consume} (local.get 0) (i32.const {PLACE})) (call $must)
    (global.set $r{body} (i32.load (i32.const {given})))
    (call $f{stream} (i32.load (i32.const {given})) (i32.const {PLACE})) (call $must)
    (global.set $r{input} (i32.load (i32.const {given})))
    (call $f{read} (i32.load (i32.const {given})) (i64.const 65536) (i32.const {PLACE})) (call $must)
    (local.set $at (i32.load (i32.const {given})))
    (local.set $end (i32.add (local.get $at) (i32.load (i32.const {len}))))
    {switch}))"#,
        pages = MEMORY_LEN >> 16,
        most = 64 << 16,
        given = PLACE + 4,
        len = PLACE + 8,
    );
    let mut module = wat::parse_str(text)?;
    embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8).map_err(anyhow::Error::msg)?;
    let mut encoder = ComponentEncoder::default().module(&module).map_err(anyhow::Error::msg)?;
    encoder.encode().map_err(anyhow::Error::msg)
}

pub(crate) fn run(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let (resolve, world) = world()?;
    let imports = Imports::of(&resolve, world)?;
    let wasm = component(world, &imports)?;
    fuzz(report, &wasm, &imports.all, Numbers::Likely, runs, seed)
}
