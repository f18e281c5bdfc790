//! The losses of routers on the CPU. Sums are kept in fp64, in an order that no thread count changes.

use rayon::prelude::*;

use crate::abi::router::*;
use crate::abi::types::MOE_FAULT_GROUP_OFFSET;
use crate::cpu::element::{Real, adds, load_index, true_count};
use crate::ops::router::loss::{Backward, Forward, LossGrads, LossInputs, LossOutputs, Losses};
use crate::report::Report;
use crate::tensor::Matrix;

use super::score::{derivative, load_logits, score, softmax, store_row};
use super::{chunks, select};

/// What the losses sum over tokens.
#[derive(Clone)]
pub struct Tally {
    scores: Vec<f64>,
    counts: Vec<i64>,
    tokens: i64,
    z: f64,
}

impl Tally {
    pub fn new(losses: &Losses) -> Self {
        let experts = if losses.aux { losses.experts as usize } else { 0 };
        Tally { scores: vec![0.0; experts], counts: vec![0; experts], tokens: 0, z: 0.0 }
    }

    /// Takes in one token. `ids`: the choices that count; None: the plain top-k.
    pub fn add<R: Real>(&mut self, losses: &Losses, logits: &[R], ids: Option<&[i64]>) {
        self.tokens += 1;
        let mut scores = vec![R::default(); logits.len()];
        let total = aux_scores(losses, logits, &mut scores);
        if losses.z && total > R::NEG_INFINITY {
            self.z += total.to_f64() * total.to_f64();
        }
        if !losses.aux {
            return;
        }
        self.scores.iter_mut().zip(&scores).for_each(|(sum, score)| *sum += score.to_f64());
        let mut plain = [0; 64];
        let ids = ids.unwrap_or_else(|| {
            let plain = &mut plain[..losses.counted as usize];
            select::top_k(logits, 0..logits.len(), plain);
            plain
        });
        for &id in ids.iter().take(losses.counted as usize).filter(|id| (0..losses.experts).contains(*id)) {
            self.counts[id as usize] += 1;
        }
    }

    pub fn merge(mut self, other: Self) -> Self {
        self.scores.iter_mut().zip(other.scores).for_each(|(sum, part)| *sum += part);
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, part)| *sum += part);
        Tally { tokens: self.tokens + other.tokens, z: self.z + other.z, ..self }
    }

    fn aux(&self, losses: &Losses, inputs: &LossInputs) -> f64 {
        let count = |e: usize| unsafe {
            if losses.global() { inputs.global_counts.add(e).read() as f64 } else { self.counts[e] as f64 }
        };
        let product = self.scores.iter().enumerate().map(|(e, sum)| sum * count(e)).sum::<f64>();
        inverse_square(losses, inputs, self.tokens) * losses.aux_scale * product
    }
}

/// 1/n^2 of the tokens that the aux loss divides by; 0 without tokens.
fn inverse_square(losses: &Losses, inputs: &LossInputs, tokens: i64) -> f64 {
    let given = losses.global() && !inputs.global_tokens.is_null();
    let tokens = if given { unsafe { inputs.global_tokens.read() as f64 } } else { tokens as f64 };
    if tokens > 0.0 { 1.0 / (tokens * tokens) } else { 0.0 }
}

/// The scores of the aux loss, which sum to 1; returns the logsumexp where the z-loss needs it.
fn aux_scores<R: Real>(losses: &Losses, logits: &[R], scores: &mut [R]) -> R {
    if losses.score == MOE_SCORE_SOFTMAX {
        return softmax(logits, scores);
    }
    let total = if losses.z { softmax(logits, scores) } else { R::NEG_INFINITY };
    if losses.aux {
        scores.iter_mut().zip(logits).for_each(|(s, &logit)| *s = score(losses.score, logit));
        let sum = scores.iter().copied().sum::<R>() + R::from_f64(1e-20);
        scores.iter_mut().for_each(|score| *score = *score / sum);
    }
    total
}

/// Which tokens form a sequence.
pub struct Sequences {
    layout: i32,
    count: i64,
    /// Tokens a sequence, for MOE_SEQUENCE_MAJOR.
    length: i64,
    /// The true count.
    tokens: i64,
    offsets: *const i64,
}

// SAFETY: reads the caller's offsets alone.
unsafe impl Sync for Sequences {}

impl Sequences {
    /// # Safety
    /// The offsets of `inputs` are readable where the losses have sequences with offsets.
    pub unsafe fn new(losses: &Losses, inputs: &LossInputs, tokens: i64, report: &Report) -> Self {
        let (count, length) = (losses.sequences, (losses.tokens / losses.sequences).max(1));
        let layout = if losses.scope == MOE_AUX_SCOPE_SEQUENCE { losses.layout } else { MOE_SEQUENCE_MAJOR };
        let sequences = Sequences { layout, count, length, tokens, offsets: inputs.sequence_offsets };
        if layout == MOE_SEQUENCE_OFFSETS && losses.aux {
            for sequence in 0..count {
                let (begin, end) = sequences.bounds(sequence);
                if begin > end || begin < 0 {
                    report.record(MOE_FAULT_GROUP_OFFSET, sequence, begin);
                }
            }
        }
        sequences
    }

