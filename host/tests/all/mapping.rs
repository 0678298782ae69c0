//! Objects in the memory of handlers: what is mapped is what was put, private, bounded, gone for the next instance in the slot, and worth
//! one copy in all; a disk that fails under a mapping costs that invocation.

use std::fs::{self, File};
use std::path::PathBuf;

use hob::bucket::{BucketSpec, Durability};
use hob::data::objects::{ObjectLimits, PutOptions};
use hob::data::{Clock, Data, DataConfig};
use hob::id::TenantId;

use crate::harness::failing::Failing;
use crate::harness::http::Conn;
use crate::harness::wat::handler_with;
use crate::harness::{Node, Setup, eventually, is_there};
use crate::limits::{hold, number};

const MIB: usize = 1 << 20;
const GRANT: &str = "[grants]\ndata = [{ bucket = \"objects\", access = \"read\" }]\n";
const LONG: &str = "[limits]\ncpu = \"1h\"\nwall = \"1h\"\n";

/// Bytes that differ from page to page.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251 + at / 4096) as u8).collect()
}

/// A node with a bucket of objects under keys of one letter.
fn node_with(settings: &[&str], objects: &[(&str, Vec<u8>)]) -> Node {
    let mut node = Node::start(&[]);
    node.stop();
    let limits = ObjectLimits { object_bytes_max: 1 << 32, bytes_max: 1 << 34 };
    let config = DataConfig {
        events_max: 100_000,
        durable_objects: limits,
        volatile_objects: limits,
        page_cache_bytes: MIB,
        kv_cache_bytes: 0,
        volatile_bytes_max: 1 << 20,
    };
    let data = Data::open(&node.data_dir().join("data"), config, Clock::system()).unwrap();
    let (tenant, name) = (TenantId::default(), "objects".parse().unwrap());
    let (bucket, _) = data.put_bucket(&tenant, &name, BucketSpec::new(Durability::Durable)).wait().unwrap();
    for (key, bytes) in objects {
        let mut upload = data.objects(Durability::Durable).put(&bucket, key.as_bytes(), PutOptions::default()).unwrap();
        bytes.chunks(MIB).for_each(|piece| upload.write(piece).unwrap());
        upload.finish().wait().unwrap();
    }
    drop(data);
    Node::start_with(Setup { dir: Some(node.dir()), settings, crash_at: None })
}

/// The file of the only object of this length.
fn file_of(node: &Node, len: usize) -> PathBuf {
    let mut files = node.files("data/objects").into_iter();
    files.find(|file| fs::metadata(file).unwrap().len() == len as u64).unwrap()
}

