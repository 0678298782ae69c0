//! A component of WASI 0.3: its streams and futures are made, read, written and dropped by what every component has for that.

use crate::calls::{Carried, Guest, Numbers, PLACE, fuzz, number, switch};
use crate::report::Report;

use super::{Imports, component, world};

/// One file for each package, those that others use first.
const PACKAGES: [&[&str]; 7] = [
    &[include_str!("../../wit/wasi3/clocks.wit")],
    &[include_str!("../../wit/wasi3/random.wit")],
    &[include_str!("../../wit/wasi3/filesystem.wit")],
    &[include_str!("../../wit/wasi3/sockets.wit")],
    &[include_str!("../../wit/wasi3/cli.wit")],
    &[include_str!("../../wit/wasi3/http.wit")],
    &[include_str!("../../wit/all3.wit")],
];

/// A handler that makes the calls of its request's path, and answers with an error: a body is a stream, and reading it would be a call like others.
fn export(imports: &Imports<'_>) -> anyhow::Result<String> {
    let (module, name) = ("wasi:http/types@", "[method]request.get-path-with-query");
    let (path, request) = (number(&imports.all, module, name)?, imports.kind_at(module, name, 0)?);
    let switch = switch(&imports.all)?;
    // `$digit`: of a lower-case hexadecimal digit.
    Ok(format!(
        r#"(func $digit (param $at i32) (result i32) (local $letter i32)
    (local.set $letter (i32.load8_u (local.get $at)))
    (i32.add (i32.and (local.get $letter) (i32.const 15)) (i32.mul (i32.shr_u (local.get $letter) (i32.const 6)) (i32.const 9))))
  (func (export "wasi:http/handler@0.3.0#handle") (param i32) (result i32)
    (local $at i32) (local $end i32) (local $pair i64) (local $from i32) (local $stop i32)
    (global.set $r{request} (local.get 0))
    (call $f{path} (local.get 0) (i32.const {PLACE}))
    (if (i32.ne (i32.load8_u (i32.const {PLACE})) (i32.const 1)) (then unreachable))
    (local.set $at (i32.load (i32.const {given})))
    (local.set $end (local.get $at))
    (local.set $from (i32.add (local.get $at) (i32.const 1)))
    (local.set $stop (i32.add (local.get $at) (i32.load (i32.const {len}))))
    (block $decoded (loop $decode
      (br_if $decoded (i32.ge_u (local.get $from) (local.get $stop)))
      (i32.store8 (local.get $end) (i32.or
        (i32.shl (call $digit (local.get $from)) (i32.const 4)) (call $digit (i32.add (local.get $from) (i32.const 1)))))
      (local.set $end (i32.add (local.get $end) (i32.const 1)))
      (local.set $from (i32.add (local.get $from) (i32.const 2)))
      (br $decode)))
    {switch}
    (memory.fill (i32.const {PLACE}) (i32.const 0) (i32.const 64))
    (i32.store8 (i32.const {PLACE}) (i32.const 1))
    (i32.const {PLACE}))"#,
        given = PLACE + 4,
        len = PLACE + 8,
    ))
}

pub(crate) fn run(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let (resolve, world) = world(&PACKAGES)?;
    let imports = Imports::of(&resolve, world, 200)?;
    let wasm = component(&resolve, world, imports.kinds(), &imports.all, &export(&imports)?)?;
    let guest = Guest { wasm: &wasm, imports: &imports.all, numbers: Numbers::Likely, calls: Carried::InPath };
    fuzz(report, &guest, runs, seed)
}