    fn bounds(&self, sequence: i64) -> (i64, i64) {
        let offset = unsafe { self.offsets.offset(sequence as isize) };
        unsafe { (offset.read(), offset.add(1).read()) }
    }

    fn tokens_of(&self, sequence: i64) -> impl Iterator<Item = i64> {
        let (begin, end, step) = match self.layout {
            MOE_SEQUENCE_MINOR => (sequence, self.tokens, self.count as usize),
            MOE_SEQUENCE_OFFSETS => {
                let (begin, end) = self.bounds(sequence);
                (begin.max(0), end, 1)
            }
            _ => (sequence * self.length, (sequence + 1) * self.length, 1),
        };
        (begin..end.min(self.tokens)).step_by(step)
    }
}

/// Whether a token is real.
pub fn counts(inputs: &LossInputs, token: i64) -> bool {
    inputs.padding_mask.is_null() || unsafe { inputs.padding_mask.offset(token as isize).read() } != 0
}

/// Writes losses and counts. `tally` holds all tokens; losses of sequences go over the logits once more.
///
/// # Safety
/// The tensors hold `tokens` rows.
pub unsafe fn finish<R: Real>(
    losses: &Losses,
    inputs: &LossInputs,
    outputs: &LossOutputs,
    tally: &Tally,
    (logits, ids): (&Matrix, Option<&Matrix>),
    tokens: i64,
    report: &Report,
) {
    if losses.z && !outputs.z.is_null() {
        let mean = tally.z / (tally.tokens.max(1)) as f64;
        unsafe { outputs.z.write((losses.z_scale * mean) as f32) };
    }
    if !losses.aux || (outputs.aux.is_null() && outputs.aux_counts.is_null()) {
        return;
    }
    let experts = losses.experts as usize;
    let write_counts = |outputs: &LossOutputs, sequence: usize, counts: &[i64]| {
        if !outputs.aux_counts.is_null() {
            unsafe { outputs.aux_counts.add(sequence * experts).copy_from_nonoverlapping(counts.as_ptr(), experts) };
        }
    };
    let aux = if losses.scope == MOE_AUX_SCOPE_SEQUENCE {
        let sequences = unsafe { Sequences::new(losses, inputs, tokens, report) };
        let parts: Vec<f64> = (0..losses.sequences)
            .into_par_iter()
            .map(|sequence| {
                let real = sequences.tokens_of(sequence).filter(|&token| counts(inputs, token));
                let tally = unsafe { tally_tokens::<R>(losses, logits, ids, real, &Report(std::ptr::null_mut())) };
                write_counts(outputs, sequence as usize, &tally.counts);
                tally.aux(losses, inputs)
            })
            .collect();
        parts.iter().sum()
    } else {
        write_counts(outputs, 0, &tally.counts);
        if outputs.aux.is_null() { 0.0 } else { tally.aux(losses, inputs) }
    };
    if !outputs.aux.is_null() {
        unsafe { outputs.aux.write(aux as f32) };
    }
}

unsafe fn tally_tokens<R: Real>(
    losses: &Losses,
    logits: &Matrix,
    ids: Option<&Matrix>,
    tokens: impl Iterator<Item = i64>,
    report: &Report,
) -> Tally {
    let mut tally = Tally::new(losses);
    let mut row = vec![R::default(); losses.experts as usize];
    let mut chosen = vec![0; losses.top_k as usize];
    for token in tokens {
        unsafe { load_logits(logits, token, &mut row, report) };
        let given = ids.map(|ids| {
            for (slot, id) in chosen.iter_mut().enumerate() {
                *id = unsafe { load_index(ids, token * ids.pitch + slot as i64) };
            }
            &chosen[..]
        });
        tally.add(losses, &row, given);
    }
    tally
}

pub fn fwd<R: Real>(problem: &Forward, report: Report) {
    let Forward { losses, logits, ids, inputs, outputs, .. } = problem;
    let tokens = unsafe { true_count(&problem.tokens, &report) };
    // SAFETY: the checks found room for `tokens` rows; the caller vouches for the memory.
    unsafe {
        let parts: Vec<_> = chunks(tokens)
            .map(|range| {
                let real = range.filter(|&token| counts(inputs, token));
                tally_tokens::<R>(losses, logits, ids.as_ref(), real, &report)
            })
            .collect();
        let tally = parts.into_iter().fold(Tally::new(losses), Tally::merge);
        finish::<R>(losses, inputs, outputs, &tally, (logits, ids.as_ref()), tokens, &report);
    }
}

