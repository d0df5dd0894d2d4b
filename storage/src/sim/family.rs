//! Scenario families: which weather, which faults, how many of what. A seed belongs to one family, so
//! that one number replays a run.

use super::faults::Kind;
use super::mutant::Mutant;
use super::net::Weather;
use super::random::Random;

/// Worst rate of a clock that the lease has to bear, in ten thousandths: 1 %.
pub(super) const MOST_DRIFT: i64 = 100;

/// A kind of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Calm,
    Lossy,
    Partitions,
    Crashes,
    Power,
    Resync,
    Promotions,
    Leases,
    Disks,
    Churn,
    Retries,
    Moves,
}

/// The share of what clients do, of a hundred.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mix {
    pub(super) reads: u64,
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) seed: u64,
    pub(super) hosts: usize,
    /// Of each chain; 0: one on every host.
    pub(super) replicas: u32,
    /// Targets per disk.
    pub(super) chains: u32,
    pub(super) clients: usize,
    pub(super) lanes: usize,
    pub(super) keys: u32,
    /// Usual pause of a client between two operations, µs.
    pub(super) think: u64,
    /// How long clients ask for things and faults happen, µs.
    pub(super) load: u64,
    pub(super) drift: i64,
    /// Usual time of a durable change, µs.
    pub(super) disk: u64,
    /// µs.
    pub(super) lease: u64,
    /// How many of a hundred faults last for seconds.
    pub(super) long: u64,
    pub(super) mix: Mix,
    pub(super) weather: Weather,
    pub(super) faults: Vec<(Kind, u64)>,
    /// Usual time between two faults, µs.
    pub(super) fault_every: u64,
    pub(super) mutant: Option<Mutant>,
    /// Left out by the minimiser.
    pub(super) without: Vec<Kind>,
}

impl Family {
    pub(super) const ALL: &'static [Self] = &[
        Self::Calm,
        Self::Lossy,
        Self::Partitions,
        Self::Crashes,
        Self::Power,
        Self::Resync,
        Self::Promotions,
        Self::Leases,
        Self::Disks,
        Self::Churn,
        Self::Retries,
        Self::Moves,
    ];

    pub(super) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    pub(super) fn of(seed: u64) -> Self {
        Self::ALL[(seed % Self::ALL.len() as u64) as usize]
    }

    /// The `n`th seed of this family.
    pub(super) fn seed(self, n: u64) -> u64 {
        n * Self::ALL.len() as u64 + self as u64
    }
}

