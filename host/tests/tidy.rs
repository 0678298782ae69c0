//! Habits that a machine can check: who may import whom, which names belong where, and what the documents must mention.
//!
//! The layers are the ones of `docs/architecture.md`; a change of this table is a change of the design.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hob::config::Config;
use hob::engine::ENGINE_VERSION;
use hob::fault::Code;
use hob::limits::SPECS;

/// What a module may import of its own layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    /// Those that stand before it in the list.
    Above,
    /// Nothing.
    Nothing,
}

/// All modules of `host/src/lib.rs` in its order, by layer. A module imports only from layers above its own, and of its own layer
/// what the second column says.
const LAYERS: [(&str, Within, &[&str]); 8] = [
    (
        "words",
        Within::Above,
        &[
            "id",
            "limits",
            "quota",
            "headers",
            "host",
            "token",
            "signing",
            "route",
            "bucket",
            "grants",
            "manifest",
            "config",
            "fault",
            "idempotency",
            "invocation",
            "histogram",
            "crash",
        ],
    ),
    ("storage", Within::Nothing, &["storage"]),
    (
        "parts",
        Within::Nothing,
        &["registry", "audit", "artifacts", "data", "secrets", "meter", "telemetry", "net", "egress", "process"],
    ),
    ("capability", Within::Nothing, &["capability"]),
    ("engine", Within::Nothing, &["engine"]),
    ("use", Within::Above, &["identity", "dispatch", "deploy"]),
    ("doors", Within::Nothing, &["front", "control", "trigger"]),
    ("program", Within::Above, &["daemon", "cli"]),
];

/// What doors may import besides words: these paths and what is below them. They know `Invoke`, never the engine.
const DOORS: [(&str, &[&str]); 3] = [
    ("front", &["net", "identity"]),
    ("trigger", &["net::drain", "data", "telemetry"]),
    (
        "control",
        &[
            "net",
            "telemetry",
            "meter",
            "registry",
            "audit",
            "data",
            "secrets",
            "identity",
            "deploy",
            "dispatch",
            "artifacts::Bundle",
            "artifacts::BundleError",
            "artifacts::Uploaded",
            "engine::build::check_magic",
            "engine::build::Refused",
            "process::probe",
        ],
    ),
];

/// Crates that only some modules may name.
const OWNERS: [(&str, &[&str]); 2] = [("wasmtime", &["engine", "capability"]), ("hyper", &["net", "egress"])];

/// Files that may hold `unsafe`.
const UNSAFE: [&str; 6] = [
    "host/src/engine/artifact.rs",
    "host/src/process/missed.rs",
    "host/src/capability/handler/mapping/pages.rs",
    "host/src/storage/huge.rs",
    "guest-sdk/src/abi.rs",
    "host/tests/guests/paths1/src/main.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().into()
}

/// Files below `folder` whose names end in `ending`, relative to the project; nothing that was built.
fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    walk(&path, ending, found);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root.join(folder), ending, &mut found);
    found.sort();
    let text = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path.strip_prefix(&root).unwrap().to_string_lossy().into_owned(), text)
    };
    found.into_iter().map(text).collect()
}

/// A token of Rust: a word, or one character that is none.
type Tokens = Vec<String>;

/// The tokens of a file, without comments and without what stands in quotes. Enough of Rust's grammar to find paths.
fn tokens(text: &str) -> Tokens {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    let starts = |at: usize, word: &str| word.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    let until = |mut at: usize, end: &str| {
        while at < chars.len() && !starts(at, end) {
            at += 1;
        }
        at + end.chars().count()
    };
    while at < chars.len() {
        let c = chars[at];
        let hashes = chars[at..].iter().skip(1).take_while(|c| **c == '#').count();
        if starts(at, "//") {
            at = until(at, "\n");
        } else if starts(at, "/*") {
            at = until(at, "*/");
        } else if c == 'r' && chars.get(at + 1 + hashes) == Some(&'"') {
            at = until(at + 2 + hashes, &format!("\"{}", "#".repeat(hashes)));
        } else if c == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if c == '\'' && (chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\'')) {
            at = until(at + if chars[at + 1] == '\\' { 3 } else { 2 }, "'");
        } else if c.is_alphanumeric() || c == '_' {
            let word: String = chars[at..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
            at += word.chars().count();
            tokens.push(word);
        } else {
            if !c.is_whitespace() {
                tokens.push(c.into());
            }
            at += 1;
        }
    }
    tokens
}

