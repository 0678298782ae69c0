//! A small store with redb's habits over a log: fresh pages for each commit, then the first page, which says where they are.

use std::sync::atomic::AtomicI64;

use redb::backends::InMemoryBackend;
use rustix::io::Errno;

use super::record::{HASH, MAGIC};
use super::room::RESERVE;
use super::*;
use crate::storage::power::Power;

const SMALL: u64 = 64 << 10;
const PAGE: u64 = 4096;

/// Commits number `number`: `pages` of it, at places that the one before does not use, then the first page.
fn commit(disk: &impl StorageBackend, commits: &dyn Commits, number: u64, pages: u64) -> io::Result<()> {
    let begin = 1 + (number % 2) * 64;
    commits.begin();
    for page in begin..begin + pages {
        disk.write(page * PAGE, &number.to_le_bytes().repeat(512))?;
    }
    let head = [number.to_le_bytes(), pages.to_le_bytes()].concat();
    disk.write(0, &[head.as_slice(), &[0; 8]].concat())?;
    disk.sync_data()?;
    disk.write(0, &[head.as_slice(), &[1; 8]].concat())?;
    disk.sync_data()?;
    commits.end(true)
}

/// Which commit is there; all of it must be.
fn look(disk: &impl StorageBackend) -> u64 {
    let mut head = [0; 24];
    disk.read(0, &mut head).unwrap();
    let [number, pages] = [0, 8].map(|at| u64::from_le_bytes(head[at..at + 8].try_into().unwrap()));
    for page in 1 + (number % 2) * 64..1 + (number % 2) * 64 + pages {
        let mut bytes = vec![0; 4096];
        disk.read(page * PAGE, &mut bytes).unwrap();
        assert!(bytes == number.to_le_bytes().repeat(512), "page {page} is not of commit {number}");
    }
    number
}

fn memory(bytes: &[u8]) -> Full {
    let disk = Full(InMemoryBackend::new(), room(i64::MAX));
    disk.write(0, bytes).unwrap();
    disk
}

fn bytes(disk: &impl StorageBackend) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.len().unwrap()).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// A file of zeros and a log with commits 1 to `last`, as they are when the process is killed.
fn killed(last: u64) -> [Vec<u8>; 2] {
    let power = Power::new([vec![0; 1 << 20], vec![]], u64::MAX);
    let [file, log] = power.outlets();
    let logged = Logged::open(file, log, SMALL).unwrap();
    for number in 1..=last {
        commit(&logged, &*logged.commits(), number, 3).unwrap();
    }
    power.outlets().map(|disk| bytes(&disk))
}

#[test]
fn what_was_flushed_survives_any_loss_of_power() {
    let (mut acknowledged_ones, mut replayed) = (0, 0);
    for seed in 0..400_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut dice = |sides: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).unwrap() % sides
        };
        let power = Power::new([vec![0; 1 << 20], vec![]], 4 + dice(400) as u64);
        let [file, log] = power.outlets();
        let mut acknowledged = 0;
        let mut tried = 0;
        if let Ok(logged) = Logged::open(file, log, SMALL) {
            while tried == acknowledged {
                // Up to more than half of the log, which no record holds.
                let most = if dice(8) == 0 { 20 } else { 4 };
                let pages = 1 + dice(most) as u64;
                tried += 1;
                if commit(&logged, &*logged.commits(), tried, pages).is_ok() {
                    acknowledged = tried;
                    assert_eq!(look(&logged), acknowledged);
                }
            }
        }
        let [file, log] = power.after(&mut dice).map(|bytes| memory(&bytes));
        replayed += replay(&log, &file).unwrap();
        let found = look(&file);
        assert!(found == acknowledged || found == tried, "seed {seed}: {found} of {acknowledged} and {tried}");
        acknowledged_ones += acknowledged;
        // And on with it, twice: a start may be killed too.
        let logged = Logged::open(file, log, SMALL).unwrap();
        commit(&logged, &*logged.commits(), 1000, 2).unwrap();
        assert_eq!(look(&logged), 1000);
    }
    assert!(acknowledged_ones > 10_000 && replayed > 1_000, "{acknowledged_ones}, {replayed}");
}

