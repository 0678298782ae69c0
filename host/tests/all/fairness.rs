//! What guests that compute do to each other and to the node: they end in time, others go on, and their processor time is theirs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::examples::guest;
use crate::harness::http::Conn;
use crate::harness::upstream::Upstream;
use crate::harness::wat::{SPINS, does, says};
use crate::harness::{Node, eventually};

/// So many requests to a function, sent at once on a connection each.
fn send(node: &Node, count: usize, target: &str) -> Vec<Conn> {
    let send = |_| {
        let mut conn = node.data.connect();
        conn.request("GET", target, &[], b"");
        conn
    };
    (0..count).map(send).collect()
}

/// Sends 64 guests that spin and holds that each dies of `code`, and that a neighbour answers until the last one has.
#[track_caller]
fn check_spinners(limits: &str, code: &str) {
    let node = Node::start(&["engine.threads=2"]);
    node.deploy_wat("spins", &does(SPINS), limits);
    node.deploy_wat("good", &says("good"), "");
    let spinning = send(&node, 64, "/spins");
    let dead = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (dead, node) = (&dead, &node);
        let victim = scope.spawn(move || {
            let mut answered = 0;
            while !dead.load(Ordering::Relaxed) {
                assert_eq!(node.data.get("/good").good(), b"good");
                assert_eq!(node.control.get("/v1/functions/good/invoke").good(), b"good");
                answered += 1;
            }
            answered
        });
        for mut conn in spinning {
            conn.reply().problem(504, code);
        }
        dead.store(true, Ordering::Relaxed);
        assert!(victim.join().unwrap() > 0);
    });
    assert_eq!(node.faults(code), 64);
    eventually("no place is taken", || node.occupancy("spins") == (0, 0));
    eventually("no instance is left", || node.metric("hob_instances") == 0);
}

#[test]
fn sixty_four_spinners_die_at_their_processor_limit() {
    check_spinners("[limits]\ncpu = '30ms'\nwall = '1h'\n", "cpu-deadline");
}

#[test]
fn sixty_four_spinners_die_at_their_wall_deadline() {
    check_spinners("[limits]\ncpu = '1h'\nwall = '1s'\n", "wall-deadline");
}

#[test]
fn guests_of_03_take_turns_as_all_do() {
    let node = Node::start(&["engine.threads=1"]);
    let limits = "[limits]\ncpu = '1h'\nwall = '1h'\n";
    let command = std::fs::read(guest("cli3")).unwrap();
    assert_eq!(node.deploy("counts", &command, limits).status(), 201);
    assert_eq!(node.deploy("dies", &command, "[limits]\ncpu = '50ms'\nwall = '1h'\n").status(), 201);
    let post = |target: &str, body: &[u8]| {
        let mut conn = node.data.connect();
        conn.request("POST", target, &[], body);
        conn
    };
    // Side by side on one thread, each goes on where it was interrupted.
    let counting: Vec<_> = (0..4).map(|_| post("/counts", b"count")).collect();
    let spinning: Vec<_> = (0..4).map(|_| post("/dies", b"spin")).collect();
    for mut conn in spinning {
        conn.reply().problem(504, "cpu-deadline");
    }
    for mut conn in counting {
        assert!(conn.reply().ok().text().ends_with(" COUNT\n"));
    }
    eventually("no instance is left", || node.metric("hob_instances") == 0);
}

#[test]
fn guests_in_line_hold_their_places_and_leave_with_their_clients() {
    let node = Node::start(&["engine.threads=1"]);
    node.deploy_wat("spins", &does(SPINS), "[limits]\ncpu = '1h'\nwall = '1h'\nconcurrency = 16\nqueue = 0\n");
    let spinning = send(&node, 16, "/spins");
    eventually("all of them are there", || node.occupancy("spins") == (16, 0));
    node.data.get("/spins").problem(429, "concurrency");
    // One that has not begun has no instance yet.
    eventually("all of them have begun", || node.metric("hob_instances") == 16);
    drop(spinning);
    eventually("they are gone", || node.occupancy("spins") == (0, 0) && node.metric("hob_instances") == 0);
}

/// Processor time that the threads of a node have had from a moment on, by the kernel.
struct Kernel(HashMap<PathBuf, f64>);

/// Begins the name of every thread.
const ALL: &str = "";

impl Kernel {
    fn from_now(node: &Node) -> Self {
        Self(Self::threads(node))
    }

    /// In milliseconds, of the threads whose names begin so. A thread that has ended since then is not there: it waited for blocking work,
    /// and had nothing to do with guests. Each thread is compared with itself, so that what such a one had before is not taken off what the
    /// others had since.
    fn ms(&self, node: &Node, named: &str) -> f64 {
        let is_named = |thread: &Path| std::fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.starts_with(named));
        let had = Self::threads(node).into_iter().filter(|(thread, _)| is_named(thread));
        had.map(|(thread, ms)| ms - self.0.get(&thread).unwrap_or(&0.0)).sum()
    }

    fn threads(node: &Node) -> HashMap<PathBuf, f64> {
        let of = |path: PathBuf| {
            let stat = std::fs::read_to_string(path.join("schedstat")).ok()?;
            Some((path, stat.split(' ').next()?.parse::<f64>().ok()? / 1e6))
        };
        std::fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap().filter_map(|task| of(task.unwrap().path())).collect()
    }
}

