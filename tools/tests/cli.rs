//! The outside of the binary: what scripts and people rely on, without a cluster.

use std::fs;
use std::process::{Command, Output};

fn emberfs(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_emberfs"));
    command.env_remove("EMBERFS_CLUSTER").args(arguments);
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_command_of_the_readme_exists_with_its_options() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = fs::read_to_string(readme).expect("there is a README");
    let mut seen = 0;
    for line in readme.lines().filter(|line| line.starts_with("emberfs ")) {
        let command = line.split('#').next().unwrap_or_default();
        let mut words = command.split_whitespace().skip(1);
        let verb = words.next().expect("a verb");
        let help = emberfs(&[verb, "--help"]);
        assert!(
            help.status.success(),
            "emberfs {verb} does not exist: {line}"
        );
        let help = text(&help.stdout);
        for option in words.filter(|word| word.starts_with('-')) {
            // `bench write` has options of its own; the verb's help names the workload.
            let known = help.contains(option) || verb == "bench";
            assert!(known, "emberfs {verb} has no {option}: {line}");
        }
        seen += 1;
    }
    assert!(seen >= 10, "the README lost its tour");
}

#[test]
fn failures_are_one_line_with_a_way_out_and_their_own_exit_code() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let dir = temp.path().join("none");
    let dir = dir.to_str().expect("UTF-8");
    let bad = temp.path().join("bad.toml");
    fs::write(&bad, "listen = \"x\"\nlease_mss = 5\n").expect("written");
    let bad = bad.to_str().expect("UTF-8");
    for (arguments, code, hint) in [
        (&["down", "--dir", dir][..], 1, "emberfs up"),
        (&["start", "--dir", dir, "storage-1"], 1, "emberfs up"),
        (
            &["up", "--dir", dir, "--storage", "2", "--replicas", "3"],
            1,
            "--storage 3",
        ),
        (&["status", "--dir", dir], 2, "--cluster"),
        (&["health", "--dir", dir], 2, "--cluster"),
        (&["fsck", "--dir", dir], 2, "--cluster"),
        (&["fsck", "--cluster", "127.0.0.1:1"], 2, "127.0.0.1:1"),
        (&["chains", "--dir", dir], 2, "--cluster"),
        (&["chains", "plan", "--dir", dir], 2, "--cluster"),
        (&["chains", "--cluster", "127.0.0.1:1"], 2, "127.0.0.1:1"),
        (&["chains", "plan", "--nodes", "2"], 1, "lower replicas"),
        (&["trash", "list", "--dir", dir], 2, "--cluster"),
        (&["rm", "--dir", dir, "-r", "/x"], 2, "--cluster"),
        (&["umount", dir], 1, "not mounted"),
        (
            &["mount", "127.0.0.1:1", dir, "-o", "rox"],
            1,
            "did you mean ro",
        ),
        (&["meta", "--config", bad], 1, "did you mean `lease_ms`"),
        (&["config", "check", bad], 1, ":2: unknown key `lease_mss`"),
        (&["storage", "--config", dir], 1, "cannot read"),
    ] {
        let output = emberfs(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
        assert!(
            stderr.starts_with("emberfs: ") && stderr.contains(hint),
            "{arguments:?}: {stderr}"
        );
    }
    assert!(
        !std::path::Path::new(dir).exists(),
        "a refused request left something behind"
    );
}

#[test]
fn an_unreachable_cluster_is_broken_and_json_says_so() {
    let output = emberfs(&["status", "--cluster", "127.0.0.1:1", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["status"], "broken");
    assert_eq!(json["problems"][0]["code"], "meta-unreachable");
}

#[test]
fn a_plan_needs_no_cluster_and_is_the_same_each_time() {
    let plan = || emberfs(&["chains", "plan", "--nodes", "25", "--disks", "8", "--json"]);
    let output = plan();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&json["nodes"], &json["disks"]), (&25.into(), &200.into()));
    assert_eq!(json["reads"]["ratio"], 1.0);
    assert_eq!(plan().stdout, output.stdout);
    let study = [
        "chains",
        "plan",
        "--nodes",
        "18",
        "--disks",
        "2",
        "--restore",
    ];
    let output = emberfs(&study);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("ONTO ALL OTHERS"));
}

#[test]
fn a_wrong_option_is_a_usage_error() {
    assert_eq!(emberfs(&["status", "--jsn"]).status.code(), Some(2));
    assert_eq!(emberfs(&["nonsense"]).status.code(), Some(2));
    let on = |keep| emberfs(&["trash", "on", "/x", "--keep", keep]);
    let wrong = on("7");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("such as 7d"));
    assert_eq!(emberfs(&["trash", "on", "/x"]).status.code(), Some(2));
    assert!(emberfs(&["--version"]).status.success());
}
