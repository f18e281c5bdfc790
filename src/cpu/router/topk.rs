//! Scores, selection and weights on the CPU, forward and backward.

use rayon::prelude::*;

use crate::abi::router::*;
use crate::cpu::element::{Real, adds, load, load_index, store, store_index, true_count};
use crate::ops::router::topk::{Backward, Forward, Weighting};
use crate::philox::Philox;
use crate::report::Report;
use crate::tensor::Matrix;

use super::loss::{Gradient, Tally, counts, finish};
use super::score::{derivative, load_logits, score, softmax, store_masks, store_row};
use super::{chunks, select};

/// A part of the tokens' sums.
struct Part {
    tally: Tally,
    tokens_per_expert: Vec<i64>,
}

pub fn fwd<R: Real>(problem: &Forward, report: Report) {
    let losses = &problem.router.losses;
    let empty = || Part { tally: Tally::new(losses), tokens_per_expert: vec![0; losses.experts as usize] };
    // SAFETY: the checks found room for `tokens` rows in every tensor; the caller vouches for the memory. Each token's
    // rows are written by one thread.
    unsafe {
        let tokens = true_count(&problem.tokens, &report);
        let random = Philox::read(&problem.random);
        let parts: Vec<Part> = chunks(tokens)
            .map(|range| {
                let mut part = empty();
                let mut worker = Worker::<R>::new(problem, random);
                range.for_each(|token| worker.token(token, &mut part, &report));
                part
            })
            .collect();
        let total = parts.into_iter().fold(empty(), |mut total, part| {
            total.tokens_per_expert.iter_mut().zip(part.tokens_per_expert).for_each(|(sum, n)| *sum += n);
            Part { tally: total.tally.merge(part.tally), ..total }
        });
        if !problem.tokens_per_expert.is_null() {
            let counts = &total.tokens_per_expert;
            problem.tokens_per_expert.copy_from_nonoverlapping(counts.as_ptr(), counts.len());
        }
        let Forward { inputs, outputs, logits, .. } = problem;
        finish::<R>(losses, inputs, outputs, &total.tally, (logits, None), tokens, &report);
    }
}

/// What one thread needs to route tokens.
struct Worker<'a, R> {
    problem: &'a Forward,
    random: Philox,
    logits: Vec<R>,
    scores: Vec<R>,
    keys: Vec<R>,
    /// -1: an empty slot.
    ids: Vec<i64>,
    weights: Vec<R>,
}

impl<'a, R: Real> Worker<'a, R> {
    fn new(problem: &'a Forward, random: Philox) -> Self {
        let losses = &problem.router.losses;
        let (row, slots) = (vec![R::default(); losses.experts as usize], losses.top_k as usize);
        let (scores, keys) = (row.clone(), row.clone());
        Worker { problem, random, logits: row, scores, keys, ids: vec![0; slots], weights: vec![R::default(); slots] }
    }

    unsafe fn token(&mut self, token: i64, part: &mut Part, report: &Report) {
        let Forward { router, inputs, outputs, .. } = self.problem;
        let alive = unsafe { load_logits(&self.problem.logits, token, &mut self.logits, report) };
        unsafe { self.choose(token, alive) };
        weights(&router.weighting, &self.logits, &self.ids, &mut self.weights);
        unsafe { self.write(token) };
        if !counts(inputs, token) {
            return;
        }
        self.ids.iter().filter(|&&id| id >= 0).for_each(|&id| part.tokens_per_expert[id as usize] += 1);
        let asked = !(outputs.aux.is_null() && outputs.aux_counts.is_null() && outputs.z.is_null());
        if router.losses.any() && asked {
            part.tally.add(&router.losses, &self.logits, None);
        }
    }

