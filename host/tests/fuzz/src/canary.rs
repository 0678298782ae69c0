//! The canary: whatever one instance leaves in its memory, its tables and its globals, no later one sees.
//!
//! Each guest looks at all of its memory, tables and globals before it does anything else, and answers if anything is not as its module
//! says. Then it fills everything with a mark of its own and ends in one of four ways. So each instance checks every slot that it is
//! given for what any earlier one left there. Modules of two kinds of images and three sizes share slots; the threads of a node take them
//! in turn.

use anyhow::{bail, ensure};
use hob::fault::Code;
use hob::invocation::{BodyError, Invocation, Invoke, Payload, Start, Target};
use hob::registry::FunctionRecord;
use http_body_util::BodyExt as _;

use crate::dice::Dice;
use crate::local::{Ended, Local, on_all_threads, runtime};
use crate::report::Report;

/// How an instance ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Return,
    Trap,
    /// It computes until its limit `cpu`.
    Deadline,
    /// It waits for its request's body, and its client leaves.
    Disconnect,
}

/// What a guest has, in pages of 64 KiB: less than what stays resident of a slot (128 KiB), more, and as much as a large guest.
const PAGES: [u32; 3] = [1, 16, 256];
/// Of a thousand invocations, so many have each of those sizes: each size takes about as long as another.
const WEIGHTS: [u32; 3] = [947, 50, 3];
const ENDS: [End; 4] = [End::Return, End::Trap, End::Deadline, End::Disconnect];
/// Elements of the table at its start, and after it was grown.
const TABLE: (u32, u32) = (500, 900);
/// What the image of a module holds, and what an instance leaves.
const IMAGE: u64 = 0x4956_4552_5345_4553;
const MARK: u64 = 0xA5C3_A5C3_A5C3_A5C3;

/// One of the modules.
#[derive(Debug, Clone, Copy)]
struct Shape {
    pages: u32,
    /// Whether the lower half of its memory is an image.
    has_image: bool,
    /// Whether it grows by as many pages as it has, at most 16.
    grows: bool,
    end: End,
}

impl Shape {
    fn all() -> impl Iterator<Item = Self> {
        let ends = |pages, has_image, grows| ENDS.map(|end| Self { pages, has_image, grows, end });
        let flags = [(false, false), (false, true), (true, false), (true, true)];
        PAGES.into_iter().flat_map(move |pages| flags.into_iter().flat_map(move |(image, grows)| ends(pages, image, grows)))
    }

    fn name(self) -> String {
        let word = |is: bool, word: &'static str| if is { word } else { "" };
        let end = format!("{:?}", self.end).to_lowercase();
        format!("p{}{}{}-{end}", self.pages, word(self.has_image, "-image"), word(self.grows, "-grown"))
    }

