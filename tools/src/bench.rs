//! `emberfs bench`: a few honest numbers about a cluster, through the native client, or about any
//! directory (a mount, a local disk) for comparison.
//!
//! Data is random, so that nothing below can compress it away; writes end with fsync and count it;
//! reads start with dropped caches. CPU time is that of this process and, for a cluster on this host,
//! of all its processes.
//!
//! Floors are measured in the same run: [`disk`] takes the chunk engine and fio in turn,
//! [`floor`] moves checksummed bytes over loopback.

mod append;
mod batch;
mod checkpoint;
mod disk;
mod floor;
mod incast;
mod latency;
mod loader;
mod meter;
mod pause;
mod publish;
mod randread;
mod report;
mod small;
mod stream;
mod subject;

use crate::cli::{BenchArgs, DirArg, Workload};
use crate::cluster_dir::MOUNT;
use crate::failure::{Context, Exit, Failure, Result, fail};
use crate::local::LocalCluster;
use crate::output::say;
use crate::progress::Progress;
use crate::rpc::Seat;

use meter::{Meter, Spent};
use report::BenchReport;
use subject::{DirSubject, NativeSubject, Subject};

/// `emberfs bench write|read|meta|pause`.
pub(crate) async fn bench(cluster: Option<String>, args: BenchArgs) -> Result<Exit> {
    for (given, option) in [
        (args.direct, "--direct"),
        (args.drop_caches.is_some(), "--drop-caches"),
    ] {
        if given && args.path.is_none() {
            return fail(format!(
                "{option} is about files of a directory: give --path"
            ));
        }
    }
    match &args.workload {
        Workload::Disk(_) | Workload::Floor(_) | Workload::Incast(_) | Workload::Report(_) => {
            return alone(args).await;
        }
        _ => {}
    }
    let dir = DirArg {
        dir: args.dir.clone(),
    };
    let seat = match &args.path {
        Some(_) => None,
        None => Some(Seat::find(cluster, &dir)?),
    };
    // A mount of the cluster in --dir is measured through --path: its servers' time counts as well.
    let local = match &seat {
        Some(seat) => seat.local.clone(),
        None => Seat::find(None, &dir).ok().and_then(|seat| seat.local),
    };
    let local = local.map(|(dir, plan)| LocalCluster { dir, plan });
    let (servers, mounts) = match &local {
        Some(cluster) => pids(cluster).await?,
        None => Default::default(),
    };
    let progress = Progress::start("Measuring");
    let meter = Meter::new()
        .and_those(servers, mounts)
        .and_those_in(args.pids.clone());
    let (path, workload) = (args.path.clone(), args.workload.clone());
    let work = move || -> Result<BenchReport> {
        let subject: Box<dyn Subject> = match (path, seat) {
            (Some(path), _) => {
                // Between two reads only the file itself is forgotten, not all that the machine knows.
                let root = rustix::process::geteuid().is_root();
                let often = matches!(workload, Workload::Pause(_) | Workload::Loader(_));
                let subject = DirSubject::new(&path, root && !often, args.direct)?;
                Box::new(subject.dropping_caches_by(args.drop_caches))
            }
            (None, Some(seat)) => Box::new(NativeSubject::connect(&seat.address)?),
            (None, None) => {
                return Err(Failure::new("nothing to measure: give --cluster or --path"));
            }
        };
        let report = measure(subject.as_ref(), workload, local.as_ref(), &meter);
        subject.finish();
        report
    };
    let report = blocking(work).await?;
    drop(progress);
    print(&report, args.json, || report.render())
}

