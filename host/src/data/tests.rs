//! Tests of buckets and of the store.

use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition, TableHandle as _};

use super::clock::testing::Hands;
use super::error::storage;
use super::*;
use crate::fault::Code;

const T: TableDefinition<'_, u64, u64> = TableDefinition::new("test");

/// Whether a test that needs a tool can run. One that cannot says so, and fails if `HOB_TEST_REQUIRE` names the tool. As
/// `is_there` of the tests of the whole program, which cannot be reached from here.
pub(super) fn is_there(tool: &str, found: bool, what: &str) -> bool {
    if found {
        return true;
    }
    let required = std::env::var_os("HOB_TEST_REQUIRE").unwrap_or_default();
    let required = required.to_string_lossy().split(',').any(|required| required == tool);
    assert!(!required, "{what} needs {tool}, and HOB_TEST_REQUIRE names it");
    // The macros that print would show it only if the test failed.
    std::io::Write::write_all(&mut std::io::stderr(), format!("skipped: {what} needs {tool}\n").as_bytes()).unwrap();
    false
}

fn tenant(text: &str) -> TenantId {
    text.parse().unwrap()
}

fn name(text: &str) -> BucketName {
    text.parse().unwrap()
}

fn spec(durability: Durability) -> BucketSpec {
    BucketSpec { durability, bytes_max: 1000, keys_max: 10 }
}

fn open(dir: &tempfile::TempDir) -> Data {
    Data::open(&dir.path().join("data"), DataConfig::default(), Clock::system()).unwrap()
}

fn names(data: &Data, tenant_name: &str) -> Vec<String> {
    let buckets = data.buckets(&tenant(tenant_name), None, usize::MAX).unwrap();
    buckets.iter().map(|bucket| bucket.name.to_string()).collect()
}

#[test]
fn buckets_belong_to_tenants_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir);
    let durable = spec(Durability::Durable);
    let (first, made) = data.put_bucket(&tenant("t"), &name("b"), durable).wait().unwrap();
    assert!(made);
    let (other, made) = data.put_bucket(&tenant("tt"), &name("b"), durable).wait().unwrap();
    assert!(made && other.id != first.id);
    let more = BucketSpec { keys_max: 11, ..durable };
    let (changed, made) = data.put_bucket(&tenant("t"), &name("b"), more).wait().unwrap();
    assert_eq!((changed.id, changed.spec, made), (first.id, more, false));
    let refused = data.put_bucket(&tenant("t"), &name("b"), spec(Durability::Volatile)).wait().unwrap_err();
    assert_eq!(refused.fault().code, Code::Conflict, "{refused}");
    for text in ["a", "b-c", "bc", "c"] {
        data.put_bucket(&tenant("t"), &name(text), durable).wait().unwrap();
    }
    drop(data);
    let data = open(&dir);
    assert_eq!(names(&data, "t"), ["a", "b", "b-c", "bc", "c"]);
    assert_eq!(names(&data, "tt"), ["b"]);
    assert!(names(&data, "ttt").is_empty());
    let page = data.buckets(&tenant("t"), Some(&name("b")), 2).unwrap();
    assert_eq!(page.iter().map(|bucket| bucket.name.as_str()).collect::<Vec<_>>(), ["b-c", "bc"]);
    assert_eq!(data.bucket(&tenant("t"), &name("b")).unwrap(), Some(changed));
    assert_eq!(data.delete_bucket(&tenant("t"), &name("b")).wait().unwrap(), Some(first.id));
    assert_eq!(data.delete_bucket(&tenant("t"), &name("b")).wait().unwrap(), None);
    assert_eq!(data.bucket(&tenant("t"), &name("b")).unwrap(), None);
    assert!(data.bucket(&tenant("tt"), &name("b")).unwrap().is_some());
    let (again, _) = data.put_bucket(&tenant("t"), &name("b"), durable).wait().unwrap();
    assert!(again.id > other.id, "numbers are not given twice");
}

#[test]
fn a_tenant_has_at_most_so_many_buckets() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir);
    let acks: Vec<_> =
        (0..=BUCKETS_MAX).map(|n| data.put_bucket(&tenant("t"), &name(&format!("b{n}")), spec(Durability::Durable))).collect();
    let mut results: Vec<_> = acks.into_iter().map(Ack::wait).collect();
    let last = results.pop().unwrap().unwrap_err();
    assert_eq!(last.fault().code, Code::QuotaExceeded, "{last}");
    assert!(results.iter().all(Result::is_ok));
    assert!(data.put_bucket(&tenant("other"), &name("b"), spec(Durability::Durable)).wait().is_ok());
}

