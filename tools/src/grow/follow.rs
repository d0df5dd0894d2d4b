//! Watching replicas move.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use emberfs_proto::ids::DiskId;
use emberfs_proto::pb;

use crate::cluster_dir::storage_name;
use crate::failure::{Exit, Failure, Result, fail};
use crate::output::say;
use crate::progress::Progress;
use crate::rpc;
use crate::show;

/// How long the manager may take to answer a wish: right after its start it first hears its nodes.
pub(super) const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// How long the manager may be silent before this verb gives up watching.
const PATIENCE: Duration = Duration::from_mins(2);
/// Moves that a plan lists.
const LISTED: usize = 40;
/// Width of the bar, in characters.
const BAR: usize = 20;

/// A plan for people.
pub(super) fn describe(plan: &pb::PlanReply) -> String {
    if plan.moves.is_empty() && plan.stuck == 0 {
        return "Nothing has to move".to_owned();
    }
    let bytes = plan.moves.iter().map(|m| m.bytes).sum();
    let mut out = format!(
        "{} to move, about {}",
        show::count(plan.moves.len(), "replica"),
        show::bytes(bytes)
    );
    let rows = plan.moves.iter().take(LISTED).map(|m| {
        vec![
            m.chain.to_string(),
            place(m.from_node, &m.from_disk),
            place(m.to_node, &m.to_disk),
            show::bytes(m.bytes),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if !rows.is_empty() {
        out.push('\n');
        out.push_str(&show::table(&["chain", "from", "to", "about"], rows));
    }
    if plan.moves.len() > LISTED {
        // Writing to a string cannot fail.
        let _ = write!(out, "\nand {} more", plan.moves.len() - LISTED);
    }
    if plan.stuck > 0 {
        let _ = write!(
            out,
            "\n{} replicas have nowhere to go: add a node or a disk",
            plan.stuck
        );
    }
    out
}

fn place(node: u32, disk: &[u8]) -> String {
    let disk = DiskId::from_bytes(disk)
        .map(|id| id.to_string())
        .unwrap_or_default();
    format!(
        "{} disk/{}",
        storage_name(node as usize),
        disk.get(..8).unwrap_or_default()
    )
}

/// Watches until nothing is left to move.
pub(super) async fn follow(address: &str, first: &pb::PlanReply, done: &str) -> Result<Exit> {
    let progress = Progress::start("Moving replicas");
    let mut watch = Watch::new(first);
    let mut plan = first.clone();
    let mut heard = Instant::now();
    let mut said = String::new();
    while !plan.moves.is_empty() {
        progress.step(watch.line(&plan));
        if plan.waits_for != said {
            said.clone_from(&plan.waits_for);
            if !said.is_empty() {
                progress.note(&format!("Waiting: {said}"));
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
        match look(address).await {
            Ok(next) => {
                heard = Instant::now();
                plan = next;
            }
            Err(failure) if heard.elapsed() > PATIENCE => {
                return fail(format!(
                    "{failure}; replicas go on moving once it is back: `emberfs status`"
                ));
            }
            Err(_) => {}
        }
    }
    drop(progress);
    if plan.stuck > 0 {
        return Err(Failure::new(format!(
            "{} replicas have nowhere to go: add a node (`emberfs node add`) or a disk (`emberfs disk add`)",
            plan.stuck
        )));
    }
    say(format_args!(
        "{done}; {} moved in {}",
        show::count(watch.total, "replica"),
        show::duration_ms(watch.started.elapsed().as_millis() as u64)
    ))?;
    Ok(Exit::Success)
}

async fn look(address: &str) -> Result<pb::PlanReply> {
    let mut client = rpc::cluster(address).await?;
    rpc::answer(address, rpc::CALL_LIMIT, client.plan(pb::PlanRequest {})).await
}

/// What was seen so far.
struct Watch {
    started: Instant,
    /// Moves in all; a plan may grow when something fails meanwhile.
    total: usize,
}

impl Watch {
    fn new(first: &pb::PlanReply) -> Self {
        Self {
            started: Instant::now(),
            total: first.moves.len(),
        }
    }

    fn line(&mut self, plan: &pb::PlanReply) -> String {
        let left = plan.moves.len();
        self.total = self.total.max(left);
        let moved = self.total - left;
        let begun = plan.moves.iter().filter(|m| m.target != 0).count();
        let bytes: u64 = plan.moves.iter().map(|m| m.bytes).sum();
        let filled = moved * BAR / self.total.max(1);
        let eta = match moved {
            0 => String::new(),
            _ => {
                let ms = self.started.elapsed().as_millis() as u64 * left as u64 / moved as u64;
                format!(", ready in about {}", show::duration_ms(ms))
            }
        };
        format!(
            "Moving replicas [{}{}] {moved} of {} moved, {begun} under way, about {} left{eta}",
            "=".repeat(filled),
            " ".repeat(BAR - filled),
            self.total,
            show::bytes(bytes),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(moves: usize, begun: usize) -> pb::PlanReply {
        let one = |i| pb::PlannedMove {
            chain: i as u32 + 1,
            target: u64::from(i < begun),
            from_node: 1,
            to_node: 2,
            bytes: 1 << 20,
            ..Default::default()
        };
        pb::PlanReply {
            moves: (0..moves).map(one).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn progress_counts_what_is_left_and_never_goes_beyond_the_whole() {
        let mut watch = Watch::new(&plan(4, 0));
        let line = watch.line(&plan(3, 2));
        assert!(
            line.contains("1 of 4 moved, 2 under way, about 3.0 MiB left"),
            "{line}"
        );
        assert!(line.contains("[=====               ]"), "{line}");
        assert!(watch.line(&plan(6, 1)).contains("0 of 6 moved"));
    }

    #[test]
    fn a_plan_names_chain_source_and_destination() {
        assert_eq!(describe(&plan(0, 0)), "Nothing has to move");
        let shown = describe(&plan(2, 0));
        assert!(
            shown.starts_with("2 replicas to move, about 2.0 MiB\n"),
            "{shown}"
        );
        assert!(
            shown.contains("storage-1") && shown.contains("storage-2"),
            "{shown}"
        );
        assert!(describe(&plan(LISTED + 3, 0)).contains("and 3 more"));
    }
}
