//! One suite of rules for every door to a bucket and everything behind it: whichever way one takes, one finds the same data.
//!
//! Here are the rules that every door can be held to, in `entries.rs` and `objects.rs` those of doors that can say everything
//! ([`Entries`], [`Files`]). Which doors there are: `conformance/`, and `standard.rs` for the interfaces of WASI. A door answers an error
//! with the words that its caller would read.

pub(crate) mod entries;
pub(crate) mod objects;

use std::collections::BTreeSet;

pub(crate) use entries::Entries;
pub(crate) use objects::{Files, Known};

/// What a door says if it does not do what it was asked.
pub(crate) type Said<T> = Result<T, String>;

/// A way to the entries of one bucket.
pub(crate) trait KvDoor: Sync {
    fn get(&self, key: &str) -> Said<Option<Vec<u8>>>;
    fn set(&self, key: &str, value: &[u8]) -> Said<()>;
    fn delete(&self, key: &str) -> Said<()>;
    fn exists(&self, key: &str) -> Said<bool>;
    /// Adds; `by` is never below 0 for a door that [`KvDoor::has_signs`] denies.
    fn increment(&self, key: &str, by: i64) -> Said<i64>;
    /// All keys, by as many pages as it takes.
    fn keys(&self) -> Said<Vec<String>>;
    fn get_many(&self, keys: &[&str]) -> Said<Vec<Option<Vec<u8>>>>;
    fn set_many(&self, entries: &[(&str, &[u8])]) -> Said<()>;
    fn delete_many(&self, keys: &[&str]) -> Said<()>;
    /// Writes if what is there is as expected; whether it did. `None` if this door cannot.
    fn swap(&self, key: &str, expected: Option<&[u8]>, value: &[u8]) -> Option<Said<bool>>;
    /// Whether numbers below 0 can be said.
    fn has_signs(&self) -> bool;
}

/// A way to the objects of one bucket.
pub(crate) trait ObjectDoor: Sync {
    fn put(&self, key: &str, bytes: &[u8]) -> Said<()>;
    fn get(&self, key: &str) -> Said<Option<Vec<u8>>>;
    /// `len` bytes from `start` on, or as many as there are. `len` is not 0.
    fn part(&self, key: &str, start: u64, len: u64) -> Said<Option<Vec<u8>>>;
    fn delete(&self, key: &str) -> Said<()>;
    fn exists(&self, key: &str) -> Said<bool>;
    fn size(&self, key: &str) -> Said<Option<u64>>;
    /// All keys, by pages of `by`.
    fn keys(&self, by: u64) -> Said<Vec<String>>;
    /// What its keys may be.
    fn keys_are(&self) -> Keys {
        Keys::Any
    }
}

/// Keys that a door can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    Any,
    /// Paths; others are refused.
    Paths,
    /// Arguments of a program: none has a NUL, and what is empty or ends with `/` names a folder.
    Arguments,
    /// Files: what is no relative path is not there, and no key is refused.
    Files,
}

#[track_caller]
fn refused<T: std::fmt::Debug>(said: Said<T>, words: &str) {
    let text = said.unwrap_err();
    assert!(text.contains(words), "'{text}' instead of '{words}'");
}

/// The rules of entries, in a bucket that is empty and has room. It is empty afterwards.
pub(crate) fn check_entries(door: &dyn KvDoor) {
    one_entry(door);
    keys_and_values_have_their_limits(door);
    numbers(door);
    many_at_once(door);
    lists_are_whole(door);
    one_of_many_swaps(door);
}

fn one_entry(door: &dyn KvDoor) {
    assert_eq!(door.get("k").unwrap(), None);
    assert!(!door.exists("k").unwrap());
    door.set("k", b"1").unwrap();
    door.set("k", b"\0\xff").unwrap();
    assert_eq!(door.get("k").unwrap().as_deref(), Some(&b"\0\xff"[..]));
    assert!(door.exists("k").unwrap());
    door.set("k", b"").unwrap();
    assert_eq!(door.get("k").unwrap().as_deref(), Some(&b""[..]));
    door.delete("k").unwrap();
    door.delete("k").unwrap();
    assert_eq!(door.get("k").unwrap(), None);
}

