//! Unpermute: a token is the weighted sum of its rows, in slot order.

use rayon::prelude::*;

use super::{Reader, parallel, row_of, row_of_mut};
use crate::check::OutputMode;
use crate::cpu::element::{Element, Real, adds, store, with_element};
use crate::ops::dispatch::{CombineBwd, CombineFwd, Weights};
use crate::report::Report;
use crate::tensor::Matrix;

pub fn combine_fwd(problem: &CombineFwd, report: &Report) {
    // SAFETY: the contract of the header; the reader keeps each index within its bounds.
    unsafe {
        let reader = Reader::new(&problem.maps, report);
        sum_rows(&reader, &problem.rows, &problem.weights, &problem.y, &problem.y_mode, problem.hidden);
    }
}

/// y[token] (+)= sum of weight * rows[row of the slot].
pub unsafe fn sum_rows(reader: &Reader, rows: &Matrix, weights: &Weights, y: &Matrix, mode: &OutputMode, hidden: i64) {
    let add = unsafe { adds(mode) };
    with_element!(rows.dtype, E => {
        parallel(reader.tokens).for_each_init(
            || vec![<E as Element>::Real::default(); hidden as usize],
            |sum, token| unsafe {
                sum.fill(Default::default());
                for slot in reader.slots(token) {
                    let Some(row) = reader.row(slot) else { continue };
                    let weight = <E as Element>::Real::from_f64(reader.weight(weights, token, row, Some(slot)));
                    for (sum, &value) in sum.iter_mut().zip(row_of::<E>(rows, row, hidden)) {
                        *sum += weight * value.to_real();
                    }
                }
                write_sum(y, token, sum, add);
            },
        )
    });
}

unsafe fn write_sum<R: Real>(y: &Matrix, token: i64, sum: &[R], add: bool) {
    with_element!(y.dtype, E => {
        for (y, &sum) in unsafe { row_of_mut::<E>(y, token, sum.len() as i64) }.iter_mut().zip(sum) {
            let sum = if add { sum + R::from_f64(y.to_real().to_f64()) } else { sum };
            *y = E::from_real(Real::from_f64(sum.to_f64()));
        }
    });
}

pub fn combine_bwd(problem: &CombineBwd, report: &Report) {
    // SAFETY: as above.
    unsafe {
        let reader = Reader::new(&problem.maps, report);
        with_element!(problem.dy.dtype, E => {
            let products = problem.rows.as_ref().map(|rows| {
                move |token, row| {
                    let [dy, row] =
                        [row_of::<E>(&problem.dy, token, problem.hidden), row_of::<E>(rows, row, problem.hidden)];
                    dot(dy, row).to_f64()
                }
            });
            if let Some(drows) = &problem.drows {
                scale_rows::<E>(&reader, problem, drows);
            }
            let Some(product) = products else { return };
            if let Some(gradients) = &problem.drow_weights {
                parallel(reader.rows).for_each(|row| {
                    let gradient = reader.token(row).map_or(0.0, |token| product(token, row));
                    store(gradients.dtype, gradients.data, row, gradient);
                });
            }
            if let Some(gradients) = &problem.dweights {
                slot_gradients(&reader, gradients, product);
            }
            if let Some(dense) = &problem.dweights_dense {
                dense_gradient(&reader, dense, problem.experts, product);
            }
        });
    }
}

/// drows[row] = weight * dy[token]; zero for padding.
unsafe fn scale_rows<E: Element>(reader: &Reader, problem: &CombineBwd, drows: &Matrix) {
    parallel(reader.rows).for_each(|row| unsafe {
        let to = row_of_mut::<E>(drows, row, problem.hidden);
        let Some(token) = reader.token(row) else { return to.fill(E::default()) };
        let weight = E::Real::from_f64(reader.weight(&problem.weights, token, row, None));
        for (to, &dy) in to.iter_mut().zip(row_of::<E>(&problem.dy, token, problem.hidden)) {
            *to = E::from_real(weight * dy.to_real());
        }
    });
}

/// Sixteen partial sums, always the same: deterministic, and quick.
fn dot<E: Element>(a: &[E], b: &[E]) -> E::Real {
    let mut sums = [E::Real::default(); 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a.to_real() * b.to_real();
        }
    }
    sums.into_iter().sum()
}

/// out[slot] = gradient(token, row), 0 where the slot is not here.
pub unsafe fn slot_gradients(reader: &Reader, out: &Matrix, gradient: impl Fn(i64, i64) -> f64 + Sync) {
    parallel(reader.tokens).for_each(|token| unsafe {
        for slot in reader.slots(token) {
            store(out.dtype, out.data, slot, reader.row(slot).map_or(0.0, |row| gradient(token, row)));
        }
    });
}

/// out[token, expert of the row] = gradient(token, row), summed where an expert is chosen twice and rounded once; 0 elsewhere.
pub unsafe fn dense_gradient(reader: &Reader, out: &Matrix, experts: i64, gradient: impl Fn(i64, i64) -> f64 + Sync) {
    let sums = || vec![0.0; experts as usize];
    parallel(reader.tokens).for_each_init(sums, |sums, token| unsafe {
        sums.fill(0.0);
        for row in reader.slots(token).filter_map(|slot| reader.row(slot)) {
            sums[reader.expert(row) as usize] += gradient(token, row);
        }
        for (expert, &sum) in (0..).zip(&*sums) {
            store(out.dtype, out.data, token * out.pitch + expert, sum);
        }
    });
}
