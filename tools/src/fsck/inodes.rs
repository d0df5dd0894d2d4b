//! What the metadata says about files, held against chunks.

use std::collections::HashMap;
use std::time::Duration;

use emberfs_proto::ids::{ChainId, ChunkKey, InodeId};
use emberfs_proto::layout::Layout;
use emberfs_proto::pb;
use emberfs_proto::pb::metadata_client::MetadataClient;
use tonic::transport::Channel;

use crate::failure::Result;
use crate::rpc;

use super::chunks::Cluster;
use super::compare::View;

/// Inodes per page.
const PAGE: u32 = 4096;
/// How long a page may take.
const PAGE_LIMIT: Duration = Duration::from_secs(30);

/// All files of the cluster.
pub(super) struct InodeTable {
    files: HashMap<InodeId, FileFacts>,
    /// Files are open for writing: their lengths lag behind their chunks.
    writers: bool,
}

#[derive(Clone, Copy, Debug)]
struct FileFacts {
    size: u64,
    layout: Layout,
}

/// Whether a chunk belongs where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Yes.
    Fine,
    /// Cannot be told while someone writes.
    Unsettled,
    /// No: code and sentence.
    Wrong(&'static str, String),
}

impl InodeTable {
    pub(super) async fn load(address: &str) -> Result<Self> {
        let mut client = rpc::metadata(address).await?;
        let mut files = HashMap::new();
        let mut after = 0;
        loop {
            let reply = page(&mut client, address, after, PAGE).await?;
            files.extend(reply.attrs.iter().filter_map(facts));
            match reply.attrs.last() {
                Some(last) if !reply.end => after = last.inode,
                _ => break,
            }
        }
        let writers = writers(&mut client, address).await?;
        Ok(Self { files, writers })
    }

    /// Asks again about some files.
    pub(super) async fn refresh(&mut self, address: &str, inodes: &[InodeId]) -> Result<()> {
        let mut client = rpc::metadata(address).await?;
        let mut inodes = inodes.to_vec();
        inodes.dedup();
        for inode in inodes {
            let reply = page(&mut client, address, inode.0.saturating_sub(1), 1).await?;
            self.files.remove(&inode);
            let found = reply
                .attrs
                .iter()
                .filter_map(facts)
                .find(|(id, _)| *id == inode);
            self.files.extend(found);
        }
        self.writers = writers(&mut client, address).await?;
        Ok(())
    }

    /// Whether there is a file with this number, named or not.
    pub(super) fn knows(&self, inode: InodeId) -> bool {
        self.files.contains_key(&inode)
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Holds one chunk of `chain` against its file.
    pub(super) fn judge(
        &self,
        cluster: &Cluster,
        chain: u32,
        key: ChunkKey,
        views: &[View],
    ) -> Judgement {
        let lens = views
            .iter()
            .filter_map(|view| view.chunk)
            .filter(|c| c.committed != 0);
        // No replica has it (any more), or only as the stub of a write that never came to be.
        let Some(len) = lens.map(|chunk| chunk.len).max() else {
            return Judgement::Fine;
        };
        let Some(file) = self.files.get(&key.inode) else {
            return Judgement::Wrong("orphan", format!("no file has inode {}", key.inode.0));
        };
        let home = home(cluster, &file.layout, key);
        if home.is_some_and(|home| home != ChainId(chain)) {
            let home = home.unwrap_or_default().0;
            return Judgement::Wrong("wrong-chain", format!("it belongs on chain {home}"));
        }
        let end = file.layout.chunk_start(key.index) + u64::from(len);
        if len == 0 || end <= file.size {
            return Judgement::Fine;
        }
        if self.writers {
            return Judgement::Unsettled;
        }
        let what = format!("it ends at byte {end}, the file at {}", file.size);
        Judgement::Wrong("beyond-end", what)
    }
}

/// The chain that a chunk belongs on; `None` if the file's chain table is not in the map.
fn home(cluster: &Cluster, layout: &Layout, key: ChunkKey) -> Option<ChainId> {
    let table = cluster
        .map()
        .table(layout.table, layout.table_version)
        .ok()?;
    let stripe = layout.stripe(table).ok()?;
    stripe.get(key.index.0 as usize % stripe.len()).copied()
}

fn facts(attr: &pb::Attr) -> Option<(InodeId, FileFacts)> {
    let layout = Layout::try_from(attr.layout.as_ref()?).ok()?;
    let is_file = attr.kind() == pb::FileKind::File;
    is_file.then_some((
        InodeId(attr.inode),
        FileFacts {
            size: attr.size,
            layout,
        },
    ))
}

async fn page(
    client: &mut MetadataClient<Channel>,
    address: &str,
    after: u64,
    limit: u32,
) -> Result<pb::ListInodesReply> {
    let request = pb::ListInodesRequest { after, limit };
    rpc::answer(address, PAGE_LIMIT, client.list_inodes(request)).await
}

async fn writers(client: &mut MetadataClient<Channel>, address: &str) -> Result<bool> {
    let summary = rpc::answer(
        address,
        rpc::CALL_LIMIT,
        client.summary(pb::SummaryRequest {}),
    )
    .await?;
    Ok(summary.write_sessions > 0)
}
