//! `hob bench cold`: it measures the rungs that it can have, says why it cannot have the others, and leaves nothing behind.

use std::path::Path;

use serde_json::Value;

use crate::cli::{at, check, file, hob};
use crate::harness::wat::{does, says, wasm};
use crate::harness::{Node, eventually};
use crate::secrets::reader;

/// A tiny check of XML: tags are closed in their order, attributes are quoted, and no text holds a bare `<` or `&`.
#[track_caller]
fn check_xml(text: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text.trim();
    while let Some((words, tag)) = rest.split_once('<') {
        check_entities(words);
        assert!(words.trim().is_empty() || !open.is_empty(), "text outside of all tags: {words}");
        let (tag, after) = tag.split_once('>').unwrap_or_else(|| panic!("a tag has no end: {tag}"));
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed in the wrong order");
            continue;
        }
        assert!(tag.matches('"').count() % 2 == 0 && !tag.contains('<'), "{tag}");
        check_entities(tag);
        let name = tag.split([' ', '/']).next().unwrap();
        assert!(name.chars().all(|c| c.is_ascii_lowercase()) && !name.is_empty(), "{tag}");
        if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest.is_empty(), "{open:?} {rest}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
}

#[track_caller]
fn check_entities(text: &str) {
    for rest in text.split('&').skip(1) {
        assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|entity| rest.starts_with(entity)), "{text}");
    }
}

/// All rungs that were asked for are there in their order; each has figures that make sense, or says why it has none.
#[track_caller]
fn check_rungs(report: &Value, expected: &[&str], count: u64) {
    let rungs = report["rungs"].as_array().unwrap();
    let names: Vec<_> = rungs.iter().map(|rung| rung["rung"].as_str().unwrap()).collect();
    assert_eq!(names, expected);
    for rung in rungs {
        assert_eq!(rung["requests"], count);
        // Whether instances wait is found out by measuring.
        assert!(rung["reached"] == true || rung["rung"] == "ready", "{rung}");
        if rung["reached"] == false {
            assert!(rung["missed"].as_str().is_some_and(|why| why.contains("of ")), "{rung}");
            assert!(rung["times"].as_object().unwrap().is_empty(), "{rung}");
            continue;
        }
        for name in ["total", "late", "start", "queue", "load", "verify", "instantiate", "enter", "run"] {
            let figures = &rung["times"][name];
            assert!((1..=count).contains(&figures["count"].as_u64().unwrap()), "{rung}");
            let of = |key: &str| figures[key].as_f64().unwrap();
            let all = ["p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"].map(of);
            assert!(all.is_sorted() && all[0] >= 0.0, "{name}: {figures}");
        }
        let max = |name: &str| rung["times"][name]["max_us"].as_f64().unwrap();
        assert!(max("total") > max("instantiate") && max("run") > 0.0, "{rung}");
    }
}

#[test]
fn a_file_is_measured_by_a_daemon_of_its_own() {
    let (dir, path) = file("here.wasm", &wasm(&says("here")));
    std::fs::write(dir.path().join("hob.toml"), "name = 'beside'\n[limits]\nmemory = '2MiB'\n").unwrap();
    let (temp, svg) = (tempfile::tempdir().unwrap(), dir.path().join("a.svg"));
    let args = ["bench", "cold", path.to_str().unwrap(), "--count", "3", "--rate", "50", "-o", "json"];
    let output = hob(&args).args(["--svg", svg.to_str().unwrap()]).env("TMPDIR", temp.path()).output().unwrap();
    let report: Value = serde_json::from_str(&check(&output, 0).0).unwrap();
    check_rungs(&report, &["ready", "resident", "stored", "compiled"], 3);
    assert_eq!((&report["function"]["name"], &report["function"]["kind"]), (&"beside".into(), &"handler".into()));
    assert_eq!(report["limits"]["memory"], "2MiB");
    for name in ["processor", "cores", "memory", "kernel", "program", "daemon", "settings", "page_cache"] {
        assert!(report["about"][name].as_str().is_some_and(|value| !value.is_empty()), "{name}: {report}");
    }
    let picture = std::fs::read_to_string(svg).unwrap();
    check_xml(&picture);
    for word in ["<svg ", "ready", "resident", "stored", "compiled", " / 3<", "p50 / p99 / count", "3 requests, 50 per second"] {
        assert!(picture.contains(word), "{word}: {picture}");
    }
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0, "something was left behind");
}

