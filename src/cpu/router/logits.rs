//! The router's GEMM on the CPU: chunks of tokens, widened and jittered, through the products of `cpu::gemm`.

use rayon::prelude::*;

use crate::cpu::element::{Element, Real, adds, load, store, true_count, with_element};
use crate::cpu::gemm::{Epilogue, Factor, Product, Rows, run};
use crate::ops::router::logits::{Backward, Forward, Gate};
use crate::philox::Philox;
use crate::report::Report;
use crate::tensor::Matrix;

use super::score::store_row;

/// Tokens that are widened at a time.
const CHUNK: i64 = 512;

pub fn fwd<R: Real + Element>(problem: &Forward, report: Report) {
    let Forward { gate, x, logits, bias, .. } = problem;
    // SAFETY: the checks found room for `tokens` rows; the caller vouches for the memory.
    unsafe {
        let random = Philox::read(&problem.random);
        let weight = widened::<R>(&problem.weight, gate.experts, gate.hidden);
        let mut rows = vec![R::default(); (CHUNK.min(gate.tokens) * gate.hidden) as usize];
        for (first, count) in chunks_of(true_count(&problem.tokens, &report)) {
            let rows = &mut rows[..(count * gate.hidden) as usize];
            load_x(gate, x, first, &random, rows, problem.jittered_x.as_ref());
            let product = Product {
                m: count,
                n: gate.experts,
                k: gate.hidden,
                lhs: factor(rows, gate.hidden, false),
                rhs: factor(&weight, gate.hidden, false),
                out: logits.data.offset((first * logits.pitch * logits.dtype.size()) as isize),
                bias: bias.map_or(std::ptr::null(), |bias| bias.data.cast_const()),
            };
            let epilogue = Epilogue {
                alpha: 1.0,
                beta: None,
                out_dtype: logits.dtype,
                out_pitch: logits.pitch,
                bias_dtype: bias.map_or(R::DTYPE, |bias| bias.dtype),
            };
            run(R::DTYPE, &[product], &epilogue);
        }
    }
}

pub fn bwd<R: Real + Element>(problem: &Backward, report: Report) {
    let Backward { gate, dlogits, .. } = problem;
    let (hidden, experts) = (gate.hidden, gate.experts);
    // SAFETY: as in fwd.
    unsafe {
        let random = Philox::read(&problem.random);
        let weight = problem.weight.as_ref().map(|weight| widened::<R>(weight, experts, hidden));
        let room = |wanted: bool, rows: i64| vec![R::default(); if wanted { (rows * hidden) as usize } else { 0 }];
        let mut rows = room(problem.dx.is_some() || problem.dweight.is_some(), CHUNK.min(gate.tokens));
        let mut dweight = room(problem.dweight.is_some(), experts);
        let mut dbias = vec![0.0; experts as usize];
        let dx_add = adds(&problem.dx_mode);
        for (first, count) in chunks_of(true_count(&problem.tokens, &report)) {
            let part = Matrix {
                data: dlogits.data.offset((first * dlogits.pitch * dlogits.dtype.size()) as isize),
                ..*dlogits
            };
            let grads = widened::<R>(&part, count, experts);
            for row in grads.chunks_exact(experts as usize) {
                dbias.iter_mut().zip(row).for_each(|(sum, value)| *sum += Real::to_f64(*value));
            }
            if let (Some(dx), Some(weight)) = (&problem.dx, &weight) {
                let rows = &mut rows[..(count * hidden) as usize];
                let (lhs, rhs) = (factor(&grads, experts, false), factor(weight, hidden, true));
                multiply((count, hidden, experts), lhs, rhs, rows, false);
                store_dx(gate, dx, first, &random, rows, dx_add);
            }
            if let Some(x) = &problem.x {
                let rows = &mut rows[..(count * hidden) as usize];
                load_x(gate, x, first, &random, rows, None);
                let (lhs, rhs) = (factor(&grads, experts, true), factor(rows, hidden, true));
                multiply((experts, hidden, count), lhs, rhs, &mut dweight, true);
            }
        }
        if let Some(matrix) = &problem.dweight {
            let add = adds(&problem.dweight_mode);
            dweight
                .par_chunks(hidden as usize)
                .enumerate()
                .for_each(|(row, sums)| store_row(matrix, row as i64, sums, add));
        }
        if let Some(vector) = &problem.dbias {
            let add = adds(&problem.dbias_mode);
            for (expert, sum) in dbias.iter().enumerate() {
                let old = if add { load(vector.dtype, vector.data, expert as i64) } else { 0.0 };
                store(vector.dtype, vector.data, expert as i64, sum + old);
            }
        }
    }
}

