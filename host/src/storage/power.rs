//! For tests: disks that lose their power, with caches of their own. What was not synced is there afterwards or not, sector by sector.

use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;
use rustix::io::Errno;

const SECTOR: usize = 512;

/// The power of two disks, or of two files on one.
#[derive(Debug, Clone)]
pub(crate) struct Power(Arc<Mutex<Grid>>);

#[derive(Debug)]
struct Grid {
    disks: [Disk; 2],
    /// Operations until the power goes.
    left: u64,
}

#[derive(Debug)]
struct Disk {
    /// What the machine sees.
    seen: Vec<u8>,
    /// What is safe.
    kept: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Power {
    pub(crate) fn new(disks: [Vec<u8>; 2], left: u64) -> Self {
        let disks = disks.map(|bytes| Disk { seen: bytes.clone(), kept: bytes, unsynced: vec![] });
        Self(Arc::new(Mutex::new(Grid { disks, left })))
    }

    pub(crate) fn outlets(&self) -> [Outlet; 2] {
        [0, 1].map(|which| Outlet { power: self.clone(), which })
    }

    /// The disks as they are found afterwards: of what was written since the last sync any sectors, in any order.
    pub(crate) fn after(&self, mut dice: impl FnMut(usize) -> usize) -> [Vec<u8>; 2] {
        let grid = self.0.lock().unwrap();
        [0, 1].map(|which| grid.disks[which].after(&mut dice))
    }
}

impl Disk {
    fn after(&self, mut dice: impl FnMut(usize) -> usize) -> Vec<u8> {
        let mut bytes = self.kept.clone();
        bytes.resize(self.seen.len().max(bytes.len()), 0);
        let mut sectors: Vec<(usize, &[u8])> = Vec::new();
        for (offset, data) in &self.unsynced {
            let mut at = 0;
            while at < data.len() {
                let len = (SECTOR - (offset + at) % SECTOR).min(data.len() - at);
                sectors.push((offset + at, &data[at..at + len]));
                at += len;
            }
        }
        let mode = dice(4);
        while !sectors.is_empty() {
            let (offset, data) = sectors.swap_remove(dice(sectors.len()));
            let kept = match mode {
                0 => false,
                1 => true,
                _ => dice(2) == 0,
            };
            if kept {
                bytes[offset..offset + data.len()].copy_from_slice(data);
            }
        }
        bytes
    }
}

/// What one of the disks is plugged into.
#[derive(Debug, Clone)]
pub(crate) struct Outlet {
    power: Power,
    which: usize,
}

impl Outlet {
    /// An operation that changes something, unless the power is gone.
    fn change(&self, op: impl FnOnce(&mut Disk)) -> io::Result<()> {
        let mut grid = self.power.0.lock().unwrap();
        grid.left = grid.left.saturating_sub(1);
        if grid.left == 0 {
            return Err(Errno::IO.into());
        }
        op(&mut grid.disks[self.which]);
        Ok(())
    }
}

impl StorageBackend for Outlet {
    fn len(&self) -> io::Result<u64> {
        Ok(self.power.0.lock().unwrap().disks[self.which].seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let grid = self.power.0.lock().unwrap();
        let seen = grid.disks[self.which].seen.get(at..at + out.len());
        out.copy_from_slice(seen.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|disk| disk.seen.resize(usize::try_from(len).unwrap(), 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|disk| {
            disk.kept = disk.seen.clone();
            disk.unsynced.clear();
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(|disk| {
            let at = usize::try_from(offset).unwrap();
            let end = (at + data.len()).max(disk.seen.len());
            disk.seen.resize(end, 0);
            disk.seen[at..at + data.len()].copy_from_slice(data);
            disk.unsynced.push((at, data.to_vec()));
        })
    }
}
