//! Credentials: which token goes to which daemon.
//!
//! ```text
//! $XDG_CONFIG_HOME/hob/tokens, else ~/.config/hob/tokens    mode 0600; on each line the address of a control port, a space, and a token
//! ```
//!
//! Owns that file, and the order: `--token-file`, then `HOB_TOKEN`, then the file. Invariants: a token of the file goes to the address that it
//! was kept for and to no other; no token goes over a network in the clear.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use http::Uri;

use super::failure::Exit;
use super::{Failure, environment};
use crate::token::TokenText;

const FILE: &str = "tokens";
/// Longest file that is read, in bytes.
const FILE_LEN_MAX: u64 = 1 << 20;

fn file() -> Option<PathBuf> {
    environment::config_dir().map(|dir| dir.join(FILE))
}

/// The address as it stands in the file.
fn address(server: &str) -> &str {
    server.trim_end_matches('/')
}

/// The token for a daemon, if there is one.
///
/// # Errors
/// A file that was named and cannot be read, one that others can read, text that is no token, and a daemon that could be reached only in the
/// clear.
pub(super) fn find(server: &str, token_file: Option<&Path>) -> Result<Option<TokenText>, Failure> {
    let found = match (token_file, environment::var("HOB_TOKEN").filter(|text| !text.trim().is_empty())) {
        (Some(path), _) => Some((read_private(path)?, format!("'{}'", path.display()))),
        (None, Some(text)) => Some((text, "HOB_TOKEN".into())),
        (None, None) => kept(server)?,
    };
    let Some((text, origin)) = found else { return Ok(None) };
    let token = text.trim().parse::<TokenText>().map_err(|error| {
        let failure = Failure::new(Exit::Auth, format!("{origin} holds no token: {error}"));
        failure.next("hob token new NAME --scope read")
    })?;
    if !is_private(server) {
        let sentence = format!("the token is not sent to {server}: everybody on the way could read it");
        return Err(Failure::new(Exit::Auth, sentence).hint("use https://, or a tunnel to this machine").next("hob --help"));
    }
    Ok(Some(token))
}

/// Whether nobody on the way can read what goes to `server`.
fn is_private(server: &str) -> bool {
    let Ok(uri) = server.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_local = host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    uri.scheme_str() == Some("https") || is_local
}

fn read_private(path: &Path) -> Result<String, Failure> {
    let doing = || format!("cannot read the token in '{}'", path.display());
    let meta = fs::metadata(path).with_context(doing)?;
    if meta.permissions().mode() & 0o077 != 0 && meta.is_file() {
        let sentence = format!("others can read '{}', so what is in it is no secret", path.display());
        return Err(Failure::new(Exit::Auth, sentence).next(format!("chmod 600 {}", path.display())));
    }
    if meta.len() > FILE_LEN_MAX {
        return Err(Failure::new(Exit::Failure, format!("'{}' has more than {FILE_LEN_MAX} bytes", path.display())));
    }
    Ok(fs::read_to_string(path).with_context(doing)?)
}

/// The token that was kept for a daemon, and where.
fn kept(server: &str) -> Result<Option<(String, String)>, Failure> {
    let Some(path) = file().filter(|path| path.exists()) else { return Ok(None) };
    let text = read_private(&path)?;
    let token = text.lines().find_map(|line| line.strip_prefix(address(server))?.strip_prefix(' '));
    Ok(token.map(|token| (token.to_owned(), format!("'{}'", path.display()))))
}

/// Keeps a token for a daemon, in place of one that was kept before. Returns where.
///
/// # Errors
/// Those of the file system; that there is no home.
pub(super) fn keep(server: &str, token: &TokenText) -> Result<PathBuf, Failure> {
    let path = file().ok_or_else(|| Failure::new(Exit::Failure, "there is no home directory to keep a token in"))?;
    keep_in(&path, server, token)?;
    Ok(path)
}

fn keep_in(path: &Path, server: &str, token: &TokenText) -> Result<(), Failure> {
    let mut text = if path.exists() { read_private(path)? } else { String::new() };
    let others = |line: &&str| line.strip_prefix(address(server)).is_none_or(|rest| !rest.starts_with(' '));
    text = text.lines().filter(others).map(|line| format!("{line}\n")).collect();
    text.push_str(&format!("{} {}\n", address(server), token.reveal()));
    write_private(path, text.as_bytes())
}

/// Writes a file that only its owner can read, whole or not at all.
///
/// # Errors
/// Those of the file system.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let doing = || format!("cannot write '{}'", path.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(doing)?;
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).with_context(doing)?;
    // It may have been there with other rights.
    file.set_permissions(fs::Permissions::from_mode(0o600)).with_context(doing)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(doing)?;
    Ok(fs::rename(&new, path).with_context(doing)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_to_nobody_who_can_be_overheard() {
        for good in ["http://127.0.0.1:3900", "http://localhost:1/", "http://[::1]:3900", "https://hob.example:3900"] {
            assert!(is_private(good), "{good}");
        }
        for bad in ["http://10.0.0.1:3900", "http://hob.example", "http://localhost.evil.example", "http://127.0.0.1.evil:1", ""]
        {
            assert!(!is_private(bad), "{bad}");
        }
    }

    #[test]
    fn the_file_is_private_and_has_one_token_for_each_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hob/tokens");
        let [a, b, c] = [(); 3].map(|()| TokenText::random().unwrap());
        keep_in(&path, "http://127.0.0.1:3900/", &a).unwrap();
        keep_in(&path, "http://127.0.0.1:39001", &b).unwrap();
        keep_in(&path, "http://127.0.0.1:3900", &c).unwrap();
        let expected = format!("http://127.0.0.1:39001 {}\nhttp://127.0.0.1:3900 {}\n", b.reveal(), c.reveal());
        assert_eq!(read_private(&path).unwrap(), expected);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(read_private(&path).unwrap_err().code(), Exit::Auth as u8);
        assert!(keep_in(&path, "http://127.0.0.1:1", &a).is_err());
    }
}
