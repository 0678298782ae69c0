//! What `hob doctor` finds of secrets: whether functions of the daemon that answers can read those that they may.
//!
//! Owns this check. It has names, and no value: the daemon tells none.

use super::super::client::Client;
use super::super::text::clean;
use super::Check;
use crate::control::wire::{SecretList, UnreadableSecret};

/// Functions that one request asks about: the daemon answers in time, and others get at the place that it has for this.
const PAGE: usize = 100;
/// Secrets that are named, each by a check of its own.
const NAMED_MAX: usize = 20;

/// What it is called that there are such secrets, or none.
const NAME: &str = "secrets of functions";

/// The secrets that functions of the tenant want. Nothing if the daemon does not say.
pub(super) fn online(client: &Client) -> Vec<Check> {
    let (mut unreadable, mut cursor) = (Vec::new(), None::<String>);
    loop {
        match client.unreadable_secrets(cursor.as_deref(), PAGE) {
            Ok(SecretList { unreadable: None, .. }) => return Vec::new(),
            Ok(SecretList { unreadable: Some(found), next, .. }) => {
                unreadable.extend(found);
                match next {
                    // Names rise from page to page; a daemon that has another order is not followed.
                    Some(next) if cursor.as_ref().is_none_or(|last| next > *last) => cursor = Some(next),
                    _ => break,
                }
            }
            Err(failure) => {
                let mut checks = named(&unreadable);
                checks.push(unknown(cursor.as_deref(), &failure.sentence()));
                return checks;
            }
        }
    }
    if unreadable.is_empty() { vec![Check::good(NAME, "can be read")] } else { named(&unreadable) }
}

fn named(unreadable: &[UnreadableSecret]) -> Vec<Check> {
    let check = |secret: &UnreadableSecret| {
        let name = format!("secret {} of {}", clean(&secret.name), clean(&secret.function));
        Check::bad(name, clean(&secret.why), format!("hob secret set {}", clean(&secret.name)))
    };
    let mut checks: Vec<_> = unreadable.iter().take(NAMED_MAX).map(check).collect();
    if unreadable.len() > NAMED_MAX {
        checks.push(Check::bad(NAME, format!("{} more cannot be read", unreadable.len() - NAMED_MAX), "hob secret ls"));
    }
    checks
}

/// That nothing is known of the functions after `last`.
fn unknown(last: Option<&str>, why: &str) -> Check {
    match last {
        // Without a token, say: the other checks of the daemon say what is wrong with asking.
        None => Check::absent(NAME, format!("not known: {}", clean(why)), "hob secret ls"),
        Some(last) => {
            Check::absent(NAME, format!("not known of functions after '{}': {}", clean(last), clean(why)), "hob doctor")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn what_was_not_looked_at_is_said() {
        assert_eq!(unknown(None, "too many\u{1b}").found, "not known: too many\\u{1b}");
        let check = unknown(Some("f099"), "too many");
        assert_eq!(check.found, "not known of functions after 'f099': too many");
        assert!(check.state == State::Absent && check.remedy.as_deref() == Some("hob doctor"));
    }

    #[test]
    fn some_are_named_and_the_rest_is_counted() {
        let secret = |number| UnreadableSecret { function: "f".into(), name: format!("S{number}"), why: "gone".into() };
        let all: Vec<_> = (0..=NAMED_MAX).map(secret).collect();
        assert_eq!(named(&all[..NAMED_MAX]).last().unwrap().name, "secret S19 of f");
        let checks = named(&all);
        assert_eq!((checks.len(), checks[NAMED_MAX].found.as_str()), (NAMED_MAX + 1, "1 more cannot be read"));
    }
}