fn store(dir: &tempfile::TempDir, sweeps: Vec<Sweep>) -> Store {
    Store::open(&dir.path().join("data.redb"), 1 << 20, Clock::system(), |_| Ok(()), sweeps).unwrap()
}

fn add(store: &Store, key: u64) -> Ack<()> {
    store.write(8, move |txn, _| {
        txn.open_table(T).map_err(storage("open"))?.insert(key, 0).map_err(storage("insert"))?;
        Ok(((), Commit::Yes))
    })
}

fn count(store: &Store) -> u64 {
    use redb::ReadableTableMetadata as _;
    store.read(|txn| txn.open_table(T).map_err(storage("open"))?.len().map_err(storage("count"))).unwrap()
}

#[test]
fn writes_from_many_threads_are_there_when_they_are_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let shared = store(&dir, vec![]);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let shared = &shared;
            scope.spawn(move || {
                for n in 0..20 {
                    let key = thread * 100 + n;
                    add(shared, key).wait().unwrap();
                    let there = shared
                        .read(|txn| Ok(txn.open_table(T).map_err(storage("open"))?.get(key).map_err(storage("get"))?.is_some()));
                    assert!(there.unwrap());
                }
            });
        }
    });
    assert_eq!(count(&shared), 160);
    // What waits is written before the store is closed.
    let last = add(&shared, 1000);
    drop(shared);
    last.wait().unwrap();
    assert_eq!(count(&store(&dir, vec![])), 161);
}

#[tokio::test]
async fn an_ack_is_a_future() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, vec![]);
    add(&store, 1).await.unwrap();
    assert!(matches!(Ack::<()>::ready(Err(DataError::Busy)).await, Err(DataError::Busy)));
}

#[test]
fn a_refused_job_costs_its_group_nothing_and_a_panic_only_its_group() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, vec![]);
    let good = add(&store, 1);
    let refused = store.write::<(), _>(0, |_, _| Err(DataError::Conflict { index: None, found: None }));
    let also = add(&store, 2);
    good.wait().unwrap();
    also.wait().unwrap();
    assert!(matches!(refused.wait(), Err(DataError::Conflict { .. })));
    let (sender, told) = std::sync::mpsc::sync_channel(1);
    let after = move |result: &Result<(), DataError>| sender.send(result.is_err()).unwrap();
    let torn = store.write_then::<(), _, _>(0, |_, _| panic!("page {} is torn", 3), after).wait().unwrap_err();
    assert!(told.recv().unwrap());
    assert!(torn.to_string().contains("page 3 is torn"), "{torn}");
    add(&store, 3).wait().unwrap();
    assert_eq!(count(&store), 3);
    assert!(store.read_only().is_none());
}

#[test]
fn a_full_queue_is_busy_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, vec![]);
    let (begun, is_begun) = std::sync::mpsc::sync_channel(1);
    let (go, gone) = std::sync::mpsc::sync_channel::<()>(1);
    let held = store.write(1, move |_, _| {
        begun.send(()).unwrap();
        gone.recv().unwrap();
        Ok(((), Commit::No))
    });
    is_begun.recv().unwrap();
    let large = store.write(QUEUE_BYTES_MAX - 1, |_, _| Ok(((), Commit::No)));
    let error = store.write(1, |_, _| Ok(((), Commit::No))).wait().unwrap_err();
    let fault = error.fault();
    assert!(fault.code == Code::Overloaded && fault.retry_after.is_some(), "{error}");
    let waiting: Vec<_> = (1..QUEUE_JOBS_MAX).map(|n| store.write(0, move |_, _| Ok((n, Commit::No)))).collect();
    assert!(matches!(store.write(0, |_, _| Ok(((), Commit::No))).wait(), Err(DataError::Busy)));
    go.send(()).unwrap();
    held.wait().unwrap();
    large.wait().unwrap();
    for (n, ack) in waiting.into_iter().enumerate() {
        assert_eq!(ack.wait().unwrap(), n + 1);
    }
    store.write(1, |_, _| Ok(((), Commit::No))).wait().unwrap();
}

#[test]
fn those_who_wait_share_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    // A sweep is run once for each group.
    let (sender, groups) = std::sync::mpsc::sync_channel(100);
    let sweep: Sweep = Box::new(move |_, now_ms| {
        let _gone = sender.send(());
        Ok(Swept { commit: Commit::No, next_ms: Some(now_ms + 1_000_000) })
    });
    let shared = store(&dir, vec![sweep]);
    let (go, wait) = std::sync::mpsc::sync_channel::<()>(0);
    let (begun, has_begun) = std::sync::mpsc::sync_channel::<()>(0);
    let first = shared.write(1, move |_, _| {
        begun.send(()).unwrap();
        wait.recv().unwrap();
        Ok(((), Commit::No))
    });
    has_begun.recv().unwrap();
    let before = groups.try_iter().count();
    let waiting: Vec<_> = (0..20).map(|n| add(&shared, n)).collect();
    go.send(()).unwrap();
    first.wait().unwrap();
    waiting.into_iter().for_each(|ack| ack.wait().unwrap());
    assert!(before >= 1);
    assert_eq!(groups.try_iter().count(), 1);
    assert_eq!(count(&shared), 20);
}

