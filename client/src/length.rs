//! What this client knows of a file's length, and what it still has to report.
//!
//! Within one truncate epoch a file only grows, so the larger of two sizes is the newer one, in
//! whatever order answers arrive; a newer epoch overrides an older one. An end that was acknowledged
//! by the chains is reported under the epoch in which it was seen; the server settles older ones
//! from the chunks.

use std::time::{Instant, SystemTime};

use emberfs_proto::pb;

use crate::Attr;
use crate::attr::AttrExt;

/// How far writes got, for the metadata server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Highest acknowledged byte + 1.
    pub(crate) end: u64,
    /// The epoch under which it was written.
    pub(crate) epoch: u64,
    /// Time of the last write.
    pub(crate) mtime: SystemTime,
    /// There may be holes before the end.
    pub(crate) sparse: bool,
}

/// What the server granted; the greater one is the newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Granted {
    /// Grows when grants were taken back.
    number: u64,
    end: u64,
}

impl Granted {
    fn of(attr: &Attr) -> Option<Self> {
        attr.limited.then_some(Self {
            number: attr.grant,
            end: attr.granted,
        })
    }
}

/// Length of one file.
#[derive(Debug)]
pub(crate) struct Length {
    server: u64,
    epoch: u64,
    /// Highest end among writes that no chain has acknowledged yet; 0: none.
    buffered: u64,
    /// Acknowledged, not reported.
    acked: Option<Report>,
    /// On its way to the server.
    sending: Option<Report>,
    /// Last local write not reported yet.
    modified: Option<SystemTime>,
    /// A write left something out, and no report says so yet.
    gap: bool,
    /// How far this file may be written: grants as the server last told them. `None`: no quota applies.
    granted: Option<Granted>,
    acked_since: Option<Instant>,
    refreshed: Instant,
}

impl Length {
    pub(crate) fn new(attr: &Attr) -> Self {
        Self {
            server: attr.size,
            epoch: attr.truncate_epoch,
            buffered: 0,
            acked: None,
            sending: None,
            modified: None,
            gap: false,
            granted: Granted::of(attr),
            acked_since: None,
            refreshed: Instant::now(),
        }
    }

    /// Whether a write may go up to `end` without asking the server for room.
    pub(crate) fn has_room(&self, end: u64) -> bool {
        self.granted.is_none_or(|granted| end <= granted.end)
    }

    /// The length that this client's reads and callers see.
    pub(crate) fn size(&self) -> u64 {
        let end = |report: Option<Report>| report.map_or(0, |r| r.end);
        self.server
            .max(self.buffered)
            .max(end(self.acked))
            .max(end(self.sending))
    }

    /// The epoch as the server last told it.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// When the server last told.
    pub(crate) fn refreshed(&self) -> Instant {
        self.refreshed
    }

    /// A write from `start` up to `end` was accepted here.
    pub(crate) fn wrote(&mut self, start: u64, end: u64, now: SystemTime) {
        self.gap |= start > self.size();
        self.buffered = self.buffered.max(end);
        self.modified = Some(now);
    }

    /// The chains have everything up to `end` of one write; `buffered` is what still waits.
    pub(crate) fn acked(&mut self, end: u64, buffered: u64) {
        let mtime = self.modified.unwrap_or_else(SystemTime::now);
        let report = Report {
            end,
            epoch: self.epoch,
            mtime,
            sparse: std::mem::take(&mut self.gap),
        };
        self.acked = merge(self.acked, Some(report));
        self.acked_since.get_or_insert_with(Instant::now);
        self.buffered = buffered;
    }

    /// The file was changed by other means than a write, and is at least `end` bytes long now. It may have holes.
    pub(crate) fn changed(&mut self, end: u64, now: SystemTime) {
        self.note(end, now, true);
    }

    /// The file counts as changed, although its bytes are the same.
    pub(crate) fn touched(&mut self, now: SystemTime) {
        self.note(0, now, false);
    }

