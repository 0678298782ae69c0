//! Every example, built, deployed with its own manifest, and given real input.

use std::collections::HashMap;

use crate::harness::examples::{Example, NODE, PYTHON, example, example_with};
use crate::harness::{Dice, Node};

#[test]
fn hello() {
    let node = Node::start(&[]);
    let info = node.deploy_example("hello").json();
    assert_eq!(info["kind"], "handler");
    assert_eq!(node.data.get("/hello").ok().text(), "Hello, world!\n");
    assert_eq!(node.data.get("/hello/?name=Jos%C3%A9+M.").ok().text(), "Hello, José M.!\n");
    let body = vec![b'x'; 1 << 20];
    let reply = node.data.request("POST", "/hello", &[("content-type", "text/x")], &body).ok();
    assert!(reply.header("content-type") == Some("text/x") && reply.body == body);
    assert!(node.logs("hello").contains(&("log".into(), "info".into(), "1048576 bytes come back".into())));
    let reply = node.data.request("DELETE", "/hello", &[], b"");
    assert_eq!((reply.status(), reply.header("allow")), (405, Some("GET, HEAD, POST, PUT")));
    assert_eq!(reply.header("hob-error"), None);
}

/// What `examples/wordcount` promises, counted here.
fn count(text: &str) -> String {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|(a, a_count), (b, b_count)| b_count.cmp(a_count).then_with(|| a.cmp(b)));
    let (lines, words) = (text.matches('\n').count(), text.split_whitespace().count());
    let top: String = counts.iter().take(10).map(|(word, count)| format!("{word} {count}\n")).collect();
    format!("{lines} lines, {words} words, {} bytes\n{top}", text.len())
}

#[test]
fn wordcount() {
    let node = Node::start(&[]);
    assert_eq!(node.deploy_example("wordcount").json()["kind"], "command");
    // A book: 120,000 words, the small ones often.
    let vocabulary: Vec<String> = (0..2000).map(|n| format!("{}{}", ["wort", "größe", "Café", "naïve", "x"][n % 5], n)).collect();
    let mut dice = Dice::new(1);
    let mut book = String::new();
    for n in 0..120_000 {
        let at = dice.below(2000).min(dice.below(2000)).min(dice.below(2000));
        book.push_str(&vocabulary[at]);
        book.push_str(if n % 12 == 11 { ".\n" } else { " " });
    }
    let reply = node.data.post("/wordcount", book.as_bytes()).ok();
    assert_eq!(reply.text(), count(&book));
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
    for text in ["", "one", "a b\na"] {
        assert_eq!(node.data.post("/wordcount", text.as_bytes()).ok().text(), count(text));
    }
}

/// A picture of this size as PNG, uncompressed.
fn png(width: u32, height: u32) -> Vec<u8> {
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
        })
    }
    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let body = [kind, data].concat();
        [&u32::try_from(data.len()).unwrap().to_be_bytes()[..], &body, &crc(&body).to_be_bytes()].concat()
    }
    // One byte of filter, then three for each pixel, a gradient.
    let line =
        |y: u32| std::iter::once(0).chain((0..width).flat_map(move |x| [(x * 255 / width) as u8, (y * 255 / height) as u8, 128]));
    let raw: Vec<u8> = (0..height).flat_map(line).collect();
    let mut zlib = vec![0x78, 1];
    let mut blocks = raw.chunks(65_535).peekable();
    while let Some(block) = blocks.next() {
        let len = u16::try_from(block.len()).unwrap();
        zlib.push(u8::from(blocks.peek().is_none()));
        zlib.extend([len.to_le_bytes(), (!len).to_le_bytes()].concat());
        zlib.extend(block);
    }
    let (a, b) = raw.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (a + b) % 65_521)
    });
    zlib.extend((b << 16 | a).to_be_bytes());
    let head = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &head), &chunk(b"IDAT", &zlib), &chunk(b"IEND", b"")].concat()
}

