//! Programs that training hosts run on a mount every day: databases, version control, archives, memory maps.

use std::process::Command;

use anyhow::{Result, ensure};
use emberfs_tests::{TestCluster, run};

/// Runs a script in a fresh directory of a mount.
fn script(interpreter: &[&str], text: &str) -> Result<()> {
    let cluster = TestCluster::start(3, 3)?;
    let dir = cluster.mount().join("work");
    std::fs::create_dir(&dir)?;
    let mut command = Command::new(interpreter[0]);
    command.args(&interpreter[1..]).arg(text).current_dir(&dir);
    // Nothing of who runs the test changes what the programs do.
    command.env("HOME", &dir).env("GIT_CONFIG_NOSYSTEM", "1");
    let outcome = run(&mut command)?;
    ensure!(
        outcome.code == 0,
        "exit code {}\n{}\n{}",
        outcome.code,
        outcome.stdout,
        outcome.stderr
    );
    Ok(())
}

#[test]
fn sqlite_keeps_its_promises_in_both_journal_modes() -> Result<()> {
    script(
        &["python3", "-c"],
        r#"
import multiprocessing, sqlite3

def work(path, name):
    db = sqlite3.connect(path, timeout=60)
    for number in range(60):
        with db:
            db.execute("insert into t values (?, ?, ?)", (name, number, "x" * number * 10))
    db.close()

for mode in ("delete", "wal"):
    path = mode + ".db"
    db = sqlite3.connect(path)
    got = db.execute("pragma journal_mode=" + mode).fetchone()[0]
    assert got == mode, got
    db.execute("create table t (name text, number int, filler text)")
    db.commit()
    db.close()
    workers = [multiprocessing.Process(target=work, args=(path, name)) for name in "ab"]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    assert all(worker.exitcode == 0 for worker in workers), [w.exitcode for w in workers]
    db = sqlite3.connect(path)
    assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
    rows = db.execute("select name, count(*), sum(number) from t group by name order by name").fetchall()
    assert rows == [("a", 60, 1770), ("b", 60, 1770)], rows
"#,
    )
}

#[test]
fn version_control_and_archives_find_what_they_stored() -> Result<()> {
    script(
        &["sh", "-c"],
        r#"
set -e
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q repo; cd repo
for dir in a b c; do
    mkdir -p $dir/deep
    for file in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do seq $file 400 > $dir/deep/file-$file; done
done
ln -s a/deep/file-1 link
chmod +x b/deep/file-2
git add -A; git commit -qm one
git mv a/deep moved; sed -i s/7/seven/ b/deep/*; git commit -qam two
git branch side HEAD~1; git checkout -q side; echo side > side; git add side; git commit -qm side
git checkout -q -; git merge -q -m merged side
cd ..
git clone -q repo clone
git -C clone gc -q
for where in repo clone; do
    git -C $where fsck --strict --full
    test -z "$(git -C $where status --porcelain)"
done
tar cf repo.tar repo; mkdir untar; tar xf repo.tar -C untar; diff -r --no-dereference repo untar/repo
rsync -aH repo/ synced/; rsync -aHn --itemize-changes repo/ synced/ | (! grep .)
"#,
    )
}

#[test]
fn memory_maps_of_tensors_read_and_write() -> Result<()> {
    script(
        &["python3", "-c"],
        r#"
import array, json, mmap, os, struct

# Safetensors: a length, a header in JSON, then tensors one after the other.
tensors = {str(n): array.array("f", [n + i / 7 for i in range(100_000)]) for n in range(8)}
header, at = {}, 0
for name, tensor in tensors.items():
    size = len(tensor) * 4
    header[name] = {"dtype": "F32", "shape": [len(tensor)], "data_offsets": [at, at + size]}
    at += size
text = json.dumps(header).encode()
with open("model.tmp", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        tensor.tofile(file)
    file.flush()
    os.fsync(file.fileno())
os.rename("model.tmp", "model.safetensors")
with open("model.safetensors", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
    (length,) = struct.unpack("<Q", view[:8])
    found = json.loads(view[8:8 + length])
    for name, tensor in tensors.items():
        begin, end = (8 + length + at for at in found[name]["data_offsets"])
        assert view[begin:end] == tensor.tobytes(), name

# A map that is written to, as of numpy.memmap(mode="w+").
with open("map", "w+b") as file:
    file.truncate(8 << 20)
    with mmap.mmap(file.fileno(), 0) as view:
        for at in range(0, len(view), 65_537):
            view[at:at + 4] = struct.pack("<I", at)
        view.flush()
with open("map", "rb") as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    data = file.read()
for at in range(0, len(data), 65_537):
    assert data[at:at + 4] == struct.pack("<I", at), at
"#,
    )
}
