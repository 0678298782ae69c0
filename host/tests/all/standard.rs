//! Data through the standard interfaces: the same rules at every door, the interface's own refusals, and bounds on what a guest makes
//! the host keep.

use crate::harness::doors::{self, Keys, KvDoor, ObjectDoor, Said};
use crate::harness::examples::guest;
use crate::harness::http::Reply;
use crate::harness::{Node, eventually};

const BUCKETS: &str = "
    [grants]
    data = [
        { bucket = 'disk', access = 'read-write' },
        { bucket = 'memory', access = 'read-write' },
        { bucket = 'small', access = 'read-write' },
        { bucket = 'readable' },
        { bucket = 'missing', access = 'read-write' },
    ]
    [[bucket]]
    name = 'disk'
    [[bucket]]
    name = 'memory'
    durability = 'volatile'
    keys_max = 10000
    [[bucket]]
    name = 'small'
    bytes_max = 2000
    keys_max = 3
    [[bucket]]
    name = 'readable'
    [[bucket]]
    name = 'secret'
";

/// The guest that has all doors, deployed.
pub(crate) struct Doors {
    node: Node,
}

impl Doors {
    #[track_caller]
    fn open(manifest: &str) -> Self {
        Self::over(Node::start(&[]), manifest)
    }

    #[track_caller]
    fn over(node: Node, manifest: &str) -> Self {
        let reply = node.deploy("doors2", &std::fs::read(guest("doors2")).unwrap(), manifest);
        assert_eq!(reply.status(), 201, "{}", reply.text());
        Self { node }
    }

    fn ask(&self, path: &str, fields: &[&[u8]]) -> Reply {
        Self::ask_of(&self.node, path, fields)
    }

    fn ask_of(node: &Node, path: &str, fields: &[&[u8]]) -> Reply {
        let framed = |field: &&[u8]| [&u32::try_from(field.len()).unwrap().to_le_bytes()[..], field].concat();
        node.data.post(&format!("/doors2/{path}"), &fields.iter().flat_map(framed).collect::<Vec<u8>>())
    }

    #[track_caller]
    fn say(&self, path: &str, fields: &[&[u8]]) -> Said<Option<Vec<Vec<u8>>>> {
        Self::say_to(&self.node, path, fields)
    }

    /// What the interface answered, or its words; `None` if there is nothing, or it was too late.
    #[track_caller]
    pub(crate) fn say_to(node: &Node, path: &str, fields: &[&[u8]]) -> Said<Option<Vec<Vec<u8>>>> {
        let reply = Self::ask_of(node, path, fields);
        assert!(reply.header("hob-error").is_none() && reply.whole, "{path}: {}", reply.text());
        match reply.status() {
            200 => Ok(Some(unframe(&reply.body))),
            404 | 409 => Ok(None),
            422 => Err(reply.text()),
            status => panic!("{path}: {status} {}", reply.text()),
        }
    }

    #[track_caller]
    fn done(&self, path: &str, fields: &[&[u8]]) {
        assert!(self.say(path, fields).unwrap().is_some(), "{path}");
    }

    #[track_caller]
    fn refused(&self, path: &str, fields: &[&[u8]], words: &str) {
        let said = self.say(path, fields).unwrap_err();
        assert!(said.contains(words), "{path}: '{said}' instead of '{words}'");
    }
}

fn unframe(mut body: &[u8]) -> Vec<Vec<u8>> {
    let mut fields = Vec::new();
    while let Some((len, rest)) = body.split_first_chunk::<4>() {
        let (field, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
        fields.push(field.to_vec());
        body = rest;
    }
    fields
}

/// One interface to one bucket.
struct Door<'a> {
    doors: &'a Doors,
    /// `kv1`, `kv2` or `blob`.
    name: &'static str,
    bucket: &'static str,
}

impl Door<'_> {
    fn say(&self, op: &str, fields: &[&[u8]]) -> Said<Option<Vec<Vec<u8>>>> {
        self.doors.say(&format!("{}/{op}/{}", self.name, self.bucket), fields)
    }

    fn done(&self, op: &str, fields: &[&[u8]]) -> Said<()> {
        self.say(op, fields).map(|said| assert!(said.is_some(), "{op}"))
    }

    fn one(&self, op: &str, fields: &[&[u8]]) -> Said<Option<Vec<u8>>> {
        Ok(self.say(op, fields)?.map(|fields| fields.into_iter().next().unwrap()))
    }

    fn word<T: std::str::FromStr<Err: std::fmt::Debug>>(&self, op: &str, fields: &[&[u8]]) -> Said<T> {
        Ok(String::from_utf8(self.one(op, fields)?.unwrap()).unwrap().parse().unwrap())
    }

    fn words(&self, op: &str, fields: &[&[u8]]) -> Said<Vec<String>> {
        Ok(self.say(op, fields)?.unwrap().into_iter().map(|field| String::from_utf8(field).unwrap()).collect())
    }
}

