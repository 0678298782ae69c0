//! The helper: a process that starts builds for a node that may start no process itself.
//!
//! ```text
//! hob serve ──socket──▶ hob build-helper ──▶ hob build-child, one for each build
//! ```
//!
//! Owns the helper's loop and the messages on its socket, each of [`MESSAGE_LEN`] bytes: a kind, the number of the build, two values; a start
//! carries five descriptors. Knows nothing about modules. Invariants: it starts nothing but the program that it is itself, with arguments
//! of its own making, so that whoever gets hold of the node can have builds made and no more; when the node is gone, so are it and
//! its children.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::child::Walls;
use super::{CHILD_COMMAND, cores, threads};
use crate::config::Sandbox;
use crate::process::{self, Reach};

/// The name by which a program's `main` knows that it is to be the helper; see [`super::child::run_if_child`].
pub(super) const HELPER_COMMAND: &str = "build-helper";

const MESSAGE_LEN: usize = 32;
/// Descriptors of a start: the child's input, output and errors, native code, snapshot.
const DESCRIPTORS: usize = 5;

/// What the node asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// To start a build.
    Start(u64, Walls),
    /// To end one.
    Kill(u64),
}

/// What the helper tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// A build's process ended so, after so much processor time.
    Ended(u64, i32, Duration),
    /// It could not be started, for this error of the system.
    Failed(u64, i32),
}

