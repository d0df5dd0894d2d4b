//! Bytes that change on the disk behind the engine's back.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;

/// Flips one bit at `offset` of the only block in use.
fn flip(disk: &Path, class_kib: u32, offset: u64) {
    let path = disk.join("blocks").join(format!("{class_kib:05}k.blk"));
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
    file.sync_all().unwrap();
}

#[tokio::test]
async fn a_flipped_bit_is_found_by_every_reader_and_repaired_by_a_replacement() {
    let (dir, _, engine) = fresh().await;
    let bytes = pattern(64 << 10, 9);
    put(&engine, key(1), write(1, 0, &bytes)).await;
    flip(dir.path(), 64, 20_000);
    // A part of the damaged page: found here.
    let part = engine
        .read(T, key(1), ReadVersion::Committed, 17_000, 10)
        .await
        .unwrap_err();
    assert_eq!(part.code, ErrorCode::ChecksumMismatch);
    for what in [dir.path().to_str().unwrap(), "t7", "i1", "page 1"] {
        assert!(part.message.contains(what), "{part} does not name {what}");
    }
    // The whole page: the stored checksum lets the reader find it.
    let whole = engine
        .read(T, key(1), ReadVersion::Committed, 0, CHUNK)
        .await
        .unwrap();
    let bad = verify_fragments(0, &whole.data, PAGE, &whole.checksums).unwrap_err();
    assert_eq!(bad, 16_384..32_768);
    assert_eq!(
        code(engine.verify(T, key(1)).await),
        ErrorCode::ChecksumMismatch
    );
    assert_eq!(engine.health().checksum_mismatches, 2);
    // Other pages are fine.
    let other = engine
        .read(T, key(1), ReadVersion::Committed, 40_000, 10)
        .await
        .unwrap();
    assert_eq!(other.data, bytes[40_000..40_010]);
    // A write that would keep the damaged bytes does not launder them.
    assert_eq!(
        code(engine.prepare(T, key(1), write(2, 0, b"x")).await),
        ErrorCode::ChecksumMismatch
    );
    assert_eq!(sound(&engine).await.blocks, 1);
    put(&engine, key(1), replace(1, &bytes)).await;
    engine.verify(T, key(1)).await.unwrap();
    engine.shutdown().await;
}

#[tokio::test]
async fn a_block_file_that_lost_its_end_opens_and_its_chunks_fail_their_checksums() {
    let (dir, config, engine) = fresh().await;
    put(&engine, key(1), write(1, 0, &pattern(60_000, 1))).await;
    engine.shutdown().await;
    let path = dir.path().join("blocks/00064k.blk");
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(30_000)
        .unwrap();
    let engine = open(&config).await;
    assert_eq!(
        code(engine.verify(T, key(1)).await),
        ErrorCode::ChecksumMismatch
    );
    put(&engine, key(1), replace(1, &pattern(60_000, 1))).await;
    engine.verify(T, key(1)).await.unwrap();
    sound(&engine).await;
    engine.shutdown().await;
}

#[tokio::test]
async fn a_transfer_read_takes_its_sectors_only_and_vouches_for_the_way_alone() {
    let (dir, _, engine) = fresh().await;
    let bytes = pattern(40_000, 3);
    put(&engine, key(1), write(1, 0, &bytes)).await;
    flip(dir.path(), 40, 20_000);
    let read = async |bytes: std::ops::Range<u32>, verify| {
        let which = ReadVersion::Committed;
        engine.read_range(T, key(1), which, bytes, verify).await
    };
    // Another sector of the damaged page.
    let elsewhere = read(30_000..30_010, Verify::Transfer).await.unwrap();
    assert_eq!(elsewhere.data, bytes[30_000..30_010]);
    verify_fragments(30_000, &elsewhere.data, PAGE, &elsewhere.checksums).unwrap();
    // The damaged byte: handed out with a checksum of its own.
    let damaged = read(19_990..20_010, Verify::Transfer).await.unwrap();
    assert_ne!(damaged.data, bytes[19_990..20_010]);
    verify_fragments(19_990, &damaged.data, PAGE, &damaged.checksums).unwrap();
    assert_eq!(
        code(read(19_990..20_010, Verify::Page).await),
        ErrorCode::ChecksumMismatch
    );
    // Whole pages keep the writer's checksum; the range ends where the chunk does.
    let whole = read(0..u32::MAX, Verify::Transfer).await.unwrap();
    assert_eq!(whole.data.len(), bytes.len());
    let bad = verify_fragments(0, &whole.data, PAGE, &whole.checksums).unwrap_err();
    assert_eq!(bad, 16_384..32_768);
    engine.shutdown().await;
}