/// A handler that runs `code` with the bucket open; three pages of its own. `$map` gives the address, 1 for what is to be copied, or what
/// is below 0; the length is at 1028.
fn guest(code: &str) -> String {
    let fields = format!(
        r#"(data (i32.const 0) "objects")
  (data (i32.const 128) "0123456789abcdefghijklmnopqrstuvwxyz")
  (func $map_range (param $key i32) (param $offset i64) (param $len i64) (result i32) (local $answer i32)
    (local.set $answer (call $object_map (i32.const 0) (local.get $key) (i32.const 1)
      (local.get $offset) (local.get $len) (i32.const 1024)))
    (if (result i32) (local.get $answer) (then (local.get $answer)) (else (i32.load (i32.const 1024)))))
  (func $map (param $key i32) (result i32) (call $map_range (local.get $key) (i64.const 0) (i64.const -1)))
  (func $sum (param $at i32) (param $len i32) (result i32) (local $sum i32) (local $end i32)
    (local.set $end (i32.add (local.get $at) (local.get $len)))
    (loop $more
      (local.set $sum (i32.add (local.get $sum) (i32.load8_u (local.get $at))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $at) (local.get $end))))
    (local.get $sum))
  (func $touch (param $at i32) (param $len i32) (local $end i32)
    (local.set $end (i32.add (local.get $at) (local.get $len)))
    (loop $more
      (i32.store8 (local.get $at) (i32.const 0x5e))
      (local.set $at (i32.add (local.get $at) (i32.const 4096)))
      (br_if $more (i32.lt_u (local.get $at) (local.get $end)))))
  (func (export "hob_handle") (local $at i32) (local $n i32) (local $other i32)
    (drop (call $bucket_open (i32.const 0) (i32.const 7)))
    {code})"#
    );
    let imports = r#"(import "hob1" "bucket_open" (func $bucket_open (param i32 i32) (result i32)))
  (import "hob1" "answer_read" (func $answer_read (param i32 i32) (result i32)))
  (import "hob1" "object_map" (func $object_map (param i32 i32 i32 i64 i64 i32) (result i32)))
  (import "hob1" "object_copy" (func $object_copy (param i32 i32) (result i32)))
  (import "hob1" "object_unmap" (func $object_unmap (param i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "hob1" "log""#;
    handler_with("(memory (export \"memory\") 3)", &fields).replacen("(import \"hob1\" \"log\"", imports, 1)
}

/// Code that writes eight bytes from an address to the standard output of WASI.
fn write(at: &str) -> String {
    format!(
        "(i32.store (i32.const 2048) {at}) (i32.store (i32.const 2052) (i32.const 8))
        (drop (call $fd_write (i32.const 1) (i32.const 2048) (i32.const 1) (i32.const 2056)))"
    )
}

/// The place of a key of one letter, as `$map` takes it.
fn key(letter: char) -> String {
    let at = "0123456789abcdefghijklmnopqrstuvwxyz".find(letter).unwrap();
    format!("(i32.const {})", at + 128)
}

fn deploy(node: &Node, name: &str, code: &str, more: &str) {
    node.deploy_wat(name, &guest(code), &format!("{more}{GRANT}"));
}

fn sum(bytes: &[u8]) -> i32 {
    bytes.iter().fold(0, |sum: i32, byte| sum.wrapping_add(i32::from(*byte)))
}

fn answer(node: &Node, name: &str) -> i32 {
    number(&node.data.get(&format!("/{name}")).good())
}

#[test]
fn what_is_mapped_is_what_was_put() {
    let (big, odd) = (bytes(MIB), bytes(100_001));
    let small = b"0123456789".to_vec();
    let node = node_with(&[], &[("b", big.clone()), ("o", odd.clone()), ("s", small.clone()), ("e", Vec::new())]);
    let big_key = key('b');
    let all = format!("(call $number (call $sum (call $map {big_key}) (i32.load (i32.const 1028))))");
    deploy(&node, "big", &all.replace(&big_key, &key('b')), "");
    deploy(&node, "odd", &all.replace(&big_key, &key('o')), "");
    for _ in 0..3 {
        assert_eq!(answer(&node, "big"), sum(&big));
        assert_eq!(answer(&node, "odd"), sum(&odd));
    }
    assert!(node.logs("big").iter().any(|(_, _, text)| text.contains("were checked")), "the first opening says what it cost");
    // What follows up to the end of the memory is zeros.
    let tail = format!(
        "(local.set $at (i32.add (call $map {}) (i32.const 100001)))
         (call $number (i32.add (i32.ne (i32.load (i32.const 1028)) (i32.const 100001))
           (call $sum (local.get $at) (i32.sub (i32.mul (memory.size) (i32.const 65536)) (local.get $at)))))",
        key('o')
    );
    deploy(&node, "tail", &tail, "");
    assert_eq!(answer(&node, "tail"), 0);
    // A small one waits to be copied, an empty one too; a missing one is none.
    let copied = format!(
        "(if (i32.ne (call $map {}) (i32.const 1)) (then unreachable))
         (if (i32.load (i32.const 1024)) (then unreachable))
         (if (call $object_copy (i32.const 2048) (i32.load (i32.const 1028))) (then unreachable))
         (call $answer (i32.const 200) (i32.const 2048) (i32.load (i32.const 1028)))",
        key('s')
    );
    deploy(&node, "small", &copied, "");
    assert_eq!(node.data.get("/small").good(), small);
    deploy(&node, "empty", &copied.replace(&key('s'), &key('e')), "");
    assert_eq!(node.data.get("/empty").good(), b"");
    deploy(&node, "none", &format!("(call $number (call $map {}))", key('x')), "");
    assert_eq!(answer(&node, "none"), -1);
    deploy(&node, "nothing", "(drop (call $object_copy (i32.const 0) (i32.const 0)))", "");
    node.data.get("/nothing").problem(502, "guest-bad-call");
    deploy(&node, "stray", "(call $object_unmap (i32.const 65536))", "");
    node.data.get("/stray").problem(502, "guest-bad-call");
}

#[test]
fn a_range_need_not_begin_at_a_page() {
    let big = bytes(MIB);
    let node = node_with(&[], &[("b", big.clone())]);
    let range = |from: i64, len: i64| {
        format!(
            "(local.set $at (call $map_range {} (i64.const {from}) (i64.const {len})))
             (if (i32.lt_s (local.get $at) (i32.const 2)) (then (call $number (local.get $at)) return))
             (if (i32.ne (i32.and (local.get $at) (i32.const 4095)) (i32.const {})) (then unreachable))
             (call $number (call $sum (local.get $at) (i32.load (i32.const 1028))))",
            key('b'),
            from & 4095
        )
    };
    for (at, (from, len)) in [(5000, 200_000), (4096, 65_537), (1, -1), (MIB as i64 - 70_000, 70_000)].into_iter().enumerate() {
        let name = format!("good{at}");
        deploy(&node, &name, &range(from, len), "");
        let start = usize::try_from(from).unwrap();
        let end = usize::try_from(len).map_or(MIB, |len| start + len);
        assert_eq!(answer(&node, &name), sum(&big[start..end]), "{from} {len}");
    }
    // What lies past the end is left out; at the end there is nothing, which is to be copied.
    for (at, (from, len, expected)) in
        [(-1, 10, -4), (i64::MIN, -1, -4), (5000, i64::MAX, sum(&big[5000..])), (MIB as i64 + 1, 7, 1), (i64::MAX, i64::MAX, 1)]
            .into_iter()
            .enumerate()
    {
        let name = format!("edge{at}");
        deploy(&node, &name, &range(from, len), "");
        assert_eq!(answer(&node, &name), expected, "{from} {len}");
    }
    deploy(&node, "end", &range(MIB as i64, -1), "");
    assert_eq!(answer(&node, "end"), 1);
}

#[test]
fn limits_of_their_own() {
    let node = node_with(&[], &[("b", bytes(MIB))]);
    // How many can be held, and what the next one gets.
    let hoard = format!(
        "(loop $more
           (local.set $at (call $map {}))
           (if (i32.gt_s (local.get $at) (i32.const 0)) (then (local.set $n (i32.add (local.get $n) (i32.const 1))) (br $more))))
         (if (i32.ne (local.get $at) (i32.const -11)) (then unreachable))
         (drop (call $answer_read (i32.const 2048) (i32.const 256)))
         (call $number (local.get $n))",
        key('b')
    );
    deploy(&node, "count", &hoard, "");
    assert_eq!(answer(&node, "count"), 256, "the 257th is an error that the guest sees");
    deploy(&node, "fewer", &hoard, "[limits]\nmappings = 2\n");
    assert_eq!(answer(&node, "fewer"), 2);
    deploy(&node, "bytes", &hoard, "[limits]\nmapped = \"3MiB\"\n");
    assert_eq!(answer(&node, "bytes"), 3);
    // Mapped bytes are not the guest's memory, which has room for its three pages alone.
    deploy(&node, "memory", &hoard, "[limits]\nmemory = \"192KiB\"\n");
    assert_eq!(answer(&node, "memory"), 256);
    // A dropped mapping gives its range, its count and its bytes to the next one.
    let again = format!(
        "(loop $more
           (local.set $at (call $map {}))
           (if (i32.ne (local.get $at) (i32.const 196608)) (then unreachable))
           (if (i32.ne (i32.load8_u (i32.add (local.get $at) (i32.const 1))) (i32.const 1)) (then unreachable))
           (i32.store8 (i32.add (local.get $at) (i32.const 1)) (i32.const 77))
           (call $object_unmap (local.get $at))
           (if (i32.load8_u (i32.add (local.get $at) (i32.const 1))) (then unreachable))
           (local.set $n (i32.add (local.get $n) (i32.const 1)))
           (br_if $more (i32.lt_u (local.get $n) (i32.const 10000))))
         (call $number (memory.size))",
        key('b')
    );
    deploy(&node, "again", &again, &LONG.replace("[limits]\n", "[limits]\nmappings = 1\nmapped = \"1MiB\"\n"));
    assert_eq!(answer(&node, "again"), 3 + 16);
}

