//! Recognising streams by the offsets of reads, whoever makes them. No I/O and no clock.
//!
//! - **Forward**: a read begins where another ended, give or take what the kernel reorders. The second read
//!   of a stream tells.
//! - **Backward**: reads end where others began. The third tells, because the first two of a forward
//!   stream may have changed places.
//! - **Strided**: reads of one length, with one distance and gaps between them. The fourth tells: among
//!   random reads, two equal distances happen by chance.

use std::collections::VecDeque;
use std::time::Instant;

use super::pace::Pace;

/// Streams recognised per file. The memory that they fill is bounded elsewhere.
pub(super) const STREAMS: usize = 32;
/// How many of its own lengths a read may be off and still continue a stream: the kernel sends the
/// parts of its own read-ahead side by side. For strided streams: how many items.
const REORDER: u64 = 8;
/// So many gaps one after the other, and none of them filled meanwhile, are no reordering.
const GAPS: u32 = 3;
/// Single reads that are remembered, to find strides between them.
const RECENT: usize = 32;

/// How a stream moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not known yet.
    New,
    Forward,
    Backward,
    Strided {
        stride: i64,
        len: u64,
    },
}

pub(super) struct Stream {
    pub(super) kind: Kind,
    /// Lower end of what was read lately.
    pub(super) low: u64,
    /// Upper end of that. Of a strided stream: where the next read is expected.
    pub(super) next: u64,
    /// Bytes to stay ahead.
    pub(super) window: u64,
    /// Up to here (or down to here) blocks were asked for.
    pub(super) ahead: u64,
    pub(super) touched: Instant,
    pub(super) pace: Pace,
    /// Moves downwards since the last one upwards.
    down: u32,
    gaps: u32,
}

/// What a read is to the stream that it is near.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    /// It moves the stream on.
    On,
    /// It is within what was read lately.
    Within,
    /// It may be part of something else.
    Loose,
}

/// The streams of one file.
#[derive(Default)]
pub(super) struct Streams {
    pub(super) all: Vec<Stream>,
    recent: VecDeque<(u64, u64)>,
}

impl Streams {
    /// The stream that this read moves on, so that more may be read ahead; one that belongs to none
    /// begins one.
    pub(super) fn follow(&mut self, offset: u64, len: u64, now: Instant) -> Option<&mut Stream> {
        let near = self.near(offset, len);
        let exactly = near.is_some_and(|i| {
            let stream = &self.all[i];
            offset == stream.next || offset + len == stream.low
        });
        if !exactly && let Some((i, items)) = self.strided(offset, len) {
            let stream = &mut self.all[i];
            stream.touched = now;
            return stream.step(items, now).then_some(stream);
        }
        if let Some(i) = near {
            match self.all[i].moved(offset, len, now) {
                Move::On => return Some(&mut self.all[i]),
                Move::Within => return None,
                Move::Loose => {}
            }
        }
        if let Some(stride) = self.progression(offset, len) {
            let kind = Kind::Strided { stride, len };
            let next = offset.checked_add_signed(stride)?;
            let stream = self.begin(kind, next, next, now)?;
            return Some(stream);
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((offset, len));
        if near.is_none() {
            self.begin(Kind::New, offset, offset + len, now);
        }
        None
    }

    /// Streams that read ahead.
    pub(super) fn known(&self) -> u64 {
        self.all.iter().filter(|s| s.kind != Kind::New).count() as u64
    }

    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.recent.clear();
    }

    fn near(&self, offset: u64, len: u64) -> Option<usize> {
        let (end, slack) = (offset + len, len.saturating_mul(REORDER));
        let distance = |s: &Stream| s.next.abs_diff(offset).min(s.low.abs_diff(end));
        (0..self.all.len())
            .filter(|&i| !matches!(self.all[i].kind, Kind::Strided { .. }))
            .filter(|&i| {
                let s = &self.all[i];
                offset <= s.next.saturating_add(slack) && end.saturating_add(slack) >= s.low
            })
            .min_by_key(|&i| distance(&self.all[i]))
    }

