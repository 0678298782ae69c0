//! Tests of the registry as a whole: its rules here, damaged files and failing storage, and a model beside.

mod damage;
mod model;

use std::collections::BTreeSet;

use super::*;
use crate::fault::Code;
use crate::id::Digest;
use crate::manifest::Manifest;

const FORMAT: u32 = 4;

fn open(dir: &tempfile::TempDir) -> Registry {
    let registry = Registry::open(&file(dir), FORMAT).unwrap();
    for tenant in ["a", "aaa", "b", "c", "default-2", "other", "t", "tt"] {
        registry.put_tenant(&tenant.parse().unwrap(), BTreeSet::new()).unwrap();
    }
    registry
}

fn file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("registry.redb")
}

fn tenant() -> TenantId {
    TenantId::default()
}

fn name(text: &str) -> FunctionName {
    text.parse().unwrap()
}

fn new(wasm: &str, routes: &[&str]) -> NewRevision {
    let list = routes.iter().map(|route| format!("'{route}'")).collect::<Vec<_>>().join(",");
    NewRevision {
        wasm: Digest::of(wasm.as_bytes()),
        wasm_bytes: wasm.len() as u64,
        artifact: Digest::of(format!("{wasm} artifact").as_bytes()),
        artifact_bytes: 7,
        kind: "handler".into(),
        manifest: Manifest::parse(&format!("route = [{list}]\n[env]\nWASM = '{wasm}'")).unwrap(),
        snapshot: None,
        bundle: None,
        notes: vec!["a note".into()],
        signed_version: None,
    }
}

fn publish(registry: &Registry, function: &str, wasm: &str, routes: &[&str]) -> Result<FunctionRecord, PublishError> {
    registry.publish(&tenant(), &name(function), new(wasm, routes), &Precondition::Any, 10, 1000)
}

fn rollback(registry: &Registry, function: &str, to: Option<u64>) -> Result<FunctionRecord, PublishError> {
    registry.rollback(&tenant(), &name(function), to.map(RevisionNumber), &Precondition::Any)
}

fn numbers(registry: &Registry, function: &str) -> Vec<u64> {
    registry.revisions(&tenant(), &name(function)).unwrap().iter().map(|revision| revision.number.0).collect()
}

/// All functions of all tenants that the tests use.
fn all(registry: &Registry) -> Result<Vec<FunctionRecord>, RegistryError> {
    let mut records = Vec::new();
    for tenant in ["default", "t", "tt"] {
        records.extend(registry.list(&tenant.parse().unwrap(), None, usize::MAX)?);
    }
    Ok(records)
}

// Rules.

#[test]
fn preconditions() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    let live = publish(&registry, "there", "w", &[]).unwrap().etag();
    assert_eq!(live, format!("\"1-{}\"", &Digest::of(b"w").hex()[..16]));
    let among = format!("\"0-aa\", {live}");
    let weak = format!("W/{live}");
    let matched = |text: &str| Precondition::Match(text.into());
    let cases = [
        (Precondition::Any, true, true),
        (Precondition::NoneMatch, false, true),
        (matched("*"), true, false),
        (matched(&live), true, false),
        (matched(&among), true, false),
        (matched(&weak), false, false),
        (matched("\"2-aaaaaaaaaaaaaaaa\""), false, false),
        (matched(live.trim_matches('"')), false, false),
        (matched(""), false, false),
    ];
    for (precondition, there, absent) in cases {
        for (function, holds) in [("there", there), ("absent", absent)] {
            let refused = |result: Result<(), PublishError>| match result {
                Err(PublishError::Precondition { found, .. }) => {
                    assert_eq!(found.is_some(), function == "there");
                    assert!(!holds, "{precondition:?} on {function}");
                }
                Ok(()) | Err(PublishError::NoSuchFunction { .. }) => assert!(holds, "{precondition:?} on {function}"),
                Err(other) => panic!("{other}"),
            };
            let function = name(function);
            // The live revision keeps its number, so that the tags above stay true.
            refused(registry.rollback(&tenant(), &function, Some(RevisionNumber(1)), &precondition).map(drop));
            let scratch = tempfile::tempdir().unwrap();
            let copy = open(&scratch);
            publish(&copy, "there", "w", &[]).unwrap();
            refused(copy.publish(&tenant(), &function, new("x", &[]), &precondition, 10, 1000).map(drop));
            let scratch = tempfile::tempdir().unwrap();
            let copy = open(&scratch);
            publish(&copy, "there", "w", &[]).unwrap();
            refused(copy.remove(&tenant(), &function, &precondition).map(drop));
        }
    }
}