#[test]
fn by_default_a_gibibyte_is_mapped_and_not_more() {
    let node = node_with(&[], &[("h", vec![1; 64 * MIB]), ("b", bytes(MIB))]);
    let maps = |count: usize, last: char| {
        format!(
            "(loop $more
               (if (i32.lt_s (call $map {}) (i32.const 2)) (then unreachable))
               (local.set $n (i32.add (local.get $n) (i32.const 1)))
               (br_if $more (i32.lt_u (local.get $n) (i32.const {count}))))
             (call $number (call $map {}))",
            key('h'),
            key(last)
        )
    };
    deploy(&node, "all", &maps(15, 'h'), "");
    assert!(answer(&node, "all") > 1, "sixteen times 64 MiB");
    deploy(&node, "more", &maps(16, 'b'), "");
    assert_eq!(answer(&node, "more"), -11);
}

#[test]
fn what_is_mapped_is_deleted_when_nobody_has_it_any_more() {
    let big = bytes(MIB);
    let node = node_with(&[], &[("b", big.clone())]);
    let late = format!(
        "(local.set $at (call $map {})) (drop (call $drain)) (call $number (call $sum (local.get $at) (i32.const {MIB})))",
        key('b')
    );
    deploy(&node, "late", &late, LONG);
    deploy(&node, "again", &format!("(call $number (call $map {}))", key('b')), "");
    let path = file_of(&node, MIB);
    let mut conn = hold(&node, "/late");
    eventually("it is mapped", || maps(&node).contains(path.to_str().unwrap()));
    assert_eq!(node.control.request("DELETE", "/v1/buckets/objects/objects/b", &[], b"").status(), 204);
    assert_eq!(answer(&node, "again"), -1, "it is gone for all others");
    assert!(path.exists());
    assert_eq!(number(&end(&mut conn)), sum(&big));
    eventually("its file is gone", || !path.exists());
}

