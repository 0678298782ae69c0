//! A command that does with a file or folder what its query says: `OP=PATH`, where `OP` is `read`, `list`, `write`, `remove`,
//! `rename`, `link` or `mkdir`; `hold` opens it until that fails, and prints how often that worked; or `clock=` prints how many nanoseconds past a whole millisecond 200 moments of both clocks are. It prints what it
//! read, `done`, or `refused` and why.

use std::fs;
use std::io::{Error, Result, Write};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

fn main() {
    let query = std::env::var("QUERY_STRING").unwrap_or_default();
    match query.split_once('=').map_or_else(|| Err(Error::other("expected OP=PATH")), |(op, path)| run(op, path)) {
        // Whoever asked may have gone.
        Ok(bytes) => drop(std::io::stdout().write_all(&bytes)),
        Err(error) => print!("refused: {error}"),
    }
}

fn run(op: &str, path: &str) -> Result<Vec<u8>> {
    let other = format!("{path}-other");
    match op {
        "read" => return fs::read(path),
        "list" => {
            let names: Result<Vec<_>> =
                fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
            let mut names = names?;
            names.sort();
            return Ok(names.join(" ").into());
        }
        "hold" => return Ok(hold(path).into()),
        "clock" => return Ok(past_a_millisecond().into()),
        "write" => fs::write(path, "written")?,
        "remove" => fs::remove_file(path)?,
        "rename" => fs::rename(path, other)?,
        "link" => fs::hard_link(path, other)?,
        "mkdir" => fs::create_dir(path)?,
        _ => return Err(Error::other("no such operation")),
    }
    Ok("done".into())
}

/// Opens a file until that fails; how often it worked, and what it failed with.
fn hold(path: &str) -> String {
    let mut held = Vec::new();
    loop {
        match fs::File::open(path) {
            Ok(file) if held.len() < 5000 => held.push(file),
            Ok(_) => return format!("{} and no end", held.len()),
            Err(error) => return format!("{} {error}", held.len()),
        }
    }
}

/// The greatest of each clock: 0 where it shows whole milliseconds.
fn past_a_millisecond() -> String {
    let began = Instant::now();
    let past = |nanos: u128| nanos % 1_000_000;
    let wall = (0..200).map(|_| past(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos())).max();
    let monotonic = (0..200).map(|_| past(began.elapsed().as_nanos())).max();
    format!("{} {}", wall.unwrap_or_default(), monotonic.unwrap_or_default())
}
