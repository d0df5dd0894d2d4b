//! Submission and completion, as with io_uring, over registered memory.

use std::collections::{HashMap, VecDeque};
use std::fs::File as FdFile;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::abi::{Cqe, MAX_ENTRIES, MAX_LENGTH, OP_FSYNC, OP_NOP, OP_READ, OP_WRITE, Sqe};
use crate::client::{FILES, OpenFile, TRANSIT_UNIT, User};
use crate::error::{Failure, Result};
use crate::handles::Table;
use crate::memory::{Region, eventfd};

/// Reads up to this many bytes of one file and one submission go out together: few requests carry many.
const SMALL: u64 = 64 << 10;
/// Most of them together, as the slowest of them holds the others up.
const TOGETHER: usize = 64;

pub(crate) static RINGS: Table<Ring> = Table::new("ring");

pub(crate) struct Ring {
    entries: usize,
    user: User,
    state: Mutex<State>,
    /// A completion, or the end.
    changed: Condvar,
    signal: FdFile,
}

#[derive(Default)]
struct State {
    /// Operations submitted and not completed.
    in_flight: usize,
    done: VecDeque<Cqe>,
    buffers: Vec<Option<Buffer>>,
    closing: bool,
    /// Threads within [`wait`].
    waiting: usize,
}

struct Buffer {
    region: Region,
    in_flight: usize,
}

/// An operation in flight. However it ends, even by a panic or with the runtime, it completes once, and only
/// then is its memory the caller's again: this is dropped after the last access to it.
struct Pending {
    ring: Arc<Ring>,
    buffer: Option<u32>,
    user_data: u64,
    result: i64,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut state = self.ring.state.lock();
        state.in_flight -= 1;
        let buffer = self
            .buffer
            .and_then(|index| state.buffers.get_mut(index as usize));
        if let Some(Some(buffer)) = buffer {
            buffer.in_flight -= 1;
        }
        state.done.push_back(Cqe {
            user_data: self.user_data,
            result: self.result,
        });
        // Within the lock: nobody may see the completion, destroy the ring and then a signal comes. A full
        // counter refuses, and is readable already.
        _ = (&self.ring.signal).write(&1u64.to_ne_bytes());
        self.ring.changed.notify_all();
    }
}

impl Pending {
    fn finish(mut self, result: std::result::Result<usize, i32>) {
        self.result = match result {
            Ok(count) => count as i64,
            Err(errno) => -i64::from(errno),
        };
    }
}

/// What is to be done, checked.
enum Work {
    Answer(std::result::Result<usize, i32>),
    Read(Arc<OpenFile>, u64, Region),
    Write(Arc<OpenFile>, u64, Region),
    Sync(Arc<OpenFile>),
}

pub(crate) fn create(client: u64, entries: u32) -> Result<u64> {
    if entries == 0 || entries > MAX_ENTRIES {
        return Err(Failure::invalid(format!(
            "{entries} entries; 1 to {MAX_ENTRIES} are possible"
        )));
    }
    let user = User::of(client)?;
    let signal = eventfd().map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Failure::new(errno, format!("no eventfd for the ring: {error}"))
    })?;
    Ok(RINGS.insert(Arc::new(Ring {
        entries: entries as usize,
        user,
        state: Mutex::default(),
        changed: Condvar::new(),
        signal: signal.into(),
    })))
}

pub(crate) fn register(ring: u64, region: Region) -> Result<i64> {
    let ring = RINGS.get(ring)?;
    let mut state = ring.state.lock();
    let buffer = Some(Buffer {
        region,
        in_flight: 0,
    });
    let index = if let Some(free) = state.buffers.iter().position(Option::is_none) {
        state.buffers[free] = buffer;
        free
    } else if state.buffers.len() < MAX_ENTRIES as usize {
        state.buffers.push(buffer);
        state.buffers.len() - 1
    } else {
        let what = format!("{MAX_ENTRIES} buffers are registered; unregister some");
        return Err(Failure::new(libc::ENOSPC, what));
    };
    Ok(index as i64)
}

