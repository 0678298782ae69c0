//! What is there before a node is: servers that functions send requests to, a way round to the node itself, and folders.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::Context as _;

use crate::escape;
use crate::upstream::Upstream;

/// Arguments of a node whose functions may reach this address.
fn opened(addr: SocketAddr) -> Vec<String> {
    vec!["--set".into(), format!("egress.allow=[\"{addr}\"]")]
}

/// The server, the same for all attacks.
pub(crate) fn server() -> &'static Upstream {
    static SERVER: OnceLock<Upstream> = OnceLock::new();
    SERVER.get_or_init(Upstream::start)
}

/// A node whose functions may reach [`server`].
#[expect(clippy::unnecessary_wraps, reason = "the type of what prepares")]
pub(crate) fn with_server(_: &Path) -> anyhow::Result<Vec<String>> {
    Ok(opened(server().addr))
}

/// Hands every byte on to a node, whose own ports are closed to its functions.
#[derive(Debug)]
pub(crate) struct WayRound {
    pub(crate) addr: SocketAddr,
    to: Mutex<Option<SocketAddr>>,
}

/// The one way round.
pub(crate) fn way_round() -> anyhow::Result<&'static WayRound> {
    static WAY: OnceLock<WayRound> = OnceLock::new();
    if let Some(way) = WAY.get() {
        return Ok(way);
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let way =
        WAY.get_or_init(|| WayRound { addr: listener.local_addr().unwrap_or(([127, 0, 0, 1], 0).into()), to: Mutex::default() });
    std::thread::spawn(move || {
        for from in listener.incoming().flatten() {
            let to = *way.to.lock().unwrap_or_else(PoisonError::into_inner);
            let pipes = to.context("nowhere").and_then(|to| {
                let to = TcpStream::connect(to)?;
                Ok([(from.try_clone()?, to.try_clone()?), (to, from)])
            });
            // Who cannot be connected is cut, as by any relay.
            for (mut from, mut to) in pipes.into_iter().flatten() {
                std::thread::spawn(move || {
                    let _cut = std::io::copy(&mut from, &mut to);
                    let _gone = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    Ok(way)
}

impl WayRound {
    pub(crate) fn lead_to(&self, addr: SocketAddr) {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner) = Some(addr);
    }
}

pub(crate) fn with_way_round(_: &Path) -> anyhow::Result<Vec<String>> {
    Ok(opened(way_round()?.addr))
}

/// The folder that functions are granted, beside a node in `dir`, and the one outside of it.
pub(crate) fn folders(dir: &Path) -> [PathBuf; 2] {
    ["granted", "outside"].map(|name| dir.join("host").join(name))
}

/// A node whose operator allows such a folder.
pub(crate) fn with_folder(dir: &Path) -> anyhow::Result<Vec<String>> {
    let (root, _) = escape::trap(&dir.join("host"));
    let config = dir.join("node.toml");
    std::fs::write(&config, format!("[[folder]]\npath = {root:?}\naccess = \"read-write\"\n"))?;
    Ok(vec!["--config".into(), config.display().to_string()])
}
