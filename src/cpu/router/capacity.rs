//! Capacity and dropping on the CPU: slots in token order, a list of them for each expert, cut to its capacity.

use std::cmp::Reverse;

use rayon::prelude::*;

use crate::abi::router::*;
use crate::cpu::element::{adds, load, load_index, store, store_index, true_count};
use crate::dtype::Dtype;
use crate::ops::router::capacity::{Backward, Capacity, Forward, Sampling};
use crate::philox::Philox;
use crate::report::Report;
use crate::tensor::Matrix;

use super::chunks;
use super::score::{load_logits, softmax};

/// What becomes of the slots, [T, K] in token order.
struct Slots {
    /// -1: empty.
    ids: Vec<i64>,
    weights: Vec<f64>,
    /// Whether the slot stays.
    kept: Vec<bool>,
}

pub fn fwd(problem: &Forward, report: &Report) {
    let desc = &problem.desc;
    // SAFETY: the checks found room for all rows of each tensor; the caller vouches for the memory.
    unsafe {
        let tokens = true_count(&problem.tokens, report);
        let random = Philox::read(&problem.random);
        if let Some(sampling) = &problem.sampling {
            chunks(tokens).for_each(|chunk| chunk.for_each(|token| sample(problem, sampling, token, &random, report)));
        }
        let (ids, weights) = match &problem.sampling {
            Some(sampling) => (&sampling.routed_ids, &sampling.routed_weights),
            None => (&problem.ids, &problem.weights),
        };
        let mut slots = read(ids, weights, desc, tokens);
        let lists = lists(problem, &slots, &random);
        let capacity = desc.value(tokens) as usize;
        let dropped: Vec<usize> = lists.iter().map(|list| list.len().saturating_sub(capacity)).collect();
        let staying: Vec<usize> =
            lists.par_iter().flat_map_iter(|list| cut(desc, &slots, &random, list, capacity)).collect();
        staying.into_iter().for_each(|slot| slots.kept[slot] = true);
        for token in 0..tokens as usize {
            write(problem, &slots, token);
        }
        for (expert, list) in lists.iter().enumerate() {
            put(problem.tokens_per_expert, expert, list.len() - dropped[expert]);
            put(problem.dropped_per_expert, expert, dropped[expert]);
        }
    }
}

/// # Safety
/// `output` is NULL or has the element.
unsafe fn put(output: *mut i64, place: usize, value: usize) {
    if !output.is_null() {
        unsafe { output.add(place).write(value as i64) };
    }
}

/// Draws a token's second expert: Gumbel noise on the logits of all experts but the first.
///
/// # Safety
/// The token's rows are live, and nobody else writes them.
unsafe fn sample(problem: &Forward, sampling: &Sampling, token: i64, random: &Philox, report: &Report) {
    let (desc, ids, weights) = (&problem.desc, &problem.ids, &problem.weights);
    let first = unsafe { load_index(ids, token * ids.pitch) };
    let mut logits = vec![0.0f64; desc.experts as usize];
    unsafe { load_logits(&sampling.logits, token, &mut logits, report) };
    let base = (desc.bound * desc.top_k + token * desc.experts) as u64;
    let noisy = |expert: usize| {
        let u = f64::from(random.uniform(base + expert as u64));
        logits[expert] - (-u.ln()).ln()
    };
    let mut second = None;
    for expert in (0..logits.len()).filter(|&expert| expert as i64 != first) {
        if second.is_none_or(|best| noisy(expert) > noisy(best)) {
            second = Some(expert);
        }
    }
    let second = second.expect("two experts at least: K is 2");
    let mut scores = logits.clone();
    softmax(&logits, &mut scores);
    let (routed_ids, routed) = (&sampling.routed_ids, &sampling.routed_weights);
    unsafe {
        let weight = load(weights.dtype, weights.data, token * weights.pitch);
        store_index(routed_ids, token * routed_ids.pitch, first);
        store_index(routed_ids, token * routed_ids.pitch + 1, second as i64);
        store(routed.dtype, routed.data, token * routed.pitch, weight);
        store(routed.dtype, routed.data, token * routed.pitch + 1, scores[second]);
    }
}

