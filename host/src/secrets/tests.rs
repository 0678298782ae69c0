use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn secret(text: &str) -> SecretValue {
    SecretValue::new(text.as_bytes().to_vec()).unwrap()
}

fn name(text: &str) -> SecretName {
    text.parse().unwrap()
}

fn tenant(text: &str) -> TenantId {
    text.parse().unwrap()
}

fn files(dir: &Path, tenant: &str) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir.join("secrets").join(tenant)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn open(dir: &Path) -> Secrets {
    Secrets::open(dir, &[7; 32], Places::default()).unwrap()
}

fn text(value: Option<SecretValue>) -> Option<String> {
    value.map(|value| String::from_utf8(value.bytes().to_vec()).unwrap())
}

#[test]
fn what_was_put_is_there_after_a_restart_and_nobody_else_s() {
    let dir = tempfile::tempdir().unwrap();
    let (mine, other) = (TenantId::default(), tenant("other"));
    let secrets = open(dir.path());
    assert_eq!(text(secrets.get(&mine, &name("A")).unwrap()), None);
    secrets.put(&mine, &name("A"), &secret("first")).unwrap();
    secrets.put(&mine, &name("A"), &secret("second")).unwrap();
    secrets.put(&mine, &name("B"), &SecretValue::new(vec![0xff; VALUE_LEN_MAX]).unwrap()).unwrap();
    let secrets = open(dir.path());
    assert_eq!(text(secrets.get(&mine, &name("A")).unwrap()).as_deref(), Some("second"));
    assert_eq!(secrets.get(&mine, &name("B")).unwrap().unwrap().bytes().len(), VALUE_LEN_MAX);
    assert_eq!(text(secrets.get(&other, &name("A")).unwrap()), None);
    let listed = secrets.list(&mine).unwrap();
    let shown: Vec<_> = listed.secrets.iter().map(|stored| (stored.name.as_str(), stored.bytes)).collect();
    assert_eq!((shown, listed.damaged), (vec![("A", 6), ("B", VALUE_LEN_MAX)], 0));
    assert!(listed.secrets[0].changed_ms > 1_700_000_000_000);
    assert!(secrets.remove(&mine, &name("A")).unwrap() && !secrets.remove(&mine, &name("A")).unwrap());
    assert!(!secrets.remove(&other, &name("A")).unwrap());
    assert_eq!(text(secrets.get(&mine, &name("A")).unwrap()), None);
    secrets.remove_tenant(&mine).unwrap();
    secrets.remove_tenant(&mine).unwrap();
    assert!(secrets.list(&mine).unwrap().secrets.is_empty());
}

#[test]
fn changes_are_counted_for_whose_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (mine, other) = (TenantId::default(), tenant("other"));
    let secrets = open(dir.path());
    let [of_mine, of_other] = [&mine, &other].map(|of| secrets.changes(of));
    let counts = || (of_mine.count(), of_other.count());
    secrets.put(&other, &name("A"), &secret("1")).unwrap();
    assert_eq!(counts(), (0, 1));
    secrets.put(&mine, &name("A"), &secret("1")).unwrap();
    assert!(secrets.remove(&mine, &name("A")).unwrap() && !secrets.remove(&mine, &name("A")).unwrap());
    assert_eq!(counts(), (2, 1), "nothing was removed the second time");
    secrets.remove_tenant(&other).unwrap();
    assert_eq!(counts(), (2, 2));
    assert_eq!(secrets.changes(&mine).count(), 2);
}

#[test]
fn the_disk_shows_neither_names_nor_values_and_only_to_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = open(dir.path());
    secrets.put(&TenantId::default(), &name("VERY_SPECIAL"), &secret("hunter2hunter2")).unwrap();
    let [file] = &files(dir.path(), "default")[..] else { panic!("one file") };
    let bytes = fs::read(file).unwrap();
    for word in [&b"VERY_SPECIAL"[..], b"hunter2"] {
        assert!(!bytes.windows(word.len()).any(|window| window == word));
    }
    assert!(!file.to_string_lossy().contains("VERY_SPECIAL"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(file), mode(file.parent().unwrap())), (0o600, 0o700));
    // The same again is sealed with another nonce.
    secrets.put(&TenantId::default(), &name("VERY_SPECIAL"), &secret("hunter2hunter2")).unwrap();
    assert_ne!(fs::read(file).unwrap(), bytes);
}

