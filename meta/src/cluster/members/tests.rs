use super::*;
use PublicState::{LastServing, Offline, Serving, Syncing, Waiting};
use emberfs_proto::cluster::{Chain, Disk, Target};
use emberfs_proto::ids::{ChainId, MapVersion};

const LEASE: Duration = Duration::from_secs(5);

fn node(id: u32, incarnation: u128) -> Node {
    Node {
        id: NodeId(id),
        data_addr: format!("host{id}:1"),
        admin_addr: format!("host{id}:2"),
        incarnation: IncarnationId(incarnation),
        alive: true,
        disks: vec![Disk {
            id: DiskId(id.into()),
            path: "/d".into(),
            capacity: 1,
        }],
    }
}

/// One chain at version 4 over nodes 1 and 2, each in its first incarnation.
fn map() -> ClusterMap {
    let mut map = ClusterMap::default();
    for id in 1..=2 {
        map.nodes.insert(NodeId(id), node(id, 1));
        let target = Target {
            id: TargetId(id.into()),
            chain: ChainId(1),
            node: NodeId(id),
            disk: DiskId(id.into()),
            state: Serving,
        };
        map.targets.insert(target.id, target);
    }
    let targets = map.targets.keys().copied().collect();
    let chain = Chain {
        id: ChainId(1),
        version: ChainVersion(4),
        targets,
    };
    map.chains.insert(chain.id, chain);
    map
}

fn beat(id: u32, incarnation: u128, claims: &[(LocalState, u64)]) -> pb::HeartbeatRequest {
    let report = |&(state, chain_version): &(LocalState, u64)| pb::TargetReport {
        target: id.into(),
        state: state.into(),
        chain_version,
        ..Default::default()
    };
    pb::HeartbeatRequest {
        node: id,
        incarnation: IncarnationId(incarnation).to_bytes(),
        targets: claims.iter().map(report).collect(),
        ..Default::default()
    }
}

/// Members of [`map`], both heard of and settled.
fn settled(map: &ClusterMap, now: Instant) -> (Members, [StreamId; 2]) {
    let mut members = Members::from_map(map, LEASE, now);
    let streams = [1, 2].map(|id| {
        let stream = members.attach(NodeId(id), IncarnationId(1)).unwrap();
        let claims = &[(LocalState::UpToDate, 4)];
        members
            .heartbeat(stream, beat(id, 1, claims), map, now)
            .unwrap();
        stream
    });
    members.tick(map, now);
    assert!(!members.is_settling());
    (members, streams)
}

fn local(members: &Members, id: u32, public: PublicState, version: u64) -> LocalState {
    let (target, node, disk) = (TargetId(id.into()), NodeId(id), DiskId(id.into()));
    members.local(target, node, disk, public, ChainVersion(version))
}

#[test]
fn a_stale_claim_keeps_a_replica_where_it_is() {
    let (members, _) = settled(&map(), Instant::now());
    // Its node said UP_TO_DATE under version 4; the chain is at 5 now.
    assert_eq!(local(&members, 1, Serving, 5), LocalState::UpToDate);
    assert_eq!(local(&members, 1, Syncing, 5), LocalState::Online);
    assert_eq!(
        local(&members, 1, Waiting, 5),
        LocalState::UpToDate,
        "WAITING stays WAITING"
    );
    assert_eq!(local(&members, 1, Offline, 5), LocalState::Offline);
    assert_eq!(local(&members, 1, LastServing, 5), LocalState::Offline);
    // Under the version in force it counts.
    assert_eq!(local(&members, 1, Syncing, 4), LocalState::UpToDate);
}

#[test]
fn offline_counts_whatever_its_version() {
    let (map, now) = (map(), Instant::now());
    let (mut members, streams) = settled(&map, now);
    members
        .heartbeat(
            streams[0],
            beat(1, 1, &[(LocalState::Offline, 1)]),
            &map,
            now,
        )
        .unwrap();
    assert_eq!(local(&members, 1, Serving, 4), LocalState::Offline);
    members
        .heartbeat(
            streams[0],
            beat(1, 1, &[(LocalState::Online, 3)]),
            &map,
            now,
        )
        .unwrap();
    assert_eq!(
        local(&members, 1, Serving, 4),
        LocalState::Offline,
        "an older claim does not undo it"
    );
}

