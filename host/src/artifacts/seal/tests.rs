use std::io::Read;

use super::*;

fn key() -> MacKey {
    MacKey::new([7; 32])
}

fn label<'a>(tenant: &'a TenantId, name: &[u8]) -> Label<'a> {
    Label { magic: CODE, tenant, key: Digest::of(name) }
}

fn sealed(payload: &[u8], image: Range<u64>, meta: &[u8]) -> Vec<u8> {
    sealed_as(VERSION, payload, image, meta)
}

fn sealed_as(version: u32, payload: &[u8], image: Range<u64>, meta: &[u8]) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(payload).unwrap();
    let contents = Contents { image, meta: meta.to_vec() };
    let sealed = seal_as(version, &mut file, &key(), label(&TenantId::default(), b"name"), contents).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, sealed.file_len());
    bytes
}

fn check(mut file: File, key: &MacKey, label: Label<'_>) -> Result<Sealed, &'static str> {
    let result = open(&mut file, key, label).and_then(|sealed| sealed.check_image(&mut file, key).map(|()| sealed));
    result.map_err(|error| match error {
        SealError::Corrupt(what) => what,
        SealError::Io(error) => panic!("{error}"),
    })
}

fn checked(bytes: &[u8], key: &MacKey, tenant: &str, name: &[u8]) -> Result<u64, &'static str> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    check(file, key, label(&tenant.parse().unwrap(), name)).map(|sealed| sealed.payload_len)
}

fn is_good(bytes: &[u8]) -> bool {
    checked(bytes, &key(), "default", b"name").is_ok()
}

#[test]
fn every_flipped_bit_is_found() {
    let payload = b"\x7fELF, the image, and the rest";
    let images = [0..0, 5..17, 0..payload.len() as u64];
    for (version, image) in [2, 3].into_iter().flat_map(|version| images.clone().map(|image| (version, image))) {
        let good = sealed_as(version, payload, image, b"meta");
        assert_eq!(checked(&good, &key(), "default", b"name"), Ok(payload.len() as u64));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_good(&bad), "bit {bit}");
        }
    }
}

#[test]
fn every_truncation_and_any_appended_or_moved_byte_is_found() {
    let good = sealed(b"payload", 2..4, b"meta");
    for len in 0..good.len() {
        assert!(!is_good(&good[..len]), "{len}");
    }
    for garbage in [&b"\0"[..], b"x", &good] {
        assert!(!is_good(&[&good, garbage].concat()));
    }
    for from in 0..good.len() {
        for to in (0..good.len()).filter(|to| good[*to] != good[from]) {
            let mut bad = good.clone();
            let byte = bad.remove(from);
            bad.insert(to, byte);
            assert!(bad == good || !is_good(&bad), "byte {from} at {to}");
        }
    }
    assert!(!is_good(&sealed(b"", 0..0, b"")), "an empty payload is no code");
    assert!(!is_good(&[0; 4096]));
}

#[test]
fn another_tenant_name_key_or_kind_is_found() {
    let good = sealed(b"payload", 0..0, b"");
    assert!(checked(&good, &key(), "default2", b"name").is_err());
    assert!(checked(&good, &key(), "default", b"other").is_err());
    assert!(checked(&good, &MacKey::new([8; 32]), "default", b"name").is_err());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&good).unwrap();
    let tenant = TenantId::default();
    assert!(check(file, &key(), Label { magic: SNAPSHOT, ..label(&tenant, b"name") }).is_err());
    assert_eq!(checked(&good, &key(), "default", b"name"), Ok(7));
}

#[test]
fn parts_that_run_into_each_other_are_told_apart() {
    // The same bytes in a row, divided otherwise between payload, image, meta and tenant.
    let tenants = ["a", "ab"].map(|name| name.parse::<TenantId>().unwrap());
    let mut macs = std::collections::BTreeSet::new();
    for (tenant, payload, meta) in
        [(&tenants[0], &b"xyzm"[..], &b"b"[..]), (&tenants[0], b"xyz", b"mb"), (&tenants[1], b"xyzm", b"")]
    {
        for image in [0..0, 0..1, 1..2, 1..3] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(payload).unwrap();
            let sealed = seal(&mut file, &key(), label(tenant, b"name"), Contents { image, meta: meta.to_vec() }).unwrap();
            let head = sealed.head(CODE);
            macs.insert(sealed.mac(&file, &key(), label(tenant, b"name"), &head).unwrap().to_hex().to_string());
        }
    }
    assert_eq!(macs.len(), 12);
}

