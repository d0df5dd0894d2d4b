//! Ranges of advisory locks: what one owner holds of one file, as server and client both reckon it.
//!
//! The arithmetic is that of fcntl(2): a new lock replaces what its owner held of those bytes, an unlock
//! cuts a hole, and neighbours of one kind are one range.

use crate::convert::required;
use crate::{Error, ErrorCode, Result, pb};

/// Kinds of locks that do not see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockSpace {
    /// flock(2): whole files, one lock per open file description.
    Flock,
    /// fcntl(2): ranges, by process or by open file description.
    Posix,
    /// The right to append to a file: whole files, one owner per client. Who holds it is told when another wants it.
    Append,
}

/// How a range is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hold {
    /// With others.
    Shared,
    /// Alone.
    Exclusive,
}

/// Bytes of a file, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
}

impl Span {
    /// Every byte that a file can have.
    pub const WHOLE: Self = Self {
        start: 0,
        end: u64::MAX,
    };

    /// The bytes from `start` to `end`; [`ErrorCode::InvalidArgument`] if that is none.
    pub fn new(start: u64, end: u64) -> Result<Self> {
        if start > end {
            let what = format!("a lock from byte {start} to byte {end} covers nothing");
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        Ok(Self { start, end })
    }

    /// The bytes that both have.
    pub fn common(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start <= end).then_some(Self { start, end })
    }
}

/// A locked range, or one that somebody wants locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Which bytes.
    pub span: Span,
    /// How.
    pub hold: Hold,
    /// The process, for people and F_GETLK; 0: unknown.
    pub pid: u32,
}

impl Range {
    /// Whether two owners cannot have both.
    pub fn conflicts(&self, other: &Self) -> bool {
        let exclusive = self.hold == Hold::Exclusive || other.hold == Hold::Exclusive;
        exclusive && self.span.common(other.span).is_some()
    }
}

/// What one owner holds of one file: in order, without overlaps, neighbours of one kind joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range>);

impl Ranges {
    /// How many ranges.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges in the order of their bytes.
    pub fn iter(&self) -> std::slice::Iter<'_, Range> {
        self.0.iter()
    }

    /// The ranges that overlap `span`, as indices.
    fn overlapping(&self, span: Span) -> std::ops::Range<usize> {
        let first = self.0.partition_point(|r| r.span.end < span.start);
        let after = self.0.partition_point(|r| r.span.start <= span.end);
        first..after
    }

    /// What is held of `span`, cut to it.
    pub fn within(&self, span: Span) -> impl Iterator<Item = Range> + '_ {
        let overlapping = self.0[self.overlapping(span)].iter();
        overlapping.filter_map(move |r| r.span.common(span).map(|span| Range { span, ..*r }))
    }

    /// The first range that `other`, of another owner, cannot be held beside.
    pub fn conflict(&self, other: &Range) -> Option<Range> {
        let overlapping = self.0[self.overlapping(other.span)].iter();
        overlapping.copied().find(|r| r.conflicts(other))
    }

    /// Whether every byte of `wanted` is held in its way, or exclusively.
    pub fn covers(&self, wanted: &Range) -> bool {
        let mut next = wanted.span.start;
        for held in self.within(wanted.span) {
            if held.span.start > next || held.hold < wanted.hold {
                return false;
            }
            match held.span.end.checked_add(1) {
                Some(after) if held.span.end < wanted.span.end => next = after,
                _ => return true,
            }
        }
        false
    }

    /// Locks a range, in place of whatever was held of it.
    pub fn set(&mut self, new: Range) {
        self.clear(new.span);
        let at = self.0.partition_point(|r| r.span.end < new.span.start);
        self.0.insert(at, new);
        self.join(at + 1);
        self.join(at);
    }

    /// Joins the range at `at` to the one before if they are neighbours of one kind.
    fn join(&mut self, at: usize) {
        let Some((&left, &right)) = at
            .checked_sub(1)
            .and_then(|before| Some((self.0.get(before)?, self.0.get(at)?)))
        else {
            return;
        };
        if left.hold == right.hold && right.span.start - left.span.end == 1 {
            self.0[at - 1].span.end = right.span.end;
            self.0.remove(at);
        }
    }

    /// Unlocks a range.
    pub fn clear(&mut self, span: Span) {
        let overlapping = self.overlapping(span);
        let Some((first, last)) = self.0[overlapping.clone()]
            .first()
            .zip(self.0[overlapping.clone()].last())
        else {
            return;
        };
        let left = (first.span.start < span.start).then(|| Range {
            span: Span {
                start: first.span.start,
                end: span.start - 1,
            },
            ..*first
        });
        let right = (last.span.end > span.end).then(|| Range {
            span: Span {
                start: span.end + 1,
                end: last.span.end,
            },
            ..*last
        });
        self.0.splice(overlapping, left.into_iter().chain(right));
    }

    /// Gives up, of `span`, whatever goes beyond `keep`.
    pub fn weaken(&mut self, span: Span, keep: &Self) {
        let held: Vec<Range> = self.within(span).collect();
        self.clear(span);
        for held in held {
            for kept in keep.within(held.span) {
                self.set(Range {
                    span: kept.span,
                    hold: kept.hold.min(held.hold),
                    pid: held.pid,
                });
            }
        }
    }
}

