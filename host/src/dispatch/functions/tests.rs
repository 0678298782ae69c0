//! Tests over a real registry: what is evicted, what outlives that, and what a request sees while deploys go on.

use std::mem::size_of;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::*;
use crate::grants::Grants;
use crate::id::InvocationId;
use crate::invocation::{Phases, Start};
use crate::manifest::Manifest;
use crate::registry::{NewRevision, Precondition};
use crate::telemetry::logs::{Level, LogSink, LogSpace};

struct Node {
    _dir: tempfile::TempDir,
    registry: Arc<Registry>,
}

fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Registry::open(&dir.path().join("registry.redb"), crate::artifacts::FORMAT).unwrap());
    Node { _dir: dir, registry }
}

impl Node {
    fn start(&self, hot_max: usize) -> Functions {
        let base = Base {
            logs: LogSpace::new(1 << 20, 1 << 20),
            grants: Grants::default(),
            data: None,
            files: None,
            egress: None,
            secrets: None,
            identity: None,
        };
        Functions::new(self.registry.clone(), base, hot_max).unwrap()
    }

    fn record(&self, name: &str, manifest: &str) -> FunctionRecord {
        let new = NewRevision {
            wasm: Digest::of(b"w"),
            wasm_bytes: 1,
            artifact: Digest::of(b"a"),
            artifact_bytes: 1,
            kind: "handler".into(),
            manifest: Manifest::parse(manifest).unwrap(),
            snapshot: None,
            bundle: None,
            notes: vec![],
            signed_version: None,
        };
        self.registry.publish(&tenant(), &name.parse().unwrap(), new, &Precondition::Any, 10, 1000).unwrap()
    }
}

fn tenant() -> TenantId {
    TenantId::default()
}

/// Deploys functions that say nothing about themselves.
fn add(node: &Node, names: &[&str]) {
    for name in names {
        node.record(name, "");
    }
}

/// Looks functions up, one after the other.
fn look_up(functions: &Functions, names: &[&str]) {
    for name in names {
        assert!(get(functions, name).is_some());
    }
}

fn get(functions: &Functions, name: &str) -> Option<Arc<Function>> {
    functions.get(&tenant(), &name.parse().unwrap()).unwrap()
}

fn head(path: &str) -> Parts {
    http::Request::builder().uri(path).body(()).unwrap().into_parts().0
}

fn resolve(functions: &Functions, path: &str) -> Result<String, Code> {
    functions.resolve(&tenant(), &head(path)).map(|found| found.function.name.to_string()).map_err(|fault| fault.code)
}

/// Names in memory: hot, leaving, rested.
fn places(functions: &Functions) -> [Vec<String>; 3] {
    let shelf = functions.shelf();
    let names = |map: &LruCache<Key, Arc<Function>>| map.iter().map(|((_, name), _)| name.to_string()).collect::<Vec<_>>();
    let rested = shelf.rested.values().flat_map(|names| names.keys().map(ToString::to_string)).collect();
    let mut places = [names(&shelf.hot), names(&shelf.leaving), rested];
    places.iter_mut().for_each(|names| names.sort());
    places
}

#[test]
fn a_restart_reads_routes_alone_and_finds_every_function() {
    let node = node();
    node.record("a", "route = ['/x/*']");
    node.record("b", "");
    let functions = node.start(10);
    assert_eq!(places(&functions)[0], [""; 0]);
    assert_eq!((resolve(&functions, "/x/1"), resolve(&functions, "/b/1")), (Ok("a".into()), Ok("b".into())));
    assert_eq!(places(&functions)[0], ["a", "b"]);
    assert_eq!(resolve(&functions, "/a"), Ok("a".into()), "by its name too");
    for (path, code) in [("/zzz", Code::NotFound), ("/", Code::NotFound), ("/A_b", Code::BadRequest)] {
        assert_eq!(resolve(&functions, path), Err(code));
    }
    assert!(get(&functions, "zzz").is_none());
    assert_eq!(places(&functions), [vec!["a".to_owned(), "b".into()], vec![], vec![]], "an unknown name leaves nothing");
    functions.registry.remove(&tenant(), &"a".parse().unwrap(), &Precondition::Any).unwrap();
    assert!(functions.remove(&tenant(), &"a".parse().unwrap()).is_some());
    assert_eq!(resolve(&functions, "/x/1"), Err(Code::NotFound));
}

