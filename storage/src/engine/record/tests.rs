use super::*;
use proptest::prelude::*;

fn stamp() -> impl Strategy<Value = Stamp> {
    (
        any::<u64>(),
        any::<u64>(),
        any::<u128>(),
        any::<u32>(),
        any::<u64>(),
    )
        .prop_map(|(version, chain, client, channel, sequence)| Stamp {
            version: ChunkVersion(version),
            chain: ChainVersion(chain),
            tag: WriteTag {
                client: ClientId(client),
                channel,
                sequence,
            },
        })
}

fn mark(n: u64) -> Mark {
    Mark {
        tag: WriteTag {
            client: ClientId(u128::from(n) + 1),
            channel: 3,
            sequence: n * 7 + 1,
        },
        version: ChunkVersion(n + 2),
        len: 11,
    }
}

fn content() -> impl Strategy<Value = Content> {
    (stamp(), 0u32..=65536, any::<u32>(), any::<u32>()).prop_map(|(stamp, len, number, seed)| {
        let class = Class::for_len(len).unwrap();
        Content {
            stamp,
            len,
            high_water: if len == 0 { 0 } else { class.capacity() },
            block: (len > 0).then_some(Loc { class, number }),
            sums: (0..len.div_ceil(4096))
                .map(|i| i.wrapping_mul(seed))
                .collect(),
            recent: (0..seed as usize % (REMEMBERED_WRITES + 1))
                .map(|n| mark(n as u64))
                .collect(),
        }
    })
}

fn record() -> impl Strategy<Value = Record> {
    let pending = prop_oneof![
        Just(None),
        content().prop_map(|c| Some(Pending::Write(c))),
        stamp().prop_map(|s| Some(Pending::Remove(s))),
    ];
    (proptest::option::of(content()), pending).prop_map(|(committed, pending)| Record {
        page_size: 4096,
        chunk_size: 65536,
        committed,
        pending,
    })
}

proptest! {
    #[test]
    fn records_round_trip(record in record()) {
        prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn a_damaged_record_is_refused(record in record(), at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = record.encode();
        let i = at.index(bytes.len());
        bytes[i] ^= 1 << bit;
        prop_assert!(Record::decode(&bytes).is_err());
        bytes[i] ^= 1 << bit;
        bytes.truncate(i);
        prop_assert!(Record::decode(&bytes).is_err());
    }

    #[test]
    fn a_well_checksummed_lie_is_refused_or_read_without_panic(body: Vec<u8>, valid in record(), at: prop::sample::Index, byte: u8) {
        let mut bytes = body;
        bytes.extend(crc32(&bytes).to_le_bytes());
        let _ = Record::decode(&bytes);
        let mut bytes = valid.encode();
        bytes.truncate(bytes.len() - 4);
        let i = at.index(bytes.len());
        bytes[i] = byte;
        bytes.extend(crc32(&bytes).to_le_bytes());
        if let Ok(record) = Record::decode(&bytes) {
            prop_assert_eq!(record.encode(), bytes);
        }
    }
}

#[test]
fn the_format_is_pinned() {
    let record = Record {
        page_size: 4096,
        chunk_size: 65536,
        committed: Some(Content {
            stamp: Stamp {
                version: ChunkVersion(7),
                chain: ChainVersion(3),
                tag: WriteTag {
                    client: ClientId(9),
                    channel: 2,
                    sequence: 5,
                },
            },
            len: 5000,
            high_water: 5000,
            block: Some(Loc {
                class: Class::for_len(5000).unwrap(),
                number: 6,
            }),
            sums: [0x1122_3344, 0x5566_7788].into(),
            recent: Arc::default(),
        }),
        pending: None,
    };
    let hex = record
        .encode()
        .iter()
        .fold(String::new(), |hex, b| format!("{hex}{b:02x}"));
    let expect = concat!(
        "01010100",
        "00100000",
        "00000100",
        "0700000000000000",
        "0300000000000000",
        "09000000000000000000000000000000",
        "02000000",
        "0500000000000000",
        "88130000",
        "88130000",
        "01",
        "06000000",
        "44332211",
        "88776655",
    );
    assert_eq!(hex[..hex.len() - 8], *expect);
}

#[test]
fn marks_of_earlier_writes_make_it_format_2() {
    let content = Content {
        stamp: Stamp {
            version: ChunkVersion(7),
            chain: ChainVersion(3),
            tag: mark(0).tag,
        },
        len: 0,
        high_water: 0,
        block: None,
        sums: Arc::default(),
        recent: [mark(1)].into(),
    };
    let record = Record {
        page_size: 4096,
        chunk_size: 65536,
        committed: Some(content),
        pending: None,
    };
    let bytes = record.encode();
    let mut expect = vec![1];
    expect.extend(2u128.to_le_bytes());
    expect.extend(3u32.to_le_bytes());
    expect.extend(8u64.to_le_bytes());
    expect.extend(3u64.to_le_bytes());
    expect.extend(11u32.to_le_bytes());
    assert_eq!(bytes[0], 2);
    assert_eq!(
        bytes[bytes.len() - 4 - expect.len()..bytes.len() - 4],
        expect
    );
}

#[test]
fn only_the_last_write_of_each_of_the_latest_channels_is_remembered() {
    let tag = |channel, sequence| WriteTag {
        client: ClientId(1),
        channel,
        sequence,
    };
    let last = |channel, sequence| Mark {
        tag: tag(channel, sequence),
        version: ChunkVersion(sequence),
        len: 1,
    };
    let mut recent: Arc<[Mark]> = Arc::default();
    for n in 0..20 {
        recent = remember(&recent, last(n, u64::from(n)), tag(n + 1, 1));
    }
    let channels: Vec<_> = recent.iter().map(|m| m.tag.channel).collect();
    assert_eq!(channels, [19, 18, 17, 16, 15, 14, 13, 12]);
    let recent = remember(&recent, last(20, 20), tag(18, 30));
    let channels: Vec<_> = recent.iter().map(|m| m.tag.channel).collect();
    assert_eq!(
        channels,
        [20, 19, 17, 16, 15, 14, 13, 12],
        "18 is the newest write now"
    );
    let same = remember(&recent, last(18, 30), tag(18, 31));
    assert!(Arc::ptr_eq(&recent, &same), "one writer costs nothing");
}

#[test]
fn equal_content_has_equal_checksums_and_other_content_has_not() {
    let a = Content {
        stamp: Stamp {
            version: ChunkVersion(1),
            chain: ChainVersion(1),
            tag: WriteTag::default(),
        },
        len: 5000,
        high_water: 5000,
        block: Some(Loc {
            class: Class::for_len(5000).unwrap(),
            number: 6,
        }),
        sums: [1, 2].into(),
        recent: Arc::default(),
    };
    let elsewhere = Content {
        block: Some(Loc {
            number: 9,
            ..a.block.unwrap()
        }),
        ..a.clone()
    };
    assert_eq!(a.checksum(), elsewhere.checksum());
    assert_ne!(
        a.checksum(),
        Content {
            len: 5001,
            ..a.clone()
        }
        .checksum()
    );
    assert_ne!(
        a.checksum(),
        Content {
            sums: [1, 3].into(),
            ..a.clone()
        }
        .checksum()
    );
}
