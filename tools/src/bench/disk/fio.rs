//! fio as a subprocess.

use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use tokio::process::Command;

use crate::cli::EngineArgs;
use crate::failure::{Context, Result, fail};

use super::{Case, Sample};

/// The part of fio's JSON that counts.
#[derive(Debug, Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    read: Direction,
    write: Direction,
    /// Per cent of `elapsed`.
    usr_cpu: f64,
    sys_cpu: f64,
    /// Milliseconds.
    #[serde(rename = "job_runtime")]
    elapsed: u64,
}

#[derive(Debug, Deserialize)]
struct Direction {
    io_bytes: u64,
    /// Milliseconds.
    runtime: u64,
}

/// Says at once that fio is missing, not after the first measurement.
pub(super) async fn look() -> Result<()> {
    let version = Command::new("fio")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    match version {
        Ok(status) if status.success() => Ok(()),
        _ => fail("cannot run fio, which gives the floor: apt-get install fio, or give --no-fio"),
    }
}

/// One run on `file`, which the first one (the write) makes.
pub(super) async fn measure(
    file: &Path,
    case: Case,
    size: u64,
    args: &EngineArgs,
) -> Result<Sample> {
    let output = Command::new("fio")
        .args(arguments(file, case, size, args))
        .stdin(Stdio::null())
        .output()
        .await
        .context("cannot run fio")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return fail(format!(
            "fio failed; does this file system allow O_DIRECT? {said}"
        ));
    }
    sample(&output.stdout, case)
}

fn arguments(file: &Path, case: Case, size: u64, args: &EngineArgs) -> Vec<String> {
    let mode = match case {
        Case::Write => "write",
        Case::Read => "read",
        Case::RandomSmall | Case::RandomPage => "randread",
    };
    let mut all = vec![
        "--name=floor".to_owned(),
        format!("--filename={}", file.display()),
        format!("--size={size}"),
        format!("--rw={mode}"),
        format!("--bs={}", case.block()),
        format!("--iodepth={}", case.depth(args)),
        "--ioengine=io_uring".to_owned(),
        "--direct=1".to_owned(),
        "--output-format=json".to_owned(),
    ];
    match case {
        Case::Write => all.push("--end_fsync=1".to_owned()),
        Case::Read => {}
        Case::RandomSmall | Case::RandomPage => {
            all.push("--time_based".to_owned());
            all.push(format!("--runtime={}", args.seconds));
            // Any block at any time, as the engine's readers: no map of those that were read.
            all.push("--norandommap".to_owned());
        }
    }
    all
}

fn sample(json: &[u8], case: Case) -> Result<Sample> {
    // Notes of fio may come before the JSON.
    let from = json.iter().position(|byte| *byte == b'{').unwrap_or(0);
    let output: Output =
        serde_json::from_slice(&json[from..]).context("cannot understand fio's answer")?;
    let Some(job) = output.jobs.first() else {
        return fail("fio did nothing");
    };
    let side = if case == Case::Write {
        &job.write
    } else {
        &job.read
    };
    // The flush at the end is part of a write's time, but not of fio's own rate.
    let milliseconds = if case == Case::Write {
        side.runtime.max(job.elapsed)
    } else {
        side.runtime
    };
    Ok(Sample {
        bytes: side.io_bytes,
        seconds: milliseconds as f64 / 1000.0,
        cpu_seconds: (job.usr_cpu + job.sys_cpu) / 100.0 * job.elapsed as f64 / 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"note: both iodepth
{"fio version": "fio-3.39", "jobs": [{"jobname": "floor", "usr_cpu": 10.0, "sys_cpu": 40.0,
"job_runtime": 2000, "read": {"io_bytes": 1048576, "runtime": 500, "iops": 1.0},
"write": {"io_bytes": 4194304, "runtime": 1000}}]}"#;

    #[test]
    fn an_answer_of_fio_is_understood() {
        let read = sample(ANSWER.as_bytes(), Case::Read).expect("an answer");
        assert_eq!(read.bytes, 1 << 20);
        assert!((read.seconds - 0.5).abs() < 1e-9 && (read.cpu_seconds - 1.0).abs() < 1e-9);
        let write = sample(ANSWER.as_bytes(), Case::Write).expect("an answer");
        assert_eq!(write.bytes, 4 << 20);
        assert!((write.seconds - 2.0).abs() < 1e-9, "with its flush");
        assert!(sample(b"{\"jobs\": []}", Case::Read).is_err());
        assert!(sample(b"no", Case::Read).is_err());
    }
}
