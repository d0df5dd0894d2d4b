use std::time::Instant;

use super::*;
use emberfs_proto::pb;
use emberfs_proto::pb::cluster_client::ClusterClient;
use emberfs_proto::pb::metadata_client::MetadataClient;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

fn config(data_dir: &Path) -> MetaConfig {
    MetaConfig {
        listen: "127.0.0.1:0".to_owned(),
        data_dir: data_dir.to_owned(),
        replicas: 1,
        stop_grace_ms: 3000,
        ..MetaConfig::default()
    }
}

async fn start(config: MetaConfig) -> Result<Running> {
    let (tell, ready) = oneshot::channel();
    let stop = CancellationToken::new();
    let mut task = tokio::spawn(run(config, stop.clone(), move |address| {
        let _ = tell.send(address);
    }));
    tokio::select! {
        address = ready => match address {
            Ok(address) => Ok(Running { address, stop, task }),
            Err(_) => Err(task.await.unwrap().unwrap_err()),
        },
        result = &mut task => Err(result.unwrap().unwrap_err()),
    }
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

#[expect(clippy::unnecessary_wraps, reason = "requests hold an optional caller")]
fn caller(request: u64) -> Option<pb::Caller> {
    Some(pb::Caller {
        client: ClientId(3).to_bytes(),
        request,
        ..pb::Caller::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_services_answer_on_one_port_and_what_was_done_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(config(directory.path())).await.unwrap();
    let mut meta = MetadataClient::connect(server.url()).await.unwrap();
    let mut cluster = ClusterClient::connect(server.url()).await.unwrap();
    let attach = pb::AttachRequest {
        caller: caller(1),
        protocol_version: 1,
        ..pb::AttachRequest::default()
    };
    let attached = meta.attach(attach).await.unwrap().into_inner();
    let map = cluster
        .get_map(pb::WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(attached.cluster, map.cluster);
    let mkdir = pb::MkdirRequest {
        caller: caller(2),
        parent: 1,
        name: "d".into(),
        mode: 0o755,
        ..pb::MkdirRequest::default()
    };
    let made = meta.mkdir(mkdir).await.unwrap().into_inner().attr.unwrap();
    // A client of another cluster, whose metadata server had this address before.
    let lost = pb::NameRequest {
        caller: caller(3).map(|caller| pb::Caller {
            cluster: emberfs_proto::ids::ClusterId(9).to_bytes(),
            ..caller
        }),
        parent: 1,
        name: "d".into(),
    };
    let error = Error::from(meta.lookup(lost).await.unwrap_err());
    assert_eq!(error.code, ErrorCode::WrongCluster);
    // Errors keep their code on the way.
    let create = pb::CreateRequest {
        caller: caller(3),
        parent: 1,
        name: "f".into(),
        ..pb::CreateRequest::default()
    };
    let error = Error::from(meta.create(create).await.unwrap_err());
    assert_eq!(error.code, ErrorCode::NoChains);
    server.stop().await;

    let server = start(config(directory.path())).await.unwrap();
    let mut meta = MetadataClient::connect(server.url()).await.unwrap();
    let lookup = pb::NameRequest {
        caller: caller(4),
        parent: 1,
        name: "d".into(),
    };
    let found = meta
        .lookup(lookup)
        .await
        .unwrap()
        .into_inner()
        .attr
        .unwrap();
    assert_eq!(found, made);
    let summary = meta
        .summary(pb::SummaryRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((summary.cluster, summary.inodes), (attached.cluster, 2));
    assert_eq!(summary.engine, "rocksdb");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_do_not_hold_up_a_stop() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(config(directory.path())).await.unwrap();
    let mut cluster = ClusterClient::connect(server.url()).await.unwrap();
    let mut maps = cluster
        .watch_cluster(pb::WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    maps.message().await.unwrap().unwrap();
    let started = Instant::now();
    server.stop().await;
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_and_a_used_directory_are_explained() {
    let directory = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let server = start(config(directory.path())).await.unwrap();
    let same_port = MetaConfig {
        listen: server.address.to_string(),
        ..config(other.path())
    };
    let error = start(same_port).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(
        error.message.contains(&server.address.to_string()),
        "{error}"
    );
    assert!(error.message.contains("`listen`"), "{error}");
    let error = start(config(directory.path())).await.err().unwrap();
    assert!(
        error.message.contains(directory.path().to_str().unwrap()),
        "{error}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_before_anything_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let bad = MetaConfig {
        replicas: 0,
        ..config(directory.path())
    };
    assert_eq!(
        start(bad).await.err().unwrap().code,
        ErrorCode::InvalidArgument
    );
    assert!(!directory.path().join("kv").exists());
}
