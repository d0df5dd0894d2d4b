//! A process that is killed under load, again and again, on the same disk.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;

/// Where the child finds its disk.
pub(super) const DISK: &str = "EMBERFS_TEST_CRASH_DISK";
const POWER: &str = "EMBERFS_TEST_CRASH_POWER";
const CHUNKS: u64 = 6;
/// Chunk content beyond this is cut again.
const MAX_LEN: usize = 150_000;

type Effect = Box<dyn Fn(&mut Vec<u8>) + Send>;

/// What version `version` of a chunk does, by itself.
fn change(k: u64, version: u64) -> (Prepare, Effect) {
    let seed = k * 1_000_003 + version;
    let r = pattern(8, seed);
    let number = |i: usize| usize::from(r[i]) << 8 | usize::from(r[i + 1]);
    if r[0].is_multiple_of(5) {
        let len = number(1);
        let kind = PrepareKind::Truncate { len: len as u32 };
        return (prepare(version, kind), Box::new(move |c| c.resize(len, 0)));
    }
    let bytes = pattern(number(2) % 40_000 + 1, seed);
    let at = if r[0] % 5 < 3 { number(4) } else { 0 };
    let mut request = write(version, at as u32, &bytes);
    if r[0] % 5 == 1 {
        request = replace(version, &bytes);
        return (request, Box::new(move |c| c.clone_from(&bytes)));
    }
    (
        request,
        Box::new(move |c| {
            c.resize(c.len().max(at + bytes.len()), 0);
            c[at..at + bytes.len()].copy_from_slice(&bytes);
        }),
    )
}

fn expected(k: u64, version: u64) -> Vec<u8> {
    let mut content = Vec::new();
    for v in 1..=version {
        change(k, v).1(&mut content);
        assert!(content.len() <= MAX_LEN);
    }
    content
}

fn disk_config(disk: &Path, power: bool) -> EngineConfig {
    let durability = if power {
        Durability::Power
    } else {
        Durability::Process
    };
    EngineConfig {
        durability,
        cache_entries: 1,
        ..config(disk)
    }
}

/// The process that is killed: writes each chunk's versions one after the other, and says what was acknowledged.
#[test]
#[ignore = "run by the crash tests as a process of its own"]
fn child() {
    let disk = PathBuf::from(std::env::var_os(DISK).expect("only run by its parent"));
    let config = disk_config(&disk, std::env::var_os(POWER).is_some());
    let say = |what: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n@{what}").unwrap();
        out.flush().unwrap();
    };
    runtime().block_on(async {
        let engine = open(&config).await;
        engine.create_target(T).await.unwrap();
        let tasks: Vec<_> = (0..CHUNKS)
            .map(|k| {
                let engine = engine.clone();
                tokio::spawn(async move {
                    loop {
                        let meta = engine.meta(T, key(k)).await.unwrap();
                        let committed = meta.as_ref().map_or(0, |m| m.committed.0);
                        let version = committed + 1;
                        if meta.is_none_or(|m| m.pending.is_none()) {
                            engine
                                .prepare(T, key(k), change(k, version).0)
                                .await
                                .unwrap();
                            say(format!("p {k} {version}"));
                        }
                        commit(&engine, key(k), version).await.unwrap();
                        say(format!("c {k} {version}"));
                    }
                })
            })
            .collect();
        futures::future::join_all(tasks).await;
    });
}

/// Kills the child after `acks` acknowledgements; the highest version of each chunk that was acknowledged.
pub(super) fn run_and_kill(
    child: &str,
    disk: &Path,
    power: bool,
    acks: usize,
    seen: &mut HashMap<(String, u64), u64>,
) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", child, "--ignored", "--nocapture"]);
    command
        .env(DISK, disk)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if power {
        command.env(POWER, "1");
    }
    let mut child = command.spawn().unwrap();
    let mut left = acks;
    // To the end: what was acknowledged between the decision and the kill counts as well.
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(ack) = line.strip_prefix('@') else {
            continue;
        };
        let words: Vec<&str> = ack.split(' ').collect();
        let [kind, k, version] = words[..] else {
            continue;
        };
        let (Ok(k), Ok(version)) = (k.parse(), version.parse::<u64>()) else {
            continue;
        };
        let highest = seen.entry((kind.to_owned(), k)).or_default();
        *highest = version.max(*highest);
        left = left.saturating_sub(1);
        if left == 0 {
            child.kill().unwrap();
        }
    }
    assert_eq!(left, 0, "the child ended by itself");
    child.wait().unwrap();
}

fn crash_rounds(power: bool, rounds: u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = HashMap::new();
    for round in 0..rounds {
        let acks = usize::from(pattern(1, round + 77)[0]) + 1;
        run_and_kill(
            "engine::tests::crash::child",
            dir.path(),
            power,
            acks,
            &mut seen,
        );
        let config = disk_config(dir.path(), power);
        runtime().block_on(async {
            let engine = open(&config).await;
            sound(&engine).await;
            for k in 0..CHUNKS {
                let acknowledged =
                    |kind: &str| seen.get(&(kind.to_owned(), k)).copied().unwrap_or(0);
                let Some(meta) = engine.meta(T, key(k)).await.unwrap() else {
                    assert_eq!(acknowledged("p"), 0, "chunk {k} is lost");
                    continue;
                };
                let committed = meta.committed.0;
                let newest = meta.pending.as_ref().map_or(committed, |p| p.version.0);
                assert!(
                    committed >= acknowledged("c"),
                    "chunk {k}: a commit is lost"
                );
                assert!(newest >= acknowledged("p"), "chunk {k}: a prepare is lost");
                assert!(newest - committed <= 1);
                if committed > 0 {
                    let bytes = content(&engine, key(k), ReadVersion::Committed)
                        .await
                        .unwrap();
                    assert_eq!(bytes, expected(k, committed), "chunk {k} at {committed}");
                }
                let bytes = content(&engine, key(k), ReadVersion::Pending)
                    .await
                    .unwrap();
                assert_eq!(bytes, expected(k, newest), "chunk {k} pending {newest}");
            }
            engine.shutdown().await;
        });
    }
    let total: u64 = (0..CHUNKS)
        .filter_map(|k| seen.get(&("c".to_owned(), k)))
        .sum();
    assert!(
        total > rounds * 10,
        "only {total} commits: nothing was tested"
    );
}

#[test]
fn what_was_acknowledged_survives_kills_with_flushes() {
    crash_rounds(true, 4);
}

#[test]
fn what_was_acknowledged_survives_kills_without_flushes() {
    crash_rounds(false, 6);
}
