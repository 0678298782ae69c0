//! What a request asks for: `name=value&…`, where nothing needs to be decoded.

use hob_sdk::{Error, Request};

/// A query.
pub struct Query(String);

impl Query {
    /// That of a request, which must have one.
    pub fn of(request: &Request) -> Result<Self, Error> {
        Ok(Self(request.query().ok_or_else(|| Error::msg("expected ?op=…"))?.to_owned()))
    }

    /// The value of a name.
    pub fn text(&self, name: &str) -> Result<&str, Error> {
        let mut pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(key, _)| *key == name);
        found.map(|(_, value)| value).ok_or_else(|| Error::msg(format!("expected {name}=…")))
    }

    /// The value of a name that is a number.
    pub fn number(&self, name: &str) -> Result<usize, Error> {
        Ok(self.text(name)?.parse()?)
    }
}