#[test]
fn a_map_that_meets_a_delete_has_all_of_it_or_nothing() {
    let (old, new) = (bytes(MIB), vec![3; MIB]);
    let node = node_with(&[], &[("b", old.clone())]);
    let reads = format!(
        "(local.set $at (call $map {}))
         (if (i32.lt_s (local.get $at) (i32.const 1)) (then (call $number (local.get $at)) return))
         (call $number (call $sum (local.get $at) (i32.load (i32.const 1028))))",
        key('b')
    );
    deploy(&node, "reads", &reads, LONG);
    let allowed = [sum(&old), sum(&new), -1];
    let done = std::sync::atomic::AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let read = || {
            let mut seen = std::collections::BTreeSet::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                seen.insert(answer(&node, "reads"));
            }
            seen
        };
        let readers: Vec<_> = (0..3).map(|_| scope.spawn(read)).collect();
        for round in 0..40 {
            let body = if round % 2 == 0 { &new } else { &old };
            let put = node.control.request("PUT", "/v1/buckets/objects/objects/b", &[], body);
            let delete = node.control.request("DELETE", "/v1/buckets/objects/objects/b", &[], b"");
            assert!(put.status() < 300 && delete.status() == 204, "{} {}", put.text(), delete.text());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect::<std::collections::BTreeSet<_>>()
    });
    assert!(seen.iter().all(|answer| allowed.contains(answer)), "{seen:?}");
    assert_eq!(answer(&node, "reads"), -1);
    eventually("no file is left", || node.files("data/objects").is_empty());
}

