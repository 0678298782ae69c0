//! What a deploy that is taken does: its number and tag, who may come first, and the bounds on builds and storage.

use std::sync::Barrier;

use crate::harness::wat::{self, handler, says, wasm};
use crate::harness::{Dice, Node, eventually};

#[test]
fn a_deploy_is_published_with_its_number_and_tag() {
    let node = Node::start(&[]);
    let first = node.deploy_wat("a", &says("one"), "env = { A = '1' }\n");
    assert_eq!(first.status(), 201);
    let info = first.json();
    assert_eq!((&info["name"], &info["revision"], &info["kind"]), (&"a".into(), &1.into(), &"handler".into()));
    assert_eq!(first.header("etag"), info["etag"].as_str());
    let second = node.deploy_wat("a", &says("two"), "");
    assert_eq!((second.status(), &second.json()["revision"]), (200, &2.into()));
    assert_eq!(node.data.get("/a").good(), b"two");
    let listed = node.control.get("/v1/functions").ok().json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed["items"][0]["digest"], second.json()["digest"]);
    let detail = node.inspect("a");
    assert_eq!(
        (&detail["tenant"], &detail["limits"]["memory"], &detail["resident"]),
        (&"default".into(), &"128MiB".into(), &true.into())
    );
}

#[test]
fn lists_come_in_pages() {
    let node = Node::start(&[]);
    let wasm = wasm(&says("x"));
    for name in ["c", "a", "b"] {
        assert_eq!(node.deploy(name, &wasm, "").status(), 201);
    }
    let page = |query: &str| {
        let page = node.control.get(&format!("/v1/functions{query}")).ok().json();
        let names: Vec<_> = page["items"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap().to_owned()).collect();
        (names, page["next"].as_str().map(ToOwned::to_owned))
    };
    assert_eq!(page(""), (vec!["a".into(), "b".into(), "c".into()], None));
    assert_eq!(page("?limit=2"), (vec!["a".into(), "b".into()], Some("b".into())));
    assert_eq!(page("?limit=2&cursor=b"), (vec!["c".into()], None));
    node.control.get("/v1/functions?cursor=A").problem(400, "bad-request");
    for bad in ["many", "0", "1001"] {
        node.control.get(&format!("/v1/functions?limit={bad}")).problem(400, "bad-request");
    }
}

#[test]
fn racing_deploys_of_one_tag() {
    let node = Node::start(&[]);
    let tag = node.deploy_wat("a", &says("start"), "").header("etag").unwrap().to_owned();
    let race = |name: &str, condition: (&str, &str), win: u16| {
        const RACERS: usize = 6;
        let barrier = Barrier::new(RACERS);
        let run = |racer: usize| {
            let wasm = wasm(&says(&format!("racer {racer}")));
            barrier.wait();
            node.deploy_if(name, &wasm, "", &[condition])
        };
        let replies: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..RACERS).map(|racer| scope.spawn(move || run(racer))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let winners: Vec<_> = replies.iter().enumerate().filter(|(_, reply)| reply.status() == win).collect();
        assert_eq!(winners.len(), 1, "{replies:?}");
        for loser in replies.iter().filter(|reply| reply.status() != win) {
            loser.problem(412, "precondition-failed");
        }
        let (winner, reply) = winners[0];
        assert_eq!(node.data.get(&format!("/{name}")).good(), format!("racer {winner}").as_bytes());
        assert_eq!(node.inspect(name)["etag"].as_str(), reply.header("etag"));
    };
    race("a", ("if-match", &tag), 200);
    race("b", ("if-none-match", "*"), 201);
    node.deploy_if("c", &wasm(&says("x")), "", &[("if-match", &tag)]).problem(412, "precondition-failed");
    node.deploy_if("c", &wasm(&says("x")), "", &[("if-none-match", &tag)]).problem(400, "bad-request");
    node.control.request("DELETE", "/v1/functions/a", &[("if-match", &tag)], b"").problem(412, "precondition-failed");
    node.control.request("POST", "/v1/functions/a/rollback", &[("if-match", &tag)], b"").problem(412, "precondition-failed");
    // A function shows no date that this could be held against.
    let date = ("if-unmodified-since", "Thu, 01 Jan 1970 00:00:00 GMT");
    node.deploy_if("a", &wasm(&says("x")), "", &[date]).problem(400, "bad-request");
    node.control.request("DELETE", "/v1/functions/a", &[date], b"").problem(400, "bad-request");
    assert_eq!(node.control.request("DELETE", "/v1/functions/a", &[date, ("if-match", "*")], b"").status(), 204);
}

