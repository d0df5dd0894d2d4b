use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Put(u8, u64),
    Delete(u8),
    Atomic(u8, Atomic),
    DeleteRange(u8, u8),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..12_u8;
    prop_oneof![
        (key.clone(), any::<u64>()).prop_map(|(key, value)| Op::Put(key, value)),
        key.clone().prop_map(Op::Delete),
        (key.clone(), any::<i64>()).prop_map(|(key, n)| Op::Atomic(key, Atomic::AddI64(n))),
        (key.clone(), any::<u64>()).prop_map(|(key, n)| Op::Atomic(key, Atomic::MaxU64(n))),
        (key.clone(), key).prop_map(|(begin, end)| Op::DeleteRange(begin, end)),
    ]
}

fn key(byte: u8) -> Bytes {
    Bytes::copy_from_slice(&[byte])
}

type Model = BTreeMap<Bytes, Bytes>;

fn apply_to_model(model: &mut Model, op: &Op) {
    match *op {
        Op::Put(k, v) => {
            model.insert(key(k), Bytes::copy_from_slice(&v.to_le_bytes()));
        }
        Op::Delete(k) => {
            model.remove(&key(k));
        }
        Op::Atomic(k, change) => {
            let new = change.apply(model.get(&key(k)).map(|old| &old[..]));
            model.insert(key(k), new);
        }
        Op::DeleteRange(b, e) => model.retain(|k, _| k[0] < b || k[0] >= e),
    }
}

fn apply_to_mutations(mutations: &mut Mutations, op: &Op) {
    match *op {
        Op::Put(k, v) => mutations.put(key(k), Bytes::copy_from_slice(&v.to_le_bytes())),
        Op::Delete(k) => mutations.delete(key(k)),
        Op::Atomic(k, change) => mutations.atomic(key(k), change),
        Op::DeleteRange(b, e) => mutations.delete_range(key(b), key(e)),
    }
}

proptest! {
    /// Writing what was collected does what the operations do one by one.
    #[test]
    fn a_transaction_does_what_its_operations_do_in_order(
        base in proptest::collection::btree_map(0..12_u8, any::<u64>(), 0..12),
        ops in proptest::collection::vec(op(), 0..40),
    ) {
        let mut model: Model = base
            .into_iter()
            .map(|(k, v)| (key(k), Bytes::copy_from_slice(&v.to_le_bytes())))
            .collect();
        let mut store = model.clone();
        let mut collected = Mutations::default();
        for op in &ops {
            apply_to_model(&mut model, op);
            apply_to_mutations(&mut collected, op);
        }
        collected.resolve(|key| Ok(store.get(key).cloned())).unwrap();
        for (begin, end) in collected.cleared() {
            store.retain(|key, _| key < begin || key >= end);
        }
        for (key, write) in collected.keys() {
            match write {
                Write::Put(value) => { store.insert(key.clone(), value.clone()); }
                Write::Delete => { store.remove(key); }
                Write::Atomic(_) => panic!("an atomic survived resolve"),
            }
        }
        prop_assert_eq!(store, model);
    }
}

#[test]
fn cleared_ranges_that_touch_become_one() {
    let mut mutations = Mutations::default();
    mutations.delete_range(key(1), key(3));
    mutations.delete_range(key(5), key(7));
    mutations.delete_range(key(3), key(5));
    assert_eq!(
        mutations.cleared().collect::<Vec<_>>(),
        [(&key(1), &key(7))]
    );
    assert!(
        mutations.is_cleared(&[6]) && !mutations.is_cleared(&[7]) && !mutations.is_cleared(&[0])
    );
}

#[test]
fn an_atomic_on_an_odd_sized_value_counts_its_first_eight_bytes() {
    assert_eq!(
        Atomic::AddI64(1).apply(Some(&[0xff])),
        256_i64.to_le_bytes()[..]
    );
    assert_eq!(Atomic::AddI64(-1).apply(None), (-1_i64).to_le_bytes()[..]);
    assert_eq!(Atomic::MaxU64(3).apply(Some(&[9; 12])), [9; 8][..]);
}