    /// The first word answers how many words are not what they should be.
    fn wat(self) -> String {
        let bytes = u64::from(self.pages) << 16;
        let (more, image) = (if self.grows { self.pages.min(16) } else { 0 }, if self.has_image { bytes / 2 } else { 0 });
        let whole = bytes + (u64::from(more) << 16);
        let segment = |at: u64| format!("(data (i32.const {at}) \"{}\")", escaped(&IMAGE.to_le_bytes().repeat(512)));
        // An image with holes: a page of it, a page of zeros. Megabytes of it as text would take long to read.
        let segments: String = (0..image).step_by(8192).take(64).map(segment).collect();
        let end = match self.end {
            End::Return => String::new(),
            End::Trap => "unreachable".into(),
            End::Deadline => "(loop $forever (br $forever))".into(),
            End::Disconnect => "(drop (call $body_read (i32.const 0) (i32.const 8)))".into(),
        };
        format!(
            r#"(module
  (import "hob1" "respond" (func $respond (param i32 i32)))
  (import "hob1" "body_read" (func $body_read (param i32 i32) (result i32)))
  (memory (export "memory") {pages})
  (table $table {table} {grown} funcref)
  (global $global (mut i64) (i64.const 0))
  (elem declare func $nothing)
  (func $nothing)
  {segments}
{helpers}  (func (export "hob_handle") (local $sum i32)
    (local.set $sum (call $foreign (i32.const 0) (i32.const {bytes})))
    (if (i32.ne (memory.grow (i32.const {more})) (i32.const {pages})) (then (local.set $sum (i32.add (local.get $sum) (i32.const 1)))))
    (local.set $sum (i32.add (local.get $sum) (call $foreign (i32.const {bytes}) (i32.const {whole}))))
    (local.set $sum (i32.add (local.get $sum) (call $elements)))
    (drop (table.grow $table (ref.null func) (i32.const {table_more})))
    (local.set $sum (i32.add (local.get $sum) (call $elements)))
    (local.set $sum (i32.add (local.get $sum) (i64.ne (global.get $global) (i64.const 0))))
    (global.set $global (i64.const {mark}))
    (table.fill $table (i32.const 0) (ref.func $nothing) (table.size $table))
    (call $fill)
    ;; What is wrong is told however it was to end.
    (if (local.get $sum) (then (call $answer (local.get $sum)) (return)))
    {end}
    (call $fill)
    (call $answer (i32.const 0))))"#,
            pages = self.pages,
            table = TABLE.0,
            grown = TABLE.1,
            table_more = TABLE.1 - TABLE.0,
            mark = MARK.cast_signed(),
            helpers = helpers(image, whole),
        )
    }

    fn manifest(self) -> &'static str {
        match (self.end, self.pages) {
            (End::Deadline, 256) => "[limits]\ncpu = '60ms'\n[snapshot]\nmode = 'off'",
            (End::Deadline, _) => "[limits]\ncpu = '3ms'\n[snapshot]\nmode = 'off'",
            _ => "[limits]\ncpu = '10s'\n[snapshot]\nmode = 'off'",
        }
    }
}