#[test]
fn a_deploy_that_is_refused_makes_no_bucket() {
    let node = Node::start(&[]);
    crate::buckets::bucket(&node, "there", serde_json::json!({ "durability": "volatile" }));
    node.deploy_wat("owner", &says("x"), "route = '/taken/*'");
    let leak = "[[bucket]]\nname = 'leak'\n";
    for (rest, status, code) in [
        ("[[bucket]]\nname = 'there'\ndurability = 'durable'\n", 409, "conflict"),
        ("[[bucket]]\nname = 'cache'\norigin = 's3://nobody-opened'\n", 400, "bad-request"),
        ("[grants]\ndata = [{ bucket = 'none' }]\n[[trigger]]\non = 'object-put'\nbucket = 'none'\n", 400, "bad-manifest"),
        ("[grants]\ndata = [{ bucket = 'there', mount = '/a' }]\n", 400, "bad-manifest"),
        (
            "[grants]\ndata = [{ bucket = 'v', mount = '/a' }]\n[[bucket]]\nname = 'v'\ndurability = 'volatile'\n",
            400,
            "bad-manifest",
        ),
    ] {
        node.deploy("a", &wasm(&says("x")), &format!("{leak}{rest}")).problem(status, code);
        let list = node.control.get("/v1/buckets").ok().json();
        assert_eq!(list["items"].as_array().unwrap().len(), 1, "{rest}: {list}");
    }
    // What only making it live finds out.
    let problem = node.deploy("a", &wasm(&says("x")), &format!("route = '/taken/*'\n{leak}")).problem(409, "conflict");
    assert!(problem["detail"].as_str().unwrap().contains("owner"), "{problem}");
    node.control.get("/v1/buckets/leak").problem(404, "not-found");
    assert_eq!(node.deploy("a", &wasm(&says("x")), leak).status(), 201);
    node.control.get("/v1/buckets/leak").ok();
}

#[test]
fn a_rollback_that_is_refused_makes_no_bucket() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("1"), "route = '/one'\n[[bucket]]\nname = 'of-one'");
    node.deploy_wat("a", &says("2"), "");
    node.deploy_wat("b", &says("3"), "route = '/one'");
    let delete = || node.control.request("DELETE", "/v1/buckets/of-one", &[], b"");
    assert_eq!(delete().status(), 204);
    let back = |tag: &str| node.control.request("POST", "/v1/functions/a/rollback", &[("if-match", tag)], b"");
    back("\"1-0000000000000000\"").problem(412, "precondition-failed");
    node.control.get("/v1/buckets/of-one").problem(404, "not-found");
    back("*").problem(409, "conflict");
    node.control.get("/v1/buckets/of-one").problem(404, "not-found");
    node.deploy_wat("b", &says("3"), "");
    back("*").ok();
    node.control.get("/v1/buckets/of-one").ok();
}

#[test]
fn a_route_has_one_owner() {
    let node = Node::start(&[]);
    let shop = wasm(&says("shop"));
    assert_eq!(node.deploy("shop", &shop, "route = '/shop/*'").status(), 201);
    let problem = node.deploy("other", &shop, "route = ['/other', '/shop/*']").problem(409, "conflict");
    assert!(problem["detail"].as_str().unwrap().contains("shop"), "{problem}");
    node.control.get("/v1/functions/other").problem(404, "not-found");
    node.data.get("/other").problem(404, "not-found");
    // The owner may deploy it again, and gives it up by leaving it out.
    assert_eq!(node.deploy("shop", &shop, "route = '/shop/*'").status(), 200);
    assert_eq!(node.deploy("shop", &shop, "").status(), 200);
    assert_eq!(node.deploy("other", &shop, "route = '/shop/*'").status(), 201);
    // A rollback to a revision that had it would take it back.
    node.control.post("/v1/functions/shop/rollback", b"{\"to\": 1}").problem(409, "conflict");
    assert_eq!(node.control.request("DELETE", "/v1/functions/other", &[], b"").status(), 204);
    node.control.post("/v1/functions/shop/rollback", b"{\"to\": 1}").ok();
    assert_eq!(node.data.get("/shop/x").good(), b"shop");
}

#[test]
fn a_deploy_that_passes_the_builds_walls() {
    // Many functions with work for the compiler, and one second of processor time for all of them.
    let node = Node::start(&["build.cpu=1s"]);
    let adds = "(local.set 0 (i32.add (i32.mul (local.get 0) (i32.const 7)) (i32.load (local.get 0))))".repeat(400);
    let functions = format!("(func (param i32) (result i32) {adds} (local.get 0))").repeat(900);
    let text = handler(&format!("{functions} (func (export \"hob_handle\") (call $number (i32.const 1)))"));
    let problem = node.deploy("slow", &wasm(&text), "").problem(422, "build-over-limit");
    assert!(problem["detail"].as_str().unwrap().contains("1s of processor time"), "{problem}");
    assert_eq!(node.deploy("fast", &wasm(&says("fast")), "").status(), 201);
    eventually("the killed build left nothing", || node.files("staging").is_empty());
}

