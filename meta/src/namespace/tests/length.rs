use super::fixture::*;
use emberfs_proto::ErrorCode::*;
use emberfs_proto::pb;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

async fn writer(f: &Fixture) -> (u64, u64) {
    let opened = f.create(f.root(), ROOT, "a", 0o644).await.unwrap();
    (opened.attr.unwrap().inode, opened.session)
}

#[tokio::test]
async fn the_size_is_the_highest_report() {
    let f = Fixture::new();
    let (file, session) = writer(&f).await;
    assert_eq!(f.sync(file, session, 100, 0).await.unwrap().size, 100);
    assert_eq!(f.sync(file, session, 40, 0).await.unwrap().size, 100);
    assert_eq!(f.sync(file, session, 500, 0).await.unwrap().size, 500);
    assert_eq!(f.lookup(ROOT, "a").await.unwrap().size, 500);
    let too_far = f.sync(file, session, u64::MAX, 0).await;
    assert_eq!(code(too_far), FileTooLarge);
    assert_eq!(
        code(f.sync(file, session, 1, 7).await),
        InvalidArgument,
        "an epoch to come"
    );
}

#[tokio::test]
async fn a_report_sets_the_time_of_the_last_write() {
    let f = Fixture::new();
    let (file, session) = writer(&f).await;
    let mtime = Some(pb::Time {
        seconds: 5,
        nanos: 6,
    });
    let end = Some(1);
    let request = pb::SyncRequest {
        caller: f.root(),
        inode: file,
        session,
        end,
        truncate_epoch: 0,
        mtime,
        sparse: false,
        settle: false,
        starts: Vec::new(),
    };
    assert_eq!(f.ns.sync(request).await.unwrap().attr.unwrap().mtime, mtime);
}

/// The writer's programs have seen the times of the write before it was reported.
#[tokio::test]
async fn a_file_changed_when_it_was_written_and_later_than_before() {
    let f = Fixture::new();
    let (file, session) = writer(&f).await;
    let report = async |end: u64, mtime: SystemTime| {
        let request = pb::SyncRequest {
            caller: f.root(),
            inode: file,
            session,
            end: Some(end),
            truncate_epoch: 0,
            mtime: Some(mtime.into()),
            sparse: false,
            settle: false,
            starts: Vec::new(),
        };
        let attr = f.ns.sync(request).await.unwrap().attr.unwrap();
        (attr.mtime.unwrap(), attr.ctime.unwrap())
    };
    let wrote = SystemTime::now();
    let first = (wrote.into(), wrote.into());
    assert_eq!(report(10, wrote).await, first, "not when it was reported");
    let old = wrote - Duration::from_hours(1);
    let (mtime, ctime) = report(20, old).await;
    assert_eq!(mtime, old.into());
    assert!((ctime.seconds, ctime.nanos) > (first.1.seconds, first.1.nanos));
    let (_, ctime) = report(30, wrote + Duration::from_hours(1)).await;
    let limit = pb::Time::from(wrote + Duration::from_mins(30));
    assert!(ctime.seconds < limit.seconds, "a clock that is ahead");
}

#[tokio::test]
async fn shrinking_cuts_the_chunks_before_the_answer() {
    let f = Fixture::new();
    let (file, session) = writer(&f).await;
    f.chunks.write(file, 1000);
    f.sync(file, session, 1000, 0).await.unwrap();
    f.close(file, session).await;
    let attr = f.truncate(file, 300).await.unwrap();
    assert_eq!((attr.size, attr.truncate_epoch), (300, 1));
    assert_eq!(f.chunks.end_of(file), Some(300));
    // Growing is metadata only: holes read as zeros.
    let attr = f.truncate(file, 5000).await.unwrap();
    assert_eq!((attr.size, attr.truncate_epoch), (5000, 1));
    assert_eq!(f.chunks.cuts.lock().len(), 1);
    assert_eq!(f.ns.trims_in_progress(), 0);
}

#[tokio::test]
async fn a_report_from_before_a_truncation_cannot_resurrect_bytes() {
    let f = Fixture::new();
    let (file, session) = writer(&f).await;
    f.chunks.write(file, 1000);
    f.truncate(file, 10).await.unwrap();
    // The writer's report of its 1000 bytes was on its way.
    let attr = f.sync(file, session, 1000, 0).await.unwrap();
    assert_eq!((attr.size, attr.truncate_epoch), (10, 1));
    // It wrote on after the truncation, not knowing of it: the chunks know.
    f.chunks.write(file, 70);
    assert_eq!(f.sync(file, session, 1000, 0).await.unwrap().size, 70);
    assert_eq!(f.sync(file, session, 90, 1).await.unwrap().size, 90);
}

#[tokio::test]
async fn growing_under_a_writer_cuts_what_was_not_reported() {
    let f = Fixture::new();
    let (file, session) = writer(&f).await;
    // 1000 bytes are written and not reported; the file looks empty.
    f.chunks.write(file, 1000);
    let attr = f.truncate(file, 100).await.unwrap();
    assert_eq!((attr.size, attr.truncate_epoch), (100, 1));
    assert_eq!(f.chunks.end_of(file), Some(100));
    assert_eq!(f.sync(file, session, 1000, 0).await.unwrap().size, 100);
}

