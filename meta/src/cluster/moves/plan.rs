//! Which replicas have to move where: a pure function of the map and of what works.
//!
//! What a [`Plan`] guarantees, carried out or continued from any state on the way:
//! - every replica on a disk that drains or is retired goes to a disk in use, if there is a node for it;
//! - two replicas of a chain are never planned onto one node;
//! - while the map asks for balance, disks end with numbers of targets in proportion to their
//!   capacity as near as whole targets and distinct nodes allow, by few moves: each lowers the
//!   sum over the disks of targets² / capacity, so the plan ends and is not reversed by the next;
//! - the same map and facts give the same plan.
//!
//! Among the chains that could make a move, that one is taken which leaves pairs of nodes the most
//! evenly met, so that the load of a dead node keeps spreading over all others.
//!
//! A replica that could only move in a circle is found along a shortest path of moves (from a full
//! disk over others to an empty one), which makes the balance exact and not only greedy.

use std::collections::{BTreeMap, HashMap, VecDeque};

use emberfs_proto::cluster::{ClusterMap, DiskRole};
use emberfs_proto::ids::{ChainId, DiskId, NodeId, TargetId};

use super::Facts;

/// A disk with less than one in this many bytes left takes no replica.
const LOW_SPACE: u64 = 20;

/// Why a replica moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) enum Reason {
    /// Its disk is to be emptied.
    Vacate,
    /// Another disk has more room.
    Balance,
}

/// One move to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) struct Step {
    pub(in crate::cluster) chain: ChainId,
    pub(in crate::cluster) replaces: TargetId,
    pub(in crate::cluster) node: NodeId,
    pub(in crate::cluster) disk: DiskId,
    pub(in crate::cluster) reason: Reason,
}

/// What is left to move beyond the moves that have begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cluster) struct Plan {
    /// In the order in which they should begin.
    pub(in crate::cluster) steps: Vec<Step>,
    /// Replicas that have to go and have nowhere to go.
    pub(in crate::cluster) stuck: Vec<TargetId>,
}

/// Plans, taking the moves that have begun as done.
pub(in crate::cluster) fn plan(map: &ClusterMap, facts: &Facts) -> Plan {
    let mut board = Board::of(map, facts);
    let mut plan = Plan::default();
    board.vacate(&mut plan);
    if map.rebalance {
        board.balance(&mut plan);
    }
    plan
}

/// Chains to add so that disks in use hold about `targets_per_disk` targets each; none while they hold
/// half of it. Each chain is a list of places, head first.
pub(in crate::cluster) fn more_chains(
    map: &ClusterMap,
    facts: &Facts,
    targets_per_disk: u32,
) -> Vec<Vec<(NodeId, DiskId)>> {
    let mut board = Board::of(map, facts);
    let disks = board.spots.iter().filter(|spot| spot.open).count();
    let wanted = disks * targets_per_disk as usize;
    let width = map.replicas as usize;
    if 2 * map.targets.len() >= wanted {
        return Vec::new();
    }
    let heads = map
        .chains
        .values()
        .filter_map(|chain| chain.targets.first());
    let mut leads: HashMap<DiskId, u64> = HashMap::new();
    for head in heads.filter_map(|id| map.targets.get(id)) {
        *leads.entry(head.disk).or_default() += 1;
    }
    let mut chains = Vec::new();
    for _ in 0..(wanted - map.targets.len()) / width.max(1) {
        let Some(spots) = board.place(width) else {
            break;
        };
        let mut places: Vec<_> = spots
            .iter()
            .map(|&s| (board.spots[s].node, board.spots[s].disk))
            .collect();
        places.sort_by_key(|(_, disk)| (leads.get(disk).copied().unwrap_or(0), *disk));
        if let Some((_, head)) = places.first() {
            *leads.entry(*head).or_default() += 1;
        }
        chains.push(places);
    }
    chains
}

/// A disk, as the planner sees it.
struct Spot {
    disk: DiskId,
    node: NodeId,
    /// In proportion to what it should hold.
    weight: u64,
    /// It may take replicas, and give them.
    open: bool,
    /// It is to be emptied.
    vacate: bool,
    held: u64,
}

impl Spot {
    /// Whether the sum of squares falls when `from` gives a target to `to`.
    fn gains(from: &Self, to: &Self) -> bool {
        let saved = wide((2 * from.held).saturating_sub(1)) * wide(to.weight);
        wide(2 * to.held + 1) * wide(from.weight) < saved
    }

    /// Orders by what one more target would cost.
    fn by_cost(&self, other: &Self) -> std::cmp::Ordering {
        let mine = wide(2 * self.held + 1) * wide(other.weight);
        let theirs = wide(2 * other.held + 1) * wide(self.weight);
        mine.cmp(&theirs)
    }
}

fn wide(count: u64) -> u128 {
    u128::from(count)
}

/// One replica: on which spot, and whether a balancing move may still take it.
#[derive(Clone, Copy)]
struct Seat {
    target: TargetId,
    spot: usize,
    settled: bool,
}

