//! New files that their writers may keep to themselves.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use emberfs_proto::{ErrorCode, Result, pb};
use futures::{FutureExt, StreamExt};

use super::fixture::{Fixture, ROOT, bytes};
use crate::delegations::LIMIT;
use crate::interests::Watch;

/// Who makes files here. Others are `f.root()`.
const WRITER: u128 = 50;
const END: u64 = 1234;

fn watch(f: &Fixture) -> Watch {
    let caller = f.client(WRITER, 0);
    let watch = f.ns.watch_inodes(&pb::WatchInodesRequest { caller });
    watch.unwrap()
}

async fn told(watch: &mut Watch) -> pb::Invalidation {
    watch.next().await.unwrap().unwrap()
}

async fn make(f: &Fixture, name: &str, delegate: bool) -> pb::OpenReply {
    let request = pb::CreateRequest {
        caller: f.client(WRITER, 0),
        parent: ROOT,
        name: bytes(name),
        mode: 0o644,
        write: true,
        delegate,
        ..Default::default()
    };
    f.ns.create(request).await.unwrap()
}

fn report(f: &Fixture, file: &pb::OpenReply) -> pb::SyncRequest {
    pb::SyncRequest {
        caller: f.client(WRITER, 0),
        inode: file.attr.unwrap().inode,
        session: file.session,
        end: Some(END),
        truncate_epoch: 0,
        ..Default::default()
    }
}

/// What the writer does when it is asked: it reports, then returns the delegation.
async fn give_back(f: &Fixture, file: &pb::OpenReply) {
    f.ns.sync(report(f, file)).await.unwrap();
    let returned = pb::CloseManyRequest {
        caller: f.client(WRITER, 0),
        sessions: Vec::new(),
        returned: vec![file.attr.unwrap().inode],
    };
    f.ns.close_many(returned).await.unwrap();
}

/// `request` must not be answered before the file's writer was asked and has done as it is told.
async fn withheld<T>(
    f: &Fixture,
    watch: &mut Watch,
    file: &pb::OpenReply,
    request: impl Future<Output = Result<T>>,
) -> T {
    let mut request = pin!(request);
    let asked = async {
        let inode = file.attr.unwrap().inode;
        loop {
            let message = told(watch).await;
            if !message.recalled.is_empty() {
                assert_eq!(message.recalled, [inode]);
                return;
            }
        }
    };
    futures::future::select(request.as_mut(), pin!(asked))
        .await
        .factor_first_is_asked();
    assert!(request.as_mut().now_or_never().is_none(), "it still waits");
    give_back(f, file).await;
    request.await.unwrap()
}

trait Asked {
    fn factor_first_is_asked(self);
}

impl<T, A, B> Asked for futures::future::Either<(Result<T>, A), ((), B)> {
    fn factor_first_is_asked(self) {
        assert!(
            matches!(self, Self::Right(_)),
            "answered before the writer was asked"
        );
    }
}

#[tokio::test]
async fn nobody_is_told_of_a_file_before_its_writer_has_reported() {
    let f = Fixture::new();
    let mut watch = watch(&f);
    let size = |attr: Option<pb::Attr>| attr.unwrap().size;
    for (n, way) in [
        "getattr", "lookup", "many", "readdir", "open", "write", "create", "setattr", "truncate",
        "rename", "unlink",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{n}{way}");
        let file = make(&f, &name, true).await;
        assert!(file.delegated, "{way}");
        let inode = file.attr.unwrap().inode;
        let seen = match way {
            "getattr" => withheld(&f, &mut watch, &file, f.attr(inode)).await.size,
            "lookup" => {
                withheld(&f, &mut watch, &file, f.lookup(ROOT, &name))
                    .await
                    .size
            }
            "many" => {
                let request = pb::LookupManyRequest {
                    caller: f.root(),
                    parent: ROOT,
                    names: vec![bytes(&name)],
                };
                let found = withheld(&f, &mut watch, &file, f.ns.lookup_many(request)).await;
                size(found.results[0].attr)
            }
            "readdir" => {
                let request = pb::ReadDirRequest {
                    caller: f.root(),
                    inode: ROOT,
                    limit: 100,
                    ..Default::default()
                };
                let page = withheld(&f, &mut watch, &file, f.ns.readdir(request)).await;
                let mut entries = page.entries.into_iter();
                size(entries.find(|entry| entry.name == name).unwrap().attr)
            }
            "open" | "write" => {
                let open = f.open(inode, way == "write");
                size(withheld(&f, &mut watch, &file, open).await.attr)
            }
            "create" => {
                let request = pb::CreateRequest {
                    caller: f.root(),
                    parent: ROOT,
                    name: bytes(&name),
                    write: true,
                    delegate: true,
                    ..Default::default()
                };
                let opened = withheld(&f, &mut watch, &file, f.ns.create(request)).await;
                assert!(!opened.created && !opened.delegated);
                size(opened.attr)
            }
            "setattr" => {
                let request = pb::SetAttrRequest {
                    caller: f.root(),
                    inode,
                    mode: Some(0o600),
                    ..Default::default()
                };
                let changed = withheld(&f, &mut watch, &file, f.ns.setattr(request)).await;
                assert_eq!(changed.attr.unwrap().mode, 0o600);
                size(changed.attr)
            }
            "truncate" => {
                let longer = f.truncate(inode, 2 * END);
                withheld(&f, &mut watch, &file, longer).await.size / 2
            }
            "rename" => {
                let renamed = f.rename(ROOT, &name, ROOT, "renamed");
                size(withheld(&f, &mut watch, &file, renamed).await.moved)
            }
            _ => {
                withheld(&f, &mut watch, &file, f.unlink(ROOT, &name))
                    .await
                    .size
            }
        };
        assert_eq!(seen, END, "{way}");
        // From here on it is a file like others.
        if way != "unlink" {
            assert!(f.attr(inode).await.unwrap().size >= END, "{way}");
        }
    }
}