#[test]
fn every_damage_is_found_and_nothing_else_suffers() {
    let dir = tempfile::tempdir().unwrap();
    let (mine, other) = (TenantId::default(), tenant("other"));
    let secrets = open(dir.path());
    secrets.put(&mine, &name("A"), &secret("a")).unwrap();
    let [file] = &files(dir.path(), "default")[..] else { panic!("one file") };
    let good = fs::read(file).unwrap();
    let check = |bytes: &[u8], what: String| {
        fs::write(file, bytes).unwrap();
        assert!(matches!(secrets.get(&mine, &name("A")), Err(SecretError::Damaged { .. })), "{what}");
        assert_eq!(secrets.list(&mine).unwrap(), Listed { secrets: Vec::new(), damaged: 1 }, "{what}");
    };
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        check(&bad, format!("bit {bit}"));
    }
    for len in 0..good.len() {
        check(&good[..len], format!("cut to {len}"));
    }
    check(&[&good[..], b"x"].concat(), "longer".into());
    check(&vec![0; 1 << 20], "much longer".into());
    fs::write(file, &good).unwrap();
    // Of another tenant, or of another name.
    secrets.put(&other, &name("A"), &secret("b")).unwrap();
    secrets.put(&mine, &name("B"), &secret("c")).unwrap();
    let theirs = &files(dir.path(), "other")[0];
    fs::copy(theirs, file).unwrap();
    assert!(secrets.get(&mine, &name("A")).is_err());
    let second = files(dir.path(), "default").into_iter().find(|path| path != file).unwrap();
    fs::copy(&second, file).unwrap();
    assert!(secrets.get(&mine, &name("A")).is_err());
    assert_eq!(text(secrets.get(&mine, &name("B")).unwrap()).as_deref(), Some("c"));
    // With another key its name leads elsewhere.
    let rekeyed = Secrets::open(dir.path(), &[8; 32], Places::default()).unwrap();
    assert_eq!(text(rekeyed.get(&mine, &name("B")).unwrap()), None);
    assert_eq!(rekeyed.list(&mine).unwrap().damaged, 2);
    // What is put again is whole.
    secrets.put(&mine, &name("A"), &secret("d")).unwrap();
    assert_eq!(text(secrets.get(&mine, &name("A")).unwrap()).as_deref(), Some("d"));
}

#[test]
fn what_a_kill_leaves_is_swept_and_counts_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = open(dir.path());
    secrets.put(&TenantId::default(), &name("A"), &secret("a")).unwrap();
    let file = &files(dir.path(), "default")[0];
    fs::write(file.with_extension("new"), "half").unwrap();
    assert_eq!(secrets.list(&TenantId::default()).unwrap().damaged, 0);
    let secrets = open(dir.path());
    assert_eq!(files(dir.path(), "default"), std::slice::from_ref(file));
    assert_eq!(text(secrets.get(&TenantId::default(), &name("A")).unwrap()).as_deref(), Some("a"));
}

#[test]
fn a_tenant_s_number_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = open(dir.path());
    let mine = TenantId::default();
    secrets.put(&mine, &name("S0"), &secret("a")).unwrap();
    let folder = dir.path().join("secrets/default");
    for number in 1..SECRETS_MAX - 1 {
        fs::write(folder.join(Digest::of(&number.to_le_bytes()).hex()), "x").unwrap();
    }
    secrets.put(&mine, &name("LAST"), &secret("a")).unwrap();
    assert!(matches!(secrets.put(&mine, &name("MORE"), &secret("a")), Err(SecretError::TooMany { count: SECRETS_MAX })));
    // One that is there can be changed, and another tenant has its own number.
    secrets.put(&mine, &name("S0"), &secret("b")).unwrap();
    secrets.put(&tenant("other"), &name("MORE"), &secret("a")).unwrap();
    secrets.remove(&mine, &name("S0")).unwrap();
    secrets.put(&mine, &name("MORE"), &secret("a")).unwrap();
}

#[test]
fn places_count_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for folder in ["data", "folder/default", "folder/other", "credentials"] {
        fs::create_dir_all(path(folder)).unwrap();
    }
    let (folder, credentials) = (path("folder"), path("credentials"));
    let places = Places { folder: Some(&folder), credentials: Some(&credentials) };
    let secrets = Secrets::open(&path("data"), &[7; 32], places).unwrap();
    let (mine, other) = (TenantId::default(), tenant("other"));
    let get = |tenant: &TenantId| text(secrets.get(tenant, &name("A")).unwrap());
    assert_eq!(get(&mine), None);
    fs::write(credentials.join("secret.A"), "credential").unwrap();
    assert_eq!((get(&mine).as_deref(), get(&other)), (Some("credential"), None));
    fs::write(credentials.join("secret.other.A"), "theirs").unwrap();
    fs::write(credentials.join("secret.default.A"), "exact").unwrap();
    assert_eq!((get(&mine).as_deref(), get(&other).as_deref()), (Some("exact"), Some("theirs")));
    fs::write(folder.join("default/A"), "folder\n").unwrap();
    assert_eq!((get(&mine).as_deref(), get(&other).as_deref()), (Some("folder\n"), Some("theirs")));
    secrets.put(&mine, &name("A"), &secret("api")).unwrap();
    assert_eq!(get(&mine).as_deref(), Some("api"));
    // A change counts at once.
    secrets.remove(&mine, &name("A")).unwrap();
    fs::write(folder.join("default/A"), "changed").unwrap();
    assert_eq!(get(&mine).as_deref(), Some("changed"));
    assert!(Secrets::open(&path("data"), &[7; 32], Places { folder: Some(&path("none")), credentials: None }).is_err());
}