    fn note(&mut self, end: u64, now: SystemTime, sparse: bool) {
        self.modified = Some(now);
        let report = Report {
            end,
            epoch: self.epoch,
            mtime: now,
            sparse,
        };
        self.acked = merge(self.acked, Some(report));
        self.acked_since.get_or_insert_with(Instant::now);
    }

    /// A buffered write will never reach the chains; `buffered` is what still waits.
    pub(crate) fn dropped(&mut self, buffered: u64) {
        self.buffered = buffered;
    }

    /// Since when something waits to be reported.
    pub(crate) fn unreported_since(&self) -> Option<Instant> {
        self.acked_since
    }

    /// Takes what there is to report. Until [`Self::reported`] it counts as on its way.
    pub(crate) fn take_report(&mut self) -> Option<Report> {
        // A report whose caller was cancelled is still in `sending`.
        self.sending = merge(self.sending, self.acked.take());
        self.acked_since = None;
        self.sending
    }

    /// The report that was taken has arrived, or has to be made again.
    pub(crate) fn reported(&mut self, arrived: bool) {
        let sent = self.sending.take();
        if arrived {
            if self.acked.is_none() && self.buffered == 0 {
                self.modified = None;
            }
        } else if sent.is_some() {
            self.acked = merge(sent, self.acked);
            self.acked_since.get_or_insert_with(Instant::now);
        }
    }

    /// The caller has set the mtime: earlier writes no longer determine it, and reports of them leave it.
    pub(crate) fn set_mtime(&mut self, mtime: SystemTime) {
        let reports = self.acked.iter_mut().chain(&mut self.sending);
        reports.for_each(|report| report.mtime = mtime);
        let waits = self.buffered > 0 || self.acked.is_some() || self.sending.is_some();
        self.modified = waits.then_some(mtime);
    }

    /// Takes in an answer of the server. True if the file was truncated since the last one.
    pub(crate) fn learn(&mut self, attr: &Attr) -> bool {
        self.refreshed = Instant::now();
        // Answers come in any order; `None` is less than all.
        self.granted = match Granted::of(attr) {
            Some(told) => self.granted.max(Some(told)),
            None => None,
        };
        if attr.truncate_epoch > self.epoch {
            self.epoch = attr.truncate_epoch;
            self.server = attr.size;
            return true;
        }
        if attr.truncate_epoch == self.epoch {
            self.server = self.server.max(attr.size);
        }
        false
    }

    /// Puts what only this client knows into an answer of the server.
    pub(crate) fn overlay(&self, attr: &mut Attr) {
        attr.size = self.size();
        attr.truncate_epoch = self.epoch;
        let mut reports = self.acked.iter().chain(&self.sending);
        attr.sparse |= self.gap || reports.any(|report| report.sparse);
        if let Some(modified) = self.modified
            && modified > attr.modified()
        {
            attr.mtime = Some(pb::Time::from(modified));
            if modified > attr.changed() {
                attr.ctime = attr.mtime;
            }
        }
    }
}

