use super::*;

fn small() -> Class {
    Class::for_len(1).unwrap()
}

fn with_blocks(n: u32) -> Arc<Allocator> {
    let allocator = Arc::new(Allocator::new(u64::MAX));
    allocator.grown(small(), 0..n);
    allocator
}

#[test]
fn an_abandoned_block_is_free_again() {
    let allocator = with_blocks(1);
    let block = allocator.allocate(small()).unwrap().unwrap();
    assert!(allocator.allocate(small()).unwrap().is_none());
    drop(block);
    assert!(allocator.allocate(small()).unwrap().is_some());
}

#[test]
fn a_block_lives_while_a_record_or_a_reader_has_it() {
    let allocator = with_blocks(1);
    let block = allocator.allocate(small()).unwrap().unwrap();
    let loc = block.loc();
    assert!(allocator.own(loc));
    assert!(!allocator.own(loc), "a second owner is noticed");
    drop(block);
    assert!(allocator.allocate(small()).unwrap().is_none());
    let reader = allocator.pin(loc);
    allocator.retire(loc);
    assert_eq!(
        allocator.used_bytes(),
        0,
        "a removed chunk's space shows at once"
    );
    allocator.disown(loc);
    assert!(allocator.allocate(small()).unwrap().is_none());
    drop(reader);
    assert!(allocator.allocate(small()).unwrap().is_some());
}

#[test]
fn the_capacity_limit_is_exact() {
    let allocator = Arc::new(Allocator::new(8192));
    allocator.grown(small(), 0..3);
    let two = [
        allocator.allocate(small()).unwrap(),
        allocator.allocate(small()).unwrap(),
    ];
    let refused = allocator.allocate(small()).err().unwrap();
    assert_eq!(refused.code, ErrorCode::NoSpace);
    drop(two);
    assert_eq!(allocator.used_bytes(), 0);
    assert!(allocator.allocate(small()).unwrap().is_some());
}

#[test]
fn surplus_is_claimed_from_the_top_and_comes_back_as_holes() {
    let allocator = with_blocks(10);
    assert_eq!(allocator.claim_idle(small(), 40_960, 100), None);
    assert_eq!(allocator.claim_idle(small(), 4096 * 4, 100), Some(4..10));
    allocator.punched(small(), 4..10);
    assert_eq!(allocator.idle_of(small()), 4096 * 4);
    assert_eq!(allocator.holes(small(), u32::MAX, 2), Some(8..10));
    allocator.backed(small(), 8..10);
    assert_eq!(allocator.idle_of(small()), 4096 * 6);
    assert_eq!(allocator.holes(small(), u32::MAX, 100), Some(4..8));
}

#[test]
fn restored_blocks_are_owned_once_and_the_rest_is_free() {
    let allocator = Arc::new(Allocator::new(u64::MAX));
    let loc = Loc {
        class: small(),
        number: 3,
    };
    assert!(allocator.restore(loc));
    assert!(!allocator.restore(loc));
    assert_eq!(allocator.blocks_needed(small()), 4);
    allocator.restore_total(small(), 5);
    assert_eq!(allocator.holes(small(), u32::MAX, 9), Some(4..5));
    assert_eq!(allocator.holes(small(), 4, 9), Some(0..3));
}
