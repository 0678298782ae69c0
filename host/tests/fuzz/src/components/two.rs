//! A component of WASI 0.2, with `keyvalue`, `blobstore` and `config`.

use crate::calls::{Carried, Guest, Numbers, PLACE, fuzz, number, switch};
use crate::report::Report;

use super::{Imports, component, world};

/// One group of files for each package, those that others use first.
const PACKAGES: [&[&str]; 13] = [
    &[include_str!("../../wit/wasi/io.wit")],
    &[include_str!("../../wit/wasi/clocks.wit")],
    &[include_str!("../../wit/wasi/random.wit")],
    &[include_str!("../../wit/wasi/filesystem.wit")],
    &[include_str!("../../wit/wasi/sockets.wit")],
    &[include_str!("../../wit/wasi/cli.wit")],
    &[include_str!("../../wit/wasi/http.wit")],
    &[include_str!("../../wit/wasi/config.wit")],
    &[
        include_str!("../../../../wit/blobstore/deps/io/error.wit"),
        include_str!("../../../../wit/blobstore/deps/io/poll.wit"),
        include_str!("../../../../wit/blobstore/deps/io/streams.wit"),
        include_str!("../../../../wit/blobstore/deps/io/world.wit"),
    ],
    &[
        include_str!("../../../../wit/blobstore/blobstore.wit"),
        include_str!("../../../../wit/blobstore/container.wit"),
        include_str!("../../../../wit/blobstore/types.wit"),
        include_str!("../../../../wit/blobstore/world.wit"),
    ],
    &[
        include_str!("../../../../wit/keyvalue/atomic.wit"),
        include_str!("../../../../wit/keyvalue/batch.wit"),
        include_str!("../../../../wit/keyvalue/store.wit"),
        include_str!("../../../../wit/keyvalue/watch.wit"),
        include_str!("../../../../wit/keyvalue/world.wit"),
    ],
    &[
        include_str!("../../../../wit/keyvalue2/atomic.wit"),
        include_str!("../../../../wit/keyvalue2/batch.wit"),
        include_str!("../../../../wit/keyvalue2/store.wit"),
        include_str!("../../../../wit/keyvalue2/watch.wit"),
        include_str!("../../../../wit/keyvalue2/world.wit"),
    ],
    &[include_str!("../../wit/all.wit")],
];

/// A handler that makes the calls of its request's body.
fn export(imports: &Imports<'_>) -> anyhow::Result<String> {
    let (http, io) = ("wasi:http/types@", "wasi:io/streams@0.2.12");
    let consume = number(&imports.all, http, "[method]incoming-request.consume")?;
    let stream = number(&imports.all, http, "[method]incoming-body.stream")?;
    let read = number(&imports.all, io, "[method]input-stream.blocking-read")?;
    let request = imports.kind_at(http, "[method]incoming-request.consume", 0)?;
    let body = imports.kind_at(http, "[method]incoming-body.stream", 0)?;
    let input = imports.kind_at(io, "[method]input-stream.blocking-read", 0)?;
    let reply = imports.kind_at(http, "[static]response-outparam.set", 0)?;
    let switch = switch(&imports.all)?;
    Ok(format!(
        r#"(func $must (if (i32.load8_u (i32.const {PLACE})) (then unreachable)))
  (func (export "wasi:http/incoming-handler@0.2.12#handle") (param i32 i32) (local $at i32) (local $end i32) (local $pair i64)
    (global.set $r{request} (local.get 0))
    (global.set $r{reply} (local.get 1))
    (call $f{consume} (local.get 0) (i32.const {PLACE})) (call $must)
    (global.set $r{body} (i32.load (i32.const {given})))
    (call $f{stream} (i32.load (i32.const {given})) (i32.const {PLACE})) (call $must)
    (global.set $r{input} (i32.load (i32.const {given})))
    (call $f{read} (i32.load (i32.const {given})) (i64.const 65536) (i32.const {PLACE})) (call $must)
    (local.set $at (i32.load (i32.const {given})))
    (local.set $end (i32.add (local.get $at) (i32.load (i32.const {len}))))
    {switch})"#,
        given = PLACE + 4,
        len = PLACE + 8,
    ))
}

pub(crate) fn run(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let (resolve, world) = world(&PACKAGES)?;
    let imports = Imports::of(&resolve, world, 250)?;
    let wasm = component(&resolve, world, imports.kinds(), &imports.all, &export(&imports)?)?;
    let guest = Guest { wasm: &wasm, imports: &imports.all, numbers: Numbers::Likely, calls: Carried::InBody };
    fuzz(report, &guest, runs, seed)
}
