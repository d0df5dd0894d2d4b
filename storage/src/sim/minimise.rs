//! Makes a failing run smaller: leaves out one kind of fault after another, shortens the time under load,
//! takes clients and chunks away, and keeps what still fails.

use super::family::Setup;
use super::faults::Kind;
use super::world::{Failure, World};

/// Runs that a minimisation may take.
const MOST_RUNS: usize = 200;

/// The smallest failing setup found, with its failure.
pub(super) fn minimise(setup: &Setup, failure: Failure) -> (Setup, Failure) {
    let mut best = (setup.clone(), failure);
    let mut runs = 0;
    loop {
        let before = best.1.events;
        for candidate in smaller(&best.0) {
            if runs == MOST_RUNS {
                return best;
            }
            runs += 1;
            if let Err(failure) = World::new(candidate.clone(), true).run()
                && failure.events < best.1.events
            {
                best = (candidate, failure);
            }
        }
        if best.1.events == before {
            return best;
        }
    }
}

fn smaller(setup: &Setup) -> Vec<Setup> {
    let mut found = Vec::new();
    for &kind in Kind::ALL {
        if setup.faults.iter().any(|f| f.0 == kind) && !setup.without.contains(&kind) {
            let mut without = setup.without.clone();
            without.push(kind);
            found.push(Setup {
                without,
                ..setup.clone()
            });
        }
    }
    for tenth in [3, 6, 9] {
        found.push(Setup {
            load: setup.load * tenth / 10,
            ..setup.clone()
        });
    }
    if setup.clients > 1 {
        found.push(Setup {
            clients: setup.clients - 1,
            ..setup.clone()
        });
    }
    if setup.lanes > 1 {
        found.push(Setup {
            lanes: setup.lanes - 1,
            ..setup.clone()
        });
    }
    if setup.keys > 1 {
        found.push(Setup {
            keys: setup.keys - 1,
            ..setup.clone()
        });
    }
    if setup.weather.duplicated + setup.weather.lost > 0 {
        let mut weather = setup.weather.clone();
        (weather.lost, weather.duplicated) = (0, 0);
        found.push(Setup {
            weather,
            ..setup.clone()
        });
    }
    found
}
