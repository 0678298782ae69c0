//! Tests with disks that fail, lose power and rot. In one file, because all of them stand on the same few disks.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, StorageBackend};
use rustix::io::Errno;

use super::clock::testing::Hands;
use super::error::storage;
use super::events::testing::{trigger, waiting};
use super::file::{Opened, Shared, Use, log_path, transact};
use super::kv::{Op, When};
use super::objects::PutOptions;
use super::*;
use crate::fault::Code;
use crate::manifest::On;
use crate::storage::log::{Logged, Room};
use crate::storage::power::Power;

const LIMITS: ObjectLimits = ObjectLimits { object_bytes_max: 1 << 20, bytes_max: 1 << 20 };
const CONFIG: DataConfig = DataConfig {
    page_cache_bytes: 1 << 20,
    kv_cache_bytes: 0,
    volatile_bytes_max: 0,
    events_max: 1000,
    durable_objects: LIMITS,
    volatile_objects: LIMITS,
};

fn file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join(FILE)
}

fn log(dir: &tempfile::TempDir) -> PathBuf {
    log_path(&file(dir))
}

fn open(dir: &tempfile::TempDir) -> Result<Data, DataError> {
    Data::open(dir.path(), CONFIG, Clock::system())
}

fn over(dir: &tempfile::TempDir, open: super::file::Open) -> Data {
    let files = Files::open(dir.path(), LIMITS).unwrap();
    let store = Store::open_with(&file(dir), open, Clock::system(), prepare, sweeps(&files)).unwrap();
    Data::over(store, files, CONFIG).unwrap()
}

fn tenant() -> TenantId {
    "t".parse().unwrap()
}

fn bucket(data: &Data) -> Bucket {
    let spec = BucketSpec { durability: Durability::Durable, bytes_max: 1 << 20, keys_max: 1000 };
    data.put_bucket(&"t".parse().unwrap(), &"b".parse().unwrap(), spec).wait().unwrap().0
}

fn set(key: &str, value: &str) -> Op {
    Op::Set {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ttl: None,
        when: When::Always,
    }
}

/// Sets two keys to the same number, so that half of it would show.
fn put(data: &Data, number: i64) -> Result<(), DataError> {
    let value = number.to_string();
    data.kv(&bucket_again(data)?)?
        .write(vec![set("a", &value), set(&format!("n{number}"), ""), set("b", &value)])
        .wait()
        .map(drop)
}

fn bucket_again(data: &Data) -> Result<Bucket, DataError> {
    Ok(data.bucket(&"t".parse().unwrap(), &"b".parse().unwrap())?.unwrap())
}

/// What is there, which must be whole.
fn number(data: &Data) -> i64 {
    let bucket = bucket_again(data).unwrap();
    let kv = data.kv(&bucket).unwrap();
    let found: Vec<_> = kv.get_many(&[b"a", b"b"]).unwrap().into_iter().map(Result::unwrap).collect();
    let [a, b] = &found[..] else { panic!() };
    assert_eq!(a.as_ref().map(|entry| &entry.value), b.as_ref().map(|entry| &entry.value));
    assert_eq!(data.recount(&bucket).unwrap(), bucket_again(data).unwrap().entries, "the account is what is there");
    a.as_ref().map_or(-1, |entry| std::str::from_utf8(&entry.value).unwrap().parse().unwrap())
}

/// How a disk is: what it still does, and then says.
#[derive(Debug)]
struct Health {
    /// Operations that succeed before it fails.
    fuel: AtomicI64,
    errno: Errno,
}

impl Health {
    fn new(errno: Errno) -> Arc<Self> {
        Arc::new(Self { fuel: AtomicI64::new(i64::MAX), errno })
    }

    fn burn(&self) -> io::Result<()> {
        let left = self.fuel.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some((left - 1).max(0)));
        if left.unwrap_or(0) > 0 { Ok(()) } else { Err(self.errno.into()) }
    }
}

