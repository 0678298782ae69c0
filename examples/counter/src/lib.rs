//! A handler that counts visits of each path, in a bucket of its own.
//!
//! The bucket is in `hob.toml`: `[[bucket]]` has it made at deploy, `[grants]` lets this function use it. Nothing else is kept: each
//! request has a fresh instance. The count of a path is one entry, raised by the node itself, so no visit is lost however many come
//! at once. The page of the top paths reads all entries, page by page.
//!
//! ```text
//! hob deploy                                             # in this folder
//! curl http://127.0.0.1:3000/counter/a/page              # /a/page: 1 visit
//! curl http://127.0.0.1:3000/counter/                    # the top paths
//! ```

use hob_sdk::data::ErrorKind;
use hob_sdk::{Error, Request, Response, StatusCode, kv};

/// Paths on the page of the top ones.
const TOP: usize = 10;
/// Longest path that is counted: what a key holds.
const PATH_LEN_MAX: usize = 512;

#[hob_sdk::function]
fn handle(req: Request) -> Result<Response, Error> {
    let visits = kv::open("visits")?;
    match req.path() {
        "/" => Ok(page(top(visits.scan("/"))?).into()),
        path if path.len() > PATH_LEN_MAX => {
            Ok(Response::from("that path is too long to be counted\n").with_status(StatusCode::URI_TOO_LONG))
        }
        path => match visits.increment(path, 1) {
            Ok(count) => Ok(line(path, count).into()),
            // Paths that were counted before still are.
            Err(error) if matches!(error.kind(), ErrorKind::Quota | ErrorKind::Full) => {
                Ok(Response::from("there is no room for another path\n").with_status(StatusCode::INSUFFICIENT_STORAGE))
            }
            Err(error) => Err(error.into()),
        },
    }
}

/// The paths with the most visits, the most first; of equals the one that comes first in the alphabet.
fn top<E: Into<Error>>(entries: impl Iterator<Item = Result<(Vec<u8>, kv::Entry), E>>) -> Result<Vec<(String, i64)>, Error> {
    let mut top: Vec<(String, i64)> = Vec::with_capacity(TOP + 1);
    for entry in entries {
        let (path, entry) = entry.map_err(Into::into)?;
        let count: i64 = str::from_utf8(&entry.value)?.parse()?;
        // What has more goes before it, and so does what came earlier and has as much.
        let place = top.partition_point(|(_, more)| *more >= count);
        if place < TOP {
            top.insert(place, (String::from_utf8(path)?, count));
            top.truncate(TOP);
        }
    }
    Ok(top)
}

fn page(top: Vec<(String, i64)>) -> String {
    match top.is_empty() {
        true => "nobody came yet\n".into(),
        false => top.iter().map(|(path, count)| line(path, *count)).collect(),
    }
}

fn line(path: &str, count: i64) -> String {
    let visits = if count == 1 { "visit" } else { "visits" };
    format!("{path}: {count} {visits}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, count: &str) -> Result<(Vec<u8>, kv::Entry), Error> {
        Ok((path.into(), kv::Entry { value: count.into(), version: 1, expires: None }))
    }

    #[test]
    fn the_top_is_sorted_and_short() {
        let entries = (0..30).map(|n| entry(&format!("/{n:02}"), &(n % 7).to_string()));
        let top = top(entries).unwrap();
        assert_eq!(top.len(), TOP);
        assert_eq!(top[..5], [("/06".into(), 6), ("/13".into(), 6), ("/20".into(), 6), ("/27".into(), 6), ("/05".into(), 5)]);
        assert!(page(top).starts_with("/06: 6 visits\n/13: 6 visits\n"));
    }

    #[test]
    fn the_page_of_nothing_says_so() {
        let none = top(std::iter::empty::<Result<(Vec<u8>, kv::Entry), Error>>()).unwrap();
        assert_eq!(page(none), "nobody came yet\n");
        assert_eq!(line("/a", 1), "/a: 1 visit\n");
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        assert!(top([entry("/a", "x")].into_iter()).is_err());
    }
}