fn keys_and_values_have_their_limits(door: &dyn KvDoor) {
    let (longest, long) = ("k".repeat(512), "k".repeat(513));
    let tricks = ["a\0b", "\0", "../../etc/passwd", "/", "\u{e9}\u{1f600}", " ", longest.as_str()];
    for key in tricks {
        door.set(key, key.as_bytes()).unwrap();
        assert_eq!(door.get(key).unwrap().as_deref(), Some(key.as_bytes()), "{key:?}");
    }
    let listed: BTreeSet<_> = door.keys().unwrap().into_iter().collect();
    assert_eq!(listed, tricks.map(str::to_owned).into());
    door.delete_many(&tricks).unwrap();
    assert_eq!(door.keys().unwrap(), [""; 0]);
    for (key, words) in [("", "the key is empty"), (long.as_str(), "the key has 513 bytes: at most 512")] {
        refused(door.get(key), words);
        refused(door.exists(key), words);
        refused(door.set(key, b""), words);
        refused(door.delete(key), words);
        refused(door.increment(key, 1), words);
        refused(door.get_many(&["k", key]), words);
        refused(door.set_many(&[("k", b""), (key, b"")]), words);
    }
    assert_eq!(door.get("k").unwrap(), None, "a batch with a bad key writes nothing");
    door.set("v", &vec![7; 1 << 20]).unwrap();
    assert_eq!(door.get("v").unwrap().unwrap().len(), 1 << 20);
    refused(door.set("v", &vec![7; (1 << 20) + 1]), "at most 1048576");
    assert_eq!(door.get("v").unwrap().unwrap().len(), 1 << 20);
    door.delete("v").unwrap();
}

fn numbers(door: &dyn KvDoor) {
    assert_eq!(door.increment("n", 5).unwrap(), 5);
    assert_eq!(door.increment("n", 0).unwrap(), 5);
    assert_eq!(door.get("n").unwrap().as_deref(), Some(&b"5"[..]), "a number is decimal text");
    door.set("n", b"41").unwrap();
    assert_eq!(door.increment("n", 1).unwrap(), 42);
    if door.has_signs() {
        assert_eq!(door.increment("n", -50).unwrap(), -8);
    } else {
        door.set("n", b"-8").unwrap();
        refused(door.increment("n", 1), "cannot say");
        assert_eq!(door.get("n").unwrap().as_deref(), Some(&b"-8"[..]));
    }
    door.set("n", b"x").unwrap();
    refused(door.increment("n", 1), "cannot be done");
    door.set("n", i64::MAX.to_string().as_bytes()).unwrap();
    refused(door.increment("n", 1), "cannot be done");
    assert_eq!(door.get("n").unwrap(), Some(i64::MAX.to_string().into_bytes()));
    door.delete("n").unwrap();
}

