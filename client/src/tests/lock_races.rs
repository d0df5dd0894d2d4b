//! Whatever happens at the same time, the client remembers what the server holds.

use std::time::Duration;

use emberfs_proto::ids::InodeId;
use emberfs_proto::locks::Range;

use crate::testing::*;
use crate::{Client, LockKind, LockRequest, LockSpace};

const FILE: InodeId = InodeId(7);
const ROUNDS: u64 = 40;
const CALLS: u64 = 12;

/// Owners 1 and 2 are of the first client, 3 and 4 of the second.
const OWNERS: std::ops::RangeInclusive<u64> = 1..=4;

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn request(dice: &mut Dice, owner: u64) -> LockRequest {
    let kinds = [LockKind::Shared, LockKind::Exclusive, LockKind::Unlock];
    let start = dice.below(10);
    LockRequest {
        space: LockSpace::Posix,
        owner,
        pid: 0,
        kind: kinds[dice.below(3) as usize],
        start,
        end: start + dice.below(6),
    }
}

fn remembered(clients: &[Client; 2], owner: u64) -> Vec<Range> {
    clients[client_of(owner)].core.locks.held_by(owner)
}

fn client_of(owner: u64) -> usize {
    usize::from(owner > 2)
}

#[tokio::test]
async fn what_is_remembered_is_what_the_server_holds() {
    let cluster = Cluster::start().await;
    let clients = [cluster.client().await, cluster.client().await];
    let mut dice = Dice(1);
    for round in 0..ROUNDS {
        // 1. Calls of all owners at once; some are abandoned, some answers are lost, sometimes the server restarts.
        let mut calls = Vec::new();
        for _ in 0..CALLS {
            let owner = 1 + dice.below(4);
            let (request, wait) = (request(&mut dice, owner), dice.below(3) > 0);
            let client = clients[client_of(owner)].clone();
            calls.push(tokio::spawn(async move {
                let _ = client.set_lock(FILE, request, wait).await;
            }));
            if dice.below(3) == 0 {
                tokio::time::sleep(Duration::from_millis(dice.below(3))).await;
            }
            if dice.below(4) == 0 {
                calls[dice.below(calls.len() as u64) as usize].abort();
            }
            if dice.below(6) == 0 {
                let verb = ["lock", "unlock", "cancel_lock"][dice.below(3) as usize];
                let code = emberfs_proto::ErrorCode::MaybeCommitted;
                cluster.meta.fault(verb, code, dice.below(2) == 0, 1);
            }
        }
        if round % 4 == 3 {
            cluster.meta.restart_locks();
        }
        tokio::time::sleep(Duration::from_millis(dice.below(20))).await;
        // 2. Whoever still waits gives up.
        for call in &calls {
            call.abort();
        }
        cluster.meta.state.lock().forget_faults();
        let quiet = || clients.iter().all(|client| client.core.locks.is_quiet());
        eventually("no request is under way", quiet).await;
        // 3. Both sides agree, and no two owners have what only one can have.
        let agree = || {
            let state = cluster.meta.state.lock();
            let mut owners = OWNERS;
            owners.all(|owner| state.locks.of(owner) == remembered(&clients, owner))
        };
        eventually("server and clients agree", agree).await;
        assert_eq!(cluster.meta.state.lock().locks.waiting(), 0);
        for one in OWNERS {
            for other in OWNERS.filter(|other| *other != one) {
                let theirs = remembered(&clients, other);
                let mut pairs = remembered(&clients, one)
                    .into_iter()
                    .flat_map(|a| theirs.iter().map(move |b| (a, *b)));
                assert!(
                    pairs.all(|(a, b)| !a.conflicts(&b)),
                    "round {round}: owners {one} and {other}"
                );
            }
        }
    }
    for owner in OWNERS {
        let released = clients[client_of(owner)].release_locks(FILE, owner, LockSpace::Posix);
        released.await.unwrap();
    }
    for client in &clients {
        assert_eq!(client.core.locks.owners(), 0, "nothing is remembered");
    }
}