#[test]
fn a_record_that_is_not_whole_ends_the_log() {
    let [file, log] = killed(2);
    assert_eq!(replay(&memory(&log), &memory(&file)).unwrap(), 2);
    // Behind the header and the first record, which has a head, three pages, and the first one.
    let second = BLOCK + 5 * BLOCK;
    for at in [second, second + HASH, second + HASH + 16, second + BLOCK, second + 2 * BLOCK] {
        let (log, file) = (memory(&log), memory(&vec![0; file.len()]));
        let mut byte = [0];
        log.read(at as u64, &mut byte).unwrap();
        log.write(at as u64, &[byte[0] ^ 1]).unwrap();
        assert_eq!(replay(&log, &file).unwrap(), 1, "a flipped bit at {at}");
        assert_eq!(look(&file), 1);
    }
}

#[test]
fn a_record_that_rotted_before_others_is_an_error_and_not_the_end() {
    // Three in the first half of the log, each of five blocks, and one or two in the other one.
    let other = BLOCK + usize::try_from(SMALL).unwrap();
    let places = [BLOCK, BLOCK + 5 * BLOCK, BLOCK + 10 * BLOCK, other, other + 5 * BLOCK];
    for last in 1..=5_usize {
        let [file, log] = killed(last as u64);
        assert_eq!(replay(&memory(&log), &memory(&file)).unwrap(), last as u64);
        // With the fifth the file may have what the first half holds for good already.
        let first = if last == 5 { 3 } else { 0 };
        for (number, place) in places[..last].iter().enumerate().skip(first) {
            // In its hash, its number, the hash of the head, the first page of its body and the last.
            for at in [0, HASH, HASH + 40, BLOCK + 100, 4 * BLOCK + 100] {
                let mut log = log.clone();
                log[place + at] ^= 1;
                // Nothing reached the file, as after a loss of power.
                let bare = memory(&vec![0; file.len()]);
                let replayed = replay(&memory(&log), &bare);
                if number + 1 == last {
                    assert_eq!(replayed.unwrap(), number as u64, "a bit in the last record, which may have been cut short");
                    assert_eq!(look(&bare), number as u64);
                    continue;
                }
                let error = replayed.expect_err("records behind it were acknowledged");
                assert!(error.kind() == io::ErrorKind::InvalidData, "{error}");
                assert!(error.to_string().contains("the log of the data has"), "{error}");
                assert!(bytes(&bare).iter().all(|byte| *byte == 0), "nothing of it was written");
            }
        }
    }
}

#[test]
fn a_half_that_the_file_has_for_good_need_not_be_whole() {
    // Twice around: what is left of the first lap has earlier numbers, and a first record that is cut short is the end.
    for last in 6..=20 {
        let power = Power::new([vec![0; 1 << 20], vec![]], u64::MAX);
        let [file, log] = power.outlets();
        let logged = Logged::open(file, log, SMALL).unwrap();
        let mut at = 0;
        for number in 1..=last {
            commit(&logged, &*logged.commits(), number, 3).unwrap();
            at = usize::try_from(logged.0.lock().at).unwrap() - 5 * BLOCK;
        }
        let [file, mut log] = power.outlets().map(|disk| bytes(&disk));
        assert!(replay(&memory(&log), &memory(&file)).unwrap() >= last);
        log[at] ^= 1;
        // The file as it was before the last commit; that one's pages may be there.
        let [before, _] = killed(last - 1);
        let disk = memory(&before);
        replay(&memory(&log), &disk).unwrap_or_else(|error| panic!("{last}: {error}"));
        assert_eq!(look(&disk), last - 1, "the last one is cut short");
    }
}

#[test]
fn what_an_earlier_log_left_is_no_record() {
    let [file, log] = killed(2);
    let (file, log) = (memory(&file), memory(&log));
    // As a start leaves it: the same records, and another key.
    let renewed = memory(&bytes(&log));
    Header { key: [7; 32], half: SMALL }.write(&renewed).unwrap();
    assert_eq!(replay(&renewed, &file).unwrap(), 0);
}

#[test]
fn a_log_of_another_file_is_left_alone() {
    // Whatever of the records the file had already, the log is its own.
    let [_, log] = killed(3);
    for last in 0..=3 {
        let [file, _] = killed(last);
        assert_eq!(replay(&memory(&log), &memory(&file)).unwrap(), 3);
    }
    // Restored from a backup that is older than the log.
    let [old, _] = killed(9);
    let old = memory(&old);
    assert_eq!(replay(&memory(&log), &old).unwrap(), 0);
    assert_eq!(look(&old), 9);
    let logged = Logged::open(old, memory(&log), SMALL).unwrap();
    assert_eq!(look(&logged), 9);
}

