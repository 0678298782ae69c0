//! Tokens: what they look like, what they allow, and how they are kept.
//!
//! ```text
//! hob_ 64 hexadecimal digits, 8 more
//!      256 random bits        first 4 bytes of SHA-256 over all that stands before: a typing error is found without a node, and a
//!                             scanner for secrets knows a token when it sees one
//! ```
//!
//! Owns that spelling and the scopes. Knows nothing about who has which. Invariant: a node keeps the SHA-256 of a token's text and never
//! the text. Looking a token up by that hash takes a time that says nothing about other tokens: who chooses texts does not choose hashes.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::Digest;

/// Longest life of a token that has an end.
pub const EXPIRES_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// What every token begins with.
pub const PREFIX: &str = "hob_";
/// Random bytes of a token.
const RANDOM_LEN: usize = 32;
/// Hexadecimal digits of the checksum.
const CHECKSUM_LEN: usize = 8;
/// Bytes of a token as text.
pub const TOKEN_LEN: usize = PREFIX.len() + 2 * RANDOM_LEN + CHECKSUM_LEN;

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// To look: functions, logs, buckets and what is in them.
    Read,
    /// To invoke functions.
    Invoke,
    /// To change functions, buckets and what is in them, and to look.
    Deploy,
    /// Everything, tokens among it.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Invoke, Self::Deploy, Self::Admin];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Invoke => "invoke",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that names no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no scope: expected 'read', 'invoke', 'deploy' or 'admin'")]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| UnknownScope(text.chars().take(80).collect()))
    }
}

/// Several scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "Vec<Scope>", from = "Vec<Scope>")]
pub struct Scopes(u8);

impl Scopes {
    /// Whether what `scope` stands for is allowed: `admin` allows all, `deploy` allows to read too.
    #[must_use]
    pub fn allow(self, scope: Scope) -> bool {
        self.has(scope) || self.has(Scope::Admin) || (scope == Scope::Read && self.has(Scope::Deploy))
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn has(self, scope: Scope) -> bool {
        self.0 & 1 << scope as u8 != 0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.has(*scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | 1 << scope as u8))
    }
}

impl From<Vec<Scope>> for Scopes {
    fn from(scopes: Vec<Scope>) -> Self {
        scopes.into_iter().collect()
    }
}

impl From<Scopes> for Vec<Scope> {
    fn from(scopes: Scopes) -> Self {
        scopes.iter().collect()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.iter().map(Scope::as_str).collect();
        f.write_str(&words.join(","))
    }
}

/// The text of a token. Printing it for debugging shows none of it.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText(String);

/// Text that cannot be a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no token: expected '{PREFIX}' and {} hexadecimal digits, the last {CHECKSUM_LEN} of which are a checksum", TOKEN_LEN - PREFIX.len())]
pub struct NoToken;

impl TokenText {
    /// A new token.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; RANDOM_LEN];
        getrandom::fill(&mut bytes)?;
        let body = format!("{PREFIX}{}", Digest::from_bytes(bytes).hex());
        Ok(Self(format!("{body}{}", checksum(&body))))
    }

    /// The text itself: to be shown once, or sent.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What a node keeps of it.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

fn checksum(body: &str) -> String {
    Digest::of(body.as_bytes()).hex()[..CHECKSUM_LEN].to_owned()
}

impl FromStr for TokenText {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let digits = text.strip_prefix(PREFIX).ok_or(NoToken)?;
        if text.len() != TOKEN_LEN || !digits.bytes().all(is_hex) {
            return Err(NoToken);
        }
        let (body, sum) = text.split_at(TOKEN_LEN - CHECKSUM_LEN);
        if checksum(body) == sum { Ok(Self(text.to_owned())) } else { Err(NoToken) }
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_again_and_no_other_text_is() {
        let token = TokenText::random().unwrap();
        let text = token.reveal().to_owned();
        assert_eq!((text.len(), text.parse().as_ref()), (TOKEN_LEN, Ok(&token)));
        assert_ne!(TokenText::random().unwrap(), token);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(String::from_utf8(bytes).unwrap().parse::<TokenText>(), Err(NoToken), "byte {at}");
        }
        for bad in
            ["", "hob_", &text[1..], &text[..TOKEN_LEN - 1], &format!("{text}0"), &text.to_uppercase(), &format!(" {text}")]
        {
            assert_eq!(bad.parse::<TokenText>(), Err(NoToken), "{bad}");
        }
        assert!(!format!("{token:?}").contains(&text[4..12]));
    }

    #[test]
    fn what_scopes_allow() {
        let of = |scopes: &[Scope]| scopes.iter().copied().collect::<Scopes>();
        for (has, allowed) in [
            (Scope::Read, &[Scope::Read][..]),
            (Scope::Invoke, &[Scope::Invoke]),
            (Scope::Deploy, &[Scope::Read, Scope::Deploy]),
            (Scope::Admin, &Scope::ALL),
        ] {
            for scope in Scope::ALL {
                assert_eq!(of(&[has]).allow(scope), allowed.contains(&scope), "{has} {scope}");
            }
            assert_eq!(has.as_str().parse(), Ok(has));
        }
        assert!(Scope::ALL.into_iter().all(|scope| !of(&[]).allow(scope)) && of(&[]).is_empty());
        let both = of(&[Scope::Invoke, Scope::Read]);
        let json = serde_json::to_string(&both).unwrap();
        assert_eq!((json.as_str(), serde_json::from_str::<Scopes>(&json).unwrap()), (r#"["read","invoke"]"#, both));
        assert!("Read".parse::<Scope>().is_err() && serde_json::from_str::<Scopes>(r#"["root"]"#).is_err());
    }
}