#[tokio::test]
async fn the_writer_is_kept_from_nothing_but_from_naming_it_anew() {
    let f = Fixture::new();
    let mut watch = watch(&f);
    let file = make(&f, "f", true).await;
    let inode = file.attr.unwrap().inode;
    let getattr = pb::GetAttrRequest {
        caller: f.client(WRITER, 0),
        inode,
    };
    assert_eq!(f.ns.getattr(getattr).await.unwrap().attr.unwrap().size, 0);
    let rename = f.ns.rename(pb::RenameRequest {
        caller: f.client(WRITER, 0),
        parent: ROOT,
        name: bytes("f"),
        new_parent: ROOT,
        new_name: bytes("g"),
        ..Default::default()
    });
    let moved = withheld(&f, &mut watch, &file, rename).await.moved;
    assert_eq!(moved.unwrap().size, END);
    let file = make(&f, "h", true).await;
    let link = f.ns.link(pb::LinkRequest {
        caller: f.client(WRITER, 0),
        inode: file.attr.unwrap().inode,
        parent: ROOT,
        name: bytes("i"),
    });
    let linked = withheld(&f, &mut watch, &file, link).await.attr;
    assert_eq!(linked.unwrap().size, END);
}

#[tokio::test]
async fn a_close_ends_it_and_the_file_changed_when_it_was_written() {
    let f = Fixture::new();
    let _watch = watch(&f);
    let file = make(&f, "f", true).await;
    let created = file.attr.unwrap();
    let wrote = SystemTime::now();
    let close = pb::SyncRequest {
        mtime: Some(wrote.into()),
        ..report(&f, &file)
    };
    f.ns.close(close).await.unwrap();
    let attr = f.attr(created.inode).await.unwrap();
    assert_eq!(attr.size, END);
    assert_eq!(attr.ctime, Some(wrote.into()), "not when it was reported");
    // A clock that is ahead says nothing.
    let file = make(&f, "g", true).await;
    let close = pb::SyncRequest {
        mtime: Some((wrote + Duration::from_hours(1)).into()),
        ..report(&f, &file)
    };
    let attr = f.ns.close(close).await.unwrap().attr.unwrap();
    let limit = pb::Time::from(wrote + Duration::from_mins(30));
    assert!(attr.ctime.unwrap().seconds < limit.seconds);
}

#[tokio::test]
async fn it_is_for_new_files_of_those_who_ask_and_can_be_asked() {
    let f = Fixture::new();
    assert!(!make(&f, "deaf", true).await.delegated);
    let _watch = watch(&f);
    assert!(!make(&f, "unasked", false).await.delegated);
    assert!(!make(&f, "unasked", true).await.delegated, "not new");
    let limit = pb::SetQuotaRequest {
        caller: f.root(),
        subject: Some(pb::QuotaSubject {
            kind: pb::QuotaKind::User as i32,
            id: 0,
        }),
        bytes: Some(1 << 30),
        ..Default::default()
    };
    f.ns.set_quota(limit).await.unwrap();
    assert!(!make(&f, "limited", true).await.delegated);
}

#[tokio::test]
async fn it_survives_a_restart_of_the_server() {
    let f = Fixture::new();
    let first = watch(&f);
    let file = make(&f, "f", true).await;
    let plain = make(&f, "plain", false).await;
    drop(first);
    let f = f.restart();
    assert_eq!(f.attr(plain.attr.unwrap().inode).await.unwrap().size, 0);
    let inode = file.attr.unwrap().inode;
    let mut request = pin!(f.attr(inode));
    assert!(request.as_mut().now_or_never().is_none());
    // Nobody listened when it was recalled; who listens from now on hears of it.
    let mut watch = watch(&f);
    told(&mut watch).await;
    assert_eq!(told(&mut watch).await.recalled, [inode]);
    give_back(&f, &file).await;
    assert_eq!(request.await.unwrap().size, END);
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_not_waited_for_for_ever() {
    let f = Fixture::new();
    let _watch = watch(&f);
    let file = make(&f, "f", true).await;
    let inode = file.attr.unwrap().inode;
    let begun = tokio::time::Instant::now();
    assert_eq!(f.attr(inode).await.unwrap().size, 0);
    let waited = begun.elapsed();
    assert!(
        waited >= LIMIT && waited < 2 * LIMIT,
        "waited for {waited:?}"
    );
    f.attr(inode).await.unwrap();
    assert_eq!(begun.elapsed(), waited, "once");
    // What it says later still counts.
    give_back(&f, &file).await;
    assert_eq!(f.attr(inode).await.unwrap().size, END);
}

#[tokio::test]
async fn too_much_at_once_is_refused() {
    let f = Fixture::new();
    let returned = pb::CloseManyRequest {
        caller: f.root(),
        sessions: Vec::new(),
        returned: vec![1; 4097],
    };
    let refused = f.ns.close_many(returned).await.map_err(|error| error.code);
    assert_eq!(refused.err(), Some(ErrorCode::InvalidArgument));
}
