//! How long full redundancy takes to come back, by number of nodes.

use emberfs_meta::cluster::placement::default_targets;
use emberfs_meta::cluster::placement::restore::{Estimate, Hardware, Limit, Study, study};
use serde::Serialize;

use crate::cli::PlanArgs;
use crate::failure::Result;
use crate::show;

/// The sizes of cluster that are shown, as parts of the largest.
const PARTS: [(u32, u32); 7] = [(1, 18), (1, 9), (1, 6), (1, 3), (1, 2), (2, 3), (1, 1)];

/// The shape of `emberfs chains plan --restore --json`. Fields are added, never changed.
#[derive(Debug, Serialize)]
pub(super) struct RestoreReport {
    disks: u32,
    replicas: u32,
    nic_gbit: u32,
    disk_size: u64,
    disk_read: u64,
    disk_write: u64,
    fill_percent: u32,
    share_percent: u32,
    sizes: Vec<Size>,
}

#[derive(Debug, Serialize)]
struct Size {
    nodes: u32,
    chains: usize,
    lost_bytes: u64,
    spread_seconds: Option<f64>,
    spread_limit: Option<&'static str>,
    return_seconds: f64,
    return_limit: &'static str,
}

impl RestoreReport {
    /// Plans a cluster of each size and estimates. Takes seconds.
    pub(super) fn study(nodes: u32, args: &PlanArgs) -> Result<Self> {
        let given = args.hardware;
        let hardware = Hardware {
            port: f64::from(given.nic_gbit) * 1e9 / 8.0,
            disk: given.disk_size as f64,
            read: given.disk_read as f64,
            write: given.disk_write as f64,
            fill: f64::from(given.fill) / 100.0,
            share: f64::from(given.share) / 100.0,
        };
        let fewest = args.replicas + 1;
        let mut sizes: Vec<u32> = PARTS
            .iter()
            .map(|(part, of)| (nodes * part / of).max(fewest).min(nodes))
            .collect();
        sizes.dedup();
        let size = |&nodes: &u32| {
            let wanted = args
                .targets_per_disk
                .unwrap_or_else(|| default_targets((nodes * args.disks) as usize));
            let study = study(nodes, args.disks, args.replicas, wanted, &hardware)?;
            Ok(Size::from(study))
        };
        Ok(Self {
            disks: args.disks,
            replicas: args.replicas,
            nic_gbit: given.nic_gbit,
            disk_size: given.disk_size,
            disk_read: given.disk_read,
            disk_write: given.disk_write,
            fill_percent: given.fill,
            share_percent: given.share,
            sizes: sizes.iter().map(size).collect::<Result<_>>()?,
        })
    }

    pub(super) fn render(&self) -> String {
        let time = |seconds: f64, limit: &str| {
            format!("{} ({limit})", show::duration_ms((seconds * 1000.0) as u64))
        };
        let rows = self.sizes.iter().map(|size| {
            let spread = size.spread_seconds.zip(size.spread_limit);
            vec![
                size.nodes.to_string(),
                size.chains.to_string(),
                show::bytes(size.lost_bytes),
                spread.map_or_else(|| "-".to_owned(), |(seconds, limit)| time(seconds, limit)),
                time(size.return_seconds, size.return_limit),
            ]
        });
        let header = [
            "nodes",
            "chains",
            "lost",
            "onto all others",
            "into one that returned",
        ];
        format!(
            "Each node: {} of {} ({}/s read, {}/s write), {}% full, {} Gbit/s; {} copies.\nResync takes {}% of what \
             serves clients; an empty node gives all, once it is there.\n\n{}",
            show::count(self.disks as usize, "disk"),
            show::bytes(self.disk_size),
            show::bytes(self.disk_read),
            show::bytes(self.disk_write),
            self.fill_percent,
            self.nic_gbit,
            self.replicas,
            self.share_percent,
            show::table(&header, rows),
        )
    }
}

impl From<Study> for Size {
    fn from(study: Study) -> Self {
        Self {
            nodes: study.nodes,
            chains: study.chains,
            lost_bytes: study.lost as u64,
            spread_seconds: study.spread.map(|spread| spread.seconds),
            spread_limit: study.spread.map(limit),
            return_seconds: study.returned.seconds,
            return_limit: limit(study.returned),
        }
    }
}

fn limit(estimate: Estimate) -> &'static str {
    match estimate.limit {
        Limit::Network => "network",
        Limit::Disk => "disk",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chains::plan::tests::arguments;

    #[test]
    fn sizes_grow_to_the_largest_and_time_shrinks() {
        let args = arguments(&["--nodes", "36", "--disks", "2", "--restore"]);
        let report = RestoreReport::study(36, &args).expect("a study");
        let sizes: Vec<u32> = report.sizes.iter().map(|size| size.nodes).collect();
        assert_eq!(sizes, [4, 6, 12, 18, 24, 36]);
        let (first, last) = (&report.sizes[0], &report.sizes[5]);
        assert!(last.spread_seconds.expect("room") < first.spread_seconds.expect("room"));
        assert!(last.spread_seconds.expect("room") < last.return_seconds);
        let shown = report.render();
        assert!(
            shown.contains("2 disks of 14.0 TiB") && shown.contains("(disk)"),
            "{shown}"
        );
    }

    #[test]
    fn a_cluster_too_small_for_its_copies_is_an_error() {
        let args = arguments(&["--nodes", "2", "--restore"]);
        let failure = RestoreReport::study(2, &args)
            .expect_err("too small")
            .to_string();
        assert!(failure.contains("needs 3 nodes"), "{failure}");
        let args = arguments(&["--nodes", "3", "--restore"]);
        let report = RestoreReport::study(3, &args).expect("a study");
        assert!(
            report.render().contains(" - "),
            "each of the others has a copy of everything"
        );
    }
}
