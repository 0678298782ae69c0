//! Routes: which requests belong to a function, as its manifest declares them.
//!
//! Owns the form of one route and how two compare. Knows nothing about functions or tables of routes.
//! Invariant: a parsed route is normalised, so two routes that match the same requests are equal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A declared route: path, and optionally host and method.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// What the path must be.
    pub path: PathPattern,
    /// The `Host` that the request must name, lower case and without port; any when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The method that the request must have; any when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// `/shop` matches that path alone; `/shop/*` matches `/shop`, `/shop/` and everything below.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PathPattern {
    /// Without the final `/*`; empty for `/*`.
    base: String,
    /// Whether paths below `base` match too.
    below: bool,
}

/// A route that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The path is malformed.
    #[error("route '{0}' is not valid: expected a path such as \"/shop\" or \"/shop/*\", without query, '*' elsewhere, or '..'")]
    Path(String),
    /// The host is malformed.
    #[error("route host '{0}' is not valid: expected a name such as \"shop.example.com\", without scheme or port")]
    Host(String),
    /// The method is malformed.
    #[error("route method '{0}' is not valid: expected an HTTP method in capitals, such as \"GET\"")]
    Method(String),
}

/// Longest path of a route, in bytes.
pub const ROUTE_LEN_MAX: usize = 1024;

impl FromStr for PathPattern {
    type Err = RouteError;
    fn from_str(text: &str) -> Result<Self, RouteError> {
        let (base, below) = match text.strip_suffix("/*") {
            Some(base) => (base, true),
            None => (text, false),
        };
        let legal = |b: u8| b.is_ascii_graphic() && !b"*?#\"<>\\^`{|}".contains(&b);
        let good = text.starts_with('/')
            && text.len() <= ROUTE_LEN_MAX
            && base.bytes().all(legal)
            && !base.split('/').any(|part| part == ".." || part == ".")
            && !base.contains("//");
        if good { Ok(Self { base: base.into(), below }) } else { Err(RouteError::Path(text.into())) }
    }
}

impl TryFrom<String> for PathPattern {
    type Error = RouteError;
    fn try_from(text: String) -> Result<Self, RouteError> {
        text.parse()
    }
}

impl From<PathPattern> for String {
    fn from(pattern: PathPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.base, if self.below { "/*" } else { "" })
    }
}

impl PathPattern {
    /// The fixed part of the path, without the final `/*`.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Whether `path` (absolute, without query) belongs to this pattern.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match path.strip_prefix(self.base.as_str()) {
            Some("") => self.below || !self.base.is_empty(),
            Some(rest) => self.below && rest.starts_with('/'),
            None => false,
        }
    }

    /// Length by which the longest match wins: more of the path fixed is longer, an exact path beats a prefix.
    #[must_use]
    pub fn specificity(&self) -> usize {
        2 * self.base.len() + usize::from(!self.below)
    }
}

impl Route {
    /// Builds a route from the manifest's words.
    ///
    /// # Errors
    /// [`RouteError`] says which of the three is malformed and what it should look like.
    pub fn new(path: &str, host: Option<&str>, method: Option<&str>) -> Result<Self, RouteError> {
        // Of requests a final dot is taken off too.
        let host = host.map(|host| host.strip_suffix('.').unwrap_or(host));
        let host_ok = |host: &str| {
            !host.is_empty() && host.len() <= 253 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        };
        let method_ok = |method: &str| !method.is_empty() && method.len() <= 32 && method.bytes().all(|b| b.is_ascii_uppercase());
        if let Some(host) = host.filter(|host| !host_ok(host)) {
            return Err(RouteError::Host(host.into()));
        }
        if let Some(method) = method.filter(|method| !method_ok(method)) {
            return Err(RouteError::Method(method.into()));
        }
        Ok(Self { path: path.parse()?, host: host.map(str::to_ascii_lowercase), method: method.map(Into::into) })
    }

    /// Whether a request belongs to this route. `host`: lower case, without port and final dot.
    #[must_use]
    pub fn matches(&self, host: &str, method: &str, path: &str) -> bool {
        self.host.as_deref().is_none_or(|mine| mine == host)
            && self.method.as_deref().is_none_or(|mine| mine == method)
            && self.path.matches(path)
    }

    /// Which of two matching routes wins: the longer path, then the one that names a host, then the one that names a method.
    #[must_use]
    pub fn rank(&self) -> (usize, bool, bool) {
        (self.path.specificity(), self.host.is_some(), self.method.is_some())
    }
}

impl FromStr for Route {
    type Err = RouteError;
    /// The inverse of printing: `GET shop.example.com/cart/*`, where method and host may be absent.
    fn from_str(text: &str) -> Result<Self, RouteError> {
        let (method, rest) = text.split_once(' ').map_or((None, text), |(method, rest)| (Some(method), rest));
        let (host, path) = rest.split_at(rest.find('/').ok_or_else(|| RouteError::Path(rest.into()))?);
        Self::new(path, Some(host).filter(|host| !host.is_empty()), method)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(method) = &self.method {
            write!(f, "{method} ")?;
        }
        write!(f, "{}{}", self.host.as_deref().unwrap_or(""), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        pattern.parse::<PathPattern>().unwrap().matches(path)
    }

    #[test]
    fn paths_match_whole_segments() {
        assert!(matches("/shop/*", "/shop") && matches("/shop/*", "/shop/") && matches("/shop/*", "/shop/a/b"));
        assert!(!matches("/shop/*", "/shopping") && !matches("/shop/*", "/sho") && !matches("/shop/*", "/"));
        assert!(matches("/shop", "/shop") && !matches("/shop", "/shop/"));
        assert!(matches("/*", "/") && matches("/*", "/a") && matches("/", "/") && !matches("/", "/a"));
    }

    #[test]
    fn longer_then_exact_then_host_then_method_wins() {
        let route = |path, host, method| Route::new(path, host, method).unwrap().rank();
        assert!(route("/a/b/*", None, None) > route("/a/*", Some("h"), Some("GET")));
        assert!(route("/a", None, None) > route("/a/*", None, None));
        assert!(route("/a", Some("h"), None) > route("/a", None, Some("GET")));
    }

    #[test]
    fn a_final_dot_of_a_host_is_no_part_of_it() {
        let route = Route::new("/*", Some("Shop.Example."), None).unwrap();
        assert!(route.matches("shop.example", "GET", "/") && route.to_string() == "shop.example/*");
        assert!(Route::new("/*", Some("."), None).is_err());
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for (path, host, method) in
            [("/*", None, None), ("/a/*", Some("h.example"), None), ("/a", None, Some("GET")), ("/", Some("h"), Some("PUT"))]
        {
            let route = Route::new(path, host, method).unwrap();
            assert_eq!(route.to_string().parse(), Ok(route));
        }
        for bad in ["", "GET", "GET h", "get /a", "GET  /a", "h:80/a", "GET /a /b"] {
            assert!(bad.parse::<Route>().is_err(), "{bad}");
        }
    }

    #[test]
    fn malformed_routes_are_refused() {
        for bad in ["", "shop", "/a?b", "/a*", "/*/a", "/../x", "/a//b", "/a b", "/ä", &format!("/{}", "a".repeat(ROUTE_LEN_MAX))]
        {
            assert!(bad.parse::<PathPattern>().is_err(), "{bad}");
        }
        assert!(Route::new("/a", Some("http://x"), None).is_err() && Route::new("/a", Some("x:80"), None).is_err());
        assert!(Route::new("/a", None, Some("get")).is_err() && Route::new("/a", None, Some("")).is_err());
    }
}