/// # Safety
/// So many rows of `ids` and `weights` are readable.
unsafe fn read(ids: &Matrix, weights: &Matrix, desc: &Capacity, tokens: i64) -> Slots {
    let places = || (0..tokens).flat_map(|token| (0..desc.top_k).map(move |slot| (token, slot)));
    let id = |(token, slot)| unsafe { load_index(ids, token * ids.pitch + slot) };
    let weight = |(token, slot)| unsafe { load(weights.dtype, weights.data, token * weights.pitch + slot) };
    Slots {
        ids: places().map(id).map(|id| if (0..desc.experts).contains(&id) { id } else { -1 }).collect(),
        weights: places().map(weight).collect(),
        kept: vec![false; (tokens * desc.top_k) as usize],
    }
}

/// The slots of each expert, in token order.
///
/// # Safety
/// The padding mask, where given, has an element for each token.
unsafe fn lists(problem: &Forward, slots: &Slots, random: &Philox) -> Vec<Vec<usize>> {
    let desc = &problem.desc;
    let top_k = desc.top_k as usize;
    let first_draw = (desc.bound * desc.top_k) as u64;
    let mut lists = vec![Vec::new(); desc.experts as usize];
    for (slot, &id) in slots.ids.iter().enumerate().filter(|(_, id)| **id >= 0) {
        let token = slot / top_k;
        let real = problem.padding_mask.is_null() || unsafe { problem.padding_mask.add(token).read() } != 0;
        let second = desc.second == MOE_SECOND_EXPERT_RANDOM && slot % top_k == 1;
        if real && !(second && !(2.0 * slots.weights[slot] as f32 > random.uniform(first_draw + token as u64))) {
            lists[id as usize].push(slot);
        }
    }
    lists
}

/// Those of an expert's slots that stay.
fn cut(desc: &Capacity, slots: &Slots, random: &Philox, list: &[usize], capacity: usize) -> Vec<usize> {
    let top_k = desc.top_k as usize;
    let mut list = list.to_vec();
    if list.len() > capacity {
        match desc.policy {
            MOE_DROP_BY_PROBS => list.sort_by_key(|&slot| Reverse(order(slots.weights[slot]))),
            MOE_DROP_RANDOM => list.sort_by_key(|&slot| Reverse(random.element(slot as u64))),
            MOE_DROP_BATCH_PRIORITIZED => {
                list.sort_by_key(|&slot| (slot % top_k, Reverse(importance(slots, slot / top_k, top_k))))
            }
            MOE_DROP_BY_CHOICE => list.sort_by_key(|&slot| slot % top_k),
            _ => {}
        }
        list.truncate(capacity);
    }
    list
}

/// A token's largest weight.
fn importance(slots: &Slots, token: usize, top_k: usize) -> i64 {
    let of_token = token * top_k..(token + 1) * top_k;
    of_token.filter(|&slot| slots.ids[slot] >= 0).map(|slot| order(slots.weights[slot])).max().unwrap_or(i64::MIN)
}

/// An integer that orders as the number does: -0 is 0, NaN is -inf.
fn order(value: f64) -> i64 {
    let value = if value.is_nan() { f64::NEG_INFINITY } else { value + 0.0 };
    let bits = value.to_bits() as i64;
    if bits < 0 { i64::MIN - bits } else { bits }
}

/// What a sum of weights counts as at least, where they are divided by it.
fn epsilon(weights: Dtype) -> f64 {
    match weights {
        Dtype::Fp16 => 1.0 / (1 << 10) as f64,
        Dtype::Bf16 => 1.0 / (1 << 7) as f64,
        Dtype::Fp64 => f64::EPSILON,
        _ => f32::EPSILON.into(),
    }
}