impl KvDoor for Door<'_> {
    fn get(&self, key: &str) -> Said<Option<Vec<u8>>> {
        self.one("get", &[key.as_bytes()])
    }
    fn set(&self, key: &str, value: &[u8]) -> Said<()> {
        self.done("set", &[key.as_bytes(), value])
    }
    fn delete(&self, key: &str) -> Said<()> {
        self.done("delete", &[key.as_bytes()])
    }
    fn exists(&self, key: &str) -> Said<bool> {
        self.word("exists", &[key.as_bytes()])
    }
    fn increment(&self, key: &str, by: i64) -> Said<i64> {
        self.word("increment", &[key.as_bytes(), by.to_string().as_bytes()])
    }
    fn keys(&self) -> Said<Vec<String>> {
        self.words("keys", &[])
    }
    fn get_many(&self, keys: &[&str]) -> Said<Vec<Option<Vec<u8>>>> {
        let keys: Vec<_> = keys.iter().map(|key| key.as_bytes()).collect();
        let found = self.say("get-many", &keys)?.unwrap();
        Ok(found.into_iter().map(|found| found.split_first().map(|(_, value)| value.to_vec())).collect())
    }
    fn set_many(&self, entries: &[(&str, &[u8])]) -> Said<()> {
        let fields: Vec<_> = entries.iter().flat_map(|(key, value)| [key.as_bytes(), value]).collect();
        self.done("set-many", &fields)
    }
    fn delete_many(&self, keys: &[&str]) -> Said<()> {
        let keys: Vec<_> = keys.iter().map(|key| key.as_bytes()).collect();
        self.done("delete-many", &keys)
    }
    fn swap(&self, key: &str, expected: Option<&[u8]>, value: &[u8]) -> Option<Said<bool>> {
        let fields: Vec<_> = [key.as_bytes(), value].into_iter().chain(expected).collect();
        (self.name == "kv2").then(|| self.say("swap", &fields).map(|said| said.is_some()))
    }
    fn has_signs(&self) -> bool {
        self.name == "kv2"
    }
}

/// The interface has no word for what is missing: it is an error like any other.
fn found<T>(said: Said<T>) -> Said<Option<T>> {
    match said {
        Err(text) if text.starts_with("there is no object") => Ok(None),
        said => said.map(Some),
    }
}

impl ObjectDoor for Door<'_> {
    fn put(&self, key: &str, bytes: &[u8]) -> Said<()> {
        self.done("put", &[key.as_bytes(), bytes])
    }
    fn get(&self, key: &str) -> Said<Option<Vec<u8>>> {
        found(self.one("get", &[key.as_bytes()])).map(Option::flatten)
    }
    fn part(&self, key: &str, start: u64, len: u64) -> Said<Option<Vec<u8>>> {
        let (start, end) = (start.to_string(), (start + len - 1).to_string());
        found(self.one("get-part", &[key.as_bytes(), start.as_bytes(), end.as_bytes()])).map(Option::flatten)
    }
    fn delete(&self, key: &str) -> Said<()> {
        self.done("delete", &[key.as_bytes()])
    }
    fn exists(&self, key: &str) -> Said<bool> {
        self.word("exists", &[key.as_bytes()])
    }
    fn size(&self, key: &str) -> Said<Option<u64>> {
        found(self.word("size", &[key.as_bytes()]))
    }
    fn keys(&self, by: u64) -> Said<Vec<String>> {
        self.words("keys", &[b"0", by.to_string().as_bytes()])
    }
    fn keys_are(&self) -> Keys {
        if self.bucket == "origin" { Keys::Paths } else { Keys::Any }
    }
}

#[test]
fn both_versions_of_keyvalue_keep_the_rules() {
    let doors = Doors::open(BUCKETS);
    for name in ["kv1", "kv2"] {
        for bucket in ["disk", "memory"] {
            doors::check_entries(&Door { doors: &doors, name, bucket });
        }
    }
}

