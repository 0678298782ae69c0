//! What a log holds: its header, records, and the pieces of a file in those; and how they come back into the file.
//!
//! ```text
//! record = hash of all that follows | number | length of the file | length of the body | needs + 1 | hash of these four | zeros | body
//! needs  = number of the first record that a start must write into the file again; those before it the file has for good
//! ```
//!
//! One record is written when the one before it is durable. So the record that a loss of power cut short is the last one that was begun;
//! what is not whole and has another one behind it was damaged later. The hash of the head alone, which needs the key too, shows cheaply
//! that a record was begun. A head without `needs` and its hash is of a version that had neither: then rot is taken for the end.
//!
//! Owns the bytes of a log on the disk, and [`replay`], which reads them. Knows nothing of when a record is written. Invariants: what is
//! not whole is never taken for a record; what was whole and is not any more is an error, and not the log's end, unless it is the last one.

use std::io;

use redb::StorageBackend;

/// Records begin at multiples of this: no sector belongs to two of them, so a torn one damages no other.
pub(super) const BLOCK: usize = 4096;
/// The part of the file that is written after the log only: where redb keeps its header.
pub(super) const FIRST: u64 = 4096;
pub(super) const MAGIC: [u8; 16] = *b"hob data log 1\n\0";
pub(super) const HASH: usize = blake3::OUT_LEN;
/// The four numbers of a head.
const NUMBERS: usize = 32;
/// A head without its zeros.
const HEAD: usize = HASH + NUMBERS + HASH;
const _: () = assert!(HEAD <= BLOCK, "a record's first block holds its head");
/// Bytes that are read at once in search of heads.
const CHUNK: usize = 1 << 20;
const _: () = assert!(CHUNK.is_multiple_of(BLOCK), "no head lies in two of them");
/// Marks the place of a piece that is what was there before, and not what is to be written.
pub(super) const BEFORE: u64 = 1 << 63;

/// What the first block of a log says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// By which its records are known.
    pub(super) key: [u8; 32],
    /// Bytes of each half.
    pub(super) half: u64,
}

/// Writes all whole records of `log` that are needed into `file`, in their order. Answers the number of the next one. A log of another
/// file is left alone: of one that was here before this one was restored from a backup.
///
/// # Errors
/// What the disk says. `InvalidData` if records are missing in the middle.
pub(crate) fn replay(log: &impl StorageBackend, file: &impl StorageBackend) -> io::Result<u64> {
    let Some(header) = Header::read(log)? else { return Ok(0) };
    let mut halves = [Records::of(log, header, 0)?, Records::of(log, header, 1)?];
    halves.sort_by_key(|records| records.first);
    let page = first_page(file)?;
    let [older, newer] = [halves[0].clone().look(&page)?, halves[1].clone().look(&page)?];
    let next = newer.next.unwrap_or(0);
    if older.begun.max(newer.begun) > Some(next) {
        return Err(damaged("later records behind one that is not what was written"));
    }
    let Some(first) = halves[1].first else { return Ok(0) };
    let is_gap = older.next != Some(first);
    if is_gap && newer.needs.map_or(older.next.is_some(), |needs| needs < first) {
        return Err(damaged("a gap: a record in its middle is not what was written"));
    }
    let needed = &halves[usize::from(is_gap)..];
    let is_its_own = if is_gap { newer.is_its_own } else { older.is_its_own.max(newer.is_its_own) };
    match is_its_own {
        Some(true) => {}
        Some(false) => {
            tracing::warn!("the log of the data is of another file, and is not used: was the file restored from a backup?");
            return Ok(0);
        }
        // The file only grew, by what nothing refers to.
        None => return Ok(0),
    }
    for record in needed.iter().cloned().flatten() {
        let record = record?;
        for (offset, bytes) in pieces(&record.body).filter(|(offset, _)| offset & BEFORE == 0) {
            file.write(offset, bytes)?;
        }
        if file.len()? != record.file_len {
            file.set_len(record.file_len)?;
        }
    }
    Ok(next)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log of the data has {what}"))
}

