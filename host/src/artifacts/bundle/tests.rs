use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use tar::{Builder, Header};

use super::super::{DataDir, MacKey};
use super::*;
use crate::manifest::BUNDLE_DEPTH_MAX;

struct Place {
    artifacts: Artifacts,
    temp: tempfile::TempDir,
    dir: DataDir,
}

impl Place {
    fn new(bytes_max: u64) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(&temp.path().join("data")).unwrap();
        let artifacts = Artifacts::open(&dir, MacKey::new([7; 32]), bytes_max).unwrap();
        Self { artifacts, temp, dir }
    }

    fn unpack(&self, archive: &[u8]) -> Result<Bundle, BundleError> {
        self.artifacts.unpack(archive, BundleLimits::new(1 << 20))
    }

    /// Puts a bundle in place, unprotected then.
    fn put(&self, archive: &[u8]) -> Digest {
        let bundle = self.unpack(archive).unwrap();
        let digest = bundle.digest();
        let _pin = self.artifacts.pin([FileId::bundle(&TenantId::default(), digest)]);
        self.artifacts.put_bundle(&TenantId::default(), bundle).unwrap();
        digest
    }

    fn path(&self, digest: Digest) -> std::path::PathBuf {
        self.artifacts.path(&FileId::bundle(&TenantId::default(), digest))
    }

    fn staging(&self) -> usize {
        fs::read_dir(self.temp.path().join("data/staging")).unwrap().count()
    }
}

/// An archive with exactly these headers and bodies.
fn archive(entries: &[(EntryType, &[u8], &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, body) in entries {
        let mut header = Header::new_gnu();
        // Written past the library, which refuses what an attacker would send.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.set_entry_type(*kind);
        header.set_size(body.len() as u64);
        header.set_mode(0o4777);
        header.set_mtime(12_345);
        header.set_cksum();
        builder.append(&header, *body).unwrap();
    }
    builder.into_inner().unwrap()
}

fn file<'a>(path: &'a str, body: &'a str) -> (EntryType, &'a [u8], &'a [u8]) {
    (EntryType::Regular, path.as_bytes(), body.as_bytes())
}

#[test]
fn what_is_unpacked_is_what_was_sent_and_nothing_else_of_the_archive() {
    let place = Place::new(1 << 30);
    let folder = (EntryType::Directory, &b"site/empty/"[..], &b""[..]);
    let digest =
        place.put(&archive(&[(EntryType::Directory, b"./", b""), file("./site/a", "1"), folder, file("site/b/c", "22")]));
    let path = place.path(digest);
    assert_eq!(fs::read_to_string(path.join("site/a")).unwrap(), "1");
    assert_eq!(fs::read_to_string(path.join("site/b/c")).unwrap(), "22");
    let meta = fs::metadata(path.join("site/a")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o400);
    for name in ["site", "site/a", "site/b/c", "site/empty"] {
        assert_eq!(fs::metadata(path.join(name)).unwrap().modified().unwrap(), UNIX_EPOCH + TIME, "{name}");
        // They were read above, and are read here.
        let _read = fs::read_dir(path.join(name)).map(Iterator::count);
        assert_eq!(fs::metadata(path.join(name)).unwrap().accessed().unwrap(), UNIX_EPOCH + ACCESSED, "{name}");
    }
    // In any order, by any archive: the digest is of names and bytes.
    let other = [file("site/b/c", "22"), (EntryType::Directory, b"site/empty", b""), file("site/a", "1")];
    assert_eq!(place.put(&archive(&other)), digest);
    for other in [[file("site/a", "1"), file("site/b/c", "23")], [file("site/a", "1"), file("site/b/d", "22")]] {
        assert_ne!(place.unpack(&archive(&other)).unwrap().digest(), digest);
    }
    let bundle = place.unpack(&archive(&[file("site/a", "1"), file("sit", "22")])).unwrap();
    assert_eq!((bundle.size(), bundle.outside(&["site"]), bundle.outside(&["sit"])), ((2, 3), Some("sit"), Some("sit")));
    assert!(bundle.has_folder("site") && !bundle.has_folder("sit") && !bundle.has_folder("site/a"));
    drop(bundle);
    assert_eq!(place.staging(), 0);
}