#[test]
fn of_two_racing_deploys_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    let etag = publish(&registry, "f", "w", &[]).unwrap().etag();
    let race = |wasm: &'static str| {
        let (registry, precondition) = (&registry, Precondition::Match(etag.clone()));
        move || registry.publish(&tenant(), &name("f"), new(wasm, &[]), &precondition, 10, 1000)
    };
    let results = std::thread::scope(|scope| [scope.spawn(race("a")), scope.spawn(race("b"))].map(|t| t.join().unwrap()));
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    let lost = results.iter().find_map(|result| result.as_ref().err()).unwrap();
    assert_eq!(lost.fault().code, Code::PreconditionFailed);
    assert_eq!(numbers(&registry, "f"), [2, 1]);
}

#[test]
fn a_route_has_one_holder() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    publish(&registry, "a", "w", &["/x", "/y/*"]).unwrap();
    let error = publish(&registry, "b", "w", &["/z", "/x"]).unwrap_err();
    assert_eq!(error.to_string(), "route '/x' belongs to function 'a': remove it from one of the two manifests");
    assert_eq!(error.fault().code, Code::Conflict);
    assert!(registry.function(&tenant(), &name("b")).unwrap().is_none(), "nothing is left of it");
    publish(&registry, "b", "w", &["/z"]).unwrap();

    let other: TenantId = "other".parse().unwrap();
    registry.publish(&other, &name("b"), new("w", &["/x"]), &Precondition::Any, 10, 1000).unwrap();

    publish(&registry, "a", "w", &["/y/*"]).unwrap();
    publish(&registry, "b", "w", &["/x"]).unwrap();
    let error = rollback(&registry, "a", Some(1)).unwrap_err();
    assert!(matches!(error, PublishError::RouteTaken { .. }), "{error}");
    assert_eq!(registry.function(&tenant(), &name("a")).unwrap().unwrap().live.number, RevisionNumber(2));
    assert!(registry.remove(&tenant(), &name("b"), &Precondition::Any).unwrap());
    assert_eq!(rollback(&registry, "a", Some(1)).unwrap().live.number, RevisionNumber(1));
    assert!(matches!(publish(&registry, "c", "w", &["/x"]), Err(PublishError::RouteTaken { .. })));
}

#[test]
fn numbers_rise_and_old_revisions_go() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    let keep = |wasm: &str, keep: usize| {
        registry.publish(&tenant(), &name("f"), new(wasm, &[]), &Precondition::Any, keep, 1000).unwrap();
        numbers(&registry, "f")
    };
    assert_eq!(keep("1", 3), [1]);
    assert_eq!(keep("2", 3), [2, 1]);
    assert_eq!(keep("3", 3), [3, 2, 1], "exactly as many as are kept");
    assert_eq!(keep("4", 3), [4, 3, 2], "one more");
    assert_eq!(registry.references().unwrap().len(), 6);

    assert!(matches!(rollback(&registry, "f", Some(1)), Err(PublishError::NoSuchRevision { .. })));
    assert_eq!(rollback(&registry, "f", None).unwrap().live.number, RevisionNumber(3));
    let again = rollback(&registry, "f", Some(3)).unwrap();
    assert_eq!(Some(again), registry.function(&tenant(), &name("f")).unwrap());
    assert_eq!(rollback(&registry, "f", Some(2)).unwrap().live.wasm, Digest::of(b"2"));
    let error = rollback(&registry, "f", None).unwrap_err();
    assert_eq!(error.to_string(), "function 'f' has no revision before the live one: expected one of 4, 3, 2");
    assert_eq!(rollback(&registry, "f", Some(4)).unwrap().live.number, RevisionNumber(4), "forward again");
    rollback(&registry, "f", Some(2)).unwrap();
    assert_eq!(keep("5", 3), [5, 4, 3], "a number is not given twice");
    assert_eq!(keep("6", 0), [6], "the live one always stays");
    assert!(matches!(rollback(&registry, "g", None), Err(PublishError::NoSuchFunction { .. })));
}

