//! `wasi:keyvalue` 0.2.0-draft.

use std::sync::Mutex;

use self::generated::wasi::keyvalue::store::{Bucket, Error, open};
use self::generated::wasi::keyvalue::{atomics, batch};
use crate::{Answer, done, field, text};

mod generated {
    #![allow(missing_docs)]
    wit_bindgen::generate!({ path: "../../../wit/keyvalue", world: "imports" });
}

/// A bucket that outlives its request.
static KEPT: Mutex<Option<Bucket>> = Mutex::new(None);

fn refused(error: Error) -> Answer {
    Answer::Refused(match error {
        Error::NoSuchStore => "no-such-store".into(),
        Error::AccessDenied => "access-denied".into(),
        Error::Other(text) => format!("other: {text}"),
    })
}

pub(crate) fn run(op: &str, bucket: &str, fields: &[Vec<u8>]) -> Answer {
    if op == "open-many" {
        return open_many(bucket);
    }
    match open(bucket).and_then(|bucket| with(op, bucket, fields)) {
        Ok(answer) => answer,
        Err(error) => refused(error),
    }
}

fn with(op: &str, bucket: Bucket, fields: &[Vec<u8>]) -> Result<Answer, Error> {
    let keys = || fields.iter().map(|field| text(field)).collect::<Vec<_>>();
    Ok(match (op, fields) {
        ("get", [key]) => bucket.get(&text(key))?.map_or(Answer::Nothing, field),
        ("set", [key, value]) => bucket.set(&text(key), value).map(|()| done())?,
        ("delete", [key]) => bucket.delete(&text(key)).map(|()| done())?,
        ("exists", [key]) => field(bucket.exists(&text(key))?.to_string()),
        ("increment", [key, by]) => {
            let by = text(by).parse().map_err(|_| Error::Other("not in this interface".into()))?;
            field(atomics::increment(&bucket, &text(key), by)?.to_string())
        }
        ("keys", []) => {
            let (mut keys, mut cursor) = (Vec::new(), None);
            loop {
                let page = bucket.list_keys(cursor)?;
                keys.extend(page.keys.into_iter().map(String::into_bytes));
                cursor = page.cursor;
                if cursor.is_none() {
                    return Ok(Answer::Fields(keys));
                }
            }
        }
        ("list-from", [cursor]) => {
            let page = bucket.list_keys(Some(text(cursor).parse().expect("the test sends a number")))?;
            Answer::Fields(page.keys.into_iter().map(String::into_bytes).collect())
        }
        ("get-many", _) => {
            let found = batch::get_many(&bucket, &keys())?;
            // For each key one field: nothing, or a 1 and the value.
            Answer::Fields(
                found.into_iter().map(|found| found.map_or(Vec::new(), |(_, value)| [vec![1], value].concat())).collect(),
            )
        }
        ("set-many", _) => {
            let pairs: Vec<_> = fields.chunks(2).map(|pair| (text(&pair[0]), pair[1].clone())).collect();
            batch::set_many(&bucket, &pairs).map(|()| done())?
        }
        ("delete-many", _) => batch::delete_many(&bucket, &keys()).map(|()| done())?,
        ("keep", []) => {
            *KEPT.lock().expect("nobody panics") = Some(bucket);
            done()
        }
        _ => Answer::Refused(format!("no such operation: {op}")),
    })
}

/// Opens a bucket until that is refused: how often it went well, and the refusal.
fn open_many(bucket: &str) -> Answer {
    let mut open_now = Vec::new();
    loop {
        match open(bucket) {
            Ok(bucket) => open_now.push(bucket),
            Err(Error::Other(words)) => return Answer::Fields(vec![open_now.len().to_string().into_bytes(), words.into_bytes()]),
            Err(error) => return refused(error),
        }
    }
}
