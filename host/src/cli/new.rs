//! `hob new`: a folder with a function that builds and deploys as it is.
//!
//! Owns the templates, embedded, and the SDK's sources, which go into the folder of a handler until the SDK is on a registry.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::failure::Exit;
use super::output::{self, Format};
use super::{Ctx, Failure};
use crate::id::FunctionName;

/// Arguments of `hob new`.
#[derive(Debug, Args)]
pub(super) struct New {
    /// Name of the function
    name: String,
    /// What to begin with
    #[arg(short, long, value_enum, default_value_t)]
    template: Template,
    /// Folder to make [default: the function's name]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// What a new function is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Template {
    /// A Rust function with Hob's SDK: the fastest kind
    #[default]
    #[value(name = "rust-handler")]
    Handler,
    /// A Rust program: the request's body on standard input, the response on standard output
    #[value(name = "rust-command")]
    Command,
    /// A Rust component of wasi:http 0.2, which runs under any host of that interface
    #[value(name = "rust-http")]
    Http,
}

/// A file of a template: where it goes, and its text.
type Source = (&'static str, &'static str);

/// Embeds files of a template, each under the name it gets.
macro_rules! template {
    ($folder:literal: $($file:literal as $name:literal),+) => {
        &[$(($name, include_str!(concat!("../../../guest-sdk/templates/", $folder, "/", $file)))),+]
    };
}

/// Embeds files of the SDK, each under its own name.
macro_rules! sdk {
    ($($file:literal),+) => { &[$((concat!("hob-sdk/", $file), include_str!(concat!("../../../guest-sdk/", $file)))),+] };
}

const HANDLER: &[Source] = template!("rust-handler":
    "Cargo.toml.template" as "Cargo.toml", "hob.toml" as "hob.toml", "README.md" as "README.md", ".gitignore" as ".gitignore",
    ".cargo/config.toml" as ".cargo/config.toml", "src/lib.rs" as "src/lib.rs");
const COMMAND: &[Source] = template!("rust-command":
    "Cargo.toml.template" as "Cargo.toml", "hob.toml" as "hob.toml", "README.md" as "README.md", ".gitignore" as ".gitignore",
    "src/main.rs" as "src/main.rs");
const HTTP: &[Source] = template!("rust-http":
    "Cargo.toml.template" as "Cargo.toml", "hob.toml" as "hob.toml", "README.md" as "README.md", ".gitignore" as ".gitignore",
    ".cargo/config.toml" as ".cargo/config.toml", "src/lib.rs" as "src/lib.rs");
const SDK: &[Source] = sdk!(
    "Cargo.toml",
    "src/abi.rs",
    "src/data.rs",
    "src/error.rs",
    "src/http.rs",
    "src/kv.rs",
    "src/lib.rs",
    "src/log.rs",
    "src/mapped.rs",
    "src/objects.rs",
    "src/random.rs",
    "src/record.rs",
    "src/request.rs",
    "src/response.rs",
    "src/secrets.rs",
    "src/start.rs",
    "src/upload.rs",
    "macros/Cargo.toml",
    "macros/src/lib.rs"
);
/// The SDK's folder inside of a handler's.
const SDK_DEPENDENCY: &str = "{ path = \"hob-sdk\" }";

/// Words that cargo, rustc or the standard library need for themselves; and the SDK's own packages.
const RESERVED: [&str; 67] = [
    "abstract",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "struct",
    "super",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
    "alloc",
    "core",
    "std",
    "test",
    "proc-macro",
    "build",
    "deps",
    "examples",
    "incremental",
    "hob-sdk",
    "hob-sdk-macros",
    "con",
    "prn",
    "aux",
    "nul",
    "handler",
];

impl New {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let name = check_name(&self.name)?;
        let dir = self.dir.unwrap_or_else(|| PathBuf::from(name.as_str()));
        let taken = fs::read_dir(&dir).map(|mut entries| entries.next().is_some()).unwrap_or_else(|_| dir.exists());
        if taken {
            let failure = Failure::new(Exit::Failure, format!("'{}' exists and is not an empty folder", dir.display()));
            return Err(failure.next(format!("hob new {name} --dir OTHER")));
        }
        let files = files(self.template, &name);
        for (path, text) in &files {
            write(&dir.join(path), text)?;
        }
        let next = format!("cd {} && hob deploy", dir.display());
        match ctx.format {
            Format::Json => {
                let paths: Vec<_> = files.iter().map(|(path, _)| path).collect();
                output::json(&serde_json::json!({ "name": name, "dir": dir.to_string_lossy(), "files": paths, "next": next }))?;
            }
            Format::Text => {
                output::note(format!("created {}/  ({})", dir.display(), ["hob.toml", "Cargo.toml", "src"].join(", ")));
                output::note(format!("next: {next}"));
            }
        }
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let shown = path.display();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder of '{shown}'"))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write '{shown}'"))
}