pub fn bwd<R: Real>(problem: &Backward, report: Report) {
    let tokens = unsafe { true_count(&problem.tokens, &report) };
    // SAFETY: as in fwd; each token's row is written by one thread.
    unsafe {
        let gradient = Gradient::new(&problem.losses, &problem.inputs, &problem.grads, tokens, &report);
        let add = adds(&problem.mode);
        chunks(tokens).for_each(|range| {
            let mut row = vec![R::default(); problem.losses.experts as usize];
            let mut grad = row.clone();
            for token in range {
                let alive = load_logits(&problem.logits, token, &mut row, &report);
                grad.fill(R::default());
                if alive {
                    gradient.add(token, &row, &mut grad);
                }
                store_row(&problem.dlogits, token, &grad, add);
            }
        });
    }
}

/// The gradient of the losses with respect to a token's logits.
pub struct Gradient<'a> {
    losses: &'a Losses,
    inputs: &'a LossInputs,
    counts: *const i64,
    /// Sequence of each token; -1: none. Empty: all belong to the first.
    sequence: Vec<i32>,
    /// A sequence's d(loss)/d(s_te), without n_e.
    factors: Vec<f64>,
    /// d(loss)/d(logsumexp^2).
    z: f64,
}

// SAFETY: reads the caller's counts alone.
unsafe impl Sync for Gradient<'_> {}

impl<'a> Gradient<'a> {
    /// # Safety
    /// What `inputs` and `grads` point to is readable, for `tokens` tokens.
    pub unsafe fn new(
        losses: &'a Losses,
        inputs: &'a LossInputs,
        grads: &LossGrads,
        tokens: i64,
        report: &Report,
    ) -> Self {
        let value = |pointer: *const f32| if pointer.is_null() { 1.0 } else { unsafe { pointer.read() as f64 } };
        let real = |token: &i64| counts(inputs, *token);
        let total = if losses.any() { (0..tokens).filter(real).count() } else { 0 };
        let z = if losses.z { 2.0 * losses.z_scale * value(grads.z) / total.max(1) as f64 } else { 0.0 };
        let (mut sequence, mut factors) = (vec![], vec![]);
        let scale = losses.aux_scale * value(grads.aux);
        if losses.aux && losses.scope == MOE_AUX_SCOPE_SEQUENCE {
            let sequences = unsafe { Sequences::new(losses, inputs, tokens, report) };
            sequence = vec![-1; tokens as usize];
            for s in 0..losses.sequences {
                let mut length = 0;
                for token in sequences.tokens_of(s).filter(real) {
                    sequence[token as usize] = s as i32;
                    length += 1;
                }
                factors.push(scale * inverse_square(losses, inputs, length));
            }
        } else if losses.aux {
            factors.push(scale * inverse_square(losses, inputs, total as i64));
        }
        Gradient { losses, inputs, counts: grads.aux_counts, sequence, factors, z }
    }

    /// Adds to `grad`, for a row that is not all -inf.
    ///
    /// # Safety
    /// As for `new`; `token` is below its tokens.
    pub unsafe fn add<R: Real>(&self, token: i64, logits: &[R], grad: &mut [R]) {
        let losses = self.losses;
        if !losses.any() || !counts(self.inputs, token) {
            return;
        }
        let mut scores = vec![R::default(); logits.len()];
        if losses.z {
            let slope = softmax(logits, &mut scores).to_f64() * self.z;
            for (grad, &score) in grad.iter_mut().zip(&scores).filter(|(_, score)| **score > R::default()) {
                *grad += R::from_f64(slope * score.to_f64());
            }
        }
        let sequence = self.sequence.get(token as usize).copied().unwrap_or(0);
        if !losses.aux || sequence < 0 {
            return;
        }
        let plain = Losses { z: false, ..*losses };
        aux_scores(&plain, logits, &mut scores);
        let row = sequence as usize * logits.len();
        let slope = |e: usize| unsafe {
            let n = match losses.global() {
                true => self.inputs.global_counts.add(e).read() as f64,
                false => self.counts.add(row + e).read() as f64,
            };
            R::from_f64(self.factors[sequence as usize] * n)
        };
        let mean = scores.iter().enumerate().map(|(e, &score)| slope(e) * score).sum::<R>();
        if losses.score == MOE_SCORE_SOFTMAX {
            grad.iter_mut().enumerate().for_each(|(e, grad)| *grad += scores[e] * (slope(e) - mean));
            return;
        }
        let sum = logits.iter().map(|&logit| score(losses.score, logit)).sum::<R>() + R::from_f64(1e-20);
        for (e, &logit) in logits.iter().enumerate() {
            grad[e] += (slope(e) - mean) / sum * derivative(losses.score, logit);
        }
    }
}
