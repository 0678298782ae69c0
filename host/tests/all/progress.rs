//! Progress on a terminal: bars for bytes, lines that turn where nobody knows how many. Nowhere else.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::json;

use crate::buckets::{bucket, put};
use crate::cli::{at, check, hob};
use crate::harness::{Node, eventually, is_there};

/// Runs a command whose standard error is a terminal, and passes on what it shows there.
const TERMINAL: &str = "
import fcntl, os, pty, struct, subprocess, sys, termios
ours, theirs = pty.openpty()
fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 120, 0, 0))
child = subprocess.Popen(sys.argv[1:], stderr=theirs)
os.close(theirs)
try:
    while piece := os.read(ours, 4096):
        os.write(2, piece)
except OSError:
    pass  # How it says that nobody has the other side open any more.
sys.exit(child.wait())
";

/// A command whose standard error is a terminal, and what it showed there.
struct Shown {
    child: Child,
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Shown {
    fn start(node: &Node, args: &[&str]) -> Self {
        let of_node = of_node(node, args);
        let mut command = Command::new("python3");
        command.args(["-c", TERMINAL]).arg(of_node.get_program()).args(of_node.get_args());
        for (name, value) in of_node.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let text = Arc::new(Mutex::new(String::new()));
        let (of_thread, mut terminal) = (Arc::clone(&text), child.stderr.take().unwrap());
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = terminal.read(&mut piece) {
                of_thread.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..count]));
            }
        });
        Self { child, text, reader }
    }

    fn shows(&self, words: &[&str]) -> bool {
        let text = self.text.lock().unwrap();
        words.iter().all(|word| text.contains(word))
    }

    /// All that it showed, once it has ended well.
    fn end(mut self) -> String {
        let status = self.child.wait().unwrap();
        self.reader.join().unwrap();
        let text = self.text.lock().unwrap().clone();
        assert_eq!(status.code(), Some(0), "{text}");
        text
    }
}

fn of_node(node: &Node, args: &[&str]) -> Command {
    let mut command = hob(args);
    command.env("HOB_SERVER", format!("http://{}", node.control.addr));
    command
}

#[test]
fn copies_show_how_far_they_are() {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !is_there("python3", found, "a terminal") {
        return;
    }
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    assert_eq!(put(&node, "/v1/buckets/b/objects/big", &[], &vec![7; 8 << 20]).status(), 201);
    // To a pipe, of which somebody takes a part: the bar stands there, and says how much of how much.
    assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    let shown = Shown::start(&node, &["blob", "cp", "hob:b/big", &path("pipe")]);
    let mut pipe = File::open(path("pipe")).unwrap();
    pipe.read_exact(&mut vec![0; 1 << 20]).unwrap();
    eventually("there is a bar", || shown.shows(&["getting big [", " of 8.00 MiB, "]));
    let mut rest = Vec::new();
    pipe.read_to_end(&mut rest).unwrap();
    let text = shown.end();
    assert!(rest.len() == 7 << 20 && text.contains("\u{1b}[2K"), "it goes when it is done: {text:?}");
    // From a file.
    fs::write(path("up"), vec![7; 1 << 20]).unwrap();
    let text = Shown::start(&node, &["blob", "cp", &path("up"), "hob:b/up"]).end();
    assert!(text.contains("putting up [") && text.contains(" of 1.00 MiB, ") && text.contains("up 1.0 MiB sha256:"), "{text:?}");
    // From a pipe nobody knows how many bytes come.
    let mut shown = Shown::start(&node, &["blob", "cp", "-", "hob:b/typed"]);
    let mut input = shown.child.stdin.take().unwrap();
    input.write_all(b"typed").unwrap();
    eventually("something turns", || shown.shows(&["putting typed"]));
    drop(input);
    assert!(!shown.end().contains("putting typed ["));
    assert_eq!(node.control.get("/v1/buckets/b/objects/typed").ok().text(), "typed");
    // Where nobody looks nothing is shown.
    for args in [&["blob", "cp", &path("up"), "hob:b/up"][..], &["blob", "cp", "hob:b/big", &path("down")]] {
        let (_, stderr) = check(&at(&node, args), 0);
        assert!(!stderr.contains('[') && !stderr.contains("ting ") && !stderr.contains('\u{1b}'), "{stderr:?}");
    }
}

/// Runs a command that has a terminal to itself: what comes to standard input is typed there, what it shows goes to standard output. At the end
/// its code and whether the terminal is as it was go to standard error.
const OWN_TERMINAL: &str = "
import fcntl, os, pty, struct, subprocess, sys, termios, threading
ours, theirs = pty.openpty()
fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 120, 0, 0))
before = termios.tcgetattr(theirs)
own = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
child = subprocess.Popen(sys.argv[1:], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=own)
def type():
    while piece := os.read(0, 64):
        os.write(ours, piece)
def show():
    seen = b''
    while not seen.endswith(b'(ended)'):
        piece = os.read(ours, 4096)
        seen += piece
        os.write(1, piece)
threading.Thread(target=type, daemon=True).start()
shows = threading.Thread(target=show)
shows.start()
code = child.wait()
same = termios.tcgetattr(theirs) == before
os.write(theirs, b'(ended)')
shows.join()
os.write(2, f'{code} {same}'.encode())
os._exit(0)
";

#[test]
fn top_is_drawn_anew_and_leaves_the_terminal_as_it_was() {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !is_there("python3", found, "a terminal") {
        return;
    }
    let node = Node::start(&[]);
    node.deploy_wat("first-function", &crate::harness::wat::says("x"), "");
    node.data.get("/first-function").ok();
    let of_node = of_node(&node, &["top", "--interval", "100ms"]);
    let mut command = Command::new("python3");
    command.args(["-c", OWN_TERMINAL]).arg(of_node.get_program()).args(of_node.get_args());
    command.env("HOB_SERVER", format!("http://{}", node.control.addr)).env("TERM", "xterm");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let text = Arc::new(Mutex::new(String::new()));
    let (of_thread, mut terminal) = (Arc::clone(&text), child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = terminal.read(&mut piece) {
            of_thread.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    });
    let shows = |word: &str| text.lock().unwrap().contains(word);
    eventually("the function has a row", || shows("FUNCTION") && shows("\nfirst-function "));
    assert!(!shows("second-function"));
    node.deploy_wat("second-function", &crate::harness::wat::says("x"), "");
    node.data.get("/second-function").ok();
    eventually("the table is drawn anew", || shows("\nsecond-function "));
    assert!(text.lock().unwrap().matches("\u{1b}[H").count() >= 2);
    child.stdin.take().unwrap().write_all(b"\x03").unwrap();
    let output = child.wait_with_output().unwrap();
    reader.join().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "130 True");
    let text = text.lock().unwrap();
    let (enter, leave) = ("\u{1b}[?1049h\u{1b}[?25l", "\u{1b}[?25h\u{1b}[?1049l");
    assert!(text.starts_with(enter) && text.matches(enter).count() == 1, "{text:?}");
    // What the terminal itself shows of the key is there too.
    let after = text.rsplit_once(leave).unwrap_or_else(|| panic!("it is not left: {text:?}")).1;
    assert_eq!(after, "(ended)", "{text:?}");
}