/// Keeps all processors busy beside the node, so that the kernel takes them away from its threads.
struct Rivals(Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>);

impl Rivals {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = 3 * std::thread::available_parallelism().map_or(1, usize::from);
        let rival = |_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let rivals = (0..count).map(rival).collect();
        Self(stop, rivals)
    }
}

impl Drop for Rivals {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        for rival in self.1.drain(..) {
            rival.join().unwrap();
        }
    }
}

fn used_ms(node: &Node, name: &str) -> f64 {
    node.inspect(name)["usage"]["cpu_ms"].as_f64().unwrap()
}

/// A handler that counts to so many millions.
fn counts(millions: u32) -> String {
    does(&format!(
        "(local $n i32)
         (loop $more
           (local.set $n (i32.add (local.get $n) (i32.const 1)))
           (br_if $more (i32.lt_u (local.get $n) (i32.const {millions}000000))))
         (call $number (local.get $n))"
    ))
}

/// The shares are of processor time on both sides, so a busy machine moves neither. A debug build does more besides for each slice and
/// each request than a release, which the lower bound allows for; `hob-bench fairness` has the figure of a release.
#[test]
fn processor_time_is_what_the_kernel_counts() {
    let node = Node::start(&["engine.threads=2"]);
    let kinds = [("short", 1), ("middle", 20), ("long", 100)];
    for (name, millions) in kinds {
        node.deploy_wat(name, &counts(millions), "[limits]\ncpu = '1h'\nwall = '1h'\n");
        node.data.get(&format!("/{name}")).good();
    }
    let rivals = Rivals::start();
    let metered = |node: &Node| kinds.iter().map(|(name, _)| used_ms(node, name)).sum::<f64>();
    let before = (metered(&node), Kernel::from_now(&node));
    for mut conn in ["/long", "/middle", "/short"].iter().flat_map(|target| send(&node, 8, target)) {
        conn.reply().good();
    }
    // The last teardown may still be under way, and is some microseconds.
    let (metered, kernel) = (metered(&node) - before.0, before.1.ms(&node, ALL));
    drop(rivals);
    let ratio = metered / kernel;
    assert!((0.6..=1.03).contains(&ratio), "metered {metered} ms, the kernel says {kernel} ms: {ratio}");
}

#[test]
fn the_limit_does_not_count_what_the_kernel_gave_to_others() {
    let node = Node::start(&["engine.threads=1"]);
    node.deploy_wat("spins", &does(SPINS), "[limits]\ncpu = '60ms'\nwall = '1h'\n");
    let rivals = Rivals::start();
    let before = Kernel::from_now(&node);
    for _ in 0..5 {
        node.data.get("/spins").problem(504, "cpu-deadline");
    }
    let kernel = before.ms(&node, ALL);
    drop(rivals);
    assert!(kernel >= 5.0 * 60.0 * 0.9, "five guests with 60 ms each had {kernel} ms in all");
}

/// What a function has done by the threads of others is its own too: more than the thread that runs it had in all. How much of what the
/// others had is a matter of what waking a thread costs on the machine, two times for each request, which is in nobody's account.
#[test]
fn requests_to_other_servers_are_paid_by_who_sends_them() {
    let upstream = Upstream::start();
    let node = Node::start(&["engine.threads=1", &upstream.opened()]);
    let url = format!("http://{}", upstream.addr);
    let manifest = format!("[limits]\ncpu = '1h'\nwall = '1h'\n[grants]\nhttp = ['{url}']\n");
    let deployed = node.deploy("fetch1", &std::fs::read(guest("fetch1")).unwrap(), &manifest);
    assert_eq!(deployed.status(), 201, "{}", deployed.text());
    let script = format!("GET {url}/\n").repeat(1000);
    node.data.post("/fetch1", b"").ok();
    let before = (used_ms(&node, "fetch1"), Kernel::from_now(&node));
    let answers = node.data.post("/fetch1", script.as_bytes()).ok().text();
    assert_eq!(answers.lines().filter(|line| line.starts_with("200 ")).count(), 1000);
    let metered = used_ms(&node, "fetch1") - before.0;
    let (all, alone) = (before.1.ms(&node, ALL), before.1.ms(&node, "hob-data"));
    assert!(metered > alone, "metered {metered} ms, and its own thread had {alone} ms, by the kernel");
    assert!(metered <= 1.03 * all, "metered {metered} ms, and all threads had {all} ms, by the kernel");
}