#[test]
fn removing_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    publish(&registry, "f", "1", &["/x"]).unwrap();
    publish(&registry, "f", "2", &["/x", "/y"]).unwrap();
    publish(&registry, "ff", "2", &[]).unwrap();
    let remove = |function: &str| registry.remove(&tenant(), &name(function), &Precondition::Any).unwrap();
    assert!(remove("f") && !remove("f"));
    assert!(registry.function(&tenant(), &name("f")).unwrap().is_none() && numbers(&registry, "f").is_empty());
    assert_eq!(registry.references().unwrap().len(), 2);
    assert_eq!(publish(&registry, "f", "3", &["/y"]).unwrap().live.number, RevisionNumber::FIRST);
}

#[test]
fn the_number_of_functions_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    let add = |tenant: &str, function: &str| {
        registry.publish(&tenant.parse().unwrap(), &name(function), new("w", &[]), &Precondition::Any, 10, 2)
    };
    for (tenant, function) in [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")] {
        add(tenant, function).unwrap();
    }
    assert!(matches!(add("a", "3"), Err(PublishError::TooManyFunctions { count: 2, max: 2 })));
    assert!(add("a", "2").is_ok(), "another revision is no other function");
    assert!(add("c", "1").is_ok(), "tenants are counted apart");
}

#[test]
fn an_artifact_can_be_replaced_while_its_revision_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    let before = publish(&registry, "f", "1", &[]).unwrap();
    let key = Digest::of(b"another engine");
    let made = |note: Option<&str>| Recompiled { of: None, artifact: key, artifact_bytes: 99, note: note.map(Into::into) };
    let set = |number, note| registry.set_artifact(&tenant(), &name("f"), RevisionNumber(number), made(note)).unwrap();
    assert!(set(1, None) && set(1, Some("lost")) && set(1, Some("lost")) && !set(2, None));
    let after = registry.function(&tenant(), &name("f")).unwrap().unwrap();
    assert_eq!(after.live.notes, ["a note", "lost"], "once");
    assert_eq!((after.live.artifact, after.live.artifact_bytes, after.etag()), (key, 99, before.etag()));
    let needed = [Reference::Wasm(Digest::of(b"1")), Reference::Artifact(key)].map(|reference| (tenant(), reference));
    assert_eq!(registry.references().unwrap(), needed);
    // The second is what was made for a revision that is gone; whoever collects it finds that it is needed by another.
    let released = [before.live.artifact, key].map(|key| (tenant(), Reference::Artifact(key)));
    assert_eq!(registry.take_released(), released);
    assert_eq!(registry.referenced(&released).unwrap(), released[1..]);
}

#[test]
fn a_live_revision_is_built_again_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    let snapshot = |key: &[u8]| {
        let secrets = Some(Digest::of(b"secrets"));
        Some(SnapshotRecord { key: Digest::of(key), bytes: 1, memory_bytes: 1, secrets })
    };
    let with = NewRevision { snapshot: snapshot(b"old"), ..new("1", &["/a"]) };
    let before = registry.publish(&tenant(), &name("f"), with, &Precondition::Any, 10, 10).unwrap();
    let taken = Retaken { artifact: Digest::of(b"n"), artifact_bytes: 7, snapshot: snapshot(b"new"), notes: vec!["x".into()] };
    let retake = |number| registry.retake(&tenant(), &name("f"), RevisionNumber(number), taken.clone()).unwrap();
    let after = retake(1).unwrap();
    assert_eq!(registry.function(&tenant(), &name("f")).unwrap().unwrap(), after);
    assert_eq!((after.etag(), after.updated_ms, after.live.number), (before.etag(), before.updated_ms, before.live.number));
    assert_eq!((after.live.artifact, after.live.snapshot), (Digest::of(b"n"), snapshot(b"new")));
    let files =
        |artifact, key: &[u8]| [Reference::Artifact(artifact), Reference::Snapshot(Digest::of(key))].map(|file| (tenant(), file));
    let mut released = registry.take_released();
    released.sort();
    assert_eq!(released, files(before.live.artifact, b"old"));
    // Native code of the former snapshot, which was being made meanwhile, is not put under the new one.
    let late = |of: &[u8]| {
        let made = Recompiled { of: Some(Digest::of(of)), artifact: Digest::of(b"late"), artifact_bytes: 1, note: None };
        registry.set_artifact(&tenant(), &name("f"), RevisionNumber(1), made)
    };
    assert!(!late(b"old").unwrap() && late(b"new").unwrap());
    // What is not live any more stays as it is.
    publish(&registry, "f", "2", &["/a"]).unwrap();
    drop(registry.take_released());
    assert_eq!(retake(1), None);
    let mut released = registry.take_released();
    released.sort();
    assert_eq!(released, files(Digest::of(b"n"), b"new"));
    assert_eq!(registry.referenced(&released).unwrap(), released[1..], "another may need what was made for nothing");
}