/// The paths that begin at `at`, with every `{…}` in them written out; and where they end.
fn paths(tokens: &Tokens, mut at: usize, prefix: &[String]) -> (Vec<Vec<String>>, usize) {
    let mut path = prefix.to_vec();
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token == text);
    loop {
        if is(at, "{") {
            let mut all = Vec::new();
            at += 1;
            while at < tokens.len() && !is(at, "}") {
                let (some, end) = paths(tokens, at, &path);
                all.extend(some);
                at = end.max(at + 1);
                while at < tokens.len() && !is(at, ",") && !is(at, "}") {
                    at += 1;
                }
                at += usize::from(is(at, ","));
            }
            return (all, at + 1);
        }
        let Some(word) = tokens.get(at) else { break };
        path.push(word.clone());
        at += 1;
        if !(is(at, ":") && is(at + 1, ":")) {
            break;
        }
        at += 2;
    }
    (vec![path], at)
}

/// All paths of a file that begin at the root of the crate, without `crate` itself. `depth`: modules that the file is in.
fn crate_paths(tokens: &Tokens, depth: usize) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for at in 0..tokens.len() {
        let begins = at == 0 || tokens[at - 1] != ":";
        if begins && tokens[at] == "crate" && tokens.get(at + 1).is_some_and(|token| token == ":") {
            found.extend(paths(tokens, at + 3, &[]).0);
        } else if begins && tokens[at] == "super" {
            let (all, _) = paths(tokens, at, &[]);
            for path in all {
                let above = path.iter().take_while(|word| *word == "super").count();
                if above == depth {
                    found.insert(path[above..].to_vec());
                }
            }
        }
    }
    found
}

/// Layer and place of a module.
fn place(module: &str) -> Option<(usize, usize)> {
    LAYERS.iter().enumerate().find_map(|(layer, (_, _, modules))| Some((layer, modules.iter().position(|name| *name == module)?)))
}

/// Why `module` may not import `path`, if so.
fn objection(module: &str, path: &[String]) -> Option<String> {
    let (to_layer, to) = path.first().and_then(|first| place(first))?;
    let (from_layer, from) = place(module)?;
    let (name, within, _) = LAYERS[from_layer];
    let path_text = path.join("::");
    if path[0] == module {
        return None;
    }
    if to_layer > from_layer {
        return Some(format!(
            "'{path_text}' is below it: '{module}' is of the layer '{name}', '{}' of '{}'",
            path[0], LAYERS[to_layer].0
        ));
    }
    if to_layer == from_layer && (within == Within::Nothing || to > from) {
        return Some(format!("'{path_text}' is of its own layer '{name}' and not before it"));
    }
    let door = DOORS.iter().find(|(door, _)| *door == module);
    if let Some((_, allowed)) = door
        && LAYERS[to_layer].0 != "words"
        && !allowed.iter().any(|allowed| path_text == *allowed || path_text.starts_with(&format!("{allowed}::")))
    {
        return Some(format!("a door does not know '{path_text}'; '{module}' may import {allowed:?} besides words"));
    }
    None
}

/// The top-level module that a file of `host/src` belongs to, and how many modules deep it is.
fn module_of(file: &str) -> Option<(String, usize)> {
    let path = file.strip_prefix("host/src/")?.trim_end_matches(".rs").trim_end_matches("/mod");
    (!matches!(path, "lib" | "main")).then(|| (path.split('/').next().unwrap().to_owned(), path.split('/').count()))
}

fn report(what: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{what}:\n  {}", complaints.join("\n  "));
}

#[test]
fn modules_import_only_from_above() {
    let mut complaints = Vec::new();
    for (file, text) in files("host/src", ".rs") {
        let Some((module, depth)) = module_of(&file) else { continue };
        if place(&module).is_none() {
            complaints.push(format!("{file}: the module '{module}' has no layer; give it one in host/tests/tidy.rs"));
        }
        for path in crate_paths(&tokens(&text), depth) {
            complaints.extend(objection(&module, &path).map(|why| format!("{file}: {why}")));
        }
    }
    report("imports that the layers forbid", &complaints);
}

#[test]
fn the_crate_declares_its_modules_in_the_order_of_the_layers() {
    let text = std::fs::read_to_string(root().join("host/src/lib.rs")).unwrap();
    let declared: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let expected: Vec<_> = LAYERS.iter().flat_map(|(_, _, modules)| modules.iter().copied()).collect();
    assert_eq!(declared, expected);
}

#[test]
fn crates_with_owners_are_named_by_them_only() {
    let mut complaints = Vec::new();
    for (file, text) in files("host/src", ".rs") {
        let module = module_of(&file).map(|(module, _)| module).unwrap_or_default();
        let tokens = tokens(&text);
        for (name, owners) in OWNERS {
            let names_it = tokens.iter().any(|token| token == name || token.starts_with(&format!("{name}_")));
            if names_it && !owners.contains(&module.as_str()) {
                complaints.push(format!("{file} names {name}, which belongs to {owners:?}"));
            }
        }
    }
    report("crates that only some modules may name", &complaints);
}