#[test]
fn a_failed_disk_overrules_what_the_targets_say() {
    let (map, now) = (map(), Instant::now());
    let (mut members, streams) = settled(&map, now);
    let mut request = beat(1, 1, &[(LocalState::UpToDate, 4)]);
    let disk = DiskId(1).to_bytes();
    request.disks = vec![pb::DiskReport {
        disk,
        error: "EIO".into(),
        ..Default::default()
    }];
    members.heartbeat(streams[0], request, &map, now).unwrap();
    assert_eq!(local(&members, 1, Serving, 4), LocalState::Offline);
}

#[test]
fn a_node_cannot_speak_for_the_targets_of_another() {
    let (map, now) = (map(), Instant::now());
    let (mut members, streams) = settled(&map, now);
    let mut request = beat(1, 1, &[(LocalState::Offline, 4)]);
    request.targets[0].target = 2;
    members.heartbeat(streams[0], request, &map, now).unwrap();
    assert_eq!(local(&members, 2, Serving, 4), LocalState::UpToDate);
}

#[test]
fn targets_of_a_vanished_disk_are_offline_and_new_disks_are_taken_in() {
    let (map, now) = (map(), Instant::now());
    let (mut members, _) = settled(&map, now);
    let mut changed = node(1, 1);
    changed.disks[0].id = DiskId(77);
    changed.disks[0].path = "/other".into();
    assert_eq!(
        members.register(changed.into(), &map, now),
        Ok(Admission::Admitted)
    );
    assert_eq!(local(&members, 1, Serving, 4), LocalState::Offline);
    assert_eq!(
        members.session(NodeId(1)).unwrap().node.disks[0].id,
        DiskId(77)
    );
}

#[test]
fn an_empty_directory_in_the_place_of_a_disk_with_replicas_is_refused() {
    let (map, now) = (map(), Instant::now());
    let (mut members, _) = settled(&map, now);
    let mut unmounted = node(1, 2);
    unmounted.disks[0].id = DiskId(77);
    let error = members.register(unmounted.into(), &map, now).unwrap_err();
    assert_eq!(error.code, ErrorCode::ForeignDisk);
    assert!(error.message.contains(&DiskId(1).to_string()), "{error}");
    // Nothing held replicas there.
    let mut empty = map.clone();
    empty.targets.clear();
    let mut swapped = node(1, 1);
    swapped.disks[0].id = DiskId(78);
    assert_eq!(
        members.register(swapped.into(), &empty, now),
        Ok(Admission::Admitted)
    );
}

#[test]
fn a_disk_of_another_node_is_refused() {
    let (map, now) = (map(), Instant::now());
    let (mut members, _) = settled(&map, now);
    let mut thief = node(3, 1);
    thief.disks[0].id = DiskId(1);
    let error = members.register(thief.into(), &map, now).unwrap_err();
    assert_eq!(error.code, ErrorCode::ForeignDisk);
}

#[test]
fn a_lease_lasts_from_the_grant_plus_a_margin_and_not_longer() {
    let (map, now) = (map(), Instant::now());
    let (mut members, streams) = settled(&map, now);
    let later = now + Duration::from_secs(3);
    members
        .heartbeat(streams[0], beat(1, 1, &[]), &map, later)
        .unwrap();
    assert!(members.tick(&map, now + LEASE).expired.is_empty());
    assert_eq!(
        members.tick(&map, now + LEASE + margin(LEASE)).expired,
        [NodeId(2)]
    );
    assert!(members.tick(&map, later + LEASE).expired.is_empty());
    assert_eq!(
        members.tick(&map, later + LEASE + margin(LEASE)).expired,
        [NodeId(1)]
    );
    let error = members
        .heartbeat(streams[1], beat(2, 1, &[]), &map, later)
        .unwrap_err();
    assert_eq!(
        error.code,
        ErrorCode::UnknownNode,
        "the dead must register again"
    );
}

