//! The cluster and its one queue of things to come.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use emberfs_proto::cluster::ClusterMap;
use emberfs_proto::ids::{ChainVersion, TargetId};
use emberfs_proto::{Result, pb};

use super::client::Client;
use super::family::Setup;
use super::faults::Kind;
use super::history::History;
use super::host::Host;
use super::invariants::Chains;
use super::manager::Manager;
use super::mutant::Mutant;
use super::net::{Answer, Net, Place, Request};
use super::random::Random;
use crate::chain;

/// Trace lines that are kept.
const TRACE: usize = 4000;
/// Everything must be settled so long after the faults end, µs.
const PATIENCE: u64 = 120_000_000;
/// More events than any run has: a loop without progress is a failure, not a hang.
const MOST_EVENTS: u64 = 3_000_000;

/// Something that will happen.
#[derive(Debug)]
pub(super) enum Event {
    /// A request reaches a host.
    Arrives {
        call: u64,
        from: Place,
        to: usize,
        request: Request,
    },
    Answered {
        call: u64,
        result: Result<Answer>,
    },
    CallFails {
        call: u64,
        timeout: bool,
    },
    /// To the protocol of a target, in this life of its process.
    Chain {
        host: usize,
        life: u64,
        target: TargetId,
        event: Box<chain::Event>,
    },
    /// A change of a disk takes effect.
    DiskDone {
        host: usize,
        life: u64,
        target: TargetId,
        change: u64,
        op: Option<chain::OpId>,
        what: super::target::Done,
    },
    /// A chunk is looked up.
    Lookup {
        host: usize,
        life: u64,
        target: TargetId,
        op: chain::OpId,
        key: emberfs_proto::ids::ChunkKey,
    },
    ReadDone {
        host: usize,
        life: u64,
        target: TargetId,
        read: u64,
    },
    PassAgain {
        host: usize,
        life: u64,
        target: TargetId,
        pass: u64,
    },
    Start {
        host: usize,
    },
    Register {
        host: usize,
        life: u64,
    },
    Registered {
        host: usize,
        life: u64,
    },
    /// The time for a heartbeat; `report` when something changed.
    Beat {
        host: usize,
        life: u64,
        report: bool,
    },
    HeartbeatAtManager {
        host: usize,
        life: u64,
        stream: u64,
        first: bool,
        request: pb::HeartbeatRequest,
    },
    HeartbeatAnswer {
        host: usize,
        life: u64,
        stream: u64,
        reply: Result<pb::HeartbeatReply>,
    },
    /// The host's end of a stream broke.
    StreamLost {
        host: usize,
        life: u64,
        stream: u64,
    },
    /// The manager's end did.
    Detached {
        host: usize,
        stream: u64,
    },
    RegisterAtManager {
        host: usize,
        life: u64,
    },
    LeaveAtManager {
        host: usize,
        life: u64,
    },
    Left {
        host: usize,
        life: u64,
    },
    ManagerTick,
    ManagerStart,
    Probed {
        refused: bool,
        probe: super::manager::ProbeId,
    },
    Saved {
        epoch: u64,
        ok: bool,
    },
    Map {
        to: Place,
        life: u64,
        map: Arc<ClusterMap>,
    },
    /// A watcher's stream is looked after.
    Watch {
        to: Place,
        life: u64,
    },
    Lane {
        client: usize,
        lane: usize,
        attempt: u64,
    },
    Fault,
    /// A fault of its time ends.
    Mend {
        host: usize,
        kind: Kind,
    },
    Heal,
    Calm,
}

/// See the module page.
pub(super) struct World {
    pub(super) setup: Setup,
    pub(super) now: u64,
    pub(super) step: u64,
    queue: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    pub(super) net: Net,
    pub(super) hosts: Vec<Host>,
    pub(super) manager: Manager,
    pub(super) clients: Vec<Client>,
    pub(super) history: History,
    pub(super) chains: Chains,
    /// Of disks and processes.
    pub(super) random: Random,
    pub(super) fault_random: Random,
    /// Faults that happened, for the minimiser.
    pub(super) faults: u64,
    /// Moves of replicas that are over.
    pub(super) moves: u64,
    pub(super) healed: bool,
    /// What went wrong.
    pub(super) failure: Option<String>,
    trace: std::collections::VecDeque<String>,
    tracing: bool,
}

