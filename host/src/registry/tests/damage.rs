//! Damaged files, and storage that fails after N writes.

use std::cell::Cell;
use std::io;

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;

#[test]
fn files_that_are_no_registry_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for bytes in [&b""[..], b"x", &[0; 100_000], &[0xff; 100_000], &b"redb\x1a\n\xa9\r\n"[..]] {
        fs::write(file(&dir), bytes).unwrap();
        let error = Registry::open(&file(&dir), FORMAT).unwrap_err();
        assert!(matches!(error, RegistryError::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains("restore registry.redb from a backup"), "{error}");
        assert_eq!(fs::read(file(&dir)).unwrap(), bytes, "a refused file is untouched");
    }
    fs::remove_file(file(&dir)).unwrap();
    fs::create_dir(file(&dir)).unwrap();
    assert!(Registry::open(&file(&dir), FORMAT).is_err());
    assert!(Registry::open(&dir.path().join("none/registry.redb"), FORMAT).is_err());
}

#[test]
fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _held = open(&dir);
    assert!(matches!(Registry::open(&file(&dir), FORMAT), Err(RegistryError::Storage { .. })));
}

/// Everything that can be read, so that damage anywhere is met.
type Contents = (Vec<FunctionRecord>, Vec<RevisionRecord>, Vec<(TenantId, Reference)>, Vec<(TenantId, Route, FunctionName)>, u64);

fn contents(registry: &Registry) -> Result<Contents, RegistryError> {
    let functions = all(registry)?;
    let mut revisions = Vec::new();
    for function in &functions {
        assert_eq!(registry.function(&function.tenant, &function.name)?.as_ref(), Some(function));
        revisions.extend(registry.revisions(&function.tenant, &function.name)?);
    }
    Ok((functions, revisions, registry.references()?, registry.routes()?, registry.count()?))
}

#[test]
fn damage_anywhere_is_an_error_or_harmless_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    for n in 0..40 {
        publish(&registry, &format!("f{}", n % 8), &format!("w{n}"), &[&format!("/{}", n % 8)]).unwrap();
    }
    let good = contents(&registry).unwrap();
    drop(registry);
    let bytes = fs::read(file(&dir)).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let damages = 300;
    let mut errors = 0;
    let mut writes = 0;
    for round in 0..damages {
        let mut bad = bytes.clone();
        let at = used * round / damages;
        match round % 3 {
            0 => bad[at] ^= 1 << (round % 8),
            1 => bad[at..(at + 64).min(used)].fill(0xff),
            _ => bad.truncate(at),
        }
        fs::write(file(&dir), &bad).unwrap();
        let opened = Registry::open(&file(&dir), FORMAT);
        if opened.is_err() {
            assert!(fs::read(file(&dir)).unwrap() == bad, "a refused file is untouched");
        }
        let found = opened.and_then(|registry| {
            let found = contents(&registry);
            // What was accepted can also be written.
            writes += u32::from(publish(&registry, "f3", "new", &["/3"]).is_ok());
            found
        });
        match found {
            Ok(found) => assert_eq!(found, good, "damage {round} at {at} changed what is read"),
            Err(_) => errors += 1,
        }
    }
    assert!(errors > damages / 3, "only {errors} of {damages} damages were noticed");
    assert_eq!(writes as usize, damages - errors);
}

// Failing storage.

thread_local! {
    /// Writes that succeed before the disk of this thread is full.
    static FUEL: Cell<i64> = const { Cell::new(i64::MAX) };
}

/// A file on a disk that fills up.
#[derive(Debug)]
struct FullDisk(FileBackend);

fn burn() -> io::Result<()> {
    let left = FUEL.get();
    FUEL.set(left.saturating_sub(1).max(0));
    if left > 0 { Ok(()) } else { Err(rustix::io::Errno::NOSPC.into()) }
}

impl StorageBackend for FullDisk {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        burn().and_then(|()| self.0.set_len(len))
    }
    fn sync_data(&self) -> io::Result<()> {
        burn().and_then(|()| self.0.sync_data())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        burn().and_then(|()| self.0.write(offset, data))
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

fn open_full_disk(path: &Path) -> Result<Database, DatabaseError> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    Database::builder().create_with_backend(FullDisk(FileBackend::new(file)?))
}

#[test]
fn a_full_disk_is_told_and_leaves_old_or_new_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir));
    let registry = Registry::open_with(&file(&dir), FORMAT, open_full_disk).unwrap();
    let mut live = publish(&registry, "f", "w0", &["/0"]).unwrap();
    let mut failures = 0;
    for fuel in 0.. {
        FUEL.set(fuel);
        let result = publish(&registry, "f", &format!("w{fuel}"), &[&format!("/{fuel}")]);
        FUEL.set(i64::MAX);
        let as_killed = tempfile::tempdir().unwrap();
        fs::copy(file(&dir), file(&as_killed)).unwrap();
        let as_killed = open(&as_killed).function(&tenant(), &name("f")).unwrap().unwrap();
        let now = registry.function(&tenant(), &name("f")).unwrap().unwrap();
        assert_eq!(as_killed, now, "after {fuel} writes");
        match result {
            Ok(record) => {
                assert_eq!(now, record);
                break;
            }
            Err(error) => {
                assert_eq!(error.fault().code, Code::StorageFull, "{error:?}");
                failures += 1;
                let made =
                    now.live.number == live.live.number.next() && now.live.wasm == Digest::of(format!("w{fuel}").as_bytes());
                assert!(now == live || made, "after {fuel} writes");
            }
        }
        live = now;
    }
    assert!(failures > 3, "{failures}");
    assert_eq!(contents(&registry).unwrap().0.len(), 1);
}

#[test]
fn a_disk_that_stays_full_gives_errors_until_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir));
    let registry = Registry::open_with(&file(&dir), FORMAT, open_full_disk).unwrap();
    publish(&registry, "f", "w", &[]).unwrap();
    FUEL.set(0);
    for _ in 0..3 {
        let code = publish(&registry, "f", "w2", &[]).unwrap_err().fault().code;
        assert_eq!(code, Code::StorageFull);
    }
    FUEL.set(i64::MAX);
    assert_eq!(publish(&registry, "f", "w2", &[]).unwrap().live.wasm, Digest::of(b"w2"));
}

#[test]
fn a_panic_is_contained_and_the_registry_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(&dir);
    publish(&registry, "f", "w", &[]).unwrap();
    let error = registry.write::<()>(|_| panic!("page {} is torn", 3)).unwrap_err();
    assert!(error.to_string().contains("page 3 is torn"), "{error}");
    assert_eq!(publish(&registry, "f", "w2", &[]).unwrap().live.number, RevisionNumber(2));
}
