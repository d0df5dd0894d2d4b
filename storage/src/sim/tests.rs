//! The families, a bounded number of seeds each, and the mutants.
//!
//! `make sim SEEDS=N` runs many more; `EMBERFS_SIM_SEED=N` replays one and prints what happened.

use super::family::{Family, Setup};
use super::minimise::minimise;
use super::mutant::Mutant;
use super::world::{Summary, World};

/// Seeds of each family in `make test`.
const SEEDS: u64 = 300;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = text.parse();
    Some(parsed.unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// A run, with `EMBERFS_SIM_MUTANT` if that is set.
fn setup(seed: u64) -> Setup {
    let mutant = std::env::var("EMBERFS_SIM_MUTANT").ok().map(|name| {
        let mut all = Mutant::ALL.iter().copied();
        let found = all.find(|m| format!("{m:?}") == name);
        found.unwrap_or_else(|| panic!("no mutant {name:?}; there are {:?}", Mutant::ALL))
    });
    Setup {
        mutant,
        ..Setup::of(seed)
    }
}

/// Runs a seed; a failure is made smaller and ends the test.
fn run(seed: u64) -> Summary {
    match World::new(setup(seed), false).run() {
        Ok(summary) => summary,
        Err(_) => {
            let setup = setup(seed);
            let Err(failure) = World::new(setup.clone(), true).run() else {
                panic!(
                    "seed {seed} fails, but not when it is traced: the simulation is not deterministic"
                );
            };
            let whole = failure.what.clone();
            let (least, failure) = minimise(&setup, failure);
            panic!(
                "{}\nseed {seed} ({}): {whole}\nsmallest run found: {} events, {} clients, {} chunks, {} ms, without {:?}: {}\nEMBERFS_SIM_SEED={seed} make sim replays it",
                failure.trace,
                Family::of(seed).name(),
                failure.events,
                least.clients,
                least.keys,
                least.load / 1000,
                least.without,
                failure.what,
            );
        }
    }
}

fn total(seeds: impl Iterator<Item = u64>) -> Summary {
    let mut sum = Summary::default();
    for seed in seeds {
        let one = run(seed);
        sum.acknowledged += one.acknowledged;
        sum.reads += one.reads;
        sum.unknown += one.unknown;
        sum.chain_changes += one.chain_changes;
        sum.faults += one.faults;
        sum.moves += one.moves;
        sum.events += one.events;
        sum.undecided += one.undecided;
    }
    sum
}

fn family(family: Family) {
    let sum = total((0..SEEDS).map(|n| family.seed(n)));
    println!("{}: {SEEDS} seeds, {sum:?}", family.name());
    assert!(
        sum.acknowledged > 20 * SEEDS && sum.reads > 20 * SEEDS,
        "it hardly does anything: {sum:?}"
    );
    assert!(
        sum.undecided * 50 <= SEEDS,
        "too many histories cannot be decided: {sum:?}"
    );
    if family == Family::Moves {
        assert!(sum.moves > 2 * SEEDS, "hardly anything moves: {sum:?}");
    }
    if family != Family::Calm {
        assert!(
            sum.faults > 2 * SEEDS && sum.chain_changes > 2 * SEEDS,
            "nothing goes wrong: {sum:?}"
        );
    }
}

macro_rules! families {
    ($($test:ident = $family:ident;)+) => {
        $(#[test] fn $test() { family(Family::$family); })+
    };
}

families! {
    calm_clusters_are_linearizable = Calm;
    lost_late_and_repeated_messages_are_harmless = Lossy;
    partitions_are_harmless = Partitions;
    killed_processes_lose_nothing = Crashes;
    power_cuts_lose_nothing_acknowledged = Power;
    resync_under_load_is_exact = Resync;
    a_replica_joins_without_a_reader_noticing = Promotions;
    leases_hold_with_drifting_clocks = Leases;
    failing_disks_lose_nothing = Disks;
    membership_changes_are_seamless = Churn;
    retries_are_applied_once = Retries;
    replicas_move_without_a_reader_noticing = Moves;
}

/// Seeds after which a mutant counts as not caught.
const MUTANT_SEEDS: u64 = 2500;

#[test]
fn every_mutant_is_caught() {
    let mut survivors = Vec::new();
    for &mutant in Mutant::ALL {
        let caught = (0..MUTANT_SEEDS).find_map(|seed| {
            let setup = Setup {
                mutant: Some(mutant),
                ..Setup::of(seed)
            };
            let failure = World::new(setup, false).run().err()?;
            // The mutant's doing, and not a seed that fails anyway.
            let sound = World::new(Setup::of(seed), false).run().is_ok();
            sound.then_some((seed, failure.what))
        });
        match caught {
            Some((seed, what)) => {
                let what = what.lines().next().unwrap_or_default();
                println!(
                    "{mutant:?}: seed {seed} ({}): {what}",
                    Family::of(seed).name()
                );
            }
            None => survivors.push(mutant),
        }
    }
    assert!(
        survivors.is_empty(),
        "{survivors:?} survive {MUTANT_SEEDS} seeds"
    );
}

#[test]
fn one_seed_is_one_history() {
    for seed in 0..20 {
        assert_eq!(run(seed).events, run(seed).events, "seed {seed}");
    }
}

/// `make sim`: `EMBERFS_SIM_SEEDS=N` seeds from `EMBERFS_SIM_FROM` on, of all families or of `EMBERFS_SIM_FAMILY`; or
/// `EMBERFS_SIM_SEED=N` alone, with its trace.
#[test]
#[ignore = "the long run: make sim"]
fn long_run() {
    if let Some(seed) = number("EMBERFS_SIM_SEED") {
        let result = World::new(setup(seed), true).run();
        match result {
            Ok(sum) => println!("seed {seed} ({}): {sum:?}", Family::of(seed).name()),
            Err(_) => drop(run(seed)),
        }
        return;
    }
    let name = std::env::var("EMBERFS_SIM_FAMILY").unwrap_or_default();
    let named = Family::ALL.iter().copied().find(|f| f.name() == name);
    assert!(
        name.is_empty() || named.is_some(),
        "no family {name:?}; there are {:?}",
        Family::ALL
    );
    let seeds = number("EMBERFS_SIM_SEEDS").unwrap_or(1000);
    let from = number("EMBERFS_SIM_FROM").unwrap_or(0);
    let seed = |n| named.map_or(n, |family| family.seed(n));
    super::long::run(from, seeds, |n| setup(seed(n)));
}