#[test]
fn the_node_has_a_share_of_mappings() {
    let node = node_with(&[], &[("b", bytes(MIB))]);
    let all: u64 = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let share = all / 8 / 3;
    if !is_there("a vm.max_map_count of less than 1.5 million", share <= 64 << 10, "taking all mappings of a node") {
        return;
    }
    // Each holds 1,000 and waits; the last one gets what is left.
    let hoard = format!(
        "(loop $more
           (local.set $at (call $map_range {} (i64.const 0) (i64.const 65537)))
           (if (i32.gt_s (local.get $at) (i32.const 0)) (then (local.set $n (i32.add (local.get $n) (i32.const 1))) (br $more))))
         (drop (call $drain))
         (call $number (local.get $n))",
        key('b')
    );
    deploy(&node, "hoards", &hoard, &LONG.replace("[limits]\n", "[limits]\nmappings = 1000\n"));
    let count = share as usize / 1000 + 1;
    let mut conns: Vec<_> = (1..=count)
        .map(|at| {
            let conn = hold(&node, "/hoards");
            eventually("it runs", || node.occupancy("hoards").0 == at as u64);
            conn
        })
        .collect();
    let path = file_of(&node, MIB).to_str().unwrap().to_owned();
    eventually("all is taken", || maps(&node).matches(&path).count() as u64 == share);
    let held: i32 = conns.iter_mut().map(end).map(|body| number(&body)).sum();
    assert_eq!(u64::try_from(held).unwrap(), share);
    // All came back.
    let mut conn = hold(&node, "/hoards");
    assert_eq!(number(&end(&mut conn)), 1000);
}

fn end(conn: &mut Conn) -> Vec<u8> {
    conn.end_chunks();
    conn.reply().good()
}

#[test]
fn what_a_guest_writes_is_its_own() {
    let big = bytes(MIB);
    let node = node_with(&[], &[("b", big.clone())]);
    let writes = format!(
        "(local.set $at (call $map {}))
         (local.set $other (call $map {}))
         (memory.fill (local.get $at) (i32.const 7) (i32.const 300000))
         (memory.copy (i32.add (local.get $at) (i32.const 500000)) (local.get $at) (i32.const 100000))
         (memory.copy (i32.add (local.get $at) (i32.const 1000)) (local.get $other) (i32.const 1000))
         (if (i32.ne (call $sum (local.get $at) (i32.const 1000)) (i32.const 7000)) (then unreachable))
         (if (i32.ne (call $sum (i32.add (local.get $at) (i32.const 1000)) (i32.const 1000)) (call $sum (local.get $other) (i32.const 1000))) (then unreachable))
         (if (i32.ne (call $sum (i32.add (local.get $at) (i32.const 500000)) (i32.const 100000)) (i32.const 700000)) (then unreachable))
         (call $number (call $sum (local.get $other) (i32.const {MIB})))",
        key('b'),
        key('b')
    );
    deploy(&node, "writes", &writes, "");
    for _ in 0..3 {
        assert_eq!(answer(&node, "writes"), sum(&big), "another mapping of it, and the next invocation, see what was put");
    }
    assert_eq!(fs::read(file_of(&node, MIB)).unwrap(), big);
    // The guest's own growth comes behind what the host has grown, and leaves it alone.
    let grows = format!(
        "(local.set $at (call $map {}))
         (if (i32.ne (memory.grow (i32.const 2)) (i32.const 19)) (then unreachable))
         (call $touch (i32.const 1245184) (i32.const 131072))
         (local.set $other (call $map {}))
         (if (i32.ne (local.get $other) (i32.const 1376256)) (then unreachable))
         (if (i32.ne (memory.size) (i32.const 37)) (then unreachable))
         (call $object_unmap (local.get $at))
         (if (i32.ne (i32.load8_u (i32.const 1245184)) (i32.const 0x5e)) (then unreachable))
         (call $number (call $sum (local.get $other) (i32.const {MIB})))",
        key('b'),
        key('b')
    );
    deploy(&node, "grows", &grows, "");
    assert_eq!(answer(&node, "grows"), sum(&big));
}

/// Memory that the node alone has in RAM at its most so far, as the kernel counts it.
fn own_memory(node: &Node) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", node.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