#[test]
fn blobstore_keeps_the_rules() {
    let doors = Doors::open(BUCKETS);
    for bucket in ["disk", "memory"] {
        doors::check_objects(&Door { doors: &doors, name: "blob", bucket });
    }
}

#[test]
fn blobstore_keeps_the_rules_over_an_origin() {
    let site = crate::origin::Site::new();
    let node = site.node(&[]);
    let manifest = format!("{BUCKETS}\n[[bucket]]\nname = 'origin'\norigin = 's3://{}'\n", crate::origin::BUCKET);
    let manifest = manifest.replacen("data = [", "data = [ { bucket = 'origin', access = 'read-write' },", 1);
    let doors = Doors::over(node, &manifest);
    doors::check_objects(&Door { doors: &doors, name: "blob", bucket: "origin" });
}

#[test]
fn one_door_finds_what_another_brought_and_a_restart_keeps_it() {
    let mut doors = Doors::open(BUCKETS);
    doors.done("kv1/set/disk", &[b"k", b"v"]);
    doors.done("blob/put/disk", &[b"k", b"an object"]);
    doors.node.restart();
    assert_eq!(doors.say("kv2/get/disk", &[b"k"]).unwrap(), Some(vec![b"v".to_vec()]));
    assert_eq!(doors.say("blob/get-sync/disk", &[b"k"]).unwrap(), Some(vec![b"an object".to_vec()]));
    assert_eq!(doors.say("kv2/swap-late/disk", &[b"k", b"won"]).unwrap(), Some(vec![b"meanwhile".to_vec()]));
    assert_eq!(doors.say("kv1/get/disk", &[b"k"]).unwrap(), Some(vec![b"won".to_vec()]));
}

#[test]
fn what_is_not_granted_is_refused_in_the_interfaces_words_and_explained_in_the_log() {
    let doors = Doors::open(BUCKETS);
    for _ in 0..2 {
        for bucket in ["secret", "nowhere", "Disk", ""] {
            let path = |door: &str| format!("{door}/{bucket}");
            doors.refused(&path("kv1/get"), &[b"k"], "access-denied");
            doors.refused(&path("kv2/get"), &[b"k"], "access-denied");
            doors.refused(&path("blob/get"), &[b"k"], "denied: add to hob.toml");
            doors.refused(&path("blob/is-there"), &[], "denied: add to hob.toml");
        }
        doors.refused("kv1/set/readable", &[b"k", b"v"], "access-denied");
        doors.refused("kv1/increment/readable", &[b"k", b"1"], "access-denied");
        doors.refused("kv1/delete-many/readable", &[b"k"], "access-denied");
        doors.refused("kv2/swap/readable", &[b"k", b"v"], "access-denied");
        for (op, fields) in [("put", [&b"k"[..], b"v"].as_slice()), ("delete", &[b"k"]), ("clear", &[])] {
            doors.refused(&format!("blob/{op}/readable"), fields, "access = \"read-write\"");
        }
        doors.refused("blob/copy/disk", &[b"k", b"readable", b"k"], "access = \"read-write\"");
        doors.refused("blob/move/readable", &[b"k", b"disk", b"k"], "access = \"read-write\"");
        assert_eq!(doors.say("kv1/get/readable", &[b"k"]).unwrap(), None);
        assert_eq!(doors.say("kv2/keys/readable", &[]).unwrap(), Some(Vec::new()));
        doors.refused("kv1/get/missing", &[b"k"], "no-such-store");
        doors.refused("kv2/get/missing", &[b"k"], "no-such-store");
        doors.refused("blob/get/missing", &[b"k"], "there is no bucket 'missing'");
        assert_eq!(doors.say("blob/is-there/missing", &[]).unwrap(), Some(vec![b"false".to_vec()]));
        assert_eq!(doors.say("blob/is-there/readable", &[]).unwrap(), Some(vec![b"true".to_vec()]));
    }
    doors.refused("blob/create/disk", &[], "neither makes nor deletes buckets");
    doors.refused("blob/destroy/disk", &[], "neither makes nor deletes buckets");
    let count = |line: &str| doors.node.logs("doors2").iter().filter(|(_, _, text)| text.contains(line)).count();
    eventually("the line is logged", || count("[grants] data = [{ bucket = \"secret\", access = \"read\" }]") == 1);
    assert_eq!(count("[grants] data = [{ bucket = \"readable\", access = \"read-write\" }]"), 1, "once for each revision");
}

