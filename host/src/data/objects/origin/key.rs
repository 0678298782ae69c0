//! The key with which requests to an origin are signed, and the file that it is in.
//!
//! Owns the spelling, which is that of the tools of AWS with one profile. Invariant: no error quotes anything of the file.

use std::fs;
use std::path::Path;

const FILE_BYTES_MAX: u64 = 64 << 10;

/// What the file must have, for errors.
pub(super) const EXPECTED: &str = "lines aws_access_key_id = … and aws_secret_access_key = …, and perhaps aws_session_token = …";

/// Never printed.
pub(super) struct Key {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

/// Reads the file.
pub(super) fn read(path: &Path) -> Result<Key, String> {
    let len = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if len > FILE_BYTES_MAX {
        return Err(format!("it has {len} bytes"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let (mut id, mut secret, mut token, mut profiles) = (None, None, None, 0);
    for (line, text) in text.lines().map(str::trim).enumerate() {
        if text.is_empty() || text.starts_with(['#', ';']) {
            continue;
        }
        if text.starts_with('[') {
            profiles += 1;
            continue;
        }
        let wrong = || format!("line {} is none of its lines", line + 1);
        let (name, value) = text.split_once('=').ok_or_else(wrong)?;
        let place = match name.trim() {
            "aws_access_key_id" => &mut id,
            "aws_secret_access_key" => &mut secret,
            "aws_session_token" => &mut token,
            _ => return Err(wrong()),
        };
        let value = value.trim();
        if place.is_some() || value.is_empty() || !value.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong());
        }
        *place = Some(value.to_owned());
    }
    match (id, secret) {
        _ if profiles > 1 => Err("it has more than one profile".into()),
        (Some(id), Some(secret)) => Ok(Key { id, secret, token }),
        _ => Err("a line is missing".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Key, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn it_is_read_as_the_tools_write_it() {
        let key = read_text("# a note\n[default]\naws_access_key_id = a\n\naws_secret_access_key=b/c+d==\n").unwrap();
        assert_eq!((key.id.as_str(), key.secret.as_str(), key.token), ("a", "b/c+d==", None));
        let key = read_text("aws_session_token = t\r\naws_access_key_id = a\r\naws_secret_access_key = b\r\n").unwrap();
        assert_eq!((key.secret.as_str(), key.token.as_deref()), ("b", Some("t")));
    }

    #[test]
    fn its_length_has_a_bound() {
        let text = |len: u64| {
            let lines = "aws_access_key_id = a\naws_secret_access_key = b\n#";
            format!("{lines}{}", "x".repeat(usize::try_from(len).unwrap() - lines.len()))
        };
        assert!(read_text(&text(FILE_BYTES_MAX)).is_ok());
        assert!(read_text(&text(FILE_BYTES_MAX + 1)).is_err_and(|why| why.contains("65537")));
    }
}