#[test]
fn what_a_guest_writes_counts_against_its_memory() {
    const LEN: usize = 512 * MIB;
    let node = node_with(&[], &[("h", vec![1; LEN])]);
    let limits = LONG.replace("[limits]\n", "[limits]\nmemory = \"16MiB\"\n");
    let map = format!("(local.set $at (call $map {}))", key('h'));
    let (touch, fill) = (
        format!("(call $touch (local.get $at) (i32.const {LEN}))"),
        format!("(memory.fill (local.get $at) (i32.const 9) (i32.const {LEN}))"),
    );
    let copy = format!("(memory.copy (local.get $at) (i32.add (local.get $at) (i32.const 1)) (i32.const {}))", LEN - 1);
    let unmapped = format!("(call $object_unmap (local.get $at)) {touch}");
    for (name, code) in [("touch", &touch), ("fill", &fill), ("copy", &copy), ("unmapped", &unmapped)] {
        deploy(&node, name, &format!("{map} {code} (loop $ends (br $ends))"), &limits);
        // The object is read and checked once, and so are pages of the file that are mapped, which are not the node's own.
        let problem = node.data.get(&format!("/{name}")).problem(502, "guest-memory");
        assert!(problem["detail"].as_str().unwrap().contains("mapped"), "{problem}");
    }
    let peak = node.peak_memory();
    assert!(peak < 256 << 20, "a guest with a limit of 16 MiB took {peak} bytes");
    // Reading is free.
    deploy(&node, "reads", &format!("{map} (call $number (call $sum (local.get $at) (i32.const {LEN})))"), &limits);
    assert_eq!(answer(&node, "reads"), LEN as i32);
    // So is writing within the limit.
    deploy(
        &node,
        "within",
        &format!("{map} (call $touch (local.get $at) (i32.const {})) (call $number (i32.const 5))", 8 * MIB),
        &limits,
    );
    assert_eq!(answer(&node, "within"), 5);
}

/// Maps and writes, ends somehow; then another looks for anything in the same slot.
#[test]
fn nothing_of_a_mapping_is_left_for_the_next_instance() {
    let node =
        node_with(&["engine.instances_max=1", "engine.large_instances_max=0", "engine.instance_wait=60s"], &[("b", bytes(MIB))]);
    let looks = "(if (i32.ne (memory.size) (i32.const 3)) (then unreachable))
         (if (i32.ne (memory.grow (i32.const 64)) (i32.const 3)) (then unreachable))
         (call $number (call $sum (i32.const 131072) (i32.sub (i32.const 4390912) (i32.const 131072))))";
    deploy(&node, "looks", looks, LONG);
    // Twice, one of them written to; a range between them that was unmapped.
    let maps = format!(
        "(local.set $n (call $map {0})) (local.set $at (call $map {0})) (local.set $other (call $map {0}))
         (if (i32.lt_s (local.get $other) (i32.const 1)) (then unreachable))
         (call $touch (local.get $n) (i32.const {MIB})) (call $touch (local.get $at) (i32.const {MIB}))
         (drop (call $sum (local.get $other) (i32.const {MIB})))
         (call $object_unmap (local.get $at)) (call $touch (local.get $at) (i32.const 65536))",
        key('b')
    );
    deploy(&node, "returns", &format!("{maps} (call $number (i32.const 1))"), LONG);
    deploy(&node, "traps", &format!("{maps} unreachable"), LONG);
    let ends = "(loop $forever (br $forever))";
    deploy(&node, "late", &format!("{maps} {ends}"), "[limits]\ncpu = \"300ms\"\nwall = \"1h\"\n");
    deploy(&node, "waits", &format!("{maps} (drop (call $drain))"), "[limits]\nwall = \"1s\"\ncpu = \"1h\"\n");
    deploy(&node, "spins", &format!("{maps} {ends}"), LONG);
    deploy(&node, "misuses", &format!("{maps} (call $object_unmap (i32.const 3))"), LONG);
    for round in 0..3 {
        for end in ["returns", "traps", "late", "waits", "spins", "misuses"] {
            match end {
                "returns" => assert_eq!(answer(&node, end), 1),
                "traps" => drop(node.data.get("/traps").problem(502, "guest-trap")),
                "late" => drop(node.data.get("/late").problem(504, "cpu-deadline")),
                "misuses" => drop(node.data.get("/misuses").problem(502, "guest-bad-call")),
                "waits" => {
                    let mut conn = hold(&node, "/waits");
                    conn.reply().problem(504, "wall-deadline");
                }
                _ => {
                    let mut conn = node.data.connect();
                    conn.request("GET", "/spins", &[], b"");
                    eventually("it spins", || node.occupancy("spins") == (1, 0));
                    drop(conn);
                }
            }
            assert_eq!(answer(&node, "looks"), 0, "round {round}, after {end}");
        }
    }
}

