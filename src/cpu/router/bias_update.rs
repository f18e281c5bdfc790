//! The update of the selection bias on the CPU.

use rayon::prelude::*;

use crate::cpu::element::true_count;
use crate::ops::router::bias_update::{Data, Update};
use crate::report::Report;
use crate::tensor::Matrix;

use super::score::load_logits;

pub fn run(problem: &Update, report: &Report) {
    let experts = problem.experts as usize;
    // SAFETY: the caller vouches for E floats, E counts and the rows of the scores.
    unsafe {
        let bias = std::slice::from_raw_parts_mut(problem.bias, experts);
        match &problem.data {
            Data::Sign { rate, tokens_per_expert } => {
                sign(bias, *rate, std::slice::from_raw_parts(*tokens_per_expert, experts))
            }
            Data::Quantile { decay, top_k, tokens, scores, padding_mask } => {
                let tokens = true_count(tokens, report);
                let real = |&token: &i64| padding_mask.is_null() || padding_mask.offset(token as isize).read() != 0;
                let margins: Vec<f32> = (0..tokens)
                    .filter(real)
                    .flat_map(|token| margins(scores, token, bias, *top_k as usize, report))
                    .collect();
                quantile(bias, *decay, *top_k as usize, &margins);
            }
        }
    }
}

/// bias += rate * sign(mean(n) - n).
fn sign(bias: &mut [f32], rate: f64, counts: &[i64]) {
    let total: i128 = counts.iter().map(|&n| i128::from(n)).sum();
    for (bias, &n) in bias.iter_mut().zip(counts) {
        *bias += rate as f32 * (total - i128::from(n) * counts.len() as i128).signum() as f32;
    }
}

/// s - a, where a is the (K+1)-th largest of s + bias.
///
/// # Safety
/// Row `token` of `scores` is readable.
unsafe fn margins(scores: &Matrix, token: i64, bias: &[f32], top_k: usize, report: &Report) -> Vec<f32> {
    let mut row = vec![0.0f32; bias.len()];
    unsafe { load_logits(scores, token, &mut row, report) };
    let mut biased: Vec<f32> = row.iter().zip(bias).map(|(s, b)| number(s + b)).collect();
    let threshold = *biased.select_nth_unstable_by(top_k, |a, b| b.total_cmp(a)).1;
    row.iter().map(|s| number(s - threshold)).collect()
}

/// NaN counts as -inf.
fn number(value: f32) -> f32 {
    if value.is_nan() { f32::NEG_INFINITY } else { value }
}

/// bias = decay * bias - (1 - decay) * q, where q is the (floor(T*K/E) + 1)-th largest of an expert's margins [T, E].
fn quantile(bias: &mut [f32], decay: f64, top_k: usize, margins: &[f32]) {
    let experts = bias.len();
    let tokens = margins.len() / experts;
    if tokens == 0 {
        return;
    }
    let rank = tokens * top_k / experts;
    bias.par_iter_mut().enumerate().for_each(|(expert, bias)| {
        let mut column: Vec<f32> = margins.iter().skip(expert).step_by(experts).copied().collect();
        let q = *column.select_nth_unstable_by(rank, |a, b| b.total_cmp(a)).1;
        if q.is_finite() {
            *bias = (decay * f64::from(*bias) - (1.0 - decay) * f64::from(q)) as f32;
        }
    });
}
