//! Clients, and what must hold for them.

use super::*;

impl World {
    pub(super) fn client_write(&mut self) {
        let keys: Vec<_> = self.writers.keys().copied().collect();
        let key = keys[self.pick(keys.len())];
        let Some(head) = self
            .states
            .iter()
            .find(|s| s.1 == PublicState::Serving)
            .map(|s| s.0)
        else {
            return;
        };
        let writer = self.writers.get_mut(&key).unwrap();
        if writer.in_flight || !self.hosts[head].up {
            return;
        }
        // What was not acknowledged is sent again, as the same write.
        if writer.acknowledged == writer.sequence {
            writer.sequence += 1;
        }
        writer.in_flight = true;
        let sequence = writer.sequence;
        let update = update(key, sequence, &sequence.to_be_bytes());
        let chain_version = ChainVersion(self.version);
        self.request(head, Waiter::Client { key }, |request| Event::Write {
            request,
            chain_version,
            update,
            trim: None,
        });
    }

    /// Any SERVING replica must show the newest acknowledged write or one after it, and never less
    /// than a reader has seen before.
    pub(super) fn client_read(&mut self) {
        let keys: Vec<_> = self.writers.keys().copied().collect();
        let key = keys[self.pick(keys.len())];
        let host = self.pick(self.hosts.len());
        let plan = self.hosts[host].replica.read_plan(
            key,
            ChainVersion(self.version),
            self.hosts[host].up,
        );
        let Ok(plan) = plan else { return };
        let stored = self.hosts[host].disk.get(&key).cloned().unwrap_or_default();
        let bytes = match plan {
            ReadPlan::Committed => stored.committed.bytes,
            ReadPlan::Newest => stored.pending.map_or(stored.committed.bytes, |p| p.bytes),
            ReadPlan::AskTail(tail) => {
                let tail = &self.hosts[tail.0 as usize];
                let plan = tail
                    .replica
                    .tail_plan(key, ChainVersion(self.version), tail.up);
                let theirs = tail.disk.get(&key).cloned().unwrap_or_default();
                let committed = match (plan, theirs.pending) {
                    (Err(_), _) => return,
                    (Ok(ReadPlan::Newest), Some(pending)) => pending.number,
                    _ => theirs.committed.number,
                };
                if stored.committed.number >= committed {
                    stored.committed.bytes
                } else {
                    let pending = stored.pending.filter(|p| p.number == committed);
                    pending
                        .expect("a replica holds what its tail has committed")
                        .bytes
                }
            }
        };
        let shown = bytes.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
        let writer = self.writers.get_mut(&key).unwrap();
        let floor = writer.acknowledged.max(writer.seen);
        assert!(
            (floor..=writer.sequence).contains(&shown),
            "{key}: host {host} shows {shown}, expected {floor}..={}\n{}",
            writer.sequence,
            self.trace.join("\n")
        );
        writer.seen = shown;
    }

    /// The invariants that hold at every moment.
    pub(super) fn check(&self) {
        let serving: Vec<_> = self
            .states
            .iter()
            .filter(|s| s.1 == PublicState::Serving)
            .map(|s| &self.hosts[s.0])
            .collect();
        for (key, writer) in &self.writers {
            let mut newest = 0;
            for host in &serving {
                let stored = host.disk.get(key).cloned().unwrap_or_default();
                let text =
                    |v: &Version| v.bytes.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
                let durable = stored
                    .pending
                    .as_ref()
                    .map_or(0, text)
                    .max(text(&stored.committed));
                assert!(
                    durable >= writer.acknowledged,
                    "{key}: {} was acknowledged, a SERVING replica holds only {durable}\n{}",
                    writer.acknowledged,
                    self.trace.join("\n")
                );
                assert!(
                    stored.committed.number >= newest,
                    "{key}: committed versions decrease along the chain\n{}",
                    self.trace.join("\n")
                );
                newest = stored.committed.number;
            }
        }
    }

    pub(super) fn check_equal(&self) {
        for key in self.writers.keys() {
            let copies: Vec<_> = self
                .hosts
                .iter()
                .map(|h| {
                    h.disk
                        .get(key)
                        .map(|s| (s.committed.number, &s.committed.bytes, s.pending.is_some()))
                })
                .collect();
            assert!(
                copies.windows(2).all(|w| w[0] == w[1]) && copies[0].is_none_or(|c| !c.2),
                "{key}: replicas differ: {copies:?}\n{}",
                self.trace.join("\n")
            );
        }
    }
}
