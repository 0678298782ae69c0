//! Opening a port: one listening socket for each thread that accepts.
//!
//! Owns how sockets share a port. Knows nothing about what is spoken on it. Invariant: either all sockets listen on the same
//! address and nobody else does, or none is open.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, Type};

/// Connections that wait to be accepted, for each socket. The kernel caps it at `net.core.somaxconn` (4,096 by default).
const BACKLOG: i32 = 4096;

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("{addr} is in use: stop what listens there, or choose another port (port 0 picks a free one: --addr 127.0.0.1:0)")]
    InUse {
        /// Where.
        addr: SocketAddr,
    },
    /// The process may not.
    #[error("{addr} is not permitted: ports below 1024 need privileges; choose a port from 1024 up, such as 3000")]
    Denied {
        /// Where.
        addr: SocketAddr,
    },
    /// The machine has no such address.
    #[error("{addr} cannot be opened: no interface of this machine has the address {}; use 127.0.0.1 or 0.0.0.0", .addr.ip())]
    NoSuchAddress {
        /// Where.
        addr: SocketAddr,
    },
    /// Anything else.
    #[error("{addr} cannot be opened: {source}; choose another address, such as --addr 127.0.0.1:0")]
    Other {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl BindError {
    fn new(addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { addr },
            io::ErrorKind::PermissionDenied => Self::Denied { addr },
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress { addr },
            _ => Self::Other { addr, source },
        }
    }
}

/// Opens `addr` once for each of `threads` (at least once). Port 0 becomes a free one; the address that was really taken comes
/// first. The kernel spreads new connections over the sockets by a hash of the client's address and port.
///
/// # Errors
/// [`BindError`] names the address and what to do. A port on which another process listens is in use even if that process shares
/// it (`SO_REUSEPORT`) and belongs to the same user: two daemons on one port would each get half of the requests.
pub fn bind(addr: SocketAddr, threads: usize) -> Result<(SocketAddr, Vec<TcpListener>), BindError> {
    open(addr, threads).map_err(|source| BindError::new(addr, source))
}

fn open(addr: SocketAddr, threads: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    // The probe does not share its port, so it fails where anybody listens. While it lives it keeps the port from others, and it
    // never listens itself, which is what lets our own sockets join it (both sides have SO_REUSEADDR).
    let probe = socket(addr)?;
    probe.bind(&addr.into())?;
    let addr = local_addr(&probe.local_addr()?)?;
    let mut listeners = Vec::new();
    for _ in 0..threads.max(1) {
        let socket = socket(addr)?;
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        listeners.push(socket.into());
    }
    Ok((addr, listeners))
}

/// From now on no connection begins at this listener, while those that have begun may still be accepted: closed at once, it would reset
/// every connection that the kernel let in meanwhile, and whose client has sent its request already. Who asks for a connection hears
/// nothing, asks again after a second, and is then refused, or meets the next process.
///
/// # Errors
/// What the system says; the listener is as before.
pub(super) fn shut(listener: impl AsFd) -> io::Result<()> {
    /// Where the flags of a TCP header are (RFC 9293, 3.1), and two of them.
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let step = |code: u32, on_true, on_false, value| SockFilter::new(u16::try_from(code).unwrap_or(0), on_true, on_false, value);
    // The kernel shows it each packet from its TCP header on, and drops those of which it keeps no byte.
    SockRef::from(&listener).attach_filter(&[
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN | ACK),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ])
}

/// Bytes of a response that the system may hold for a client. Linux takes it twice, for what it keeps beside them.
const SEND_BUFFER_BYTES: usize = 256 << 10;

/// Of those, bytes that it takes before it has sent them.
const UNSENT_BYTES: u32 = 64 << 10;

