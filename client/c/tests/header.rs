//! `emberfs.h` compiles as C and as C++ without a warning and says what the Rust side says.

use std::fmt::Write as _;
use std::fs;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

use emberfs_c::abi::{
    ABI_VERSION, Cqe, MAX_ENTRIES, MAX_LENGTH, OP_FSYNC, OP_NOP, OP_READ, OP_WRITE, Options, Sqe,
    Stat,
};

/// Lines of a C program and what they must print.
#[derive(Default)]
struct Facts {
    program: String,
    expected: String,
}

impl Facts {
    fn add(&mut self, expression: &str, value: u64) {
        let print = format!("printf(\"%llu\\n\", (unsigned long long)({expression}));");
        writeln!(self.program, "{print}").expect("a string takes all");
        writeln!(self.expected, "{value}").expect("a string takes all");
    }
}

macro_rules! layout {
    ($facts:ident, $c:literal, $rust:ty, $($field:ident)+) => {
        $facts.add(concat!("sizeof(struct ", $c, ")"), size_of::<$rust>() as u64);
        $($facts.add(
            concat!("offsetof(struct ", $c, ", ", stringify!($field), ")"),
            offset_of!($rust, $field) as u64,
        );)+
    };
}

fn facts() -> Facts {
    let mut facts = Facts::default();
    layout!(facts, "emberfs_options", Options, size threads connect_timeout_ms io_timeout_ms memory_bytes);
    layout!(facts, "emberfs_stat", Stat, size mode inode length uid gid mtime_sec mtime_nsec nlink);
    layout!(facts, "emberfs_sqe", Sqe, op flags file buffer reserved buffer_offset length offset user_data);
    layout!(facts, "emberfs_cqe", Cqe, user_data result);
    for (name, value) in [
        ("EMBERFS_ABI_VERSION", u64::from(ABI_VERSION)),
        ("EMBERFS_MAX_LENGTH", MAX_LENGTH),
        ("EMBERFS_MAX_ENTRIES", u64::from(MAX_ENTRIES)),
        ("EMBERFS_OP_NOP", u64::from(OP_NOP)),
        ("EMBERFS_OP_READ", u64::from(OP_READ)),
        ("EMBERFS_OP_WRITE", u64::from(OP_WRITE)),
        ("EMBERFS_OP_FSYNC", u64::from(OP_FSYNC)),
    ] {
        facts.add(name, value);
    }
    facts
}

#[test]
fn the_header_is_c_and_cpp_and_has_the_layout_of_the_library() {
    let facts = facts();
    let program = format!(
        "#include <emberfs.h>\n#include <stdio.h>\nint main(void) {{\n{}return 0;\n}}\n",
        facts.program
    );
    let temp = tempfile::tempdir().expect("a temporary directory");
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    for (language, standard) in [("c", "-std=c11"), ("c++", "-std=c++11")] {
        let source = temp.path().join("facts");
        fs::write(&source, &program).expect("writable");
        let binary = temp.path().join("facts.out");
        let output = Command::new("clang")
            .args([
                "-Wall",
                "-Wextra",
                "-Wpedantic",
                "-Werror",
                standard,
                "-x",
                language,
            ])
            .arg("-I")
            .arg(&include)
            .arg(&source)
            .arg("-o")
            .arg(&binary)
            .output()
            .expect("clang is installed (make deps)");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "as {language}: {said}");
        let output = Command::new(&binary).output().expect("it was just built");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(printed, facts.expected, "as {language}");
    }
}