#[tokio::test]
async fn opening_with_truncation_empties_the_file() {
    let f = Fixture::new();
    let (file, session) = writer(&f).await;
    f.chunks.write(file, 50);
    f.sync(file, session, 50, 0).await.unwrap();
    f.close(file, session).await;
    let opened = f.open_as(f.root(), file, true, true).await.unwrap();
    assert_eq!(
        (
            opened.attr.unwrap().size,
            opened.attr.unwrap().truncate_epoch
        ),
        (0, 1)
    );
    assert_eq!(f.chunks.end_of(file), Some(0));
    f.close(file, opened.session).await;
    // An empty file that nobody writes has nothing to cut.
    f.open_as(f.root(), file, true, true).await.unwrap();
    assert_eq!(f.chunks.cuts.lock().len(), 1);
}

#[tokio::test]
async fn an_interrupted_truncation_is_completed_by_whoever_comes() {
    let f = Fixture::new();
    let (file, session) = writer(&f).await;
    f.chunks.write(file, 1000);
    f.sync(file, session, 1000, 0).await.unwrap();
    f.close(file, session).await;
    *f.chunks.down.lock() = true;
    let request = pb::SetAttrRequest {
        caller: f.root(),
        inode: file,
        size: Some(10),
        ..Default::default()
    };
    assert_eq!(code(f.ns.setattr(request.clone()).await), Unavailable);
    assert_eq!(f.chunks.end_of(file), Some(1000), "nothing is cut yet");
    assert_eq!(
        code(f.open(file, false).await),
        Unavailable,
        "nobody gets past it"
    );
    let f = f.restart();
    assert_eq!(code(f.open(file, false).await), Unavailable);
    *f.chunks.down.lock() = false;
    assert_eq!(f.open(file, false).await.unwrap().attr.unwrap().size, 10);
    assert_eq!(f.chunks.end_of(file), Some(10));
    // The retry is answered and does not cut again.
    f.ns.setattr(request).await.unwrap();
    assert_eq!(f.chunks.cuts.lock().len(), 1);
}

#[tokio::test]
async fn a_sweep_completes_truncations_that_nobody_waits_for() {
    let f = Fixture::new();
    let (file, session) = writer(&f).await;
    f.chunks.write(file, 1000);
    f.sync(file, session, 1000, 0).await.unwrap();
    *f.chunks.down.lock() = true;
    assert_eq!(code(f.truncate(file, 10).await), Unavailable);
    *f.chunks.down.lock() = false;
    f.ns.sweep_trims().await.unwrap();
    assert_eq!(f.chunks.end_of(file), Some(10));
}

#[tokio::test]
async fn a_truncation_is_cut_once_and_reports_wait_for_it() {
    let f = Arc::new(Fixture::new());
    let (file, session) = writer(&f).await;
    f.chunks.write(file, 1000);
    f.sync(file, session, 1000, 0).await.unwrap();
    *f.chunks.slow.lock() = true;
    let cutting = tokio::spawn({
        let f = f.clone();
        async move { f.truncate(file, 10).await }
    });
    f.chunks.waiting.notified().await;
    let reporting = tokio::spawn({
        let f = f.clone();
        async move { f.sync(file, session, 2000, 1).await }
    });
    tokio::task::yield_now().await;
    assert!(!reporting.is_finished());
    // The caller goes away; the cut goes on.
    cutting.abort();
    *f.chunks.slow.lock() = false;
    f.chunks.go.notify_one();
    let attr = reporting.await.unwrap().unwrap();
    assert_eq!(attr.size, 2000);
    assert_eq!(*f.chunks.cuts.lock(), [(file.into(), 10)]);
}

#[tokio::test]
async fn a_file_is_sparse_if_it_may_have_holes() {
    let f = Fixture::new();
    let opened = f.create(f.root(), ROOT, "a", 0o644).await.unwrap();
    let (file, session) = (opened.attr.unwrap().inode, opened.session);
    let sparse = async || f.attr(file).await.unwrap().sparse;
    f.sync(file, session, 100, 0).await.unwrap();
    f.truncate(file, 50).await.unwrap();
    assert!(!sparse().await, "written from the beginning, and cut");
    f.truncate(file, 51).await.unwrap();
    assert!(sparse().await, "extended");
    f.truncate(file, 50).await.unwrap();
    assert!(sparse().await);
    f.truncate(file, 0).await.unwrap();
    assert!(!sparse().await, "nothing is left");

    let epoch = f.attr(file).await.unwrap().truncate_epoch;
    let request = pb::SyncRequest {
        caller: f.root(),
        inode: file,
        session,
        end: Some(10),
        truncate_epoch: epoch,
        mtime: None,
        sparse: true,
        settle: false,
        starts: Vec::new(),
    };
    assert!(f.ns.sync(request).await.unwrap().attr.unwrap().sparse);
    f.truncate(file, 0).await.unwrap();
    f.chunks.write(file, 70);
    f.sync(file, session, 70, epoch).await.unwrap();
    assert!(sparse().await, "from before a truncation");
    f.truncate(file, 0).await.unwrap();
    f.chunks.write(file, 80);
    f.expire_after(Duration::from_mins(1)).await;
    assert_eq!(f.attr(file).await.unwrap().size, 80);
    assert!(sparse().await, "settled from the chunks");
}
