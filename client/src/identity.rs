//! Which process acts as a client.
//!
//! A client may outlive its process: a successor takes over its open files and locks under the same
//! [`ClientId`]. Servers tell the processes apart by their *instance*. Whatever this client numbers
//! begins above all that an earlier instance can have used, so no number means two things.

use emberfs_proto::ids::ClientId;
use emberfs_proto::{Error, ErrorCode, Result};

/// Numbers of one instance: a million each second for twelve days.
const NUMBERS_BITS: u32 = 40;
/// The last instance whose numbers fit.
const LAST: u32 = (1 << (u64::BITS - NUMBERS_BITS)) - 1;

/// Who a process is to servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The client, which must be unique: drawn at random once, and handed on from process to process.
    pub client: ClientId,
    /// Counts the processes that have acted as this client, from 1. Servers refuse a process once they have heard
    /// of a later one ([`ErrorCode::Superseded`]).
    pub instance: u32,
}

impl Identity {
    /// A client of one process, unless the caller says otherwise.
    pub(crate) fn of(given: Option<Self>) -> Result<Self> {
        let identity = given.unwrap_or_else(|| Self {
            client: ClientId(rand::random()),
            instance: 0,
        });
        if given.is_some() && !(1..=LAST).contains(&identity.instance) {
            let what = format!(
                "process {} of client {}: processes are counted from 1 to {LAST}",
                identity.instance, identity.client
            );
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        Ok(identity)
    }

    /// All numbers of this process are greater than this one, and all of earlier ones are not.
    pub(crate) fn base(self) -> u64 {
        u64::from(self.instance) << NUMBERS_BITS
    }

    /// Whether another process may have acted as this client before.
    pub(crate) fn has_predecessor(self) -> bool {
        self.instance > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_have_numbers_of_their_own_and_bounds() {
        let client = ClientId(7);
        let of = |instance| Identity::of(Some(Identity { client, instance }));
        assert_eq!(of(1).unwrap().base(), 1 << 40);
        assert_eq!(of(LAST).unwrap().base() >> 40, u64::from(LAST));
        for wrong in [0, LAST + 1] {
            assert_eq!(of(wrong).unwrap_err().code, ErrorCode::InvalidArgument);
        }
        assert_eq!(Identity::of(None).unwrap().base(), 0);
    }
}