#[test]
fn what_leads_elsewhere_is_refused_and_nothing_is_left() {
    let place = Place::new(1 << 30);
    let victim = place.temp.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let (absolute, up) = (victim.to_str().unwrap().to_owned(), "../../victim".to_owned());
    let paths = ["/etc/x", "../x", "a/../../x", "a/..", "..", "a//b", "a/./b", "", ".", "a/", "//x", "./../x", &absolute, &up];
    for path in paths {
        let refused = place.unpack(&archive(&[file(path, "x")])).unwrap_err();
        assert!(matches!(refused, BundleError::Bad(_)), "{path}: {refused}");
        // As a long name of both kinds too.
        let long = [path.as_bytes(), b"\0"].concat();
        let named = archive(&[(EntryType::GNULongName, b"././@LongLink", &long), file("fine", "x")]);
        assert!(matches!(place.unpack(&named), Err(BundleError::Bad(_))), "{path}");
        let record = format!("path={path}\n");
        let record = format!("{} {record}", record.len() + 3);
        let named = archive(&[(EntryType::XHeader, b"pax", record.as_bytes()), file("fine", "x")]);
        assert!(matches!(place.unpack(&named), Err(BundleError::Bad(_))), "{path}");
    }
    for kind in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse] {
        let mut bytes = archive(&[(kind, b"a", b"")]);
        bytes[157..163].copy_from_slice(b"../../");
        let mut header = Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&bytes[..512]);
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        assert!(place.unpack(&bytes).unwrap_err().to_string().contains("neither a file nor a folder"), "{kind:?}");
    }
    for twice in [[file("a", "1"), file("a", "2")], [file("a", "1"), file("a/b", "2")], [file("a/b", "1"), file("a", "2")]] {
        assert!(matches!(place.unpack(&archive(&twice)), Err(BundleError::Bad(_))));
    }
    assert!(matches!(place.unpack(&archive(&[(EntryType::Regular, b"a\xff", b"")])), Err(BundleError::Bad(_))));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!((place.staging(), place.artifacts.used_bytes()), (0, 0));
}

#[test]
fn damaged_archives_are_refused_wherever_they_end() {
    let place = Place::new(1 << 30);
    let whole = archive(&[file("a", "one"), file("b", "two")]);
    for end in (1..1024).step_by(37) {
        // Without a body, or in the middle of a header.
        assert!(place.unpack(&whole[..end]).is_err() || end == 512 * 2, "{end}");
    }
    for at in (0..512).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        assert!(matches!(place.unpack(&damaged), Err(BundleError::Bad(_))), "{at}");
    }
    assert!(matches!(place.unpack(&[0x1f; 4096]), Err(BundleError::Bad(_))), "a compressed one, say");
    assert_eq!(place.staging(), 0);
}

#[test]
fn every_bound_on_both_sides() {
    let place = Place::new(1 << 30);
    let limits = BundleLimits { bytes_max: 10, entries_max: 4 };
    let unpack = |entries: &[(EntryType, &[u8], &[u8])]| place.artifacts.unpack(&archive(entries)[..], limits);
    assert!(unpack(&[file("a", "12345"), file("b", "67890")]).is_ok());
    assert!(matches!(unpack(&[file("a", "12345"), file("b", "678901")]), Err(BundleError::TooLarge(_))));
    assert!(unpack(&[file("a/b/c", ""), file("d", "")]).is_ok());
    assert!(matches!(unpack(&[file("a/b/c", ""), file("d", ""), file("e", "")]), Err(BundleError::TooMany(4))));
    // What a header says is not believed: nothing of that size is made room for.
    let mut huge = archive(&[file("a", "")]);
    let mut header = Header::new_gnu();
    header.as_mut_bytes().copy_from_slice(&huge[..512]);
    header.set_size(u64::MAX >> 1);
    header.set_cksum();
    huge[..512].copy_from_slice(header.as_bytes());
    assert!(matches!(place.unpack(&huge), Err(BundleError::TooLarge(_))));
    // A long name is read within a bound of its own.
    let name = |len: u64| {
        let long = vec![b'a'; usize::try_from(len).unwrap()];
        place.unpack(&archive(&[(EntryType::GNULongName, b"l", &long), file("b", "")])).unwrap_err().to_string()
    };
    assert!(name(EXTENSION_LEN_MAX).contains("too long") && name(EXTENSION_LEN_MAX + 1).contains("a header has more than"));
    let deep = |folders: usize| place.unpack(&archive(&[file(&vec!["a"; folders + 1].join("/"), "")]));
    assert!(deep(BUNDLE_DEPTH_MAX).is_ok() && deep(BUNDLE_DEPTH_MAX + 1).is_err());
}

