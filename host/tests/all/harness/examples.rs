//! The examples, built as a user would build them: once for all tests, whichever of them comes first.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// An example that was built.
#[derive(Debug)]
pub(crate) struct Example {
    pub(crate) wasm: Vec<u8>,
    /// Text of its `hob.toml`.
    pub(crate) manifest: String,
}

const TARGETS: [(&str, &[&str]); 2] = [
    ("wasm32-wasip1", &["hello", "wordcount", "thumbnail", "geoip", "frozen"]),
    ("wasm32-wasip2", &["hello-http", "hello-http3"]),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// The example of this name.
pub(crate) fn example(name: &str) -> Example {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(build);
    let target = TARGETS.iter().find(|(_, names)| names.contains(&name)).unwrap().0;
    let wasm = folder().join(format!("target/{target}/release/{}.wasm", name.replace('-', "_")));
    let manifest = folder().join(name).join("hob.toml");
    Example { wasm: std::fs::read(wasm).unwrap(), manifest: std::fs::read_to_string(manifest).unwrap() }
}

/// Cargo's own lock on the target folder keeps test processes that run side by side from building at once.
fn build() {
    add_targets();
    for (target, names) in TARGETS {
        let mut command = Command::new("cargo");
        command.current_dir(folder()).args(["build", "--release", "--quiet", "--target-dir", "target", "--target", target]);
        // What the host's packages are built with is not for guests.
        command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
        for name in names {
            command.args(["-p", name]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn add_targets() {
    let listed = Command::new("rustup").args(["target", "list", "--installed"]).output();
    // Without rustup the targets come from wherever the compiler came from; if they are missing, the build says so.
    let Ok(listed) = listed else { return };
    let installed = String::from_utf8_lossy(&listed.stdout);
    for (target, _) in TARGETS {
        if !installed.lines().any(|line| line == target) {
            let added = Command::new("rustup").args(["target", "add", target]).output().unwrap();
            assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        }
    }
}