#[test]
fn a_full_bucket_says_so_and_lets_go() {
    let doors = Doors::open(BUCKETS);
    for key in [b"a", b"b", b"c"] {
        doors.done("kv1/set/small", &[key, b"v"]);
    }
    for door in ["kv1", "kv2"] {
        doors.refused(&format!("{door}/set/small"), &[b"d", b"v"], "other: the bucket is full");
        doors.refused(&format!("{door}/set/small"), &[b"a", &[0; 2000]], "other: the bucket is full");
    }
    doors.refused("blob/put/small", &[b"o", b"x"], "the bucket is full");
    doors.done("kv2/delete/small", &[b"a"]);
    doors.refused("blob/put/small", &[b"o", &[0; 1997]], "the bucket is full");
    doors.refused("blob/put-large/small", &[b"o", b"2", b"first"], "more than the whole bucket may have");
    doors.done("blob/put/small", &[b"o", &[0; 1995]]);
    assert_eq!(doors.say("blob/size/small", &[b"o"]).unwrap(), Some(vec![b"1995".to_vec()]));
}

#[test]
fn cursors_that_no_list_gave_are_refused() {
    let doors = Doors::open(BUCKETS);
    doors.done("kv1/set/disk", &[b"k", b"v"]);
    doors.refused("kv1/list-from/disk", &[b"0"], "the cursor 0 is not known");
    doors.refused("kv1/list-from/disk", &[u64::MAX.to_string().as_bytes()], "is not known");
    for cursor in ["x", "0", "\u{e9}\u{e9}"] {
        doors.refused("kv2/list-from/disk", &[cursor.as_bytes()], "the cursor is none of a list");
    }
    // Before and after the key, in hexadecimal digits.
    assert_eq!(doors.say("kv2/list-from/disk", &[b"61"]).unwrap(), Some(vec![b"k".to_vec()]));
    assert_eq!(doors.say("kv2/list-from/disk", &[b"6b"]).unwrap(), Some(Vec::new()));
    doors.refused("kv1/increment/disk", &[b"n", u64::MAX.to_string().as_bytes()], "too much to add");
}

#[test]
fn values_on_their_way_are_bounded() {
    let doors = Doors::open(BUCKETS);
    // On its way to a bucket it may be any size; without one it waits in the host's memory.
    doors.done("blob/put-large/disk", &[b"large", b"40", b"first"]);
    assert_eq!(doors.say("blob/size/disk", &[b"large"]).unwrap(), Some(vec![(40 << 20).to_string().into_bytes()]));
    doors.done("blob/put-large/disk", &[b"waits", b"4", b"later"]);
    let words = "more than 4194304 bytes wait: give the value to write-data";
    doors.refused("blob/put-large/disk", &[b"more", b"5", b"later"], words);
    doors.done("blob/put-large/disk", &[b"most", b"16", b"first"]);
    assert_eq!(doors.say("blob/exists/disk", &[b"more"]).unwrap(), Some(vec![b"false".to_vec()]));
    doors.refused("blob/get-sync/disk", &[b"large"], "at most 16777216");
    assert_eq!(doors.say("blob/get-sync/disk", &[b"most"]).unwrap().unwrap()[0].len(), 16 << 20);
    doors.done("blob/put-later/disk", &[b"k", b"written before it was told where to"]);
    assert_eq!(doors.say("blob/get-deleted/disk", &[b"k"]).unwrap().unwrap()[0], b"written before it was told where to");
    assert_eq!(doors.say("blob/exists/disk", &[b"k"]).unwrap(), Some(vec![b"false".to_vec()]));
    // What is not finished never was.
    doors.done("blob/drop/disk", &[b"dropped", b"bytes"]);
    doors.refused("blob/put-twice/disk", &[b"twice"], "was given to write-data before");
    doors.refused("blob/put-nowhere/disk", &[], "the value goes nowhere");
    doors.ask("blob/finish-early/disk", &[b"early"]).problem(502, "guest-bad-call");
    for key in [&b"dropped"[..], b"twice", b"another", b"early"] {
        assert_eq!(doors.say("blob/exists/disk", &[key]).unwrap(), Some(vec![b"false".to_vec()]));
    }
    eventually("unfinished objects are gone", || doors.node.files("data/staging").is_empty());
}

