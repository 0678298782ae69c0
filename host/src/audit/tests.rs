//! The chain: what it finds, and that it goes on over files, restarts and kills.

use super::*;

fn members(text: &str) -> Map<String, Value> {
    Map::from_iter([("path".to_owned(), text.into())])
}

fn filled(dir: &Path) -> Audit {
    let audit = Audit::open_with(dir, 600, 100).unwrap();
    for number in 0..20 {
        assert_eq!(audit.append("begin", members(&format!("/{number}"))).unwrap(), number + 1);
    }
    audit
}

#[test]
fn a_chain_goes_on_over_files_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let audit = filled(dir.path());
    let head = audit.head();
    drop(audit);
    assert!(files::list(&dir.path().join(FOLDER)).unwrap().len() > 3);
    let audit = Audit::open_with(dir.path(), 600, 100).unwrap();
    assert_eq!(audit.head(), head);
    assert_eq!(audit.append("end", members("x")).unwrap(), 21);
    let verified = verify(dir.path()).unwrap().unwrap();
    assert_eq!(verified, Verified { first: 1, last: 21, hash: audit.head().1 });
    let lines = audit.lines(17, 3).unwrap();
    let numbers: Vec<_> = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64()).collect();
    assert_eq!(numbers, [Some(18), Some(19), Some(20)]);
    assert_eq!((audit.lines(0, 100).unwrap().len(), audit.lines(21, 100).unwrap().len()), (21, 0));
}

#[test]
fn every_change_of_a_line_is_found() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path()));
    let files = files::list(&dir.path().join(FOLDER)).unwrap();
    for (_, path) in &files[..files.len() - 1] {
        let good = std::fs::read(path).unwrap();
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(path, &bad).unwrap();
            assert!(verify(dir.path()).unwrap().is_err(), "byte {at} of {}", path.display());
        }
        // A line that is taken out, and a file.
        let rest = good.iter().position(|b| *b == b'\n').unwrap() + 1;
        std::fs::write(path, &good[rest..]).unwrap();
        assert!(verify(dir.path()).unwrap().is_err());
        std::fs::write(path, &good).unwrap();
    }
    std::fs::remove_file(&files[1].1).unwrap();
    assert!(verify(dir.path()).unwrap().is_err());
}

#[test]
fn half_a_line_is_cut_off_and_other_damage_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    audit.append("begin", members("/a")).unwrap();
    let head = audit.head();
    drop(audit);
    let (_, path) = files::list(&dir.path().join(FOLDER)).unwrap().pop().unwrap();
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&good[..], b"{\"seq\":2,\"ti"].concat()).unwrap();
    assert_eq!(verify(dir.path()).unwrap().unwrap().last, 1, "somebody may be writing it");
    let audit = Audit::open(dir.path()).unwrap();
    assert_eq!((audit.head(), std::fs::read(&path).unwrap()), (head, good.clone()));
    audit.append("end", members("/a")).unwrap();
    assert_eq!(verify(dir.path()).unwrap().unwrap().last, 2);
    drop(audit);
    std::fs::write(&path, [&good[..], b"{}\n"].concat()).unwrap();
    assert!(matches!(Audit::open(dir.path()), Err(AuditError::Damaged { .. })));
}

#[test]
fn a_file_that_was_begun_and_not_written_has_the_chain_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let audit = filled(dir.path());
    let (last, hash) = audit.head();
    drop(audit);
    drop(End::begin(&dir.path().join(FOLDER), last + 1, hash).unwrap());
    let audit = Audit::open_with(dir.path(), 600, 100).unwrap();
    assert_eq!(audit.head(), (last, hash));
    audit.append("end", members("x")).unwrap();
    assert_eq!(verify(dir.path()).unwrap().unwrap().last, last + 1);
}

#[test]
fn old_files_go_and_long_lines_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open_with(dir.path(), 200, 3).unwrap();
    for number in 0..20 {
        audit.append("begin", members(&number.to_string())).unwrap();
    }
    assert_eq!(files::list(audit.folder()).unwrap().len(), 3);
    let verified = verify(dir.path()).unwrap().unwrap();
    assert!(verified.first > 10 && verified.last == 20, "{verified:?}");
    assert_eq!(audit.lines(0, 100).unwrap().len() as u64, verified.last + 1 - verified.first);
    audit.append("begin", members(&"x".repeat(2 * LINE_LEN_MAX))).unwrap();
    assert!(audit.lines(20, 1).unwrap()[0].len() < LINE_LEN_MAX);
}

#[test]
fn members_do_not_stand_in_for_what_the_log_says_itself() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path()).unwrap();
    audit.append("begin", Map::from_iter([("seq".to_owned(), 99.into()), ("prev".to_owned(), "x".into())])).unwrap();
    assert_eq!(verify(dir.path()).unwrap().unwrap().last, 1);
}
