//! `emberfs scrub`: how far the background scrub of each disk is, what it found, and a pass now.

use std::fmt::Write;
use std::time::Duration;

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::convert::chunk_key;
use emberfs_proto::ids::DiskId;
use emberfs_proto::pb;
use futures::future::join_all;
use serde::Serialize;

use crate::cli::ScrubArgs;
use crate::cluster_dir::storage_name;
use crate::failure::{Context, Exit, Failure, Result};
use crate::output::say;
use crate::progress::Progress;
use crate::rpc::{self, Seat};
use crate::show;

/// The shape of `--json`, for `--help`.
pub(crate) const JSON_HELP: &str = "\
Exit codes: 0 no damage is left, 1 some chunks cannot be repaired, 2 could not ask every server

JSON (fields are only ever added; times are milliseconds since 1970):
  disks        [{node, disk, path, found, repaired, unrepairable, last_found_ms, next_start_ms, running, last}];
               running and last are null or {started_ms, finished_ms, chunks, bytes, total_bytes, found,
               repaired, unrepairable}
  lost         [{node, target, inode, index, why}]: chunks that no replica has the bytes for
  findings     [{when_ms, node, path, chain, target, inode, index, pages, found_by, sources, failure}],
               the newest last, since each server's start; an empty failure: repaired from `sources`
  unreachable  [{node, why}]";

/// Pause between two looks at a running pass.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Findings in the table.
const SHOWN: usize = 10;

/// `emberfs scrub`.
pub(crate) async fn scrub(cluster: Option<String>, args: ScrubArgs) -> Result<Exit> {
    let seat = Seat::find(cluster, &args.dir)?;
    let address = &seat.address;
    let before = gather(address, &args).await.map_err(Failure::broken)?;
    if before.disks.is_empty() && before.unreachable.is_empty() {
        let what = "no disk matches; `emberfs status` lists nodes and disks";
        return Err(Failure::new(what.to_owned()));
    }
    let mut report = if args.start {
        start(address, &before).await?;
        gather(address, &args).await?
    } else {
        before.clone()
    };
    if args.wait {
        let progress = Progress::start("Scrubbing");
        while !report.is_over(&before, args.start) {
            progress.step(report.progress());
            tokio::time::sleep(LOOK_EVERY).await;
            report = gather(address, &args).await?;
        }
    }
    if args.json {
        say(serde_json::to_string_pretty(&report).context("cannot write JSON")?)?;
    } else {
        say(report.render())?;
    }
    Ok(if !report.unreachable.is_empty() {
        Exit::Broken
    } else if report.disks.iter().any(|disk| disk.unrepairable > 0) {
        Exit::Failure
    } else {
        Exit::Success
    })
}

/// The shape of `emberfs scrub --json`. Fields are added, never changed.
#[derive(Clone, Debug, Default, Serialize)]
struct Report {
    disks: Vec<Disk>,
    lost: Vec<Lost>,
    findings: Vec<Finding>,
    unreachable: Vec<Unreachable>,
}

#[derive(Clone, Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the shape of the JSON")]
struct Disk {
    node: u32,
    disk: String,
    path: String,
    found: u64,
    repaired: u64,
    unrepairable: u64,
    last_found_ms: u64,
    next_start_ms: u64,
    running: Option<Pass>,
    last: Option<Pass>,
}

