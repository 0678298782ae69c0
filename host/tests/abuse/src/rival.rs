//! rival
use std::path::Path;
use crate::case::Scale;
use crate::report::Report;
pub(crate) fn run(_rival: &str, _binary: &Path, _scale: Scale, _report: &mut Report) -> anyhow::Result<()> { Ok(()) }