#[test]
fn thirty_two_instances_share_one_copy() {
    const LEN: usize = 64 * MIB;
    const AT_ONCE: usize = 32;
    let big = bytes(LEN);
    let node = node_with(&[], &[("h", big.clone())]);
    let reads = format!(
        "(local.set $at (call $map {})) (local.set $n (call $sum (local.get $at) (i32.const {LEN}))) (drop (call $drain)) (call $number (local.get $n))",
        key('h')
    );
    deploy(&node, "reads", &reads, LONG);
    assert_eq!(number(&end(&mut hold(&node, "/reads"))), sum(&big));
    let before = own_memory(&node);
    let mut conns: Vec<_> = (0..AT_ONCE).map(|_| hold(&node, "/reads")).collect();
    eventually("all have mapped it and read", || mapped_bytes(&node) >= (AT_ONCE * LEN) as u64);
    let during = own_memory(&node);
    let grown = during.saturating_sub(before);
    assert!(grown < 3 * LEN as u64, "{AT_ONCE} mappings of {LEN} bytes took {grown}");
    for conn in &mut conns {
        assert_eq!(number(&end(conn)), sum(&big));
    }
}

/// Bytes of files that are mapped and were read, counted once for each mapping.
fn mapped_bytes(node: &Node) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn without_a_grant_and_at_deploy_nothing_is_mapped() {
    let node = node_with(&[], &[("b", bytes(MIB))]);
    let code = format!("(call $number (call $map {}))", key('b'));
    // The bucket does not open, so there is no handle.
    node.deploy_wat("denied", &guest(&code), "");
    node.data.get("/denied").problem(502, "guest-bad-call");
    assert!(node.logs("denied").iter().any(|(_, _, text)| text.contains("[grants]")));
    // While it is deployed there is no data: initialisation cannot map, and the deploy says so.
    let wat = guest("(call $number (i32.const 1))").replace(
        "(func (export \"hob_handle\")",
        &format!(
            "(func (export \"hob_init\") (drop (call $bucket_open (i32.const 0) (i32.const 7))) (drop (call $map {})))
             (func (export \"hob_handle\")",
            key('b')
        ),
    );
    let reply = node.deploy("init", &crate::harness::wat::wasm(&wat), GRANT);
    assert_eq!(reply.status(), 422, "{}", reply.text());
    assert!(reply.text().contains("handle"), "{}", reply.text());
}

/// A file that became shorter under its mapping gives SIGBUS, as a disk that fails does.
#[test]
fn a_page_that_cannot_be_read_costs_that_invocation() {
    let (big, other) = (bytes(MIB), bytes(MIB + 4096));
    let node = node_with(&[], &[("b", big.clone()), ("o", other.clone())]);
    let map = format!("(local.set $at (call $map {})) (drop (call $drain))", key('b'));
    let far = "(i32.add (local.get $at) (i32.const 800000))";
    let ways = [
        ("load", format!("(call $number (i32.load {far}))")),
        ("copy", format!("(memory.copy (i32.const 2048) {far} (i32.const 8)) (call $number (i32.load (i32.const 2048)))")),
        ("store", format!("(i32.store {far} (i32.const 1)) (call $number (i32.const 1))")),
        ("hostcall", format!("(call $log (i32.const 2) {far} (i32.const 8)) (call $number (i32.const 1))")),
        ("written", format!("{} (call $number (i32.const 1))", write(far))),
        ("trap", format!("(if (i32.eqz (i32.load {far})) (then unreachable))")),
        ("spin", format!("(drop (i32.load {far})) (loop $forever (br $forever))")),
        ("unmapped", format!("(drop (i32.load {far})) (call $object_unmap (local.get $at)) (call $number (i32.const 1))")),
    ];
    for (name, code) in &ways {
        deploy(&node, name, &format!("{map} {code}"), LONG);
    }
    deploy(&node, "other", &format!("(call $number (call $sum (call $map {}) (i32.load (i32.const 1028))))", key('o')), "");
    deploy(&node, "again", &format!("(call $number (call $map {}))", key('b')), "");
    let path = file_of(&node, MIB);
    for (name, _) in &ways {
        let mut conn = hold(&node, &format!("/{name}"));
        eventually("it is mapped", || maps(&node).contains(path.to_str().unwrap()));
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        conn.end_chunks();
        let reply = conn.reply();
        let problem = reply.problem(503, "damaged");
        assert_eq!(reply.header("hob-executed"), Some("1"), "{name}: {problem}");
        // The node lives, others are right, and what is cut short is not given to anybody.
        assert_eq!(answer(&node, "other"), sum(&other), "{name}");
        assert_eq!(answer(&node, "again"), -9, "{name}");
        fs::write(&path, &big).unwrap();
    }
    assert_eq!(node.faults("damaged"), ways.len() as u64);
    // Nor does the log have anything of it.
    for entry in ["hostcall", "written"].iter().flat_map(|name| node.logs(name)) {
        assert_eq!(entry.0, "host", "{entry:?}");
    }
    // Mended, it is served again.
    assert!(answer(&node, "again") > 0);
}

fn maps(node: &Node) -> String {
    fs::read_to_string(format!("/proc/{}/maps", node.pid())).unwrap()
}

#[test]
fn an_io_error_under_a_mapping_costs_that_invocation() {
    let (big, other) = (bytes(MIB), bytes(MIB + 4096));
    let node = node_with(&[], &[("b", big.clone()), ("o", other.clone())]);
    let path = file_of(&node, MIB);
    let (folder, name) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
    let disk = Failing::mount(folder, name, big.clone());
    is_there("fuse", disk.is_some(), "a disk that fails under a mapping");
    let Some(disk) = disk else { return };
    let all = format!("(call $number (call $sum (call $map {}) (i32.load (i32.const 1028))))", key('b'));
    let late = format!(
        "(local.set $at (call $map {})) (drop (call $drain)) (call $number (call $sum (local.get $at) (i32.const {MIB})))",
        key('b')
    );
    deploy(&node, "all", &all, LONG);
    deploy(&node, "late", &late, LONG);
    // No call of `hob1` follows, and what WASI is told would be wrong.
    let map = format!("(local.set $at (call $map {})) (drop (call $drain))", key('b'));
    // From here on eight bytes end in a line's end, so that the log has them at once.
    let line = 800_001;
    assert_eq!(big[line + 7], b'\n');
    let from = format!("(i32.add (local.get $at) (i32.const {line}))");
    deploy(&node, "written", &format!("{map} {}", write(&from)), LONG);
    deploy(&node, "good", "(call $number (i32.const 5))", "");
    for round in 0..4 {
        disk.fail(false);
        assert_eq!(answer(&node, "all"), sum(&big), "round {round}");
        // An open lets go of what the system had of the file: every page is read again, and cannot be.
        let mut conn = hold(&node, ["/late", "/written"][round % 2]);
        eventually("it is mapped", || maps(&node).contains(name));
        disk.fail(true);
        conn.end_chunks();
        conn.reply().problem(503, "damaged");
        assert_eq!(answer(&node, "good"), 5);
    }
    assert_eq!(node.faults("damaged"), 4);
    assert!(node.logs("written").iter().all(|(source, _, _)| source == "host"), "{:?}", node.logs("written"));
    disk.fail(false);
    // What is true is written, and from an object as from anywhere.
    let mut conn = hold(&node, "/written");
    conn.end_chunks();
    conn.reply().problem(502, "guest-no-response");
    let written = String::from_utf8_lossy(&big[line..line + 7]).into_owned();
    let logs = node.logs("written");
    assert!(logs.iter().any(|(source, _, text)| source == "stdout" && *text == written), "{logs:?} and not {written:?}");
    assert_eq!(answer(&node, "all"), sum(&big));
}
