//! Configurations that would leave a node open, or that make no sense.

use std::path::Path;
use std::process::{Command, Stdio};

/// Arguments of `hob serve`, the code that it ends with, and a word of what it says. `open.toml`, `typo.toml`, `short.key` and the folder
/// `foreign` are what [`serve`] puts there.
pub(crate) const BAD_STARTS: [(&[&str], i32, &str); 30] = [
    // The control port where others reach it.
    (&["--control", "0.0.0.0:0"], 1, "net.control is 0.0.0.0:0"),
    (&["--control", "0.0.0.0:3900"], 1, "--control 127.0.0.1:3900"),
    (&["--control", "[::]:0"], 1, "net.control is [::]:0"),
    (&["--control", "192.0.2.1:3900"], 1, "net.control"),
    (&["--control", "10.0.0.1:3900"], 1, "net.control"),
    (&["--control", "169.254.1.1:3900"], 1, "net.control"),
    (&["--control", "[fe80::1]:3900"], 1, "net.control"),
    (&["--control", "[2001:db8::1]:3900"], 1, "net.control"),
    (&["--control", "[::ffff:10.0.0.1]:3900"], 1, "net.control"),
    (&["--control", "224.0.0.1:3900"], 1, "net.control"),
    (&["--set", "net.control=0.0.0.0:0"], 1, "net.control"),
    (&["--config", "open.toml"], 1, "net.control"),
    (&["--config", "open.toml", "--set", "net.addr=127.0.0.1:0"], 1, "net.control"),
    // What is no address.
    (&["--control", "localhost"], 2, "--control"),
    (&["--control", ":3900"], 2, "--control"),
    (&["--control", "127.0.0.1:99999"], 2, "--control"),
    (&["--set", "net.control=everywhere"], 1, "control"),
    // Hosts.
    (&["--base-domain", "http://hob.example"], 2, "no name of a host"),
    (&["--base-domain", "*.hob.example"], 2, "no name of a host"),
    (&["--set", "net.base_domain=hob example"], 1, "no name of a host"),
    // What nobody knows.
    (&["--set", "net.tokens=off"], 1, "tokens"),
    (&["--set", "net.contorl=127.0.0.1:0"], 1, "contorl"),
    (&["--config", "typo.toml"], 1, "nett"),
    (&["--config", "missing.toml"], 1, "missing.toml"),
    (&["--no-auth"], 2, "--no-auth"),
    // Limits that are none.
    (&["--control", "127.0.0.1:0", "--set", "net.control_connections_max=0"], 1, "net.control_connections_max"),
    (&["--control", "127.0.0.1:0", "--set", "net.connections_max=0"], 1, "net.connections_max"),
    (&["--control", "127.0.0.1:0", "--set", "net.header_timeout=0s"], 1, "net.header_timeout"),
    // Files.
    (&["--control", "127.0.0.1:0", "--key-file", "short.key"], 1, "chmod 600"),
    (&["--control", "127.0.0.1:0", "--data-dir", "foreign"], 1, "not a data directory"),
];

/// Runs `hob serve` with these arguments, in a folder of its own: how it ended, and what it said.
pub(crate) fn serve(binary: &Path, args: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary);
    command.args(["serve", "--addr", "127.0.0.1:0"]).args(args).current_dir(dir.path()).stdin(Stdio::null());
    let data = dir.path().join("data");
    if !args.contains(&"--data-dir") {
        command.arg("--data-dir").arg(&data);
    }
    std::fs::write(dir.path().join("open.toml"), "[net]\ncontrol = '0.0.0.0:0'\n").unwrap();
    std::fs::write(dir.path().join("typo.toml"), "[nett]\ncontrol = '127.0.0.1:0'\n").unwrap();
    std::fs::write(dir.path().join("short.key"), "x").unwrap();
    std::fs::create_dir(dir.path().join("foreign")).unwrap();
    std::fs::write(dir.path().join("foreign/letter"), "dear").unwrap();
    let output = command.env_remove("HOME").env_remove("XDG_DATA_HOME").output().unwrap();
    assert!(output.stdout.is_empty(), "it said that it is ready: {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}
