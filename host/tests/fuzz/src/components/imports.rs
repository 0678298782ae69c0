//! The imports of a world, as a core module within a component sees them.

use anyhow::{Context as _, ensure};
use wit_parser::abi::{AbiVariant, FlatTypes, WasmType};
use wit_parser::{
    Function, FutureIntrinsic, Handle, Int, InterfaceId, LiftLowerAbi, ManglingAndAbi, Resolve, ResourceIntrinsic, SizeAlign,
    StreamIntrinsic, Type, TypeDefKind, TypeId, WasmImport, WorldId, WorldItem, WorldKey,
};

use crate::calls::{At, Given, Import, number};

/// What a handle is to.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Resource(TypeId),
    /// The end of a stream or future that is read, by its type written out.
    Readable(String),
    /// The other one.
    Writable(String),
}

/// All functions of a world's imports, the ends of all its resources, and what is done with its streams and futures.
pub(super) struct Imports<'a> {
    resolve: &'a Resolve,
    sizes: SizeAlign,
    kinds: Vec<Kind>,
    pub(super) all: Vec<Import>,
}

const SYNC: ManglingAndAbi = ManglingAndAbi::Legacy(LiftLowerAbi::Sync);
const ASYNC: ManglingAndAbi = ManglingAndAbi::Legacy(LiftLowerAbi::AsyncCallback);

impl<'a> Imports<'a> {
    /// `least`: how many there are at least.
    pub(super) fn of(resolve: &'a Resolve, world: WorldId, least: usize) -> anyhow::Result<Self> {
        let mut sizes = SizeAlign::default();
        sizes.fill(resolve);
        let mut this = Self { resolve, sizes, kinds: Vec::new(), all: Vec::new() };
        for (key, item) in &resolve.worlds[world].imports {
            if let WorldItem::Interface { id, .. } = item {
                this.add(key, *id);
            }
        }
        ensure!(this.all.len() > least, "{} imports are fewer than there are", this.all.len());
        Ok(this)
    }

    /// How many kinds of handles there are.
    pub(super) fn kinds(&self) -> usize {
        self.kinds.len()
    }

    /// The kind of handle that a function takes at `index`.
    pub(super) fn kind_at(&self, module: &str, name: &str, index: usize) -> anyhow::Result<usize> {
        self.all[number(&self.all, module, name)?].handles[index].context("it has a handle there")
    }

    fn add(&mut self, key: &WorldKey, id: InterfaceId) {
        let interface = &self.resolve.interfaces[id];
        for func in interface.functions.values() {
            self.add_function(key, func, SYNC, AbiVariant::GuestImport);
            if func.kind.is_async() {
                self.add_function(key, func, ASYNC, AbiVariant::GuestImportAsync);
            }
            for ty in func.find_futures_and_streams(self.resolve) {
                self.add_ends(key, func, ty);
            }
        }
        for resource in interface.types.values().filter(|id| matches!(self.resolve.types[**id].kind, TypeDefKind::Resource)) {
            let intrinsic = ResourceIntrinsic::ImportedDrop;
            let import = WasmImport::ResourceIntrinsic { interface: Some(key), resource: *resource, intrinsic };
            let (module, name) = self.resolve.wasm_import_name(SYNC, import);
            let kind = self.kind_of_resource(*resource);
            let handles = vec![Some(kind)];
            self.all.push(Import { handles, ..Import::plain(module, name, vec!["i32".into()], Vec::new()) });
        }
    }

    fn add_function(&mut self, key: &WorldKey, func: &Function, abi: ManglingAndAbi, variant: AbiVariant) {
        let (module, name) = self.resolve.wasm_import_name(abi, WasmImport::Func { interface: Some(key), func });
        let signature = self.resolve.wasm_signature(variant, func);
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
        // What a call that goes on gives lies there only when it has ended.
        if variant == AbiVariant::GuestImport {
            import.gives = func.result.as_ref().map(|ty| self.given(ty)).unwrap_or_default();
        }
        self.all.push(import);
    }

    /// What may be done with a stream or a future that a function names.
    fn add_ends(&mut self, key: &WorldKey, func: &Function, id: TypeId) {
        let Some((shape, is_stream)) = self.shape_of_end(id) else { return };
        let (readable, writable) = (self.kind(Kind::Readable(shape.clone())), self.kind(Kind::Writable(shape)));
        let name = |stream, future, async_| {
            let (interface, ty, exported) = (Some(key), Some(id), false);
            let import = match is_stream {
                true => WasmImport::StreamIntrinsic { interface, func, ty, intrinsic: stream, exported, async_ },
                false => WasmImport::FutureIntrinsic { interface, func, ty, intrinsic: future, exported, async_ },
            };
            self.resolve.wasm_import_name(SYNC, import)
        };
        let words = |count: usize| vec!["i32".to_owned(); count];
        let mut all = Vec::new();
        let (module, new) = name(StreamIntrinsic::New, FutureIntrinsic::New, false);
        let gives = vec![Given { kind: readable, at: At::LowHalf }, Given { kind: writable, at: At::HighHalf }];
        all.push(Import { gives, ..Import::plain(module, new, Vec::new(), vec!["i64".into()]) });
        // A handle, and where the values lie; of a stream, how many.
        let count = if is_stream { 3 } else { 2 };
        let mut moves = |kind, of: fn() -> (StreamIntrinsic, FutureIntrinsic), params: usize, results: usize, async_| {
            let (stream, future) = of();
            let (module, name) = name(stream, future, async_);
            let mut import = Import::plain(module, name, words(params), words(results));
            import.handles[0] = Some(kind);
            all.push(import);
        };
        // The engine has only these: reading goes on by itself, all else waits.
        moves(readable, || (StreamIntrinsic::Read, FutureIntrinsic::Read), count, 1, true);
        moves(writable, || (StreamIntrinsic::Write, FutureIntrinsic::Write), count, 1, true);
        moves(readable, || (StreamIntrinsic::CancelRead, FutureIntrinsic::CancelRead), 1, 1, false);
        moves(writable, || (StreamIntrinsic::CancelWrite, FutureIntrinsic::CancelWrite), 1, 1, false);
        moves(readable, || (StreamIntrinsic::DropReadable, FutureIntrinsic::DropReadable), 1, 0, false);
        moves(writable, || (StreamIntrinsic::DropWritable, FutureIntrinsic::DropWritable), 1, 0, false);
        self.all.append(&mut all);
    }