struct Board {
    spots: Vec<Spot>,
    chains: Vec<(ChainId, Vec<Seat>)>,
    /// How many chains two nodes share.
    pairs: HashMap<(NodeId, NodeId), i64>,
    /// Chains with a replica on each spot.
    on: Vec<Vec<usize>>,
}

impl Board {
    fn of(map: &ClusterMap, facts: &Facts) -> Self {
        let mut spots: BTreeMap<DiskId, Spot> = BTreeMap::new();
        for node in map.nodes.values() {
            for disk in &node.disks {
                let health = facts.get(&disk.id).copied().unwrap_or_default();
                let full = health
                    .free
                    .is_some_and(|free| free < disk.capacity / LOW_SPACE);
                let spot = Spot {
                    disk: disk.id,
                    node: node.id,
                    weight: disk.capacity.max(1),
                    open: health.works && !full,
                    vacate: false,
                    held: 0,
                };
                spots.insert(disk.id, spot);
            }
        }
        for target in map.targets.values() {
            // A disk that its node does not name any more.
            spots.entry(target.disk).or_insert(Spot {
                disk: target.disk,
                node: target.node,
                weight: 1,
                open: false,
                vacate: false,
                held: 0,
            });
        }
        let mut spots: Vec<Spot> = spots.into_values().collect();
        let index: HashMap<DiskId, usize> =
            spots.iter().enumerate().map(|(i, s)| (s.disk, i)).collect();
        let mut on = vec![Vec::new(); spots.len()];
        let mut in_use = vec![false; spots.len()];
        for target in map.targets.values() {
            in_use[index[&target.disk]] = true;
        }
        for (i, spot) in spots.iter_mut().enumerate() {
            let role = map.roles.get(&spot.disk).copied();
            let active = match role {
                None | Some(DiskRole::Unspecified) => in_use[i],
                Some(role) => role == DiskRole::Active,
            };
            spot.open &= active;
            spot.vacate = matches!(role, Some(DiskRole::Draining | DiskRole::Retired));
        }
        let mut chains = Vec::with_capacity(map.chains.len());
        let mut pairs = HashMap::new();
        for chain in map.chains.values() {
            let moving = map.moves.get(&chain.id);
            let goes = moving.map(|m| m.replaces);
            let members = chain.targets.iter().filter(|id| Some(**id) != goes);
            let seats: Vec<Seat> = members
                .filter_map(|id| map.targets.get(id))
                .map(|t| Seat {
                    target: t.id,
                    spot: index[&t.disk],
                    settled: moving.is_some_and(|m| m.target == t.id),
                })
                .collect();
            for (i, seat) in seats.iter().enumerate() {
                spots[seat.spot].held += 1;
                on[seat.spot].push(chains.len());
                for other in &seats[..i] {
                    let pair = (spots[seat.spot].node, spots[other.spot].node);
                    *pairs.entry(pair).or_insert(0) += 1;
                    *pairs.entry((pair.1, pair.0)).or_insert(0) += 1;
                }
            }
            chains.push((chain.id, seats));
        }
        Self {
            spots,
            chains,
            pairs,
            on,
        }
    }

    /// Empties what is to be emptied.
    fn vacate(&mut self, plan: &mut Plan) {
        for chain in 0..self.chains.len() {
            for seat in 0..self.chains[chain].1.len() {
                let Seat { target, spot, .. } = self.chains[chain].1[seat];
                if !self.spots[spot].vacate {
                    continue;
                }
                let fits = (0..self.spots.len()).filter(|&to| self.fits(chain, seat, to));
                let best = fits.min_by(|&a, &b| {
                    let pairs = |to| self.pair_cost(chain, seat, to);
                    let by_cost = self.spots[a].by_cost(&self.spots[b]);
                    by_cost.then_with(|| pairs(a).cmp(&pairs(b)))
                });
                match best {
                    Some(to) => plan.steps.push(self.carry(chain, seat, to, Reason::Vacate)),
                    None => plan.stuck.push(target),
                }
            }
        }
    }

    /// Evens out, one shortest path of moves after the other.
    fn balance(&mut self, plan: &mut Plan) {
        while let Some(path) = self.improving_path() {
            for (chain, seat, to) in path {
                let step = self.carry(chain, seat, to, Reason::Balance);
                plan.steps.push(step);
            }
        }
    }

    /// Places of one more chain: the emptiest disks, on nodes that have met the least.
    fn place(&mut self, width: usize) -> Option<Vec<usize>> {
        let mut chosen: Vec<usize> = Vec::with_capacity(width);
        while chosen.len() < width {
            let nodes: Vec<NodeId> = chosen.iter().map(|&s| self.spots[s].node).collect();
            let met = |to: usize| -> i64 {
                let pair = |&node: &NodeId| self.pairs.get(&(self.spots[to].node, node));
                nodes.iter().filter_map(pair).sum()
            };
            let open = (0..self.spots.len())
                .filter(|&s| self.spots[s].open && !nodes.contains(&self.spots[s].node));
            let best = open.min_by(|&a, &b| {
                let by_cost = self.spots[a].by_cost(&self.spots[b]);
                by_cost.then_with(|| met(a).cmp(&met(b)))
            })?;
            for node in nodes {
                for pair in [(node, self.spots[best].node), (self.spots[best].node, node)] {
                    *self.pairs.entry(pair).or_insert(0) += 1;
                }
            }
            chosen.push(best);
        }
        for &spot in &chosen {
            self.spots[spot].held += 1;
        }
        Some(chosen)
    }

