use super::*;

fn offer(flags: u64, major: u32) -> Vec<u8> {
    let mut bytes = vec![0; abi::IN_HEADER];
    bytes[4..8].copy_from_slice(&abi::op::INIT.to_ne_bytes());
    bytes[8..16].copy_from_slice(&2u64.to_ne_bytes());
    for value in [major, 45, 131_072, flags as u32, (flags >> 32) as u32] {
        bytes.extend_from_slice(&value.to_ne_bytes());
    }
    bytes.resize(abi::IN_HEADER + 64, 0);
    bytes
}

#[test]
fn what_is_offered_and_wanted_is_taken() {
    const EXPORT_SUPPORT: u64 = 1 << 4;
    let flags = init::INIT_EXT | init::OVER_IO_URING | init::ASYNC_READ | EXPORT_SUPPORT;
    let init = Init::decode(&offer(flags, 7)).unwrap();
    assert_eq!(init.unique, 2);
    let bytes = init.reply(128, true).unwrap().data;
    assert_eq!(bytes.len(), 64);
    let fours: Vec<_> = (0..9).map(|i| u32_at(&bytes, 4 * i).unwrap()).collect();
    let background = u32::from_ne_bytes([128, 0, 96, 0]);
    let low = (init::INIT_EXT | init::ASYNC_READ) as u32;
    let pages = (MAX_IO as usize / rustix::param::page_size()) as u32;
    assert_eq!(
        fours,
        [7, 42, 131_072, low, background, MAX_IO, 1, pages, 1 << 9]
    );
    assert!(payload_capacity() >= MAX_IO as usize);
}

#[test]
fn a_kernel_without_rings_is_refused() {
    for (flags, major) in [
        (init::INIT_EXT, 7),
        // The upper half does not count without INIT_EXT.
        (init::OVER_IO_URING, 7),
        (init::INIT_EXT | init::OVER_IO_URING, 8),
    ] {
        let init = Init::decode(&offer(flags, major)).unwrap();
        let error = init.reply(128, true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
    let flags = init::INIT_EXT | init::OVER_IO_URING;
    let init = Init::decode(&offer(flags, 7)).unwrap();
    let bytes = init.reply(128, false).unwrap().data;
    assert_eq!(
        u32_at(&bytes, 32),
        Some(0),
        "the classic device takes no rings"
    );
}

#[test]
fn anything_else_is_no_handshake() {
    let whole = offer(init::INIT_EXT, 7);
    for len in 0..abi::IN_HEADER + 20 {
        Init::decode(&whole[..len]).unwrap_err();
    }
    let mut lookup = whole;
    lookup[4] = 1;
    Init::decode(&lookup).unwrap_err();
}
