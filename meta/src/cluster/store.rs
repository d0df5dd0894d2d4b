//! The cluster map on disk: small records under family `C`, changed in fenced transactions.
//!
//! | key | value |
//! |---|---|
//! | `C i` | cluster id, 16 bytes, written once |
//! | `C p` | primary lease: owner (16 bytes) and term (8 bytes, big-endian) |
//! | `C v` | map version (8 bytes), replicas (4), stamp of the save (8), big-endian |
//! | `C n` node (4 bytes) | `NodeMsg` |
//! | `C t` target (8 bytes) | `TargetMsg` |
//! | `C c` chain (4 bytes) | `ChainMsg` |
//! | `C s` | `SettingsMsg`; absent until something was set |
//! | `C x` table (4 bytes) version (4 bytes) | `ChainTableMsg` |
//!
//! Every transaction first reads the primary lease and fails with [`ErrorCode::NotPrimary`] unless
//! this store took the last term; the read is a conflict, so a take-over that commits
//! meanwhile defeats it too. Whoever opens the store takes the next term: the embedded engine is
//! opened by one process at a time, so a take-over is always of a process that is gone.
//!
//! A save names the map it started from and fails if another one is stored. It is idempotent: after
//! an unknown outcome it finds its own stamp and succeeds.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_proto::cluster::{ClusterMap, Settings};
use emberfs_proto::ids::{ClusterId, MapVersion};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use prost::Message;

use crate::kv::{Engine, RetryPolicy, Transaction, run_idempotent};

const FAMILY: u8 = b'C';
const CLUSTER_KEY: &[u8] = &[FAMILY, b'i'];
const PRIMARY_KEY: &[u8] = &[FAMILY, b'p'];
const HEADER_KEY: &[u8] = &[FAMILY, b'v'];
const SETTINGS_KEY: &[u8] = &[FAMILY, b's'];
const NODE: u8 = b'n';
const TARGET: u8 = b't';
const CHAIN: u8 = b'c';
const TABLE: u8 = b'x';
/// Records read per call while loading.
const PAGE: usize = 4096;

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// The stored map, as long as this process is primary.
pub(crate) struct Store {
    engine: Arc<dyn Engine>,
    owner: [u8; 16],
    term: u64,
}

impl Store {
    /// Becomes primary, draws the cluster's id if the store is new, and loads the map. Blocks.
    pub(crate) fn open(engine: Arc<dyn Engine>, replicas: u32) -> Result<(Self, ClusterMap)> {
        let owner = rand::random::<[u8; 16]>();
        let new_id = ClusterId(rand::random::<u128>() | 1);
        let policy = RetryPolicy::default();
        let (term, map) = run_idempotent(&*engine, &policy, |txn| {
            let term = match read_primary(txn)? {
                Some((holder, term)) if holder == owner => term,
                Some((_, term)) => term + 1,
                None => 1,
            };
            txn.put(PRIMARY_KEY, &[&owner[..], &term.to_be_bytes()].concat());
            if let Some(map) = load(txn)? {
                return Ok((term, map));
            }
            let version = MapVersion(1);
            let map = ClusterMap {
                version,
                cluster: new_id,
                replicas,
                ..ClusterMap::default()
            };
            txn.put(CLUSTER_KEY, &new_id.to_bytes());
            txn.put(HEADER_KEY, &header(&map, 0));
            Ok((term, map))
        })?;
        Ok((
            Self {
                engine,
                owner,
                term,
            },
            map,
        ))
    }

    /// Makes `new` durable, given that `old` is what is stored. Blocks.
    pub(crate) fn save(&self, old: &ClusterMap, new: &ClusterMap) -> Result<()> {
        let (before, after) = (records(old), records(new));
        let stamp = rand::random::<u64>();
        run_idempotent(&*self.engine, &RetryPolicy::default(), |txn| {
            self.check_primary(txn)?;
            let stored = read_header(txn)?.ok_or_else(|| damaged("map header"))?;
            if (stored.version, stored.stamp) == (new.version, stamp) {
                return Ok(()); // An earlier attempt of this very call.
            }
            if stored.version != old.version {
                let what = format!(
                    "the stored cluster map is {}, expected {}; restart the metadata server",
                    stored.version, old.version
                );
                return Err(Error::new(ErrorCode::Internal, what));
            }
            for (key, value) in &after {
                if before.get(key) != Some(value) {
                    txn.put(key, value);
                }
            }
            for key in before.keys().filter(|key| !after.contains_key(*key)) {
                txn.delete(key);
            }
            txn.put(HEADER_KEY, &header(new, stamp));
            Ok(())
        })
    }

