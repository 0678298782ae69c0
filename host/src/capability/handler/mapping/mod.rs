//! Objects in the memory of handlers, without a copy: the calls `object_map`, `object_copy` and `object_unmap` of `hob1`.
//!
//! ```text
//! object_map ──> small: 1, and object_copy fetches it                                                 one copy
//!            └─> large: 0, and a place in the guest's memory: pages that the host has just grown,     none
//!                       over which the object's file is mapped privately ──> object_unmap, or the end of the instance
//! ```
//!
//! Owns [`Mappings`], what one instance has mapped, and its bounds. `pages.rs` has all that is `unsafe`, `watch.rs` the thread that ends
//! guests which write too much in one instruction. Knows nothing about grants (`capability/data.rs`), or how objects are kept.
//! Invariants: an object is pinned as long as it is mapped; what a guest writes to a mapping is its own, and counts against its memory;
//! nothing leaves an instance after a page of a mapping could not be read. Reasons and figures: docs/decisions/0015-mapping.md.

mod pages;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use wasmtime::{Caller, Linker, Result};

use self::pages::{Cover, Ground, PAGE, WASM_PAGE};
use self::watch::{Beat, Watch};
use super::data::Errno;
use super::objects::{open, refuse_busy, take_descriptor};
use super::{MODULE, memory, span};
use crate::capability::descriptors::Descriptor;
use crate::capability::{Host, Refusal};
use crate::data::DataError;
use crate::data::objects::{KEY_BYTES_MAX, Opened, Verified};
use crate::fault::Code;
use crate::grants::Access;
use crate::meter::MemoryBudget;
use crate::telemetry::logs::Level;

pub use self::watch::InSlice;

/// Objects of up to so many bytes are copied. Source: docs/decisions/0015-mapping.md.
const COPY_BYTES_MAX: usize = 64 << 10;
/// From this size on addresses lie as the file does within a huge page: the kernel then maps as much of the page cache with each fault as
/// lies together, 2 MiB at best and not 64 KiB. Source: docs/decisions/0015-mapping.md.
const HUGE: usize = 2 << 20;
/// After what its pages took to count, a guest is left alone for so many times as long.
const REST: u32 = 4;

/// Answer of `object_map`: the object waits for `object_copy`.
const COPY: i32 = 1;

/// What the mappings of the node may take of what the system allows a process, `vm.max_map_count`.
#[must_use]
pub fn system_mappings(max_map_count: u64) -> u64 {
    pages::share(max_map_count) * pages::MAPPINGS_EACH
}

/// What one instance has mapped. Dropping it puts memory back; it lives in the store's data, which wasmtime drops before it resets the
/// memory.
#[derive(Debug, Default)]
pub struct Mappings {
    bytes_max: u64,
    count_max: u64,
    state: Option<Box<State>>,
    pending: Option<Pending>,
}

/// From the first mapping on.
#[derive(Debug)]
struct State {
    ground: Arc<Ground>,
    watch: Watch,
    beat: Arc<Beat>,
    /// By the address that the guest knows.
    live: BTreeMap<u32, Live>,
    /// Ground that nothing is mapped on, in order and apart.
    free: Vec<Range<usize>>,
    bytes: u64,
    /// Page faults of its thread when its pages were last counted.
    faults: u64,
    rest_until: Option<Instant>,
    /// Count of broken mappings of the node when it began.
    broken: u64,
    was_broken: bool,
}

#[derive(Debug)]
struct Live {
    /// Of the ground; whole pages of WebAssembly.
    range: Range<usize>,
    bytes: u64,
    /// Before what pins the object.
    cover: Cover,
    _held: Held,
}

/// What pins an object, and the descriptor that this takes.
#[derive(Debug)]
struct Held {
    opened: Opened,
    _descriptor: Option<Descriptor>,
}

/// What was asked for and is to be copied.
#[derive(Debug)]
struct Pending {
    held: Held,
    offset: u64,
    len: u32,
}

impl Drop for State {
    fn drop(&mut self) {
        if self.has_broken() {
            tracing::error!("a page of an object that a function had mapped could not be read from the disk");
        }
        // Before its mappings go one by one.
        self.ground.close();
    }
}

