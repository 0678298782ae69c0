//! The client against servers of the test, with a resolver of the test's own.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt as _};
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

/// Answers nobody before it is told to; counts who asks, and who was answered no more.
#[derive(Clone, Default)]
struct Slow {
    asked: Arc<AtomicUsize>,
    go: Arc<tokio::sync::Notify>,
}

impl Resolve for Slow {
    fn addresses(&self, _name: String, turn: OwnedSemaphorePermit) -> BoxFuture<'static, std::io::Result<Vec<std::net::IpAddr>>> {
        let this = self.clone();
        async move {
            let _turn = turn;
            let told = this.go.notified();
            this.asked.fetch_add(1, Ordering::SeqCst);
            told.await;
            Err(ErrorKind::NotFound.into())
        }
        .boxed()
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

fn client(opened: &[String], resolver: impl Resolve) -> Egress {
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
        let response = tenant.send(request(url), &egress.caller(Hops::default(), None), egress.times()).await?;
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
        let (tenant, caller) = (egress.tenant(&TenantId::default()), egress.caller(Hops::default(), None));
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

/// It answers before it has read the request, and reads no more: the connection is there for as long as the server may take nothing, and
/// the request's place as long as any of its body waits to be sent.
#[test]
fn a_server_that_answers_early_and_reads_no_more_keeps_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (sender, held) = std::sync::mpsc::sync_channel(4);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sender) = (stream.unwrap(), sender.clone());
            std::thread::spawn(move || {
                // One that was made for nothing is closed without a request.
                if stream.read_exact(&mut [0; 16]).is_ok() {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                    // Open for as long as the test has the other end.
                    sender.send(stream).unwrap();
                }
            });
        }
    });
    let config = config::Egress {
        tenant_requests_max: 1,
        idle_timeout: config::Time(Duration::from_millis(300)),
        ..config::Egress::default()
    };
    let walls = Walls { opened: vec![addr.to_string().parse().unwrap()], ..Walls::default() };
    let egress = Egress::start_with(&config, walls, Box::new(Flips::default())).unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tenant = egress.tenant(&TenantId::default());
        // More than the buffers of the system take.
        let piece = || Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from(vec![0; 1 << 20])));
        for turn in 0..4 {
            let body = http_body_util::StreamBody::new(futures_util::stream::repeat_with(piece).take(64));
            let request = Request::post(format!("http://{addr}/")).body(from_guest(body)).unwrap();
            // After the first it waits for the place of the one before.
            let response = tenant.send(request, &egress.caller(Hops::default(), None), egress.times()).await;
            assert_eq!(response.map(|response| response.status().as_u16()), Ok(200), "{turn}");
            assert_eq!(tenant.requests.available_permits(), 0, "its place is taken while its body is there");
        }
    });
    assert_eq!(held.try_iter().count(), 4);
}

/// Which of the bounds of requests is met first, by whose requests.
#[test]
fn who_has_no_place_left_sends_nothing() {
    let (addr, _) = server("127.0.0.1:0");
    let url = format!("http://{addr}");
    let config =
        config::Egress { invocation_requests_max: 100, tenant_requests_max: 2, requests_max: 3, ..config::Egress::default() };
    let walls = Walls { opened: vec![addr.to_string().parse().unwrap()], ..Walls::default() };
    let egress = Egress::start_with(&config, walls, Box::new(Flips::default())).unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let [one, two, three] = ["one", "two", "three"].map(|id| egress.tenant(&id.parse().unwrap()));
        let callers: [_; 5] = std::array::from_fn(|_| egress.caller(Hops::default(), None));
        // A request is counted as soon as it has its places, and that is at the first poll if there are any.
        let is_sent = |caller: &Caller| caller.used().totals()[0] == 1;
        let held = [
            one.send(request(&url), &callers[0], egress.times()).await.unwrap(),
            one.send(request(&url), &callers[1], egress.times()).await.unwrap(),
        ];
        let mut third_of_one = Box::pin(one.send(request(&url), &callers[2], egress.times()));
        assert!((&mut third_of_one).now_or_never().is_none() && !is_sent(&callers[2]), "the tenant has two");
        let of_two = two.send(request(&url), &callers[3], egress.times()).await.unwrap();
        assert!(is_sent(&callers[3]), "another tenant has places of its own");
        let mut of_three = Box::pin(three.send(request(&url), &callers[4], egress.times()));
        assert!((&mut of_three).now_or_never().is_none() && !is_sent(&callers[4]), "the node has three");
        drop(of_two);
        of_three.await.unwrap();
        drop(held);
        third_of_one.await.unwrap();
        assert!(callers.iter().all(is_sent));
    });
}

#[test]
fn a_tenant_has_so_many_look_ups_at_once() {
    let resolver = Slow::default();
    let egress = client(&[], resolver.clone());
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let asked = async |count: usize| {
        while resolver.asked.load(Ordering::SeqCst) < count {
            tokio::task::yield_now().await;
        }
        assert_eq!(resolver.asked.load(Ordering::SeqCst), count);
    };
    let hour = Duration::from_secs(3600);
    let times = Times { connect: hour, response: hour, idle: hour };
    let look_up = |tenant: &str| {
        let (tenant, caller) = (egress.tenant(&tenant.parse().unwrap()), egress.caller(Hops::default(), None));
        tokio::spawn(async move { tenant.send(request("http://slow.example/"), &caller, times).await.map(drop) })
    };
    runtime.block_on(async {
        let mut waiting: Vec<_> = (0..LOOK_UPS_MAX + 2).map(|_| look_up("one")).collect();
        asked(LOOK_UPS_MAX).await;
        // The others of it have to wait, and nobody else does.
        waiting.push(look_up("two"));
        asked(LOOK_UPS_MAX + 1).await;
        resolver.go.notify_one();
        asked(LOOK_UPS_MAX + 2).await;
        resolver.go.notify_one();
        asked(LOOK_UPS_MAX + 3).await;
        resolver.go.notify_waiters();
        for answer in waiting {
            assert_eq!(answer.await.unwrap(), Err(EgressError::UnknownName));
        }
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