pub(crate) fn unregister(ring: u64, buffer: u32) -> Result<()> {
    let ring = RINGS.get(ring)?;
    let mut state = ring.state.lock();
    match state.buffers.get_mut(buffer as usize) {
        Some(Some(busy)) if busy.in_flight > 0 => {
            let what = format!(
                "buffer {buffer} has {} operations in flight; wait for them",
                busy.in_flight
            );
            Err(Failure::new(libc::EBUSY, what))
        }
        Some(slot @ Some(_)) => {
            *slot = None;
            Ok(())
        }
        _ => Err(Failure::invalid(format!(
            "buffer {buffer} is not registered"
        ))),
    }
}

impl State {
    fn region(&self, sqe: &Sqe) -> std::result::Result<Region, i32> {
        let registered = self
            .buffers
            .get(sqe.buffer as usize)
            .and_then(Option::as_ref);
        let region = registered.ok_or(libc::EINVAL)?.region;
        let end = sqe.offset.checked_add(sqe.length);
        if sqe.length > MAX_LENGTH || end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(libc::EINVAL);
        }
        region
            .part(sqe.buffer_offset, sqe.length)
            .ok_or(libc::EFAULT)
    }

    fn check(&self, ring: &Ring, sqe: &Sqe) -> std::result::Result<Work, i32> {
        if sqe.flags != 0 || sqe.reserved != 0 || sqe.op > OP_FSYNC {
            return Err(libc::EINVAL);
        }
        if sqe.op == OP_NOP {
            return Ok(Work::Answer(Ok(0)));
        }
        let file = FILES.get(sqe.file).map_err(|failure| failure.errno)?;
        if !Arc::ptr_eq(&file.user.0, &ring.user.0) {
            return Err(libc::EBADF);
        }
        Ok(match sqe.op {
            OP_READ => Work::Read(file, sqe.offset, self.region(sqe)?),
            OP_WRITE => Work::Write(file, sqe.offset, self.region(sqe)?),
            _ => Work::Sync(file),
        })
    }
}

pub(crate) fn submit(handle: u64, sqes: &[Sqe]) -> Result<i64> {
    let ring = RINGS.get(handle)?;
    let mut accepted = Vec::new();
    {
        let mut state = ring.state.lock();
        if state.closing {
            return Err(Failure::new(libc::ECANCELED, "the ring is being destroyed"));
        }
        let free = ring.entries - (state.in_flight + state.done.len());
        for sqe in sqes.iter().take(free) {
            let work = state.check(&ring, sqe);
            let uses_memory = matches!(work, Ok(Work::Read(..) | Work::Write(..)));
            let buffer = uses_memory.then_some(sqe.buffer);
            if let Some(Some(slot)) = buffer.and_then(|b| state.buffers.get_mut(b as usize)) {
                slot.in_flight += 1;
            }
            state.in_flight += 1;
            let pending = Pending {
                ring: ring.clone(),
                buffer,
                user_data: sqe.user_data,
                result: -i64::from(libc::EIO),
            };
            accepted.push((
                pending,
                work.unwrap_or_else(|errno| Work::Answer(Err(errno))),
            ));
        }
    }
    let count = accepted.len() as i64;
    start(&ring, accepted);
    Ok(count)
}

type Read = (Pending, u64, Region);

fn start(ring: &Arc<Ring>, accepted: Vec<(Pending, Work)>) {
    let runtime = ring.user.handle();
    let mut small: HashMap<u64, (Arc<OpenFile>, Vec<Read>)> = HashMap::new();
    for (pending, work) in accepted {
        match work {
            Work::Answer(result) => pending.finish(result),
            Work::Read(file, offset, region) if region.len() as u64 <= SMALL => {
                let key = Arc::as_ptr(&file) as u64;
                let (file, reads) = small.entry(key).or_insert_with(|| (file, Vec::new()));
                reads.push((pending, offset, region));
                if reads.len() == TOGETHER {
                    runtime.spawn(read_all(file.clone(), std::mem::take(reads)));
                }
            }
            Work::Read(file, offset, region) => {
                runtime.spawn(read_all(file, vec![(pending, offset, region)]));
            }
            Work::Write(file, offset, region) => {
                runtime.spawn(async move {
                    let ring = pending.ring.clone();
                    let _transit = transit(&ring, region.len()).await;
                    let written = file.file.write(offset, region.copy()).await;
                    pending.finish(written.map(|()| region.len()).map_err(|e| e.errno()));
                });
            }
            Work::Sync(file) => {
                runtime.spawn(async move {
                    let synced = file.file.sync().await;
                    pending.finish(synced.map(|_| 0).map_err(|e| e.errno()));
                });
            }
        }
    }
    for (file, reads) in small.into_values() {
        if !reads.is_empty() {
            runtime.spawn(read_all(file, reads));
        }
    }
}