    fn flat_len(&self, ty: &Type) -> usize {
        let mut room = [WasmType::I32; 64];
        let mut flat = FlatTypes::new(&mut room);
        self.resolve.push_flat(ty, &mut flat);
        flat.to_vec().len()
    }

    fn kind(&mut self, kind: Kind) -> usize {
        match self.kinds.iter().position(|known| *known == kind) {
            Some(number) => number,
            None => {
                self.kinds.push(kind);
                self.kinds.len() - 1
            }
        }
    }

    /// Of a resource, by whatever name it was reached.
    fn kind_of_resource(&mut self, mut id: TypeId) -> usize {
        while let TypeDefKind::Type(Type::Id(other)) = self.resolve.types[id].kind {
            id = other;
        }
        self.kind(Kind::Resource(id))
    }

    /// A type written out: two of the same shape are the same to a stream.
    fn shape(&self, ty: Option<&Type>) -> String {
        let Some(ty) = ty else { return "_".into() };
        let Type::Id(id) = ty else { return format!("{ty:?}") };
        match &self.resolve.types[*id].kind {
            TypeDefKind::Type(other) => self.shape(Some(other)),
            TypeDefKind::Option(of) => format!("option<{}>", self.shape(Some(of))),
            TypeDefKind::Result(of) => format!("result<{}, {}>", self.shape(of.ok.as_ref()), self.shape(of.err.as_ref())),
            TypeDefKind::Handle(Handle::Own(of) | Handle::Borrow(of)) => format!("handle<{}>", self.shape(Some(&Type::Id(*of)))),
            _ => format!("{id:?}"),
        }
    }

    /// Of a stream or a future, and whether it is a stream.
    fn shape_of_end(&self, id: TypeId) -> Option<(String, bool)> {
        match &self.resolve.types[id].kind {
            TypeDefKind::Stream(of) => Some((format!("stream<{}>", self.shape(of.as_ref())), true)),
            TypeDefKind::Future(of) => Some((format!("future<{}>", self.shape(of.as_ref())), false)),
            _ => None,
        }
    }

    fn handle(&mut self, ty: &Type) -> Option<usize> {
        let Type::Id(id) = ty else { return None };
        match self.resolve.types[*id].kind {
            TypeDefKind::Handle(Handle::Own(of) | Handle::Borrow(of)) => Some(self.kind_of_resource(of)),
            TypeDefKind::Type(other) => self.handle(&other),
            _ => self.shape_of_end(*id).map(|(shape, _)| self.kind(Kind::Readable(shape))),
        }
    }

    /// The handles that a call gives: as its result, or as what lies at the place that it was given, of a tuple, or if it went well.
    fn given(&mut self, ty: &Type) -> Vec<Given> {
        if let Some(kind) = self.handle(ty) {
            return vec![Given { kind, at: At::Result }];
        }
        self.given_at(ty, 0, None)
    }

    fn given_at(&mut self, ty: &Type, offset: usize, tag: Option<u8>) -> Vec<Given> {
        if let Some(kind) = self.handle(ty) {
            return vec![Given { kind, at: At::Place { offset, tag } }];
        }
        let Type::Id(id) = ty else { return Vec::new() };
        let (of, cases, tag_of_it) = match &self.resolve.types[*id].kind {
            TypeDefKind::Type(other) => return self.given_at(&other.clone(), offset, tag),
            TypeDefKind::Tuple(tuple) => {
                let fields = self.sizes.field_offsets(tuple.types.iter());
                let fields: Vec<_> = fields.into_iter().map(|(at, ty)| (at.size_wasm32(), *ty)).collect();
                return fields.into_iter().flat_map(|(at, ty)| self.given_at(&ty, offset + at, tag)).collect();
            }
            // One in another has a second tag, which nobody looks at.
            _ if tag.is_some() => return Vec::new(),
            TypeDefKind::Option(of) => (Some(*of), [None, Some(*of)], 1),
            TypeDefKind::Result(result) => (result.ok, [result.ok, result.err], 0),
            _ => return Vec::new(),
        };
        let Some(of) = of else { return Vec::new() };
        let inside = self.sizes.payload_offset(Int::U8, cases.iter().map(Option::as_ref)).size_wasm32();
        self.given_at(&of, offset + inside, Some(tag_of_it))
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