/// Completes a record of which `body` has all but the head.
pub(super) fn seal(key: &[u8; 32], body: &mut [u8], number: u64, file_len: u64, needs: u64) {
    let body_len = (body.len() - BLOCK) as u64;
    for (place, number) in [number, file_len, body_len, needs + 1].into_iter().enumerate() {
        body[HASH + 8 * place..][..8].copy_from_slice(&number.to_le_bytes());
    }
    let of_head = blake3::keyed_hash(key, &body[HASH..HASH + NUMBERS]);
    body[HASH + NUMBERS..HEAD].copy_from_slice(of_head.as_bytes());
    let hash = blake3::keyed_hash(key, &body[HASH..]);
    body[..HASH].copy_from_slice(hash.as_bytes());
}

/// The first page of a file, with zeros behind its end.
pub(super) fn first_page(file: &impl StorageBackend) -> io::Result<Vec<u8>> {
    let mut page = vec![0; usize::try_from(FIRST).unwrap_or_default()];
    let len = usize::try_from(file.len()?).unwrap_or(usize::MAX).min(page.len());
    file.read(0, &mut page[..len])?;
    Ok(page)
}

impl Header {
    /// Magic, key, half, and a hash of those.
    const LEN: usize = MAGIC.len() + 40;

    /// Of a log; `None` if it has none. It is written while the log is not needed, so one that is torn is none.
    fn read(log: &impl StorageBackend) -> io::Result<Option<Self>> {
        if log.len()? < BLOCK as u64 {
            return Ok(None);
        }
        let mut block = [0; Self::LEN + HASH];
        log.read(0, &mut block)?;
        let (head, sum) = block.split_at(Self::LEN);
        if blake3::hash(head).as_bytes() != sum {
            return Ok(None);
        }
        let numbers = head.strip_prefix(&MAGIC).and_then(|numbers| numbers.split_first_chunk());
        Ok(numbers.and_then(|(key, half)| Some(Self { key: *key, half: u64::from_le_bytes(*half.first_chunk()?) })))
    }

    pub(super) fn write(&self, log: &impl StorageBackend) -> io::Result<()> {
        let mut block = [MAGIC.as_slice(), &self.key, &self.half.to_le_bytes()].concat();
        let sum = blake3::hash(&block);
        block.extend(sum.as_bytes());
        block.resize(BLOCK, 0);
        log.write(0, &block)?;
        log.sync_data()
    }
}

/// One whole record.
struct Record {
    number: u64,
    file_len: u64,
    /// `None` in one of an earlier version.
    needs: Option<u64>,
    body: Vec<u8>,
}

impl Record {
    /// Whether a first page is as before this record, as after it, or something between the two, which a write leaves that was cut short.
    /// `None` if it does not touch that page.
    fn is_around(&self, page: &[u8]) -> Option<bool> {
        let (before, after): (Vec<_>, Vec<_>) =
            pieces(&self.body).filter(|(offset, _)| offset & !BEFORE < FIRST).partition(|(offset, _)| offset & BEFORE != 0);
        let is_one = |((offset, before), (_, after)): (&Piece<'_>, &Piece<'_>)| {
            let place = usize::try_from(offset & !BEFORE).ok().and_then(|offset| page.get(offset..));
            let bytes = place.unwrap_or_default().iter().zip(before.iter().zip(*after));
            bytes.into_iter().all(|(found, (before, after))| found == before || found == after)
        };
        (!before.is_empty()).then(|| before.iter().zip(&after).all(is_one))
    }
}

/// What one half holds.
struct Found {
    /// Number behind the last whole record; `None` if there is none.
    next: Option<u64>,
    /// As that record says.
    needs: Option<u64>,
    /// Whether the file's first page is around one of them; `None` if none touches it.
    is_its_own: Option<bool>,
    /// The highest number of a record that was begun behind them.
    begun: Option<u64>,
}

