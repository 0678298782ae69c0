//! The client against servers of the test, with a resolver of the test's own.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};

use super::*;

/// Gives one list of addresses after the other, and counts.
#[derive(Clone, Default)]
struct Flips {
    answers: Arc<Mutex<VecDeque<Vec<&'static str>>>>,
    asked: Arc<AtomicUsize>,
}

impl Flips {
    fn new(answers: &[&[&'static str]]) -> Self {
        let answers = answers.iter().map(|answer| answer.to_vec()).collect();
        Self { answers: Arc::new(Mutex::new(answers)), asked: Arc::default() }
    }
}

impl Resolve for Flips {
    fn addresses(
        &self,
        _name: String,
        _turn: OwnedSemaphorePermit,
    ) -> BoxFuture<'static, std::io::Result<Vec<std::net::IpAddr>>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = self.answers.lock().unwrap().pop_front();
        let found = answer.map(|answer| answer.iter().map(|ip| ip.parse().unwrap()).collect());
        std::future::ready(found.ok_or_else(|| ErrorKind::NotFound.into())).boxed()
    }
}

/// A server that answers `ok` to every request, and how many connections it has taken.
fn server(addr: &str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(addr).unwrap();
    let (addr, taken) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = taken.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let mut lines = BufReader::new(&stream).lines();
                while lines.by_ref().map_while(Result::ok).any(|line| line.is_empty()) {
                    if (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                        break;
                    }
                }
            });
        }
    });
    (addr, taken)
}

fn client(opened: &[String], resolver: Flips) -> Egress {
    let walls = Walls { opened: opened.iter().map(|opened| opened.parse().unwrap()).collect(), ..Walls::default() };
    Egress::start_with(&config::Egress::default(), walls, Box::new(resolver)).unwrap()
}

fn request(url: &str) -> Request<RequestBody> {
    Request::get(url).body(from_guest(Full::new(Bytes::new()))).unwrap()
}

fn get(egress: &Egress, url: &str) -> Result<Bytes, EgressError> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tenant = egress.tenant(&TenantId::default());
        let response = tenant.send(request(url), &egress.caller(Hops::default()), egress.times()).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    })
}

#[test]
fn a_name_is_looked_up_once_for_each_connection() {
    let (addr, taken) = server("127.0.0.1:0");
    let answers: [&[&str]; 50] = [&["127.0.0.1"]; 50];
    let resolver = Flips::new(&answers);
    let egress = client(&[addr.to_string()], resolver.clone());
    let url = format!("http://flips.example:{}/", addr.port());
    // Held, or its connections would go with it.
    let _tenant = egress.tenant(&TenantId::default());
    for _ in 0..50 {
        assert_eq!(get(&egress, &url).unwrap(), "ok");
    }
    let counts = (resolver.asked.load(Ordering::SeqCst), taken.load(Ordering::SeqCst));
    assert_eq!(counts.0, counts.1, "one look-up for each connection, and none for a request on an old one");
    assert!(counts.1 < 50, "connections are used again: {}", counts.1);
}

#[test]
fn a_name_that_turns_private_is_not_followed() {
    let (addr, taken) = server("127.0.0.1:0");
    let (_, honeypot) = server(&format!("127.0.0.2:{}", addr.port()));
    let answers: [&[&str]; 4] = [&["127.0.0.2"], &["127.0.0.2", "127.0.0.1"], &["::ffff:127.0.0.2"], &["127.0.0.1"]];
    let egress = client(&[addr.to_string()], Flips::new(&answers));
    let url = format!("http://flips.example:{}/", addr.port());
    assert_eq!(get(&egress, &url), Err(EgressError::Prohibited));
    assert_eq!(get(&egress, &url).unwrap(), "ok");
    assert_eq!(get(&egress, &url), Err(EgressError::Prohibited));
    assert_eq!(get(&egress, &url).unwrap(), "ok");
    assert_eq!(get(&egress, &url), Err(EgressError::UnknownName));
    assert_eq!((taken.load(Ordering::SeqCst), honeypot.load(Ordering::SeqCst)), (2, 0));
}

#[test]
fn a_closed_address_looks_the_same_whether_somebody_listens() {
    let (there, taken) = server("127.0.0.1:0");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let egress = client(&[], Flips::default());
    for addr in [there, nobody] {
        assert_eq!(get(&egress, &format!("http://{addr}/")), Err(EgressError::Prohibited));
    }
    assert_eq!(taken.load(Ordering::SeqCst), 0);
}

#[test]
fn places_bound_what_is_under_way_and_come_back() {
    let (addr, _) = server("127.0.0.1:0");
    let egress = client(&[addr.to_string()], Flips::default());
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (tenant, caller) = (egress.tenant(&TenantId::default()), egress.caller(Hops::default()));
        let url = format!("http://{addr}/");
        let send = || tenant.send(request(&url), &caller, egress.times());
        let mut held = Vec::new();
        for _ in 0..config::Egress::default().invocation_requests_max {
            assert!(!caller.is_busy());
            held.push(send().await.unwrap());
        }
        assert!(caller.is_busy());
        let mut one_more = Box::pin(send());
        assert!((&mut one_more).now_or_never().is_none(), "it waits");
        drop(held.pop());
        one_more.await.unwrap().into_body().collect().await.unwrap();
        assert!(!caller.is_busy());
        let sent = u64::try_from(config::Egress::default().invocation_requests_max + 1).unwrap();
        assert_eq!(caller.used().totals()[0], sent);
        assert!(Arc::ptr_eq(&tenant, &egress.tenant(&TenantId::default())));
        let another: TenantId = "other".parse().unwrap();
        assert!(!Arc::ptr_eq(&tenant, &egress.tenant(&another)), "others have places of their own");
    });
}

#[test]
fn a_shorter_time_wins() {
    let second = Duration::from_secs(1);
    let ours = Times { connect: second, response: second, idle: second };
    let asked = ours.at_most(Some(Duration::ZERO), Some(2 * second), None);
    assert_eq!((asked.connect, asked.response, asked.idle), (Duration::ZERO, second, second));
}

#[test]
fn what_is_no_certificate_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    let start = |file: &std::path::Path| {
        let config = config::Egress { ca_files: vec![file.into()], ..config::Egress::default() };
        Egress::start(&config, Walls::default()).unwrap_err().to_string()
    };
    assert!(start(&file).contains("egress.ca_files"), "missing");
    for text in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&file, text).unwrap();
        assert!(start(&file).contains("expected a file of certificates"), "{text}");
    }
}