#[test]
fn unsafe_is_where_it_is_allowed() {
    let mut complaints = Vec::new();
    for folder in ["host", "guest-sdk", "examples", "benches"] {
        for (file, text) in files(folder, ".rs") {
            let tokens = tokens(&text);
            let is_attribute =
                |at: usize| tokens.get(at + 1).is_some_and(|next| next == "(") && file.starts_with("guest-sdk/macros/");
            let found = (0..tokens.len()).any(|at| tokens[at] == "unsafe" && !is_attribute(at));
            if found && !UNSAFE.contains(&file.as_str()) {
                complaints.push(format!("{file}: only {UNSAFE:?} may"));
            }
        }
    }
    report("files with unsafe code", &complaints);
}

#[test]
fn artifacts_name_the_exact_version_of_wasmtime() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let version = lock.split("[[package]]").find_map(|package| {
        let rest = package.trim_start().strip_prefix("name = \"wasmtime\"\nversion = \"")?;
        rest.split('"').next()
    });
    let version = version.unwrap();
    let expected = format!("wasmtime-{version}/");
    assert!(ENGINE_VERSION.starts_with(&expected), "ENGINE_VERSION is {ENGINE_VERSION}, Cargo.lock has {version}");
}

/// All documents of `docs/` as one text.
fn docs() -> String {
    files("docs", ".md").into_iter().map(|(_, text)| text).collect()
}

/// Tables of the configuration that may be there any number of times.
const LISTS: [&str; 2] = ["origin", "folder"];

/// The keys that a table of the configuration has, in serde's own words; of the configuration itself when `table` is empty.
fn config_keys(table: &str) -> Vec<String> {
    const NONE: &str = "no-such-key";
    let setting = if table.is_empty() { format!("{NONE}.x=1") } else { format!("{table}.{NONE}=1") };
    let read = match LISTS.contains(&table) {
        true => Config::read(&format!("[[{table}]]\n{NONE} = 1\n"), &[]),
        false => Config::read("", &[setting]),
    };
    let error = read.unwrap_err().to_string();
    let (_, expected) = error.split_once("expected").unwrap_or_else(|| panic!("{error}"));
    // What follows says where.
    let expected = expected.lines().next().unwrap_or_default();
    let keys = expected.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect::<Vec<_>>();
    assert!(!keys.is_empty(), "{error}");
    keys
}

#[test]
fn the_documents_mention_every_limit_key_and_code() {
    let docs = docs();
    if docs.is_empty() {
        // A package without its documents has nothing to be held against.
        return;
    }
    let mut wanted: Vec<(&str, String)> = SPECS.iter().map(|spec| ("limit", spec.name.to_owned())).collect();
    for table in config_keys("") {
        wanted.extend(config_keys(&table).into_iter().map(|key| ("setting", format!("{table}.{key}"))));
    }
    wanted.extend(Code::ALL.iter().map(|code| ("error", code.to_string())));
    assert!(wanted.len() > 60, "the lists are not what they were: {wanted:?}");
    let headings: BTreeSet<_> =
        docs.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_matches(['#', ' '])).collect();
    let is_there = |name: &str| docs.contains(&format!("`{name}`")) || headings.contains(name);
    let missing: Vec<_> =
        wanted.iter().filter(|(_, name)| !is_there(name)).map(|(kind, name)| format!("{kind} `{name}`")).collect();
    report("docs/*.md do not mention, in backticks or as a heading", &missing);
}

/// Groups of system calls that systemd has known since 247. It ignores those that it does not know, and a service lacks their calls then.
const GROUPS: [&str; 4] = ["@system-service", "@resources", "@privileged", "@obsolete"];

#[test]
fn the_unit_names_the_calls_of_the_walls() {
    let unit = std::fs::read_to_string(root().join("host/dist/hob.service")).unwrap();
    let (mut allowed, mut complaints) = (BTreeSet::new(), Vec::new());
    // Lines are read in their order: a later one takes back what an earlier one allows, and the other way round.
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (is_denial, words) = line.strip_prefix('~').map_or((false, line), |words| (true, words));
        for word in words.split_whitespace() {
            if word.starts_with('@') && !GROUPS.contains(&word) {
                complaints.push(format!("the group {word}"));
            }
            if is_denial {
                allowed.remove(word)
            } else {
                allowed.insert(word)
            };
        }
    }
    report("host/dist/hob.service has what systemd 247 does not know; name its calls", &complaints);
    for call in ["seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"] {
        assert!(allowed.contains(call), "host/dist/hob.service does not allow {call}, without which the daemon refuses to start");
    }
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let text = std::fs::read_to_string(root().join("host/Cargo.toml")).unwrap();
    let tables = text.split("\n[").filter(|table| table.contains("dependencies]"));
    let silent: Vec<_> = tables
        .flat_map(|table| table.lines().zip(table.lines().skip(1)))
        .filter(|(above, line)| line.contains('=') && !line.starts_with('#') && !above.starts_with("# "))
        .map(|(_, line)| line.to_owned())
        .collect();
    report("dependencies of host/Cargo.toml without a comment above that says what for", &silent);
}