#[test]
fn a_file_of_version_2_is_read() {
    // Written by an earlier version of this file: the label in front of the payload under the MAC.
    let meta = b"meta";
    let mut old = b"payload".to_vec();
    old.extend_from_slice(meta);
    let mut image = blake3::Hasher::new_keyed(key().bytes());
    image.update(b"hob image").update(&2u64.to_le_bytes()).update(&4u64.to_le_bytes()).update(&2u64.to_le_bytes()).update(b"yl");
    let mut head = b"HOBCODE\n\x02\0\0\0\x04\0\0\0".to_vec();
    [7, 2, 4].iter().for_each(|number: &u64| head.extend_from_slice(&number.to_le_bytes()));
    head.extend_from_slice(image.finalize().as_bytes());
    let mut rest = blake3::Hasher::new_keyed(key().bytes());
    rest.update(b"hob sealed file").update(&7u64.to_le_bytes()).update(b"default").update(Digest::of(b"name").bytes());
    rest.update(&head).update(meta).update(b"pa").update(b"oad");
    old.extend_from_slice(&head);
    old.extend_from_slice(rest.finalize().as_bytes());
    assert_eq!(old, sealed_as(2, b"payload", 2..4, meta));
    assert_eq!(checked(&old, &key(), "default", b"name"), Ok(7));
    // The one order does not pass for the other.
    let at = old.len() - TRAILER_SIZE + 8;
    for (mut file, other) in [(old, 3), (sealed(b"payload", 2..4, meta), 2)] {
        file[at] = other;
        assert!(!is_good(&file));
    }
}

#[test]
fn a_file_of_version_1_is_found() {
    // As this node wrote it before images had a MAC of their own.
    let mut old = b"payload".to_vec();
    old.extend_from_slice(b"HOBCODE\n\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0");
    old.extend_from_slice(&[0; 32]);
    assert!(!is_good(&old));
    old.resize(200, 0);
    assert!(!is_good(&old));
}

#[test]
fn meta_comes_back() {
    let tenant = TenantId::default();
    for meta in [&b""[..], b"{}", &vec![9; META_LEN_MAX]] {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&sealed(b"payload", 0..7, meta)).unwrap();
        assert_eq!(check(file, &key(), label(&tenant, b"name")).unwrap().meta, meta);
    }
}

const PAGE: u64 = 4096;
const IMAGE: Range<u64> = PAGE..PAGE + 5 * BLOCK_LEN as u64 + 100;

/// A file whose image is a hole but for `data`.
fn sparse(data: &[(u64, u8)]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[1; 4096]).unwrap();
    file.set_len(IMAGE.end + PAGE).unwrap();
    for (at, byte) in data {
        file.write_all_at(&[*byte], *at).unwrap();
    }
    file
}

fn mac(file: &File) -> blake3::Hash {
    image_mac(VERSION, file, &key(), &IMAGE).unwrap()
}

#[test]
fn holes_are_zeros_and_zeros_are_holes() {
    let places = [IMAGE.start, IMAGE.start + 3 * BLOCK_LEN as u64, IMAGE.end - 1];
    let data: Vec<_> = places.iter().map(|at| (*at, 7)).collect();
    let file = sparse(&data);
    let mut dense = tempfile::tempfile().unwrap();
    let mut bytes = Vec::new();
    (&file).seek(SeekFrom::Start(0)).unwrap();
    (&file).read_to_end(&mut bytes).unwrap();
    dense.write_all(&bytes).unwrap();
    assert_eq!(mac(&file), mac(&dense), "a copy that lost its holes is the same file");
    assert_eq!(mac(&sparse(&[])), mac(&sparse(&[(IMAGE.start + 10 * PAGE, 0)])));
    let tenant = TenantId::default();
    let contents = Contents { image: IMAGE, meta: Vec::new() };
    let mut file = file;
    seal(&mut file, &key(), label(&tenant, b"name"), contents).unwrap();
    check(file, &key(), label(&tenant, b"name")).unwrap();
}

#[test]
fn a_changed_added_removed_or_moved_byte_between_holes_is_found() {
    let at = IMAGE.start + BLOCK_LEN as u64 + 5;
    let good = mac(&sparse(&[(at, 7)]));
    let others: [&[(u64, u8)]; 8] = [
        &[],
        &[(at, 8)],
        &[(at + 1, 7)],
        &[(at + PAGE, 7)],
        &[(at + BLOCK_LEN as u64, 7)],
        &[(at, 7), (IMAGE.start, 1)],
        &[(at, 7), (IMAGE.end - 1, 1)],
        &[(at, 7), (at + 3 * BLOCK_LEN as u64, 7)],
    ];
    for other in others {
        assert_ne!(mac(&sparse(other)), good, "{other:?}");
    }
    assert_eq!(mac(&sparse(&[(at, 7), (IMAGE.end, 1), (0, 9)])), good, "what is beside the image is the other MAC's");
}
