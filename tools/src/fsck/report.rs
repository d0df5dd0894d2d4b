//! What fsck found.

use std::fmt::Write;

use serde::Serialize;

use crate::show;

use super::compare::Fault;

/// Faults in JSON.
const MAX_FAULTS: usize = 1000;
/// Faults in the table.
const SHOWN: usize = 20;

/// The shape of `emberfs fsck --json`. Fields are added, never changed.
#[derive(Debug, Serialize)]
pub(super) struct FsckReport {
    status: &'static str,
    deep: bool,
    pub(super) chains: usize,
    pub(super) chunks: u64,
    pub(super) replicas: u64,
    pub(super) bytes: u64,
    inodes: usize,
    pub(super) skipped_replicas: u64,
    pub(super) unsettled: u64,
    faults: Vec<Fault>,
    more_faults: usize,
    /// Faults that `--repair` put right.
    pub(super) repaired: usize,
    /// Why others stay.
    pub(super) repair_failures: Vec<String>,
}

impl FsckReport {
    pub(super) fn new(deep: bool, chains: usize, inodes: usize) -> Self {
        Self {
            status: "clean",
            deep,
            chains,
            chunks: 0,
            replicas: 0,
            bytes: 0,
            inodes,
            skipped_replicas: 0,
            unsettled: 0,
            faults: Vec::new(),
            more_faults: 0,
            repaired: 0,
            repair_failures: Vec::new(),
        }
    }

    /// Adds what is wrong, and how much more was not looked at closely.
    pub(super) fn add_faults(&mut self, mut faults: Vec<Fault>, overflow: usize) {
        self.more_faults = faults.len().saturating_sub(MAX_FAULTS) + overflow;
        faults.truncate(MAX_FAULTS);
        self.faults = faults;
        if !self.is_clean() {
            self.status = "differences";
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.faults.is_empty() && self.more_faults == 0
    }

    pub(super) fn render(&self) -> String {
        let how = if self.deep {
            "read from disk and compared"
        } else {
            "compared by their records"
        };
        let mut out = format!(
            "{}: {} chunks ({} replicas, {}) of {} files on {} {how}",
            if self.is_clean() {
                "CLEAN"
            } else {
                "DIFFERENCES"
            },
            self.chunks,
            self.replicas,
            show::bytes(self.bytes),
            self.inodes,
            show::count(self.chains, "chain"),
        );
        if self.skipped_replicas > 0 {
            let skipped = show::count(self.skipped_replicas as usize, "replica");
            let _ = write!(
                out,
                "\n  not looked at: {skipped} that are down (emberfs status)"
            );
        }
        if self.unsettled > 0 {
            let _ = write!(
                out,
                "\n  not judged: {} that are being written or lie beyond the known length of files that are",
                show::count(self.unsettled as usize, "chunk")
            );
        }
        if self.repaired > 0 {
            let repaired = show::count(self.repaired, "fault");
            let _ = write!(out, "\n  repaired: {repaired}");
        }
        for failure in self.repair_failures.iter().take(SHOWN) {
            let _ = write!(out, "\n  not repaired: {failure}");
        }
        if !self.faults.is_empty() {
            let rows = self.faults.iter().take(SHOWN).map(|fault| {
                vec![
                    fault.code.to_owned(),
                    fault.chain.to_string(),
                    fault.inode.to_string(),
                    fault.index.to_string(),
                    fault.what.clone(),
                    fault.repair.clone(),
                ]
            });
            let table = show::table(
                &["fault", "chain", "inode", "chunk", "what", "--repair would"],
                rows,
            );
            let _ = write!(out, "\n\n{table}");
        }
        let hidden = self.faults.len().saturating_sub(SHOWN) + self.more_faults;
        if hidden > 0 {
            let _ = write!(
                out,
                "\n… and {hidden} more (--json lists up to {MAX_FAULTS})"
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberfs_proto::ids::ChunkKey;

    #[test]
    fn a_clean_report_says_so_and_faults_are_listed_and_counted() {
        let mut report = FsckReport::new(true, 2, 1);
        assert!(report.is_clean() && report.render().starts_with("CLEAN"));
        let fault = |i: u32| {
            Fault::new(
                "orphan",
                1,
                ChunkKey::new(9u64, i),
                "no file".to_owned(),
                "remove".to_owned(),
            )
        };
        report.add_faults((0..25).map(fault).collect(), 3);
        assert!(!report.is_clean());
        let text = report.render();
        assert!(
            text.starts_with("DIFFERENCES") && text.contains("… and 8 more"),
            "{text}"
        );
        assert_eq!(text.matches("orphan").count(), SHOWN);
    }

    #[test]
    fn the_json_shape_has_its_documented_fields() {
        let mut report = FsckReport::new(true, 2, 1);
        let key = ChunkKey::new(9u64, 1u32);
        let fault = Fault::new("orphan", 1, key, "no file".to_owned(), "remove".to_owned());
        report.add_faults(vec![fault], 0);
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["status"], "differences");
        let fault = json["faults"][0].as_object().expect("an object").keys();
        for field in json.as_object().expect("an object").keys().chain(fault) {
            assert!(
                crate::fsck::JSON_HELP.contains(field.as_str()),
                "{field} is not in --help"
            );
        }
    }
}