/// What is logged meanwhile, by this thread.
fn said(work: impl FnOnce()) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt().with_writer(Arc::new(file.reopen().unwrap())).finish();
    tracing::subscriber::with_default(subscriber, work);
    std::fs::read_to_string(file.path()).unwrap()
}

#[test]
fn a_log_in_which_the_file_only_grew_warns_of_no_backup() {
    let [old, _] = killed(2);
    // Killed after the file grew and before anything referred to what is there, unless a commit follows that does.
    let grown = |last: Option<u64>| {
        let power = Power::new([old.clone(), vec![]], u64::MAX);
        let [file, log] = power.outlets();
        let logged = Logged::open(file, log, SMALL).unwrap();
        logged.set_len(2 << 20).unwrap();
        logged.sync_data().unwrap();
        logged.write(3 << 19, &[7; 4096]).unwrap();
        logged.sync_data().unwrap();
        if let Some(last) = last {
            commit(&logged, &*logged.commits(), last, 3).unwrap();
        }
        power.outlets().map(|disk| bytes(&disk))
    };
    let [file, log] = grown(None);
    assert_eq!(file.len(), 2 << 20);
    for file in [&old, &file] {
        let disk = memory(file);
        assert_eq!(said(|| assert_eq!(replay(&memory(&log), &disk).unwrap(), 0)), "");
        assert!(bytes(&disk) == *file, "nothing refers to what the log has more");
        assert_eq!(look(&Logged::open(disk, memory(&log), SMALL).unwrap()), 2);
    }
    // Its records are whole: with a commit behind them all count.
    let [_, log] = grown(Some(3));
    let disk = memory(&old);
    assert_eq!(said(|| assert_eq!(replay(&memory(&log), &disk).unwrap(), 3)), "");
    assert_eq!((look(&disk), disk.len().unwrap()), (3, 2 << 20));
    // What does warn: a log of another file.
    let ([_, other], disk) = (killed(9), memory(&old));
    let warned = said(|| assert_eq!(replay(&memory(&other), &disk).unwrap(), 0));
    assert!(warned.contains("WARN") && warned.contains("the log of the data is of another file"), "{warned}");
    assert_eq!(look(&disk), 2);
}

#[test]
fn a_gap_between_the_halves_is_an_error() {
    // Some records in each half: sixteen blocks have three of them. With a fifth the file may have those for good already.
    let [file, mut log] = killed(4);
    let whole = replay(&memory(&log), &memory(&file)).unwrap();
    assert_eq!(whole, 4);
    log[BLOCK + 8 * BLOCK] ^= 1;
    let error = replay(&memory(&log), &memory(&file)).unwrap_err();
    assert!(error.kind() == io::ErrorKind::InvalidData && error.to_string().contains("gap"), "{error}");
}

#[test]
fn a_header_that_is_torn_is_an_empty_log() {
    let [file, mut log] = killed(2);
    log[MAGIC.len() + 40] ^= 1;
    let logged = Logged::open(memory(&file), memory(&log), SMALL).unwrap();
    commit(&logged, &*logged.commits(), 9, 1).unwrap();
    assert_eq!(look(&logged), 9);
}

#[test]
fn closing_leaves_everything_in_the_file() {
    let power = Power::new([vec![0; 1 << 20], vec![]], u64::MAX);
    let [file, log] = power.outlets();
    let logged = Logged::open(file, log, SMALL).unwrap();
    commit(&logged, &*logged.commits(), 1, 3).unwrap();
    logged.close().unwrap();
    let [file, log] = power.after(|_| 0).map(|bytes| memory(&bytes));
    assert_eq!((look(&file), replay(&log, &file).unwrap()), (1, 0));
}