#[test]
fn handles_and_open_objects_are_bounded() {
    let doors = Doors::open(BUCKETS);
    let said = doors.say("kv1/open-many/disk", &[]).unwrap().unwrap();
    let opened: usize = String::from_utf8(said[0].clone()).unwrap().parse().unwrap();
    assert!((1000..1024).contains(&opened), "{opened}");
    assert!(String::from_utf8_lossy(&said[1]).contains("at most 1024 handles"));
    doors.done("blob/put/disk", &[b"k", b"v"]);
    let said = doors.say("blob/open-many/disk", &[b"k"]).unwrap().unwrap();
    assert_eq!((&said[0][..], String::from_utf8_lossy(&said[1]).contains("at most 64 objects")), (&b"64"[..], true));
}

#[test]
fn objects_are_copied_moved_and_cleared() {
    let doors = Doors::open(BUCKETS);
    let bytes: Vec<u8> = (0..2_500_000_u32).map(|number| (number % 253) as u8).collect();
    doors.done("blob/put/disk", &[b"a", &bytes]);
    doors.done("blob/copy/disk", &[b"a", b"memory", b"b"]);
    doors.done("blob/copy/disk", &[b"a", b"disk", b"a"]);
    doors.done("blob/move/disk", &[b"a", b"disk", b"a"]);
    doors.done("blob/move/disk", &[b"a", b"disk", b"c"]);
    assert_eq!(doors.say("blob/keys/disk", &[b"0", b"9"]).unwrap(), Some(vec![b"c".to_vec()]));
    for (bucket, key) in [("memory", &b"b"[..]), ("disk", b"c")] {
        assert!(doors.say(&format!("blob/get/{bucket}"), &[key]).unwrap() == Some(vec![bytes.clone()]));
    }
    doors.refused("blob/copy/disk", &[b"none", b"disk", b"d"], "there is no object 'none'");
    doors.refused("blob/get-part/disk", &[b"c", b"2", b"1"], "ends before it begins");
    doors.done("blob/put/disk", &[b"d", b""]);
    assert_eq!(doors.say("blob/keys/disk", &[b"1", b"9"]).unwrap(), Some(vec![b"d".to_vec()]), "one is skipped");
    doors.done("blob/delete-many/disk", &[b"none", b"d"]);
    doors.done("blob/clear/disk", &[]);
    assert_eq!(doors.say("blob/keys/disk", &[b"0", b"9"]).unwrap(), Some(Vec::new()));
    assert_eq!(doors.say("blob/name/disk", &[]).unwrap(), Some(vec![b"disk".to_vec()]));
    assert_eq!(doors.say("blob/info/disk", &[]).unwrap(), Some(vec![b"disk".to_vec()]));
}

#[test]
fn configuration_is_the_manifests_env() {
    let doors = Doors::open("[env]\nGREETING = 'hello'\nEMPTY = ''\n");
    for name in ["runtime", "draft", "spin", "rc1"] {
        let get = |key: &[u8]| doors.say(&format!("config/{name}"), &[key]).unwrap();
        assert_eq!(get(b"GREETING"), Some(vec![b"hello".to_vec()]), "{name}");
        assert_eq!(get(b"EMPTY"), Some(vec![Vec::new()]));
        assert_eq!((get(b"greeting"), get(b"PATH"), get(b"REQUEST_METHOD")), (None, None, None));
        let mut all = doors.say(&format!("config/{name}"), &[]).unwrap().unwrap();
        all.sort();
        assert_eq!(all, [&b""[..], b"EMPTY", b"GREETING", b"hello"]);
    }
    // Without any grant it is deployed, and refused where it asks.
    doors.refused("kv1/get/disk", &[b"k"], "access-denied");
}

#[test]
fn there_is_no_data_while_a_function_is_deployed() {
    // A refusal in a warm-up request is an answer like any other, and no handle is left to remember.
    let node = Node::start(&[]);
    let wasm = std::fs::read(guest("doors2")).unwrap();
    let manifest =
        format!("{BUCKETS}\n[snapshot]\nmode = 'required'\nwarmup = ['POST /kv1/keep/disk', 'POST /blob/name/disk']\n");
    let reply = node.deploy("doors2", &wasm, &manifest);
    assert_eq!(reply.status(), 201, "{}", reply.text());
    let doors = Doors { node };
    doors.done("kv1/keep/disk", &[]);
    doors.done("kv1/set/disk", &[b"k", b"v"]);
    assert_eq!(doors.say("kv2/get/disk", &[b"k"]).unwrap(), Some(vec![b"v".to_vec()]));
    assert_eq!(doors.say("blob/name/disk", &[]).unwrap(), Some(vec![b"disk".to_vec()]));
}