/// Room for `bytes` between servers and registered memory.
async fn transit(ring: &Ring, bytes: usize) -> Option<tokio::sync::SemaphorePermit<'_>> {
    let units = bytes.div_ceil(TRANSIT_UNIT) as u32;
    // Fails only if the semaphore is closed, which nobody does.
    ring.user.0.transit.acquire_many(units).await.ok()
}

async fn read_all(file: Arc<OpenFile>, reads: Vec<Read>) {
    let Some((first, ..)) = reads.first() else {
        return;
    };
    let ring = first.ring.clone();
    let bytes = reads.iter().map(|(_, _, region)| region.len()).sum();
    let _transit = transit(&ring, bytes).await;
    let results = if let [(_, offset, region)] = reads.as_slice() {
        // Alone, it takes part in read-ahead.
        vec![file.file.read(*offset, region.len()).await]
    } else {
        let ranges: Vec<_> = reads
            .iter()
            .map(|(_, at, region)| (*at, region.len()))
            .collect();
        file.file.read_many(&ranges).await
    };
    for ((pending, _, region), result) in reads.into_iter().zip(results) {
        let copied = result.map(|data| region.fill(&data));
        pending.finish(copied.map_err(|error| error.errno()));
    }
}

/// Until when; `None` is for ever.
fn deadline(timeout_ns: i64) -> Option<Instant> {
    let timeout = Duration::from_nanos(u64::try_from(timeout_ns).ok()?);
    Instant::now().checked_add(timeout)
}

pub(crate) fn wait(
    handle: u64,
    out: &mut [MaybeUninit<Cqe>],
    min: u32,
    timeout_ns: i64,
) -> Result<i64> {
    let ring = RINGS.get(handle)?;
    let min = min as usize;
    if min > out.len() || min > ring.entries {
        return Err(Failure::invalid(format!(
            "min is {min}, but max is {} and the ring has {} entries",
            out.len(),
            ring.entries
        )));
    }
    let deadline = deadline(timeout_ns);
    let mut state = ring.state.lock();
    state.waiting += 1;
    let mut in_time = true;
    while in_time && !state.closing && state.done.len() < min {
        match deadline {
            None => ring.changed.wait(&mut state),
            Some(at) => in_time = !ring.changed.wait_until(&mut state, at).timed_out(),
        }
    }
    state.waiting -= 1;
    let count = out.len().min(state.done.len());
    for (slot, cqe) in out.iter_mut().zip(state.done.drain(..count)) {
        slot.write(cqe);
    }
    let closing = state.closing;
    drop(state);
    ring.changed.notify_all();
    match count {
        0 if closing => Err(Failure::new(libc::ECANCELED, "the ring is being destroyed")),
        0 if min > 0 => Err(Failure::new(
            libc::ETIMEDOUT,
            format!("no completion within {timeout_ns} ns"),
        )),
        n => Ok(n as i64),
    }
}

pub(crate) fn signal(ring: u64) -> Result<i64> {
    Ok(i64::from(RINGS.get(ring)?.signal.as_raw_fd()))
}

pub(crate) fn destroy(handle: u64) -> Result<()> {
    let ring = RINGS.remove_if(handle, |_| Ok(()))?;
    let mut state = ring.state.lock();
    state.closing = true;
    ring.changed.notify_all();
    while state.in_flight > 0 || state.waiting > 0 {
        ring.changed.wait(&mut state);
    }
    ring.user.release();
    Ok(())
}
