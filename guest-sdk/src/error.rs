//! The one error type that handlers return.
//!
//! Owns how an error becomes the text of a log entry. Knows nothing about responses.

use std::error::Error as StdError;
use std::fmt;

/// Why a handler failed. Any error type and any text become one by `?` or `into`.
///
/// When a handler returns it, the client gets a 500 without details and [the text](Self#impl-Display-for-Error) goes to the
/// function's log. An error that the client should see is a [`Response`](crate::Response) with a status of the handler's choice.
///
/// It holds no backtrace and, like every type that converts from all errors, is not itself a [`std::error::Error`].
pub struct Error(Box<dyn StdError + Send + Sync>);

impl Error {
    /// An error that is only a text.
    pub fn msg(text: impl fmt::Display) -> Self {
        Self(text.to_string().into())
    }

    /// The error within, for a look at its type with `downcast_ref`.
    #[must_use]
    pub fn inner(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.0
    }
}

impl<E: Into<Box<dyn StdError + Send + Sync>>> From<E> for Error {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

/// The error and what caused it, one after the other, with `: ` between.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// The same as [`Display`](fmt::Display): what `unwrap` in a test shows.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::num::ParseIntError);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the size is not a number")
        }
    }

    impl StdError for Outer {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn the_text_names_every_cause() {
        let fail = || -> Result<(), Error> { Err("x".parse::<u8>().map_err(Outer).unwrap_err())? };
        assert_eq!(fail().unwrap_err().to_string(), "the size is not a number: invalid digit found in string");
        assert!(fail().unwrap_err().inner().downcast_ref::<Outer>().is_some());
    }

    #[test]
    fn text_becomes_an_error_by_question_mark() {
        let fail = |text: &'static str| -> Result<(), Error> { Err(text)? };
        assert_eq!(format!("{:?}", fail("no key").unwrap_err()), "no key");
        assert_eq!(Error::msg(format_args!("no {}", 1)).to_string(), "no 1");
    }
}
