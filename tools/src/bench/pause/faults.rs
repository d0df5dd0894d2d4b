//! What is done to a cluster of this host while its users are watched. Every step is bounded: a cluster
//! that does not come back ends the measurement with the reason.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use emberfs_proto::cluster::{ClusterMap, PublicState};
use emberfs_proto::ids::NodeId;
use emberfs_proto::pb;
use rustix::process::Signal;
use tokio::runtime::Handle;

use crate::cli::PauseArgs;
use crate::cluster_dir::storage_name;
use crate::failure::{Context, Failure, Result, fail};
use crate::local::LocalCluster;
use crate::process::Running;
use crate::rpc;

use super::Event;

/// Undisturbed time before the first fault and after each.
const CALM: Duration = Duration::from_secs(1);
/// How long the cluster may take to notice a dead or silent server (a lease and more), to end one, and
/// to be whole again.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);
const EXIT_LIMIT: Duration = Duration::from_secs(20);
const HEAL_LIMIT: Duration = Duration::from_mins(2);
/// How often [`rest`] looks whether it should end early.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kill,
    Freeze,
    Restart,
}

/// One thing to do to one server.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    kind: Kind,
    victim: Victim,
    /// How long it stays away.
    down: Duration,
}

#[derive(Clone, Debug)]
enum Victim {
    Named(String),
    /// By its place in the first chain at that moment: from the front, or the last.
    Head,
    Middle,
    Tail,
}

/// All faults in order; every name is checked before anything is disturbed.
pub(super) fn plan(args: &PauseArgs, cluster: Option<&LocalCluster>) -> Result<Vec<Fault>> {
    let named = [&args.kill, &args.freeze, &args.restart];
    if !args.rolling && named.iter().all(|names| names.is_empty()) {
        return Ok(Vec::new());
    }
    let Some(cluster) = cluster else {
        return fail("servers can be disturbed only on the host that runs them: give --dir");
    };
    let known: Vec<_> = cluster.plan.storage_names().collect();
    let mut faults = Vec::new();
    let mut add = |kind, names: &[String]| -> Result<()> {
        for name in names {
            let victim = match name.as_str() {
                "head" => Victim::Head,
                "middle" => Victim::Middle,
                "tail" => Victim::Tail,
                name if known.iter().any(|known| known == name) => Victim::Named(name.to_owned()),
                name => {
                    let known = known.join(", ");
                    return fail(format!(
                        "no storage server {name} here: name one of {known}, or head, middle or tail of the first chain"
                    ));
                }
            };
            faults.push(Fault {
                kind,
                victim,
                down: Duration::from_secs(args.down),
            });
        }
        Ok(())
    };
    add(Kind::Kill, &args.kill)?;
    add(Kind::Freeze, &args.freeze)?;
    add(Kind::Restart, &args.restart)?;
    if args.rolling {
        add(Kind::Restart, &known)?;
    }
    Ok(faults)
}

/// Does one after the other while `go` says so.
pub(super) fn run(
    faults: &[Fault],
    cluster: Option<&LocalCluster>,
    clock: Instant,
    events: &Mutex<Vec<Event>>,
    go: impl Fn() -> bool,
) -> Result<()> {
    let Some(cluster) = cluster.filter(|_| !faults.is_empty()) else {
        return Ok(());
    };
    let _lock = cluster.dir.lock()?;
    let driver = Driver {
        cluster,
        address: cluster.plan.address(),
        clock,
        events,
    };
    let runtime = Handle::current();
    for fault in faults {
        rest(Instant::now() + CALM, &go);
        if !go() {
            break;
        }
        runtime.block_on(driver.carry_out(fault))?;
    }
    rest(Instant::now() + CALM, &go);
    Ok(())
}

/// Waits until `end`, or until `go` says no.
pub(super) fn rest(end: Instant, go: impl Fn() -> bool) {
    while go() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(LOOK));
    }
}

struct Driver<'a> {
    cluster: &'a LocalCluster,
    address: String,
    clock: Instant,
    events: &'a Mutex<Vec<Event>>,
}