#[test]
fn a_name_is_measured_where_it_is_deployed() {
    let node = Node::start(&["engine.templates_max=77"]);
    node.deploy_wat("a", &says("a"), "");
    // Some rungs, in any order and twice.
    let args = ["bench", "cold", "a", "--count", "4", "--rate", "100", "--rungs", "stored,resident,stored"];
    let (stdout, _) = check(&at(&node, &args), 0);
    for line in ["function", "limits", "rung", "resident", "stored", "total: at the client"] {
        assert!(stdout.lines().any(|have| have.starts_with(line)), "{line}: {stdout}");
    }
    assert!(!stdout.contains("compiled") && stdout.contains(&node.control.addr.to_string()), "{stdout}");
    let (stdout, _) = check(&at(&node, &[&args[..], &["-o", "json"]].concat()), 0);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    check_rungs(&report, &["resident", "stored"], 4);
    // What it says of itself.
    let about = report["about"].as_object().unwrap();
    assert!(about.contains_key("processor") && !about.contains_key("client_program"), "{report}");
    let settings = about["settings"].as_str().unwrap();
    assert!(settings.contains("engine.templates_max=77") && settings.ends_with(", else the defaults of [engine] and [build]"));
    // The template was there all the time.
    let usage = &node.inspect("a")["usage"];
    assert!(usage["starts"]["resident"].as_u64().unwrap() >= 8, "{usage}");
}

#[test]
fn what_cannot_be_measured_is_said() {
    let node = Node::start(&[]);
    node.deploy_wat("traps", &does("unreachable"), "");
    let (dir, good) = file("a.wasm", &wasm(&says("a")));
    let good = good.to_str().unwrap();
    let (_dir, text) = file("text.wasm", b"hello");
    for (target, code) in [
        ("/nonexistent.wasm", 3),
        ("missing.wasm", 3),
        (dir.path().to_str().unwrap(), 3),
        (text.to_str().unwrap(), 1),
        ("no-such-function", 3),
        ("traps", 6),
    ] {
        let (stdout, stderr) = check(&at(&node, &["bench", "cold", target, "--count", "1"]), code);
        assert!(stdout.is_empty() && !stderr.contains("panicked"), "{target}: {stderr}");
    }
    for wrong in [
        &["--rate", "0"][..],
        &["--rate", "-1"],
        &["--rate", "fast"],
        &["--rate", "NaN"],
        &["--rate", "1e-18"],
        &["--rate", "0.0001"],
        &["--count", "0"],
        &["--count", "1000001"],
        &["--rungs", "cold"],
        &["--rungs", "ready,"],
        &["--svg", "/nonexistent/a.svg"],
        &["--svg", "/"],
    ] {
        let (stdout, stderr) = check(&at(&node, &[&["bench", "cold", good][..], wrong].concat()), 2);
        assert!(stdout.is_empty() && stderr.contains("error: "), "{wrong:?}: {stderr}");
    }
    assert!(!Path::new("/nonexistent").exists());
    check(&hob(&["--server", "http://127.0.0.1:1", "bench", "cold", "a"]).output().unwrap(), 5);
    check(&hob(&["bench"]).output().unwrap(), 2);
}

#[test]
fn a_daemon_of_its_own_has_no_secrets() {
    let (dir, path) = file("reads.wasm", &wasm(&reader()));
    // Without it there is no snapshot, or no start.
    for (secret, requires) in
        [("{ name = 'FROZEN', init = true }", "snapshot = 'required'\n"), ("{ name = 'KEY', env = 'KEY' }", "")]
    {
        std::fs::write(dir.path().join("hob.toml"), format!("name = 'reads'\n{requires}[grants]\nsecrets = [{secret}]\n"))
            .unwrap();
        let (_, stderr) = check(&hob(&["bench", "cold", path.to_str().unwrap(), "--count", "1"]).output().unwrap(), 1);
        let where_they_are =
            stderr.contains("a daemon of its own has no secrets") && stderr.ends_with("next: hob bench cold reads\n");
        assert!(where_they_are && !stderr.contains("hob secret set"), "{stderr}");
    }
}

#[test]
fn a_function_that_is_deployed_while_it_is_measured_is_no_result() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("one"), "");
    let args = ["bench", "cold", "a", "--rungs", "resident", "--rate", "20", "--count", "40"];
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| at(&node, &args));
        let starts = || node.inspect("a")["usage"]["starts"]["resident"].as_u64().unwrap();
        eventually("it is being measured", || starts() > 2);
        node.deploy_wat("a", &says("two"), "");
        let (_, stderr) = check(&measuring.join().unwrap(), 1);
        assert!(stderr.contains("was deployed while it was measured: revision 2 took the place of 1"), "{stderr}");
    });
}