    unsafe fn choose(&mut self, token: i64, alive: bool) {
        let Forward { router, bias, given, .. } = self.problem;
        let (selection, experts) = (&router.selection, self.logits.len() as i64);
        match (selection.rule, given) {
            (_, Some(given)) => {
                for (slot, id) in self.ids.iter_mut().enumerate() {
                    let value = unsafe { load_index(given, token * given.pitch + slot as i64) };
                    *id = if (0..experts).contains(&value) { value } else { -1 };
                }
            }
            (MOE_SELECT_BALANCED, _) => {
                let first = self.random.below(token as u64, experts as u32) as i64;
                let stride = experts / self.ids.len() as i64;
                self.ids.iter_mut().enumerate().for_each(|(k, id)| *id = (first + k as i64 * stride) % experts);
            }
            _ if !alive => self.ids.iter_mut().enumerate().for_each(|(k, id)| *id = k as i64),
            _ if bias.is_null() && selection.groups.is_none() => {
                select::top_k(&self.logits, 0..self.logits.len(), &mut self.ids)
            }
            _ => unsafe { self.choose_by_keys() },
        }
    }

    /// Selection with a bias or within groups.
    unsafe fn choose_by_keys(&mut self) {
        let Forward { router, bias, .. } = self.problem;
        let selection = &router.selection;
        let on_logits = router.weighting.compares_logits || (selection.bias_on_logit && !bias.is_null());
        match router.weighting.score {
            _ if on_logits => self.scores.copy_from_slice(&self.logits),
            MOE_SCORE_SOFTMAX => drop(softmax(&self.logits, &mut self.scores)),
            function => self.scores.iter_mut().zip(&self.logits).for_each(|(s, &l)| *s = score(function, l)),
        }
        if bias.is_null() {
            self.keys.copy_from_slice(&self.logits);
        } else {
            for (expert, score) in self.scores.iter_mut().enumerate() {
                let key = *score + R::from_f64(unsafe { bias.add(expert).read() }.into());
                *score = if key.is_nan() { R::NEG_INFINITY } else { key };
            }
            self.keys.copy_from_slice(&self.scores);
        }
        let Some(groups) = &selection.groups else {
            return select::top_k(&self.keys, 0..self.keys.len(), &mut self.ids);
        };
        let size = self.keys.len() / groups.count as usize;
        let kept = select::top_groups(groups, &self.scores);
        let members = kept.iter().flat_map(|&group| (0..size).map(move |place| group as usize * size + place));
        select::top_k(&self.keys, members, &mut self.ids);
    }

    unsafe fn write(&self, token: i64) {
        let Forward { ids, weights, dense, byte_mask, bit_mask, .. } = self.problem;
        let at = |matrix: &Matrix, column: i64| token * matrix.pitch + column;
        let (mut counted, mut mask) = (vec![R::default(); self.logits.len()], vec![false; self.logits.len()]);
        for (&id, &weight) in self.ids.iter().zip(&self.weights).filter(|(id, _)| **id >= 0) {
            counted[id as usize] += weight;
            mask[id as usize] = true;
        }
        unsafe {
            for slot in 0..self.ids.len() {
                if let Some(matrix) = ids {
                    store_index(matrix, at(matrix, slot as i64), self.ids[slot]);
                }
                if let Some(matrix) = weights {
                    store(matrix.dtype, matrix.data, at(matrix, slot as i64), self.weights[slot].to_f64());
                }
            }
            if let Some(matrix) = dense {
                store_row(matrix, token, &counted, false);
            }
            store_masks(byte_mask.as_ref(), bit_mask.as_ref(), token, &mask);
        }
    }
}

/// The weights of the chosen experts; 0 in empty slots.
fn weights<R: Real>(weighting: &Weighting, logits: &[R], ids: &[i64], weights: &mut [R]) {
    let scale = R::from_f64(weighting.scale);
    scores_of(weighting, logits, ids, weights);
    let sum = if weighting.divided { divisor(weights) } else { R::from_f64(1.0) };
    weights.iter_mut().for_each(|weight| *weight = *weight / sum * scale);
}

/// Scores of the chosen experts: of softmax over the chosen or over all, or by one logit alone.
fn scores_of<R: Real>(weighting: &Weighting, logits: &[R], ids: &[i64], scores: &mut [R]) {
    let chosen = |id: i64| if id < 0 { R::NEG_INFINITY } else { logits[id as usize] };
    if weighting.over_chosen {
        let subset: Vec<R> = ids.iter().map(|&id| chosen(id)).collect();
        softmax(&subset, scores);
    } else if weighting.score == MOE_SCORE_SOFTMAX {
        let mut all = vec![R::default(); logits.len()];
        softmax(logits, &mut all);
        scores.iter_mut().zip(ids).for_each(|(s, &id)| *s = if id < 0 { R::default() } else { all[id as usize] });
    } else {
        scores.iter_mut().zip(ids).for_each(|(s, &id)| *s = score(weighting.score, chosen(id)));
    }
}

