//! e
use crate::case::Kind;
pub(crate) const CASES: &[Kind] = &[];
