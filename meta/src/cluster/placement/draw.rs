//! Chains drawn one by one, each as strange to those before as can be.

use std::cmp::Reverse;

use super::pairs::Pairs;

/// Adds to `chains` until there are `count` and every node is in as many as its quota says.
///
/// A node whose quota left equals the number of chains left must be in each of them, the others are
/// free, so any choice that honours this can be completed. Among the free the one is taken that
/// shares the fewest chains with those already in.
pub(super) fn rest(chains: &mut Vec<Vec<usize>>, quotas: &[usize], count: usize, width: usize) {
    let mut left = quotas.to_vec();
    for &node in chains.iter().flatten() {
        left[node] -= 1;
    }
    let mut pairs = Pairs::count(chains, quotas, width);
    for remaining in (1..=count - chains.len()).rev() {
        let must = (0..left.len()).filter(|&n| left[n] == remaining);
        let mut chain: Vec<usize> = Vec::with_capacity(width);
        for node in must.take(width) {
            pairs.join(node, &chain);
            chain.push(node);
        }
        while chain.len() < width {
            let free = (0..left.len()).filter(|n| left[*n] > 0 && !chain.contains(n));
            let key = |&n: &usize| (pairs.with(n, &chain), Reverse(left[n]), n);
            let Some(best) = free.min_by_key(key) else {
                break; // Cannot be: the quotas left add up to `remaining * width`, each at most `remaining`.
            };
            pairs.join(best, &chain);
            chain.push(best);
        }
        for &n in &chain {
            left[n] -= 1;
        }
        chains.push(chain);
    }
}