const SITE: &str = "
    [grants]
    data = [{ bucket = 'site', access = 'read-write', mount = '/site' }, { bucket = 'later', mount = '/later' }]
    [[bucket]]
    name = 'site'
";

/// A command that tries things with files, beside the guest that puts the objects.
struct Site(Doors);

impl Site {
    #[track_caller]
    fn open() -> Self {
        let site = Self(Doors::open(SITE));
        site.deploy("files1", SITE);
        site
    }

    #[track_caller]
    fn deploy(&self, name: &str, manifest: &str) {
        let reply = self.0.node.deploy(name, &std::fs::read(guest(name)).unwrap(), manifest);
        assert!(matches!(reply.status(), 200 | 201), "{}", reply.text());
    }

    #[track_caller]
    fn run(&self, what: &str) -> String {
        self.0.node.data.get(&format!("/files1?{what}")).ok().text()
    }
}

#[test]
fn a_mounted_bucket_is_a_folder_that_can_only_be_read() {
    let mut site = Site::open();
    for key in [&b"index.html"[..], b"css/main.css", b"../escape", b"css"] {
        site.0.done("blob/put/site", &[key, key]);
    }
    assert_eq!(
        (site.run("read=/site/index.html"), site.run("read=/site/css/main.css")),
        ("index.html".into(), "css/main.css".into())
    );
    assert_eq!((site.run("list=/site"), site.run("list=/site/css")), ("css index.html".into(), "main.css".into()));
    let is_told =
        |site: &Site| site.0.node.logs("files1").iter().any(|(_, _, text)| text.contains("at /site: 2 objects are left out"));
    eventually("what is left out is told", || is_told(&site));
    // What is put, replaced and deleted is seen by the next invocation.
    site.0.done("blob/put/site", &[b"index.html", b"newer"]);
    site.0.done("blob/put/site", &[b"a/b/c", b"deep"]);
    assert_eq!((site.run("read=/site/index.html"), site.run("read=/site/a/b/c")), ("newer".into(), "deep".into()));
    site.0.done("blob/delete/site", &[b"a/b/c"]);
    assert_eq!(site.run("list=/site"), "css index.html");
    // However the grant reads, files are for reading.
    for what in [
        "write=/site/index.html",
        "write=/site/new",
        "remove=/site/index.html",
        "rename=/site/index.html",
        "link=/site/index.html",
        "mkdir=/site/x",
    ] {
        assert!(site.run(what).starts_with("refused"), "{what}: {}", site.run(what));
    }
    for what in ["read=/site/../../key", "read=/site/../data.redb", "read=/etc/passwd", "read=/site/none"] {
        assert!(site.run(what).starts_with("refused"), "{what}: {}", site.run(what));
    }
    assert_eq!(site.0.say("blob/get-sync/site", &[b"index.html"]).unwrap(), Some(vec![b"newer".to_vec()]));
    // A bucket that is not there yet is no folder, which the log says.
    assert!(site.run("list=/later").starts_with("refused"));
    let is_told = |site: &Site| {
        site.0.node.logs("files1").iter().any(|(_, _, text)| text.contains("'later' at /later: there is no bucket"))
    };
    eventually("what is missing is told", || is_told(&site));
    site.0.node.restart();
    assert_eq!((site.run("read=/site/index.html"), site.run("list=/site")), ("newer".into(), "css index.html".into()));
}

#[test]
fn components_find_mounts_too_and_volatile_buckets_have_none() {
    let site = Site::open();
    site.0.done("blob/put/site", &[b"k", b"v"]);
    site.deploy("reach2", &format!("args = ['read', '/site/k']\n{SITE}"));
    assert_eq!(site.0.node.data.get("/reach2").ok().text(), "v");
    site.deploy("reach2", &format!("args = ['write', '/site/k', 'x']\n{SITE}"));
    site.0.node.data.get("/reach2").problem(502, "guest-exit");
    assert_eq!(site.0.say("blob/get-sync/site", &[b"k"]).unwrap(), Some(vec![b"v".to_vec()]));
    let volatile = SITE
        .replace("name = 'site'", "name = 'scratch'\ndurability = 'volatile'\nkeys_max = 10")
        .replace("bucket = 'site'", "bucket = 'scratch'");
    let reply = site.0.node.deploy("files1", &std::fs::read(guest("files1")).unwrap(), &volatile);
    let problem = reply.problem(400, "bad-manifest");
    assert!(problem["detail"].as_str().unwrap().contains("'scratch' cannot be a folder: it is volatile"), "{problem}");
}