impl<'a> IntoIterator for &'a Ranges {
    type Item = &'a Range;
    type IntoIter = std::slice::Iter<'a, Range>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<Range> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range>>(ranges: I) -> Self {
        let mut all = Self::default();
        for range in ranges {
            all.set(range);
        }
        all
    }
}

impl From<LockSpace> for pb::LockSpace {
    fn from(space: LockSpace) -> Self {
        match space {
            LockSpace::Flock => Self::Flock,
            LockSpace::Posix => Self::Posix,
            LockSpace::Append => Self::Append,
        }
    }
}

impl From<Range> for pb::LockRange {
    fn from(range: Range) -> Self {
        let kind = match range.hold {
            Hold::Shared => pb::LockKind::Shared,
            Hold::Exclusive => pb::LockKind::Exclusive,
        };
        Self {
            start: range.span.start,
            end: range.span.end,
            kind: kind.into(),
            pid: range.pid,
        }
    }
}

impl TryFrom<&pb::LockRange> for Range {
    type Error = Error;

    fn try_from(msg: &pb::LockRange) -> Result<Self> {
        let hold = match msg.kind() {
            pb::LockKind::Shared => Hold::Shared,
            pb::LockKind::Exclusive => Hold::Exclusive,
            pb::LockKind::Unspecified => {
                let what = format!("kind {} of a lock is unknown to this version", msg.kind);
                return Err(Error::new(ErrorCode::InvalidArgument, what));
            }
        };
        Ok(Self {
            span: Span::new(msg.start, msg.end)?,
            hold,
            pid: msg.pid,
        })
    }
}

impl pb::LockOwner {
    /// The space of the owner's locks.
    pub fn lock_space(&self) -> Result<LockSpace> {
        match self.space() {
            pb::LockSpace::Flock => Ok(LockSpace::Flock),
            pb::LockSpace::Posix => Ok(LockSpace::Posix),
            pb::LockSpace::Append => Ok(LockSpace::Append),
            pb::LockSpace::Unspecified => {
                let what = format!("space {} of a lock is unknown to this version", self.space);
                Err(Error::new(ErrorCode::InvalidArgument, what))
            }
        }
    }
}

