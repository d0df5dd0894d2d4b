//! The host's side of its heartbeat stream, as in `crate::node::manager`.

use std::collections::BTreeMap;
use std::time::Duration;

use emberfs_proto::cluster;
use emberfs_proto::ids::MapVersion;
use emberfs_proto::{ErrorCode, Result, pb};

use super::host::Stream;
use super::mutant::Mutant;
use super::net::Place;
use super::world::{Event, World};
use crate::chain;

/// Time between heartbeats, on the host's clock, µs.
const HEARTBEAT: u64 = 1_000_000;

impl World {
    /// Says something to the manager when it is due.
    pub(super) fn beat(&mut self, host: usize, report: bool) {
        let now = self.now;
        let life = self.hosts[host].life;
        let clock = self.hosts[host].clock;
        let serves_on = self.mutated(Mutant::ServeFromFailedDisk);
        if !self.process(host).registered {
            return;
        }
        if !report {
            if now < self.process(host).beat_due {
                // Registered twice: one beat is enough.
                return;
            }
            let due = clock.lasts(HEARTBEAT);
            self.after(
                due,
                Event::Beat {
                    host,
                    life,
                    report: false,
                },
            );
            self.process(host).beat_due = now + due;
        }
        if self.hosts[host].disk.failed && !serves_on {
            let targets: Vec<_> = self.process(host).targets.keys().copied().collect();
            for target in targets {
                self.drive(host, target, chain::Event::Failed);
            }
        }
        let first = self.process(host).stream.is_none();
        if first {
            self.hosts[host].next_stream += 1;
            let id = self.hosts[host].next_stream;
            self.process(host).stream = Some(Stream {
                id,
                sequence: 0,
                sent: BTreeMap::new(),
                last_arrival: 0,
                last_reply: 0,
            });
        }
        let sent_at = clock.at(now);
        let mut request = self.heartbeat_request(host);
        let stream = self.process(host).stream.as_mut().expect("made above");
        stream.sequence += 1;
        request.sequence = stream.sequence;
        stream.sent.insert(stream.sequence, sent_at);
        let (id, last) = (stream.id, stream.last_arrival);
        match self.net.travel(Place::Host(host), Place::Manager, now) {
            Some(delay) => {
                let at = (now + delay).max(last + 1);
                if let Some(stream) = &mut self.process(host).stream {
                    stream.last_arrival = at;
                }
                let event = Event::HeartbeatAtManager {
                    host,
                    life,
                    stream: id,
                    first,
                    request,
                };
                self.after(at - now, event);
            }
            None => self.break_stream(host, id),
        }
    }

    /// A message of a stream was lost for good: both ends notice in their time.
    pub(super) fn break_stream(&mut self, host: usize, stream: u64) {
        let life = self.hosts[host].life;
        let ours = self.random.between(10_000, 4_000_000);
        let theirs = self.random.between(10_000, 4_000_000);
        self.after(ours, Event::StreamLost { host, life, stream });
        self.after(theirs, Event::Detached { host, stream });
    }

    pub(super) fn stream_lost(&mut self, host: usize, stream: u64) {
        let life = self.hosts[host].life;
        let process = self.process(host);
        if process.stream.as_ref().is_some_and(|s| s.id == stream) {
            process.stream = None;
            let wait = self.random.between(50_000, 400_000);
            self.after(
                wait,
                Event::Beat {
                    host,
                    life,
                    report: true,
                },
            );
        }
    }

    fn heartbeat_request(&mut self, host: usize) -> pb::HeartbeatRequest {
        let it = &self.hosts[host];
        let process = it.process.as_ref().expect("a process sends it");
        let failed = it.disk.failed;
        let targets = process.targets.values().map(|t| {
            let version = t.replica.view().map_or(0, |v| v.version.0);
            // With the mutant the replica does not know; the manager always does.
            let state = if failed || t.stopped {
                cluster::LocalState::Offline
            } else {
                t.replica.local()
            };
            pb::TargetReport {
                target: t.id.0,
                state: state as i32,
                chain_version: version,
                ..pb::TargetReport::default()
            }
        });
        let error = if failed { "failed" } else { "" };
        pb::HeartbeatRequest {
            node: it.id.0,
            incarnation: process.incarnation.to_bytes(),
            sequence: 0,
            targets: targets.collect(),
            disks: vec![pb::DiskReport {
                disk: it.disk_id().to_bytes(),
                error: error.to_owned(),
                space: Some(pb::Space {
                    capacity: 1 << 30,
                    used: 0,
                    free: 1 << 30,
                }),
                ..pb::DiskReport::default()
            }],
            map_version: process.map.version.0,
        }
    }

    pub(super) fn heartbeat_answer(
        &mut self,
        host: usize,
        stream: u64,
        reply: Result<pb::HeartbeatReply>,
    ) {
        let from_receipt = self.mutated(Mutant::LeaseFromReceipt);
        let received = self.hosts[host].clock.at(self.now);
        let life = self.hosts[host].life;
        let process = self.process(host);
        let Some(ours) = process.stream.as_mut().filter(|s| s.id == stream) else {
            return;
        };
        match reply {
            Ok(reply) => {
                if let Some(&sent) = ours.sent.get(&reply.sequence) {
                    ours.sent = ours.sent.split_off(&(reply.sequence + 1));
                    let from = if from_receipt { received } else { sent };
                    let lease = Duration::from_millis(u64::from(reply.lease_ms));
                    let map = MapVersion(reply.map_version);
                    process.term.granted(from, lease, map);
                }
            }
            Err(error) => {
                process.stream = None;
                if error.code == ErrorCode::UnknownNode {
                    process.registered = false;
                    self.note(|| format!("host {host} registers again: {}", error.message));
                    self.after(50_000, Event::Register { host, life });
                } else {
                    self.after(
                        50_000,
                        Event::Beat {
                            host,
                            life,
                            report: true,
                        },
                    );
                }
            }
        }
    }
}