/// The records of one half, from its beginning to the first that is not whole.
struct Records<'a, D> {
    log: &'a D,
    key: [u8; 32],
    at: u64,
    end: u64,
    /// Number of the first one; `None` if there is none.
    first: Option<u64>,
    next: Option<u64>,
}

impl<D> Clone for Records<'_, D> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<'a, D: StorageBackend> Records<'a, D> {
    fn of(log: &'a D, Header { key, half }: Header, which: u64) -> io::Result<Self> {
        let len = log.len()?;
        let begin = |which: u64| half.saturating_mul(which).saturating_add(BLOCK as u64).min(len);
        let (at, end) = (begin(which), begin(which + 1));
        let mut records = Self { log, key, at, end, first: None, next: None };
        records.first = records.clone().read()?.map(|record| record.number);
        records.next = records.first;
        Ok(records)
    }

    fn read(&mut self) -> io::Result<Option<Record>> {
        if self.at + BLOCK as u64 > self.end {
            return Ok(None);
        }
        let mut record = vec![0; BLOCK];
        self.log.read(self.at, &mut record)?;
        let [number, file_len, body_len, needs] = numbers(&record);
        if self.next.is_some_and(|next| next != number) || body_len > self.end - self.at - BLOCK as u64 {
            return Ok(None);
        }
        let len = BLOCK as u64 + body_len;
        record.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        self.log.read(self.at + BLOCK as u64, &mut record[BLOCK..])?;
        if blake3::keyed_hash(&self.key, &record[HASH..]).as_bytes() != &record[..HASH] {
            return Ok(None);
        }
        self.at += len.next_multiple_of(BLOCK as u64);
        self.next = Some(number + 1);
        record.drain(..BLOCK);
        Ok(Some(Record { number, file_len, needs: needs.checked_sub(1), body: record }))
    }

    /// Reads all of them, and looks for what was begun behind.
    fn look(mut self, page: &[u8]) -> io::Result<Found> {
        let (mut needs, mut is_its_own) = (None, None);
        while let Some(record) = self.read()? {
            needs = record.needs;
            is_its_own = is_its_own.max(record.is_around(page));
        }
        Ok(Found { next: self.next, needs, is_its_own, begun: self.begun()? })
    }

    /// The highest number of the heads from here on.
    fn begun(&self) -> io::Result<Option<u64>> {
        let (mut at, mut highest) = (self.at, None);
        while at < self.end {
            let mut chunk = vec![0; usize::try_from(self.end - at).unwrap_or(CHUNK).min(CHUNK)];
            self.log.read(at, &mut chunk)?;
            let is_head = |block: &&[u8]| {
                blake3::keyed_hash(&self.key, &block[HASH..HASH + NUMBERS]).as_bytes() == &block[HASH + NUMBERS..HEAD]
            };
            let heads = chunk.chunks_exact(BLOCK).filter(|block| block[HASH + NUMBERS..HEAD] != [0; HASH]).filter(is_head);
            highest = heads.map(|block| Some(numbers(block)[0])).max().flatten().max(highest);
            at += chunk.len() as u64;
        }
        Ok(highest)
    }
}

impl<D: StorageBackend> Iterator for Records<'_, D> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Those of a head: number, length of the file, length of the body, needs + 1.
fn numbers(head: &[u8]) -> [u64; 4] {
    [0, 8, 16, 24].map(|place| head[HASH + place..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
}

/// A place in the file, and the bytes there.
type Piece<'a> = (u64, &'a [u8]);

/// What a body holds.
fn pieces(mut body: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    std::iter::from_fn(move || {
        let (offset, rest) = body.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        body = rest;
        Some((u64::from_le_bytes(*offset), bytes))
    })
}

pub(super) fn put(body: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    body.extend(offset.to_le_bytes());
    body.extend((bytes.len() as u64).to_le_bytes());
    body.extend(bytes);
}
