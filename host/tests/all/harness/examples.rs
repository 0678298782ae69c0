//! The examples, and guests of other runtimes, built as a user would build them: once for all tests, whichever comes first.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// An example that was built.
#[derive(Debug)]
pub(crate) struct Example {
    pub(crate) wasm: Vec<u8>,
    /// Text of its `hob.toml`.
    pub(crate) manifest: String,
}

/// A workspace of packages for Wasm.
struct Workspace {
    /// From the folder of the host's package.
    folder: &'static str,
    /// For which target each package is built.
    targets: &'static [(&'static str, &'static [&'static str])],
    built: OnceLock<()>,
}

static EXAMPLES: Workspace = Workspace {
    folder: "../examples",
    targets: &[
        ("wasm32-wasip1", &["hello", "wordcount", "thumbnail", "geoip", "frozen", "counter"]),
        ("wasm32-wasip2", &["hello-http", "hello-http3"]),
    ],
    built: OnceLock::new(),
};

static GUESTS: Workspace = Workspace {
    folder: "tests/guests",
    targets: &[
        ("wasm32-wasip1", &["cli2", "data1", "fetch1", "files1", "paths1", "spin5"]),
        (
            "wasm32-wasip2",
            &[
                "cli3", "counter2", "doors2", "fetch2", "fetch3", "files2", "holds2", "holds3", "keeps3", "reach2", "reaches",
                "spin7",
            ],
        ),
    ],
    built: OnceLock::new(),
};

/// The example of this name.
pub(crate) fn example(name: &str) -> Example {
    let manifest = EXAMPLES.folder().join(name).join("hob.toml");
    Example { wasm: std::fs::read(EXAMPLES.wasm(name)).unwrap(), manifest: std::fs::read_to_string(manifest).unwrap() }
}

/// A language that not every machine has the tools of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tools {
    /// The program, as `HOB_TEST_REQUIRE` names it.
    program: &'static str,
    /// A shell command that succeeds where examples can be built.
    probe: &'static str,
}

pub(crate) const PYTHON: Tools = Tools { program: "python3", probe: "python3 -c 'import ensurepip, venv'" };
pub(crate) const NODE: Tools = Tools { program: "node", probe: "node --version && npm --version" };

/// The example of this name, built by its own `build`; `None` without the tools, which is a failure if `HOB_TEST_REQUIRE` names
/// them (`python3,node`).
pub(crate) fn example_with(tools: Tools, name: &str) -> Option<Example> {
    let dir = EXAMPLES.folder().join(name);
    let Tools { program, probe } = tools;
    let found = Command::new("sh").args(["-c", probe]).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    if !super::is_there(program, found.success(), name) {
        return None;
    }
    let output = Command::new("./build").current_dir(&dir).output().unwrap();
    assert!(output.status.success(), "{name}/build:\n{}", String::from_utf8_lossy(&output.stderr));
    let manifest = std::fs::read_to_string(dir.join("hob.toml")).unwrap();
    let wasm = hob::manifest::Manifest::parse(&manifest).unwrap().wasm.unwrap();
    Some(Example { wasm: std::fs::read(dir.join(wasm)).unwrap(), manifest })
}

/// The file of a guest that was written for other runtimes.
pub(crate) fn guest(name: &str) -> PathBuf {
    GUESTS.wasm(name)
}

impl Workspace {
    fn folder(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.folder)
    }

    /// What a package was built to.
    fn wasm(&self, name: &str) -> PathBuf {
        self.built.get_or_init(|| self.build());
        let target = self.targets.iter().find(|(_, names)| names.contains(&name)).unwrap().0;
        self.folder().join(format!("target/{target}/release/{}.wasm", name.replace('-', "_")))
    }

    /// Cargo's own lock on the target folder keeps test processes that run side by side from building at once.
    fn build(&self) {
        for (target, names) in self.targets.iter().copied() {
            add_target(target);
            let mut command = Command::new("cargo");
            command.current_dir(self.folder());
            command.args(["build", "--release", "--quiet", "--target-dir", "target", "--target", target]);
            // What the host's packages are built with is not for guests.
            command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
            for name in names {
                command.args(["-p", name]);
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// rustup has no lock of its own: two that add a target at once take each other's download away.
fn add_target(target: &str) {
    let lock = std::fs::File::create(std::env::temp_dir().join("hob-tests-rustup.lock")).unwrap();
    lock.lock().unwrap();
    let listed = Command::new("rustup").args(["target", "list", "--installed"]).output();
    // Without rustup the targets come from wherever the compiler came from; if one is missing, the build says so.
    let Ok(listed) = listed else { return };
    if !String::from_utf8_lossy(&listed.stdout).lines().any(|line| line == target) {
        let added = Command::new("rustup").args(["target", "add", target]).output().unwrap();
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    }
}