#[test]
fn a_commit_that_flushes_once_is_durable_too() {
    let power = Power::new([vec![0; 1 << 20], vec![]], u64::MAX);
    let [file, log] = power.outlets();
    let logged = Logged::open(file, log, SMALL).unwrap();
    let commits = logged.commits();
    commits.begin();
    logged.write(0, &[[7; 8], [0; 8], [0; 8]].concat()).unwrap();
    logged.sync_data().unwrap();
    commits.end(true).unwrap();
    let [file, log] = power.after(|_| 0).map(|bytes| memory(&bytes));
    assert_eq!(replay(&log, &file).unwrap(), 1);
    assert_eq!(look(&file), u64::from_le_bytes([7; 8]));
}

/// A file on a disk on which so many more bytes find room.
#[derive(Debug)]
struct Full(InMemoryBackend, Arc<AtomicI64>);

fn room(bytes: i64) -> Arc<AtomicI64> {
    Arc::new(AtomicI64::new(bytes))
}

impl StorageBackend for Full {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.1.fetch_add(i64::try_from(self.0.len()?.saturating_sub(len)).unwrap(), Ordering::SeqCst);
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let grows = (offset + data.len() as u64).saturating_sub(self.0.len()?);
        let grows = i64::try_from(grows).unwrap();
        if self.1.load(Ordering::SeqCst) < grows {
            return Err(Errno::NOSPC.into());
        }
        self.1.fetch_sub(grows, Ordering::SeqCst);
        if grows > 0 {
            self.0.set_len(offset + data.len() as u64)?;
        }
        self.0.write(offset, data)
    }
}

#[test]
fn a_log_that_finds_no_room_is_done_without() {
    for bytes in [4096, 5000, 40_000, 80_000, 100_000, 135_168] {
        let log = Full(InMemoryBackend::new(), room(bytes));
        let logged = Logged::open(memory(&[0; 1 << 20]), log, SMALL).unwrap();
        for number in 1..20 {
            commit(&logged, &*logged.commits(), number, 3).unwrap();
            assert_eq!(look(&logged), number, "with room for {bytes} bytes");
        }
        assert_eq!(logged.commits().is_short(), bytes < 135_168, "with room for {bytes} bytes");
        logged.close().unwrap();
        assert_eq!(look(&*logged.0.file), 19);
    }
}

#[test]
fn a_full_disk_has_what_the_log_took_and_a_reserve_for_what_removes() {
    const HALF: u64 = 1 << 20;
    const FLOOR: u64 = BLOCK as u64 + RESERVE;
    let left = room(4 << 20);
    let disk = || Full(InMemoryBackend::new(), Arc::clone(&left));
    let file = disk();
    file.write(0, &[0; 4096]).unwrap();
    let logged = Logged::open(file, disk(), HALF).unwrap();
    let (commits, log_len) = (logged.commits(), || logged.0.log.len().unwrap());
    assert_eq!((log_len(), commits.is_short()), (FLOOR, false));
    commits.may_take(Room::Free);
    for number in 1..=6 {
        commit(&logged, &*commits, number, 60).unwrap();
    }
    assert!(log_len() > FLOOR, "both halves are in use");
    // What adds has all but the reserve.
    let mut page = 128;
    let mut write = || {
        page += 1;
        logged.write(page * PAGE, &[1; 4096])
    };
    let full = (0..1000).find_map(|_| write().err()).unwrap();
    assert!(is_full(&full), "{full}");
    assert_eq!((log_len(), commits.is_short()), (FLOOR, false));
    assert!(left.load(Ordering::SeqCst) < 4096);
    // What removes has that too, and what was committed is there for good.
    commits.may_take(Room::Reserve);
    write().unwrap();
    assert_eq!((log_len(), commits.is_short(), look(&*logged.0.file)), (BLOCK as u64, true, 6));
    commit(&logged, &*commits, 7, 60).unwrap();
    assert_eq!((log_len(), look(&*logged.0.file)), (BLOCK as u64, 7), "nothing is logged without a reserve");
    // It comes back when there is room for all of it.
    left.store(i64::try_from(RESERVE).unwrap() - 1, Ordering::SeqCst);
    assert!(!commits.regain().unwrap() && commits.is_short());
    left.fetch_add(1, Ordering::SeqCst);
    assert!(commits.regain().unwrap() && !commits.is_short());
    assert_eq!(log_len(), FLOOR);
    commit(&logged, &*commits, 8, 3).unwrap();
    let (file, log) = (memory(&bytes(&*logged.0.file)), memory(&bytes(&logged.0.log)));
    assert_eq!((replay(&log, &file).unwrap(), look(&file)), (1, 8));
}
