//! Guests as WebAssembly text: the victim, and what attackers deploy.

use anyhow::Context as _;

/// Turns text into a binary.
pub(crate) fn wasm(text: &str) -> anyhow::Result<Vec<u8>> {
    wat::parse_str(text).with_context(|| format!("a guest of the suite is no WebAssembly: {text:.300}"))
}

/// A handler: `fields` stand behind the imports of the ABI and a few helpers, and must export `hob_handle`. Records are made from 32,768 on.
pub(crate) fn handler(fields: &str) -> String {
    handler_with("", "(memory (export \"memory\") 1)", fields)
}

/// As [`handler`], with imports and a memory of its own.
pub(crate) fn handler_with(imports: &str, memory: &str, fields: &str) -> String {
    format!(
        r#"(module
  (import "hob1" "request_read" (func $request_read (param i32 i32) (result i32)))
  (import "hob1" "body_read" (func $body_read (param i32 i32) (result i32)))
  (import "hob1" "respond" (func $respond (param i32 i32)))
  (import "hob1" "body_write" (func $body_write (param i32 i32) (result i32)))
  (import "hob1" "log" (func $log (param i32 i32 i32)))
  {imports}
  {memory}
  ;; Answers with a status and the bytes at a place, without headers.
  (func $answer (param $status i32) (param $at i32) (param $len i32)
    (i32.store (i32.const 32768) (i32.const 0))
    (i32.store16 (i32.const 32772) (local.get $status))
    (i32.store16 (i32.const 32774) (i32.const 0))
    (i32.store (i32.const 32776) (local.get $len))
    (memory.copy (i32.const 32780) (local.get $at) (local.get $len))
    (call $respond (i32.const 32768) (i32.add (local.get $len) (i32.const 12))))
  ;; Answers 200 with a number in four bytes.
  (func $number (param $number i32)
    (i32.store (i32.const 32760) (local.get $number))
    (call $answer (i32.const 200) (i32.const 32760) (i32.const 4)))
  ;; Begins a 200 whose body is written piece by piece.
  (func $stream
    (i32.store (i32.const 32768) (i32.const 1))
    (i32.store (i32.const 32772) (i32.const 200))
    (i32.store (i32.const 32776) (i32.const 0))
    (call $respond (i32.const 32768) (i32.const 12)))
  ;; Reads the request's body to its end, and forgets it.
  (func $drain (result i32) (local $n i32) (local $sum i32)
    (loop $more
      (local.set $n (call $body_read (i32.const 16384) (i32.const 16384)))
      (local.set $sum (i32.add (local.get $sum) (local.get $n)))
      (br_if $more (i32.gt_s (local.get $n) (i32.const 0))))
    (local.get $sum))
  {fields})"#
    )
}

/// A handler that does `code` and nothing else.
pub(crate) fn does(code: &str) -> String {
    handler(&format!("(func (export \"hob_handle\") {code})"))
}

/// A handler that answers 200 with `text`.
pub(crate) fn says(text: &str) -> String {
    let len = text.len();
    handler(&format!(
        "(data (i32.const 0) \"{text}\")
         (func (export \"hob_handle\") (call $answer (i32.const 200) (i32.const 0) (i32.const {len})))"
    ))
}

/// A handler that waits for the end of the request's body, and answers its length.
pub(crate) fn waits() -> String {
    does("(call $number (call $drain))")
}

/// Never ends.
pub(crate) const SPINS: &str = "(loop $forever (br $forever))";

/// Answers with the request's body, and the FNV-1a hash of it in eight bytes.
pub(crate) fn victim() -> String {
    handler(
        "(func (export \"hob_handle\") (local $len i32) (local $n i32) (local $at i32) (local $hash i64)
           (local.set $len (call $request_read (i32.const 0) (i32.const 16384)))
           (local.set $n (i32.load (i32.const 12)))
           (local.set $at (i32.sub (local.get $len) (local.get $n)))
           (local.set $hash (i64.const 0xcbf29ce484222325))
           (loop $more
             (local.set $hash (i64.mul (i64.xor (local.get $hash) (i64.load8_u (local.get $at))) (i64.const 0x100000001b3)))
             (local.set $at (i32.add (local.get $at) (i32.const 1)))
             (br_if $more (i32.lt_u (local.get $at) (local.get $len))))
           (i64.store (local.get $len) (local.get $hash))
           (call $answer (i32.const 200) (i32.sub (local.get $len) (local.get $n)) (i32.add (local.get $n) (i32.const 8))))",
    )
}

/// What [`victim`] answers to `nonce`.
pub(crate) fn victims_answer(nonce: &[u8]) -> Vec<u8> {
    let hash =
        nonce.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    [nonce, &hash.to_le_bytes()].concat()
}

/// A handler that sleeps for an hour, in a call of the host.
pub(crate) fn sleeps() -> String {
    handler_with(
        "(import \"wasi_snapshot_preview1\" \"poll_oneoff\" (func $poll (param i32 i32 i32 i32) (result i32)))",
        "(memory (export \"memory\") 1)",
        // A subscription to the monotonic clock (1), relative.
        "(func (export \"hob_handle\")
           (i32.store (i32.const 16) (i32.const 1))
           (i64.store (i32.const 24) (i64.const 3600000000000))
           (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))
           (call $number (i32.const 0)))",
    )
}

/// A handler that streams `pieces` of 32,000 bytes.
pub(crate) fn streams(pieces: usize) -> String {
    does(&format!(
        "(local $i i32) (call $stream)
         (loop $more
           (if (call $body_write (i32.const 0) (i32.const 32000)) (then return))
           (local.set $i (i32.add (local.get $i) (i32.const 1)))
           (br_if $more (i32.lt_u (local.get $i) (i32.const {pieces}))))"
    ))
}

/// Looks for anything that another instance left in memory, global and table; then leaves something everywhere. Answers what it found.
pub(crate) fn spy(image: &str, end: &str) -> String {
    handler_with(
        "",
        "(memory (export \"memory\") 3)",
        &format!(
            "(data (i32.const 0) \"{image}\")
             (global $g (mut i64) (i64.const 0))
             (table $t 4 20000 funcref)
             (elem declare func $drain)
             (func (export \"hob_handle\") (local $at i32) (local $found i32) (local $end i32)
               (local.set $found (i64.ne (i64.load (i32.const 0)) (i64.load (i32.const 8))))
               (local.set $found (i32.add (local.get $found) (i64.ne (global.get $g) (i64.const 0))))
               (local.set $found (i32.add (local.get $found) (i32.eqz (ref.is_null (table.get $t (i32.const 3))))))
               (if (i32.ne (memory.grow (i32.const 12)) (i32.const 3)) (then unreachable))
               (drop (table.grow $t (ref.null func) (i32.const 16000)))
               (local.set $found (i32.add (local.get $found) (i32.eqz (ref.is_null (table.get $t (i32.const 16003))))))
               (local.set $at (i32.const 64))
               (local.set $end (i32.mul (memory.size) (i32.const 65536)))
               (loop $more
                 (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then (local.set $found (i32.add (local.get $found) (i32.const 1)))))
                 (i64.store (local.get $at) (i64.const 0x5ec2e75ec2e7))
                 (local.set $at (i32.add (local.get $at) (i32.const 8)))
                 (br_if $more (i32.lt_u (local.get $at) (local.get $end))))
               (global.set $g (i64.const 0x5ec2e7))
               (table.fill $t (i32.const 0) (ref.func $drain) (i32.const 16004))
               (i64.store (i32.const 8) (i64.const 0x5ec2e7))
               {end} (call $number (local.get $found)))"
        ),
    )
}
