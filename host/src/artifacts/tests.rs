use super::*;
use std::collections::HashSet;
use std::fs;
use std::io::Read as _;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

struct Node {
    artifacts: Artifacts,
    dir: DataDir,
    _temp: tempfile::TempDir,
}

fn node(bytes_max: u64) -> Node {
    let temp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(temp.path()).unwrap();
    let artifacts = Artifacts::open(&dir, dir.mac_key(None).unwrap(), bytes_max).unwrap();
    Node { artifacts, dir, _temp: temp }
}

impl Node {
    fn reopen(&self, key: MacKey) -> Artifacts {
        Artifacts::open(&self.dir, key, u64::MAX).unwrap()
    }

    fn staging_len(&self) -> usize {
        fs::read_dir(self.dir.path().join("staging")).unwrap().count()
    }
}

fn tenant() -> TenantId {
    TenantId::default()
}

fn key(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn put_wasm(artifacts: &Artifacts, bytes: &[u8]) -> Result<(FileId, Pin), ArtifactError> {
    let mut upload = artifacts.create_upload()?;
    for chunk in bytes.chunks(7) {
        upload.write(chunk)?;
    }
    let uploaded = upload.finish()?;
    assert_eq!((uploaded.digest(), uploaded.bytes()), (Digest::of(bytes), bytes.len() as u64));
    assert_eq!(fs::read(uploaded.path()).unwrap(), bytes);
    let id = FileId::wasm(&tenant(), uploaded.digest());
    let pin = artifacts.pin([id.clone()]);
    artifacts.put_wasm(&tenant(), uploaded)?;
    Ok((id, pin))
}

fn put_artifact(artifacts: &Artifacts, name: &str, code: &[u8]) -> Result<(FileId, Pin), ArtifactError> {
    let staged = artifacts.stage_build().native;
    fs::write(staged.path(), code).unwrap();
    let id = FileId::artifact(&tenant(), key(name));
    let pin = artifacts.pin([id.clone()]);
    let len = artifacts.put_artifact(&tenant(), key(name), staged, Contents::default())?;
    assert_eq!(len, code.len() as u64 + TRAILER_LEN);
    Ok((id, pin))
}

fn put_snapshot(artifacts: &Artifacts, name: &str, bytes: &[u8]) -> Result<(FileId, Pin), ArtifactError> {
    let staged = artifacts.stage_build().snapshot;
    fs::write(staged.path(), bytes).unwrap();
    let id = FileId::snapshot(&tenant(), key(name));
    let pin = artifacts.pin([id.clone()]);
    let len = artifacts.put_snapshot(&tenant(), key(name), staged, Vec::new())?;
    assert_eq!(len, bytes.len() as u64 + TRAILER_LEN);
    Ok((id, pin))
}

fn collect(artifacts: &Artifacts, referenced: &[&FileId]) -> Collected {
    let set: HashSet<FileId> = referenced.iter().map(|id| (*id).clone()).collect();
    artifacts.collect::<ArtifactError>(|| Ok(set)).unwrap()
}

#[test]
fn what_is_kept_with_a_snapshot_comes_back_and_is_no_part_of_it() {
    let node = node(u64::MAX);
    let artifacts = &node.artifacts;
    let staged = artifacts.stage_build().snapshot;
    fs::write(staged.path(), b"module").unwrap();
    let _pin = artifacts.pin([FileId::snapshot(&tenant(), key("a"))]);
    let len = artifacts.put_snapshot(&tenant(), key("a"), staged, b"kept".to_vec()).unwrap();
    let snapshot = artifacts.open_snapshot(&tenant(), key("a")).unwrap();
    assert_eq!((snapshot.meta.as_slice(), snapshot.payload_len, len), (&b"kept"[..], 6, 6 + 4 + TRAILER_LEN));
}

#[test]
fn a_folder_in_the_place_of_a_file_is_damage() {
    let node = node(u64::MAX);
    let (artifact, _pin) = put_artifact(&node.artifacts, "a", b"code").unwrap();
    let path = node.artifacts.path(&artifact);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let verify = || node.artifacts.verify_artifact(&tenant(), key("a"));
    assert!(matches!(verify(), Err(ArtifactError::Corrupt { .. })));
    // Nor does a pipe keep whoever opens it.
    fs::remove_dir(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0)
        .unwrap();
    assert!(matches!(verify(), Err(ArtifactError::Corrupt { .. })));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    drop(put_artifact(&node.artifacts, "a", b"code").unwrap());
    assert!(verify().is_ok());
    // What somebody put into it is left to them.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("theirs"), b"x").unwrap();
    let error = put_artifact(&node.artifacts, "a", b"code").unwrap_err().to_string();
    assert!(error.contains("a folder in the place of a file"), "{error}");
    assert_eq!(fs::read(path.join("theirs")).unwrap(), b"x");
}

#[test]
fn missing_and_damaged_files_are_told_apart() {
    let node = node(u64::MAX);
    let artifacts = &node.artifacts;
    let verify = || artifacts.verify_artifact(&tenant(), key("a"));
    let open = || artifacts.open_snapshot(&tenant(), key("a"));
    assert!(matches!(verify(), Err(ArtifactError::Missing { .. })));
    assert!(matches!(open(), Err(ArtifactError::Missing { .. })));
    assert!(matches!(artifacts.open_wasm(&tenant(), Digest::of(b"w")), Err(ArtifactError::Missing { .. })));

    let (artifact, _pin) = put_artifact(artifacts, "a", b"code").unwrap();
    let (snapshot, _pin) = put_snapshot(artifacts, "a", b"module").unwrap();
    let (wasm, _pin) = put_wasm(artifacts, b"w").unwrap();
    for id in [&artifact, &snapshot, &wasm] {
        let mut file = OpenOptions::new().append(true).open(artifacts.path(id)).unwrap();
        file.write_all(b"!").unwrap();
    }
    assert!(matches!(verify(), Err(ArtifactError::Corrupt { .. })));
    assert!(matches!(open(), Err(ArtifactError::Corrupt { .. })));
    assert!(matches!(artifacts.open_wasm(&tenant(), Digest::of(b"w")), Err(ArtifactError::Corrupt { .. })));
    for id in [&artifact, &snapshot, &wasm] {
        fs::write(artifacts.path(id), b"").unwrap();
    }
    assert!(matches!(verify(), Err(ArtifactError::Corrupt { .. })));
    assert!(matches!(open(), Err(ArtifactError::Corrupt { .. })));
    assert!(matches!(artifacts.open_wasm(&tenant(), Digest::of(b"w")), Err(ArtifactError::Corrupt { .. })));

    // Storing again heals all.
    let _pins = (put_artifact(artifacts, "a", b"code").unwrap(), put_wasm(artifacts, b"w").unwrap());
    let _pin = put_snapshot(artifacts, "a", b"module").unwrap();
    assert!(verify().is_ok() && open().is_ok() && artifacts.open_wasm(&tenant(), Digest::of(b"w")).is_ok());
    fs::remove_file(artifacts.path(&artifact)).unwrap();
    fs::create_dir(artifacts.path(&artifact)).unwrap();
    assert!(matches!(verify(), Err(ArtifactError::Corrupt { .. })));
}

#[test]
fn another_tenants_or_another_keys_file_under_the_name_is_found() {
    let node = node(u64::MAX);
    let (id, _pin) = put_artifact(&node.artifacts, "a", b"code").unwrap();
    let evil: TenantId = "evil".parse().unwrap();
    let copy = |tenant: &TenantId, name: &str| {
        let path = node.artifacts.path(&FileId::artifact(tenant, key(name)));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(node.artifacts.path(&id), path).unwrap();
        node.artifacts.verify_artifact(tenant, key(name)).unwrap_err()
    };
    assert!(matches!(copy(&evil, "a"), ArtifactError::Corrupt { .. }));
    assert!(matches!(copy(&tenant(), "b"), ArtifactError::Corrupt { .. }));
    let other = node.reopen(MacKey::new([1; 32]));
    assert!(matches!(other.verify_artifact(&tenant(), key("a")), Err(ArtifactError::Corrupt { .. })));
    assert!(node.artifacts.verify_artifact(&tenant(), key("a")).is_ok());
}

#[test]
fn a_verified_artifact_is_open_at_its_code() {
    let node = node(u64::MAX);
    let code = vec![0x7f; 200_000];
    let _pin = put_artifact(&node.artifacts, "a", &code).unwrap();
    let mut verified = node.artifacts.verify_artifact(&tenant(), key("a")).unwrap();
    let mut found = Vec::new();
    verified.file.read_to_end(&mut found).unwrap();
    assert_eq!(verified.payload_len, 200_000);
    assert_eq!(&found[..200_000], &code);
    let _pin = put_wasm(&node.artifacts, b"module").unwrap();
    let mut found = Vec::new();
    node.artifacts.open_wasm(&tenant(), Digest::of(b"module")).unwrap().read_to_end(&mut found).unwrap();
    assert_eq!(found, b"module");
}

#[test]
fn what_a_build_left_and_cannot_be_is_refused() {
    let node = node(u64::MAX);
    let artifacts = &node.artifacts;
    fn unfit<T>(result: Result<T, ArtifactError>) -> bool {
        matches!(result, Err(ArtifactError::Unfit { .. }))
    }
    assert!(unfit(put_artifact(artifacts, "a", b"")) && unfit(put_snapshot(artifacts, "a", b"")));
    let _pin = artifacts.pin([FileId::artifact(&tenant(), key("a")), FileId::snapshot(&tenant(), key("a"))]);
    let put = |code: Option<&[u8]>, image: Range<u64>, meta: usize| {
        let staged = artifacts.stage_build().native;
        if let Some(code) = code {
            fs::write(staged.path(), code).unwrap();
        }
        artifacts.put_artifact(&tenant(), key("a"), staged, Contents { image, meta: vec![1; meta] }).map(drop)
    };
    assert!(unfit(put(None, 0..0, 0)));
    assert!(unfit(artifacts.put_snapshot(&tenant(), key("a"), artifacts.stage_build().snapshot, Vec::new())));
    let code = Some(&b"code"[..]);
    #[expect(clippy::reversed_empty_ranges, reason = "a build may say anything")]
    for image in [0..5, 5..5, 3..2, u64::MAX..u64::MAX] {
        assert!(unfit(put(code, image, 0)));
    }
    assert!(unfit(put(code, 0..0, META_LEN_MAX + 1)));
    assert_eq!((artifacts.used_bytes(), node.staging_len()), (0, 0));
    for image in [0..4, 4..4, 1..3] {
        put(code, image, META_LEN_MAX).unwrap();
        let verified = artifacts.verify_artifact(&tenant(), key("a")).unwrap();
        assert_eq!((verified.payload_len, verified.meta), (4, vec![1; META_LEN_MAX]));
    }
}

#[test]
fn the_ceiling_on_both_sides() {
    let node = node(200);
    let artifacts = &node.artifacts;
    let full = |result: Result<(FileId, Pin), ArtifactError>| matches!(result, Err(ArtifactError::StorageFull { .. }));
    assert!(full(put_wasm(artifacts, &[1; 201])));
    assert_eq!((artifacts.used_bytes(), node.staging_len()), (0, 0), "a refused upload leaves nothing");
    let _first = put_wasm(artifacts, &[1; 200]).unwrap();
    assert_eq!(artifacts.used_bytes(), 200);
    assert!(matches!(artifacts.create_upload(), Err(ArtifactError::StorageFull { .. })));
    assert!(full(put_artifact(artifacts, "a", b"x")));
    drop(_first);
    collect(artifacts, &[]);
    let room = 200 - usize::try_from(TRAILER_LEN).unwrap();
    for put in [put_artifact, put_snapshot] {
        assert!(full(put(artifacts, "a", &vec![1; room + 1])));
        assert_eq!((artifacts.used_bytes(), node.staging_len()), (0, 0), "and so does a refused build");
        assert!(put(artifacts, "a", &vec![1; room]).is_ok());
        assert_eq!((artifacts.used_bytes(), node.staging_len()), (200, 0));
        let fault = artifacts.create_upload().unwrap_err().fault();
        assert_eq!(fault.code, crate::fault::Code::StorageFull);
        collect(artifacts, &[]);
    }
}

const MIB: u64 = 1 << 20;

/// Puts native code there whose image is a hole but for one byte in each of `data`, and returns its path.
fn put_sparse(artifacts: &Artifacts, image: Range<u64>, data: &[u64]) -> Result<(PathBuf, Pin), ArtifactError> {
    let staged = artifacts.stage_build().native;
    let file = File::create(staged.path()).unwrap();
    file.set_len(image.end).unwrap();
    for at in data.iter().chain([&0]) {
        file.write_all_at(b"x", *at).unwrap();
    }
    let id = FileId::artifact(&tenant(), key("a"));
    let pin = artifacts.pin([id.clone()]);
    let len = image.end;
    let put = artifacts.put_artifact(&tenant(), key("a"), staged, Contents { image, meta: vec![] })?;
    assert_eq!(put, len + TRAILER_LEN);
    Ok((artifacts.path(&id), pin))
}

#[test]
fn holes_take_no_room() {
    let node = node(MIB);
    let artifacts = &node.artifacts;
    let (path, _pin) = put_sparse(artifacts, 4096..64 * MIB, &[32 * MIB]).unwrap();
    let used = artifacts.used_bytes();
    assert!((1..=MIB / 4).contains(&used), "{used}");
    assert_eq!(Artifacts::open(&node.dir, MacKey::new([0; 32]), MIB).unwrap().used_bytes(), used);
    assert!(artifacts.verify_artifact(&tenant(), key("a")).is_ok());
    // What is allocated counts, and is refused when it is too much.
    let data: Vec<u64> = (1..=256).map(|page| page * 4096).collect();
    assert!(matches!(put_sparse(artifacts, 4096..64 * MIB, &data), Err(ArtifactError::StorageFull { .. })));
    assert_eq!((artifacts.used_bytes(), node.staging_len()), (used, 0));
    drop(_pin);
    assert_eq!(collect(artifacts, &[]), Collected { files: 1, bytes: used });
    assert_eq!((artifacts.used_bytes(), path.exists()), (0, false));
}

/// Changes one byte of a file, and its times with it, however coarse they are.
fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let before = Stamp::of(&file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    while Stamp::of(&file).unwrap() == before {
        file.write_all_at(&[!byte[0]], at).unwrap();
    }
}

#[test]
fn a_large_image_is_checked_once_and_again_when_the_file_was_changed() {
    let node = node(u64::MAX);
    let image = 4096..3 * MIB;
    let good = |artifacts: &Artifacts| artifacts.verify_artifact(&tenant(), key("a")).is_ok();
    // The deploy made the MAC, so it need not read the image again; a process that comes later does, once.
    let later = node.reopen(node.dir.mac_key(None).unwrap());
    let (path, _pin) = put_sparse(&node.artifacts, image, &[2 * MIB]).unwrap();
    let is_remembered = |artifacts: &Artifacts| {
        let mut file = File::open(&path).unwrap();
        let mac_key = node.dir.mac_key(None).unwrap();
        let sealed = seal::open(&mut file, &mac_key, Label { magic: CODE, tenant: &tenant(), key: key("a") }).unwrap();
        artifacts.shared.checked.contains(Stamp::of(&file).unwrap(), &sealed.image_mac)
    };
    assert!(is_remembered(&node.artifacts) && !is_remembered(&later));
    assert!(good(&node.artifacts) && good(&later) && is_remembered(&later));

    for at in [2 * MIB, 4096, 3 * MIB - 1] {
        flip(&path, at);
        assert!(!good(&node.artifacts) && !good(&later), "a changed byte at {at}");
        assert!(!is_remembered(&later));
        flip(&path, at);
        assert!(good(&node.artifacts) && good(&later), "as it was");
    }
    // The rest is checked at every load, whatever is remembered.
    flip(&path, 0);
    assert!(!good(&node.artifacts));
    // Another file under the name is another file.
    let copy = path.with_extension("copy");
    fs::copy(&path, &copy).unwrap();
    flip(&copy, 0);
    flip(&copy, 2 * MIB);
    fs::rename(&copy, &path).unwrap();
    assert!(!good(&node.artifacts));
}

#[test]
fn a_small_image_is_checked_at_every_load() {
    let node = node(u64::MAX);
    let (path, _pin) = put_sparse(&node.artifacts, 4096..4096 + MIB, &[8192]).unwrap();
    assert!(node.artifacts.verify_artifact(&tenant(), key("a")).is_ok());
    let meta = fs::metadata(&path).unwrap();
    flip(&path, 8192);
    // Even if its times say that nothing happened.
    File::open(&path).unwrap().set_modified(meta.modified().unwrap()).unwrap();
    assert!(matches!(node.artifacts.verify_artifact(&tenant(), key("a")), Err(ArtifactError::Corrupt { .. })));
}

#[test]
fn the_engine_of_all_artifacts_is_remembered() {
    let node = node(u64::MAX);
    let engine = || node.artifacts.engine();
    assert_eq!(engine(), None);
    node.artifacts.set_engine(Some(key("engine"))).unwrap();
    assert_eq!(engine(), Some(key("engine")));
    assert_eq!(collect(&node.artifacts, &[]).files, 0);
    assert_eq!(node.reopen(MacKey::new([0; 32])).engine(), Some(key("engine")));
    node.artifacts.set_engine(None).unwrap();
    assert_eq!(engine(), None);
    fs::write(node.dir.path().join("engine"), [0xff; 99]).unwrap();
    assert_eq!(engine(), None);
}

#[test]
fn used_bytes_stay_exact() {
    let node = node(u64::MAX);
    let artifacts = &node.artifacts;
    let mut upload = artifacts.create_upload().unwrap();
    upload.write(b"12345").unwrap();
    assert_eq!((artifacts.used_bytes(), upload.bytes()), (5, 5));
    drop(upload.finish().unwrap());
    assert_eq!((artifacts.used_bytes(), node.staging_len()), (0, 0));
    let (a, _a) = put_wasm(artifacts, b"12345").unwrap();
    let _same = put_wasm(artifacts, b"12345").unwrap();
    assert_eq!(artifacts.used_bytes(), 5);
    let (b, _b) = put_artifact(artifacts, "a", b"long code").unwrap();
    let _shorter = put_artifact(artifacts, "a", b"code").unwrap();
    let (c, _c) = put_snapshot(artifacts, "a", b"module").unwrap();
    let expected = 5 + 4 + TRAILER_LEN + 6 + TRAILER_LEN;
    assert_eq!(artifacts.used_bytes(), expected);
    fs::write(node.dir.path().join("wasm/default/README"), "not ours").unwrap();
    fs::write(node.dir.path().join("staging/left"), "over").unwrap();
    assert_eq!(node.reopen(MacKey::new([0; 32])).used_bytes(), expected);
    assert_eq!(node.staging_len(), 0, "staging is emptied at start");
    drop((_a, _same, _b, _shorter, _c));
    assert_eq!(collect(artifacts, &[&a, &b, &c]), Collected::default());
    assert_eq!(collect(artifacts, &[]), Collected { files: 3, bytes: expected });
    assert_eq!(artifacts.used_bytes(), 0);
    assert!(node.dir.path().join("wasm/default/README").exists());
}

#[test]
fn the_collector_takes_only_what_is_neither_referenced_nor_pinned() {
    let node = node(u64::MAX);
    let artifacts = &node.artifacts;
    let (kept, _) = put_wasm(artifacts, b"kept").unwrap();
    let (pinned, pin) = put_artifact(artifacts, "pinned", b"code").unwrap();
    let second_pin = artifacts.pin([pinned.clone()]);
    let (lost, _) = put_artifact(artifacts, "lost", b"code").unwrap();
    let (snapshot, _) = put_snapshot(artifacts, "kept", b"module").unwrap();
    let (lost_snapshot, _) = put_snapshot(artifacts, "lost", b"module").unwrap();
    let upload = artifacts.create_upload().unwrap();
    let staged = artifacts.stage_build().native;
    fs::write(staged.path(), "half").unwrap();
    fs::write(node.dir.path().join("staging/upload-999"), "stale").unwrap();
    let mapped = node.artifacts.verify_artifact(&tenant(), key("lost")).unwrap();

    let bytes = 4 + TRAILER_LEN + 6 + TRAILER_LEN + 5;
    assert_eq!(collect(artifacts, &[&kept, &snapshot]), Collected { files: 3, bytes });
    assert!(artifacts.path(&snapshot).exists() && !artifacts.path(&lost_snapshot).exists());
    assert!(artifacts.path(&kept).exists() && artifacts.path(&pinned).exists() && !artifacts.path(&lost).exists());
    assert!(staged.path().exists());
    assert_eq!(node.staging_len(), 2);
    assert_eq!(mapped.file.metadata().unwrap().len(), 4 + TRAILER_LEN, "an open file outlives its name");
    drop(pin);
    assert_eq!(collect(artifacts, &[&kept, &snapshot]).files, 0, "the second pin still holds");
    drop((second_pin, upload, staged));
    assert_eq!(collect(artifacts, &[&kept, &snapshot]).files, 1);
}

#[test]
fn a_deploy_that_commits_while_a_collection_runs_keeps_its_files() {
    let node = node(u64::MAX);
    let artifacts = &node.artifacts;
    let (id, pin) = put_wasm(artifacts, b"new").unwrap();
    let collected = artifacts.collect::<ArtifactError>(|| {
        // The registry is read just before the deploy commits; then the deploy ends and unpins.
        let before_commit = HashSet::new();
        drop(pin);
        Ok(before_commit)
    });
    assert_eq!(collected.unwrap().files, 0);
    assert!(artifacts.path(&id).exists());
    assert_eq!(collect(artifacts, &[]).files, 1, "the next round no longer remembers");
}

#[test]
fn a_collection_of_candidates_leaves_the_rest_and_tells_what_is_pinned() {
    let node = node(u64::MAX);
    let artifacts = &node.artifacts;
    let [(kept, _), (lost, _), (other, _)] = [b"kept", b"lost", b"rest"].map(|bytes| put_wasm(artifacts, bytes).unwrap());
    let (pinned, pin) = put_artifact(artifacts, "pinned", b"code").unwrap();
    let (late, late_pin) = put_artifact(artifacts, "late", b"code").unwrap();
    let gone = FileId::artifact(&tenant(), key("gone"));
    let candidates: HashSet<FileId> = [&kept, &lost, &pinned, &late, &gone].map(Clone::clone).into();
    let collected = artifacts.collect_among::<ArtifactError>(&candidates, || {
        drop(late_pin);
        Ok([kept.clone()].into())
    });
    let (collected, mut stayed) = collected.unwrap();
    stayed.sort();
    let mut expected = [pinned.clone(), late.clone()];
    expected.sort();
    assert_eq!((collected, stayed.as_slice()), (Collected { files: 1, bytes: 4 }, expected.as_slice()));
    assert!(artifacts.path(&kept).exists() && artifacts.path(&other).exists() && !artifacts.path(&lost).exists());
    drop(pin);
    let again = artifacts.collect_among::<ArtifactError>(&stayed.into_iter().collect(), || Ok(HashSet::new()));
    assert_eq!(again.unwrap().0.files, 2);
}

#[test]
fn a_collection_whose_registry_fails_removes_nothing() {
    let node = node(u64::MAX);
    let (id, pin) = put_wasm(&node.artifacts, b"new").unwrap();
    drop(pin);
    let error = || ArtifactError::StorageFull { detail: String::new() };
    assert!(node.artifacts.collect::<ArtifactError>(|| Err(error())).is_err());
    assert!(node.artifacts.path(&id).exists());
    assert_eq!(collect(&node.artifacts, &[]).files, 1, "and the next one can run");
}

#[test]
fn deploys_and_collections_side_by_side_lose_nothing() {
    let node = node(u64::MAX);
    let registry: Mutex<HashSet<FileId>> = Mutex::default();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let deploys: Vec<_> = (0..2u8)
            .map(|worker| {
                let (node, registry) = (&node, &registry);
                scope.spawn(move || {
                    for n in 0..60u8 {
                        // The same few files again and again, committed and removed, so that both sides collide.
                        let (id, pin) = put_wasm(&node.artifacts, &[n % 3]).unwrap();
                        registry.lock().unwrap().insert(id.clone());
                        drop(pin);
                        let mut committed = registry.lock().unwrap();
                        assert!(node.artifacts.path(&id).exists() || !committed.contains(&id));
                        if (n + worker) % 4 == 0 {
                            committed.remove(&id);
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                node.artifacts.collect::<ArtifactError>(|| Ok(registry.lock().unwrap().clone())).unwrap();
            }
        });
        deploys.into_iter().for_each(|deploy| deploy.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    let registry = registry.into_inner().unwrap();
    assert!(registry.iter().all(|id| node.artifacts.path(id).exists()));
    node.artifacts.collect::<ArtifactError>(|| Ok(registry.clone())).unwrap();
    assert_eq!(node.artifacts.used_bytes(), registry.len() as u64);
}

#[test]
fn uploads_can_move_between_threads() {
    fn send<T: Send>() {}
    send::<Upload>();
    send::<Uploaded>();
    send::<StagedPath>();
    send::<Pin>();
}