/// Functions that look, fill and answer. `image`: bytes of memory that have an image; `whole`: of all of it, grown.
fn helpers(image: u64, whole: u64) -> String {
    format!(
        r#"  ;; Words from `at` to `end` that are not what the image has there.
  (func $foreign (param $at i32) (param $end i32) (result i32) (local $sum i32) (local $is i64)
    (block $done (loop $more
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (local.set $is (i64.load (local.get $at)))
      (if (i64.ne (local.get $is) (i64.const 0)) (then
        (if (i32.or (i32.or (i64.ne (local.get $is) (i64.const {IMAGE})) (i32.ge_u (local.get $at) (i32.const {image})))
                    (i32.and (local.get $at) (i32.const 4096)))
          (then (local.set $sum (i32.add (local.get $sum) (i32.const 1)))))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br $more)))
    (local.get $sum))
  ;; Elements of the table that are not empty.
  (func $elements (result i32) (local $at i32) (local $sum i32)
    (block $done (loop $more
      (br_if $done (i32.ge_u (local.get $at) (table.size $table)))
      (local.set $sum (i32.add (local.get $sum) (i32.eqz (ref.is_null (table.get $table (local.get $at))))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $more)))
    (local.get $sum))
  (func $fill (local $at i32)
    (loop $more
      (i64.store (local.get $at) (i64.const {mark}))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $more (i32.lt_u (local.get $at) (i32.const {whole})))))
  (func $answer (param $sum i32)
    (i64.store (i32.const 0) (i64.const {head}))
    (i32.store (i32.const 8) (i32.const 4))
    (i32.store (i32.const 12) (local.get $sum))
    (call $respond (i32.const 0) (i32.const 16)))
"#,
        mark = MARK.cast_signed(),
        head = 200_u64 << 32,
        IMAGE = IMAGE.cast_signed(),
    )
}

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

pub(crate) fn run(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    // Few slots, so that they change hands often.
    let local = Local::start(&["engine.instances_max=16", "engine.large_instances_max=4", "logs.function_bytes=16KiB"])?;
    let mut functions = Vec::new();
    for shape in Shape::all() {
        let deployed = local.deploy(&shape.name(), &wat::parse_str(shape.wat())?, shape.manifest())?;
        functions.push((shape, deployed.map_err(|fault| anyhow::anyhow!("{}: {fault}", shape.name()))?));
    }
    on_all_threads(report, runs, |runs, report| {
        let runtime = runtime()?;
        for number in runs {
            let mut dice = Dice::new(seed, number);
            report.count(runtime.block_on(hand_over(&local, &functions, &mut dice))?);
        }
        Ok(())
    })?;
    local.stop();
    Ok(())
}

/// One instance in a slot that others had before.
async fn hand_over(local: &Local, functions: &[(Shape, FunctionRecord)], dice: &mut Dice) -> anyhow::Result<&'static str> {
    let mut at = u32::try_from(dice.below(1000))?;
    let size = WEIGHTS.iter().position(|weight| {
        let is_it = at < *weight;
        at = at.wrapping_sub(*weight);
        is_it
    });
    let pages = PAGES[size.unwrap_or_default()];
    // Those that cost milliseconds are few.
    let end = match dice.below(400) {
        0 => End::Deadline,
        1..=60 => End::Trap,
        61..=120 => End::Disconnect,
        _ => End::Return,
    };
    let fitting: Vec<_> = functions.iter().filter(|(shape, _)| (shape.pages, shape.end) == (pages, end)).collect();
    let (shape, function) = dice.pick(&fitting);
    let start = dice.one_in(2).then_some(Start::Resident);
    let body = match end {
        End::Disconnect => Payload::Stream(Box::pin(Never)),
        _ => Payload::empty(),
    };
    let request = http::Request::get("/").header("host", "localhost").body(body)?;
    let ended = if end == End::Disconnect {
        let target = Target::Function(function.name.clone());
        let received = std::time::Instant::now();
        let asked = Invocation { tenant: function.tenant.clone(), target, request, received, start };
        let mut answer = local.node.dispatcher().invoke(asked);
        // It has looked and filled, and waits for its body, when it is first given up; or it says what it found.
        match std::future::poll_fn(|cx| std::task::Poll::Ready(answer.as_mut().poll(cx))).await {
            std::task::Poll::Pending => None,
            std::task::Poll::Ready(invoked) => match invoked.result {
                Ok(outcome) => {
                    let body = outcome.response.into_body().collect().await.map_err(|error| anyhow::anyhow!("{error}"))?;
                    Some(Ended::Answered(200, body.to_bytes().into()))
                }
                Err(fault) => Some(Ended::Failed(fault.code, fault.detail.into_owned())),
            },
        }
    } else {
        Some(local.invoke(function, request, start).await)
    };
    // What the thread has to do then: the instance is gone.
    tokio::task::yield_now().await;
    let found = match (end, ended) {
        (End::Disconnect, None) => "disconnect",
        (End::Trap, Some(Ended::Failed(Code::GuestTrap, _))) => "trap",
        (End::Deadline, Some(Ended::Failed(Code::CpuDeadline, _))) => "deadline",
        (_, Some(Ended::Failed(Code::Overloaded, _))) => "no slot",
        (_, Some(Ended::Answered(200, body))) => {
            let sum = body.first_chunk::<4>().map(|sum| u32::from_le_bytes(*sum));
            ensure!(sum == Some(0), "{} found {sum:?} words that are not its own", shape.name());
            "return"
        }
        (_, other) => bail!("{} ended with {other:?}", shape.name()),
    };
    Ok(found)
}

/// A body of which nothing ever comes.
struct Never;

impl http_body::Body for Never {
    type Data = bytes::Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, BodyError>>> {
        std::task::Poll::Pending
    }
}
