//! The door over real data, with an `Invoke` that does what the test says.

use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Instant as Clock;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{Response, StatusCode};
use serde_json::Value;

use super::delivery::{PAUSE, PAUSE_MAX, pause};
use super::*;
use crate::data::Bucket;
use crate::data::events::testing::*;
use crate::fault::{Code, Fault};
use crate::id::{RevisionNumber, TenantId};
use crate::invocation::{Invocation, Invoked, Outcome, Payload, Phases, Start};
use crate::manifest::{On, Trigger};
use crate::net::drain::Drain;
use crate::telemetry::metrics::Delivery;

const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let began = Clock::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a function was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    function: String,
    key: String,
    attempt: u32,
}

type Answer = Result<Response<Payload>, Fault>;
type Does = Box<dyn Fn(&Asked) -> BoxFuture<'static, Answer> + Send + Sync>;

/// Runs a closure instead of a guest.
struct Fake {
    does: Does,
    asked: Mutex<Vec<Asked>>,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

impl Invoke for Fake {
    fn invoke(&self, invocation: Invocation) -> BoxFuture<'static, Invoked> {
        let crate::invocation::Target::Function(name) = invocation.target else { panic!("{invocation:?}") };
        let of = |name: &str| invocation.request.headers()[name].to_str().unwrap().to_owned();
        let asked = Asked { function: name.to_string(), key: of("hob-key"), attempt: of("hob-attempt").parse().unwrap() };
        let answer = (self.does)(&asked);
        self.asked.lock().unwrap().push(asked);
        let outcome =
            |response| Outcome { response, revision: RevisionNumber::FIRST, start: Start::Resident, phases: Phases::default() };
        async move { Invoked { id: InvocationId::new(1, 2), result: answer.await.map(outcome) } }.boxed()
    }
}

fn status(status: u16) -> Answer {
    let mut response = Response::new(Payload::empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

struct Rig {
    dir: Arc<tempfile::TempDir>,
    data: Arc<Data>,
    fake: Arc<Fake>,
    metrics: Arc<Metrics>,
    told: Arc<Mutex<Vec<String>>>,
    drain: Drain,
    thread: JoinHandle<usize>,
}

impl Rig {
    /// Data in a folder, and a door before it. `triggered`: as the registry would say it.
    fn start(
        dir: Arc<tempfile::TempDir>,
        triggered: &[(&str, Vec<Trigger>)],
        does: impl Fn(&Asked) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    ) -> Self {
        let data = Arc::new(open(&dir, 100_000));
        let named = |(name, triggers): &(&str, Vec<Trigger>)| (TenantId::default(), name.parse().unwrap(), triggers.clone());
        data.outbox().begin(&triggered.iter().map(named).collect::<Vec<_>>()).unwrap();
        let fake = Arc::new(Fake { does: Box::new(does), asked: Mutex::default() });
        let (metrics, told) = (Arc::new(Metrics::new()), Arc::<Mutex<Vec<String>>>::default());
        let log = told.clone();
        let tell: Tell = Arc::new(move |_, _, text| log.lock().unwrap().push(text.into()));
        let triggers = Triggers { invoke: fake.clone(), data: data.clone(), tell, metrics: metrics.clone() };
        let (drain, stop) = Drain::new();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(triggers.run(stop, PATIENCE))
        });
        Self { dir, data, fake, metrics, told, drain, thread }
    }

    fn new(
        triggered: &[(&str, Vec<Trigger>)],
        does: impl Fn(&Asked) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    ) -> Self {
        Self::start(Arc::new(tempfile::tempdir().unwrap()), triggered, does)
    }

    fn bucket(&self, name: &str) -> Bucket {
        bucket(&self.data, name)
    }

    fn asked(&self) -> Vec<Asked> {
        self.fake.asked.lock().unwrap().clone()
    }

    fn keys(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.key).collect()
    }

    fn count(&self, delivery: Delivery) -> u64 {
        let text = self.metrics.text(std::iter::empty(), Vec::new());
        let name = format!("hob_deliveries_total{{kind=\"{}\"}} ", delivery.as_str());
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap()
    }

    /// A delivery is counted just after it ended.
    #[track_caller]
    fn counts(&self, expected: &[(Delivery, u64)]) {
        eventually(&format!("{expected:?}"), || expected.iter().all(|(delivery, count)| self.count(*delivery) == *count));
    }

    #[track_caller]
    fn all_told(&self) {
        eventually("nothing waits", || self.data.outbox().waiting().unwrap() == 0);
    }

    /// Waits until a function's log has a line with all of `parts`.
    #[track_caller]
    fn told(&self, parts: &[&str]) {
        let has = |line: &String| parts.iter().all(|part| line.contains(part));
        eventually(&format!("{parts:?} is told"), || self.told.lock().unwrap().iter().any(has));
    }

    /// Stops the door, lets go of the data, and returns the folder.
    fn stop(self) -> Arc<tempfile::TempDir> {
        self.drain.stop();
        assert_eq!(self.thread.join().unwrap(), 0);
        self.dir
    }
}

