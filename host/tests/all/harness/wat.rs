//! Guests as WebAssembly text, around what every one of them needs.

/// Turns text into a binary.
#[track_caller]
pub(crate) fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A handler: `fields` are put behind the imports of the ABI and a few helpers, and must export `hob_handle`.
///
/// The memory has one page. Records are made in its upper half; `fields` use what is below 32,768.
pub(crate) fn handler(fields: &str) -> String {
    handler_with("(memory (export \"memory\") 1)", fields)
}

/// As [`handler`], with memories of the test's own: the first must be exported as `memory`.
pub(crate) fn handler_with(memories: &str, fields: &str) -> String {
    format!(
        r#"(module
  (import "hob1" "request_read" (func $request_read (param i32 i32) (result i32)))
  (import "hob1" "body_read" (func $body_read (param i32 i32) (result i32)))
  (import "hob1" "respond" (func $respond (param i32 i32)))
  (import "hob1" "body_write" (func $body_write (param i32 i32) (result i32)))
  (import "hob1" "log" (func $log (param i32 i32 i32)))
  {memories}
  (func $record (param $flags i32) (param $status i32) (param $len i32)
    (i32.store (i32.const 32768) (local.get $flags))
    (i32.store16 (i32.const 32772) (local.get $status))
    (i32.store16 (i32.const 32774) (i32.const 0))
    (i32.store (i32.const 32776) (local.get $len)))
  ;; Answers with a status and the bytes at a place, without headers.
  (func $answer (param $status i32) (param $at i32) (param $len i32)
    (call $record (i32.const 0) (local.get $status) (local.get $len))
    (memory.copy (i32.const 32780) (local.get $at) (local.get $len))
    (call $respond (i32.const 32768) (i32.add (local.get $len) (i32.const 12))))
  ;; Answers 200 with a number in four bytes.
  (func $number (param $number i32)
    (i32.store (i32.const 32760) (local.get $number))
    (call $answer (i32.const 200) (i32.const 32760) (i32.const 4)))
  ;; Begins a 200 whose body is written piece by piece.
  (func $stream
    (call $record (i32.const 1) (i32.const 200) (i32.const 0))
    (call $respond (i32.const 32768) (i32.const 12)))
  ;; Reads the request's body to its end, and forgets it. Returns how many bytes there were, or what ended it.
  (func $drain (result i32) (local $n i32) (local $sum i32)
    (loop $more
      (local.set $n (call $body_read (i32.const 16384) (i32.const 16384)))
      (local.set $sum (i32.add (local.get $sum) (local.get $n)))
      (br_if $more (i32.gt_s (local.get $n) (i32.const 0))))
    (local.get $sum))
  {fields})"#
    )
}

/// A handler that answers 200 with `text`.
pub(crate) fn says(text: &str) -> String {
    let len = text.len();
    handler(&format!(
        "(data (i32.const 0) \"{text}\")
         (func (export \"hob_handle\") (call $answer (i32.const 200) (i32.const 0) (i32.const {len})))"
    ))
}

/// A handler that does `code` and nothing else.
pub(crate) fn does(code: &str) -> String {
    handler(&format!("(func (export \"hob_handle\") {code})"))
}

/// A handler that waits for the end of the request's body, and answers its length in four bytes.
pub(crate) fn waits() -> String {
    does("(call $number (call $drain))")
}

/// A handler that answers with the record of the request, as it read it.
pub(crate) fn mirror() -> String {
    does("(call $answer (i32.const 200) (i32.const 0) (call $request_read (i32.const 0) (i32.const 30000)))")
}

/// A handler that never ends and never answers.
pub(crate) const SPINS: &str = "(loop $forever (br $forever))";

/// A command: `fields` must export `_start`.
pub(crate) fn command(fields: &str) -> String {
    format!(
        r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (memory (export "memory") 2)
  ;; Writes all bytes at a place to a file descriptor; traps when that fails.
  (func $write (param $fd i32) (param $at i32) (param $len i32)
    (loop $more
      (i32.store (i32.const 131000) (local.get $at))
      (i32.store (i32.const 131004) (local.get $len))
      (if (call $fd_write (local.get $fd) (i32.const 131000) (i32.const 1) (i32.const 131008)) (then unreachable))
      (local.set $at (i32.add (local.get $at) (i32.load (i32.const 131008))))
      (local.set $len (i32.sub (local.get $len) (i32.load (i32.const 131008))))
      (br_if $more (local.get $len))))
  {fields})"#
    )
}

/// A command that reads its standard input to the end, and exits with 7 when that fails.
pub(crate) fn reads() -> String {
    command(
        "(func (export \"_start\")
           (i32.store (i32.const 130000) (i32.const 0))
           (i32.store (i32.const 130004) (i32.const 60000))
           (loop $more
             (if (call $fd_read (i32.const 0) (i32.const 130000) (i32.const 1) (i32.const 130008)) (then (call $proc_exit (i32.const 7))))
             (br_if $more (i32.load (i32.const 130008)))))",
    )
}

/// Text of a component that exports `wasi:cli/run` of 0.2 and exits well, with `more` before its end.
pub(crate) fn component(more: &str) -> String {
    format!(
        r#"(component
  (core module $m (func (export "run") (result i32) i32.const 0))
  (core instance $i (instantiate $m))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $run (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $run))
  {more})"#
    )
}