impl State {
    fn has_broken(&self) -> bool {
        self.was_broken || (pages::broken() != self.broken && self.live.values().any(|live| live.cover.is_broken()))
    }

    /// The first free range that has room.
    fn reuse(&mut self, wanted: &Wanted) -> Option<Range<usize>> {
        let at = self.free.iter().position(|free| wanted.range(free.start).end <= free.end)?;
        let free = self.free.remove(at);
        let range = wanted.range(free.start);
        for rest in [free.start..range.start, range.end..free.end] {
            if rest.start < rest.end {
                self.release(rest);
            }
        }
        Some(range)
    }

    fn release(&mut self, range: Range<usize>) {
        let at = self.free.partition_point(|free| free.start < range.start);
        self.free.insert(at, range);
        if at + 1 < self.free.len() && self.free[at].end == self.free[at + 1].start {
            self.free[at].end = self.free.remove(at + 1).end;
        }
        if at > 0 && self.free[at - 1].end == self.free[at].start {
            self.free[at - 1].end = self.free.remove(at).end;
        }
    }

    /// Counts the pages that are the guest's own, and charges them. `false`: they are more than it may have.
    fn count(&mut self, memory: &mut MemoryBudget) -> Result<bool> {
        let began = Instant::now();
        let own = self.ground.own_bytes().map_err(|error| uncountable(&error))?;
        (self.faults, self.beat) = (pages::faults(), Beat::here());
        self.rest_until = Some(Instant::now() + began.elapsed() * REST);
        self.watch.allow(memory.allowance());
        Ok(memory.write(own))
    }
}

/// What is to be mapped.
struct Wanted {
    /// Address of the memory.
    base: usize,
    /// In the file; a whole page.
    offset: u64,
    /// Whole pages.
    bytes: usize,
}

impl Wanted {
    /// What is covered in ground that begins at `start`: all of it but the beginning, which makes up for how addresses and the file lie.
    fn covered(&self, start: usize) -> Range<usize> {
        let offset = usize::try_from(self.offset % HUGE as u64).unwrap_or_default();
        let skew = if self.bytes < HUGE { 0 } else { offset.wrapping_sub(self.base + start) % HUGE };
        start + skew..start + skew + self.bytes
    }

    /// The whole pages of WebAssembly that this takes. From the beginning of these the same is covered.
    fn range(&self, start: usize) -> Range<usize> {
        let covered = self.covered(start);
        covered.start - covered.start % WASM_PAGE..covered.end.next_multiple_of(WASM_PAGE)
    }
}

fn uncountable(error: &io::Error) -> Refusal {
    tracing::error!(%error, "what a guest wrote to an object that it mapped cannot be counted");
    Refusal {
        code: Code::Overloaded,
        detail: "the node cannot tell what the function wrote to the objects that it mapped".into(),
    }
}

fn over(memory: &MemoryBudget) -> Refusal {
    let detail =
        format!("the function wrote more to what it had mapped than its memory limit of {} bytes leaves", memory.limit());
    Refusal { code: Code::GuestMemory, detail }
}

impl Mappings {
    /// None yet, and at most so many at once, of so many bytes in all.
    #[must_use]
    pub fn new(bytes_max: u64, count_max: u64) -> Self {
        Self { bytes_max, count_max, state: None, pending: None }
    }