fn now(answer: Answer) -> BoxFuture<'static, Answer> {
    std::future::ready(answer).boxed()
}

fn puts() -> Trigger {
    Trigger { attempts: 3, ..trigger(On::ObjectPut, "in", "") }
}

#[test]
fn each_event_is_told_once_and_those_of_a_key_in_order() {
    let rig = Rig::new(&[("f", vec![trigger(On::KeyChange, "in", "")])], |_| now(status(204)));
    let input = rig.bucket("in");
    let mut expected = Vec::new();
    for round in 0..WINDOW {
        let key = format!("k{}", round % 7);
        write(&rig.data, &input, vec![set(&key)]).unwrap();
        write(&rig.data, &input, vec![set("other")]).unwrap();
        expected.extend([key, "other".into()]);
    }
    rig.all_told();
    let mut keys = rig.keys();
    rig.counts(&[(Delivery::Delivered, 2 * WINDOW as u64), (Delivery::Failed, 0)]);
    keys.sort();
    expected.sort();
    assert_eq!(keys, expected);
    rig.stop();
}

#[test]
fn of_one_key_one_is_told_at_a_time_and_of_others_a_few() {
    let running = Arc::new(Mutex::new((Vec::<String>::new(), 0)));
    let (seen, gate) = (running.clone(), Arc::new(tokio::sync::Semaphore::new(0)));
    let open = gate.clone();
    let rig = Rig::new(&[("f", vec![trigger(On::KeyChange, "in", "")])], move |asked| {
        let (seen, gate, key) = (seen.clone(), gate.clone(), asked.key.clone());
        async move {
            {
                let mut seen = seen.lock().unwrap();
                assert!(!seen.0.contains(&key), "two of {key} at once");
                seen.0.push(key.clone());
                seen.1 = seen.1.max(seen.0.len());
            }
            gate.acquire().await.unwrap().forget();
            seen.lock().unwrap().0.retain(|running| *running != key);
            status(200)
        }
        .boxed()
    });
    let input = rig.bucket("in");
    for n in 0..4 * LANE_DELIVERIES_MAX {
        write(&rig.data, &input, vec![set(&format!("k{}", n % (2 * LANE_DELIVERIES_MAX)))]).unwrap();
    }
    eventually("as many run as may", || running.lock().unwrap().0.len() == LANE_DELIVERIES_MAX);
    open.add_permits(1000);
    rig.all_told();
    assert_eq!(running.lock().unwrap().1, LANE_DELIVERIES_MAX);
    rig.stop();
}