#[test]
fn a_refusal_kills_only_the_process_that_was_probed_and_only_without_a_stream() {
    let (map, now) = (map(), Instant::now());
    let (mut members, streams) = settled(&map, now);
    let suspect = |incarnation| Suspect {
        node: NodeId(1),
        incarnation: IncarnationId(incarnation),
        addr: "host1:1".into(),
    };
    assert!(!members.refused(&suspect(1), &map), "its stream lives");
    assert!(members.detach(NodeId(1), streams[0]));
    assert_eq!(members.tick(&map, now).suspects, [suspect(1)]);
    assert!(
        members.tick(&map, now).suspects.is_empty(),
        "not twice within the interval"
    );
    assert_eq!(members.tick(&map, now + PROBE_INTERVAL).suspects.len(), 1);
    assert!(!members.refused(&suspect(9), &map), "another incarnation");
    assert!(members.refused(&suspect(1), &map));
    assert_eq!(local(&members, 1, Serving, 4), LocalState::Offline);
}

#[test]
fn a_newer_stream_replaces_the_older_whose_end_is_no_news() {
    let (map, now) = (map(), Instant::now());
    let (mut members, streams) = settled(&map, now);
    let newer = members.attach(NodeId(1), IncarnationId(1)).unwrap();
    assert!(
        members
            .heartbeat(streams[0], beat(1, 1, &[]), &map, now)
            .is_err()
    );
    assert!(!members.detach(NodeId(1), streams[0]));
    assert!(members.heartbeat(newer, beat(1, 1, &[]), &map, now).is_ok());
    assert!(members.tick(&map, now).suspects.is_empty());
}

#[test]
fn a_second_process_is_contested_until_the_first_is_certainly_gone() {
    let (map, now) = (map(), Instant::now());
    let (mut members, streams) = settled(&map, now);
    let mut moved = node(1, 2);
    moved.data_addr = "elsewhere:1".into();
    let contested = |m: &mut Members, n: &Node| {
        m.register(n.clone().into(), &map, now).unwrap() != Admission::Admitted
    };
    assert!(
        contested(&mut members, &node(1, 2)),
        "same address, but the old stream lives"
    );
    assert!(contested(&mut members, &moved));
    members.detach(NodeId(1), streams[0]);
    assert!(
        contested(&mut members, &moved),
        "the old one may still serve at its own address"
    );
    assert!(
        !contested(&mut members, &node(1, 2)),
        "its port was taken over: it is gone"
    );
    // The new process is fresh: that it registered is claim enough, under any version.
    assert_eq!(local(&members, 1, Offline, 9), LocalState::Online);
}

#[test]
fn settling_waits_for_each_live_node_or_for_the_longest_lease() {
    let mut map = map();
    let now = Instant::now();
    let mut members = Members::from_map(&map, LEASE, now);
    let stream = members.attach(NodeId(1), IncarnationId(1)).unwrap();
    members
        .heartbeat(stream, beat(1, 1, &[]), &map, now)
        .unwrap();
    let end = now + LEASE + margin(LEASE) + SETTLE_MARGIN;
    members
        .heartbeat(stream, beat(1, 1, &[]), &map, end)
        .unwrap();
    assert!(
        members
            .tick(&map, end - Duration::from_millis(1))
            .expired
            .is_empty()
    );
    assert!(members.is_settling());
    assert_eq!(members.tick(&map, end).expired, [NodeId(2)]);
    assert!(!members.is_settling());
    // A node that was dead already is not waited for.
    map.nodes.get_mut(&NodeId(2)).unwrap().alive = false;
    let mut members = Members::from_map(&map, LEASE, now);
    let stream = members.attach(NodeId(1), IncarnationId(1)).unwrap();
    members
        .heartbeat(stream, beat(1, 1, &[]), &map, now)
        .unwrap();
    members.tick(&map, now);
    assert!(!members.is_settling());
}