// Migration.

/// What a build with an older format left: the same without the tables that came later.
fn make_format(dir: &tempfile::TempDir, format: u32) {
    let registry = open(dir);
    publish(&registry, "a", "1", &["/a"]).unwrap();
    publish(&registry, "a", "2", &["/b", "/c"]).unwrap();
    publish(&registry, "b", "1", &["/d"]).unwrap();
    rollback(&registry, "a", Some(1)).unwrap();
    drop(registry);
    let db = open_file(&file(dir)).unwrap();
    let txn = db.begin_write().unwrap();
    if format < 2 {
        assert!(txn.delete_table(ROUTES).unwrap());
    }
    if format < 3 {
        assert!(txn.delete_table(references::REFERENCES).unwrap() && txn.delete_table(references::TENANTS).unwrap());
    }
    txn.commit().unwrap();
}

#[test]
fn format_2_gets_its_counts_and_may_be_migrated_again() {
    let dir = tempfile::tempdir().unwrap();
    make_format(&dir, 2);
    for _ in 0..2 {
        // The second time as after a kill before the directory's number was written.
        let registry = Registry::open(&file(&dir), 2).unwrap();
        let mut needed: Vec<_> = ["1", "2"].iter().flat_map(|wasm| needs(wasm)).collect();
        needed.sort();
        assert_eq!(registry.references().unwrap(), needed);
        assert_eq!(registry.routes().unwrap().len(), 2);
    }
    let registry = open(&dir);
    let add = |function: &str| registry.publish(&tenant(), &name(function), new("3", &[]), &Precondition::Any, 10, 3);
    add("c").unwrap();
    assert!(matches!(add("d"), Err(PublishError::TooManyFunctions { count: 3, max: 3 })), "a and b were counted");
    assert!(registry.remove(&tenant(), &name("b"), &Precondition::Any).unwrap());
    assert!(registry.take_released().is_empty(), "a needs the same module");
    assert!(registry.remove(&tenant(), &name("a"), &Precondition::Any).unwrap());
    let mut released = registry.take_released();
    released.sort();
    let mut needed: Vec<_> = ["1", "2"].iter().flat_map(|wasm| needs(wasm)).collect();
    needed.sort();
    assert_eq!(released, needed);
    assert_eq!(registry.references().unwrap().len(), 2);
}

/// The files of a module.
fn needs(wasm: &str) -> [(TenantId, Reference); 2] {
    let new = new(wasm, &[]);
    [Reference::Wasm(new.wasm), Reference::Artifact(new.artifact)].map(|reference| (tenant(), reference))
}