fn merge(a: Option<Report>, b: Option<Report>) -> Option<Report> {
    match (a, b) {
        (Some(a), Some(b)) => Some(Report {
            end: a.end.max(b.end),
            // The older one: the server then looks at the chunks, which is right for both.
            epoch: a.epoch.min(b.epoch),
            mtime: a.mtime.max(b.mtime),
            sparse: a.sparse || b.sparse,
        }),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn attr(size: u64, truncate_epoch: u64) -> Attr {
        Attr {
            size,
            truncate_epoch,
            ..Attr::default()
        }
    }

    #[test]
    fn a_late_answer_never_shrinks_the_file_within_an_epoch() {
        let mut length = Length::new(&attr(0, 1));
        length.learn(&attr(100, 1));
        assert!(!length.learn(&attr(40, 1)));
        assert_eq!(length.size(), 100);
        assert!(length.learn(&attr(10, 2)));
        assert_eq!(length.size(), 10);
        length.learn(&attr(100, 1));
        assert_eq!(
            length.size(),
            10,
            "an answer from before the truncate is not believed"
        );
    }

    #[test]
    fn the_size_covers_writes_at_every_stage_of_their_way() {
        let mut length = Length::new(&attr(5, 1));
        length.wrote(0, 50, SystemTime::now());
        assert_eq!(length.size(), 50);
        length.acked(50, 0);
        assert_eq!(length.size(), 50);
        assert_eq!(
            length.take_report().map(|r| (r.end, r.epoch)),
            Some((50, 1))
        );
        assert_eq!(length.size(), 50);
        length.reported(false);
        assert_eq!(
            length.take_report().map(|r| r.end),
            Some(50),
            "a failed report is made again"
        );
        length.learn(&attr(50, 1));
        length.reported(true);
        assert_eq!((length.size(), length.take_report()), (50, None));
    }

    #[test]
    fn the_newest_grant_counts_in_whatever_order_answers_arrive() {
        let limited = |grant, granted| Attr {
            limited: true,
            grant,
            granted,
            ..attr(0, 1)
        };
        let mut length = Length::new(&attr(0, 1));
        assert!(length.has_room(u64::MAX));
        length.learn(&limited(1, 100));
        length.learn(&limited(1, 40));
        assert!(length.has_room(100) && !length.has_room(101));
        length.learn(&limited(2, 50));
        length.learn(&limited(1, 200));
        assert!(length.has_room(50) && !length.has_room(51));
        length.learn(&attr(0, 1));
        assert!(length.has_room(u64::MAX), "the quota is gone");
    }

    #[test]
    fn a_cancelled_report_is_not_lost() {
        let mut length = Length::new(&attr(0, 1));
        length.acked(50, 0);
        length.take_report();
        length.acked(70, 0);
        assert_eq!(length.take_report().map(|r| r.end), Some(70));
        length.reported(true);
        assert_eq!(length.take_report(), None);
    }

    #[test]
    fn ends_from_two_epochs_are_reported_under_the_older() {
        let mut length = Length::new(&attr(0, 1));
        length.acked(50, 0);
        length.learn(&attr(0, 2));
        length.acked(30, 0);
        assert_eq!(
            length.take_report().map(|r| (r.end, r.epoch)),
            Some((50, 1))
        );
    }

    #[test]
    fn a_write_that_leaves_something_out_is_reported_as_such() {
        let now = SystemTime::now();
        let sparse = |length: &mut Length| length.take_report().map(|r| r.sparse);
        let mut length = Length::new(&attr(5, 1));
        length.wrote(3, 10, now);
        length.wrote(10, 20, now);
        length.acked(20, 0);
        assert_eq!(sparse(&mut length), Some(false));
        length.reported(true);
        length.wrote(21, 30, now);
        length.acked(30, 0);
        assert_eq!(sparse(&mut length), Some(true));
        length.reported(false);
        length.wrote(30, 40, now);
        length.acked(40, 0);
        assert_eq!(sparse(&mut length), Some(true), "not arrived yet");
        length.reported(true);
        length.changed(0, now);
        assert_eq!(sparse(&mut length), Some(true));
    }

    #[test]
    fn a_change_without_bytes_is_reported_and_leaves_what_is_buffered() {
        let mut length = Length::new(&attr(5, 1));
        length.wrote(0, 50, SystemTime::now());
        let now = SystemTime::now() + Duration::from_secs(5);
        length.changed(20, now);
        assert_eq!(length.size(), 50);
        let report = length.take_report().map(|r| (r.end, r.epoch, r.mtime));
        assert_eq!(report, Some((20, 1, now)));
        length.reported(true);
        length.dropped(0);
        assert_eq!(length.size(), 5);
    }

    #[test]
    fn a_failed_write_leaves_the_length_it_did_not_reach() {
        let mut length = Length::new(&attr(5, 1));
        length.wrote(0, 50, SystemTime::now());
        length.dropped(0);
        assert_eq!(length.size(), 5);
    }

    #[test]
    fn unreported_writes_show_in_the_mtime() {
        let mut length = Length::new(&attr(5, 1));
        let now = SystemTime::now() + Duration::from_secs(5);
        length.wrote(0, 50, now);
        let mut seen = attr(5, 1);
        length.overlay(&mut seen);
        assert_eq!((seen.size, seen.modified()), (50, now));
    }
}