#[test]
fn sweeps_run_by_themselves_and_the_mark_of_the_clock_survives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.redb");
    let hands = Hands::at(1_000_000);
    let (sender, swept) = std::sync::mpsc::sync_channel(10);
    let sweep: Sweep = Box::new(move |_, now_ms| {
        let _gone = sender.send(now_ms);
        Ok(Swept { commit: Commit::No, next_ms: Some(now_ms.max(1_060_000)) })
    });
    let once = Store::open(&path, 1 << 20, hands.clock(), |_| Ok(()), vec![sweep]).unwrap();
    assert_eq!(swept.recv().unwrap(), 1_000_000);
    hands.jump_to(2_000_000);
    // Found within a tick, though nobody writes.
    assert_eq!(swept.recv().unwrap(), 2_000_000);
    drop(swept);
    drop(once);
    let hands = Hands::at(2_000_000);
    let once = Store::open(&path, 1 << 20, hands.clock(), |_| Ok(()), vec![]).unwrap();
    add(&once, 1).wait().unwrap();
    drop(once);
    let late = Hands::at(5);
    let again = Store::open(&path, 1 << 20, late.clock(), |_| Ok(()), vec![]).unwrap();
    assert!(again.clock().now_ms() >= 2_000_000);
}

#[test]
fn an_audit_of_a_damaged_bucket_tells_of_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir);
    for bucket in ["a", "b", "c"] {
        data.put_bucket(&tenant("t"), &name(bucket), spec(Durability::Durable)).wait().unwrap();
    }
    let id = data.bucket(&tenant("t"), &name("b")).unwrap().unwrap().id;
    let damage = move |txn: &redb::WriteTransaction, _| {
        let mut states = txn.open_table(super::account::STATES).map_err(super::error::storage("damage an account"))?;
        states.insert(id.0, &b"rot"[..]).map_err(super::error::storage("damage an account"))?;
        Ok(((), Commit::Yes))
    };
    data.store.write(0, damage).wait().unwrap();
    drop(data);
    let audited = Data::audit(&dir.path().join("data")).unwrap();
    let found: Vec<_> =
        audited.iter().map(|(name, audited)| (name.as_str(), audited.as_ref().is_ok_and(Audited::is_good))).collect();
    assert_eq!(found, [("a", true), ("b", false), ("c", true)]);
    assert!(matches!(audited[1].1, Err(DataError::DamagedRow { .. })));
}

#[test]
fn a_damaged_row_of_a_deleted_bucket_takes_no_other() {
    let graves = TableDefinition::<'_, (u8, u64), ()>::new("graves");
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir);
    let [kept, gone] = ["kept", "gone"].map(|bucket| {
        let (bucket, _) = data.put_bucket(&tenant("t"), &name(bucket), spec(Durability::Durable)).wait().unwrap();
        data.kv(&bucket)
            .unwrap()
            .write(vec![kv::Op::Set { key: "key".into(), value: "value".into(), ttl: None, when: kv::When::Always }])
            .wait()
            .unwrap();
        bucket
    });
    // What one flipped bit makes of another's row.
    let damage = move |txn: &redb::WriteTransaction, _| {
        let mut graves = txn.open_table(graves).map_err(storage("damage a row"))?;
        for kind in [1, 2] {
            graves.insert((kind, kept.id.0), ()).map_err(storage("damage a row"))?;
        }
        Ok(((), Commit::Yes))
    };
    data.store.write(0, damage).wait().unwrap();
    data.delete_bucket(&tenant("t"), &name("gone")).wait().unwrap();
    // Lower numbers come first, so that of the other is swept after what must not be.
    let left = move |txn: &redb::WriteTransaction, _| {
        let graves = txn.open_table(graves).map_err(storage("look at the rows"))?;
        let is_left = graves.get((1, gone.id.0)).map_err(storage("look at the rows"))?.is_some();
        Ok((is_left, Commit::No))
    };
    while data.store.write(0, left).wait().unwrap() {
        std::thread::yield_now();
    }
    let kept = data.bucket(&tenant("t"), &name("kept")).unwrap().unwrap();
    let found = data.kv(&kept).unwrap().get(b"key").unwrap();
    assert_eq!(found.map(|entry| entry.value), Some("value".into()));
}