#[test]
fn the_margin_covers_two_clocks_that_are_one_percent_wrong() {
    for seconds in [1, 5, 12, 60, 600] {
        let lease = Duration::from_secs(seconds);
        // The node's clock shows 99 hundredths of the time, the manager's 101.
        let node = lease * 100 / 99;
        let manager = (lease + margin(lease)) * 100 / 101;
        assert!(node < manager, "{node:?} {manager:?}");
    }
}

/// A registration of node 1 whose disk bears these marks.
fn marked(incarnation: u128, last: u64, now: u64) -> Announcement {
    let mark = |mark| BTreeMap::from([(DiskId(1), mark)]);
    Announcement {
        openings: mark(now),
        last_openings: mark(last),
        ..node(1, incarnation).into()
    }
}

#[test]
fn an_older_copy_of_a_disk_is_refused_and_the_newest_is_not() {
    let (mut map, now) = (map(), Instant::now());
    let (mut members, streams) = settled(&map, now);
    members.detach(NodeId(1), streams[0]);
    let mut register = |announced: Announcement, map: &ClusterMap| {
        members
            .register(announced, map, now)
            .map(|admission| assert_eq!(admission, Admission::Admitted))
    };
    assert_eq!(
        register(marked(2, 0, 70), &map),
        Ok(()),
        "nothing is remembered yet"
    );
    map.openings.insert(DiskId(1), 70);
    assert_eq!(
        register(marked(2, 0, 70), &map),
        Ok(()),
        "the same opening again"
    );
    assert_eq!(
        register(marked(3, 70, 71), &map),
        Ok(()),
        "the next opening"
    );
    assert_eq!(
        register(marked(4, 70, 72), &map),
        Ok(()),
        "the one before came to nothing"
    );
    map.openings.insert(DiskId(1), 71);
    assert_eq!(
        register(marked(5, 70, 71), &map),
        Ok(()),
        "killed before it heard that 71 was accepted"
    );
    for (last, next) in [(70, 99), (0, 99), (69, 70)] {
        let error = register(marked(6, last, next), &map).unwrap_err();
        assert_eq!(error.code, ErrorCode::ForeignDisk);
        for word in ["older copy", "/d of node n1", "emberfs replace"] {
            assert!(error.message.contains(word), "{error}");
        }
    }
    let unmarked = register(node(1, 7).into(), &map).unwrap_err();
    assert_eq!(
        unmarked.code,
        ErrorCode::ForeignDisk,
        "a copy from before there were marks"
    );
}

#[test]
fn a_node_that_knows_newer_maps_is_told_that_the_metadata_is_old() {
    let (map, now) = (map(), Instant::now());
    let (mut members, _) = settled(&map, now);
    let mut check = |node, version| members.check_version(NodeId(node), MapVersion(version), &map);
    assert_eq!(check(1, map.version.0), Ok(()));
    let error = check(1, map.version.0 + 1).unwrap_err();
    assert_eq!(error.code, ErrorCode::MetadataTooOld);
    assert!(error.message.contains("`data_dir`"), "{error}");
    assert_eq!(
        check(2, map.version.0),
        Ok(()),
        "one liar does not stop a manager that works"
    );
}

#[test]
fn a_manager_that_starts_from_an_old_map_judges_nobody() {
    let (map, now) = (map(), Instant::now());
    let mut members = Members::from_map(&map, LEASE, now);
    let error = members
        .check_version(NodeId(1), MapVersion(map.version.0 + 9), &map)
        .unwrap_err();
    let later = now + 100 * LEASE;
    assert!(members.tick(&map, later).expired.is_empty());
    assert!(members.is_settling(), "or the old map would grow newer");
    assert_eq!(
        members.check_version(NodeId(2), map.version, &map),
        Err(error)
    );
}