#[derive(Debug)]
struct Failing(FileBackend, Arc<Health>);

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.1.burn().and_then(|()| self.0.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.burn().and_then(|()| self.0.sync_data())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.1.burn() {
            Ok(()) => self.0.write(offset, data),
            // Half of it got there.
            Err(error) => self.0.write(offset, &data[..data.len() / 2]).and(Err(error)),
        }
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

/// Small enough that both halves are used, and that some commits find no room in one.
const HALF: u64 = 256 << 10;

fn over_log<D: StorageBackend>(file: D, log: D) -> Result<Opened, DatabaseError> {
    Opened::over(Logged::open(file, log, HALF)?, &mut Database::builder())
}

fn failing(health: &Arc<Health>) -> super::file::Open {
    let health = Arc::clone(health);
    Box::new(move |path| {
        let disk = |path: &Path| {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            Ok::<_, DatabaseError>(Failing(FileBackend::new(file)?, Arc::clone(&health)))
        };
        over_log(disk(path)?, disk(&log_path(path))?)
    })
}

/// What a process finds that starts after this one was killed now.
fn as_killed(dir: &tempfile::TempDir) -> i64 {
    let copy = tempfile::tempdir().unwrap();
    fs::copy(file(dir), file(&copy)).unwrap();
    fs::copy(log(dir), log(&copy)).unwrap();
    number(&open(&copy).unwrap())
}

#[test]
fn a_full_disk_is_told_and_reads_go_on_and_it_heals() {
    let dir = tempfile::tempdir().unwrap();
    bucket(&open(&dir).unwrap());
    let health = Health::new(Errno::NOSPC);
    let data = over(&dir, failing(&health));
    put(&data, 0).unwrap();
    let (mut live, mut failures) = (0, 0);
    for fuel in 0.. {
        health.fuel.store(fuel, Ordering::SeqCst);
        let result = put(&data, fuel + 1);
        let full = number(&data);
        if result.is_err() {
            assert_eq!(put(&data, -5).unwrap_err().fault().code, Code::StorageFull, "and stays full");
        }
        health.fuel.store(i64::MAX, Ordering::SeqCst);
        let now = number(&data);
        assert!(full == live || full == fuel + 1, "after {fuel} operations");
        assert_eq!(as_killed(&dir), now, "after {fuel} operations");
        match result {
            Ok(()) => {
                assert_eq!(now, fuel + 1);
                break;
            }
            Err(error) => {
                assert_eq!(error.fault().code, Code::StorageFull, "{error:?}");
                failures += 1;
                assert!([live, fuel + 1, -5].contains(&now), "after {fuel} operations: {now}");
            }
        }
        live = now;
    }
    assert!(failures > 3, "{failures}");
    assert!(data.read_only().is_none());
    put(&data, 1000).unwrap();
    drop(data);
    assert_eq!(number(&open(&dir).unwrap()), 1000);
}

#[test]
fn a_file_is_compacted_after_a_write_that_found_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let health = Health::new(Errno::NOSPC);
    let shared = Shared::open(&dir.path().join("compacted"), failing(&health), |_| Ok(())).unwrap();
    const TABLE: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("t");
    let write = |key: u64| {
        let op = |txn: &redb::WriteTransaction| {
            let mut table = txn.open_table(TABLE).map_err(storage("open"))?;
            table.insert(key, &[7; 10_000][..]).map_err(storage("insert"))?;
            Ok(((), Commit::Yes))
        };
        shared.with_db(Use::Write, |opened| transact(opened, Room::Free, op))
    };
    write(1).unwrap();
    let mut failures = 0;
    for fuel in 0.. {
        health.fuel.store(fuel, Ordering::SeqCst);
        let result = write(2);
        health.fuel.store(i64::MAX, Ordering::SeqCst);
        assert!(shared.compact().unwrap(), "after {fuel} operations");
        match result {
            Ok(()) => break,
            Err(error) => assert_eq!(error.fault().code, Code::StorageFull, "{error:?}"),
        }
        failures += 1;
    }
    assert!(failures > 3, "{failures}");
}