fn chunks_of(tokens: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..tokens).step_by(CHUNK as usize).map(move |first| (first, CHUNK.min(tokens - first)))
}

fn factor<R: Element>(rows: &[R], pitch: i64, reduced_rows: bool) -> Factor<'static> {
    Factor { data: rows.as_ptr().cast(), pitch, rows: Rows::From(0), reduced_rows }
}

/// out[m, n] = lhs * rhs^T, or that added.
unsafe fn multiply<R: Real + Element>((m, n, k): (i64, i64, i64), lhs: Factor, rhs: Factor, out: &mut [R], add: bool) {
    let product = Product { m, n, k, lhs, rhs, out: out.as_mut_ptr().cast(), bias: std::ptr::null() };
    let beta = add.then_some(1.0);
    unsafe {
        run(
            R::DTYPE,
            &[product],
            &Epilogue { alpha: 1.0, beta, out_dtype: R::DTYPE, out_pitch: n, bias_dtype: R::DTYPE },
        )
    };
}

unsafe fn widened<R: Real>(matrix: &Matrix, rows: i64, columns: i64) -> Vec<R> {
    let mut wide = vec![R::default(); (rows * columns) as usize];
    wide.par_chunks_mut(columns as usize).enumerate().for_each(|(row, wide)| {
        with_element!(matrix.dtype, E => {
            let line = unsafe { matrix.data.cast::<E>().offset(row as isize * matrix.pitch as isize) };
            let value = |column| Real::to_f64(unsafe { line.add(column).read() }.to_real());
            wide.iter_mut().enumerate().for_each(|(column, wide)| *wide = R::from_f64(value(column)));
        });
    });
    wide
}

/// Rows of x from `first` on as the router reads them; `jittered` takes them too.
unsafe fn load_x<R: Real>(
    gate: &Gate,
    x: &Matrix,
    first: i64,
    random: &Philox,
    rows: &mut [R],
    jittered: Option<&Matrix>,
) {
    rows.par_chunks_mut(gate.hidden as usize).zip(first as usize..(first + CHUNK) as usize).for_each(|(row, token)| {
        let token = token as i64;
        with_element!(x.dtype, E => {
            let line = unsafe { x.data.cast::<E>().offset((token * x.pitch) as isize) };
            for (column, wide) in row.iter_mut().enumerate() {
                let mut value = unsafe { line.add(column).read() };
                if let Some(eps) = gate.jitter {
                    let element = (token * gate.hidden) as u64 + column as u64;
                    let factor: <E as Element>::Real = factor_of(eps, random, element);
                    value = E::from_real(value.to_real() * factor);
                }
                *wide = R::from_f64(Real::to_f64(value.to_real()));
                if let Some(out) = jittered {
                    unsafe { out.data.cast::<E>().offset((token * out.pitch) as isize).add(column).write(value) };
                }
            }
        });
    });
}

unsafe fn store_dx<R: Real>(gate: &Gate, dx: &Matrix, first: i64, random: &Philox, rows: &mut [R], add: bool) {
    rows.par_chunks_mut(gate.hidden as usize).zip(first as usize..(first + CHUNK) as usize).for_each(|(row, token)| {
        let token = token as i64;
        if let Some(eps) = gate.jitter {
            for (column, value) in row.iter_mut().enumerate() {
                *value = *value * factor_of(eps, random, (token * gate.hidden) as u64 + column as u64);
            }
        }
        unsafe { store_row(dx, token, row, add) };
    });
}

/// What jitter multiplies an element by.
fn factor_of<R: Real>(eps: f64, random: &Philox, element: u64) -> R {
    let centred = R::from_f64(2.0 * random.uniform(element) as f64 - 1.0);
    R::from_f64(1.0) + R::from_f64(eps) * centred
}
