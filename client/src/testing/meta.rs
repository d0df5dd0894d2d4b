//! A metadata server with one directory, exactly-once changes, and faults on demand.

mod cluster;
mod requests;
mod state;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::NodeId;
use emberfs_proto::layout::Layout;
use emberfs_proto::pb::cluster_server::ClusterServer;
use emberfs_proto::pb::metadata_server::MetadataServer;
use emberfs_proto::wire::metadata::MetadataFrames;
use emberfs_proto::wire::port;
use emberfs_proto::wire::server::{Host, Limits, serve};
use emberfs_proto::{Error, ErrorCode, pb};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

pub(crate) use self::state::State;
use super::{CLUSTER, Shared};

type Reply<T> = Result<Response<T>, Status>;

#[derive(Clone)]
pub(crate) struct FakeMeta {
    pub(crate) state: Shared<State>,
    map: watch::Sender<Arc<ClusterMap>>,
    addr: String,
    task: Shared<Option<AbortHandle>>,
}

fn attr_reply(attr: Option<pb::Attr>) -> pb::AttrReply {
    pb::AttrReply {
        attr,
        ..pb::AttrReply::default()
    }
}

fn fail<T>(code: ErrorCode, what: &str) -> Result<T, Status> {
    Err(Error::new(code, what).into())
}

impl FakeMeta {
    pub(crate) async fn start(layout: Layout, map: ClusterMap) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let root = pb::Attr {
            inode: 1,
            kind: pb::FileKind::Directory.into(),
            mode: 0o755,
            nlink: 2,
            ..pb::Attr::default()
        };
        let state = State {
            files: HashMap::from([(1, root)]),
            layout: Some(layout),
            ..State::default()
        };
        let this = Self {
            state: Arc::new(parking_lot::Mutex::new(state)),
            map: watch::Sender::new(Arc::new(map)),
            addr,
            task: Arc::default(),
        };
        this.serve(listener);
        this
    }

    fn serve(&self, listener: TcpListener) {
        let server = tonic::transport::Server::builder()
            .add_service(MetadataServer::new(self.clone()))
            .add_service(ClusterServer::new(self.clone()));
        let port::Split {
            frames,
            grpc,
            accepting,
        } = port::split(listener);
        let host = Host {
            cluster: CLUSTER,
            node: NodeId::default(),
        };
        let service = Arc::new(MetadataFrames(self.clone()));
        let (keep, stop) = watch::channel(false);
        // They live on when this ends.
        let by_frames = serve(
            frames,
            host,
            Limits::default(),
            service,
            stop,
            Duration::ZERO,
        );
        let task = tokio::spawn(async move {
            let _keep = keep;
            tokio::select! {
                ended = server.serve_with_incoming(ReceiverStream::new(grpc)) => ended.unwrap(),
                () = by_frames => {}
                () = accepting => {}
            }
        });
        *self.task.lock() = Some(task.abort_handle());
    }

    /// Refuses connections from now on. Those that exist live on in their own tasks.
    pub(crate) fn kill(&self) {
        self.task.lock().take().unwrap().abort();
    }

    pub(crate) async fn revive(&self) {
        // A connection of another test may have drawn the port meanwhile.
        let mut tries = 0;
        let listener = loop {
            match TcpListener::bind(&self.addr).await {
                Err(_) if tries < 200 => tries += 1,
                bound => break bound.unwrap(),
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        };
        self.serve(listener);
    }

    pub(crate) fn addr(&self) -> &str {
        &self.addr
    }

    pub(crate) fn publish(&self, map: ClusterMap) {
        self.map.send_replace(Arc::new(map));
    }

    pub(crate) fn fault(&self, verb: &'static str, code: ErrorCode, after: bool, times: usize) {
        self.state
            .lock()
            .faults
            .extend(std::iter::repeat_n((verb, code, after), times));
    }

    pub(crate) fn attr(&self, inode: u64) -> pb::Attr {
        self.state.lock().files[&inode]
    }

    /// Adds a name for a file, directory or link.
    pub(crate) fn plant(&self, name: &str, kind: pb::FileKind, size: u64, target: &str) -> u64 {
        let mut state = self.state.lock();
        let inode = state.new_inode(kind, 0o644);
        state.files.get_mut(&inode).unwrap().size = size;
        state
            .names
            .insert(Bytes::copy_from_slice(name.as_bytes()), inode);
        state
            .links
            .insert(inode, Bytes::copy_from_slice(target.as_bytes()));
        inode
    }

    /// Runs a change once per request number, with the faults that were asked for.
    fn change<T>(
        &self,
        verb: &'static str,
        caller: Option<&pb::Caller>,
        run: impl FnOnce(&mut State) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let caller = caller.unwrap();
        assert!(
            caller.request > caller.acknowledged,
            "{verb} was acknowledged before its answer"
        );
        let mut state = self.state.lock();
        state
            .changes
            .push((verb, caller.request, caller.acknowledged));
        let fault = state.take_fault(verb);
        if let Some((code, false)) = fault {
            return fail(code, "told to fail");
        }
        let done = run(&mut state);
        match fault {
            Some((code, true)) => fail(code, "told to lose the answer"),
            _ => done,
        }
    }
}