#[test]
fn files_are_released_with_the_last_revision_that_needs_them() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    let keep = |function: &str, wasm: &str| {
        registry.publish(&tenant(), &name(function), new(wasm, &[]), &Precondition::Any, 1, 1000).unwrap();
        registry.take_released()
    };
    assert_eq!([keep("a", "1"), keep("b", "1"), keep("a", "2"), keep("a", "2")], [vec![], vec![], vec![], vec![]]);
    assert_eq!(keep("b", "2"), needs("1"));
    assert_eq!(registry.referenced(&[needs("1"), needs("2")].concat()).unwrap(), needs("2"));
    registry.write::<()>(|_| panic!("cut off")).unwrap_err();
    assert!(registry.publish(&tenant(), &name("a"), new("3", &[]), &Precondition::NoneMatch, 1, 1000).is_err());
    assert!(registry.take_released().is_empty(), "what was not committed released nothing");
    // A snapshot is a file too.
    let snapshot = Some(SnapshotRecord { key: Digest::of(b"s"), bytes: 1, memory_bytes: 1, secrets: None });
    let with = NewRevision { snapshot, ..new("2", &[]) };
    registry.publish(&tenant(), &name("a"), with, &Precondition::Any, 1, 1000).unwrap();
    assert!(registry.references().unwrap().contains(&(tenant(), Reference::Snapshot(Digest::of(b"s")))));
    assert_eq!(keep("a", "2"), [(tenant(), Reference::Snapshot(Digest::of(b"s")))]);
}

#[test]
fn pages_of_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    for function in ["b", "a", "ab", "c"] {
        publish(&registry, function, "w", &[]).unwrap();
    }
    // Neighbours in the order of tenants.
    for other in ["aaa", "default-2"] {
        registry.publish(&other.parse().unwrap(), &name("x"), new("w", &[]), &Precondition::Any, 1, 10).unwrap();
    }
    let page = |after: Option<&str>, count| {
        let records = registry.list(&tenant(), after.map(name).as_ref(), count).unwrap();
        records.iter().map(|record| record.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 10), ["a", "ab", "b", "c"]);
    assert_eq!(page(None, 2), ["a", "ab"]);
    assert_eq!(page(Some("ab"), 10), ["b", "c"]);
    assert_eq!(page(Some("aa"), 1), ["ab"], "what it begins after need not exist any more");
    assert!(page(Some("c"), 10).is_empty() && page(None, 0).is_empty());
    assert!(registry.list(&"nobody".parse().unwrap(), None, 10).unwrap().is_empty());
    assert_eq!(registry.count().unwrap(), 6);
}

#[test]
fn format_1_gets_its_routes_and_may_be_migrated_again() {
    let dir = tempfile::tempdir().unwrap();
    make_format(&dir, 1);
    for _ in 0..2 {
        // The second time as after a kill before the directory's number was written.
        let registry = Registry::open(&file(&dir), 1).unwrap();
        let routes = registry.routes().unwrap();
        let routes: Vec<_> = routes.iter().map(|(tenant, route, name)| format!("{tenant} {route} {name}")).collect();
        assert_eq!(routes, ["default /a a", "default /d b"]);
        assert_eq!((all(&registry).unwrap().len(), registry.count().unwrap()), (2, 2));
    }
    let registry = open(&dir);
    assert!(matches!(publish(&registry, "c", "1", &["/d"]), Err(PublishError::RouteTaken { .. })));
    publish(&registry, "c", "1", &["/c"]).unwrap();
}

#[test]
fn of_two_holders_in_format_1_the_older_keeps_the_route() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    publish(&registry, "old", "1", &["/x"]).unwrap();
    registry.write(|txn| Ok((txn.delete_table(ROUTES).unwrap(), Commit::Yes))).unwrap();
    drop(registry);
    let registry = open(&dir);
    registry.write(|txn| Ok((txn.delete_table(ROUTES).unwrap(), Commit::Yes))).unwrap();
    let started = now_ms();
    while now_ms() == started {
        std::hint::spin_loop();
    }
    publish(&registry, "new", "1", &["/x"]).unwrap();
    drop(registry);
    let registry = Registry::open(&file(&dir), 1).unwrap();
    let error = publish(&registry, "new", "2", &["/x"]).unwrap_err();
    assert!(error.to_string().contains("'old'"), "{error}");
    assert!(registry.remove(&tenant(), &name("new"), &Precondition::Any).unwrap());
    assert!(matches!(publish(&registry, "third", "1", &["/x"]), Err(PublishError::RouteTaken { .. })));
}
