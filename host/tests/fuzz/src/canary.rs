//! The canary: whatever one instance leaves in its memory, its tables and its globals, no later one sees.
//!
//! Each guest looks at all of its memory, tables and globals before it does anything else, and answers if anything is not as its module
//! says: each word of its image in its place, and nothing anywhere else. Then it fills everything with a mark, says so by asking for its
//! request's body, and ends in one of four ways. So each instance checks every slot that it is given for what any earlier one left
//! there, and for what is missing. Modules of three sizes, with images and without, share slots; the threads of a node take them in
//! turn. Invariant: no end counts of a guest that had not looked at everything and filled it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use anyhow::{bail, ensure};
use hob::fault::Code;
use hob::invocation::{BodyError, Invocation, Invoke, Payload, Start, Target};
use hob::registry::FunctionRecord;
use http_body::{Body, Frame};
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
/// How often a guest may try to fill its memory before its deadline: a busy machine may use up a few milliseconds first.
const ATTEMPTS_MAX: usize = 20;
const ENDS: [End; 4] = [End::Return, End::Trap, End::Deadline, End::Disconnect];
/// Elements of the table at its start, and after it was grown.
const TABLE: (u32, u32) = (500, 900);
/// Bytes of a page of an image, and of the page of zeros behind it.
const PAGE: usize = 4096;
/// Most bytes of an image with its zeros: megabytes of it as text would take long to read.
const IMAGE_BYTES_MAX: u64 = (64 * 2 * PAGE) as u64;
/// What the upper half of each word of an image begins with, and what an instance leaves.
const IMAGE: u32 = 0x4956_0000;
const MARK: u64 = 0xA5C3_A5C3_A5C3_A5C3;

/// One of the modules.
#[derive(Debug, Clone, Copy)]
struct Shape {
    pages: u32,
    /// Whether the lower half of its memory, up to [`IMAGE_BYTES_MAX`], is an image: a page of it and a page of zeros in turn.
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

    /// Bytes of memory at its start.
    fn bytes(self) -> u64 {
        u64::from(self.pages) << 16
    }

    /// Pages by which it grows.
    fn more(self) -> u32 {
        if self.grows { self.pages.min(16) } else { 0 }
    }

    /// Bytes of memory that have an image.
    fn image(self) -> u64 {
        if self.has_image { (self.bytes() / 2).min(IMAGE_BYTES_MAX) } else { 0 }
    }

    /// What each word is of the page of its image that begins at `at`. No other page has it, and no other module.
    fn word(self, at: u64) -> u64 {
        let module = IMAGE | self.pages << 4 | u32::from(self.grows) << 3 | self.end as u32;
        u64::from(module) << 32 | at
    }

