//! How much of the disk a log keeps: what it takes is the reserve for when the disk is full.
//!
//! When the file finds no room it is made durable and the log is cut, down to its floor; what gives room back ([`Room::Reserve`]) may have
//! that too. Then the log is *short*: nothing is logged, each commit makes the file durable, and whoever wants to add waits until
//! `Commits::regain` made the log as long as its floor again.
//!
//! Owns the length of the log. Knows nothing of what is in it. Invariant: a disk that data filled has what removing needs, which is the
//! reserve, or the pages that were freed since it was taken.

use std::io;
use std::sync::atomic::Ordering;

use redb::StorageBackend;

use super::record::BLOCK;
use super::{Inner, State};
use crate::storage::disk::is_full;

/// The log keeps at least so much of the disk, and this part of the file's length (a commit writes redb's account of free pages, which
/// grows with the file), but no more than its halves: what a few commits that delete need on a disk that is full.
pub(super) const RESERVE: u64 = 1 << 20;
const RESERVE_PART: u64 = 1024;

/// What a transaction may take of a full disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// What is free: it adds.
    Free,
    /// The reserve too: it gives room back.
    Reserve,
}

impl<D: StorageBackend> Inner<D> {
    /// Length of the log below which it is short.
    pub(super) fn floor(&self) -> io::Result<u64> {
        let reserve = (self.file.len()? / RESERVE_PART).max(RESERVE).min(2 * self.half);
        Ok(BLOCK as u64 + reserve.next_multiple_of(BLOCK as u64))
    }

    /// Leaves `len` bytes of a log that has just begun anew.
    pub(super) fn cut(&self, state: &mut State, len: u64) -> io::Result<()> {
        // A write that found no room may have made it longer than is known of.
        state.len = self.log.len()?;
        if state.len > len {
            self.log.set_len(len)?;
            state.len = len;
        }
        Ok(())
    }

    /// Makes the log as long as its floor. False, and short, if there is no room for that.
    pub(super) fn fill(&self, state: &mut State) -> io::Result<bool> {
        let (floor, zeros) = (self.floor()?, vec![0; 64 << 10]);
        let had = state.len;
        while state.len < floor {
            let len = (floor - state.len).min(zeros.len() as u64);
            match self.log.write(state.len, &zeros[..usize::try_from(len).unwrap_or(zeros.len())]) {
                Err(error) if is_full(&error) => {
                    self.is_short.store(true, Ordering::Release);
                    return Ok(false);
                }
                written => written?,
            }
            state.len += len;
        }
        if had < floor {
            self.log.sync_data()?;
        }
        self.is_short.store(false, Ordering::Release);
        Ok(true)
    }

    /// Gives the file room that the log has, as much as may be taken. False if that is nothing.
    pub(super) fn make_room(&self, state: &mut State) -> io::Result<bool> {
        let takes_reserve = self.takes_reserve.load(Ordering::Acquire);
        let keep = if takes_reserve { BLOCK as u64 } else { self.floor()? };
        if state.failed || self.log.len()? <= keep {
            return Ok(false);
        }
        let made = self.flush_file(state).and_then(|()| self.cut(state, keep));
        made.inspect_err(|_| state.failed = true)?;
        if takes_reserve {
            self.is_short.store(true, Ordering::Release);
        }
        Ok(true)
    }
}
