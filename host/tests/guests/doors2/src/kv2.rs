//! `wasi:keyvalue` 0.2.0-draft2.

use self::generated::wasi::keyvalue::atomics::{self, Cas, CasError};
use self::generated::wasi::keyvalue::batch;
use self::generated::wasi::keyvalue::store::{Bucket, Error, open};
use crate::{Answer, done, field, text};

mod generated {
    #![allow(missing_docs)]
    wit_bindgen::generate!({ path: "../../../wit/keyvalue2", world: "imports" });
}

fn refused(error: Error) -> Answer {
    Answer::Refused(match error {
        Error::NoSuchStore => "no-such-store".into(),
        Error::AccessDenied => "access-denied".into(),
        Error::Other(text) => format!("other: {text}"),
    })
}

pub(crate) fn run(op: &str, bucket: &str, fields: &[Vec<u8>]) -> Answer {
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
            let (mut keys, mut cursor) = (Vec::new(), None::<String>);
            loop {
                let page = bucket.list_keys(cursor.as_deref())?;
                keys.extend(page.keys.into_iter().map(String::into_bytes));
                cursor = page.cursor;
                if cursor.is_none() {
                    return Ok(Answer::Fields(keys));
                }
            }
        }
        ("list-from", [cursor]) => {
            let page = bucket.list_keys(Some(&text(cursor)))?;
            Answer::Fields(page.keys.into_iter().map(String::into_bytes).collect())
        }
        ("get-many", _) => {
            let found = batch::get_many(&bucket, &keys())?;
            // For each key one field: nothing, or a 1 and the value.
            let found = found.into_iter().map(|(_, value)| value.map_or(Vec::new(), |value| [vec![1], value].concat()));
            Answer::Fields(found.collect())
        }
        ("set-many", _) => {
            let pairs: Vec<_> = fields.chunks(2).map(|pair| (text(&pair[0]), pair[1].clone())).collect();
            batch::set_many(&bucket, &pairs).map(|()| done())?
        }
        ("delete-many", _) => batch::delete_many(&bucket, &keys()).map(|()| done())?,
        // Swaps if what is there is as expected: the second field, or nothing without a third one.
        ("swap", [key, value, expected @ ..]) => {
            let cas = Cas::new(&bucket, &text(key))?;
            if cas.current()?.as_ref() != expected.first() {
                return Ok(Answer::TooLate);
            }
            swap(atomics::swap(cas, value), |_| Ok(Answer::TooLate))?
        }
        // Swaps behind its own back, and then with the handle that it gets for that.
        ("swap-late", [key, value]) => {
            let cas = Cas::new(&bucket, &text(key))?;
            bucket.set(&text(key), b"meanwhile")?;
            swap(atomics::swap(cas, b"too late"), |again| {
                let seen = again.current()?;
                let swapped = atomics::swap(again, value);
                swap(swapped, |_| Ok(Answer::TooLate)).map(|_| seen.map_or(Answer::Nothing, field))
            })?
        }
        _ => Answer::Refused(format!("no such operation: {op}")),
    })
}

fn swap(swapped: Result<(), CasError>, late: impl FnOnce(Cas) -> Result<Answer, Error>) -> Result<Answer, Error> {
    match swapped {
        Ok(()) => Ok(done()),
        Err(CasError::StoreError(error)) => Err(error),
        Err(CasError::CasFailed(again)) => late(again),
    }
}