#[test]
fn at_most_as_many_as_configured_are_hot_and_those_in_use_are_spared() {
    let node = node();
    add(&node, &["a", "b", "c", "d"]);
    let functions = node.start(3);
    look_up(&functions, &["a", "b", "c"]);
    assert_eq!(places(&functions)[0], ["a", "b", "c"], "exactly as many");
    assert!(functions.shelf().hot.iter().all(|(_, function)| function.take_recent()));
    drop(get(&functions, "a"));
    drop(get(&functions, "d"));
    assert_eq!(places(&functions), [vec!["a".to_owned(), "c".into(), "d".into()], vec![], vec![]], "one more");
    let one = node.start(1);
    for name in ["a", "b", "a", "a", "c"] {
        assert_eq!(get(&one, name).unwrap().name.as_str(), name);
        assert_eq!(places(&one)[0], [name]);
    }
}

#[test]
fn an_evicted_function_keeps_its_places_totals_and_log() {
    let node = node();
    node.record("a", "[limits]\nconcurrency = 1");
    add(&node, &["b", "c"]);
    let functions = node.start(1);
    let evict = || look_up(&functions, &["b", "c", "b"]);
    let a = get(&functions, "a").unwrap();
    let permit = a.admission.try_admit().unwrap();
    let sink = LogSink::new(a.log.clone(), InvocationId::new(0, 0), RevisionNumber(1), 1 << 20);
    let meter = a.meter.clone();
    meter.started(Start::Stored, &Phases::default(), Instant::now());
    drop(a);
    evict();
    assert_eq!(places(&functions)[1], ["a"], "an instance runs");
    assert_eq!(functions.usage(&tenant(), &"a".parse().unwrap()).1, (1, 0));
    assert!(get(&functions, "a").unwrap().admission.try_admit().is_none(), "its place is taken");
    evict();
    drop(permit);
    evict();
    assert_eq!(places(&functions)[1..], [vec![], vec!["a".to_owned()]]);
    // The instance ends only now.
    sink.host(Level::Info, "bye");
    meter.faulted(Code::GuestTrap);
    drop((sink, meter));
    let (meter, occupancy) = functions.usage(&tenant(), &"a".parse().unwrap());
    let counts = (meter.starts().count(Start::Stored), meter.faults(), occupancy);
    assert_eq!(counts, (1, vec![(Code::GuestTrap, 1)], (0, 0)));
    drop(meter);
    let metered = functions.metered(&tenant());
    assert_eq!(
        metered.iter().map(|one| (one.name.as_str(), one.artifact)).collect::<Vec<_>>(),
        [("b", metered[0].artifact), ("a", None)]
    );
    drop(metered);
    let a = get(&functions, "a").unwrap();
    assert_eq!((a.log.tail(10)[0].text.as_str(), a.meter.starts().count(Start::Stored)), ("bye", 1));
    assert!(a.admission.try_admit().is_some());
    drop(a);
    evict();
    assert_eq!(functions.remove(&tenant(), &"a".parse().unwrap()).map(drop), None);
    assert_eq!(places(&functions)[1..], [vec![""; 0], vec![]], "with its removal they go");
}

#[test]
fn an_evicted_function_explains_nothing_again_until_its_next_revision() {
    let node = node();
    add(&node, &["a", "b", "c"]);
    let functions = node.start(1);
    let say = || {
        let a = get(&functions, "a").unwrap();
        let sink = LogSink::new(a.log.clone(), InvocationId::new(0, 0), a.revision.number, 1 << 20);
        a.environment.explained.say("denied".into(), &sink);
        a.log.tail(10).len()
    };
    assert_eq!(say(), 1);
    look_up(&functions, &["b", "c", "b"]);
    assert_eq!(places(&functions)[2], ["a"]);
    assert_eq!(say(), 1);
    assert!(functions.publish(node.record("a", "")).is_ok());
    assert_eq!(say(), 2);
}

#[test]
fn a_new_revision_of_an_evicted_function_keeps_its_places() {
    let node = node();
    node.record("a", "[limits]\nconcurrency = 1");
    node.record("b", "");
    let functions = node.start(1);
    let permit = get(&functions, "a").unwrap().admission.try_admit().unwrap();
    drop(get(&functions, "b"));
    assert!(functions.publish(node.record("a", "[limits]\nconcurrency = 1")).unwrap().is_none());
    let a = get(&functions, "a").unwrap();
    assert_eq!((a.revision.number, a.admission.occupancy()), (RevisionNumber(2), (1, 0)));
    drop(permit);
    assert_eq!(a.admission.occupancy(), (0, 0));
}

