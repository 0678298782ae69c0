//! The environment of the process: the only place of Hob that reads variables.

use std::path::PathBuf;

/// A variable, if it is set to text.
#[expect(clippy::disallowed_methods, reason = "configuration is read here, in cli, and passed on")]
pub(super) fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Where the daemon keeps its data when nobody says: `$XDG_DATA_HOME/hob`, else `~/.local/share/hob`. `None` without a home.
pub(super) fn data_dir() -> Option<PathBuf> {
    let share = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")))?;
    Some(share.join("hob"))
}

/// Where what the user told this program is kept: `$XDG_CONFIG_HOME/hob`, else `~/.config/hob`. `None` without a home.
pub(super) fn config_dir() -> Option<PathBuf> {
    let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(config.join("hob"))
}

/// Where systemd shows this service its credentials, if it has any.
pub(super) fn credentials_dir() -> Option<PathBuf> {
    absolute("CREDENTIALS_DIRECTORY")
}

/// A path. A relative one means nothing here (XDG Base Directory Specification 0.8).
fn absolute(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}