/// What a run without a failure came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Summary {
    pub(super) acknowledged: u64,
    pub(super) reads: u64,
    pub(super) unknown: u64,
    pub(super) chain_changes: u64,
    pub(super) faults: u64,
    pub(super) moves: u64,
    pub(super) events: u64,
    /// Chunk histories too long to be decided within the budget.
    pub(super) undecided: u64,
}

/// What went wrong, and how it came to that.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) what: String,
    pub(super) trace: String,
    pub(super) events: u64,
}

impl World {
    pub(super) fn new(setup: Setup, tracing: bool) -> Self {
        let seed = setup.seed;
        let net = Net::new(setup.weather.clone(), Random::new(seed, 1));
        let mut random = Random::new(seed, 2);
        let hosts = (0..setup.hosts)
            .map(|i| Host::new(i, &setup, &mut random))
            .collect();
        let manager = Manager::new(&setup, &mut random);
        let clients = (0..setup.clients).map(|i| Client::new(i, &setup)).collect();
        let mut world = Self {
            fault_random: Random::new(seed, 3),
            now: 1_000_000,
            step: 0,
            queue: BTreeMap::new(),
            next_event: 0,
            net,
            hosts,
            manager,
            clients,
            history: History::default(),
            chains: Chains::default(),
            random,
            faults: 0,
            moves: 0,
            healed: false,
            failure: None,
            trace: std::collections::VecDeque::new(),
            tracing,
            setup,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.after(0, Event::ManagerStart);
        for host in 0..self.hosts.len() {
            let delay = self.random.below(100_000);
            self.after(delay, Event::Start { host });
        }
        for client in 0..self.clients.len() {
            self.after(
                1000,
                Event::Watch {
                    to: Place::Client(client),
                    life: 0,
                },
            );
            for lane in 0..self.clients[client].lanes.len() {
                let delay = 300_000 + self.random.below(200_000);
                self.after(
                    delay,
                    Event::Lane {
                        client,
                        lane,
                        attempt: 0,
                    },
                );
            }
        }
        let first = self.fault_pause();
        self.after(600_000 + first, Event::Fault);
        self.after(self.setup.load, Event::Heal);
    }

    pub(super) fn after(&mut self, delay: u64, event: Event) {
        self.next_event += 1;
        self.queue
            .insert((self.now + delay, self.next_event), event);
    }

    pub(super) fn mutated(&self, mutant: Mutant) -> bool {
        self.setup.mutant == Some(mutant)
    }

    /// The life of the process at a place: an answer for an earlier one is lost.
    pub(super) fn life_of(&self, place: Place) -> u64 {
        match place {
            Place::Host(host) => self.hosts[host].life,
            Place::Manager | Place::Client(_) => 0,
        }
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.tracing {
            if self.trace.len() == TRACE {
                self.trace.pop_front();
            }
            let line = format!("{:>11.6} {}", self.now as f64 / 1e6, line());
            self.trace.push_back(line);
        }
    }

    pub(super) fn fail(&mut self, what: impl FnOnce() -> String) {
        if self.failure.is_none() {
            self.failure = Some(what());
        }
    }

    /// Runs to the end.
    pub(super) fn run(mut self) -> Result<Summary, Failure> {
        while self.failure.is_none() {
            let Some((key, event)) = self.queue.pop_first() else {
                self.fail(|| "nothing is left to happen".to_owned());
                break;
            };
            self.now = key.0;
            self.step += 1;
            if self.step > MOST_EVENTS {
                self.fail(|| format!("{MOST_EVENTS} events and no end"));
                break;
            }
            if self.healed && matches!(event, Event::Calm) {
                if self.is_calm() {
                    self.check_end();
                    break;
                }
                if self.now > self.setup.load + PATIENCE {
                    let state = self.describe();
                    self.fail(|| format!("never settles after the faults have ended: {state}"));
                    break;
                }
                self.after(200_000, Event::Calm);
                continue;
            }
            self.happen(event);
        }
        let undecided = if self.failure.is_none() {
            match self.history.check() {
                Ok(undecided) => undecided,
                Err(what) => {
                    self.fail(|| what);
                    0
                }
            }
        } else {
            0
        };
        match self.failure.take() {
            None => Ok(Summary {
                acknowledged: self.history.acknowledged,
                reads: self.history.reads,
                unknown: self.history.unknown,
                chain_changes: self.chains.changes,
                faults: self.faults,
                moves: self.moves,
                events: self.step,
                undecided,
            }),
            Some(what) => {
                let mut trace = String::new();
                for line in &self.trace {
                    let _ = writeln!(trace, "{line}");
                }
                Err(Failure {
                    what,
                    trace,
                    events: self.step,
                })
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrives {
                call,
                from,
                to,
                request,
            } => {
                if self.hosts[to].stalled_until > self.now {
                    let wait = self.hosts[to].stalled_until - self.now;
                    return self.after(
                        wait,
                        Event::Arrives {
                            call,
                            from,
                            to,
                            request,
                        },
                    );
                }
                self.arrives(call, to, request);
            }
            Event::Answered { call, result } => {
                if let Some(wait) = self.stalled_caller(call) {
                    return self.after(wait, Event::Answered { call, result });
                }
                self.resolve(call, result);
            }
            Event::CallFails { call, timeout } => {
                let error = if timeout {
                    emberfs_proto::Error::new(
                        emberfs_proto::ErrorCode::DeadlineExceeded,
                        "no answer in time",
                    )
                } else {
                    super::net::unreachable()
                };
                if let Some(wait) = self.stalled_caller(call) {
                    return self.after(wait, Event::CallFails { call, timeout });
                }
                self.resolve(call, Err(error));
            }
            Event::ManagerTick => self.manager_tick(),
            Event::ManagerStart => self.manager_start(),
            Event::HeartbeatAtManager {
                host,
                life,
                stream,
                first,
                request,
            } => {
                self.heartbeat_at_manager(host, life, stream, first, request);
            }
            Event::Detached { host, stream } => self.detached(host, stream),
            Event::RegisterAtManager { host, life } => self.register_at_manager(host, life),
            Event::LeaveAtManager { host, life } => self.leave_at_manager(host, life),
            Event::Probed { refused, probe } => self.probed(refused, probe),
            Event::Saved { epoch, ok } => self.saved(epoch, ok),
            Event::Watch { to, life } => self.watch(to, life),
            Event::Map { to, life, map } => self.map_arrives(to, life, map),
            Event::Lane {
                client,
                lane,
                attempt,
            } => self.lane_due(client, lane, attempt),
            Event::Fault => self.fault(),
            Event::Mend { host, kind } => self.mend(host, kind),
            Event::Heal => self.heal(),
            Event::Calm => {}
            Event::Start { host } => self.start(host),
            event => self.host_event(event),
        }
    }

    /// How long the process that waits for an answer will not look.
    fn stalled_caller(&self, call: u64) -> Option<u64> {
        let Place::Host(host) = self.net.calls.get(&call)?.from else {
            return None;
        };
        let until = self.hosts[host].stalled_until;
        (until > self.now).then(|| until - self.now)
    }

    /// Faults end; everything is to come back.
    pub(super) fn heal(&mut self) {
        self.healed = true;
        self.note(|| "all faults end".to_owned());
        self.net.heal();
        for host in 0..self.hosts.len() {
            let it = &mut self.hosts[host];
            it.stalled_until = it.stalled_until.min(self.now);
            it.disk.stalled_until = 0;
            it.disk.full = false;
            it.disk.unreadable = false;
            it.disk.fail_next = false;
            if it.disk.failed && it.process.is_some() {
                self.crash(host, false);
            }
            self.after(100_000, Event::Start { host });
        }
        self.after(100_000, Event::ManagerStart);
        self.after(400_000, Event::Calm);
    }

    /// The version of a chain that a host's target is at.
    pub(super) fn adopted(&self, host: usize, target: TargetId) -> Option<ChainVersion> {
        let process = self.hosts[host].process.as_ref()?;
        let replica = &process.targets.get(&target)?.replica;
        replica.view().map(|view| view.version)
    }
}
