//! Host calls: any numbers for any parameter of any import, in any order, end in an answer of the call or in an end of the guest that is
//! its own. One guest imports all that a core module can have.

use anyhow::ensure;
use hob::capability::{Host, link_modules};
use wasmtime::{ExternType, ValType};

use crate::calls::{Carried, Guest, Import, MEMORY_LEN, Numbers, PLACE, WORDS, fuzz, heads, number, switch};
use crate::report::Report;

/// All functions that a core module may import, as the linker has them.
fn of_modules() -> anyhow::Result<Vec<Import>> {
    let mut config = wasmtime::Config::new();
    config.epoch_interruption(true);
    let engine = wasmtime::Engine::new(&config)?;
    let mut linker = wasmtime::Linker::<Host>::new(&engine);
    link_modules(&mut linker)?;
    let mut store = wasmtime::Store::new(&engine, Host::for_nobody());
    let items: Vec<_> = linker.iter(&mut store).map(|(module, name, item)| (module.to_owned(), name.to_owned(), item)).collect();
    let names = |types: &mut dyn Iterator<Item = ValType>| types.map(|ty| ty.to_string()).collect();
    let functions = items.into_iter().filter_map(|(module, name, item)| match item.ty(&store) {
        ExternType::Func(ty) => Some(Import::plain(module, name, names(&mut ty.params()), names(&mut ty.results()))),
        _ => None,
    });
    let mut imports: Vec<_> = functions.collect();
    imports.sort_by(|one, other| (&one.module, &one.name).cmp(&(&other.module, &other.name)));
    ensure!(imports.len() > 50, "{} imports are fewer than there are", imports.len());
    Ok(imports)
}

/// A handler that makes the calls of its request's body.
fn module(imports: &[Import]) -> anyhow::Result<Vec<u8>> {
    let request_read = number(imports, "", "request_read")?;
    let (heads, switch) = (heads(imports)?, switch(imports)?);
    // The body lies inline behind method, target and headers: its length is the last number of the head.
    let text = format!(
        r#"(module {heads}
  (memory (export "memory") {pages} 64)
  (data (i32.const 0) "{WORDS}")
  (func (export "hob_handle") (local $at i32) (local $end i32) (local $pair i64)
    (local.set $end (i32.add (i32.const {PLACE}) (call $f{request_read} (i32.const {PLACE}) (i32.const 30000))))
    (local.set $at (i32.sub (local.get $end) (i32.load (i32.const {body_len}))))
    {switch}))"#,
        pages = MEMORY_LEN >> 16,
        body_len = PLACE + 12,
    );
    Ok(wat::parse_str(text)?)
}

pub(crate) fn run(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let imports = of_modules()?;
    let wasm = module(&imports)?;
    let guest = Guest { wasm: &wasm, imports: &imports, numbers: Numbers::Wild, calls: Carried::InBody };
    fuzz(report, &guest, runs, seed)
}