impl Setup {
    pub(super) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed, 6);
        let family = Family::of(seed);
        let weather = |lost, duplicated, delay| Weather {
            lost,
            duplicated,
            delay,
            slow_maps: 200,
        };
        let base = Self {
            seed,
            hosts: random.between(2, 5) as usize,
            replicas: 0,
            chains: 1,
            clients: 3,
            lanes: 2,
            keys: 3,
            think: 60_000,
            load: 8_000_000,
            drift: MOST_DRIFT,
            disk: 600,
            lease: 5_000_000,
            long: 30,
            mix: Mix { reads: 50 },
            weather: weather(0, 5, 300),
            faults: Vec::new(),
            fault_every: 700_000,
            mutant: None,
            without: Vec::new(),
        };
        match family {
            Family::Calm => Self {
                think: 20_000,
                load: 3_000_000,
                ..base
            },
            Family::Lossy => Self {
                weather: weather(random.between(5, 80), 50, random.between(200, 20_000)),
                faults: vec![(Kind::Stream, 1), (Kind::Kill, 1)],
                ..base
            },
            Family::Partitions => Self {
                faults: vec![(Kind::Cut, 8), (Kind::Kill, 1), (Kind::Manager, 1)],
                load: 12_000_000,
                think: 100_000,
                ..base
            },
            Family::Crashes => Self {
                faults: vec![(Kind::Kill, 10), (Kind::KillAll, 2), (Kind::Manager, 1)],
                ..base
            },
            Family::Power => Self {
                faults: vec![(Kind::Power, 8), (Kind::KillAll, 3), (Kind::Kill, 3)],
                load: 15_000_000,
                think: 120_000,
                ..base
            },
            Family::Resync => Self {
                faults: vec![(Kind::Kill, 6), (Kind::Leave, 1), (Kind::Stall, 3)],
                keys: random.between(1, 6) as u32,
                disk: random.between(500, 15_000),
                clients: 4,
                think: 15_000,
                load: 6_000_000,
                fault_every: 400_000,
                mix: Mix { reads: 50 },
                weather: Weather {
                    slow_maps: 500,
                    ..weather(random.below(50), 20, random.between(300, 12_000))
                },
                ..base
            },
            Family::Promotions => Self {
                hosts: random.between(2, 4) as usize,
                faults: vec![(Kind::Kill, 1)],
                keys: 1,
                clients: 4,
                think: 4_000,
                load: 4_000_000,
                disk: random.between(1_000, 12_000),
                long: 0,
                fault_every: 300_000,
                mix: Mix { reads: 70 },
                weather: Weather {
                    slow_maps: 700,
                    ..weather(random.below(60), 5, random.between(300, 4000))
                },
                ..base
            },
            Family::Leases => Self {
                faults: vec![
                    (Kind::Pause, 5),
                    (Kind::Apart, 8),
                    (Kind::Cut, 3),
                    (Kind::Manager, 1),
                    (Kind::Kill, 1),
                ],
                clients: 4,
                load: 25_000_000,
                lease: [2_000_000, 5_000_000, 12_000_000][random.below(3) as usize],
                long: 70,
                think: 50_000,
                fault_every: 2_500_000,
                mix: Mix { reads: 75 },
                weather: weather(2, 5, [200, 20_000, 300_000][random.below(3) as usize]),
                ..base
            },
            Family::Disks => Self {
                faults: vec![
                    (Kind::Stall, 4),
                    (Kind::DiskFails, 3),
                    (Kind::Full, 3),
                    (Kind::Unreadable, 3),
                    (Kind::Kill, 1),
                    (Kind::Cut, 1),
                ],
                load: 12_000_000,
                think: 90_000,
                // A duplicate of a write that was refused for want of space is not modelled: see
                // docs/simulation.md.
                weather: Weather {
                    slow_maps: 500,
                    ..weather(3, 0, 300)
                },
                mix: Mix { reads: 65 },
                ..base
            },
            Family::Churn => Self {
                chains: 2,
                keys: 4,
                faults: vec![
                    (Kind::Leave, 6),
                    (Kind::Kill, 2),
                    (Kind::Stream, 2),
                    (Kind::Manager, 2),
                    (Kind::Pause, 1),
                ],
                weather: weather(random.below(10), 10, random.between(200, 5000)),
                load: 12_000_000,
                ..base
            },
            Family::Retries => Self {
                weather: weather(random.between(20, 100), 100, random.between(300, 3000)),
                faults: vec![
                    (Kind::Kill, 4),
                    (Kind::KillAll, 4),
                    (Kind::Power, 2),
                    (Kind::Leave, 1),
                ],
                clients: 4,
                keys: 2,
                mix: Mix { reads: 40 },
                load: 10_000_000,
                ..base
            },
            Family::Moves => Self {
                hosts: random.between(3, 5) as usize,
                replicas: random.between(1, 3) as u32,
                chains: random.between(1, 3) as u32,
                keys: 4,
                faults: vec![
                    (Kind::Grow, 10),
                    (Kind::Kill, 3),
                    (Kind::Leave, 1),
                    (Kind::Pause, 2),
                    (Kind::Cut, 2),
                    (Kind::Manager, 2),
                ],
                clients: 4,
                think: 20_000,
                load: 8_000_000,
                disk: random.between(500, 8_000),
                fault_every: 350_000,
                mix: Mix { reads: 65 },
                weather: Weather {
                    slow_maps: 500,
                    ..weather(random.below(30), 10, random.between(200, 8_000))
                },
                ..base
            },
        }
    }
}