    /// The strided stream that has this read as an item, and how many items after the expected one.
    fn strided(&self, offset: u64, len: u64) -> Option<(usize, i64)> {
        let item = |s: &Stream| match s.kind {
            Kind::Strided { stride, len: each } if each == len => {
                let off = offset.checked_signed_diff(s.next)?;
                let near = off.unsigned_abs() <= stride.unsigned_abs().saturating_mul(REORDER);
                (near && off % stride == 0).then(|| off / stride)
            }
            _ => None,
        };
        (0..self.all.len()).find_map(|i| item(&self.all[i]).map(|items| (i, items)))
    }

    /// The distance of three earlier reads of this length and this one, in this order and with gaps.
    fn progression(&self, offset: u64, len: u64) -> Option<i64> {
        let seen = |before: usize, at: Option<u64>| {
            let earlier = self.recent.range(..before);
            at.and_then(|at| earlier.clone().rposition(|&read| read == (at, len)))
        };
        let reads = self.recent.iter().enumerate().rev();
        let mut same = reads.filter(|(_, read)| read.1 == len);
        same.find_map(|(place, &(at, _))| {
            let stride = offset.checked_signed_diff(at)?;
            let back = |times: i64| offset.checked_add_signed(stride.checked_mul(-times)?);
            let gaps = stride.unsigned_abs() > len;
            let found = gaps && seen(seen(place, back(2))?, back(3)).is_some();
            found.then_some(stride)
        })
    }

    fn begin(&mut self, kind: Kind, low: u64, next: u64, now: Instant) -> Option<&mut Stream> {
        if self.all.len() == STREAMS {
            let least = |i: &usize| {
                let stream = &self.all[*i];
                (stream.kind != Kind::New, stream.touched)
            };
            let least = (0..STREAMS).min_by_key(least)?;
            self.all.swap_remove(least);
        }
        self.all.push(Stream {
            kind,
            low,
            next,
            window: 0,
            ahead: next,
            touched: now,
            pace: Pace::new(now),
            down: 0,
            gaps: 0,
        });
        self.all.last_mut()
    }
}

impl Stream {
    fn become_kind(&mut self, kind: Kind) {
        if self.kind != kind {
            self.kind = kind;
            self.window = 0;
            self.gaps = 0;
            self.ahead = if kind == Kind::Backward {
                self.low
            } else {
                self.next
            };
        }
    }

    /// Takes in a read that is near.
    fn moved(&mut self, offset: u64, len: u64, now: Instant) -> Move {
        self.touched = now;
        let (end, slack) = (offset + len, len.saturating_mul(REORDER));
        // To begin with exactly, later with overlaps.
        let new = self.kind == Kind::New;
        let (up, touches) = if end > self.next {
            (true, offset == self.next || !new && offset < self.next)
        } else if offset < self.low {
            (false, end == self.low || !new && end > self.low)
        } else {
            self.gaps = 0;
            return Move::Within;
        };
        let progress = if up {
            end - self.next
        } else {
            self.low - offset
        };
        // Only lately read bytes count: a stream may turn round.
        if up {
            self.next = end;
            self.low = self.low.max(end.saturating_sub(slack));
            self.down = 0;
        } else {
            self.low = offset;
            self.next = self.next.min(offset.saturating_add(slack));
            self.down += 1;
        }
        let kind = if up { Kind::Forward } else { Kind::Backward };
        if touches {
            self.gaps = 0;
            if !up && self.kind != kind && self.down < 2 {
                return Move::Within;
            }
            self.become_kind(kind);
        } else {
            self.gaps += 1;
            if self.kind != kind || self.gaps >= GAPS {
                self.become_kind(Kind::New);
                return Move::Loose;
            }
        }
        self.pace.moved(progress, now);
        Move::On
    }

    /// Takes in the item so many after the expected one of a strided stream. Does it move it on?
    fn step(&mut self, items: i64, now: Instant) -> bool {
        let Kind::Strided { stride, len } = self.kind else {
            return false;
        };
        let next = stride
            .checked_mul(items + 1)
            .and_then(|by| self.next.checked_add_signed(by));
        if items < 0 {
            return false;
        }
        // Beyond the first byte of the file, or the last that there can be: the stream has ended.
        let Some(next) = next else { return false };
        let behind = if stride > 0 {
            self.ahead < next
        } else {
            self.ahead > next
        };
        if behind {
            self.ahead = next;
        }
        (self.next, self.low) = (next, next);
        self.pace.moved(len * (items as u64 + 1), now);
        true
    }
}