/// A document without its code: fenced blocks, and what stands between backticks.
fn prose(text: &str) -> String {
    let mut prose = String::new();
    let mut fence: Option<&str> = None;
    for line in text.lines() {
        let mark = ["```", "~~~"].into_iter().find(|mark| line.trim_start().starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            (Some(_), _) => {}
            (None, None) => {
                prose.extend(line.split('`').step_by(2));
                prose.push('\n');
            }
        }
    }
    prose
}

/// Names under which the headings of a document can be reached.
fn anchors(text: &str) -> BTreeSet<String> {
    let slug = |heading: &str| -> String {
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let mut found: BTreeSet<_> =
        text.lines().filter(|line| line.starts_with('#')).map(|line| slug(line.trim_start_matches('#'))).collect();
    for mark in ["id=\"", "name=\""] {
        found.extend(text.split(mark).skip(1).filter_map(|rest| rest.split('"').next()).map(ToOwned::to_owned));
    }
    found
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = root();
    let mut complaints = Vec::new();
    for (file, text) in files("", ".md") {
        for target in prose(&text).split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match path {
                "" => root.join(&file),
                path => root.join(&file).parent().unwrap().join(path),
            };
            if !path.exists() {
                complaints.push(format!("{file}: {target}"));
            } else if !anchor.is_empty() && path.extension().is_some_and(|kind| kind == "md") {
                let there = std::fs::read_to_string(&path).unwrap();
                if !anchors(&there).contains(anchor) {
                    complaints.push(format!("{file}: {target} (the file is there, the heading is not)"));
                }
            }
        }
    }
    report("dead links", &complaints);
}

/// The checks above find what they are for.
mod the_checks {
    use super::*;

    fn found(module: &str, depth: usize, text: &str) -> Vec<String> {
        crate_paths(&tokens(text), depth).iter().filter_map(|path| objection(module, path)).collect()
    }

    #[test]
    fn upward_imports_are_found_in_every_form() {
        for text in [
            "use crate::engine;",
            "use crate::engine::build::Builder;",
            "use crate::{fault::Code, engine::Engine};",
            "use crate::{\n    fault::{Code, Fault},\n    engine,\n};",
            "fn f() -> crate::engine::Engine { todo!() }",
            "use super::engine::Engine;",
            "pub(in crate::engine) fn f() {}",
        ] {
            assert_eq!(found("registry", 1, text).len(), 1, "{text}");
        }
        for text in [
            "use crate::fault::{Code, Fault};",
            "// use crate::engine;",
            "const A: &str = \"use crate::engine;\";",
            "const A: &str = r#\"use \"crate::engine\"\"#;",
            "const A: char = '\"'; use crate::fault; const B: char = '\"';",
            "use super::record::engine;",
            "use crate::registry::engine;",
        ] {
            assert!(found("registry", 1, text).is_empty(), "{text}");
        }
        assert_eq!(found("registry", 2, "use super::super::engine;").len(), 1);
        assert!(found("registry", 2, "use super::engine;").is_empty());
    }

    #[test]
    fn the_special_rules_hold() {
        for (module, path, good) in [
            ("deploy", "crate::dispatch::Dispatcher", true),
            ("dispatch", "crate::deploy::Deployer", false),
            ("control", "crate::front::Front", false),
            ("front", "crate::control::Control", false),
            ("front", "crate::dispatch::Dispatcher", false),
            ("front", "crate::net::exchange", true),
            ("control", "crate::engine::build::check_magic", true),
            ("control", "crate::engine::build::Refused::into_fault", true),
            ("control", "crate::engine::Engine", false),
            ("control", "crate::artifacts::Uploaded", true),
            ("control", "crate::artifacts::Artifacts", false),
            ("registry", "crate::artifacts::Artifacts", false),
            ("manifest", "crate::limits::Limits", true),
            ("limits", "crate::manifest::Manifest", false),
            ("cli", "crate::daemon::Node", true),
            ("daemon", "crate::cli::Cli", false),
        ] {
            assert_eq!(found(module, 1, &format!("use {path};")).is_empty(), good, "{module}: {path}");
        }
    }

    #[test]
    fn code_in_documents_is_no_prose() {
        assert_eq!(prose("a `[b](c)` d\n```\n[e](f)\n```\n[g](h)\n"), "a  d\n[g](h)\n");
        assert!(anchors("# A `b`: c-d\n").contains("a-b-c-d"));
    }
}
