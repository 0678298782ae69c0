//! A command of preview 1 that does with a file or folder what its query says: `OP=PATH`, where `OP` is `read`, `list`, `write`, `remove`,
//! `rename`, `link` or `mkdir`. It prints what it read, `done`, or `refused` and why.

use std::fs;
use std::io::{Error, Result};

fn main() {
    let query = std::env::var("QUERY_STRING").unwrap_or_default();
    match query.split_once('=').map_or_else(|| Err(Error::other("expected OP=PATH")), |(op, path)| run(op, path)) {
        Ok(text) => print!("{text}"),
        Err(error) => print!("refused: {error}"),
    }
}

fn run(op: &str, path: &str) -> Result<String> {
    let other = format!("{path}-other");
    match op {
        "read" => return fs::read_to_string(path),
        "list" => {
            let names: Result<Vec<_>> =
                fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
            let mut names = names?;
            names.sort();
            return Ok(names.join(" "));
        }
        "write" => fs::write(path, "written")?,
        "remove" => fs::remove_file(path)?,
        "rename" => fs::rename(path, other)?,
        "link" => fs::hard_link(path, other)?,
        "mkdir" => fs::create_dir(path)?,
        _ => return Err(Error::other("no such operation")),
    }
    Ok("done".into())
}