    /// Whether anything was ever mapped.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.state.is_some()
    }

    /// Whether all that the guest read of its mappings was true, and it may go on. To be asked before anything leaves the instance, after
    /// its memory was read.
    ///
    /// # Errors
    /// What ends it.
    pub fn intact(&self, memory: &MemoryBudget) -> Result<(), Refusal> {
        let Some(state) = &self.state else { return Ok(()) };
        if state.has_broken() {
            let detail = "an object that the function had mapped could not be read from the disk".into();
            return Err(Refusal { code: Code::Damaged, detail });
        }
        if state.watch.is_over() {
            return Err(over(memory));
        }
        Ok(())
    }

    /// As [`Mappings::intact`], and whether it wrote no more than it may. To be asked on each tick.
    ///
    /// # Errors
    /// What ends it.
    ///
    /// # Cost
    /// 0.3 us if the thread had few page faults since the last time, else that of counting pages, at most a fifth of the guest's time.
    pub fn check(&mut self, memory: &mut MemoryBudget) -> Result<()> {
        self.intact(memory)?;
        let Some(state) = &mut self.state else { return Ok(()) };
        let allowance = memory.allowance();
        state.watch.allow(allowance);
        if state.beat.is_here() {
            let faults = usize::try_from(pages::faults().saturating_sub(state.faults)).unwrap_or(usize::MAX);
            let at_most = faults.saturating_mul(bytes_of_a_fault()).saturating_add(memory.written());
            if at_most <= allowance {
                return Ok(());
            }
        }
        if state.rest_until.is_some_and(|until| Instant::now() < until) || state.count(memory)? {
            return Ok(());
        }
        Err(over(memory).into())
    }
}

/// Opens what counting pages needs, which only root could open once the process is not dumpable any more.
pub fn prepare_process() {
    // Where it cannot be opened nothing is mapped, and who asks is told.
    let _can = pages::can_count();
}

/// Most bytes that become a guest's own by one page fault: a page, or a huge one where the system gives those unasked.
fn bytes_of_a_fault() -> usize {
    static BYTES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *BYTES.get_or_init(|| {
        let settings = std::path::Path::new("/sys/kernel/mm/transparent_hugepage");
        let sizes = std::fs::read_dir(settings).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let mut files = sizes.chain([settings.to_owned()]).map(|folder| folder.join("enabled"));
        let is_unasked = files.any(|file| std::fs::read_to_string(file).is_ok_and(|text| text.contains("[always]")));
        if is_unasked { 2 << 20 } else { PAGE }
    })
}

/// Links the calls of this file.
pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap_async(
        MODULE,
        "object_map",
        |caller: Caller<'_, Host>, (bucket, key, key_len, offset, len, out): (u32, u32, u32, i64, i64, u32)| {
            Box::new(object_map(caller, bucket, (key, key_len), (offset, len), out))
        },
    )?;
    linker.func_wrap_async(MODULE, "object_copy", |caller: Caller<'_, Host>, (buf, len): (u32, u32)| {
        Box::new(object_copy(caller, buf, len))
    })?;
    linker.func_wrap(MODULE, "object_unmap", object_unmap)?;
    Ok(())
}

async fn object_map(
    mut caller: Caller<'_, Host>,
    bucket: u32,
    (key, key_len): (u32, u32),
    (offset, len): (i64, i64),
    out: u32,
) -> Result<i32> {
    span(&mut caller, out, 8)?;
    let (key, host) = span(&mut caller, key, key_len)?;
    // What is longer is refused with its length, and not copied before.
    let key = key.get(..KEY_BYTES_MAX).unwrap_or(key).to_vec();
    let bucket = match host.data.bucket(bucket, Access::Read)? {
        Ok(_) if key_len as usize > KEY_BYTES_MAX => {
            let (found, max) = (u64::from(key_len), KEY_BYTES_MAX as u64);
            return Ok(host.refuse(&DataError::TooLarge { what: "a key", found, max }.into()));
        }
        Ok(bucket) => Arc::clone(bucket),
        Err(error) => return Ok(host.refuse(&error)),
    };
    let Some(descriptor) = take_descriptor(&bucket) else {
        return Ok(refuse_busy(caller.data_mut()));
    };
    let opened = match open(bucket, key).await? {
        Ok(Some(opened)) => opened,
        Ok(None) => return Ok(Errno::None as i32),
        Err(error) => return Ok(caller.data_mut().refuse(&error.into())),
    };
    if let Verified::Now(took) = opened.verified() {
        let (len, digest) = (opened.head().len, opened.head().etag);
        caller.data().log.host(Level::Info, format!("the {len} bytes of object {digest} were checked, which took {took:?}"));
    }
    let (offset, len) = match part(&opened, offset, len) {
        Ok(part) => part,
        Err(error) => return Ok(caller.data_mut().refuse(&error.into())),
    };
    let is_copied = len as usize <= COPY_BYTES_MAX || opened.fd().is_none();
    let held = Held { opened, _descriptor: descriptor };
    if is_copied {
        caller.data_mut().mappings.pending = Some(Pending { held, offset, len });
        return answer(&mut caller, out, (0, len), COPY);
    }
    match map(&mut caller, held, offset, len)? {
        Ok(at) => answer(&mut caller, out, (at, len), 0),
        Err(text) => Ok(caller.data_mut().refuse_limit(text)),
    }
}

