//! What goes wrong, when, for how long.

use super::net::Place;
use super::world::{Event, World};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// kill -9: what was written stays.
    Kill,
    /// The machine loses power: what was not flushed may be lost.
    Power,
    /// All hosts at about the same time.
    KillAll,
    /// The process is stopped for a while and goes on.
    Pause,
    /// Some links carry nothing, in one or both directions.
    Cut,
    /// The manager cannot be reached by a host and by some clients, which go on with the map they have.
    Apart,
    /// The manager is killed.
    Manager,
    /// A clean stop.
    Leave,
    /// A disk answers late.
    Stall,
    /// A write fails.
    DiskFails,
    /// A disk is full.
    Full,
    /// Reads fail for a while.
    Unreadable,
    /// A heartbeat stream breaks.
    Stream,
    /// No fault: an operator has a host drained, or lets it take replicas again.
    Grow,
}

impl Kind {
    pub(super) const ALL: &'static [Self] = &[
        Self::Kill,
        Self::Power,
        Self::KillAll,
        Self::Pause,
        Self::Cut,
        Self::Apart,
        Self::Manager,
        Self::Leave,
        Self::Stall,
        Self::DiskFails,
        Self::Full,
        Self::Unreadable,
        Self::Stream,
        Self::Grow,
    ];
}

impl World {
    pub(super) fn fault_pause(&mut self) -> u64 {
        let every = self.setup.fault_every;
        self.fault_random.between(every / 4, every * 2)
    }

    /// The next fault.
    pub(super) fn fault(&mut self) {
        if self.healed {
            return;
        }
        let pause = self.fault_pause();
        self.after(pause, Event::Fault);
        let total: u64 = self.setup.faults.iter().map(|&(_, weight)| weight).sum();
        if total == 0 {
            return;
        }
        let mut dice = self.fault_random.below(total);
        let mut kind = None;
        for &(of, weight) in &self.setup.faults {
            if dice < weight {
                kind = Some(of);
                break;
            }
            dice -= weight;
        }
        let host = self.fault_random.below(self.hosts.len() as u64) as usize;
        let long = self.fault_random.chance(self.setup.long * 10);
        let lasts = if long {
            let longest = 9_000_000.max(self.setup.lease * 3 / 2);
            self.fault_random.between(1_000_000, longest)
        } else {
            self.fault_random.between(2_000, 600_000)
        };
        let choice = self.fault_random.below(1000);
        let Some(kind) = kind.filter(|kind| !self.setup.without.contains(kind)) else {
            return;
        };
        self.faults += 1;
        self.strike(kind, host, lasts, choice);
    }

    fn strike(&mut self, kind: Kind, host: usize, lasts: u64, choice: u64) {
        if kind != Kind::Kill && kind != Kind::Power {
            self.note(|| format!("fault {kind:?} of host {host} for {} ms", lasts / 1000));
        }
        let now = self.now;
        match kind {
            Kind::Kill | Kind::Power => {
                self.crash(host, kind == Kind::Power);
                self.after(lasts, Event::Start { host });
            }
            Kind::KillAll => {
                let power = choice.is_multiple_of(2);
                for host in 0..self.hosts.len() {
                    let apart = if choice.is_multiple_of(3) {
                        0
                    } else {
                        self.fault_random.below(300_000)
                    };
                    let event = if power { Kind::Power } else { Kind::Kill };
                    self.after(apart, Event::Mend { host, kind: event });
                    let back = self.fault_random.between(0, lasts);
                    self.after(310_000 + back, Event::Start { host });
                }
            }
            Kind::Pause => {
                let it = &mut self.hosts[host];
                if it.process.is_some() {
                    it.stalled_until = now + lasts;
                }
            }
            Kind::Cut => self.cut(host, now + lasts, choice),
            Kind::Apart => {
                let clients = (0..self.clients.len()).filter(|c| choice >> c & 1 == 0);
                let apart: Vec<_> = clients
                    .map(Place::Client)
                    .chain([Place::Host(host)])
                    .collect();
                // Or the host sleeps as long, and is back before the clients hear of its death.
                let sleeps = choice >> 8 & 1 == 1;
                if sleeps && self.hosts[host].process.is_some() {
                    self.hosts[host].stalled_until = now + lasts;
                }
                for place in apart {
                    let until = match place {
                        Place::Host(_) if sleeps => now,
                        Place::Client(_) if sleeps => now + lasts + 3_000_000,
                        _ => now + lasts,
                    };
                    self.net.block(place, Place::Manager, until);
                    self.net.block(Place::Manager, place, until);
                }
            }
            Kind::Manager => {
                self.manager_crash();
                self.after(lasts, Event::ManagerStart);
            }
            Kind::Grow => self.wish(host),
            Kind::Leave => {
                self.leave(host);
                self.after(3_200_000 + lasts, Event::Start { host });
                self.after(lasts, Event::Start { host });
            }
            Kind::Stall => self.hosts[host].disk.stalled_until = now + lasts,
            Kind::DiskFails => {
                self.hosts[host].disk.fail_next = true;
                self.after(1_000_000 + lasts, Event::Mend { host, kind });
            }
            Kind::Full => {
                self.hosts[host].disk.full = true;
                self.after(lasts, Event::Mend { host, kind });
            }
            Kind::Unreadable => {
                self.hosts[host].disk.unreadable = true;
                self.after(lasts.min(500_000), Event::Mend { host, kind });
            }
            Kind::Stream => {
                let stream = self.hosts[host]
                    .process
                    .as_ref()
                    .and_then(|p| p.stream.as_ref());
                if let Some(id) = stream.map(|s| s.id) {
                    self.break_stream(host, id);
                }
            }
        }
    }

    fn cut(&mut self, host: usize, until: u64, choice: u64) {
        let me = Place::Host(host);
        let hosts = (0..self.hosts.len())
            .filter(|&h| h != host)
            .map(Place::Host);
        let clients = (0..self.clients.len()).map(Place::Client);
        let others: Vec<Place> = match choice % 5 {
            // Alone.
            0 => hosts.chain(clients).chain([Place::Manager]).collect(),
            1 => vec![Place::Manager],
            2 => vec![Place::Manager].into_iter().chain(hosts).collect(),
            3 => hosts.collect(),
            _ => clients.take(1 + choice as usize % 3).collect(),
        };
        let (to, from) = (choice / 5 % 4 != 1, choice / 5 % 4 != 2);
        for other in others {
            if to {
                self.net.block(me, other, until);
            }
            if from {
                self.net.block(other, me, until);
            }
        }
    }

    /// The end of a fault, or a delayed blow.
    pub(super) fn mend(&mut self, host: usize, kind: Kind) {
        if self.healed {
            return;
        }
        match kind {
            Kind::Kill | Kind::Power => self.crash(host, kind == Kind::Power),
            Kind::DiskFails => {
                // An operator looks after it.
                if self.hosts[host].disk.failed {
                    self.crash(host, false);
                    self.after(200_000, Event::Start { host });
                }
                self.hosts[host].disk.fail_next = false;
            }
            Kind::Full => self.hosts[host].disk.full = false,
            Kind::Unreadable => self.hosts[host].disk.unreadable = false,
            _ => {}
        }
    }
}
