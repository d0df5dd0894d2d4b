//! Numbers of changes: which are in use, and up to which the server may forget its answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::Identity;

/// The request numbers of one client.
pub(crate) struct Numbers(Mutex<State>);

struct State {
    last: u64,
    /// Numbers that a request may carry yet, and how many claim each.
    in_flight: BTreeMap<u64, u32>,
    /// Of an earlier process, and possibly to be repeated.
    held: BTreeSet<u64>,
    /// It is not known yet which numbers of an earlier process are to be repeated.
    unknown: bool,
}

/// A number in use.
pub(crate) struct Numbered {
    numbers: Arc<Numbers>,
    pub(crate) number: u64,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.numbers.0.lock().release(self.number);
    }
}

impl State {
    fn claim(&mut self, number: u64) {
        *self.in_flight.entry(number).or_default() += 1;
    }

    fn release(&mut self, number: u64) {
        if let Some(claims) = self.in_flight.get_mut(&number) {
            *claims -= 1;
            if *claims == 0 {
                self.in_flight.remove(&number);
            }
        }
    }
}

impl Numbers {
    pub(crate) fn new(identity: Identity) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            last: identity.base(),
            in_flight: BTreeMap::new(),
            held: BTreeSet::new(),
            unknown: identity.has_predecessor(),
        })))
    }

    /// The next number.
    pub(crate) fn draw(self: &Arc<Self>) -> Numbered {
        let mut state = self.0.lock();
        state.last += 1;
        let number = state.last;
        state.claim(number);
        drop(state);
        let numbers = self.clone();
        Numbered { numbers, number }
    }

    /// A number that was drawn before.
    pub(crate) fn repeat(self: &Arc<Self>, number: u64) -> Numbered {
        self.0.lock().claim(number);
        let numbers = self.clone();
        Numbered { numbers, number }
    }

    /// These of an earlier process may be repeated, and no others.
    pub(crate) fn hold(&self, numbers: &[u64]) {
        let mut state = self.0.lock();
        state.unknown = false;
        for &number in numbers {
            if state.held.insert(number) {
                state.claim(number);
            }
        }
    }

    /// This one has been repeated and answered.
    pub(crate) fn repeated(&self, number: u64) {
        let mut state = self.0.lock();
        if state.held.remove(&number) {
            state.release(number);
        }
    }

    /// None will be repeated any more, but those that are being repeated now.
    pub(crate) fn release_held(&self) {
        let mut state = self.0.lock();
        state.unknown = false;
        for number in std::mem::take(&mut state.held) {
            state.release(number);
        }
    }

    /// No request carries a number up to this one from now on.
    pub(crate) fn acknowledged(&self) -> u64 {
        let state = self.0.lock();
        if state.unknown {
            return 0;
        }
        let first = state.in_flight.first_key_value();
        first.map_or(state.last, |(first, _)| first - 1)
    }
}

#[cfg(test)]
mod tests {
    use emberfs_proto::ids::ClientId;

    use super::*;

    fn numbers(instance: u32) -> Arc<Numbers> {
        let client = ClientId(1);
        Numbers::new(Identity { client, instance })
    }

    #[test]
    fn acknowledged_never_passes_a_request_that_may_be_retried() {
        let numbers = numbers(0);
        assert_eq!(numbers.acknowledged(), 0);
        let first = numbers.draw();
        let second = numbers.draw();
        assert_eq!((first.number, second.number), (1, 2));
        assert_eq!(numbers.acknowledged(), 0);
        drop(second);
        assert_eq!(numbers.acknowledged(), 0);
        drop(first);
        assert_eq!(numbers.acknowledged(), 2);
    }

    #[test]
    fn a_successor_acknowledges_nothing_until_it_knows_what_it_repeats() {
        const FIRST: u64 = 1 << 40;
        let numbers = numbers(2);
        drop(numbers.draw());
        assert_eq!(numbers.acknowledged(), 0);
        numbers.hold(&[FIRST + 5, FIRST + 9]);
        assert_eq!(numbers.acknowledged(), FIRST + 4);
        let repeat = numbers.repeat(FIRST + 5);
        numbers.repeated(FIRST + 5);
        assert_eq!(numbers.acknowledged(), FIRST + 4, "on its way");
        drop(repeat);
        assert_eq!(numbers.acknowledged(), FIRST + 8);
        let repeat = numbers.repeat(FIRST + 9);
        numbers.release_held();
        assert_eq!(numbers.acknowledged(), FIRST + 8);
        drop(repeat);
        assert_eq!(numbers.acknowledged(), 2 * FIRST + 1);
    }

    #[test]
    fn without_numbers_to_repeat_a_successor_acknowledges_all_at_once() {
        for release in [Numbers::release_held, |numbers: &Numbers| numbers.hold(&[])] {
            let numbers = numbers(2);
            release(&numbers);
            assert_eq!(numbers.acknowledged(), 2 << 40);
        }
    }
}
