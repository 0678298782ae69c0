//! A mounted bucket as a door: the control port writes, and the guest `tests/guests/files1` reads files.

use super::Control;
use crate::harness::Node;
use crate::harness::doors::{Keys, ObjectDoor, Said};

/// One bucket below `/site` of a command.
pub(crate) struct Mount<'a>(pub(crate) Control<'a>);

impl<'a> Mount<'a> {
    pub(crate) fn new(node: &'a Node, bucket: &'a str) -> Self {
        Self(Control::new(node, bucket))
    }

    /// What the guest has of a path; `None` if there is nothing that can be read so.
    fn ask(&self, what: &str, path: &str) -> Option<Vec<u8>> {
        let reply = self.0.node.data.get(&format!("/files1?{what}=/site{path}")).ok();
        assert!(reply.whole);
        (!reply.body.starts_with(b"refused: ")).then_some(reply.body)
    }

    fn walk(&self, folder: &str, keys: &mut Vec<String>) {
        let names = String::from_utf8(self.ask("list", folder).unwrap()).unwrap();
        for name in names.split(' ').filter(|name| !name.is_empty()) {
            let path = format!("{folder}/{name}");
            match self.ask("list", &path) {
                Some(_) => self.walk(&path, keys),
                None => keys.push(path.trim_start_matches('/').to_owned()),
            }
        }
    }
}

impl ObjectDoor for Mount<'_> {
    fn put(&self, key: &str, bytes: &[u8]) -> Said<()> {
        self.0.put(key, bytes)
    }
    fn get(&self, key: &str) -> Said<Option<Vec<u8>>> {
        Ok(self.ask("read", &format!("/{key}")))
    }
    fn part(&self, key: &str, start: u64, len: u64) -> Said<Option<Vec<u8>>> {
        let range = |bytes: Vec<u8>| bytes.into_iter().skip(start as usize).take(len as usize).collect();
        Ok(self.get(key)?.map(range))
    }
    fn delete(&self, key: &str) -> Said<()> {
        self.0.delete(key)
    }
    fn exists(&self, key: &str) -> Said<bool> {
        Ok(self.get(key)?.is_some())
    }
    fn size(&self, key: &str) -> Said<Option<u64>> {
        Ok(self.get(key)?.map(|bytes| bytes.len() as u64))
    }
    fn keys(&self, _by: u64) -> Said<Vec<String>> {
        let mut keys = Vec::new();
        self.walk("", &mut keys);
        Ok(keys)
    }
    fn keys_are(&self) -> Keys {
        Keys::Files
    }
}