#[test]
fn an_entry_that_finds_no_room_has_the_file_compacted() {
    let dir = tempfile::tempdir().unwrap();
    bucket(&open(&dir).unwrap());
    let health = Health::new(Errno::NOSPC);
    let data = over(&dir, failing(&health));
    let write = |ops| data.kv(&bucket_again(&data).unwrap()).unwrap().write(ops).wait().map(drop);
    let keys: Vec<_> = (0..40).map(|key| key.to_string()).collect();
    keys.iter().for_each(|key| write(vec![set(key, &"v".repeat(20_000))]).unwrap());
    let delete = |key: &String| Op::Delete { key: Bytes::copy_from_slice(key.as_bytes()), when: When::Always };
    keys.iter().for_each(|key| write(vec![delete(key)]).unwrap());
    let len = || fs::metadata(file(&dir)).unwrap().len();
    let (before, began) = (len(), std::time::Instant::now());
    // The disk may still be full when it is tried, and again, until it is not.
    while len() > before / 2 {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "{} of {before} bytes", len());
        health.fuel.store(0, Ordering::SeqCst);
        assert_eq!(write(vec![set("new", "v")]).unwrap_err().fault().code, Code::StorageFull);
        health.fuel.store(i64::MAX, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    write(vec![set("new", "v")]).unwrap();
}

/// A file on a disk that has no room for it to grow while the file of an object takes it.
#[derive(Debug)]
struct Tight(FileBackend, PathBuf);

impl Tight {
    fn may_be(&self, len: u64) -> io::Result<()> {
        // The log's own header finds room.
        if len <= self.0.len()?.max(4096) || !self.1.exists() { Ok(()) } else { Err(Errno::NOSPC.into()) }
    }
}

impl StorageBackend for Tight {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.may_be(len).and_then(|()| self.0.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.may_be(offset + data.len() as u64).and_then(|()| self.0.write(offset, data))
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

#[test]
fn the_file_of_an_object_goes_though_the_disk_has_no_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir).unwrap();
    let bucket = bucket(&data);
    let mut upload = data.objects(Durability::Durable).put(&bucket, b"o", PutOptions::default()).unwrap();
    upload.write(b"bytes").unwrap();
    let head = upload.finish().wait().unwrap();
    drop(data);
    fs::remove_file(log(&dir)).unwrap();
    let object = dir.path().join(format!("objects/{:016x}/{}", bucket.id.0, head.etag.hex()));
    assert!(object.exists());
    let of_object = object.clone();
    let tight = move |path: &Path| {
        let disk = |path: &Path| {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            Ok::<_, DatabaseError>(Tight(FileBackend::new(file)?, of_object.clone()))
        };
        over_log(disk(path)?, disk(&log_path(path))?)
    };
    let data = over(&dir, Box::new(tight));
    assert_eq!(put(&data, 1).unwrap_err().fault().code, Code::StorageFull, "it adds");
    assert!(data.objects(Durability::Durable).delete(&bucket, b"o", objects::When::Always).wait().unwrap().is_some());
    let began = std::time::Instant::now();
    while object.exists() {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "the file stays");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    put(&data, 1).unwrap();
}

#[test]
fn after_an_error_of_the_disk_data_can_only_be_read_until_the_restart() {
    let mut failures = 0;
    for fuel in 0.. {
        let dir = tempfile::tempdir().unwrap();
        bucket(&open(&dir).unwrap());
        let health = Health::new(Errno::IO);
        let data = over(&dir, failing(&health));
        put(&data, 0).unwrap();
        health.fuel.store(fuel, Ordering::SeqCst);
        let result = put(&data, 1);
        let broken = number(&data);
        health.fuel.store(i64::MAX, Ordering::SeqCst);
        if result.is_ok() {
            assert_eq!((broken, data.read_only()), (1, None));
            break;
        }
        failures += 1;
        assert!(data.read_only().unwrap().contains("Input/output error"), "{:?}", data.read_only());
        let error = put(&data, 2).unwrap_err();
        assert!(matches!(error, DataError::ReadOnly { .. }) && error.fault().code == Code::StorageFull, "{error}");
        assert!((0..=1).contains(&number(&data)));
        assert_eq!(number(&data), broken);
        drop(data);
        let data = open(&dir).unwrap();
        assert!((0..=1).contains(&number(&data)));
        put(&data, 3).unwrap();
        assert_eq!(number(&data), 3);
    }
    assert!(failures > 3, "{failures}");
}

#[test]
fn what_was_acknowledged_survives_power_loss_with_torn_and_reordered_sectors() {
    let mut failures = 0;
    for seed in 0..80_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut dice = |sides: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).unwrap() % sides
        };
        let dir = tempfile::tempdir().unwrap();
        bucket(&open(&dir).unwrap());
        // Events of the keys that tell of each write.
        let wanting = [(tenant(), "f".parse().unwrap(), vec![trigger(On::KeyChange, "b", "n")])];
        let disks = [fs::read(file(&dir)).unwrap(), fs::read(log(&dir)).unwrap()];
        let power = Power::new(disks, 60 + dice(400) as u64);
        let outlets = power.outlets();
        let data = over(&dir, Box::new(move |_| over_log(outlets[0].clone(), outlets[1].clone())));
        data.outbox().begin(&wanting).unwrap();
        let mut acknowledged = -1;
        let tried = (0..1000).find(|n| match put(&data, *n) {
            Ok(()) => {
                acknowledged = *n;
                false
            }
            Err(_) => true,
        });
        let tried = tried.unwrap();
        failures += usize::from(acknowledged >= 0);
        let [found, found_log] = power.after(&mut dice);
        drop(data);
        fs::write(file(&dir), found).unwrap();
        fs::write(log(&dir), found_log).unwrap();
        let data = open(&dir).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let now = number(&data);
        assert!(now == acknowledged || now == tried, "seed {seed}: {now} of {acknowledged} and {tried}");
        data.outbox().begin(&wanting).unwrap();
        let bucket = bucket_again(&data).unwrap();
        let expected: Vec<_> = (0..=now).map(|n| format!("n{n}")).collect();
        assert_eq!(waiting(&data, "f", &bucket), expected, "seed {seed}: an event is there if and only if its change is");
        assert_eq!(data.outbox().waiting().unwrap(), expected.len() as u64, "seed {seed}");
        put(&data, 5000).unwrap();
        assert_eq!(number(&data), 5000);
    }
    assert!(failures > 60, "{failures}");
}