/// Width and height of a PNG.
fn size(png: &[u8]) -> (u32, u32) {
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn thumbnail() {
    let node = Node::start(&[]);
    assert_eq!(node.deploy_example("thumbnail").json()["kind"], "handler");
    let photo = png(1600, 1200);
    assert!(photo.len() > 5 << 20);
    let reply = node.data.post("/thumbnail", &photo).ok();
    assert_eq!((size(&reply.body), reply.header("content-type")), ((256, 192), Some("image/png")));
    assert!(reply.body.len() < photo.len() / 10);
    assert_eq!(size(&node.data.post("/thumbnail?size=100", &photo).good()), (100, 75));
    let small = png(20, 10);
    assert_eq!(node.data.post("/thumbnail", &small).good(), small);
    for (query, body, status) in [("", &b"no picture"[..], 415), ("", &small[..40], 400), ("?size=0", &small, 400)] {
        let reply = node.data.post(&format!("/thumbnail{query}"), body);
        assert_eq!((reply.status(), reply.header("hob-error")), (status, None), "{}", reply.text());
    }
}

#[test]
fn hello_http() {
    for (name, kind) in [("hello-http", "http-0.2"), ("hello-http3", "http-0.3")] {
        let node = Node::start(&[]);
        assert_eq!(node.deploy_example(name).json()["kind"], kind);
        for _ in 0..5 {
            let reply = node.data.get(&format!("/{name}")).ok();
            assert_eq!(
                (reply.text().as_str(), reply.header("content-type")),
                ("Hello, world!\n", Some("text/plain; charset=utf-8"))
            );
        }
        let reply = node.control.post(&format!("/v1/functions/{name}/invoke/x"), b"body").ok();
        assert_eq!(reply.text(), "Hello, world!\n");
        let mut conn = node.data.connect();
        conn.request("HEAD", &format!("/{name}"), &[], b"");
        assert_eq!(conn.reply_to("HEAD").status(), 200);
    }
}

/// Deploys a component that greets, and returns the deploy's answer.
fn greets(name: &str, Example { wasm, manifest }: &Example) -> serde_json::Value {
    let node = Node::start(&[]);
    let reply = node.deploy(name, wasm, manifest);
    assert_eq!(reply.status(), 201, "{}", reply.text());
    for (query, text) in [("", "Hello, world!\n"), ("?name=Jos%C3%A9+M.", "Hello, José M.!\n"), ("", "Hello, world!\n")] {
        let reply = node.data.get(&format!("/{name}/{query}")).ok();
        assert_eq!((reply.text().as_str(), reply.header("content-type")), (text, Some("text/plain; charset=utf-8")));
    }
    reply.json()
}

#[test]
fn python_hello() {
    let Some(example) = example_with(PYTHON, "python-hello") else { return };
    let deployed = greets("python-hello", &example);
    assert_eq!(deployed["kind"], "http-0.2");
    assert!(deployed["snapshot"]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{deployed}");
}

#[test]
fn js_hello() {
    let Some(example) = example_with(NODE, "js-hello") else { return };
    assert_eq!(greets("js-hello", &example)["kind"], "http-0.2");
}

#[test]
fn damaged_examples() {
    let node = Node::start(&[]);
    let mut dice = Dice::new(7);
    for name in ["hello", "hello-http", "hello-http3"] {
        let good = crate::harness::examples::example(name).wasm;
        for turn in 0..12 {
            let mut bytes = good.clone();
            if turn % 3 == 0 {
                bytes.truncate(dice.below(good.len()));
            } else {
                let at = dice.below(good.len());
                bytes[at] ^= 1 << dice.below(8);
            }
            let reply = node.deploy("damaged", &bytes, "[limits]\ncpu = \"50ms\"\nwall = \"1s\"\n");
            match reply.status() {
                200 | 201 => {
                    let answer = node.data.get("/damaged");
                    assert!(answer.header("hob-error") != Some("internal"), "{answer:?}");
                }
                422 => {}
                other => panic!("{other} {}", reply.text()),
            }
        }
    }
}

/// Exported functions of a core module that are Hob's.
fn hob_exports(wasm: &[u8]) -> Vec<String> {
    let payloads = wasmparser::Parser::new(0).parse_all(wasm).map(Result::unwrap);
    let exports = payloads.filter_map(|payload| match payload {
        wasmparser::Payload::ExportSection(exports) => Some(exports.into_iter().map(Result::unwrap)),
        _ => None,
    });
    let names = exports.flatten().map(|export| export.name.to_owned());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("hob_")).collect();
    names.sort();
    names
}

#[test]
fn the_attributes_of_the_sdk_make_the_exports() {
    assert_eq!(hob_exports(&example("hello").wasm), ["hob_handle"]);
    assert_eq!(hob_exports(&example("geoip").wasm), ["hob_handle", "hob_init"]);
    assert_eq!(hob_exports(&example("frozen").wasm), ["hob_handle", "hob_init", "hob_restored"]);
}

#[test]
fn a_small_request_costs_two_host_calls() {
    // A host of this test's own that writes down who called it; whatever else the guest calls is a trap.
    type Calls = Vec<&'static str>;
    // GET / with one header, as `guest-sdk/abi.md` has it.
    let head = [&[1, 0, 0, 0, 3, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], b"GET/", &[4, 0, 0, 0, 1, 0, 0, 0], b"hosta"].concat();
    let engine = wasmtime::Engine::default();
    let module = wasmtime::Module::new(&engine, example("hello").wasm).unwrap();
    let mut linker = wasmtime::Linker::<Calls>::new(&engine);
    let read = move |mut caller: wasmtime::Caller<'_, Calls>, at: u32, cap: u32| {
        caller.data_mut().push("request_read");
        let memory = caller.get_export("memory").unwrap().into_memory().unwrap();
        assert!(head.len() <= cap as usize);
        memory.write(&mut caller, at as usize, &head).unwrap();
        head.len() as u32
    };
    linker.func_wrap("hob1", "request_read", read).unwrap();
    let respond = |mut caller: wasmtime::Caller<'_, Calls>, _at: u32, _len: u32| caller.data_mut().push("respond");
    linker.func_wrap("hob1", "respond", respond).unwrap();
    linker.define_unknown_imports_as_traps(&module).unwrap();
    let mut store = wasmtime::Store::new(&engine, Calls::new());
    let instance = linker.instantiate(&mut store, &module).unwrap();
    if let Ok(initialize) = instance.get_typed_func::<(), ()>(&mut store, "_initialize") {
        initialize.call(&mut store, ()).unwrap();
    }
    instance.get_typed_func::<(), ()>(&mut store, "hob_handle").unwrap().call(&mut store, ()).unwrap();
    assert_eq!(*store.data(), ["request_read", "respond"]);
}