/// The part of an object that is asked for: from `offset` on `len` bytes, or to the end if that is negative. What lies past its end is left
/// out.
fn part(opened: &Opened, offset: i64, len: i64) -> Result<(u64, u32), DataError> {
    let whole = opened.head().len;
    let Ok(start) = u64::try_from(offset) else {
        return Err(DataError::Invalid { what: format!("an offset of {offset}"), expected: "one from 0 up".into() });
    };
    let left = whole.saturating_sub(start);
    let len = u64::try_from(len).map_or(left, |len| len.min(left));
    match u32::try_from(len) {
        Ok(len) => Ok((start.min(whole), len)),
        Err(_) => Err(DataError::TooLarge { what: "what a function maps at once", found: len, max: u64::from(u32::MAX) }),
    }
}

fn answer(caller: &mut Caller<'_, Host>, out: u32, (at, len): (u32, u32), answer: i32) -> Result<i32> {
    let (out, _) = span(caller, out, 8)?;
    out[..4].copy_from_slice(&at.to_le_bytes());
    out[4..].copy_from_slice(&len.to_le_bytes());
    Ok(answer)
}

/// Maps a part of an object that has a descriptor. Answers its address, or which limit it passes.
fn map(caller: &mut Caller<'_, Host>, held: Held, offset: u64, len: u32) -> Result<Result<u32, String>> {
    let Some(file) = held.opened.fd() else { return Err(wasmtime::format_err!("the object is not to be mapped")) };
    let within = offset % PAGE as u64;
    let bytes = (within + u64::from(len)).next_multiple_of(PAGE as u64);
    let mappings = &caller.data().mappings;
    let (count, mapped) = mappings.state.as_ref().map_or((0, 0), |state| (state.live.len() as u64, state.bytes));
    let (count_max, bytes_max) = (mappings.count_max, mappings.bytes_max);
    if count >= count_max {
        return Ok(Err(format!("an invocation holds at most {count_max} mappings at once: limit 'mappings'")));
    }
    if mapped + bytes > bytes_max {
        let text = format!("{mapped} bytes are mapped, and {bytes} more pass the {bytes_max} of an invocation: limit 'mapped'");
        return Ok(Err(text));
    }
    if !pages::can_count() {
        return Ok(Err("this node cannot read /proc/self/pagemap, without which nothing is mapped: read the object".into()));
    }
    let base = memory(caller)?.data_ptr(&*caller).addr();
    let wanted = Wanted { base, offset: offset - within, bytes: usize::try_from(bytes).unwrap_or(usize::MAX) };
    let range = match ground(caller, &wanted)? {
        Ok(range) => range,
        Err(text) => return Ok(Err(text)),
    };
    let Some(state) = &mut caller.data_mut().mappings.state else { return Err(wasmtime::format_err!("there is ground")) };
    let covered = wanted.covered(range.start);
    // Below 4 GiB, as all of the memory is.
    let at = u32::try_from(covered.start as u64 + within).unwrap_or(u32::MAX);
    let cover = match state.ground.cover(covered, file, wanted.offset) {
        Ok(cover) => cover,
        Err(error) => {
            state.release(range);
            return Ok(Err(match error.kind() {
                io::ErrorKind::QuotaExceeded => error.to_string(),
                _ => format!("the system does not map it: {error}"),
            }));
        }
    };
    state.bytes += bytes;
    state.live.insert(at, Live { range, bytes, cover, _held: held });
    Ok(Ok(at))
}

