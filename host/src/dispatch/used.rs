//! In which order functions were used, so that after an upgrade of the engine the first that are compiled anew are the first that are
//! going to be asked for.
//!
//! Owns the file `used` in the data directory. It is a hint: what is lost or malformed in it costs an order and nothing else, so the
//! file may be deleted. Knows nothing about what is in memory or compiled. Invariant: no request pays for it, because use is seen in
//! totals that are kept anyway, once a minute.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lru::LruCache;

use super::functions::Key;
use crate::id::{FunctionName, TenantId};
use crate::storage::disk::write_durably;

/// Functions whose order is remembered. Past it the one that was used longest ago is forgotten.
const USED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("it is not zero");
/// How often the order is brought up to date: what a kill may lose of it.
pub const PERIOD: Duration = Duration::from_secs(60);
/// Name of the file: lines of a tenant and a function, the one that was used last first.
const FILE: &str = "used";

/// See the module.
#[derive(Debug)]
pub struct UseOrder {
    dir: PathBuf,
    /// Invocations counted when it was last looked at.
    seen: LruCache<Key, u64>,
    changed: bool,
}

impl UseOrder {
    /// The order that an earlier process wrote below `dir`, or none.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "the order in which functions were used cannot be read");
            }
            String::new()
        });
        let keys = text.lines().take(USED_MAX.get()).filter_map(parse);
        let mut seen = LruCache::new(USED_MAX);
        for key in keys.collect::<Vec<_>>().into_iter().rev() {
            seen.put(key, 0);
        }
        Self { dir: dir.into(), seen, changed: false }
    }

    /// Takes note of totals, of the function that was used last first: one whose count is another one than when it was last looked at was used
    /// since.
    pub(super) fn note(&mut self, totals: impl IntoIterator<Item = (Key, u64), IntoIter: DoubleEndedIterator>) {
        for (key, total) in totals.into_iter().rev() {
            if total > 0 && self.seen.peek(&key) != Some(&total) {
                self.seen.put(key, total);
                self.changed = true;
            }
        }
    }

    /// Writes what was noted since the last time. Blocks.
    ///
    /// # Errors
    /// Those of the file system; the next call tries again.
    pub(super) fn save(&mut self) -> io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        let lines: String = self.seen.iter().map(|((tenant, name), _)| format!("{tenant} {name}\n")).collect();
        write_durably(&self.dir, FILE, lines.as_bytes())?;
        self.changed = false;
        Ok(())
    }

    /// The place of each function in the order; 0 is the one that was used last.
    #[must_use]
    pub fn ranks(&self) -> HashMap<(TenantId, FunctionName), usize> {
        self.seen.iter().enumerate().map(|(rank, (key, _))| (key.clone(), rank)).collect()
    }
}

fn parse(line: &str) -> Option<Key> {
    let (tenant, name) = line.split_once(' ')?;
    Some((tenant.parse().ok()?, name.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        (TenantId::default(), name.parse().unwrap())
    }

    fn order(used: &UseOrder) -> Vec<String> {
        let mut ranks: Vec<_> = used.ranks().into_iter().collect();
        ranks.sort_by_key(|(_, rank)| *rank);
        ranks.into_iter().map(|((_, name), _)| name.to_string()).collect()
    }

    #[test]
    fn what_was_used_last_comes_first_also_in_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut used = UseOrder::open(dir.path());
        used.note([(key("a"), 1), (key("b"), 7), (key("unused"), 0)]);
        used.note([(key("a"), 2), (key("b"), 7)]);
        used.note([(key("c"), 1), (key("a"), 2)]);
        assert_eq!(order(&used), ["c", "a", "b"]);
        used.save().unwrap();
        let mut next = UseOrder::open(dir.path());
        assert_eq!(order(&next), ["c", "a", "b"]);
        // Of those that were used since the last look the first was used last.
        used.note([(key("y"), 1), (key("x"), 1)]);
        assert_eq!(order(&used), ["y", "x", "c", "a", "b"]);
        // Totals begin anew with the process.
        next.note([(key("b"), 1)]);
        assert_eq!(order(&next), ["b", "c", "a"]);
    }

    #[test]
    fn nothing_is_written_when_nothing_was_used() {
        let dir = tempfile::tempdir().unwrap();
        let mut used = UseOrder::open(dir.path());
        used.save().unwrap();
        assert!(!dir.path().join(FILE).exists());
        used.note([(key("a"), 1)]);
        used.save().unwrap();
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        used.note([(key("a"), 1)]);
        used.save().unwrap();
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn a_file_of_anything_is_no_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "default a\n../x y\ndefault\n\ndefault B\n").unwrap();
        assert_eq!(order(&UseOrder::open(dir.path())), ["a"]);
        std::fs::write(dir.path().join(FILE), b"\xff\xfe").unwrap();
        assert!(order(&UseOrder::open(dir.path())).is_empty());
    }

    #[test]
    fn the_longest_unused_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut used = UseOrder::open(dir.path());
        used.note((0..USED_MAX.get()).map(|number| (key(&format!("f{number}")), 1)));
        assert!(used.ranks().contains_key(&key("f9999")));
        used.note([(key("one-more"), 1)]);
        assert_eq!((used.ranks().len(), used.ranks().contains_key(&key("f9999"))), (USED_MAX.get(), false));
    }
}
