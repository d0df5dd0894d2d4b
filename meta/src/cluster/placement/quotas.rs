//! How many slots each node fills.

/// How many slots each node fills, and how many chains there are. The quotas add up to
/// `chains * width` and none exceeds `chains`.
pub(super) fn quotas(disks: &[usize], width: usize, per_disk: usize) -> (Vec<usize>, usize) {
    let total: usize = disks.iter().sum();
    // At most `width` tries: some multiple of `width` is among so many consecutive numbers.
    let even = |r: &usize| (r * total).is_multiple_of(width);
    let per_disk = (per_disk..per_disk + width).find(even).unwrap_or(per_disk);
    let filled = |chains: usize| {
        disks
            .iter()
            .map(|d| (d * per_disk).min(chains))
            .sum::<usize>()
    };
    // `filled(c) - c * width` is concave in c and not negative at 1: bisect for its last root.
    let (mut low, mut high) = (1, total * per_disk / width + 1);
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        if filled(middle) >= middle * width {
            low = middle;
        } else {
            high = middle;
        }
    }
    let chains = low;
    let mut quotas: Vec<usize> = disks.iter().map(|d| (d * per_disk).min(chains)).collect();
    // Fewer than `width` slots too many: take them where each disk holds the most.
    for _ in 0..filled(chains) - chains * width {
        let fullest = (0..quotas.len()).filter(|&n| quotas[n] > 0);
        let key = |&n: &usize| (quotas[n] * total / disks[n], quotas[n]);
        if let Some(n) = fullest.max_by_key(key) {
            quotas[n] -= 1;
        }
    }
    (quotas, chains)
}