#[test]
fn a_file_that_cannot_be_used_is_no_absent_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, outside) = (dir.path().join("folder"), dir.path().join("outside"));
    fs::create_dir_all(folder.join("default/DIRECTORY")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("A"), "not yours").unwrap();
    symlink("../../outside/A", folder.join("default/LEADS_OUT")).unwrap();
    symlink(outside.join("A"), folder.join("default/ABSOLUTE")).unwrap();
    symlink("../outside", folder.join("linked")).unwrap();
    fs::create_dir(folder.join("default/..data")).unwrap();
    fs::write(folder.join("default/..data/INSIDE"), "mine").unwrap();
    symlink("..data/INSIDE", folder.join("default/INSIDE")).unwrap();
    fs::write(folder.join("default/EMPTY"), "").unwrap();
    fs::write(folder.join("default/LONGEST"), "x".repeat(VALUE_LEN_MAX)).unwrap();
    fs::write(folder.join("default/TOO_LONG"), "x".repeat(VALUE_LEN_MAX + 1)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, folder.join("default/PIPE"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let secrets = Secrets::open(dir.path(), &[7; 32], Places { folder: Some(&folder), credentials: None }).unwrap();
    let get = |of: &str| secrets.get(&TenantId::default(), &name(of));
    for bad in ["DIRECTORY", "LEADS_OUT", "ABSOLUTE", "EMPTY", "TOO_LONG", "PIPE"] {
        let error = get(bad).unwrap_err();
        assert!(matches!(&error, SecretError::Unusable { place: "the operator's folder", .. }), "{bad}: {error}");
        assert!(!error.to_string().contains('/'), "no path: {error}");
    }
    assert!(secrets.get(&tenant("linked"), &name("A")).is_err());
    assert_eq!(get("LONGEST").unwrap().unwrap().bytes().len(), VALUE_LEN_MAX);
    assert_eq!(text(get("INSIDE").unwrap()).as_deref(), Some("mine"));
    assert_eq!(text(get("MISSING").unwrap()), None);
    assert_eq!(text(secrets.get(&tenant("nobody-s"), &name("A")).unwrap()), None);
}

#[test]
fn a_digest_follows_names_values_and_variables() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = open(dir.path());
    let mine = TenantId::default();
    let grant = |of: &str, env: Option<&str>, init| SecretGrant { name: name(of), env: env.map(Into::into), init };
    let digest = |grants: &[SecretGrant]| secrets.of_init(&mine, grants).unwrap().map(|init| init.digest);
    assert_eq!(digest(&[]), None);
    assert_eq!(digest(&[grant("A", None, false)]), None, "it is not asked for, so it may be missing");
    assert!(matches!(secrets.of_init(&mine, &[grant("A", None, true)]), Err(InitError::Missing(_))));
    secrets.put(&mine, &name("A"), &secret("one")).unwrap();
    secrets.put(&mine, &name("B"), &secret("one")).unwrap();
    let first = digest(&[grant("A", None, true)]).unwrap();
    assert_eq!(digest(&[grant("A", None, true), grant("B", None, false)]), Some(first));
    for other in
        [vec![grant("B", None, true)], vec![grant("A", Some("X"), true)], vec![grant("A", None, true), grant("B", None, true)]]
    {
        assert_ne!(digest(&other), Some(first), "{other:?}");
    }
    secrets.put(&mine, &name("A"), &secret("two")).unwrap();
    assert_ne!(digest(&[grant("A", None, true)]), Some(first));
    secrets.put(&mine, &name("A"), &secret("one")).unwrap();
    assert_eq!(digest(&[grant("A", None, true)]), Some(first));
    let rekeyed = Secrets::open(&dir.path().join("elsewhere"), &[8; 32], Places::default()).unwrap();
    rekeyed.put(&mine, &name("A"), &secret("one")).unwrap();
    assert_ne!(rekeyed.of_init(&mine, &[grant("A", None, true)]).unwrap().unwrap().digest, first);
}
