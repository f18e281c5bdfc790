//! Score functions, their derivatives, and rows of logits.

use crate::abi::router::*;
use crate::abi::types::MOE_FAULT_NAN_LOGIT;
use crate::cpu::element::{Element, Real, with_element};
use crate::report::Report;
use crate::tensor::Matrix;

/// Below this, softplus(L) is e^L to all digits, and its root is taken before it underflows.
const SOFTPLUS_TAIL: f64 = -40.0;

/// Reads a token's logits: NaN becomes -inf and is reported. False where all are -inf.
///
/// # Safety
/// Row `token` of `logits` is readable.
pub unsafe fn load_logits<R: Real>(logits: &Matrix, token: i64, row: &mut [R], report: &Report) -> bool {
    let experts = row.len() as i64;
    with_element!(logits.dtype, E => {
        let source = unsafe { logits.data.cast::<E>().offset((token * logits.pitch) as isize) };
        for (expert, logit) in row.iter_mut().enumerate() {
            *logit = R::from_f64(unsafe { source.add(expert).read() }.to_real().to_f64());
            if logit.is_nan() {
                report.record(MOE_FAULT_NAN_LOGIT, token * experts + expert as i64, 0);
                *logit = R::NEG_INFINITY;
            }
        }
    });
    row.iter().any(|&logit| logit > R::NEG_INFINITY)
}

/// Writes a row of gradients, or adds it.
///
/// # Safety
/// Row `token` of `matrix` is writable and nobody else accesses it.
pub unsafe fn store_row<R: Real>(matrix: &Matrix, token: i64, row: &[R], add: bool) {
    with_element!(matrix.dtype, E => {
        let target = unsafe { matrix.data.cast::<E>().offset((token * matrix.pitch) as isize) };
        for (column, &value) in row.iter().enumerate() {
            let place = unsafe { target.add(column) };
            let old = if add { unsafe { place.read() }.to_real().to_f64() } else { 0.0 };
            let value = <E as Element>::Real::from_f64(value.to_f64() + old);
            unsafe { place.write(E::from_real(value)) };
        }
    });
}

/// Writes a token's row of a byte mask [T, E] and of a bit mask [T, ceil(E/32)], where they are asked for.
///
/// # Safety
/// The rows are writable and nobody else accesses them.
pub unsafe fn store_masks(byte_mask: Option<&Matrix>, bit_mask: Option<&Matrix>, token: i64, mask: &[bool]) {
    if let Some(matrix) = byte_mask {
        let row = unsafe { matrix.data.offset((token * matrix.pitch) as isize) };
        mask.iter().enumerate().for_each(|(expert, &bit)| unsafe { row.add(expert).write(bit.into()) });
    }
    if let Some(matrix) = bit_mask {
        let row = unsafe { matrix.data.cast::<u32>().offset((token * matrix.pitch) as isize) };
        for (word, bits) in mask.chunks(32).enumerate() {
            let bits = bits.iter().rev().fold(0, |word, &bit| word << 1 | bit as u32);
            unsafe { row.add(word).write(bits) };
        }
    }
}

/// Writes the softmax and returns the logsumexp; +inf counts as the largest finite number. Nothing but -inf: zeros.
pub fn softmax<R: Real>(logits: &[R], scores: &mut [R]) -> R {
    let top = logits.iter().fold(R::NEG_INFINITY, |top, &l| top.max(l)).min(R::MAX);
    if top == R::NEG_INFINITY {
        scores.fill(R::default());
        return top;
    }
    for (score, &logit) in scores.iter_mut().zip(logits) {
        *score = (logit.min(R::MAX) - top).exp();
    }
    let sum = scores.iter().copied().sum::<R>();
    scores.iter_mut().for_each(|score| *score = *score / sum);
    top + sum.ln()
}

/// s = f(L) of the score functions that look at one logit alone.
pub fn score<R: Real>(function: i32, logit: R) -> R {
    let logit = logit.min(R::MAX);
    if function == MOE_SCORE_SIGMOID {
        return sigmoid(logit);
    }
    if logit < R::from_f64(SOFTPLUS_TAIL) {
        return (logit * R::from_f64(0.5)).exp();
    }
    (logit.max(R::default()) + (-magnitude(logit)).exp().ln_1p()).sqrt()
}

/// ds/dL of them; 0 at -inf.
pub fn derivative<R: Real>(function: i32, logit: R) -> R {
    let (logit, half) = (logit.min(R::MAX), R::from_f64(0.5));
    if function == MOE_SCORE_SIGMOID {
        return sigmoid(logit) * sigmoid(-logit);
    }
    if logit < R::from_f64(SOFTPLUS_TAIL) {
        return half * (logit * half).exp();
    }
    half * sigmoid(logit) / score(function, logit)
}

fn sigmoid<R: Real>(logit: R) -> R {
    let (small, one) = ((-magnitude(logit)).exp(), R::from_f64(1.0));
    (if logit < R::default() { small } else { one }) / (one + small)
}

fn magnitude<R: Real>(value: R) -> R {
    value.max(-value)
}