fn divisor<R: Real>(scores: &[R]) -> R {
    scores.iter().copied().sum::<R>() + R::from_f64(1e-20)
}

pub fn bwd<R: Real>(problem: &Backward, report: Report) {
    let losses = &problem.router.losses;
    let (experts, slots) = (losses.experts as usize, losses.top_k as usize);
    // SAFETY: as in fwd.
    unsafe {
        let tokens = true_count(&problem.tokens, &report);
        let gradient = Gradient::new(losses, &problem.inputs, &problem.grads, tokens, &report);
        let add = adds(&problem.mode);
        chunks(tokens).for_each(|range| {
            let mut logits = vec![R::default(); experts];
            let mut grad = logits.clone();
            let (mut ids, mut dweights) = (vec![0; slots], vec![R::default(); slots]);
            for token in range {
                let alive = load_logits(&problem.logits, token, &mut logits, &report);
                grad.fill(R::default());
                if alive {
                    if load_dweights(problem, token, &mut ids, &mut dweights) {
                        weights_gradient(&problem.router.weighting, &logits, &ids, &dweights, &mut grad);
                    }
                    gradient.add(token, &logits, &mut grad);
                }
                store_row(&problem.dlogits, token, &grad, add);
            }
        });
    }
}

/// A token's ids and the gradient of its weights, 0 in empty slots; false where there is none.
unsafe fn load_dweights<R: Real>(problem: &Backward, token: i64, ids: &mut [i64], dweights: &mut [R]) -> bool {
    let Some(matrix) = &problem.ids else { return false };
    let experts = problem.router.losses.experts;
    for (slot, id) in ids.iter_mut().enumerate() {
        let value = unsafe { load_index(matrix, token * matrix.pitch + slot as i64) };
        *id = if (0..experts).contains(&value) { value } else { -1 };
        let source = match (&problem.dweights, &problem.ddense) {
            (Some(compact), _) => Some((compact, slot as i64)),
            (_, Some(dense)) => Some((dense, *id)),
            _ => None,
        };
        dweights[slot] = match source {
            Some((matrix, column)) if *id >= 0 => {
                R::from_f64(unsafe { load(matrix.dtype, matrix.data, token * matrix.pitch + column) })
            }
            _ => R::default(),
        };
    }
    true
}

/// Adds dL of the weights to `grad`.
fn weights_gradient<R: Real>(weighting: &Weighting, logits: &[R], ids: &[i64], dweights: &[R], grad: &mut [R]) {
    let scale = R::from_f64(weighting.scale);
    let mut scores = vec![R::default(); ids.len()];
    scores_of(weighting, logits, ids, &mut scores);
    let present = || ids.iter().enumerate().filter(|(_, id)| **id >= 0).map(|(slot, &id)| (slot, id as usize));
    let inner = present().map(|(slot, _)| scores[slot] * dweights[slot]).sum::<R>() * scale;
    if weighting.score == MOE_SCORE_SOFTMAX {
        present().for_each(|(slot, id)| grad[id] += scores[slot] * dweights[slot] * scale);
        if weighting.over_chosen {
            present().for_each(|(slot, id)| grad[id] += -(scores[slot] * inner));
        } else {
            let mut all = vec![R::default(); logits.len()];
            softmax(logits, &mut all);
            grad.iter_mut().zip(all).for_each(|(grad, score)| *grad += -(score * inner));
        }
        return;
    }
    let (sum, shared) = match weighting.divided {
        true => (divisor(&scores), inner / divisor(&scores)),
        false => (R::from_f64(1.0), R::default()),
    };
    for (slot, id) in present() {
        let slope = derivative(weighting.score, logits[id]);
        // 0 times a gradient that overflowed is 0.
        if slope > R::default() {
            grad[id] += (dweights[slot] * scale - shared) / sum * slope;
        }
    }
}
