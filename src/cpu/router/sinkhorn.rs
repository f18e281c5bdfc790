//! Sinkhorn on the CPU, in fp64 and always in the log domain: g = log d1 is kept, and a row's scale never leaves it.

use std::ops::Range;

use rayon::prelude::*;

use super::chunks;
use super::score::{load_logits, store_row};
use crate::cpu::element::true_count;
use crate::ops::router::sinkhorn::{Run, Sinkhorn, Start, Step, Stop};
use crate::report::Report;
use crate::tensor::Matrix;

/// Added to each sum before it is inverted.
const EPSILON: f64 = 1e-8;
/// What +inf counts as.
const LARGEST: f64 = f32::MAX as f64;

/// A rank's tokens, and how many there are on all ranks.
struct Tokens<'a> {
    logits: &'a Matrix,
    experts: usize,
    count: i64,
    total: f64,
    report: &'a Report,
}

/// A row of diag(d0) exp(L) diag(d1) without its d0: exp(shift) * terms, sum = sum of terms.
struct Row {
    shift: f64,
    sum: f64,
}

impl Tokens<'_> {
    /// Reads row `token` and turns it into terms. None where all of it is -inf.
    fn terms(&self, token: i64, log_d1: &[f64], row: &mut [f64]) -> Option<Row> {
        // SAFETY: the token is one of the true count, whose rows the caller has promised.
        if !unsafe { load_logits(self.logits, token, row, self.report) } {
            return None;
        }
        // Two shifts, so that large logits lose none of log d1's digits.
        let top = row.iter().fold(f64::NEG_INFINITY, |top, &l| top.max(l)).min(LARGEST);
        row.iter_mut().zip(log_d1).for_each(|(l, &g)| *l = (l.min(LARGEST) - top) + g);
        let best = row.iter().fold(f64::NEG_INFINITY, |best, &l| best.max(l));
        row.iter_mut().for_each(|l| *l = (*l - best).exp());
        Some(Row { shift: top + best, sum: row.iter().sum() })
    }

    /// d0 * exp(shift), what the terms are multiplied by.
    fn scale(&self, row: &Row) -> f64 {
        1.0 / (self.total * (row.sum + EPSILON * (-row.shift).exp()))
    }

    fn log_d0(&self, row: &Option<Row>) -> f64 {
        let log_sum = row.as_ref().map_or(f64::NEG_INFINITY, |row| row.shift + row.sum.ln());
        -self.total.ln() - log_add(log_sum, EPSILON.ln())
    }

    /// Folds over the tokens into a sum an expert, in an order that depends on their count alone.
    fn sum(&self, zero: f64, add: impl Fn(Range<i64>, &mut [f64]) + Sync, join: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        let parts: Vec<Vec<f64>> = chunks(self.count)
            .map(|tokens| {
                let mut part = vec![zero; self.experts];
                add(tokens, &mut part);
                part
            })
            .collect();
        parts.into_iter().fold(vec![zero; self.experts], |sums, part| {
            sums.into_iter().zip(part).map(|(sum, value)| join(sum, value)).collect()
        })
    }

    /// The column sums of P before its columns are scaled: sum_t d0_t C_te d1_e.
    fn column_mass(&self, log_d1: &[f64]) -> Vec<f64> {
        let add = |tokens: Range<i64>, part: &mut [f64]| {
            let mut terms = vec![0.0; self.experts];
            for token in tokens {
                if let Some(row) = self.terms(token, log_d1, &mut terms) {
                    let scale = self.scale(&row);
                    part.iter_mut().zip(&terms).for_each(|(sum, term)| *sum += scale * term);
                }
            }
        };
        self.sum(0.0, add, |a, b| a + b)
    }

    fn column_maxima(&self) -> Vec<f64> {
        let add = |tokens: Range<i64>, part: &mut [f64]| {
            self.each_row(tokens, |row| part.iter_mut().zip(row).for_each(|(top, &l)| *top = top.max(l)));
        };
        self.sum(f64::NEG_INFINITY, add, f64::max)
    }

    /// Column sums of exp(L - maxima).
    fn column_sums(&self, maxima: &[f64]) -> Vec<f64> {
        let add = |tokens: Range<i64>, part: &mut [f64]| {
            self.each_row(tokens, |row| {
                let shifted = row.iter().zip(maxima).map(|(&l, &top)| if l == f64::NEG_INFINITY { l } else { l - top });
                part.iter_mut().zip(shifted).for_each(|(sum, x)| *sum += x.exp());
            });
        };
        self.sum(0.0, add, |a, b| a + b)
    }

    fn each_row(&self, tokens: Range<i64>, mut visit: impl FnMut(&[f64])) {
        let mut row = vec![0.0; self.experts];
        for token in tokens {
            // SAFETY: as in terms().
            unsafe { load_logits(self.logits, token, &mut row, self.report) };
            row.iter_mut().for_each(|l: &mut f64| *l = l.min(LARGEST));
            visit(&row);
        }
    }
}