impl Driver<'_> {
    /// Whatever goes wrong, and when the user has enough, nothing is left suspended or down.
    async fn carry_out(&self, fault: &Fault) -> Result<()> {
        let (name, role) = self.resolve(&fault.victim).await?;
        let Some(running) = self.cluster.process(&name).running().await? else {
            return fail(format!("{name} is not running: start it first"));
        };
        let outcome = tokio::select! {
            outcome = self.disturb(fault, &name, role, &running) => outcome,
            _ = tokio::signal::ctrl_c() => fail("interrupted"),
        };
        if outcome.is_err() {
            let _ = running.signal(Signal::CONT);
            self.cluster.start(&name).await?;
        }
        outcome
    }

    async fn disturb(
        &self,
        fault: &Fault,
        name: &str,
        role: &str,
        running: &Running,
    ) -> Result<()> {
        let from = self.clock.elapsed();
        match fault.kind {
            Kind::Kill => {
                running.signal(Signal::KILL)?;
                if !running.exits_within(EXIT_LIMIT).await? {
                    return fail(format!("{name} survives being killed; see `dmesg`"));
                }
                self.until(NOTICE_LIMIT, |map| !is_serving(map, name))
                    .await?;
                tokio::time::sleep(fault.down).await;
                self.note(format!("kill {name}{role}"), from)?;
            }
            Kind::Freeze => {
                running.signal(Signal::STOP)?;
                let noticed = self.until(NOTICE_LIMIT, |map| !is_serving(map, name)).await;
                tokio::time::sleep(fault.down).await;
                self.note(format!("silence {name}{role}"), from)?;
                let from = self.clock.elapsed();
                running.signal(Signal::CONT)?;
                noticed?;
                return self.heal(name, from).await;
            }
            Kind::Restart => {
                self.cluster.stop(name, false).await?;
                tokio::time::sleep(fault.down).await;
                self.note(format!("stop {name}{role}"), from)?;
            }
        }
        let from = self.clock.elapsed();
        self.cluster.start(name).await?;
        self.heal(name, from).await
    }

    async fn heal(&self, name: &str, from: Duration) -> Result<()> {
        self.until(HEAL_LIMIT, is_whole).await?;
        self.note(format!("return of {name}"), from)
    }

    fn note(&self, what: String, from: Duration) -> Result<()> {
        let to = self.clock.elapsed();
        let mut events = self
            .events
            .lock()
            .map_err(|_| Failure::new("a worker thread panicked"))?;
        events.push(Event { what, from, to });
        Ok(())
    }

    async fn resolve(&self, victim: &Victim) -> Result<(String, &'static str)> {
        let (role, pick): (_, fn(usize) -> usize) = match victim {
            Victim::Named(name) => return Ok((name.clone(), "")),
            Victim::Head => (" (head)", |_| 0),
            Victim::Middle => (" (middle)", |serving| serving / 2),
            Victim::Tail => (" (tail)", |serving| serving - 1),
        };
        let map = ClusterMap::try_from(&rpc::map(&self.address).await?)?;
        let Some(chain) = map.chains.values().next() else {
            return fail("the cluster has no chains yet: wait until `emberfs status` is healthy");
        };
        let serving: Vec<_> = map.serving(chain).collect();
        if serving.is_empty() {
            return fail(format!(
                "no replica serves chain {}: see `emberfs status`",
                chain.id
            ));
        }
        let node = serving[pick(serving.len())].node;
        Ok((storage_name(node.0 as usize), role))
    }

    /// Follows the cluster map until `wanted` holds.
    async fn until(&self, limit: Duration, wanted: impl Fn(&ClusterMap) -> bool) -> Result<()> {
        let follow = async {
            let mut client = rpc::cluster(&self.address).await?;
            let watch = client.watch_cluster(pb::WatchRequest::default()).await;
            let mut maps = watch.context("cannot follow the cluster map")?.into_inner();
            while let Some(map) = maps
                .message()
                .await
                .context("cannot follow the cluster map")?
            {
                if wanted(&ClusterMap::try_from(&map)?) {
                    return Ok(());
                }
            }
            fail("the metadata server closed the stream of cluster maps")
        };
        match tokio::time::timeout(limit, follow).await {
            Ok(result) => result,
            Err(_) => fail(format!(
                "the cluster did not change as expected within {} s: see `emberfs status`",
                limit.as_secs()
            )),
        }
    }
}

/// Every replica of every chain serves.
fn is_whole(map: &ClusterMap) -> bool {
    let serving = |t: &emberfs_proto::cluster::Target| t.state == PublicState::Serving;
    !map.targets.is_empty() && map.targets.values().all(serving)
}

/// Whether a target of the server serves.
fn is_serving(map: &ClusterMap, name: &str) -> bool {
    let here = |node: NodeId| storage_name(node.0 as usize) == name;
    map.targets
        .values()
        .any(|t| t.state == PublicState::Serving && here(t.node))
}