    /// Answers how many words are not what they should be.
    fn wat(self) -> String {
        let (bytes, more) = (self.bytes(), self.more());
        let segment = |at| format!("(data (i32.const {at}) \"{}\")", escaped(&self.word(at).to_le_bytes().repeat(PAGE / 8)));
        let segments: String = (0..self.image()).step_by(2 * PAGE).map(segment).collect();
        let end = match self.end {
            End::Return => "(call $answer (i32.const 0))",
            // One whose client leaves never comes so far.
            End::Trap | End::Disconnect => "unreachable",
            End::Deadline => "(loop $forever (br $forever))",
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
    (local.set $sum (call $foreign))
    (if (i32.ne (memory.grow (i32.const {more})) (i32.const {pages})) (then (local.set $sum (i32.add (local.get $sum) (i32.const 1)))))
    (local.set $sum (i32.add (local.get $sum) (call $unlike (i32.const {bytes}) (i32.const {whole}) (i64.const 0))))
    (local.set $sum (i32.add (local.get $sum) (call $elements)))
    (drop (table.grow $table (ref.null func) (i32.const {table_more})))
    (local.set $sum (i32.add (local.get $sum) (call $elements)))
    (local.set $sum (i32.add (local.get $sum) (i64.ne (global.get $global) (i64.const 0))))
    (global.set $global (i64.const {mark}))
    (table.fill $table (i32.const 0) (ref.func $nothing) (table.size $table))
    (call $fill)
    ;; What is wrong is told however it was to end.
    (if (local.get $sum) (then (call $answer (local.get $sum)) (return)))
    ;; It has looked at everything and filled it.
    (drop (call $body_read (i32.const 0) (i32.const 8)))
    {end}))"#,
            pages = self.pages,
            table = TABLE.0,
            grown = TABLE.1,
            table_more = TABLE.1 - TABLE.0,
            mark = MARK.cast_signed(),
            whole = bytes + (u64::from(more) << 16),
            helpers = self.helpers(),
        )
    }

    /// Functions that look, fill and answer.
    fn helpers(self) -> String {
        format!(
            r#"  ;; Words from `at` to `end` that are not `word`.
  (func $unlike (param $at i32) (param $end i32) (param $word i64) (result i32) (local $sum i32)
    (block $done (loop $more
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (local.set $sum (i32.add (local.get $sum) (i64.ne (i64.load (local.get $at)) (local.get $word))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br $more)))
    (local.get $sum))
  ;; Words that are not what the module has there: pages of its image and of zeros in turn, and zeros behind.
  (func $foreign (result i32) (local $at i32) (local $zeros i32) (local $next i32) (local $sum i32)
    (block $done (loop $more
      (br_if $done (i32.ge_u (local.get $at) (i32.const {image})))
      (local.set $zeros (i32.add (local.get $at) (i32.const {PAGE})))
      (local.set $next (i32.add (local.get $zeros) (i32.const {PAGE})))
      (local.set $sum (i32.add (local.get $sum) (call $unlike (local.get $at) (local.get $zeros)
        (i64.or (i64.const {word}) (i64.extend_i32_u (local.get $at))))))
      (local.set $sum (i32.add (local.get $sum) (call $unlike (local.get $zeros) (local.get $next) (i64.const 0))))
      (local.set $at (local.get $next))
      (br $more)))
    (i32.add (local.get $sum) (call $unlike (local.get $at) (i32.const {bytes}) (i64.const 0))))
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
            image = self.image(),
            word = self.word(0).cast_signed(),
            bytes = self.bytes(),
            whole = self.bytes() + (u64::from(self.more()) << 16),
            mark = MARK.cast_signed(),
            head = 200_u64 << 32,
        )
    }

    /// A limit `cpu` is far more than it takes to look at everything and fill it: on a busy machine 15 ms were not always enough for
    /// 2 MiB.
    fn manifest(self) -> &'static str {
        match (self.end, self.pages) {
            (End::Deadline, 1) => "[limits]\ncpu = '10ms'\n[snapshot]\nmode = 'off'",
            (End::Deadline, 16) => "[limits]\ncpu = '100ms'\n[snapshot]\nmode = 'off'",
            (End::Deadline, _) => "[limits]\ncpu = '600ms'\n[snapshot]\nmode = 'off'",
            _ => "[limits]\ncpu = '10s'\n[snapshot]\nmode = 'off'",
        }
    }
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
    let (shape, function) = *dice.pick(&fitting);
    let start = dice.one_in(2).then_some(Start::Resident);
    for _ in 0..ATTEMPTS_MAX {
        let (found, has_filled) = instance(local, *shape, function, start).await?;
        if has_filled || found == "no slot" {
            return Ok(found);
        }
        ensure!(found == "deadline", "{} came to its end '{found}' before it had filled its memory", shape.name());
    }
    bail!(
        "{} met its deadline {ATTEMPTS_MAX} times before it had filled its memory: its manifest must give it more",
        shape.name()
    )
}

/// Runs an instance to its end: how it ended, and whether it had filled its memory.
async fn instance(
    local: &Local,
    shape: Shape,
    function: &FunctionRecord,
    start: Option<Start>,
) -> anyhow::Result<(&'static str, bool)> {
    let end = shape.end;
    let filled = Arc::new(AtomicBool::new(false));
    let has_filled = || filled.load(Ordering::Relaxed);
    let body = Asked { filled: filled.clone(), ends: end != End::Disconnect };
    let request = http::Request::get("/").header("host", "localhost").body(Payload::Stream(Box::pin(body)))?;
    let ended = if end == End::Disconnect {
        let target = Target::Function(function.name.clone());
        let received = std::time::Instant::now();
        let asked = Invocation { tenant: function.tenant.clone(), target, request, received, start };
        let mut answer = local.node.dispatcher().invoke(asked);
        // It is given up when it waits for its body, however many slices that takes; or it says what it found.
        let invoked = std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(invoked) => Poll::Ready(Some(invoked)),
            Poll::Pending if has_filled() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        match invoked.await {
            None => None,
            Some(invoked) => match invoked.result {
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
        (end, Some(Ended::Answered(200, body))) => {
            let sum = body.first_chunk::<4>().map(|sum| u32::from_le_bytes(*sum));
            ensure!(sum == Some(0), "{} found {sum:?} words that are not what its module says", shape.name());
            ensure!(end == End::Return, "{} answered that nothing is wrong, and was to end otherwise", shape.name());
            "return"
        }
        (_, other) => bail!("{} ended with {other:?}", shape.name()),
    };
    Ok((found, has_filled()))
}

/// An empty body that tells when it is first asked for: then its guest has filled its memory.
struct Asked {
    filled: Arc<AtomicBool>,
    /// Whether it says that it is empty. If not, nothing ever comes.
    ends: bool,
}

impl Body for Asked {
    type Data = bytes::Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<bytes::Bytes>, BodyError>>> {
        self.filled.store(true, Ordering::Relaxed);
        if self.ends { Poll::Ready(None) } else { Poll::Pending }
    }
}