/// One damaged entry is told in its place, and no other is lost with it.
#[track_caller]
fn check_others_are_read(kv: &dyn KeyValue, damaged: &str, values: &[(String, String)]) {
    let is_damaged = |error: Option<&DataError>, key: &[u8]| {
        assert!(error.is_none_or(|error| matches!(error, DataError::Corrupt { key: of, .. } if of == key)));
        error.is_some()
    };
    let keys: Vec<_> = values.iter().map(|(key, _)| key.as_bytes()).collect();
    let found = kv.get_many(&keys).unwrap();
    assert!(
        found
            .iter()
            .zip(&keys)
            .filter(|(found, key)| is_damaged(found.as_ref().err(), key))
            .any(|(_, key)| *key == damaged.as_bytes())
    );
    assert!(found.iter().flatten().flatten().count() > 50);
    for limit in [1, 7, 1000] {
        let (mut listed, mut after) = (Vec::new(), None::<Bytes>);
        loop {
            let page = kv.scan(b"", after.as_deref(), limit).unwrap();
            assert!(page.entries.len() <= limit);
            listed.extend(page.entries);
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let of_damaged: Vec<_> =
            listed.iter().filter(|(key, found)| is_damaged(found.as_ref().err(), key)).map(|(key, _)| key).collect();
        assert!(of_damaged.iter().any(|key| *key == damaged.as_bytes()) && listed.len() > 50, "by {limit}");
    }
}

#[test]
fn a_flipped_bit_is_an_error_and_never_another_value() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir).unwrap();
    let values: Vec<_> = (0..100).map(|n| (format!("key-{n}"), format!("value {n} ").repeat(20))).collect();
    let ops = values.iter().map(|(key, value)| set(key, value)).collect();
    data.kv(&bucket(&data)).unwrap().write(ops).wait().unwrap();
    drop(data);
    Data::verify(dir.path()).unwrap();
    let bytes = fs::read(file(&dir)).unwrap();
    // Where values lie, and anywhere.
    let text = b"value 5";
    let values_at: Vec<usize> =
        bytes.windows(text.len()).enumerate().filter(|(_, found)| found == text).map(|(at, _)| at).collect();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let mut corrupt = 0;
    for round in 0..160 {
        let at = if round % 2 == 0 { values_at[round * 7 % values_at.len()] } else { used * round / 160 };
        let file_again = OpenOptions::new().write(true).open(file(&dir)).unwrap();
        file_again.write_all_at(&bytes, 0).unwrap();
        file_again.set_len(bytes.len() as u64).unwrap();
        file_again.write_all_at(&[bytes[at] ^ (1 << (round % 8))], at as u64).unwrap();
        let damaged = Data::verify(dir.path()).is_err();
        let Ok(data) = open(&dir) else { continue };
        let Ok(Some(bucket)) = data.bucket(&"t".parse().unwrap(), &"b".parse().unwrap()) else { continue };
        let kv = data.kv(&bucket);
        for (key, value) in &values {
            match kv.as_ref().map_err(Clone::clone).and_then(|kv| kv.get(key.as_bytes())) {
                Ok(Some(entry)) => assert!(entry.value == value.as_bytes(), "round {round} at {at}: a wrong value"),
                // The key itself is not what it was: only the check of the whole file can tell.
                Ok(None) => assert!(damaged, "round {round} at {at}: {key} is missing in a whole file"),
                Err(DataError::Corrupt { key: found, bucket: of }) => {
                    assert!(damaged && found == key.as_bytes() && of == bucket.id);
                    corrupt += 1;
                    if let Ok(kv) = &kv
                        && corrupt % 4 == 1
                    {
                        check_others_are_read(&**kv, key, &values);
                    }
                    if let Ok(kv) = &kv
                        && corrupt % 8 == 1
                    {
                        // It can be mended, and the account stays exact.
                        kv.write(vec![set(key, "new")]).wait().unwrap();
                        assert_eq!(kv.get(key.as_bytes()).unwrap().unwrap().value, "new");
                        assert_eq!(data.recount(&bucket).unwrap(), data.usage(&bucket).unwrap());
                    }
                }
                Err(error) => assert!(damaged, "{error}"),
            }
        }
    }
    assert!(corrupt >= 60, "{corrupt}");
}

