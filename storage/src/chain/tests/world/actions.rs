//! What a replica's actions do: model disks, the network, resync passes.

use super::*;

impl World {
    pub(super) fn act(&mut self, host: usize, action: Action) {
        let event = match action {
            Action::Load { op, key } => {
                let meta = self.hosts[host].disk.get(&key).map(Stored::meta);
                Event::Loaded {
                    op,
                    result: Ok(meta),
                }
            }
            Action::Prepare { op, key, prepare } => {
                let meta = self.prepare(host, key, &prepare);
                Event::Prepared {
                    op,
                    result: Ok(meta),
                }
            }
            Action::ReadContent { op, key, version } => {
                let stored = &self.hosts[host].disk[&key];
                let bytes = match version {
                    ReadVersion::Committed => &stored.committed.bytes,
                    ReadVersion::Exactly(v) if v.0 == stored.committed.number => {
                        &stored.committed.bytes
                    }
                    _ => {
                        &stored
                            .pending
                            .as_ref()
                            .expect("pending while it is being forwarded")
                            .bytes
                    }
                };
                let checksums = fragment_checksums(0, bytes, PAGE);
                let content = Content {
                    data: Bytes::copy_from_slice(bytes),
                    checksums,
                };
                Event::Content {
                    op,
                    result: Ok(content),
                }
            }
            Action::Commit {
                op,
                key,
                version,
                chain,
            } => {
                let trace = &self.trace;
                let stored = self.hosts[host]
                    .disk
                    .get_mut(&key)
                    .expect("prepared before");
                let Some(pending) = stored.pending.take() else {
                    panic!("{host} commits {key} {version} twice\n{}", trace.join("\n"));
                };
                assert_eq!(pending.number, version.0);
                stored.committed = Version {
                    chain: chain.0,
                    ..pending
                };
                Event::Committed { op, result: Ok(()) }
            }
            Action::Recover { chain_version } => {
                for stored in self.hosts[host].disk.values_mut() {
                    if let Some(pending) = stored.pending.take() {
                        stored.committed = pending;
                    }
                }
                self.trace
                    .push(format!("{host} recovers under {chain_version}"));
                Event::Recovered {
                    chain_version,
                    result: Ok(()),
                }
            }
            Action::Drop { op, key } => {
                self.hosts[host].disk.remove(&key);
                Event::Committed { op, result: Ok(()) }
            }
            Action::RetryAfter { op, attempt, .. } => Event::RetryDue { op, attempt },
            Action::Send {
                op,
                attempt,
                to,
                chain_version,
                forward,
            } => {
                let (to, life) = (to.0 as usize, self.hosts[host].life);
                if !self.hosts[to].up || self.one_in(8) {
                    Event::Forwarded {
                        op,
                        attempt,
                        result: Err(unreachable()),
                    }
                } else {
                    let waiter = Waiter::Forwarder {
                        host,
                        life,
                        op,
                        attempt,
                    };
                    return self.request(to, waiter, |request| Event::Forward {
                        request,
                        chain_version,
                        forward,
                    });
                }
            }
            Action::StartResync {
                chain_version,
                busy,
                ..
            } => {
                self.busy.insert((host, chain_version.0), busy.clone());
                return self.start_pass(host, chain_version.0, &busy);
            }
            other => panic!("unexpected {other:?}"),
        };
        self.feed(host, event);
    }

    pub(super) fn prepare(&mut self, host: usize, key: ChunkKey, prepare: &Prepare) -> ChunkMeta {
        let stored = self.hosts[host].disk.entry(key).or_default();
        let bytes = match &prepare.kind {
            PrepareKind::Write { data, .. } => {
                let mut bytes = stored.committed.bytes.clone();
                bytes.resize(bytes.len().max(data.len()), 0);
                bytes[..data.len()].copy_from_slice(data);
                bytes
            }
            PrepareKind::Replace { data, .. } => data.to_vec(),
            other => panic!("unexpected {other:?}"),
        };
        if !matches!(prepare.kind, PrepareKind::Replace { .. }) {
            assert_eq!(
                prepare.version.0,
                stored.committed.number + 1,
                "version gap"
            );
            assert!(stored.pending.is_none(), "two pending versions");
        }
        stored.pending = Some(Version {
            number: prepare.version.0,
            bytes,
            tag: prepare.tag,
            chain: prepare.chain_version.0,
        });
        stored.meta()
    }

    pub(super) fn start_pass(&mut self, host: usize, version: u64, busy: &[ChunkKey]) {
        if version != self.version || !self.hosts[host].up {
            return;
        }
        // Answers to an earlier pass must not count for this one.
        self.next_request += 1;
        let pass = (host, version, self.next_request);
        let Some(&(to, _)) = self.states.iter().find(|s| s.1 == PublicState::Syncing) else {
            return;
        };
        if !self.hosts[to].up || !self.hosts[to].replica.is_settled() {
            let life = self.hosts[host].life;
            let (to, busy) = (TargetId(to as u64), busy.to_vec());
            let action = Action::StartResync {
                chain_version: ChainVersion(version),
                to,
                busy,
            };
            return self.bag.push(Item::Do { host, life, action });
        }
        let view = |h: &Host, k: &ChunkKey| {
            h.disk.get(k).map(|s| {
                (
                    s.committed.number,
                    crc32(&s.committed.bytes),
                    s.pending.is_some(),
                )
            })
        };
        let (ours, theirs) = (&self.hosts[host], &self.hosts[to]);
        let all: BTreeSet<_> = ours
            .disk
            .keys()
            .chain(theirs.disk.keys())
            .copied()
            .collect();
        let differs = |key: &ChunkKey| {
            let (a, b) = (view(ours, key), view(theirs, key));
            let same = a.map(|a| (a.0, a.1)) == b.map(|b| (b.0, b.1)) && b.is_none_or(|b| !b.2);
            !same || busy.contains(key)
        };
        let keys: BTreeSet<_> = all.into_iter().filter(differs).collect();
        self.trace.push(format!(
            "resync {host} -> {to} v{version}: {} chunks",
            keys.len()
        ));
        self.passes.insert(pass, keys.clone());
        for key in keys {
            let chain_version = ChainVersion(version);
            self.request(host, Waiter::Resync { pass }, |request| Event::Resync {
                request,
                chain_version,
                key,
            });
        }
        self.end_pass(pass);
    }

    pub(super) fn end_pass(&mut self, pass: (usize, u64, u64)) {
        if self.passes.get(&pass).is_some_and(BTreeSet::is_empty) && pass.1 == self.version {
            self.passes.remove(&pass);
            let Some(&(to, _)) = self.states.iter().find(|s| s.1 == PublicState::Syncing) else {
                return;
            };
            if self.hosts[to].up {
                let chain_version = ChainVersion(pass.1);
                self.request(to, Waiter::SyncDone, |request| Event::SyncDone {
                    request,
                    chain_version,
                });
            }
        }
    }
}