#[test]
fn a_deleted_bucket_that_is_damaged_keeps_no_other_from_being_swept() {
    let table = TableDefinition::<'_, (u8, u64), ()>::new("graves");
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, vec![]);
    let sweep_all = move |txn: &redb::WriteTransaction, _: u64| {
        bucket::prepare(txn)?;
        for id in 1..=4 {
            txn.open_table(table).unwrap().insert((1, id), ()).unwrap();
        }
        let damaged = || DataError::Damaged { what: "a page".into() };
        let mut graves = bucket::Graves::new(account::Kind::Entries);
        let mut swept = Vec::new();
        let mut purge = |id: BucketId| match id.0 {
            1 => Err(damaged()),
            2 => panic!("as redb does"),
            // A full disk is no damage.
            3 if swept.is_empty() => {
                swept.push(0);
                Err(DataError::Busy)
            }
            id => {
                swept.push(id);
                Ok(true)
            }
        };
        assert!(matches!(graves.sweep(txn, 0, &mut purge), Err(DataError::Damaged { .. })));
        assert!(crate::storage::caught(|| graves.sweep(txn, 0, &mut purge).map(drop)).is_err());
        assert!(matches!(graves.sweep(txn, 0, &mut purge), Err(DataError::Busy)));
        while graves.sweep(txn, 0, &mut purge)?.commit == Commit::Yes {}
        assert_eq!(swept, [0, 3, 4]);
        let left: Vec<_> = txn.open_table(table).unwrap().iter().unwrap().map(|row| row.unwrap().0.value().1).collect();
        assert_eq!(left, [1, 2], "for the next start");
        Ok(((), Commit::No))
    };
    store.write(0, sweep_all).wait().unwrap();
}

fn table_names(path: &Path) -> Vec<String> {
    let file = redb::Database::open(path).unwrap();
    file.begin_read().unwrap().list_tables().unwrap().map(|table| table.name().to_owned()).collect()
}

/// Opens a store after `change` was made to its file, and says what is damaged; nothing is written then.
fn opened_after(change: impl Fn(&redb::WriteTransaction)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir);
    data.put_bucket(&tenant("t"), &name("a"), spec(Durability::Durable)).wait().unwrap();
    drop(data);
    let path = dir.path().join("data/data.redb");
    {
        let file = redb::Database::open(&path).unwrap();
        let txn = file.begin_write().unwrap();
        change(&txn);
        txn.commit().unwrap();
    }
    let before = table_names(&path);
    let folder = dir.path().join("data");
    let opened = Data::open(&folder, DataConfig::default(), Clock::system()).map(drop);
    let Err(DataError::Damaged { what }) = opened else { panic!("it opened: {opened:?}") };
    let verified = Data::verify(&folder);
    assert!(matches!(&verified, Err(DataError::Damaged { .. })), "{verified:?}");
    assert_eq!(table_names(&path), before);
    what
}

#[test]
fn a_file_that_has_lost_a_table_is_no_new_store() {
    let delete = |txn: &redb::WriteTransaction, name: &str| {
        let all: Vec<_> = txn.list_tables().unwrap().collect();
        for table in all {
            if name.is_empty() || table.name() == name {
                assert!(txn.delete_table(table).unwrap());
            }
        }
    };
    assert_eq!(opened_after(|txn| delete(txn, "")), "it has none of its tables");
    assert_eq!(opened_after(|txn| delete(txn, "objects")), "its table 'objects' is missing");
    // A flipped bit in its name.
    let other = TableDefinition::<'_, u64, u64>::new("obkects");
    let renamed = opened_after(|txn| {
        delete(txn, "objects");
        txn.open_table(other).unwrap();
    });
    assert_eq!(renamed, "there is a table 'obkects', which is none of its tables");
}

#[test]
fn a_new_store_has_all_tables_and_an_older_one_gets_what_came_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data/data.redb");
    drop(open(&dir));
    assert_eq!(table_names(&path), TABLES);
    {
        let file = redb::Database::open(&path).unwrap();
        let txn = file.begin_write().unwrap();
        let later: Vec<_> = txn.list_tables().unwrap().filter(|table| !FIRST_TABLES.contains(&table.name())).collect();
        assert_eq!(later.len(), TABLES.len() - FIRST_TABLES.len());
        for table in later {
            assert!(txn.delete_table(table).unwrap());
        }
        txn.commit().unwrap();
    }
    drop(open(&dir));
    assert_eq!(table_names(&path), TABLES);
}
