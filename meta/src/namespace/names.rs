//! What may be a name, and how names appear in messages.

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result};

/// Longest name, bytes.
pub(crate) const MAX_NAME: usize = 255;
/// Longest target of a symbolic link, bytes.
pub(crate) const MAX_TARGET: usize = 4095;

/// [`ErrorCode::NameTooLong`] or [`ErrorCode::InvalidArgument`] unless this may be a name.
pub(crate) fn check(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME {
        let what = format!("a name of {} bytes exceeds {MAX_NAME}", name.len());
        return Err(Error::new(ErrorCode::NameTooLong, what));
    }
    let special = matches!(name, b"" | b"." | b"..");
    if special || name.iter().any(|&byte| byte == b'/' || byte == 0) {
        let what = format!("`{}` cannot be a name", name.escape_ascii());
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    Ok(())
}

/// `name` in `parent`, for messages.
pub(crate) fn at(parent: InodeId, name: &[u8]) -> String {
    format!("`{}` in directory {parent}", name.escape_ascii())
}

/// No such name.
pub(crate) fn not_found(parent: InodeId, name: &[u8]) -> Error {
    Error::new(
        ErrorCode::NotFound,
        format!("{} does not exist", at(parent, name)),
    )
}

/// The name is taken.
pub(crate) fn exists(parent: InodeId, name: &[u8]) -> Error {
    Error::new(ErrorCode::Exists, format!("{} exists", at(parent, name)))
}

/// The inode is gone.
pub(crate) fn stale(inode: InodeId) -> Error {
    Error::new(ErrorCode::Stale, format!("inode {inode} was deleted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        let code = |name: &[u8]| check(name).map_err(|e| e.code);
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", b"/"] {
            assert_eq!(code(bad), Err(ErrorCode::InvalidArgument), "{bad:?}");
        }
        assert_eq!(code(&[b'x'; 256]), Err(ErrorCode::NameTooLong));
        for good in [&b"a"[..], b"...", b".a", &[b'x'; 255], &[0xff, 0xfe]] {
            assert_eq!(code(good), Ok(()), "{good:?}");
        }
    }
}
