//! What a log holds: its header, records, and the pieces of a file in those; and how they come back into the file.
//!
//! Owns the bytes of a log on the disk, and [`replay`], which reads them. Knows nothing of when a record is written. Invariant: what is not
//! whole is never taken for a record.

use std::io;

use redb::StorageBackend;

/// Records begin at multiples of this: no sector belongs to two of them, so a torn one damages no other.
pub(super) const BLOCK: usize = 4096;
/// The part of the file that is written after the log only: where redb keeps its header.
pub(super) const FIRST: u64 = 4096;
pub(super) const MAGIC: [u8; 16] = *b"hob data log 1\n\0";
pub(super) const HASH: usize = blake3::OUT_LEN;
const _: () = assert!(HASH + 24 <= BLOCK, "a head is its hash, its number, and the lengths of the file and of its body");
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

/// Writes all whole records of `log` into `file`, in their order. Answers how many there were. A log of another file is left alone: of one
/// that was here before this one was restored from a backup.
///
/// # Errors
/// What the disk says. `InvalidData` if records are missing in the middle.
pub(crate) fn replay(log: &impl StorageBackend, file: &impl StorageBackend) -> io::Result<u64> {
    let Some(header) = Header::read(log)? else { return Ok(0) };
    let mut halves = [Records::of(log, header, 0)?, Records::of(log, header, 1)?];
    halves.sort_by_key(|records| records.first);
    let page = first_page(file)?;
    let (mut last, mut is_its_own) = (None::<u64>, None);
    for record in halves.clone().into_iter().flatten() {
        let record = record?;
        if last.is_some_and(|last| last + 1 != record.number) {
            let text = "the log of the data has a gap: a record in its middle is not what was written";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        last = Some(record.number);
        if let Some(is_around) = record.is_around(&page) {
            is_its_own = Some(is_around || is_its_own == Some(true));
        }
    }
    let Some(last) = last else { return Ok(0) };
    match is_its_own {
        Some(true) => {}
        Some(false) => {
            tracing::warn!("the log of the data is of another file, and is not used: was the file restored from a backup?");
            return Ok(0);
        }
        // The file only grew, by what nothing refers to.
        None => return Ok(0),
    }
    for record in halves.into_iter().flatten() {
        let record = record?;
        for (offset, bytes) in pieces(&record.body).filter(|(offset, _)| offset & BEFORE == 0) {
            file.write(offset, bytes)?;
        }
        if file.len()? != record.file_len {
            file.set_len(record.file_len)?;
        }
    }
    Ok(last + 1)
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
        let number_at = |at: usize| record[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (number, file_len, body_len) = (number_at(HASH), number_at(HASH + 8), number_at(HASH + 16));
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
        Ok(Some(Record { number, file_len, body: record }))
    }
}

impl<D: StorageBackend> Iterator for Records<'_, D> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
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
