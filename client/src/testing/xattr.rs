//! Extended attributes of the fake metadata server: no permissions, no limits, changes exactly once.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use emberfs_proto::{Error, ErrorCode, Result, pb};

#[derive(Default)]
pub(crate) struct Xattrs {
    values: BTreeMap<(u64, Bytes), Bytes>,
    /// Requests that are carried out.
    done: HashSet<u64>,
}

impl Xattrs {
    pub(crate) fn set(&mut self, request: &pb::SetXattrRequest) -> Result<()> {
        let number = request.caller.as_ref().unwrap().request;
        if self.done.contains(&number) {
            return Ok(());
        }
        let key = (request.inode, request.name.clone());
        let there = self.values.contains_key(&key);
        if there && request.create {
            return Err(Error::new(ErrorCode::Exists, "exists"));
        }
        if !there && request.replace {
            return Err(missing());
        }
        self.values.insert(key, request.value.clone());
        self.done.insert(number);
        Ok(())
    }

    pub(crate) fn remove(&mut self, request: &pb::XattrRequest) -> Result<()> {
        let number = request.caller.as_ref().unwrap().request;
        if self.done.contains(&number) {
            return Ok(());
        }
        let key = (request.inode, request.name.clone());
        self.values.remove(&key).ok_or_else(missing)?;
        self.done.insert(number);
        Ok(())
    }

    pub(crate) fn get(&self, request: &pb::XattrRequest) -> Result<Bytes> {
        let key = (request.inode, request.name.clone());
        self.values.get(&key).cloned().ok_or_else(missing)
    }

    pub(crate) fn list(&self, inode: u64) -> Vec<Bytes> {
        let all = self.values.keys();
        let own = all.filter(|(of, _)| *of == inode);
        own.map(|(_, name)| name.clone()).collect()
    }
}

fn missing() -> Error {
    Error::new(ErrorCode::NoAttribute, "no such attribute")
}