    /// Whether the replica may go to this disk.
    fn fits(&self, chain: usize, seat: usize, to: usize) -> bool {
        let spot = &self.spots[to];
        let mut others = self.chains[chain]
            .1
            .iter()
            .enumerate()
            .filter(|&(i, _)| i != seat);
        spot.open && others.all(|(_, other)| self.spots[other.spot].node != spot.node)
    }

    /// How much less evenly pairs of nodes meet when the replica goes there.
    fn pair_cost(&self, chain: usize, seat: usize, to: usize) -> i64 {
        let seats = &self.chains[chain].1;
        let (from, to) = (self.spots[seats[seat].spot].node, self.spots[to].node);
        if from == to {
            return 0;
        }
        let met = |a: NodeId, b: NodeId| self.pairs.get(&(a, b)).copied().unwrap_or(0);
        let others = seats.iter().enumerate().filter(|&(i, _)| i != seat);
        others
            .map(|(_, other)| self.spots[other.spot].node)
            .map(|other| met(to, other) - met(from, other))
            .sum()
    }

    fn carry(&mut self, chain: usize, seat: usize, to: usize, reason: Reason) -> Step {
        let Seat {
            target, spot: from, ..
        } = self.chains[chain].1[seat];
        let (old, new) = (self.spots[from].node, self.spots[to].node);
        for i in 0..self.chains[chain].1.len() {
            if i == seat {
                continue;
            }
            let other = self.spots[self.chains[chain].1[i].spot].node;
            for (node, by) in [(old, -1), (new, 1)] {
                *self.pairs.entry((node, other)).or_insert(0) += by;
                *self.pairs.entry((other, node)).or_insert(0) += by;
            }
        }
        let id = self.chains[chain].0;
        self.chains[chain].1[seat] = Seat {
            target,
            spot: to,
            settled: true,
        };
        self.spots[from].held -= 1;
        self.spots[to].held += 1;
        self.on[from].retain(|&c| c != chain);
        self.on[to].push(chain);
        Step {
            chain: id,
            replaces: target,
            node: new,
            disk: self.spots[to].disk,
            reason,
        }
    }

    /// The shortest series of moves, one target each from disk to disk, that takes one from a disk
    /// that holds too much to one that holds too little. The fullest disk first.
    fn improving_path(&self) -> Option<Vec<(usize, usize, usize)>> {
        let mut order: Vec<usize> = (0..self.spots.len())
            .filter(|&s| self.spots[s].open)
            .collect();
        order.sort_by(|&a, &b| self.spots[a].by_cost(&self.spots[b]));
        let emptiest = *order.first()?;
        for &from in order.iter().rev() {
            if !Spot::gains(&self.spots[from], &self.spots[emptiest]) {
                continue;
            }
            if let Some(path) = self.search(from, &order) {
                return Some(path);
            }
        }
        None
    }

    fn search(&self, from: usize, order: &[usize]) -> Option<Vec<(usize, usize, usize)>> {
        // How each disk was reached: from which, by which replica.
        let mut reached: HashMap<usize, (usize, usize, usize)> = HashMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            let path = Self::path(&reached, from, at);
            for &to in order {
                if to == from || reached.contains_key(&to) {
                    continue;
                }
                // No chain twice in one path: whether a move fits must not depend on another.
                let free = |chain: &usize| path.iter().all(|(used, ..)| used != chain);
                let seats = self.on[at].iter().filter(|c| free(c)).filter_map(|&chain| {
                    let all = &self.chains[chain].1;
                    let seat = all.iter().position(|s| s.spot == at && !s.settled)?;
                    self.fits(chain, seat, to).then_some((chain, seat))
                });
                let best =
                    seats.min_by_key(|&(chain, seat)| (self.pair_cost(chain, seat, to), chain));
                let Some((chain, seat)) = best else { continue };
                reached.insert(to, (at, chain, seat));
                if Spot::gains(&self.spots[from], &self.spots[to]) {
                    return Some(Self::path(&reached, from, to));
                }
                queue.push_back(to);
            }
        }
        None
    }

    /// The moves from `from` to `end`: chain, seat, disk to go to.
    fn path(
        reached: &HashMap<usize, (usize, usize, usize)>,
        from: usize,
        end: usize,
    ) -> Vec<(usize, usize, usize)> {
        let mut path = Vec::new();
        let mut at = end;
        while at != from
            && let Some(&(before, chain, seat)) = reached.get(&at)
        {
            path.push((chain, seat, at));
            at = before;
        }
        path.reverse();
        path
    }
}