fn many_at_once(door: &dyn KvDoor) {
    door.set_many(&[("a", b"1"), ("b", b"2"), ("a", b"3")]).unwrap();
    let found = door.get_many(&["b", "none", "a"]).unwrap();
    assert_eq!(found, [Some(b"2".to_vec()), None, Some(b"3".to_vec())]);
    door.delete_many(&["a", "none", "b"]).unwrap();
    assert_eq!(door.get_many(&["a", "b"]).unwrap(), [None, None]);
    assert!(door.get_many(&[]).unwrap().is_empty());
    let keys: Vec<String> = (0..1001).map(|number| format!("k{number:04}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let entries: Vec<(&str, &[u8])> = keys.iter().map(|key| (*key, &b"v"[..])).collect();
    for said in [door.set_many(&entries), door.delete_many(&keys), door.get_many(&keys).map(drop)] {
        refused(said, "1001 keys at once: expected at most 1000");
    }
    assert_eq!(door.keys().unwrap(), [""; 0], "a batch happens whole or not at all");
    door.set_many(&entries[..1000]).unwrap();
}

/// After [`many_at_once`]: 1,000 keys, and here one more than a page.
fn lists_are_whole(door: &dyn KvDoor) {
    door.set_many(&[("z1", b"1"), ("z2", b"2")]).unwrap();
    let keys = door.keys().unwrap();
    let unique: BTreeSet<_> = keys.iter().collect();
    assert_eq!((keys.len(), unique.len()), (1002, 1002));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    door.delete_many(&keys[..1000]).unwrap();
    door.delete_many(&keys[1000..]).unwrap();
}

fn one_of_many_swaps(door: &dyn KvDoor) {
    let Some(swapped) = door.swap("cas", None, b"first") else { return };
    assert!(swapped.unwrap());
    let swap = |expected: Option<&[u8]>, value: &[u8]| door.swap("cas", expected, value).unwrap().unwrap();
    assert!(!swap(None, b"second") && !swap(Some(b"other"), b"second"));
    assert!(swap(Some(b"first"), b"second"));
    assert_eq!(door.get("cas").unwrap().as_deref(), Some(&b"second"[..]));
    let won = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8_u8).map(|number| scope.spawn(move || swap(Some(b"second"), &[number]))).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(won, 1);
    assert_eq!(door.get("cas").unwrap().unwrap().len(), 1, "the winner's is there");
    door.delete("cas").unwrap();
}

/// The rules of objects, in a bucket that is empty and has room. It is empty afterwards.
pub(crate) fn check_objects(door: &dyn ObjectDoor) {
    one_object(door);
    parts(door);
    object_keys(door);
    lists_of_objects(door);
}

fn one_object(door: &dyn ObjectDoor) {
    assert_eq!((door.get("k").unwrap(), door.size("k").unwrap()), (None, None));
    assert!(!door.exists("k").unwrap());
    door.put("k", b"first").unwrap();
    door.put("k", b"second").unwrap();
    assert_eq!(door.get("k").unwrap().as_deref(), Some(&b"second"[..]));
    assert_eq!((door.exists("k").unwrap(), door.size("k").unwrap()), (true, Some(6)));
    door.put("k", b"").unwrap();
    assert_eq!((door.get("k").unwrap(), door.size("k").unwrap()), (Some(Vec::new()), Some(0)));
    // Larger than any piece in which it travels.
    let large: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    door.put("k", &large).unwrap();
    assert!(door.get("k").unwrap().unwrap() == large);
    door.delete("k").unwrap();
    door.delete("k").unwrap();
    assert_eq!(door.get("k").unwrap(), None);
}

fn parts(door: &dyn ObjectDoor) {
    door.put("p", b"0123456789").unwrap();
    for (start, len, expected) in [(0, 10, "0123456789"), (3, 4, "3456"), (9, 1, "9"), (8, 100, "89"), (0, 1, "0"), (10, 1, "")] {
        assert_eq!(door.part("p", start, len).unwrap().as_deref(), Some(expected.as_bytes()), "{len} from {start}");
    }
    assert_eq!(door.part("none", 0, 1).unwrap(), None);
    door.delete("p").unwrap();
}

fn object_keys(door: &dyn ObjectDoor) {
    let longest = "k".repeat(512);
    let mut tricks = vec!["a\0b", "../../etc/passwd", "/", "\u{e9}", longest.as_str()];
    match door.keys_are() {
        Keys::Any => {}
        Keys::Arguments => tricks.retain(|key| !matches!(*key, "a\0b" | "/")),
        Keys::Paths => {
            for key in tricks.drain(..3) {
                refused(door.put(key, b""), "expected");
                refused(door.get(key), "expected");
            }
            // Files under the origin of the tests have names of at most 255 bytes.
            tricks = vec!["\u{e9}", "a b", "a+b", "a%2Fb"];
        }
        Keys::Files => {
            for key in ["../../etc/passwd", "/", "a//b", longest.as_str()] {
                door.put(key, b"x").unwrap();
                assert_eq!((door.get(key).unwrap(), door.keys(2).unwrap()), (None, Vec::new()), "{key:?}");
                door.delete(key).unwrap();
            }
            tricks = vec!["a+b", "deep/er/key", "deep/key"];
        }
    }
    for key in tricks.iter().copied() {
        door.put(key, key.as_bytes()).unwrap();
        assert_eq!(door.get(key).unwrap().as_deref(), Some(key.as_bytes()), "{key:?}");
    }
    let listed: BTreeSet<_> = door.keys(2).unwrap().into_iter().collect();
    assert_eq!(listed, tricks.iter().map(|key| (*key).to_owned()).collect());
    for key in tricks {
        door.delete(key).unwrap();
    }
    let long = "k".repeat(513);
    for (key, words) in [("", "an empty key"), (long.as_str(), "513 bytes: at most 512")] {
        if key.is_empty() && door.keys_are() == Keys::Arguments {
            continue;
        }
        refused(door.put(key, b""), words);
        refused(door.delete(key), words);
        if door.keys_are() != Keys::Files {
            refused(door.get(key), words);
            refused(door.exists(key), words);
            refused(door.size(key), words);
        }
    }
}

fn lists_of_objects(door: &dyn ObjectDoor) {
    let keys: Vec<String> = (0..7).map(|number| format!("list/{number}")).collect();
    for key in &keys {
        door.put(key, b"x").unwrap();
    }
    for by in [1, 3, 7, 1000] {
        let mut listed = door.keys(by).unwrap();
        listed.sort();
        assert_eq!(listed, keys, "by {by}");
    }
    for key in &keys {
        door.delete(key).unwrap();
    }
}