#[test]
fn geoip() {
    let node = Node::start(&[]);
    let example = example("geoip");
    let manifest = example.manifest.replace("\"256\"", "\"8\"").replace("\"272MiB\"", "\"24MiB\"");
    let deployed = node.deploy("geoip", &example.wasm, &manifest).json();
    assert!(deployed["snapshot"]["memory_bytes"].as_u64().unwrap() > 8 << 20, "{deployed}");
    assert_eq!(deployed["notes"], serde_json::json!([]));
    assert!(node.logs("geoip").iter().any(|(_, _, text)| text.ends_with("ranges, 8 MiB")), "{:?}", node.logs("geoip"));
    let ask = |ip: &str| node.data.get(&format!("/geoip?ip={ip}")).ok().json();
    let number = |json: &serde_json::Value| u32::from(json.as_str().unwrap().parse::<std::net::Ipv4Addr>().unwrap());
    for ip in ["0.0.0.0", "192.0.2.1", "255.255.255.255"] {
        let found = ask(ip);
        let (first, at, last) = (number(&found["first"]), number(&found["ip"]), number(&found["last"]));
        assert!(first <= at && at <= last && found["country"].as_str().unwrap().len() == 2, "{found}");
        // The whole range has the same entry, and what follows it another.
        let end = ask(found["last"].as_str().unwrap());
        assert_eq!((&end["first"], &end["country"], &end["asn"]), (&found["first"], &found["country"], &found["asn"]));
        if let Some(next) = last.checked_add(1) {
            assert_eq!(number(&ask(&std::net::Ipv4Addr::from(next).to_string())["first"]), next);
        }
    }
    assert_eq!(node.data.get("/geoip").status(), 400);
    // A size that it does not take is an initialisation that fails, and says so.
    let refused = node.deploy("other", &example.wasm, &manifest.replace("\"8\"", "\"x\"").replace("\"geoip\"", "\"other\""));
    let problem = refused.problem(422, "not-deployable");
    let said = "; it said: init failed: GEOIP_MIB is 'x', expected a number of MiB from 1 to 1024";
    assert!(problem["detail"].as_str().unwrap().ends_with(said), "{problem}");
}

#[test]
fn counter() {
    let mut node = Node::start(&[]);
    let info = node.deploy_example("counter").json();
    assert_eq!(info["kind"], "handler");
    assert_eq!(node.data.get("/counter/").ok().text(), "nobody came yet\n");
    for (path, visits) in [("/a", 3), ("/b/c", 1), ("/ä", 2)] {
        for n in 1..=visits {
            let word = if n == 1 { "visit" } else { "visits" };
            let target = format!("/counter{}", path.replace('ä', "%C3%A4"));
            assert_eq!(node.data.get(&target).ok().text(), format!("{}: {n} {word}\n", path.replace('ä', "%C3%A4")));
        }
    }
    // Visits at once are all counted, by as many instances.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..10).for_each(|_| drop(node.data.get("/counter/many").ok())));
        }
    });
    let top = "/many: 40 visits\n/a: 3 visits\n/%C3%A4: 2 visits\n/b/c: 1 visit\n";
    assert_eq!(node.data.get("/counter/").ok().text(), top);
    let long = node.data.get(&format!("/counter/{}", "x".repeat(512)));
    assert_eq!((long.status(), long.header("hob-error")), (414, None));
    // A kill loses none.
    let dir = node.dir();
    node.kill();
    node = Node::start_with(crate::harness::Setup { dir: Some(dir), ..Default::default() });
    assert_eq!(node.data.get("/counter/").ok().text(), top);
}