/// log(e^a + e^b), b finite.
fn log_add(a: f64, b: f64) -> f64 {
    a.max(b) + (-(a - b).abs()).exp().ln_1p()
}

/// log 1/(E * sum), where the sum is exp(maximum) * scaled; an empty column has d1 = 1/(E * epsilon).
fn log_start(maximum: f64, scaled: f64, experts: usize) -> f64 {
    let log_sum = if scaled > 0.0 { maximum + scaled.ln() } else { EPSILON.ln() };
    -(experts as f64).ln() - log_sum
}

/// An iteration's second half: log d1 from the column sums that the old one gave.
fn next(log_d1: &[f64], mass: &[f64]) -> Vec<f64> {
    let log_experts = (log_d1.len() as f64).ln();
    log_d1.iter().zip(mass).map(|(g, mass)| g - log_experts - log_add(mass.ln(), EPSILON.ln() + g)).collect()
}

/// What the stopping test looks at.
fn error(stop: Stop, old: &[f64], new: &[f64]) -> f64 {
    let pairs = old.iter().zip(new);
    match stop {
        Stop::Absolute => pairs.map(|(old, new)| (old.exp() - new.exp()).abs()).sum::<f64>() / old.len() as f64,
        Stop::Relative => pairs.map(|(old, new)| (old - new).exp_m1().abs()).fold(0.0, f64::max),
    }
}

fn start(desc: &Sinkhorn, tokens: &Tokens) -> Vec<f64> {
    if desc.start == Start::Ones || tokens.count == 0 {
        return vec![0.0; tokens.experts];
    }
    let maxima = tokens.column_maxima();
    let sums = tokens.column_sums(&maxima);
    maxima.iter().zip(&sums).map(|(&top, &sum)| log_start(top, sum, tokens.experts)).collect()
}

pub fn run(problem: &Run, report: &Report) {
    let desc = &problem.desc;
    // SAFETY: the caller's count is live.
    let count = unsafe { true_count(&problem.tokens, report) };
    let experts = desc.experts as usize;
    let tokens = Tokens { logits: &problem.logits, experts, count, total: count as f64, report };
    let mut new = start(desc, &tokens);
    let (mut old, mut iterations, mut distance) = (new.clone(), 0, 0.0);
    while count > 0 && iterations < desc.max_iterations {
        old = new;
        new = next(&old, &tokens.column_mass(&old));
        distance = error(desc.stop, &old, &new);
        iterations += 1;
        if distance <= desc.tolerance {
            break;
        }
    }
    write_rows(problem, &tokens, &old, &new);
    // SAFETY: the caller's outputs are live, E floats or one number each.
    unsafe {
        write(problem.log_d1, &new);
        write(problem.error, &[distance]);
        set(problem.iterations, iterations);
    }
}

/// P and log d0 of the last iteration.
fn write_rows(problem: &Run, tokens: &Tokens, old: &[f64], new: &[f64]) {
    let (log_d0, probs) = (LogD0(problem.log_d0), problem.probs);
    if probs.is_none() && !log_d0.wanted() {
        return;
    }
    chunks(tokens.count).for_each(|chunk| {
        let mut terms = vec![0.0; tokens.experts];
        for token in chunk {
            let row = tokens.terms(token, old, &mut terms);
            // SAFETY: each token's outputs are written by its own chunk.
            unsafe { log_d0.write(token, tokens.log_d0(&row)) };
            let Some(probs) = &probs else { continue };
            match &row {
                Some(row) => {
                    let columns = old.iter().zip(new).map(|(old, new)| tokens.scale(row) * (new - old).exp());
                    terms.iter_mut().zip(columns).for_each(|(p, scale)| *p *= scale);
                }
                None => terms.fill(0.0),
            }
            unsafe { store_row(probs, token, &terms, false) };
        }
    });
}

