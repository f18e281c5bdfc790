//! Expert choice on the CPU.

use std::cmp::Ordering;

use rayon::prelude::*;

use crate::abi::types::MOE_FAULT_TOKEN_INDEX;
use crate::cpu::element::{Real, adds, load, load_index, store, store_index, true_count};
use crate::ops::router::expert_choice::{Backward, Forward, Gradient};
use crate::report::Report;
use crate::tensor::Matrix;

use super::score::{load_logits, softmax, store_masks, store_row};

/// softmax(L), [tokens, experts].
///
/// # Safety
/// So many rows of `logits` are readable.
unsafe fn scores<R: Real>(logits: &Matrix, tokens: i64, experts: usize, report: &Report) -> Vec<R> {
    let mut scores = vec![R::default(); tokens as usize * experts];
    scores.par_chunks_mut(experts).enumerate().for_each_init(
        || vec![R::default(); experts],
        |row, (token, scores)| {
            unsafe { load_logits(logits, token as i64, row, report) };
            softmax(row, scores);
        },
    );
    scores
}

pub fn fwd<R: Real>(problem: &Forward, report: &Report) {
    let experts = problem.desc.experts as usize;
    // SAFETY: the checks found room for all rows of each tensor; the caller vouches for the memory. Each expert's and
    // each token's row is written by one thread.
    unsafe {
        let tokens = true_count(&problem.tokens, report);
        let scores = scores::<R>(&problem.logits, tokens, experts, report);
        let real: Vec<usize> = (0..tokens as usize)
            .filter(|&token| problem.padding_mask.is_null() || problem.padding_mask.add(token).read() != 0)
            .collect();
        let chosen: Vec<Vec<usize>> = (0..experts)
            .into_par_iter()
            .map(|expert| best(&real, problem.desc.capacity as usize, |token| scores[token * experts + expert]))
            .collect();
        chosen.par_iter().enumerate().for_each(|(expert, tokens)| {
            write_expert(problem, expert as i64, tokens, |token| scores[token * experts + expert].to_f64())
        });
        let mut mask = vec![false; scores.len()];
        for (expert, tokens) in chosen.iter().enumerate() {
            tokens.iter().for_each(|&token| mask[token * experts + expert] = true);
        }
        mask.par_chunks(experts)
            .zip(scores.par_chunks(experts))
            .enumerate()
            .for_each(|(token, (mask, scores))| write_token(problem, token as i64, mask, scores));
    }
}

/// The `capacity` candidates of the highest scores, ties to the lower; ascending, as the candidates are.
fn best<R: Real>(candidates: &[usize], capacity: usize, score: impl Fn(usize) -> R) -> Vec<usize> {
    let mut tokens = candidates.to_vec();
    if capacity < tokens.len() {
        let order = |&a: &usize, &b: &usize| score(b).partial_cmp(&score(a)).unwrap_or(Ordering::Equal).then(a.cmp(&b));
        tokens.select_nth_unstable_by(capacity, order);
        tokens.truncate(capacity);
        tokens.sort_unstable();
    }
    tokens
}

/// # Safety
/// The expert's rows of the outputs are live, and nobody else accesses them.
unsafe fn write_expert(problem: &Forward, expert: i64, tokens: &[usize], score: impl Fn(usize) -> f64) {
    for place in 0..problem.desc.capacity {
        let token = tokens.get(place as usize).copied();
        unsafe {
            if let Some(ids) = &problem.token_ids {
                store_index(ids, expert * ids.pitch + place, token.map_or(-1, |token| token as i64));
            }
            if let Some(weights) = &problem.weights {
                store(weights.dtype, weights.data, expert * weights.pitch + place, token.map_or(0.0, &score));
            }
        }
    }
}

/// # Safety
/// The token's rows of the outputs are live, and nobody else accesses them.
unsafe fn write_token<R: Real>(problem: &Forward, token: i64, mask: &[bool], scores: &[R]) {
    unsafe {
        if let Some(dense) = &problem.dense {
            let kept = mask.iter().zip(scores).map(|(&chosen, &score)| if chosen { score } else { R::default() });
            store_row(dense, token, &kept.collect::<Vec<_>>(), false);
        }
        store_masks(problem.byte_mask.as_ref(), problem.bit_mask.as_ref(), token, mask);
    }
}

pub fn bwd<R: Real>(problem: &Backward, report: &Report) {
    let experts = problem.desc.experts as usize;
    // SAFETY: as in fwd.
    unsafe {
        let tokens = true_count(&problem.tokens, report);
        let mut dlogits = scores::<R>(&problem.logits, tokens, experts, report);
        let dweights = dense_gradient::<R>(problem, tokens, report);
        let add = adds(&problem.mode);
        let rows = dlogits.par_chunks_mut(experts).zip(dweights.par_chunks(experts));
        rows.enumerate().for_each(|(token, (row, grad))| {
            let inner = row.iter().zip(grad).map(|(&s, &g)| product(s, g)).sum::<R>();
            row.iter_mut().zip(grad).for_each(|(s, &g)| *s = product(*s, g - inner));
            store_row(&problem.dlogits, token as i64, row, add);
        });
    }
}

/// A score times a gradient: 0 where the score is, even if the gradient has overflowed.
fn product<R: Real>(score: R, gradient: R) -> R {
    if score > R::default() { score * gradient } else { R::default() }
}

/// The gradient of the weights, [tokens, experts], 0 where an expert has not chosen the token.
///
/// # Safety
/// The gradient's tensors are live.
unsafe fn dense_gradient<R: Real>(problem: &Backward, tokens: i64, report: &Report) -> Vec<R> {
    let experts = problem.desc.experts;
    let mut grad = vec![R::default(); (tokens * experts) as usize];
    let value = |matrix: &Matrix, row: i64, column: i64| {
        R::from_f64(unsafe { load(matrix.dtype, matrix.data, row * matrix.pitch + column) })
    };
    match &problem.gradient {
        Gradient::Dense { byte_mask, dweights } => {
            for (place, grad) in (0i64..).zip(&mut grad) {
                let (token, expert) = (place / experts, place % experts);
                let chosen = unsafe { byte_mask.data.offset((token * byte_mask.pitch + expert) as isize).read() } != 0;
                *grad = if chosen { value(dweights, token, expert) } else { R::default() };
            }
        }
        Gradient::Compact { token_ids, dweights } => {
            for (expert, place) in (0..experts).flat_map(|e| (0..problem.desc.capacity).map(move |c| (e, c))) {
                let token = unsafe { load_index(token_ids, expert * token_ids.pitch + place) };
                if (0..tokens).contains(&token) {
                    grad[(token * experts + expert) as usize] += value(dweights, expert, place);
                } else if token != -1 {
                    report.record(MOE_FAULT_TOKEN_INDEX, expert * problem.desc.capacity + place, token);
                }
            }
        }
    }
    grad
}
