//! The window against simulated nodes, and who waits at the gate.

use std::future::Future;
use std::task::{Context, Poll, Waker};

use super::*;

const MIB: u64 = 1 << 20;

/// A node that sends at `speed` bytes per millisecond, `near` milliseconds away.
struct Node {
    speed: u64,
    near: u64,
    now: Instant,
}

impl Node {
    /// Each user fills its window with requests of 1 MiB; all are answered. Answers the milliseconds.
    fn round(&mut self, users: &mut [Window]) -> u64 {
        let mut counts = Vec::new();
        for user in users.iter_mut() {
            let mut count = 0;
            while user.admits(MIB) {
                user.begin(MIB);
                count += 1;
            }
            counts.push(count);
        }
        let bytes: u64 = counts.iter().sum::<u64>() * MIB;
        let took = self.near + bytes / self.speed;
        let begun = self.now;
        self.now += Duration::from_millis(took);
        for (user, count) in users.iter_mut().zip(counts) {
            for _ in 0..count {
                user.answered(MIB, begun, self.now);
                user.end(MIB);
            }
        }
        took
    }
}

fn node(speed: u64) -> Node {
    Node {
        speed,
        near: 1,
        now: Instant::now(),
    }
}

/// A user that knows how fast the node answers when nobody else asks.
fn user(node: &mut Node, bound: u64) -> Window {
    let mut window = Window::new();
    let took = Duration::from_millis(node.near + MIB / node.speed);
    window.begin(MIB);
    window.answered(MIB, node.now, node.now + took);
    window.end(MIB);
    window.bound = bound;
    window
}

#[test]
fn it_grows_while_replies_come_fast_and_not_beyond_its_limit() {
    let mut node = node(100 * MIB);
    let mut users = [user(&mut node, 4 * MIB)];
    node.round(&mut users);
    let first = users[0].bound;
    assert!((4 * MIB + 1..6 * MIB).contains(&first), "{first}");
    (0..200).for_each(|_| _ = node.round(&mut users));
    assert_eq!(users[0].bound, MOST);
}

#[test]
fn a_window_that_is_not_used_does_not_grow() {
    let mut node = node(100 * MIB);
    let mut window = user(&mut node, 16 * MIB);
    for _ in 0..1000 {
        window.begin(MIB);
        let begun = node.now;
        node.now += Duration::from_millis(1);
        window.answered(MIB, begun, node.now);
        window.end(MIB);
    }
    assert_eq!(window.bound, 16 * MIB);
}

#[test]
fn it_shrinks_once_per_round_when_replies_are_late_and_keeps_the_delay_low() {
    // 1 MiB takes 11 ms: 64 MiB at once take 641.
    let mut node = node(MIB / 10);
    let mut users = [user(&mut node, MOST)];
    node.round(&mut users);
    assert_eq!(users[0].bound, (MOST as f64 * SHRINK) as u64);
    let delays: Vec<u64> = (0..100).map(|_| node.round(&mut users)).collect();
    assert!(delays[50..].iter().all(|&ms| ms <= 60), "{delays:?}");
    assert!(users[0].bound >= LEAST);
}

#[test]
fn some_delay_is_no_congestion() {
    let mut node = node(10 * MIB);
    let mut users = [user(&mut node, 16 * MIB)];
    // Ten times the lowest, but it is 18 ms only.
    node.near = 18;
    (0..10).for_each(|_| _ = node.round(&mut users));
    assert!(users[0].bound > 16 * MIB);
}

#[test]
fn never_below_one_request() {
    let mut window = Window::new();
    let mut now = Instant::now();
    for i in 0..25 {
        assert!(window.admits(8 * MIB), "round {i}");
        window.begin(8 * MIB);
        let begun = now;
        now += Duration::from_millis(if i == 0 { 1 } else { 1000 });
        window.answered(8 * MIB, begun, now);
        assert!(i < 20 || !window.admits(1), "round {i}");
        window.end(8 * MIB);
    }
    assert_eq!(window.bound, LEAST);
}

#[test]
fn two_users_of_one_node_come_to_equal_shares() {
    let mut node = node(MIB);
    let mut users = [user(&mut node, 60 * MIB), user(&mut node, 2 * MIB)];
    (0..400).for_each(|_| _ = node.round(&mut users));
    let [a, b] = [users[0].bound, users[1].bound];
    assert!(a < 2 * b && b < 2 * a, "{a} and {b}");
}

#[test]
fn what_the_path_was_like_long_ago_is_forgotten() {
    let mut node = node(100 * MIB);
    let mut users = [user(&mut node, 8 * MIB)];
    // A longer way from now on.
    node.near = 100;
    (0..2000).for_each(|_| _ = node.round(&mut users));
    assert_eq!(users[0].bound, MOST);
}

fn poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut context = Context::from_waker(Waker::noop());
    match std::pin::Pin::new(future).poll(&mut context) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[test]
fn requests_wait_in_order_and_whoever_stops_waiting_holds_up_nobody() {
    let gate = Gate::new();
    let first = poll(&mut Box::pin(gate.enter(START))).expect("an empty window");
    let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(gate.enter(START / 2))).collect();
    assert!(waiting.iter_mut().all(|waiter| poll(waiter).is_none()));
    drop(waiting.remove(1));
    drop(first);
    let passes: Vec<_> = waiting.iter_mut().map(poll).collect();
    let through: Vec<_> = passes.iter().map(Option::is_some).collect();
    assert_eq!(through, [true, true, false]);
    drop(passes);
    // Told, but dropped before it looked: the pass comes back.
    drop(waiting);
    assert_eq!(gate.state.lock().window.in_flight, 0);
    assert!(poll(&mut Box::pin(gate.enter(START))).is_some());
}