impl pb::OwnerLocks {
    /// Whose they are, and the ranges.
    pub fn parse(&self) -> Result<(&pb::LockOwner, Ranges)> {
        let owner = required(self.owner.as_ref(), "lock owner")?;
        let ranges = self.ranges.iter().map(Range::try_from);
        Ok((owner, ranges.collect::<Result<_>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64, hold: Hold) -> Range {
        Range {
            span: Span { start, end },
            hold,
            pid: 0,
        }
    }

    fn shared(start: u64, end: u64) -> Range {
        range(start, end, Hold::Shared)
    }

    fn exclusive(start: u64, end: u64) -> Range {
        range(start, end, Hold::Exclusive)
    }

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    fn all(ranges: &Ranges) -> Vec<Range> {
        ranges.iter().copied().collect()
    }

    #[test]
    fn a_lock_replaces_joins_and_splits() {
        let mut held = Ranges::default();
        held.set(shared(0, 9));
        held.set(shared(10, 19));
        assert_eq!(all(&held), [shared(0, 19)], "neighbours of one kind");
        held.set(exclusive(5, 6));
        let split = [shared(0, 4), exclusive(5, 6), shared(7, 19)];
        assert_eq!(all(&held), split, "an upgrade of the middle");
        held.set(shared(5, 6));
        assert_eq!(all(&held), [shared(0, 19)], "and back");
        held.clear(span(3, 3));
        assert_eq!(all(&held), [shared(0, 2), shared(4, 19)]);
        held.set(shared(3, 3));
        assert_eq!(all(&held), [shared(0, 19)], "both neighbours at once");
        held.clear(span(15, u64::MAX));
        held.clear(span(0, 1));
        assert_eq!(all(&held), [shared(2, 14)]);
        held.clear(Span::WHOLE);
        assert!(held.is_empty());
    }

    #[test]
    fn the_last_byte_is_no_special_case() {
        let mut held = Ranges::default();
        held.set(exclusive(u64::MAX, u64::MAX));
        held.set(exclusive(0, u64::MAX - 1));
        assert_eq!(all(&held), [exclusive(0, u64::MAX)]);
        assert!(held.covers(&shared(0, u64::MAX)));
        held.clear(span(u64::MAX, u64::MAX));
        assert_eq!(all(&held), [exclusive(0, u64::MAX - 1)]);
    }

    #[test]
    fn covering_needs_every_byte_and_the_kind() {
        let held: Ranges = [shared(0, 4), exclusive(5, 9), shared(11, 20)]
            .into_iter()
            .collect();
        assert!(held.covers(&shared(2, 9)));
        assert!(held.covers(&exclusive(5, 9)));
        assert!(!held.covers(&exclusive(4, 9)));
        assert!(!held.covers(&shared(9, 11)), "byte 10 is missing");
        assert!(!held.covers(&shared(19, 21)));
        assert!(!held.covers(&shared(30, 31)));
    }

    #[test]
    fn only_an_exclusive_side_conflicts() {
        let held: Ranges = [shared(0, 9), exclusive(20, 29)].into_iter().collect();
        assert_eq!(held.conflict(&shared(0, 15)), None);
        assert_eq!(held.conflict(&exclusive(9, 9)), Some(shared(0, 9)));
        assert_eq!(held.conflict(&shared(0, 20)), Some(exclusive(20, 29)));
        assert_eq!(held.conflict(&exclusive(10, 19)), None);
    }

    #[test]
    fn messages_round_trip_and_nonsense_is_refused() {
        let range = Range {
            pid: 7,
            ..exclusive(3, u64::MAX)
        };
        assert_eq!(Range::try_from(&pb::LockRange::from(range)), Ok(range));
        let backwards = pb::LockRange {
            start: 2,
            end: 1,
            kind: pb::LockKind::Shared.into(),
            pid: 0,
        };
        let kind_missing = pb::LockRange::default();
        for bad in [backwards, kind_missing] {
            let error = Range::try_from(&bad).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
        }
        assert!(pb::LockOwner::default().lock_space().is_err());
    }

    /// Bytes of the model.
    const BYTES: u64 = 24;

    fn bytes(ranges: &Ranges) -> Vec<Option<Hold>> {
        let at = |byte| ranges.within(span(byte, byte)).next().map(|r| r.hold);
        (0..BYTES).map(at).collect()
    }

    fn any_span() -> impl Strategy<Value = Span> {
        (0..BYTES, 0..BYTES).prop_map(|(a, b)| span(a.min(b), a.max(b)))
    }

    fn any_hold() -> impl Strategy<Value = Option<Hold>> {
        prop_oneof![
            Just(None),
            Just(Some(Hold::Shared)),
            Just(Some(Hold::Exclusive))
        ]
    }

    fn apply(ranges: &mut Ranges, span: Span, hold: Option<Hold>) {
        match hold {
            Some(hold) => ranges.set(Range { span, hold, pid: 0 }),
            None => ranges.clear(span),
        }
    }

    proptest! {
        #[test]
        fn ranges_are_what_each_byte_says(
            ops in proptest::collection::vec((any_span(), any_hold()), 1..20),
            other in proptest::collection::vec((any_span(), any_hold()), 0..8),
            cut in any_span(),
        ) {
            let (mut ranges, mut model) = (Ranges::default(), vec![None; BYTES as usize]);
            for (span, hold) in ops {
                apply(&mut ranges, span, hold);
                model[span.start as usize..=span.end as usize].fill(hold);
                prop_assert_eq!(&bytes(&ranges), &model);
                for pair in all(&ranges).windows(2) {
                    let gap = pair[1].span.start - pair[0].span.end;
                    prop_assert!(gap > 1 || gap == 1 && pair[0].hold != pair[1].hold, "{:?}", pair);
                }
            }
            let mut keep = Ranges::default();
            for (span, hold) in other {
                apply(&mut keep, span, hold);
            }
            let kept = bytes(&keep);
            ranges.weaken(cut, &keep);
            let weakened: Vec<_> = (0..BYTES as usize).map(|i| {
                let inside = (cut.start..=cut.end).contains(&(i as u64));
                if inside { model[i].min(kept[i]) } else { model[i] }
            }).collect();
            prop_assert_eq!(bytes(&ranges), weakened);
        }
    }
}
