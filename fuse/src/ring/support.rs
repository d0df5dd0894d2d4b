//! Whether rings can be used here, and how large they are.

use std::io;

use emberfs_proto::{Error, ErrorCode, Result};

use crate::MountOptions;

/// The switch of the kernel's module.
pub(crate) const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// CPUs that the kernel may ever have; it numbers queues by them.
const POSSIBLE_CPUS: &str = "/sys/devices/system/cpu/possible";

/// Most entries of a queue.
const MAX_ENTRIES: usize = 8;
/// Fewest entries of a queue: one request must not stand in another's way.
const MIN_ENTRIES: usize = 2;
/// Entries of all queues, 1 MiB each, as far as [`MIN_ENTRIES`] allows.
const TOTAL_ENTRIES: usize = 64;

/// Entries per queue.
pub(super) fn entries(cpus: u16) -> usize {
    (TOTAL_ENTRIES / usize::from(cpus.max(1))).clamp(MIN_ENTRIES, MAX_ENTRIES)
}

/// Says why not, or how many queues the kernel wants.
pub(super) fn check(options: &MountOptions) -> Result<u16> {
    if options.auto_unmount || !rustix::process::geteuid().is_root() {
        return Err(refused(
            "needs root and no auto_unmount: the helper fusermount3 cannot mount it",
        ));
    }
    check_parameter(std::fs::read_to_string(PARAMETER))?;
    let cpus = std::fs::read_to_string(POSSIBLE_CPUS).map(|text| count(&text));
    match cpus {
        Ok(Some(cpus)) => Ok(cpus),
        _ => Err(refused(&format!(
            "cannot tell the CPUs from {POSSIBLE_CPUS}"
        ))),
    }
}

fn check_parameter(value: io::Result<String>) -> Result<()> {
    match value {
        Ok(value) if value.trim() == "Y" => Ok(()),
        Ok(_) => Err(refused(&format!(
            "is switched off in the kernel: echo Y > {PARAMETER}"
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(refused(
            "needs Linux 6.14 or later, with CONFIG_FUSE_IO_URING",
        )),
        Err(error) => Err(refused(&format!("cannot read {PARAMETER}: {error}"))),
    }
}

fn refused(why: &str) -> Error {
    let what = format!("transport=ring (FUSE over io_uring) {why}; or use transport=classic");
    Error::new(ErrorCode::Unsupported, what)
}

/// CPUs in a list such as `0-3,8`.
fn count(list: &str) -> Option<u16> {
    let mut total = 0u16;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        total = total.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!(count("0-1\n"), Some(2));
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-3,8,10-11"), Some(7));
        for broken in ["", "a", "3-1", "0-70000", "0-65535,0-65535", "1-"] {
            assert_eq!(count(broken), None, "{broken}");
        }
    }

    #[test]
    fn memory_is_bounded_and_no_queue_is_empty() {
        assert_eq!(entries(1), 8);
        assert_eq!(entries(4), 8);
        assert_eq!(entries(16), 4);
        assert_eq!(entries(32), 2);
        assert_eq!(entries(400), 2);
        for cpus in 1..=32 {
            assert!(entries(cpus) * usize::from(cpus) <= TOTAL_ENTRIES);
        }
    }

    #[test]
    fn each_reason_is_named() {
        assert!(check_parameter(Ok("Y\n".to_owned())).is_ok());
        let off = check_parameter(Ok("N\n".to_owned())).unwrap_err();
        assert!(off.message.contains("echo Y >"), "{}", off.message);
        let old = check_parameter(Err(io::ErrorKind::NotFound.into())).unwrap_err();
        assert!(old.message.contains("6.14"), "{}", old.message);
        let helper = MountOptions {
            auto_unmount: true,
            ..MountOptions::default()
        };
        let helper = check(&helper).unwrap_err();
        assert!(helper.message.contains("fusermount3"), "{}", helper.message);
        for error in [off, old, helper] {
            assert_eq!(error.code, ErrorCode::Unsupported);
            assert!(error.message.contains("transport=classic"));
        }
    }
}
