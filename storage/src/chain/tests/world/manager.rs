//! The model manager: views, deaths and returns.

use super::*;

impl World {
    pub(super) fn view_of(&self, host: usize) -> View {
        let serving = || {
            self.states
                .iter()
                .filter(|s| s.1 == PublicState::Serving)
                .map(|s| s.0)
        };
        let mut writable = self
            .states
            .iter()
            .filter(|s| matches!(s.1, PublicState::Serving | PublicState::Syncing));
        let next = writable.by_ref().skip_while(|s| s.0 != host).nth(1);
        View {
            chain: ChainId(1),
            version: ChainVersion(self.version),
            state: self.states.iter().find(|s| s.0 == host).unwrap().1,
            is_head: serving().next() == Some(host),
            tail: serving().next_back().map(|t| TargetId(t as u64)),
            successor: next.map(|&(target, state)| Successor {
                target: TargetId(target as u64),
                syncing: state == PublicState::Syncing,
            }),
        }
    }

    /// A new map reaches every live host (in the order of the dice).
    pub(super) fn publish(&mut self) {
        let mut hosts: Vec<_> = (0..self.hosts.len())
            .filter(|&h| self.hosts[h].up)
            .collect();
        while !hosts.is_empty() {
            let host = hosts.swap_remove(self.pick(hosts.len()));
            let view = self.view_of(host);
            self.feed(host, Event::Adopt { view });
        }
    }

    /// The manager: dead SERVING members leave unless they are the last; returning ones sync, one at a time.
    pub(super) fn manage(&mut self) {
        use PublicState::{LastServing, Offline, Serving, Syncing, Waiting};
        let before = self.states.clone();
        let synced = |world: &Self, host: usize| {
            let replica = &world.hosts[host].replica;
            let current = replica.view().map(|v| v.version.0) == Some(world.version);
            world.hosts[host].up && current && replica.local() == LocalState::UpToDate
        };
        // A target that completes its sync in the very step in which the last other one dies is the
        // survivor: the dead one must not keep a claim to revive the chain.
        let survives = |s: &&(usize, PublicState)| match s.1 {
            Serving => self.hosts[s.0].up,
            Syncing => synced(self, s.0),
            _ => false,
        };
        let survivor = self.states.iter().any(|s| survives(&s));
        for i in 0..self.states.len() {
            let (host, state) = self.states[i];
            let up = self.hosts[host].up;
            let synced = synced(self, host);
            let serving = self.states.iter().any(|s| s.1 == Serving);
            let syncing = self.states.iter().any(|s| s.1 == Syncing);
            self.states[i].1 = match state {
                Serving if !up && survivor => Offline,
                Serving if !up => LastServing,
                LastServing if serving => Offline,
                LastServing if up => Serving,
                Syncing if !up => Offline,
                Syncing if synced => Serving,
                Syncing if !serving => Waiting,
                Offline | Waiting if up && serving && !syncing => Syncing,
                other => other,
            };
        }
        if self.states != before {
            self.states.sort_by_key(|s| match s.1 {
                Serving => 0,
                LastServing => 1,
                Syncing => 2,
                Waiting => 3,
                _ => 4,
            });
            self.version += 1;
            self.trace
                .push(format!("chain v{}: {:?}", self.version, self.states));
            self.publish();
        }
    }

    pub(super) fn crash(&mut self) {
        let host = self.pick(self.hosts.len());
        if self.hosts[host].up {
            self.trace.push(format!("crash {host}"));
            self.hosts[host].up = false;
            self.hosts[host].life += 1;
            self.hosts[host].replica = Replica::new(TargetId(host as u64));
            let lost: Vec<_> = self
                .waiting
                .keys()
                .filter(|k| k.0 == host)
                .copied()
                .collect();
            for key in lost {
                match self.waiting.remove(&key) {
                    Some(Waiter::Client { key }) => {
                        self.writers.get_mut(&key).unwrap().in_flight = false;
                    }
                    Some(Waiter::Forwarder {
                        host,
                        life,
                        op,
                        attempt,
                    }) => {
                        let event = Event::Forwarded {
                            op,
                            attempt,
                            result: Err(unreachable()),
                        };
                        self.bag.push(Item::Answer { host, life, event });
                    }
                    _ => {}
                }
            }
            // The manager sees it before the process can return.
            self.manage();
        }
    }

    pub(super) fn restart(&mut self) {
        let host = self.pick(self.hosts.len());
        let state = self.states.iter().find(|s| s.0 == host).unwrap().1;
        if !self.hosts[host].up && state != PublicState::Serving {
            self.trace.push(format!("restart {host}"));
            self.hosts[host].up = true;
            let view = self.view_of(host);
            self.feed(host, Event::Adopt { view });
        }
    }
}
