//! Which experts a token takes.

use crate::cpu::element::Real;
use crate::ops::router::topk::Groups;

/// The largest keys of `candidates`, which ascend: best first, ties to the lower.
pub fn top_k<R: Real>(keys: &[R], candidates: impl Iterator<Item = usize>, chosen: &mut [i64]) {
    let mut found = 0;
    for candidate in candidates {
        let key = keys[candidate];
        if found == chosen.len() && !(key > keys[chosen[found - 1] as usize]) {
            continue;
        }
        let mut place = found.min(chosen.len() - 1);
        while place > 0 && key > keys[chosen[place - 1] as usize] {
            chosen[place] = chosen[place - 1];
            place -= 1;
        }
        chosen[place] = candidate as i64;
        found = (found + 1).min(chosen.len());
    }
}

/// The best groups of experts, ascending. A group's score is the sum of its best scores, largest first.
pub fn top_groups<R: Real>(groups: &Groups, scores: &[R]) -> Vec<i64> {
    let size = scores.len() / groups.count as usize;
    let mut best = vec![0; groups.terms as usize];
    let sums: Vec<R> = (0..groups.count as usize)
        .map(|group| {
            top_k(scores, group * size..(group + 1) * size, &mut best);
            let sum = best.iter().map(|&e| scores[e as usize]).sum::<R>();
            if sum.is_nan() { R::NEG_INFINITY } else { sum }
        })
        .collect();
    let mut kept = vec![0; groups.kept as usize];
    top_k(&sums, 0..sums.len(), &mut kept);
    kept.sort_unstable();
    kept
}