#[test]
fn what_expired_stays_gone_after_a_restart_with_a_clock_that_went_back() {
    let dir = tempfile::tempdir().unwrap();
    let hands = Hands::at(1_000_000);
    let data = Data::open(dir.path(), CONFIG, hands.clock()).unwrap();
    let kv = data.kv(&bucket(&data)).unwrap();
    let key = Bytes::from_static(b"k");
    let ttl = Some(std::time::Duration::from_millis(1000));
    kv.write(vec![Op::Set { key, value: Bytes::new(), ttl, when: When::Always }]).wait().unwrap();
    hands.pass(1000);
    assert!(!kv.exists(b"k").unwrap());
    kv.write(vec![set("other", "")]).wait().unwrap();
    assert_eq!(data.recount(&bucket_again(&data).unwrap()).unwrap(), Usage { bytes: 5, keys: 1 }, "it was swept");
    drop((kv, data));
    let data = Data::open(dir.path(), CONFIG, Hands::at(500_000).clock()).unwrap();
    let kv = data.kv(&bucket_again(&data).unwrap()).unwrap();
    assert!(!kv.exists(b"k").unwrap());
}

#[test]
fn whatever_the_clock_does_what_expired_is_gone_and_the_rest_is_there() {
    let mut restarts = 0;
    for seed in 0..10_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut dice = |sides: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) % sides
        };
        let dir = tempfile::tempdir().unwrap();
        let mut hands = Hands::at(1_000_000);
        let mut clock = hands.clock();
        let mut data = Data::open(dir.path(), CONFIG, clock.clone()).unwrap();
        bucket(&data);
        // By key of an entry and of an object: when it ends.
        let mut ends = std::collections::BTreeMap::<(bool, String), u64>::new();
        for _ in 0..60 {
            let now_bucket = bucket_again(&data).unwrap();
            let (is_object, key, ttl_ms) = (dice(2) == 0, format!("k{}", dice(6)), 1 + dice(300_000));
            match dice(8) {
                0 | 1 => hands.jump_to(dice(4_000_000)),
                2 => hands.pass(dice(400_000)),
                3 => {
                    // A commit notes the time; what ended after the last one, and at once before the end, could be seen again.
                    put_for(&data, &now_bucket, is_object, &key, ttl_ms);
                    let before_ms = clock.now_ms();
                    ends.insert((is_object, key), before_ms + ttl_ms);
                    drop(data);
                    // Another boot: both clocks say anything.
                    hands = Hands::at(dice(4_000_000));
                    clock = hands.clock();
                    data = Data::open(dir.path(), CONFIG, clock.clone()).unwrap();
                    assert!(clock.now_ms() >= before_ms);
                    restarts += 1;
                }
                _ => {
                    put_for(&data, &now_bucket, is_object, &key, ttl_ms);
                    ends.insert((is_object, key), clock.now_ms() + ttl_ms);
                }
            }
            let bucket = bucket_again(&data).unwrap();
            let (kv, objects) = (data.kv(&bucket).unwrap(), data.objects(Durability::Durable));
            for ((is_object, key), end_ms) in &ends {
                let is_there = match is_object {
                    true => objects.head(&bucket, key.as_bytes()).unwrap().is_some(),
                    false => kv.exists(key.as_bytes()).unwrap(),
                };
                assert_eq!(is_there, *end_ms > clock.now_ms(), "seed {seed}: {key} ends at {end_ms}, it is {}", clock.now_ms());
            }
            // What was gone stays so, whatever the clock does until the next start.
            let now_ms = clock.now_ms();
            ends.retain(|_, end_ms| *end_ms > now_ms);
            let live = |object| ends.keys().filter(|(is_object, _)| *is_object == object).count();
            assert_eq!(kv.scan(b"", None, 100).unwrap().entries.len(), live(false), "seed {seed}");
            assert_eq!(objects.list(&bucket, b"", None, 100).unwrap().objects.len(), live(true), "seed {seed}");
        }
        let bucket = bucket_again(&data).unwrap();
        assert_eq!(data.recount(&bucket).unwrap(), bucket.entries);
        assert_eq!(data.durable_objects().recount(&bucket).unwrap().objects, bucket.objects);
    }
    assert!(restarts > 30, "{restarts}");
}

fn put_for(data: &Data, bucket: &Bucket, is_object: bool, key: &str, ttl_ms: u64) {
    if is_object {
        let options = PutOptions { ttl_ms: Some(ttl_ms), ..PutOptions::default() };
        let objects = data.objects(Durability::Durable);
        objects.put(bucket, key.as_bytes(), options).unwrap().finish().wait().unwrap();
        return;
    }
    let (key, ttl) = (Bytes::copy_from_slice(key.as_bytes()), Some(std::time::Duration::from_millis(ttl_ms)));
    let op = Op::Set { key, value: Bytes::from_static(b"v"), ttl, when: When::Always };
    data.kv(bucket).unwrap().write(vec![op]).wait().unwrap();
}
