//! `wasi:config` under all names that it had.

use crate::{Answer, field, text};

mod draft {
    #![allow(missing_docs)]
    wit_bindgen::generate!({
        inline: "
            package wasi:config@0.2.0-draft;
            interface store {
                variant error { upstream(string), io(string) }
                get: func(key: string) -> result<option<string>, error>;
                get-all: func() -> result<list<tuple<string, string>>, error>;
            }
            interface runtime {
                variant config-error { upstream(string), io(string) }
                get: func(key: string) -> result<option<string>, config-error>;
                get-all: func() -> result<list<tuple<string, string>>, config-error>;
            }
            world imports { import store; import runtime; }
        ",
    });
}

mod spin {
    #![allow(missing_docs)]
    wit_bindgen::generate!({
        inline: "
            package wasi:config@0.2.0-draft-2024-09-27;
            interface store {
                variant error { upstream(string), io(string) }
                get: func(key: string) -> result<option<string>, error>;
                get-all: func() -> result<list<tuple<string, string>>, error>;
            }
            world imports { import store; }
        ",
    });
}

mod rc1 {
    #![allow(missing_docs)]
    wit_bindgen::generate!({
        inline: "
            package wasi:config@0.2.0-rc.1;
            interface store {
                variant error { upstream(string), io(string) }
                get: func(key: string) -> result<option<string>, error>;
                get-all: func() -> result<list<tuple<string, string>>, error>;
            }
            world imports { import store; }
        ",
    });
}

/// The value of the first field; without one, all names and values.
pub(crate) fn run(name: &str, fields: &[Vec<u8>]) -> Answer {
    let key = fields.first().map(|key| text(key));
    match name {
        "runtime" => answer(key, |key| draft::wasi::config::runtime::get(key), draft::wasi::config::runtime::get_all),
        "draft" => answer(key, |key| draft::wasi::config::store::get(key), draft::wasi::config::store::get_all),
        "spin" => answer(key, |key| spin::wasi::config::store::get(key), spin::wasi::config::store::get_all),
        "rc1" => answer(key, |key| rc1::wasi::config::store::get(key), rc1::wasi::config::store::get_all),
        _ => Answer::Refused(format!("no such name: {name}")),
    }
}

fn answer<E: std::fmt::Debug>(
    key: Option<String>,
    get: impl Fn(&str) -> Result<Option<String>, E>,
    all: impl Fn() -> Result<Vec<(String, String)>, E>,
) -> Answer {
    match key {
        Some(key) => match get(&key) {
            Ok(value) => value.map_or(Answer::Nothing, field),
            Err(error) => Answer::Refused(format!("{error:?}")),
        },
        None => match all() {
            Ok(pairs) => {
                Answer::Fields(pairs.into_iter().flat_map(|(key, value)| [key.into_bytes(), value.into_bytes()]).collect())
            }
            Err(error) => Answer::Refused(format!("{error:?}")),
        },
    }
}