#[test]
fn a_record_that_cannot_be_used_is_damaged_and_its_neighbours_answer() {
    let node = node();
    add(&node, &["a", "b", "c"]);
    let Node { _dir: dir, registry } = node;
    let Ok(Some(record)) = registry.function(&tenant(), &"c".parse().unwrap()) else { panic!("it was deployed") };
    let live = record.live;
    let of_the_future = NewRevision {
        wasm: live.wasm,
        wasm_bytes: 1,
        artifact: live.artifact,
        artifact_bytes: 1,
        kind: "dream".into(),
        manifest: live.manifest,
        snapshot: None,
        bundle: None,
        notes: vec![],
        signed_version: None,
    };
    registry.publish(&tenant(), &"c".parse().unwrap(), of_the_future, &Precondition::Any, 10, 1000).unwrap();
    drop(registry);
    let path = dir.path().join("registry.redb");
    let db = redb::Database::open(&path).unwrap();
    let txn = db.begin_write().unwrap();
    let revisions = redb::TableDefinition::<(&str, &str, u64), &[u8]>::new("revisions");
    txn.open_table(revisions).unwrap().insert(("default", "b", 1), &[0; 100][..]).unwrap();
    txn.commit().unwrap();
    drop(db);
    let registry = Arc::new(Registry::open(&path, crate::artifacts::FORMAT).unwrap());
    let functions = Node { _dir: dir, registry }.start(10);
    for name in ["b", "c"] {
        assert_eq!(functions.get(&tenant(), &name.parse().unwrap()).unwrap_err().code, Code::Damaged, "{name}");
        assert_eq!(resolve(&functions, &format!("/{name}")), Err(Code::Damaged));
    }
    assert_eq!(resolve(&functions, "/a"), Ok("a".into()));
    assert_eq!(places(&functions)[0], ["a"]);
}

#[test]
fn a_follower_keeps_the_log_of_an_evicted_function() {
    let node = node();
    add(&node, &["a", "b", "c"]);
    let functions = node.start(1);
    let (_, mut feed) = get(&functions, "a").unwrap().log.follow(1);
    look_up(&functions, &["b", "c"]);
    assert_eq!(places(&functions)[2], ["a"]);
    let log = get(&functions, "a").unwrap().log.clone();
    LogSink::new(log, InvocationId::new(0, 0), RevisionNumber(1), 1 << 20).host(Level::Info, "here");
    assert_eq!(feed.try_recv().unwrap().text, "here");
}

#[test]
fn what_was_published_is_what_every_later_request_sees() {
    let node = node();
    let functions = node.start(1);
    let names = ["a", "b"];
    let manifest = |n: usize| format!("route = ['/{}']", if n.is_multiple_of(2) { "even" } else { "odd" });
    functions.publish(node.record("a", &manifest(1))).unwrap();
    functions.publish(node.record("b", "")).unwrap();
    let (published, done) = (AtomicU64::new(1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (functions, published, done) = (&functions, &published, &done);
            scope.spawn(move || {
                let mut seen = 0;
                let mut turn = reader;
                while !done.load(Ordering::Relaxed) {
                    // The other name evicts the first, so that it is read again and again.
                    turn += 1;
                    drop(get(functions, names[1]));
                    let before = published.load(Ordering::SeqCst);
                    let number = get(functions, names[0]).unwrap().revision.number.0;
                    assert!(number >= before && number >= seen, "{number} after {before} and {seen}");
                    seen = number;
                    let path = if turn % 2 == 0 { "/even" } else { "/odd" };
                    let by_route = functions.resolve(&tenant(), &head(path));
                    if let Ok(found) = by_route {
                        let routes = &found.function.revision.manifest.route;
                        assert_eq!(routes[0].to_string(), path, "a route and a revision of one deploy");
                    }
                }
            });
        }
        for n in 2..400 {
            functions.set_changing(Some((tenant(), "a".parse().unwrap())));
            let record = node.record("a", &manifest(n));
            functions.publish(record).unwrap();
            functions.set_changing(None);
            published.store(n as u64, Ordering::SeqCst);
        }
        done.store(true, Ordering::Relaxed);
    });
    let shelf = functions.shelf();
    assert!(shelf.hot.len() <= 1 && shelf.leaving.len() <= 1);
}

/// Of the 512 bytes that a function without a template may have in memory, what one that was invoked and is cold again has; its
/// name's text and its log's entries come on top.
const RESTED_BYTES_MAX: usize = 336;

#[test]
fn what_outlives_a_function_is_small() {
    let counts = 2 * size_of::<usize>();
    let meter = counts + size_of::<FunctionMeter>();
    // A table of the standard library is at least 7/16 full; beside each place is one byte.
    let place = (size_of::<(FunctionName, Rested)>() + 1) * 16 / 7;
    assert!(meter + place <= RESTED_BYTES_MAX, "{meter} + {place}");
    assert!(counts + size_of::<FunctionLog>() <= 128, "an empty log");
}