/// What needs no cluster and no directory with files.
async fn alone(args: BenchArgs) -> Result<Exit> {
    let progress = Progress::start("Measuring");
    match args.workload {
        Workload::Disk(disk) => {
            let Some(path) = &args.path else {
                return fail("say where: give --path, a directory on the disk to measure");
            };
            let report = disk::run(path, &disk).await?;
            drop(progress);
            print(&report, args.json, || report.render())
        }
        Workload::Floor(floor) => {
            let report = blocking(move || floor::run(&floor)).await?;
            drop(progress);
            print(&report, args.json, || report.render())
        }
        Workload::Incast(incast) => {
            let report = blocking(move || Ok(incast::run(&incast))).await?;
            drop(progress);
            print(&report, args.json, || report.render())
        }
        Workload::Report(publish) => {
            let exit = blocking(move || publish::run(&publish)).await;
            drop(progress);
            exit
        }
        _ => fail("this workload needs a cluster or a directory"),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("the measurement broke off")?
}

fn print(report: &impl serde::Serialize, json: bool, render: impl Fn() -> String) -> Result<Exit> {
    if json {
        say(serde_json::to_string_pretty(report).context("cannot write JSON")?)?;
    } else {
        say(render())?;
    }
    Ok(Exit::Success)
}

fn measure(
    subject: &dyn Subject,
    workload: Workload,
    local: Option<&LocalCluster>,
    meter: &Meter,
) -> Result<BenchReport> {
    let mut report = BenchReport::new(subject.describe());
    match workload {
        Workload::Write(args) => stream::write(subject, &args, meter, &mut report)?,
        Workload::Read(args) => stream::read(subject, &args, meter, &mut report)?,
        Workload::Append(args) => append::run(subject, &args, meter, &mut report)?,
        Workload::Batch(args) => batch::run(subject, &args, meter, &mut report)?,
        Workload::Meta(args) => small::run(subject, &args, meter, &mut report)?,
        Workload::Pause(args) => pause::run(subject, &args, local, meter, &mut report)?,
        Workload::Randread(args) => randread::run(subject, &args, meter, &mut report)?,
        Workload::Checkpoint(args) => checkpoint::run(subject, &args, meter, &mut report)?,
        Workload::Loader(args) => loader::run(subject, &args, meter, &mut report)?,
        Workload::Disk(_) | Workload::Floor(_) | Workload::Incast(_) | Workload::Report(_) => {
            return fail("this workload needs no cluster and no directory");
        }
    }
    Ok(report)
}

/// Processes that run: servers, and the mount.
async fn pids(cluster: &LocalCluster) -> Result<(Vec<i32>, Vec<i32>)> {
    let (mut servers, mut mounts) = (Vec::new(), Vec::new());
    for process in cluster.processes() {
        let pids = if process.name() == MOUNT {
            &mut mounts
        } else {
            &mut servers
        };
        pids.extend(process.running().await?.map(|running| running.pid()));
    }
    Ok((servers, mounts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{
        AppendArgs, BatchArgs, CheckpointArgs, LoaderArgs, PauseArgs, RandreadArgs, ReadArgs,
        Shape, SmallArgs, StreamArgs,
    };

    #[test]
    fn every_workload_runs_on_a_directory_and_leaves_nothing_behind() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let stream = StreamArgs {
            size: 3 << 19,
            block: 1 << 20,
            jobs: 2,
        };
        let append = AppendArgs {
            block: 5000,
            seconds: 1,
        };
        let small = SmallArgs {
            files: 10,
            size: 4096,
            beside: 5,
            jobs: 3,
        };
        let pause = PauseArgs {
            seconds: 1,
            block: 64 << 10,
            size: 1 << 20,
            kill: Vec::new(),
            freeze: Vec::new(),
            restart: Vec::new(),
            rolling: false,
            down: 0,
        };
        let batch = BatchArgs {
            files: 21,
            size: 5000,
            batch: 4,
            jobs: 2,
        };
        let randread = RandreadArgs {
            size: 3 << 19,
            block: 12 << 10,
            jobs: 2,
            seconds: 1,
        };
        let checkpoint = CheckpointArgs {
            ranks: 3,
            shard: 100_000,
            rounds: 2,
            block: 64 << 10,
        };
        let loader = LoaderArgs {
            shape: Shape::Resnet50,
            accelerators: 2,
            readers: 2,
            seconds: 1,
            files: Some(3),
            scale: 100,
            compute: 1.0,
        };
        for (workload, phases) in [
            (Workload::Write(stream), &["write"][..]),
            (Workload::Read(ReadArgs { stream, readers: 3 }), &["read"]),
            (Workload::Append(append), &["append"]),
            (Workload::Meta(small), &["create", "stat", "read", "unlink"]),
            (Workload::Pause(pause), &["read", "write"]),
            (Workload::Batch(batch), &["create", "fetch"]),
            (Workload::Randread(randread), &["randread"]),
            (Workload::Checkpoint(checkpoint), &["save", "restore"]),
            (Workload::Loader(loader), &["load"]),
        ] {
            let subject = DirSubject::new(temp.path(), false, false).expect("a directory");
            let report = measure(&subject, workload, None, &Meter::new()).expect("measured");
            subject.finish();
            let json = serde_json::to_value(&report).expect("JSON");
            let names: Vec<_> = json["phases"]
                .as_array()
                .expect("an array")
                .iter()
                .collect();
            let names: Vec<_> = names
                .iter()
                .map(|p| p["phase"].as_str().unwrap_or(""))
                .collect();
            assert_eq!(names, phases);
        }
        assert_eq!(std::fs::read_dir(temp.path()).expect("there").count(), 0);
    }
}