fn socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // A daemon that restarts must not wait for the last connections of its predecessor to be forgotten (TIME_WAIT).
    socket.set_reuse_address(true)?;
    // Connections inherit it. Otherwise the system lets each grow to 4 MiB, and a few hundred clients that never read take the memory
    // that it has for all of TCP: neighbours then wait for seconds.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    // Inherited too. What a client does not take is then copied as it takes it, and not in one go: with hundreds of clients that never
    // read, neighbours waited until each had had its buffer filled.
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok(socket)
}

fn local_addr(addr: &SockAddr) -> io::Result<SocketAddr> {
    addr.as_socket().ok_or_else(|| io::Error::other("the socket has no address of its family"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn connections_hold_a_bounded_part_of_a_response() {
        let (addr, listeners) = bind(any(), 1).unwrap();
        let _client = TcpStream::connect(addr).unwrap();
        listeners[0].set_nonblocking(false).unwrap();
        let (connection, _) = listeners[0].accept().unwrap();
        let connection = Socket::from(connection);
        let bytes = connection.send_buffer_size().unwrap();
        assert!(bytes <= 2 * SEND_BUFFER_BYTES, "{bytes}");
        assert_eq!(connection.tcp_notsent_lowat().unwrap(), UNSENT_BYTES);
    }

    #[test]
    fn port_0_becomes_one_port_for_all() {
        let (addr, listeners) = bind(any(), 3).unwrap();
        assert_ne!(addr.port(), 0);
        let addrs: HashSet<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        assert_eq!((addrs, listeners.len()), (HashSet::from([addr]), 3));
    }

    #[test]
    fn every_socket_gets_connections() {
        let (addr, listeners) = bind(any(), 2).unwrap();
        let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(addr).unwrap()).collect();
        let accepted: Vec<_> = listeners.iter().map(|listener| std::iter::from_fn(|| listener.accept().ok()).count()).collect();
        assert_eq!(accepted.iter().sum::<usize>(), clients.len());
        assert!(accepted.iter().all(|count| *count > 0), "{accepted:?}");
    }

    #[test]
    fn a_shared_port_of_another_daemon_is_in_use() {
        let (addr, _held) = bind(any(), 2).unwrap();
        let error = bind(addr, 2).unwrap_err();
        assert!(matches!(error, BindError::InUse { addr: found } if found == addr), "{error:?}");
        assert!(error.to_string().contains(&addr.to_string()) && error.to_string().contains("--addr 127.0.0.1:0"), "{error}");
    }

    #[test]
    fn a_port_of_another_program_is_in_use() {
        let held = TcpListener::bind(any()).unwrap();
        let error = bind(held.local_addr().unwrap(), 1).unwrap_err();
        assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
    }

    #[test]
    fn a_port_can_be_taken_again_at_once() {
        let (addr, listeners) = bind(any(), 2).unwrap();
        let client = TcpStream::connect(addr).unwrap();
        drop(listeners);
        bind(addr, 2).unwrap();
        drop(client);
    }

    #[test]
    fn a_shut_listener_gives_what_it_has_and_takes_nothing_new() {
        let (addr, mut listeners) = bind(any(), 1).unwrap();
        let listener = listeners.remove(0);
        let mut before = TcpStream::connect(addr).unwrap();
        shut(&listener).unwrap();
        let after = TcpStream::connect_timeout(&addr, Duration::from_millis(200)).unwrap_err();
        assert_eq!(after.kind(), io::ErrorKind::TimedOut);
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(false).unwrap();
        drop(listener);
        before.write_all(b"a").unwrap();
        accepted.write_all(b"b").unwrap();
        let read = |stream: &mut TcpStream| {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            byte
        };
        assert_eq!((read(&mut accepted), read(&mut before)), (*b"a", *b"b"));
        assert_eq!(TcpStream::connect(addr).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        let error = bind(SocketAddr::from(([192, 0, 2, 1], 0)), 1).unwrap_err();
        assert!(matches!(error, BindError::NoSuchAddress { .. }) && error.to_string().contains("192.0.2.1"), "{error}");
    }
}