#[derive(Clone, Debug, Serialize)]
struct Pass {
    started_ms: u64,
    finished_ms: u64,
    chunks: u64,
    bytes: u64,
    total_bytes: u64,
    found: u64,
    repaired: u64,
    unrepairable: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Lost {
    node: u32,
    target: u64,
    inode: u64,
    index: u32,
    why: String,
}

#[derive(Clone, Debug, Serialize)]
struct Finding {
    when_ms: u64,
    node: u32,
    path: String,
    chain: u32,
    target: u64,
    inode: u64,
    index: u32,
    pages: u32,
    found_by: String,
    sources: Vec<u64>,
    failure: String,
}

#[derive(Clone, Debug, Serialize)]
struct Unreachable {
    node: u32,
    why: String,
}

/// Asks every server that the filter leaves.
async fn gather(address: &str, args: &ScrubArgs) -> Result<Report> {
    let map = ClusterMap::try_from(&rpc::map(address).await?)?;
    let wanted = map
        .nodes
        .values()
        .filter(|node| args.node.is_none_or(|wanted| wanted == node.id.0));
    let answers = wanted.map(|node| async move {
        let ask = async {
            let mut admin = rpc::storage_admin(&node.admin_addr).await?;
            let request = admin.scrub_status(pb::ScrubStatusRequest {});
            rpc::answer(&storage_name(node.id.0 as usize), rpc::CALL_LIMIT, request).await
        };
        (node.id.0, ask.await)
    });
    let mut report = Report::default();
    for (node, answer) in join_all(answers).await {
        match answer {
            Ok(answer) => report.add(node, answer, args.disk.as_deref())?,
            Err(failure) => report.unreachable.push(Unreachable {
                node,
                why: failure.to_string(),
            }),
        }
    }
    report.findings.sort_by_key(|finding| finding.when_ms);
    Ok(report)
}

/// Begins a pass on every disk of the report.
async fn start(address: &str, report: &Report) -> Result<()> {
    let map = ClusterMap::try_from(&rpc::map(address).await?)?;
    for node in map.nodes.values() {
        let disks = report.disks.iter().filter(|disk| disk.node == node.id.0);
        let disks: Vec<_> = disks
            .filter_map(|disk| Some(DiskId::parse(&disk.disk)?.to_bytes()))
            .collect();
        if !disks.is_empty() {
            let mut admin = rpc::storage_admin(&node.admin_addr).await?;
            let request = admin.start_scrub(pb::StartScrubRequest { disks });
            rpc::answer(&storage_name(node.id.0 as usize), rpc::CALL_LIMIT, request).await?;
        }
    }
    Ok(())
}

impl Report {
    fn add(&mut self, node: u32, answer: pb::ScrubStatusReply, filter: Option<&str>) -> Result<()> {
        let mut paths = Vec::new();
        for scrub in answer.disks {
            let disk = DiskId::from_bytes(&scrub.disk)
                .unwrap_or_default()
                .to_string();
            if filter.is_some_and(|wanted| wanted != disk && wanted != scrub.path) {
                continue;
            }
            for lost in scrub.lost {
                let key = chunk_key(&lost.key)?;
                self.lost.push(Lost {
                    node,
                    target: lost.target,
                    inode: key.inode.0,
                    index: key.index.0,
                    why: lost.why,
                });
            }
            let care = scrub.care.unwrap_or_default();
            paths.push(scrub.path.clone());
            self.disks.push(Disk {
                node,
                disk,
                path: scrub.path,
                found: care.found,
                repaired: care.repaired,
                unrepairable: care.unrepairable,
                last_found_ms: care.last_found_ms,
                next_start_ms: care.next_start_ms,
                running: care.running.map(Pass::from),
                last: care.last.map(Pass::from),
            });
        }
        for finding in answer.findings {
            if paths.contains(&finding.path) {
                let key = chunk_key(&finding.key)?;
                self.findings.push(Finding {
                    when_ms: finding.when_ms,
                    node,
                    path: finding.path,
                    chain: finding.chain,
                    target: finding.target,
                    inode: key.inode.0,
                    index: key.index.0,
                    pages: finding.pages,
                    found_by: finding.found_by,
                    sources: finding.sources,
                    failure: finding.failure,
                });
            }
        }
        Ok(())
    }

    /// Nothing runs, and where a pass was begun, one has ended since `before`.
    fn is_over(&self, before: &Self, begun: bool) -> bool {
        let ended = |disk: &Disk| disk.last.as_ref().map_or(0, |last| last.finished_ms);
        self.disks.iter().all(|disk| {
            let was = before
                .disks
                .iter()
                .find(|b| b.disk == disk.disk)
                .map_or(0, ended);
            disk.running.is_none() && (!begun || ended(disk) > was)
        })
    }

    fn progress(&self) -> String {
        let running: Vec<_> = self
            .disks
            .iter()
            .filter_map(|disk| disk.running.as_ref())
            .collect();
        let sum = |of: fn(&Pass) -> u64| running.iter().map(|&pass| of(pass)).sum::<u64>();
        let (bytes, total) = (sum(|p| p.bytes), sum(|p| p.total_bytes));
        format!(
            "Scrubbing {}: {} of about {} ({}), {} repaired, {} unrepairable",
            show::count(running.len(), "disk"),
            show::bytes(bytes),
            show::bytes(total),
            show::percent(bytes, total),
            sum(|p| p.repaired),
            sum(|p| p.unrepairable),
        )
    }

