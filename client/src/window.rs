//! How many bytes of reads may be on their way from one storage node: receiver-driven flow control.
//!
//! Many readers that all ask one node at once fill the port of its switch, packets are lost, and all of
//! them wait for time-outs (incast). So each reader bounds what it asks for, and lets delay tell how much
//! that may be, as TCP Vegas (Brakmo and Peterson, 1995) and Swift (Kumar and others, 2020) do: while
//! replies come about as fast as the fastest of late, the bound grows by a constant per round; when they
//! take much longer it shrinks by a factor, once per round. Constant growth and shrinking by a factor let
//! readers that share a node come to equal bounds (Chiu and Jain, 1989). Disks queue too and serve a deep
//! queue faster, so some delay is no congestion.
//!
//! [`Window`] decides, without I/O and clock; [`Gate`] makes requests wait for it, first come, first served.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Largest bound, bytes.
const MOST: u64 = 64 << 20;
/// Smallest bound. A single request is always let through, however large.
const LEAST: u64 = 1 << 20;
/// The bound while nothing is known.
const START: u64 = 32 << 20;
/// Growth per round, that is for each `bound` bytes that came.
const STEP: u64 = 1 << 20;
/// What is left of the bound after a congested round.
const SHRINK: f64 = 0.7;
/// Congested: so many times the delay of an empty path, and that much more.
const RATIO: f64 = 2.0;
const SLACK: Duration = Duration::from_millis(20);
/// A delay lower than all others counts for so long, or twice that.
const EPOCH: Duration = Duration::from_secs(30);
/// Size classes of delays: 4 KiB, 16 KiB, and so on.
const CLASSES: usize = 8;

/// The bound for one node.
pub(crate) struct Window {
    bound: u64,
    in_flight: u64,
    shrunk: Option<Instant>,
    epoch: Option<Instant>,
    /// Lowest delays of this epoch and the one before.
    lowest: [[Lowest; 2]; CLASSES],
}

/// The lowest delay of requests of about one size.
#[derive(Clone, Copy)]
struct Lowest {
    /// Seconds.
    whole: f64,
    /// Seconds per byte.
    each: f64,
}

impl Lowest {
    const NONE: Self = Self {
        whole: f64::INFINITY,
        each: f64::INFINITY,
    };
}

fn class(bytes: u64) -> usize {
    let pages = bytes.div_ceil(4096).max(1);
    (pages.ilog2().div_ceil(2) as usize).min(CLASSES - 1)
}

impl Window {
    pub(crate) fn new() -> Self {
        Self {
            bound: START,
            in_flight: 0,
            shrunk: None,
            epoch: None,
            lowest: [[Lowest::NONE; 2]; CLASSES],
        }
    }

    /// May a request for so many bytes go now?
    fn admits(&self, bytes: u64) -> bool {
        self.in_flight == 0 || self.in_flight + bytes <= self.bound
    }

    fn begin(&mut self, bytes: u64) {
        self.in_flight += bytes;
    }

    /// A request has ended; with an answer or without.
    fn end(&mut self, bytes: u64) {
        self.in_flight -= bytes;
    }

    /// The answer to a request that went at `begun` is here, and still counts as in flight.
    fn answered(&mut self, bytes: u64, begun: Instant, now: Instant) {
        let took = now.saturating_duration_since(begun).as_secs_f64();
        let least = self.lowest(bytes, took, now);
        if took > RATIO * least && took > least + SLACK.as_secs_f64() {
            // What went before the last shrinking tells nothing of the time after.
            if self.shrunk.is_none_or(|shrunk| begun >= shrunk) {
                self.bound = ((self.bound as f64 * SHRINK) as u64).max(LEAST);
                self.shrunk = Some(now);
            }
        } else if self.in_flight > self.bound / 2 {
            // A bound that does not bind need not grow.
            self.bound = (self.bound + (bytes * STEP).div_ceil(self.bound)).min(MOST);
        }
    }

    /// The lowest delay of late for so many bytes, this one's included.
    fn lowest(&mut self, bytes: u64, took: f64, now: Instant) -> f64 {
        let epoch = *self.epoch.get_or_insert(now);
        if now.saturating_duration_since(epoch) >= EPOCH {
            self.epoch = Some(now);
            for lowest in &mut self.lowest {
                *lowest = [Lowest::NONE, lowest[0]];
            }
        }
        let size = bytes.max(1) as f64;
        let [current, before] = &mut self.lowest[class(bytes)];
        current.whole = current.whole.min(took);
        current.each = current.each.min(took / size);
        let whole = current.whole.min(before.whole);
        // Within a class sizes differ by a factor of four, and with them the delays of large ones.
        whole.max(current.each.min(before.each) * size)
    }
}

/// The window of one node and the requests that wait for it.
pub(crate) struct Gate {
    state: Mutex<State>,
}

struct State {
    window: Window,
    waiting: VecDeque<(u64, oneshot::Sender<Pass>)>,
}

/// The right to have so many bytes in flight.
pub(crate) struct Pass {
    gate: Arc<Gate>,
    bytes: u64,
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                window: Window::new(),
                waiting: VecDeque::new(),
            }),
        })
    }

    /// Waits until a request for so many bytes may go. As many wait as the caller lets.
    pub(crate) async fn enter(self: &Arc<Self>, bytes: u64) -> Pass {
        let turn = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() && state.window.admits(bytes) {
                state.window.begin(bytes);
                None
            } else {
                let (tell, turn) = oneshot::channel();
                state.waiting.push_back((bytes, tell));
                Some(turn)
            }
        };
        let Some(turn) = turn else {
            return self.pass(bytes);
        };
        turn.await
            .expect("waiting requests are told before they leave the queue, and this gate lives on")
    }

    fn pass(self: &Arc<Self>, bytes: u64) -> Pass {
        let gate = self.clone();
        Pass { gate, bytes }
    }

    /// Gives back, and lets those through that fit now.
    fn leave(self: &Arc<Self>, bytes: u64) {
        let mut through = Vec::new();
        {
            let mut state = self.state.lock();
            state.window.end(bytes);
            while let Some((bytes, _)) = state.waiting.front()
                && state.window.admits(*bytes)
                && let Some((bytes, tell)) = state.waiting.pop_front()
            {
                if !tell.is_closed() {
                    state.window.begin(bytes);
                    through.push((bytes, tell));
                }
            }
        }
        for (bytes, tell) in through {
            // Of a request that was dropped just now the pass comes back, and is dropped in turn.
            drop(tell.send(self.pass(bytes)));
        }
    }
}

impl Pass {
    /// The answer is here.
    pub(crate) fn answered(&self, begun: Instant) {
        let mut state = self.gate.state.lock();
        state.window.answered(self.bytes, begun, Instant::now());
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave(self.bytes);
    }
}

#[cfg(test)]
mod tests;