/// The caller's log d0, float[T], or NULL where it is not wanted.
struct LogD0(*mut f32);

// SAFETY: an address; tokens are written by one thread each.
unsafe impl Sync for LogD0 {}

impl LogD0 {
    fn wanted(&self) -> bool {
        !self.0.is_null()
    }

    /// # Safety
    /// The token's element is live, and nobody else accesses it.
    unsafe fn write(&self, token: i64, value: f64) {
        if self.wanted() {
            unsafe { self.0.offset(token as isize).write(value as f32) };
        }
    }
}

pub fn step(problem: &Step, report: &Report) {
    let desc = &problem.desc;
    let experts = desc.experts as usize;
    // SAFETY: the caller's counts and state are live: E floats or one number each.
    unsafe {
        let count = true_count(&problem.tokens, report);
        let total = if problem.total_tokens.is_null() { count as f64 } else { problem.total_tokens.read().into() };
        let tokens = Tokens { logits: &problem.logits, experts, count, total, report };
        match problem.round {
            -2 => return write(problem.column_mass, &tokens.column_maxima()),
            -1 => {
                let maxima = read(problem.column_mass, experts);
                write(problem.log_d1, &maxima);
                return write(problem.column_mass, &tokens.column_sums(&maxima));
            }
            0 => begin(problem, &tokens),
            _ if problem.done.read() == 0 => iterate(problem, &tokens),
            _ => {}
        }
        if problem.done.read() != 0 || problem.round == desc.max_iterations {
            return write(problem.column_mass, &vec![0.0; experts]);
        }
        let log_d1 = read(problem.log_d1, experts);
        write(problem.column_mass, &tokens.column_mass(&log_d1));
        write_log_d0(&LogD0(problem.log_d0), &tokens, &log_d1);
    }
}

/// Round 0: the state before any iteration.
///
/// # Safety
/// The problem's state is live.
unsafe fn begin(problem: &Step, tokens: &Tokens) {
    let any = tokens.total > 0.0;
    let log_d1 = if any && problem.desc.start == Start::ColumnSums {
        let (maxima, sums) =
            unsafe { (read(problem.log_d1, tokens.experts), read(problem.column_mass, tokens.experts)) };
        maxima.iter().zip(&sums).map(|(&top, &sum)| log_start(top, sum, tokens.experts)).collect()
    } else {
        vec![0.0; tokens.experts]
    };
    unsafe {
        write(problem.log_d1, &log_d1);
        problem.done.write((!any).into());
        set(problem.iterations, 0);
        write(problem.error, &[0.0]);
    }
}

/// The columns' half of an iteration.
///
/// # Safety
/// The problem's state is live.
unsafe fn iterate(problem: &Step, tokens: &Tokens) {
    unsafe {
        let old = read(problem.log_d1, tokens.experts);
        let mass = read(problem.column_mass, tokens.experts);
        write(problem.log_d1, &next(&old, &mass));
        // As it was rounded: that is what the next round reads.
        let distance = error(problem.desc.stop, &old, &read(problem.log_d1, tokens.experts));
        problem.done.write((distance <= problem.desc.tolerance).into());
        set(problem.iterations, problem.round);
        write(problem.error, &[distance]);
    }
}

fn write_log_d0(log_d0: &LogD0, tokens: &Tokens, log_d1: &[f64]) {
    if !log_d0.wanted() {
        return;
    }
    chunks(tokens.count).for_each(|chunk| {
        let mut terms = vec![0.0; tokens.experts];
        for token in chunk {
            let row = tokens.terms(token, log_d1, &mut terms);
            // SAFETY: each token's element is written by its own chunk.
            unsafe { log_d0.write(token, tokens.log_d0(&row)) };
        }
    });
}

/// # Safety
/// `output` is NULL or has as many floats.
unsafe fn write(output: *mut f32, values: &[f64]) {
    if !output.is_null() {
        values.iter().enumerate().for_each(|(i, &value)| unsafe { output.add(i).write(value as f32) });
    }
}

/// # Safety
/// `input` has as many floats.
unsafe fn read(input: *const f32, length: usize) -> Vec<f64> {
    (0..length).map(|i| unsafe { input.add(i).read() }.into()).collect()
}

/// # Safety
/// `output` is NULL or live.
unsafe fn set(output: *mut i32, value: i32) {
    if !output.is_null() {
        unsafe { output.write(value) };
    }
}