#[test]
fn a_node_delivers_only_so_many_at_once_and_one_tenant_has_not_all() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let open = gate.clone();
    let names: Vec<String> = (0..DELIVERIES_MAX / LANE_DELIVERIES_MAX + 1).map(|n| format!("f{n}")).collect();
    let triggered: Vec<_> = names.iter().map(|name| (name.as_str(), vec![trigger(On::KeyChange, "in", "")])).collect();
    let rig = Rig::new(&triggered, move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            status(200)
        }
        .boxed()
    });
    let told = |of: &str| rig.asked().iter().filter(|asked| asked.function.starts_with(of)).count();
    let flood = |input: &Bucket| {
        write(&rig.data, input, (0..LANE_DELIVERIES_MAX).map(|n| set(&format!("k{n}"))).collect()).unwrap();
    };
    flood(&rig.bucket("in"));
    eventually("as many run as may of a tenant", || told("f") == TENANT_DELIVERIES_MAX);
    // Everybody had a turn.
    assert!(names.iter().all(|name| told(name) > 0));
    let other: TenantId = "other".parse().unwrap();
    for name in ["o0", "o1", "o2"] {
        rig.data.outbox().want(&other, &name.parse().unwrap(), &[trigger(On::KeyChange, "in", "")]).unwrap();
    }
    flood(&bucket_of(&rig.data, &other, "in"));
    let rest = DELIVERIES_MAX - TENANT_DELIVERIES_MAX;
    eventually("as many run as may", || (told("f"), told("o")) == (TENANT_DELIVERIES_MAX, rest));
    open.add_permits(1);
    eventually("one ended, another began", || rig.asked().len() == DELIVERIES_MAX + 1);
    assert_eq!((told("f"), told("o")), (TENANT_DELIVERIES_MAX, rest + 1), "who has less than it may is the next");
    open.add_permits(1000);
    rig.all_told();
    assert_eq!((told("f"), told("o")), (names.len() * LANE_DELIVERIES_MAX, 3 * LANE_DELIVERIES_MAX));
    rig.stop();
}

#[test]
fn a_place_of_a_tenant_that_a_lane_has_no_use_for_is_another_lanes() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let open = gate.clone();
    let count = TENANT_DELIVERIES_MAX + 10;
    let names: Vec<String> = (0..count).map(|n| format!("f{n}")).collect();
    let rig = Rig::new(&[], move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            status(200)
        }
        .boxed()
    });
    // A bucket for each: one event, and then a lane that has none.
    for name in &names {
        want(&rig.data, name, &[trigger(On::KeyChange, name, "")]);
        write(&rig.data, &rig.bucket(name), vec![set("k")]).unwrap();
    }
    eventually("as many run as may of a tenant", || rig.asked().len() == TENANT_DELIVERIES_MAX);
    for more in 1..=10 {
        open.add_permits(1);
        eventually("one ended, another began", || rig.asked().len() == TENANT_DELIVERIES_MAX + more);
    }
    open.add_permits(1000);
    rig.all_told();
    rig.stop();
}

#[test]
fn a_function_is_told_of_only_so_many_at_once_whatever_its_buckets() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let open = gate.clone();
    let buckets = ["a", "b", "c"];
    let triggers = buckets.map(|bucket| trigger(On::KeyChange, bucket, "")).to_vec();
    let rig = Rig::new(&[("many", triggers), ("other", vec![trigger(On::KeyChange, "c", "")])], move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            status(200)
        }
        .boxed()
    });
    for bucket in buckets.map(|bucket| rig.bucket(bucket)) {
        write(&rig.data, &bucket, (0..LANE_DELIVERIES_MAX).map(|n| set(&format!("k{n}"))).collect()).unwrap();
    }
    let told = |name: &str| rig.asked().iter().filter(|asked| asked.function == name).count();
    // Whoever is not at its bound has its turn behind those of one that is.
    eventually("as many run as may", || (told("many"), told("other")) == (FUNCTION_DELIVERIES_MAX, LANE_DELIVERIES_MAX));
    open.add_permits(1000);
    rig.all_told();
    assert_eq!(told("many"), buckets.len() * LANE_DELIVERIES_MAX);
    rig.stop();
}