/// A name that both Hob and cargo take.
fn check_name(text: &str) -> Result<FunctionName, Failure> {
    let refuse = |why: String| Failure::new(Exit::Usage, why).next("hob new my-function");
    let name: FunctionName = text.parse().map_err(|error: crate::id::NameError| refuse(error.to_string()))?;
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(refuse(format!("'{text}' cannot be the name of a cargo package: it begins with a digit")));
    }
    if RESERVED.contains(&text) {
        return Err(refuse(format!("'{text}' cannot be the name of a cargo package here: it means something else already")));
    }
    Ok(name)
}

/// All files of a new function, with their names inside of its folder.
fn files(template: Template, name: &FunctionName) -> Vec<(&'static str, String)> {
    let (sources, sdk) = match template {
        Template::Handler => (HANDLER, SDK),
        Template::Command => (COMMAND, &[][..]),
        Template::Http => (HTTP, &[][..]),
    };
    let filled = sources.iter().map(|(path, text)| {
        // A name and a path have nothing that TOML or Markdown would read otherwise.
        (*path, text.replace("{{name}}", name.as_str()).replace("{{sdk}}", SDK_DEPENDENCY))
    });
    let vendored = sdk.iter().map(|(path, text)| match path.ends_with("Cargo.toml") {
        true => (*path, standalone(text)),
        false => (*path, (*text).to_owned()),
    });
    filled.chain(vendored).collect()
}

/// A manifest of the SDK without what it inherits from Hob's own workspace.
fn standalone(text: &str) -> String {
    let version = format!("version = \"{}\"", env!("CARGO_PKG_VERSION"));
    let rust = format!("rust-version = \"{}\"", env!("CARGO_PKG_RUST_VERSION"));
    let text = text
        .replace("version.workspace = true\nedition", &format!("{version}\nedition"))
        .replace("edition.workspace = true", "edition = \"2024\"")
        .replace("rust-version.workspace = true", &rust)
        .replace("license.workspace = true", "license = \"Apache-2.0 OR MIT\"\npublish = false")
        .replace("hob-sdk-macros.workspace = true", "hob-sdk-macros = { path = \"macros\" }")
        .replace("http.workspace = true", "http = \"1\"");
    text.replace("[lints]\nworkspace = true\n", "").trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cargo_refuses_are_refused() {
        for good in ["hello", "a-b", "async-a"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "a_b", "1a", "fn", "test", "core", "hob-sdk", "../a", "a/b"] {
            assert_eq!(check_name(bad).map(drop).unwrap_err().code(), Exit::Usage as u8, "{bad}");
        }
    }

    #[test]
    fn nothing_of_a_template_is_left_open() {
        let name: FunctionName = "my-fn".parse().unwrap();
        for template in Template::value_variants() {
            let files = files(*template, &name);
            for (path, text) in &files {
                assert!(!text.contains("{{"), "{path} of {template:?}");
                if path.ends_with("Cargo.toml") {
                    let manifest: toml::Table = text.parse().unwrap();
                    assert!(!text.contains("workspace = true"), "{path} of {template:?}: {text}");
                    assert!(manifest["package"]["version"].is_str(), "{path} of {template:?}");
                }
            }
            let manifest = files.iter().find(|(path, _)| *path == "hob.toml").unwrap();
            let manifest = crate::manifest::Manifest::parse(&manifest.1).unwrap();
            assert_eq!(manifest.name.unwrap(), name);
            assert!(manifest.wasm.is_some() && manifest.build.is_some());
        }
    }

    #[test]
    fn the_whole_sdk_is_vendored() {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-sdk");
        let mut found = vec!["hob-sdk/Cargo.toml".to_owned(), "hob-sdk/macros/Cargo.toml".to_owned()];
        for folder in ["src", "macros/src"] {
            let entries = fs::read_dir(sdk.join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
            found.extend(entries.map(|name| format!("hob-sdk/{folder}/{}", name.to_str().unwrap())));
        }
        let mut embedded: Vec<_> = SDK.iter().map(|(path, _)| (*path).to_owned()).collect();
        found.sort();
        embedded.sort();
        assert_eq!(found, embedded);
    }
}