#[test]
fn bytes_are_charged_and_given_back() {
    let place = Place::new(3 * ENTRY_BYTES);
    let digest = place.put(&archive(&[file("a", "x"), file("b", "y")]));
    assert_eq!(place.artifacts.used_bytes(), 2 * ENTRY_BYTES + 2);
    assert_eq!(disk_bytes(&place.path(digest)).unwrap(), 2 * ENTRY_BYTES + 2);
    let more = place.unpack(&archive(&[file("c", "x")]));
    assert!(matches!(more, Err(BundleError::Artifact(ArtifactError::StorageFull { .. }))));
    let none = || Ok::<_, ArtifactError>(HashSet::new());
    // A pin, as an invocation that may read it has one, keeps it.
    let pin = place.artifacts.pin([FileId::bundle(&TenantId::default(), digest)]);
    assert_eq!(place.artifacts.collect(none).unwrap().files, 0);
    drop(pin);
    let Place { temp, dir, artifacts } = place;
    drop(artifacts);
    let artifacts = Artifacts::open(&dir, MacKey::new([7; 32]), 1 << 30).unwrap();
    assert_eq!(artifacts.used_bytes(), 2 * ENTRY_BYTES + 2, "counted anew at a start");
    assert_eq!(artifacts.collect(none).unwrap().bytes, 2 * ENTRY_BYTES + 2);
    assert_eq!((artifacts.used_bytes(), fs::read_dir(temp.path().join("data/staging")).unwrap().count()), (0, 0));
    assert!(!artifacts.path(&FileId::bundle(&TenantId::default(), digest)).exists());
}

#[test]
fn one_that_is_damaged_is_put_there_anew() {
    let place = Place::new(1 << 30);
    let bytes = archive(&[file("a/b", "good"), file("c", "")]);
    let digest = place.put(&bytes);
    let used = place.artifacts.used_bytes();
    let target = place.path(digest);
    let stamp = || fs::metadata(&target).unwrap().ino();
    let before = stamp();
    assert_eq!(place.put(&bytes), digest);
    assert_eq!(stamp(), before, "what is whole stays where it is");
    for damage in [0, 1, 2] {
        let path = target.join("a/b");
        match damage {
            0 => fs::remove_file(&path).unwrap(),
            1 => {
                fs::remove_file(&path).unwrap();
                fs::write(&path, "evil").unwrap();
            }
            _ => fs::write(target.join("more"), "").unwrap(),
        }
        assert_eq!(place.put(&bytes), digest);
        assert_eq!(fs::read_to_string(&path).unwrap(), "good");
        assert!(!target.join("more").exists());
    }
    assert_eq!(place.staging(), 0);
    assert_eq!(place.artifacts.used_bytes(), used);
}

#[test]
fn what_a_kill_leaves_in_staging_is_gone_at_the_next_start() {
    let place = Place::new(1 << 30);
    std::mem::forget(place.unpack(&archive(&[file("a/b", "x")])).unwrap());
    assert_eq!(place.staging(), 1);
    let Place { temp, dir, .. } = place;
    Artifacts::open(&dir, MacKey::new([7; 32]), 1 << 30).unwrap();
    assert_eq!(fs::read_dir(temp.path().join("data/staging")).unwrap().count(), 0);
}
