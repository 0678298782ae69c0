//! `http` in `[grants]` of a manifest: the servers that a function may send requests to.
//!
//! Owns the messages for a list that is wrong; what a server is, `grants/http.rs` says.

use toml::Value;

use super::{ManifestError, problem, string};
use crate::grants::http::{HTTP_GRANTS_MAX, HttpGrant};

const KEY: &str = "grants.http";

/// Reads the list.
pub(super) fn grants(value: Value) -> Result<Vec<HttpGrant>, ManifestError> {
    let items = match value {
        Value::Array(items) if items.len() <= HTTP_GRANTS_MAX => items,
        Value::Array(items) => return Err(problem(KEY, format!("{} entries, expected at most {HTTP_GRANTS_MAX}", items.len()))),
        other => {
            let expected = "expected a list such as [\"https://api.example.com\"]";
            return Err(problem(KEY, format!("{expected}, found {}", other.type_str())));
        }
    };
    let mut grants: Vec<HttpGrant> = Vec::new();
    for item in items {
        let grant = string(KEY, item)?.parse().map_err(|error| problem(KEY, error))?;
        if grants.contains(&grant) {
            return Err(problem(KEY, format!("'{grant}' is there twice")));
        }
        grants.push(grant);
    }
    Ok(grants)
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    fn error(list: &str) -> String {
        Manifest::parse(&format!("[grants]\nhttp = {list}")).unwrap_err().to_string()
    }

    #[test]
    fn grants_of_http_are_read() {
        let manifest = Manifest::parse("[grants]\nhttp = ['https://api.example.com', 'http://*.example.com:8080']").unwrap();
        let written: Vec<_> = manifest.grants.http.iter().map(ToString::to_string).collect();
        assert_eq!(written, ["https://api.example.com", "http://*.example.com:8080"]);
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    }

    #[test]
    fn wrong_ones_say_what_was_expected() {
        assert!(error("'https://a'").contains("expected a list such as"));
        assert!(error("[1]").contains("grants.http"));
        assert!(error("['https://a/b']").contains("'https://a/b' is no server: expected a scheme"));
        assert!(error("['https://a', 'https://A:443']").contains("'https://a' is there twice"));
    }

    #[test]
    fn counts_on_both_sides() {
        let list = |count: usize| {
            let servers: Vec<_> = (0..count).map(|number| format!("'https://h{number}'")).collect();
            format!("[grants]\nhttp = [{}]", servers.join(","))
        };
        assert!(Manifest::parse(&list(HTTP_GRANTS_MAX)).is_ok() && Manifest::parse(&list(HTTP_GRANTS_MAX + 1)).is_err());
    }
}
