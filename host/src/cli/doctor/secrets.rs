//! What `hob doctor` finds of secrets: whether functions of the daemon that answers can read those that they may.
//!
//! Owns this check. It has names, and no value: the daemon tells none.

use super::super::client::Client;
use super::super::text::clean;
use super::Check;

/// Secrets that are named, each by a check of its own.
const NAMED_MAX: usize = 20;

/// The secrets that functions of the tenant want. Nothing if the daemon does not say.
pub(super) fn online(client: &Client) -> Vec<Check> {
    let name = "secrets of functions";
    let unreadable = match client.unreadable_secrets() {
        Ok(list) => list.unreadable,
        // Without a token, say: the other checks of the daemon say what is wrong with asking.
        Err(failure) => {
            return vec![Check::absent(name, format!("not known: {}", clean(&failure.sentence())), "hob secret ls")];
        }
    };
    let Some(unreadable) = unreadable else { return Vec::new() };
    if unreadable.is_empty() {
        return vec![Check::good(name, "can be read")];
    }
    let mut checks: Vec<_> = unreadable
        .iter()
        .take(NAMED_MAX)
        .map(|secret| {
            let name = format!("secret {} of {}", clean(&secret.name), clean(&secret.function));
            Check::bad(name, clean(&secret.why), format!("hob secret set {}", clean(&secret.name)))
        })
        .collect();
    if unreadable.len() > NAMED_MAX {
        checks.push(Check::bad(name, format!("{} more cannot be read", unreadable.len() - NAMED_MAX), "hob secret ls"));
    }
    checks
}