#[test]
fn what_fails_is_repeated_and_then_given_up_with_its_reason() {
    let buried = Trigger { dead_letter: Some("dead".parse().unwrap()), ..puts() };
    let rig = Rig::new(&[("f", vec![buried]), ("g", vec![Trigger { attempts: 2, ..puts() }])], |asked| {
        now(match (asked.function.as_str(), asked.key.as_str()) {
            ("g", _) => Err(Fault::executed(Code::GuestTrap, "it trapped")),
            (_, "bad") => status(418),
            (_, "late") if asked.attempt < 3 => status(503),
            _ => status(200),
        })
    });
    let (input, dead) = (rig.bucket("in"), rig.bucket("dead"));
    for key in ["bad", "late", "good"] {
        put(&rig.data, &input, key).unwrap();
    }
    rig.all_told();
    let attempts =
        |function: &str, key: &str| rig.asked().iter().filter(|asked| asked.function == function && asked.key == key).count();
    assert_eq!((attempts("f", "bad"), attempts("f", "late"), attempts("f", "good")), (3, 3, 1));
    assert_eq!(["bad", "late", "good"].map(|key| attempts("g", key)), [2, 2, 2]);
    rig.counts(&[(Delivery::Delivered, 2), (Delivery::Buried, 1), (Delivery::Dropped, 3)]);
    let page = rig.data.kv(&dead).unwrap().scan(b"", None, 10).unwrap();
    let [(key, Ok(entry))] = &page.entries[..] else { panic!("{page:?}") };
    assert_eq!(*key, format!("f/{}-1", input.id));
    let letter: Value = serde_json::from_slice(&entry.value).unwrap();
    assert_eq!((&letter["key"], &letter["attempts"], &letter["failure"]["status"]), (&"bad".into(), &3.into(), &418.into()));
    rig.told(&["'bad'", "attempt 1 of 3: status 418; again in 250ms"]);
    rig.told(&["'bad'", "attempt 3 of 3", "given up, see 'f/", "in bucket 'dead'"]);
    rig.told(&["attempt 2 of 2: guest-trap; dropped, since the trigger names no 'dead_letter'"]);
    rig.stop();
}

#[test]
fn a_refusal_of_the_node_is_no_attempt() {
    let calls = Arc::new(Mutex::new(0));
    let seen = calls.clone();
    let rig = Rig::new(&[("f", vec![Trigger { attempts: 1, ..puts() }])], move |_| {
        let mut calls = seen.lock().unwrap();
        *calls += 1;
        now(match *calls {
            1 => Err(Fault::new(Code::Concurrency, "no place").retry_after(Duration::from_millis(1))),
            2 => Err(Fault::new(Code::Overloaded, "no place").retry_after(Duration::from_millis(1))),
            // Its time was over before it began, and there was no room to compile it again.
            3 => Err(Fault::new(Code::WallDeadline, "too late").retry_after(Duration::from_millis(1))),
            4 => Err(Fault::new(Code::StorageFull, "no room").retry_after(Duration::from_millis(1))),
            _ => status(200),
        })
    });
    put(&rig.data, &rig.bucket("in"), "k").unwrap();
    rig.all_told();
    assert_eq!(rig.asked().iter().map(|asked| asked.attempt).collect::<Vec<_>>(), [1; 5]);
    rig.counts(&[(Delivery::Postponed, 4), (Delivery::Delivered, 1)]);
    rig.stop();
}

#[test]
fn an_answer_counts_when_it_is_whole() {
    let rig = Rig::new(&[("f", vec![Trigger { attempts: 2, ..puts() }])], |asked| {
        let body = if asked.attempt == 1 {
            let broken = http_body_util::StreamBody::new(futures_util::stream::iter([
                Ok(http_body::Frame::data("abc".into())),
                Err(crate::invocation::BodyError::Cut(Code::GuestTrap)),
            ]));
            Payload::Stream(Box::pin(broken))
        } else {
            Payload::Whole("abc".into())
        };
        now(Ok(Response::new(body)))
    });
    put(&rig.data, &rig.bucket("in"), "k").unwrap();
    rig.all_told();
    rig.counts(&[(Delivery::Failed, 1), (Delivery::Delivered, 1)]);
    assert!(rig.told.lock().unwrap()[0].contains("guest-trap"));
    rig.stop();
}