    fn check_primary(&self, txn: &mut dyn Transaction) -> Result<()> {
        match read_primary(txn)? {
            Some((owner, term)) if owner == self.owner && term == self.term => Ok(()),
            holder => {
                let term = holder.map_or(0, |(_, term)| term);
                let what = format!(
                    "this cluster manager held term {} and was deposed by term {term}; another metadata server is primary",
                    self.term
                );
                Err(Error::new(ErrorCode::NotPrimary, what))
            }
        }
    }
}

fn read_primary(txn: &mut dyn Transaction) -> Result<Option<([u8; 16], u64)>> {
    let Some(value) = txn.get(PRIMARY_KEY)? else {
        return Ok(None);
    };
    let read = value.split_first_chunk::<16>();
    let read =
        read.and_then(|(owner, term)| Some((*owner, u64::from_be_bytes(term.try_into().ok()?))));
    read.map(Some).ok_or_else(|| damaged("primary lease"))
}

struct Header {
    version: MapVersion,
    replicas: u32,
    stamp: u64,
}

fn header(map: &ClusterMap, stamp: u64) -> Vec<u8> {
    let (version, replicas) = (map.version.0.to_be_bytes(), map.replicas.to_be_bytes());
    [&version[..], &replicas, &stamp.to_be_bytes()].concat()
}

fn read_header(txn: &mut dyn Transaction) -> Result<Option<Header>> {
    let Some(value) = txn.get(HEADER_KEY)? else {
        return Ok(None);
    };
    let read = || {
        let (version, rest) = value.split_first_chunk()?;
        let (replicas, stamp) = rest.split_first_chunk()?;
        Some(Header {
            version: MapVersion(u64::from_be_bytes(*version)),
            replicas: u32::from_be_bytes(*replicas),
            stamp: u64::from_be_bytes(stamp.try_into().ok()?),
        })
    };
    read().map(Some).ok_or_else(|| damaged("map header"))
}

/// The map as keys and values, without its header.
fn records(map: &ClusterMap) -> Records {
    let msg = pb::ClusterMapMsg::from(map);
    let mut out = Records::new();
    for node in &msg.nodes {
        out.insert(key(NODE, &node.id.to_be_bytes()), node.encode_to_vec());
    }
    for target in &msg.targets {
        out.insert(
            key(TARGET, &target.id.to_be_bytes()),
            target.encode_to_vec(),
        );
    }
    for chain in &msg.chains {
        out.insert(key(CHAIN, &chain.id.to_be_bytes()), chain.encode_to_vec());
    }
    for table in &msg.tables {
        let id = [table.id.to_be_bytes(), table.version.to_be_bytes()].concat();
        out.insert(key(TABLE, &id), table.encode_to_vec());
    }
    if map.settings != Settings::default()
        && let Some(settings) = &msg.settings
    {
        out.insert(SETTINGS_KEY.to_vec(), settings.encode_to_vec());
    }
    out
}

fn key(kind: u8, id: &[u8]) -> Vec<u8> {
    [&[FAMILY, kind], id].concat()
}

fn load(txn: &mut dyn Transaction) -> Result<Option<ClusterMap>> {
    let Some(cluster) = txn.get(CLUSTER_KEY)? else {
        return Ok(None);
    };
    let header = read_header(txn)?.ok_or_else(|| damaged("map header"))?;
    let settings = txn.get(SETTINGS_KEY)?.map(pb::SettingsMsg::decode);
    let msg = pb::ClusterMapMsg {
        settings: settings
            .transpose()
            .map_err(|e| damaged("settings").context(e))?,
        version: header.version.0,
        cluster,
        replicas: header.replicas,
        nodes: read_all(txn, NODE)?,
        targets: read_all(txn, TARGET)?,
        chains: read_all(txn, CHAIN)?,
        tables: read_all(txn, TABLE)?,
    };
    let map = ClusterMap::try_from(&msg);
    map.map(Some).map_err(|error| damaged("map").context(error))
}

fn read_all<M: Message + Default>(txn: &mut dyn Transaction, kind: u8) -> Result<Vec<M>> {
    let end = [FAMILY, kind + 1];
    let mut begin = vec![FAMILY, kind];
    let mut out = Vec::new();
    loop {
        let page = txn.get_range(&begin[..]..&end[..], PAGE, false)?;
        for (_, value) in &page {
            out.push(M::decode(Bytes::clone(value)).map_err(|e| damaged("map").context(e))?);
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => {
                begin = last.to_vec();
                begin.push(0); // The smallest key after it.
            }
            _ => return Ok(out),
        }
    }
}

fn damaged(what: &str) -> Error {
    let what =
        format!("the stored cluster {what} cannot be read; restore the metadata store from a dump");
    Error::new(ErrorCode::Internal, what)
}

#[cfg(test)]
mod tests;
