//! What is resident: an LRU by number and by bytes.
//!
//! Owns which templates are in memory. Knows nothing about where they come from, nor what they are. Invariant: there are never
//! more, and never more bytes of them, than the bounds say. What leaves is handed to the caller, who drops it where it holds no
//! lock: a mapping of a gigabyte takes milliseconds to undo, and instances that run keep theirs anyway.

use lru::LruCache;

use super::Key;
use super::bounds::Bounds;

/// See the module.
#[derive(Debug)]
pub(super) struct Resident<T> {
    /// Each with its bytes.
    all: LruCache<Key, (T, u64)>,
    bytes: u64,
    bounds: Bounds,
}

impl<T: Clone> Resident<T> {
    pub(super) fn new(bounds: Bounds) -> Self {
        // A bounded one would take all of its memory at once.
        Self { all: LruCache::unbounded(), bytes: 0, bounds }
    }

    pub(super) fn get(&mut self, key: &Key) -> Option<T> {
        self.all.get(key).map(|(template, _)| template.clone())
    }

    /// As [`Resident::get`], but it does not count as a use.
    pub(super) fn peek(&self, key: &Key) -> Option<T> {
        self.all.peek(key).map(|(template, _)| template.clone())
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.all.contains(key)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Puts a template in place of the one under its key, as the one that was used last. Returns what leaves for it; that is the
    /// template itself when it alone has more bytes than all may have.
    pub(super) fn insert(&mut self, key: Key, template: T, bytes: u64) -> Vec<T> {
        let mut left: Vec<T> = self.remove(&key).into_iter().collect();
        if bytes > self.bounds.bytes {
            left.push(template);
            return left;
        }
        self.bytes += bytes;
        self.all.put(key, (template, bytes));
        while self.all.len() > self.bounds.count || self.bytes > self.bounds.bytes {
            left.extend(self.pop());
        }
        left
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<T> {
        let (template, bytes) = self.all.pop(key)?;
        self.bytes -= bytes;
        Some(template)
    }

    /// Removes the half that was used longest ago; at least one, if there is one.
    pub(super) fn remove_half(&mut self) -> Vec<T> {
        (0..self.all.len().div_ceil(2)).filter_map(|_| self.pop()).collect()
    }

    fn pop(&mut self) -> Option<T> {
        let (_, (template, bytes)) = self.all.pop_lru()?;
        self.bytes -= bytes;
        Some(template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Digest, TenantId};

    fn key(name: u8) -> Key {
        (TenantId::default(), Digest::of(&[name]))
    }

    fn resident(count: usize, bytes: u64) -> Resident<u8> {
        Resident::new(Bounds { count, bytes })
    }

    #[test]
    fn the_one_used_longest_ago_leaves_for_one_too_many() {
        let mut templates = resident(2, u64::MAX);
        assert!(templates.insert(key(1), 1, 10).is_empty() && templates.insert(key(2), 2, 10).is_empty());
        assert_eq!(templates.get(&key(1)), Some(1));
        assert_eq!(templates.insert(key(3), 3, 10), [2]);
        assert_eq!((templates.get(&key(1)), templates.get(&key(2)), templates.get(&key(3))), (Some(1), None, Some(3)));
        assert_eq!(templates.insert(key(3), 4, 10), [3], "in its own place, without harm to others");
        assert_eq!((templates.len(), templates.bytes), (2, 20));
    }

    #[test]
    fn bytes_on_both_sides() {
        let mut templates = resident(100, 100);
        assert!(templates.insert(key(1), 1, 60).is_empty() && templates.insert(key(2), 2, 40).is_empty());
        assert_eq!(templates.insert(key(3), 3, 1), [1]);
        assert_eq!((templates.len(), templates.bytes), (2, 41));
        assert_eq!(templates.insert(key(4), 4, 100), [2, 3]);
        assert_eq!(templates.insert(key(5), 5, 101), [5], "one that never fits takes nobody's place");
        assert_eq!(templates.insert(key(4), 6, 101), [4, 6]);
        assert_eq!((templates.len(), templates.bytes), (0, 0));
    }

    #[test]
    fn half_of_an_odd_number_is_the_larger_half() {
        let mut templates = resident(100, 100);
        assert!(templates.remove_half().is_empty());
        for name in 1..=5 {
            templates.insert(key(name), name, 1);
        }
        assert_eq!((templates.remove_half(), templates.remove_half()), (vec![1, 2, 3], vec![4]));
        assert_eq!(templates.remove(&key(5)), Some(5));
        assert_eq!((templates.len(), templates.bytes), (0, 0));
    }
}
