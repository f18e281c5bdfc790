//! Permute: rows are copies of tokens; its backward sums them up again.

use rayon::prelude::*;

use super::combine::{dense_gradient, slot_gradients, sum_rows};
use super::{Reader, parallel, row_of, row_of_mut};
use crate::cpu::element::{load, store};
use crate::ops::dispatch::{DispatchBwd, DispatchFwd, Weights};
use crate::report::Report;
use crate::tensor::Matrix;

pub fn dispatch_fwd(problem: &DispatchFwd, report: &Report) {
    // SAFETY: the contract of the header; the reader keeps each index within its bounds.
    unsafe {
        let reader = Reader::new(&problem.maps, report);
        copy_rows(&reader, &problem.x, &problem.rows, problem.hidden);
        if let Some(scales) = &problem.scales {
            copy_rows(&reader, &scales.tokens, &scales.rows, scales.columns);
        }
        if let Some(row_weights) = &problem.row_weights {
            for row in 0..reader.rows {
                let token = reader.token(row);
                let weight = token.map_or(0.0, |token| reader.weight(&problem.weights, token, row, None));
                store(row_weights.dtype, row_weights.data, row, weight);
            }
        }
    }
}

/// to[row] = from[token of the row], bytes whatever the dtype; zero for padding.
unsafe fn copy_rows(reader: &Reader, from: &Matrix, to: &Matrix, columns: i64) {
    let size = to.dtype.size();
    let bytes = |matrix: &Matrix| Matrix { pitch: matrix.pitch * size, ..*matrix };
    let [from, to] = [bytes(from), bytes(to)];
    parallel(reader.rows).for_each(|row| unsafe {
        let to = row_of_mut::<u8>(&to, row, columns * size);
        match reader.token(row) {
            Some(token) => to.copy_from_slice(row_of(&from, token, columns * size)),
            None => to.fill(0),
        }
    });
}

pub fn dispatch_bwd(problem: &DispatchBwd, report: &Report) {
    // SAFETY: as above.
    unsafe {
        let reader = Reader::new(&problem.maps, report);
        if let Some(dx) = &problem.dx {
            sum_rows(&reader, &problem.drows, &Weights::None, dx, &problem.dx_mode, problem.hidden);
        }
        let Some(gradients) = &problem.drow_weights else { return };
        let gradient = |_, row| load(gradients.dtype, gradients.data, row);
        if let Some(dweights) = &problem.dweights {
            slot_gradients(&reader, dweights, gradient);
        }
        if let Some(dense) = &problem.dweights_dense {
            dense_gradient(&reader, dense, problem.experts, gradient);
        }
    }
}