#[test]
fn what_was_not_told_before_a_stop_is_told_after_the_start() {
    let triggered = [("f", vec![puts()])];
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let open = gate.clone();
    let rig = Rig::new(&triggered, move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            status(200)
        }
        .boxed()
    });
    let input = rig.bucket("in");
    for n in 0..2 * LANE_DELIVERIES_MAX {
        put(&rig.data, &input, &format!("k{n:02}")).unwrap();
    }
    eventually("some are under way", || rig.asked().len() == LANE_DELIVERIES_MAX);
    rig.drain.stop();
    // Those under way end, and none begins.
    open.add_permits(1000);
    let first = rig.fake.clone();
    let dir = rig.stop();
    let first = first.asked.lock().unwrap().len();
    assert_eq!(first, LANE_DELIVERIES_MAX);
    let rig = Rig::start(dir, &triggered, |_| now(status(200)));
    rig.all_told();
    assert_eq!(rig.keys().len(), LANE_DELIVERIES_MAX);
    assert_eq!(rig.keys().iter().min().unwrap(), &format!("k{LANE_DELIVERIES_MAX:02}"));
    rig.stop();
}

#[test]
fn a_function_that_is_gone_or_changed_is_told_what_it_wants_now() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let open = gate.clone();
    let rig = Rig::new(&[("f", vec![puts()])], move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            status(500)
        }
        .boxed()
    });
    let input = rig.bucket("in");
    put(&rig.data, &input, "a/1").unwrap();
    put(&rig.data, &input, "b/1").unwrap();
    eventually("both are under way", || rig.asked().len() == 2);
    want(&rig.data, "f", &[Trigger { attempts: 2, ..trigger(On::ObjectPut, "in", "b/") }]);
    open.add_permits(1000);
    rig.all_told();
    assert_eq!(rig.keys().iter().filter(|key| *key == "a/1").count(), 1);
    assert_eq!(rig.keys().iter().filter(|key| *key == "b/1").count(), 2);
    put(&rig.data, &input, "b/2").unwrap();
    eventually("it is under way", || rig.keys().contains(&"b/2".to_owned()));
    assert!(want(&rig.data, "f", &[]) <= 1);
    rig.all_told();
    put(&rig.data, &input, "b/3").unwrap();
    assert_eq!(rig.data.outbox().waiting().unwrap(), 0);
    rig.stop();
}

#[test]
fn a_full_dead_letter_bucket_loses_nothing_and_a_missing_one_is_told() {
    let to = |bucket: &str| Trigger { attempts: 1, dead_letter: Some(bucket.parse().unwrap()), ..puts() };
    let rig = Rig::new(&[("f", vec![to("missing")])], |_| now(status(500)));
    let input = rig.bucket("in");
    put(&rig.data, &input, "k").unwrap();
    rig.all_told();
    rig.counts(&[(Delivery::Dropped, 1)]);
    rig.told(&["'k'", "attempt 1 of 1", "dropped, since bucket 'missing', which was to keep it, is gone"]);
    let spec = crate::bucket::BucketSpec { bytes_max: 1, ..crate::bucket::BucketSpec::new(crate::bucket::Durability::Durable) };
    rig.data.put_bucket(&input.tenant, &"small".parse().unwrap(), spec).wait().unwrap();
    want(&rig.data, "f", &[to("small")]);
    put(&rig.data, &input, "l").unwrap();
    eventually("it failed", || rig.count(Delivery::Failed) == 2);
    rig.told(&["'l'", "attempt 1 of 1", "given up; it waits until bucket 'small' takes it as 'f/", "the bucket is full"]);
    rig.drain.stop();
    assert_eq!(rig.thread.join().unwrap(), 0);
    assert_eq!(waiting(&rig.data, "f", &input), ["l"]);
}

#[test]
fn pauses_double_up_to_a_bound() {
    assert_eq!([1, 2, 3].map(pause), [PAUSE, PAUSE * 2, PAUSE * 4]);
    assert_eq!([11, 12, 40, 100].map(pause), [PAUSE * 1024, PAUSE_MAX, PAUSE_MAX, PAUSE_MAX]);
}
