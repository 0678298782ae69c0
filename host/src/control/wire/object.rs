//! Structs that only a JSON object is read as.
//!
//! serde reads a struct from an array too, by the order of its fields, which nobody promised: `["volatile", 5]` would define a bucket.
//! Owns what refuses that. Knows nothing about the structs.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};

/// Reads a struct.
///
/// # Errors
/// What is wrong, for anything but an object with its members.
pub(in crate::control) fn object<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(text).map(|Object(read)| read)
}

/// For `deserialize_with`: a list of structs.
pub(super) fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Vec::deserialize(from)?.into_iter().map(|Object(read)| read).collect())
}

struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Members(PhantomData))
    }
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members)).map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[serde(deserialize_with = "objects")]
        list: Vec<Inner>,
        #[serde(default)]
        more: u8,
    }

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        a: u8,
    }

    #[test]
    fn an_array_is_no_struct_at_any_depth() {
        let read = |text: &str| object::<Outer>(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(
            read(r#" {"list": [{"a": 1}, {"a": 2}]} "#),
            Ok(Outer { list: vec![Inner { a: 1 }, Inner { a: 2 }], more: 0 })
        );
        assert_eq!(read(r#"{"more": 3, "list": []}"#), Ok(Outer { list: vec![], more: 3 }));
        for bad in ["[[], 3]", "[]", "7", "null", "\"\"", r#"{"list": [[1]]}"#, r#"{"list": [{"a": 1}, []]}"#] {
            assert!(read(bad).unwrap_err().contains("expected a JSON object"), "{bad}: {:?}", read(bad));
        }
        // As without it.
        for (bad, words) in [
            ("", "EOF"),
            ("{}", "missing field `list`"),
            (r#"{"list": [], "x": 1}"#, "unknown field `x`"),
            (r#"{"list": [], "list": []}"#, "duplicate field"),
            (r#"{"list": [{"a": 300}]}"#, "300"),
            (r#"{"list": []} x"#, "trailing"),
        ] {
            assert!(read(bad).unwrap_err().contains(words), "{bad}: {:?}", read(bad));
        }
    }
}