/// Ground for it: what is free, or what the memory grows by. Such growth is not the guest's, and not charged to it.
fn ground(caller: &mut Caller<'_, Host>, wanted: &Wanted) -> Result<Result<Range<usize>, String>> {
    let memory = memory(caller)?;
    let size = memory.data_size(&*caller);
    let base = memory.data_ptr(&*caller);
    let host = caller.data_mut();
    if host.mappings.state.is_none() {
        let (ground, beat) = (Arc::new(Ground::new(base)), Beat::here());
        let watch = match Watch::begin(ground.clone(), beat.clone(), host.memory.allowance()) {
            Ok(watch) => watch,
            Err(error) => return Ok(Err(format!("the thread that watches what is mapped cannot be started: {error}"))),
        };
        host.mappings.state = Some(Box::new(State {
            ground,
            watch,
            beat,
            live: BTreeMap::new(),
            free: Vec::new(),
            bytes: 0,
            faults: pages::faults(),
            rest_until: None,
            broken: pages::broken(),
            was_broken: false,
        }));
    }
    let count_max = host.mappings.count_max;
    let Some(state) = &mut host.mappings.state else { return Err(wasmtime::format_err!("there is a state")) };
    if let Some(range) = state.reuse(wanted) {
        return Ok(Ok(range));
    }
    let ground = state.ground.clone();
    // What is free at the end of the memory needs only the rest.
    let tail = state.free.last().filter(|last| last.end == size).cloned();
    if tail.is_none() && !ground.ends_at(size) && ground.pieces() as u64 >= count_max {
        return Ok(Err(format!(
            "what was mapped lies in {count_max} pieces between memory of the function's own, and none has room"
        )));
    }
    let missing = wanted.range(tail.map_or(size, |tail| tail.start)).end - size;
    host.memory.exempt(true);
    let grown = ground.grow(memory, &mut *caller, (missing / WASM_PAGE) as u64);
    let host = caller.data_mut();
    host.memory.exempt(false);
    let (Ok(grown), Some(state)) = (grown, &mut host.mappings.state) else {
        let text =
            format!("the memory of {size} bytes cannot grow by {missing}: it has addresses for 4 GiB, and its own maximum");
        return Ok(Err(text));
    };
    state.release(grown);
    state.reuse(wanted).map(Ok).ok_or_else(|| wasmtime::format_err!("what was grown has room"))
}

/// Copies what `object_map` said is to be copied.
async fn object_copy(mut caller: Caller<'_, Host>, buf: u32, len: u32) -> Result<i32> {
    let (buffer, host) = span(&mut caller, buf, len)?;
    let Some(Pending { held, offset, len: expected }) = host.mappings.pending.take() else {
        return Err(Refusal::bad_call("object_copy needs an object_map that answered 1 before it").into());
    };
    if expected != len {
        let text = format!("the object has {expected} bytes to copy, and {len} were asked for");
        return Err(Refusal::bad_call(text).into());
    }
    let read = match held.opened.read_cached(offset, buffer) {
        Ok(Some(count)) if count == buffer.len() => return Ok(0),
        // Not in memory, or not all of it.
        Ok(_) => {
            let jobs = host.environment.data.jobs();
            jobs.run(move || {
                let mut bytes = vec![0; len as usize];
                held.opened.read_at(offset, &mut bytes).map(|_| bytes)
            })
            .await?
        }
        Err(error) => Err(error),
    };
    match read {
        Ok(bytes) => {
            let (buffer, _) = span(&mut caller, buf, len)?;
            buffer.copy_from_slice(&bytes);
            Ok(0)
        }
        Err(error) => Ok(caller.data_mut().refuse(&error.into())),
    }
}

fn object_unmap(mut caller: Caller<'_, Host>, at: u32) -> Result<()> {
    let Host { mappings, memory, .. } = caller.data_mut();
    mappings.intact(memory)?;
    let Some((state, live)) = mappings.state.as_mut().and_then(|state| state.live.remove(&at).map(|live| (state, live))) else {
        return Err(Refusal::bad_call(format!("nothing is mapped at {at}")).into());
    };
    state.was_broken |= live.cover.is_broken();
    state.bytes -= live.bytes;
    drop(live.cover);
    state.release(live.range);
    // What was written there is gone.
    if memory.written() > 0 && !state.count(memory)? {
        return Err(over(memory).into());
    }
    Ok(())
}