    fn render(&self) -> String {
        let now = now_ms();
        let rows = self.disks.iter().map(|disk| {
            let last = disk.last.as_ref().map_or_else(
                || "never".to_owned(),
                |last| {
                    let ago = show::duration_ms(now.saturating_sub(last.finished_ms));
                    format!("{ago} ago, {}", show::bytes(last.bytes))
                },
            );
            let now = match (&disk.running, disk.next_start_ms) {
                (Some(pass), _) => format!(
                    "running, {} ({})",
                    show::percent(pass.bytes, pass.total_bytes),
                    show::bytes(pass.bytes)
                ),
                (None, 0) => "not scheduled".to_owned(),
                (None, next) => {
                    format!("next in {}", show::duration_ms(next.saturating_sub(now)))
                }
            };
            vec![
                storage_name(disk.node as usize),
                disk.path.clone(),
                last,
                now,
                disk.found.to_string(),
                disk.repaired.to_string(),
                disk.unrepairable.to_string(),
            ]
        });
        let header = [
            "node",
            "disk",
            "last pass",
            "now",
            "damaged",
            "repaired",
            "unrepairable",
        ];
        let mut out = show::table(&header, rows);
        for one in &self.unreachable {
            let name = storage_name(one.node as usize);
            let _ = write!(out, "\n{name} was not asked: {}", one.why);
        }
        if !self.findings.is_empty() {
            let skip = self.findings.len().saturating_sub(SHOWN);
            let rows = self.findings.iter().skip(skip).map(|finding| {
                let outcome = if finding.failure.is_empty() {
                    let from: Vec<_> = finding.sources.iter().map(u64::to_string).collect();
                    format!("repaired from target {}", from.join(", "))
                } else {
                    "NOT repaired".to_owned()
                };
                vec![
                    format!(
                        "{} ago",
                        show::duration_ms(now.saturating_sub(finding.when_ms))
                    ),
                    storage_name(finding.node as usize),
                    format!("{}:{}", finding.inode, finding.index),
                    finding.pages.to_string(),
                    finding.found_by.clone(),
                    outcome,
                ]
            });
            let header = ["found", "node", "inode:chunk", "pages", "by", "outcome"];
            let _ = write!(out, "\n\n{}", show::table(&header, rows));
        }
        for lost in self.lost.iter().take(SHOWN) {
            let _ = write!(out, "\nunrepairable: {}", lost.why);
        }
        out
    }
}

impl From<pb::ScrubPass> for Pass {
    fn from(pass: pb::ScrubPass) -> Self {
        Self {
            started_ms: pass.started_ms,
            finished_ms: pass.finished_ms,
            chunks: pass.chunks,
            bytes: pass.bytes,
            total_bytes: pass.total_bytes,
            found: pass.found,
            repaired: pass.repaired,
            unrepairable: pass.unrepairable,
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(running: bool, finished_ms: u64, unrepairable: u64) -> pb::ScrubStatusReply {
        let pass = |finished_ms| pb::ScrubPass {
            started_ms: 5,
            finished_ms,
            bytes: 1 << 20,
            total_bytes: 4 << 20,
            ..Default::default()
        };
        let key = || bytes::Bytes::copy_from_slice(&[0; 12]);
        pb::ScrubStatusReply {
            node: 1,
            disks: vec![pb::DiskScrub {
                disk: DiskId(7).to_bytes(),
                path: "/d".to_owned(),
                care: Some(pb::DiskCare {
                    found: 2,
                    repaired: 1,
                    unrepairable,
                    running: running.then(|| pass(0)),
                    last: (finished_ms > 0).then(|| pass(finished_ms)),
                    ..Default::default()
                }),
                lost: vec![pb::LostChunk {
                    target: 3,
                    key: key(),
                    why: "nobody has it".to_owned(),
                }],
            }],
            findings: vec![pb::Finding {
                path: "/d".to_owned(),
                key: key(),
                sources: vec![4],
                ..Default::default()
            }],
        }
    }

    fn report(running: bool, finished_ms: u64) -> Report {
        let mut report = Report::default();
        report
            .add(1, reply(running, finished_ms, 1), None)
            .expect("valid");
        report
    }

    #[test]
    fn waiting_ends_when_a_pass_that_was_begun_has_ended() {
        let before = report(false, 9);
        assert!(report(false, 9).is_over(&before, false));
        assert!(!report(true, 9).is_over(&before, false));
        assert!(
            !report(false, 9).is_over(&before, true),
            "it has not begun yet"
        );
        assert!(report(false, 12).is_over(&before, true));
        assert!(report(true, 9).progress().contains("25%"));
    }

    #[test]
    fn a_filter_names_a_disk_by_path_or_id_and_the_text_says_what_matters() {
        for filter in ["/d", &DiskId(7).to_string()] {
            let mut report = Report::default();
            report
                .add(1, reply(true, 9, 1), Some(filter))
                .expect("valid");
            assert_eq!(report.disks.len(), 1);
            let text = report.render();
            for what in [
                "running, 25%",
                "repaired from target 4",
                "unrepairable: nobody has it",
            ] {
                assert!(text.contains(what), "{text}");
            }
        }
        let mut none = Report::default();
        none.add(1, reply(true, 9, 1), Some("/other"))
            .expect("valid");
        assert!(none.disks.is_empty() && none.findings.is_empty());
    }

    #[test]
    fn the_json_shape_has_its_documented_fields() {
        let json = serde_json::to_value(report(true, 9)).expect("JSON");
        let fields = |value: &serde_json::Value| -> Vec<String> {
            value
                .as_object()
                .expect("an object")
                .keys()
                .cloned()
                .collect()
        };
        let mut all = fields(&json);
        for part in [
            &json["disks"][0],
            &json["disks"][0]["last"],
            &json["lost"][0],
            &json["findings"][0],
        ] {
            all.extend(fields(part));
        }
        for field in all {
            assert!(
                JSON_HELP.contains(field.as_str()),
                "{field} is not in --help"
            );
        }
    }
}