/// # Safety
/// The token's rows of the outputs are live, and nobody else accesses them.
unsafe fn write(problem: &Forward, slots: &Slots, token: usize) {
    let (desc, top_k) = (&problem.desc, problem.desc.top_k as usize);
    let of_token = token * top_k..(token + 1) * top_k;
    let (ids, weights, kept) = (&slots.ids[of_token.clone()], &slots.weights[of_token.clone()], &slots.kept[of_token]);
    let sum_of = |counts: &dyn Fn(usize) -> bool| (0..top_k).filter(|&k| counts(k)).map(|k| weights[k]).sum::<f64>();
    let divisor = match desc.renormalize {
        MOE_DROP_RENORMALIZE_BEFORE => sum_of(&|k| ids[k] >= 0).max(epsilon(problem.weights.dtype)),
        MOE_DROP_RENORMALIZE_AFTER => sum_of(&|k| kept[k]).max(epsilon(problem.weights.dtype)),
        _ => 1.0,
    };
    let (kept_ids, kept_weights) = (&problem.kept_ids, &problem.kept_weights);
    for k in 0..top_k {
        let weight = if desc.spares(k as i64) { weights[k] } else { weights[k] / divisor };
        let (id, weight) = if kept[k] { (ids[k], weight) } else { (-1, 0.0) };
        unsafe {
            store_index(kept_ids, token as i64 * kept_ids.pitch + k as i64, id);
            store(kept_weights.dtype, kept_weights.data, token as i64 * kept_weights.pitch + k as i64, weight);
        }
    }
}

pub fn bwd(problem: &Backward, report: &Report) {
    // SAFETY: the checks found room for all rows of each tensor; the caller vouches for the memory. Each token's rows
    // are written by one thread.
    unsafe {
        let tokens = true_count(&problem.tokens, report);
        let add = adds(&problem.mode);
        chunks(tokens).for_each(|chunk| chunk.for_each(|token| token_gradient(problem, token, add)));
    }
}

/// # Safety
/// The token's rows are live, and nobody else accesses its output.
unsafe fn token_gradient(problem: &Backward, token: i64, add: bool) {
    let desc = &problem.desc;
    let here = |ids: &Matrix, k: i64| (0..desc.experts).contains(&unsafe { load_index(ids, token * ids.pitch + k) });
    let value = |matrix: &Matrix, k: i64| unsafe { load(matrix.dtype, matrix.data, token * matrix.pitch + k) };
    let kept: Vec<bool> = (0..desc.top_k).map(|k| here(&problem.kept_ids, k)).collect();
    let grad = |k: i64| if kept[k as usize] { value(&problem.dkept_weights, k) } else { 0.0 };
    // Which weights are in the sum that they are divided by.
    let summed: Vec<bool> =
        (0..desc.top_k).map(|k| problem.ids.as_ref().map_or(kept[k as usize], |ids| here(ids, k))).collect();
    let (divisor, through_sum) = match &problem.weights {
        None => (1.0, 0.0),
        Some(weights) => {
            let sum: f64 = (0..desc.top_k).filter(|&k| summed[k as usize]).map(|k| value(weights, k)).sum();
            let least = epsilon(weights.dtype);
            let inner: f64 = (0..desc.top_k)
                .filter(|&k| kept[k as usize] && !desc.spares(k))
                .map(|k| grad(k) * value(weights, k))
                .sum();
            (sum.max(least), if sum >= least { inner / (sum * sum) } else { 0.0 })
        }
    };
    for k in 0..desc.top_k {
        let own = if desc.spares(k) { grad(k) } else { grad(k) / divisor };
        let total = if summed[k as usize] { own - through_sum } else { own };
        let place = token * problem.dweights.pitch + k;
        unsafe {
            let old = if add { value(&problem.dweights, k) } else { 0.0 };
            store(problem.dweights.dtype, problem.dweights.data, place, old + total);
        }
    }
}
