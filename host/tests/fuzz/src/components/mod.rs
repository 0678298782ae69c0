//! Host calls of components: as `abi.rs`, with one guest for each version of WASI that imports all that a component of it can. Where a number that
//! is no handle ends the guest, it keeps the handles that it is given, the last one of each kind, and most often passes those.

mod imports;
mod three;
mod two;

use anyhow::Context as _;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, SourceMap, WorldId};

use crate::calls::{AS_IT_IS, Import, MEMORY_LEN, WORDS, heads};
use imports::Imports;

pub(crate) use three::run as three;
pub(crate) use two::run as two;

/// What components may import: packages, those that others use first, and in the last the world of all of them.
fn world(packages: &[&[&str]]) -> anyhow::Result<(Resolve, WorldId)> {
    let (mut resolve, mut last) = (Resolve::default(), None);
    for (number, files) in packages.iter().enumerate() {
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

/// A component of one module: imports, memory, words, the handles that it keeps (`$rN`), and `export`.
fn component(resolve: &Resolve, world: WorldId, kinds: usize, imports: &[Import], export: &str) -> anyhow::Result<Vec<u8>> {
    let heads = heads(imports)?;
    let globals: String = (0..kinds).map(|kind| format!("(global $r{kind} (mut i32) (i32.const 0))")).collect();
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
  {export})"#,
        pages = MEMORY_LEN >> 16,
        most = 64 << 16,
    );
    let mut module = wat::parse_str(text)?;
    embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8).map_err(anyhow::Error::msg)?;
    let mut encoder = ComponentEncoder::default().module(&module).map_err(anyhow::Error::msg)?;
    encoder.encode().map_err(anyhow::Error::msg)
}