fn message(values: [u64; 4]) -> [u8; MESSAGE_LEN] {
    let mut bytes = [0; MESSAGE_LEN];
    for (place, value) in bytes.chunks_exact_mut(8).zip(values) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn values(message: &[u8; MESSAGE_LEN]) -> [u64; 4] {
    let mut values = [0; 4];
    for (value, bytes) in values.iter_mut().zip(message.chunks_exact(8)) {
        *value = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    values
}

impl Request {
    pub(super) fn to_bytes(self) -> [u8; MESSAGE_LEN] {
        message(match self {
            Self::Start(id, walls) => [1, id, walls.memory_bytes, walls.cpu_seconds],
            Self::Kill(id) => [2, id, 0, 0],
        })
    }

    fn from_bytes(bytes: &[u8; MESSAGE_LEN]) -> Option<Self> {
        match values(bytes) {
            [1, id, memory_bytes, cpu_seconds] => Some(Self::Start(id, Walls { memory_bytes, cpu_seconds })),
            [2, id, 0, 0] => Some(Self::Kill(id)),
            _ => None,
        }
    }
}

impl Answer {
    fn to_bytes(self) -> [u8; MESSAGE_LEN] {
        let signed = |number: i32| u64::from(number.cast_unsigned());
        message(match self {
            Self::Ended(id, status, cpu) => [1, id, signed(status), u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX)],
            Self::Failed(id, errno) => [2, id, signed(errno), 0],
        })
    }

    pub(super) fn from_bytes(bytes: &[u8; MESSAGE_LEN]) -> Option<Self> {
        let signed = |value: u64| u32::try_from(value).ok().map(u32::cast_signed);
        match values(bytes) {
            [1, id, status, cpu] => Some(Self::Ended(id, signed(status)?, Duration::from_micros(cpu))),
            [2, id, errno, 0] => Some(Self::Failed(id, signed(errno)?)),
            _ => None,
        }
    }
}

/// Sends one message, with descriptors or none.
pub(super) fn send(socket: impl AsFd, bytes: &[u8; MESSAGE_LEN], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Whoever listens may be gone: that is an error, and not the end of this process.
    retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Waits for a message; `None` once the other side is gone.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Option<([u8; MESSAGE_LEN], Vec<OwnedFd>)>> {
    let mut bytes = [0; MESSAGE_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    match received.bytes {
        0 => Ok(None),
        MESSAGE_LEN if !received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) => Ok(Some((bytes, descriptors))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Becomes the helper, with the socket as standard input. `args`: whether there are walls, and what may be reached.
pub(super) fn run(args: &[OsString]) -> io::Result<()> {
    let walled = args.split_first().and_then(|(word, reach)| Some((Sandbox::parse(word.to_str()?)?, Reach::from_args(reach)?)));
    let Some((sandbox, mut reach)) = walled else { return Err(io::ErrorKind::InvalidInput.into()) };
    process::forbid_dumps()?;
    // No more than the node, and what it needs to run itself again.
    reach.run_self();
    // What is missing of a wall the node tells of its own.
    process::Walls::new(sandbox).stand_before_files(&reach).map_err(io::Error::other)?;
    serve(io::stdin(), Path::new(super::Helper::SELF), sandbox)
}

/// A build that runs.
struct Running {
    id: u64,
    child: Child,
    /// Readable once it has ended.
    ended: OwnedFd,
}

/// Starts what is asked for until the other side of `socket` is gone, and ends it then.
///
/// # Errors
/// When the socket cannot be used.
pub(super) fn serve(socket: impl AsFd, program: &Path, sandbox: Sandbox) -> io::Result<()> {
    let mut running = Vec::new();
    let served = turns(socket.as_fd(), program, sandbox, &mut running);
    for Running { child, .. } in &mut running {
        // It may have ended by itself meanwhile.
        let _gone = child.kill();
        child.wait()?;
    }
    served
}

fn turns(socket: BorrowedFd<'_>, program: &Path, sandbox: Sandbox, running: &mut Vec<Running>) -> io::Result<()> {
    loop {
        let mut polled: Vec<_> = running.iter().map(|build| PollFd::new(&build.ended, PollFlags::IN)).collect();
        polled.push(PollFd::new(&socket, PollFlags::IN));
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let asked = polled.pop().is_some_and(|socket| !socket.revents().is_empty());
        let ended: Vec<_> = polled.iter().map(|build| !build.revents().is_empty()).collect();
        let mut at = 0;
        for ended in ended {
            if !ended {
                at += 1;
                continue;
            }
            let Running { id, mut child, .. } = running.remove(at);
            let cpu = cpu(&child);
            let status = child.wait()?;
            send(socket, &Answer::Ended(id, status.into_raw(), cpu).to_bytes(), &[])?;
        }
        if !asked {
            continue;
        }
        let Some((bytes, descriptors)) = receive(socket)? else { return Ok(()) };
        match Request::from_bytes(&bytes) {
            Some(Request::Start(id, walls)) => match start(program, walls, sandbox, descriptors) {
                Ok((child, ended)) => running.push(Running { id, child, ended }),
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(Errno::INVAL.raw_os_error());
                    send(socket, &Answer::Failed(id, errno).to_bytes(), &[])?;
                }
            },
            Some(Request::Kill(id)) => {
                if let Some(build) = running.iter_mut().find(|build| build.id == id) {
                    // It may have ended by itself meanwhile.
                    let _gone = build.child.kill();
                }
            }
            None => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Starts a child. The descriptors are closed here when this returns.
fn start(program: &Path, walls: Walls, sandbox: Sandbox, descriptors: Vec<OwnedFd>) -> io::Result<(Child, OwnedFd)> {
    let Ok([stdin, stdout, stderr, native, snapshot]) = <[OwnedFd; DESCRIPTORS]>::try_from(descriptors) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut command = Command::new(program);
    command.arg(CHILD_COMMAND).args(walls.to_args()).env_clear().current_dir("/");
    for output in [&native, &snapshot] {
        // It stays open across `execve`, in this child alone: nothing else is started before both are closed.
        fcntl_setfd(output, FdFlags::empty())?;
        command.arg(format!("/proc/self/fd/{}", output.as_raw_fd()));
    }
    command.arg(sandbox.as_str()).arg(std::process::id().to_string());
    // An arena is reserved in larger pieces than the walls may allow, and never given back: what is freed would still count.
    command.env("MIMALLOC_DISALLOW_ARENA_ALLOC", "1");
    command.env("RAYON_NUM_THREADS", threads(cores()).to_string());
    let mut child = command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr)).spawn()?;
    match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(ended) => Ok((child, ended)),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error.into())
        }
    }
}

/// Processor time of a process that has ended and was not waited for. Source: proc(5), `/proc/PID/stat`, fields 14 and 15.
fn cpu(child: &Child) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    // The name stands in parentheses, and may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip_and_others_are_refused() {
        let walls = Walls { memory_bytes: 1 << 40, cpu_seconds: 60 };
        for request in [Request::Start(7, walls), Request::Kill(u64::MAX)] {
            assert_eq!(Request::from_bytes(&request.to_bytes()), Some(request));
        }
        for answer in [Answer::Ended(7, -1, Duration::from_micros(5)), Answer::Failed(0, 24)] {
            assert_eq!(Answer::from_bytes(&answer.to_bytes()), Some(answer));
        }
        for bad in [[0; 4], [3, 0, 0, 0], [2, 0, 1, 0]] {
            assert_eq!(Request::from_bytes(&message(bad)), None);
        }
        assert_eq!(Answer::from_bytes(&message([1, 0, 1 << 40, 0])), None);
    }
}