#[test]
fn tenants_take_turns_in_building() {
    let (node, _) = crate::identity::owned(&["build.concurrency=1", "build.queue=4"]);
    crate::identity::tenant(&node, "acme", &[]);
    let control = &node.control;
    // Each takes the whole processor time of an initialisation. No two are of the same module: that would be no build.
    let spins = |number: usize| {
        let text =
            "(func (export \"_initialize\") (loop (br 0))) (func (export \"hob_handle\") (call $number (i32.const NUMBER)))";
        let wasm = wasm(&handler(&text.replace("NUMBER", &number.to_string())));
        control.request("PUT", &format!("/v1/functions/f{number}"), &[("hob-tenant", "acme")], &wasm)
    };
    std::thread::scope(|scope| {
        let (told, full) = std::sync::mpsc::sync_channel(6);
        let deploys: Vec<_> = (0..6)
            .map(|number| {
                let (told, spins) = (told.clone(), &spins);
                scope.spawn(move || {
                    let reply = spins(number);
                    if reply.text().contains("2 builds of the tenant are waiting") {
                        // Nobody listens after the first.
                        let _heard = told.send(reply.problem(503, "overloaded"));
                    }
                })
            })
            .collect();
        full.recv_timeout(crate::harness::PATIENCE).unwrap();
        assert_eq!(node.deploy("fast", &wasm(&says("fast")), "").status(), 201);
        assert!(deploys.iter().any(|deploy| !deploy.is_finished()), "the other tenant's were all first");
    });
}

#[test]
fn builds_past_their_queue_are_told_to_come_back() {
    let node = Node::start(&["build.concurrency=1", "build.queue=0"]);
    // A build of a second or so, so that others find it there. No two are of the same module: that would be no build.
    let adds = "(local.set 0 (i32.add (i32.mul (local.get 0) (i32.const 7)) (i32.load (local.get 0))))".repeat(400);
    let functions = format!("(func (param i32) (result i32) {adds} (local.get 0))").repeat(60);
    let long = |n: usize| wasm(&handler(&format!("{functions} (func (export \"hob_handle\") (call $number (i32.const {n})))")));
    let refused = (0..).find_map(|round| {
        let long = long(round);
        std::thread::scope(|scope| {
            let building = scope.spawn(|| node.deploy("long", &long, ""));
            let mut replies = Vec::new();
            for n in 0.. {
                if building.is_finished() {
                    break;
                }
                replies.push(node.deploy("short", &wasm(&says(&format!("short {round} {n}"))), ""));
            }
            // Whichever came second. A machine that has no time for this thread may have let both through.
            replies.push(building.join().unwrap());
            assert!(replies.iter().all(|reply| matches!(reply.status(), 200 | 201 | 503)), "{replies:?}");
            replies.into_iter().find(|reply| reply.status() == 503)
        })
    });
    let refused = refused.unwrap();
    refused.problem(503, "overloaded");
    assert!(refused.header("retry-after").is_some());
}

#[test]
fn storage_that_is_full() {
    let node = Node::start(&["data.bytes_max=100KiB"]);
    let large = |seed: u64| {
        let mut dice = Dice::new(seed);
        let data: String = (0..30_000).map(|_| char::from(b'a' + dice.below(26) as u8)).collect();
        wasm(&handler(&format!("(data (i32.const 0) \"{data}\") (func (export \"hob_handle\") (call $number (i32.const 1)))")))
    };
    let mut deployed = 0;
    let refused = loop {
        let reply = node.deploy(&format!("f{deployed}"), &large(deployed + 1), "");
        match reply.status() {
            201 => deployed += 1,
            _ => break reply,
        }
        assert!(deployed < 4, "100 KiB hold no {deployed} modules of 30 KiB");
    };
    assert!(deployed > 0);
    refused.problem(507, "storage-full");
    assert!(node.metric("hob_data_bytes") <= 100 << 10);
    // What is there still answers, and room that is given back can be used again.
    node.data.get("/f0").ok();
    for name in 0..deployed {
        assert_eq!(node.control.request("DELETE", &format!("/v1/functions/f{name}"), &[], b"").status(), 204);
    }
    eventually("the files of removed functions are gone", || node.metric("hob_data_bytes") == 0);
    assert_eq!(node.deploy("again", &large(99), "").status(), 201);
}

#[test]
fn functions_at_most() {
    let node = Node::start(&["data.functions_max=2"]);
    let good = wasm(&wat::says("x"));
    assert_eq!(node.deploy("a", &good, "").status(), 201);
    assert_eq!(node.deploy("b", &good, "").status(), 201);
    let refused = node.deploy("c", &good, "");
    let detail = refused.problem(429, "quota-exceeded")["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("at most 2 are allowed") && refused.header("retry-after").is_none(), "{detail}");
    assert_eq!(node.deploy("b", &good, "").status(), 200);
}
