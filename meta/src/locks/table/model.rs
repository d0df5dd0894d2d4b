//! The table against a model that knows of every byte who holds it, for any history.

use emberfs_proto::locks::Hold;
use proptest::prelude::*;

use super::*;

const BYTES: usize = 12;
const OWNERS: usize = 5;

#[derive(Clone, Debug)]
enum Op {
    Lock {
        owner: usize,
        span: Span,
        hold: Hold,
        wait: bool,
    },
    Unlock {
        owner: usize,
        span: Span,
    },
    /// The request that waits longest, or second longest, …
    Cancel {
        nth: usize,
    },
    Release {
        owner: usize,
    },
}

fn any_span() -> impl Strategy<Value = Span> {
    (0..BYTES as u64, 0..BYTES as u64).prop_map(|(a, b)| Span {
        start: a.min(b),
        end: a.max(b),
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    let hold = prop_oneof![Just(Hold::Shared), Just(Hold::Exclusive)];
    prop_oneof![
        6 => (0..OWNERS, any_span(), hold, any::<bool>())
            .prop_map(|(owner, span, hold, wait)| Op::Lock { owner, span, hold, wait }),
        4 => (0..OWNERS, any_span()).prop_map(|(owner, span)| Op::Unlock { owner, span }),
        1 => (0..6usize).prop_map(|nth| Op::Cancel { nth }),
        1 => (0..OWNERS).prop_map(|owner| Op::Release { owner }),
    ]
}

/// Owners 0 and 1 share a client; the others have their own.
fn owner_of(index: usize) -> Owner {
    Owner {
        client: ClientId(index.max(1) as u128),
        number: index as u64,
    }
}

struct Waiting {
    ticket: u64,
    owner: usize,
    range: Range,
}

/// What each owner holds of each byte, and the queue.
#[derive(Default)]
struct Model {
    held: [[Option<Hold>; BYTES]; OWNERS],
    queue: Vec<Waiting>,
}

impl Model {
    fn set(&mut self, owner: usize, span: Span, hold: Option<Hold>) {
        self.held[owner][span.start as usize..=span.end as usize].fill(hold);
    }

    fn conflicts(&self, owner: usize, range: &Range) -> bool {
        let bytes = range.span.start as usize..=range.span.end as usize;
        let mut others = (0..OWNERS).filter(|other| *other != owner);
        others.any(|other| {
            let mut held = self.held[other][bytes.clone()].iter().flatten();
            held.any(|held| *held == Hold::Exclusive || range.hold == Hold::Exclusive)
        })
    }

    fn behind(&self, owner: usize, range: &Range, before: usize) -> bool {
        let empty = self.held[owner].iter().all(Option::is_none);
        let mut earlier = self.queue[..before].iter();
        empty && earlier.any(|w| w.owner != owner && w.range.conflicts(range))
    }

    fn free(&self, owner: usize, range: &Range, before: usize) -> bool {
        !self.conflicts(owner, range) && !self.behind(owner, range, before)
    }

    /// Grants whatever can be granted, first come first served; answers the tickets.
    fn wake(&mut self) -> Vec<u64> {
        let mut granted = Vec::new();
        while let Some(at) = (0..self.queue.len()).find(|&i| {
            let waiting = &self.queue[i];
            self.free(waiting.owner, &waiting.range, i)
        }) {
            let waiting = self.queue.remove(at);
            self.set(waiting.owner, waiting.range.span, Some(waiting.range.hold));
            granted.push(waiting.ticket);
        }
        granted
    }
}

fn check(table: &Table, model: &Model, place: Place) -> Result<(), TestCaseError> {
    let mut locks = 0;
    for (index, bytes) in model.held.iter().enumerate() {
        let held = table.held(place, owner_of(index));
        locks += held.len();
        for (byte, hold) in bytes.iter().enumerate() {
            let at = Span {
                start: byte as u64,
                end: byte as u64,
            };
            let found = held.within(at).next().map(|range| range.hold);
            prop_assert_eq!(found, *hold, "owner {} byte {}", index, byte);
        }
    }
    let entries = table.list(place);
    prop_assert_eq!(entries.len(), locks + model.queue.len());
    let queue = entries.iter().filter(|entry| entry.waiting);
    let queue: Vec<_> = queue.map(|e| (e.wish.owner, e.wish.range)).collect();
    let expected = model.queue.iter().map(|w| (owner_of(w.owner), w.range));
    prop_assert_eq!(queue, expected.collect::<Vec<_>>());
    let counted: usize = table.clients.values().map(|share| share.locks).sum();
    prop_assert_eq!(counted, locks);
    prop_assert_eq!(table.files.get(&place).map_or(0, |f| f.locks), locks);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// flock, so that no request is refused as a deadlock, with ranges, which the table does not mind.
    #[test]
    fn the_table_is_what_each_byte_says(ops in proptest::collection::vec(any_op(), 1..60)) {
        let place = Place { inode: 7.into(), space: LockSpace::Flock };
        let (mut table, mut model) = (Table::default(), Model::default());
        for (ticket, op) in (1u64..).zip(ops) {
            match op {
                Op::Lock { owner, span, hold, wait } => {
                    let range = Range { span, hold, pid: 0 };
                    let wish = Wish { place, owner: owner_of(owner), range };
                    prop_assert_eq!(table.test(&wish).is_some(), model.conflicts(owner, &range));
                    let expected = if model.free(owner, &range, model.queue.len()) {
                        model.set(owner, span, Some(hold));
                        Answer::Granted
                    } else if wait {
                        model.queue.push(Waiting { ticket, owner, range });
                        Answer::Waiting
                    } else {
                        Answer::Blocked
                    };
                    prop_assert_eq!(table.request(&wish, ticket, wait), Ok(expected));
                }
                Op::Unlock { owner, span } => {
                    model.set(owner, span, None);
                    prop_assert_eq!(table.unlock(place, owner_of(owner), span), Ok(()));
                }
                Op::Cancel { nth } => {
                    if nth < model.queue.len() {
                        let waiting = model.queue.remove(nth);
                        table.cancel(&[(owner_of(waiting.owner).client, waiting.ticket)]);
                    }
                }
                Op::Release { owner } => {
                    let client = owner_of(owner).client;
                    let ended = table.release_client(client).len();
                    let before = model.queue.len();
                    model.queue.retain(|w| owner_of(w.owner).client != client);
                    prop_assert_eq!(ended, before - model.queue.len());
                    for index in (0..OWNERS).filter(|i| owner_of(*i).client == client) {
                        model.held[index].fill(None);
                    }
                }
            }
            let granted = table.take_granted().into_iter().map(|(_, ticket)| ticket);
            prop_assert_eq!(granted.collect::<Vec<_>>(), model.wake());
            check(&table, &model, place)?;
        }
        // Whatever waits still gets its lock once all others have let go.
        for turn in 0..OWNERS * 61 {
            let owner = owner_of(turn % OWNERS);
            prop_assert_eq!(table.unlock(place, owner, Span::WHOLE), Ok(()));
        }
        prop_assert!(table.files.is_empty() && table.clients.is_empty());
    }
}
