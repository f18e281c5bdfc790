//! Grouped GEMM on the CPU: forward, dgrad, wgrad and the gradient of the bias.

use rayon::prelude::*;

use crate::cpu::element::{Element, Real, adds, load, store, with_element};
use crate::cpu::gemm::{Epilogue, Factor, Product, Rows, run};
use crate::cpu::groups::Spans;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::groups::Gather;
use crate::ops::grouped_gemm::{BiasGrad, Linear, Output, WeightLayout, Wgrad};
use crate::report::Report;
use crate::tensor::{Grouped, Matrix};

/// The forward, and dgrad.
pub fn linear(p: &Linear, report: &Report) -> Result<()> {
    // SAFETY: the caller of the C function vouches for its tensors; spans and sources stay within them.
    unsafe {
        let spans = Spans::read(&p.groups, report);
        let sources = p.gather.as_ref().map(|gather| spans.sources(gather, report));
        let products: Vec<_> = (0..p.groups.count)
            .filter_map(|g| {
                let rows = &spans.rows[g as usize];
                let weight = group_data(&p.b, g);
                let rhs = Factor {
                    data: weight,
                    pitch: p.b.pitch,
                    rows: Rows::From(0),
                    reduced_rows: p.layout == WeightLayout::InOut,
                };
                (!rows.is_empty() && !weight.is_null()).then(|| Product {
                    m: rows.end - rows.start,
                    n: p.n,
                    k: p.k,
                    lhs: row_factor(&p.a, rows, sources.as_deref(), false),
                    rhs,
                    out: element(&p.c, rows.start),
                    bias: p.bias.as_ref().map_or(std::ptr::null_mut(), |bias| element(bias, g)),
                })
            })
            .collect();
        run(
            p.a.dtype,
            &products,
            &Epilogue {
                alpha: p.alpha,
                beta: old_factor(&p.output),
                out_dtype: p.c.dtype,
                out_pitch: p.c.pitch,
                bias_dtype: p.bias.map_or(Dtype::Fp32, |bias| bias.dtype),
            },
        );
    }
    Ok(())
}

pub fn wgrad(p: &Wgrad, report: &Report) -> Result<()> {
    // SAFETY: as above.
    unsafe {
        let spans = Spans::read(&p.groups, report);
        let sources = p.gather.as_ref().map(|gather: &Gather| spans.sources(gather, report));
        let beta = old_factor(&p.output);
        let products: Vec<_> = (0..p.groups.count)
            .filter_map(|g| {
                let rows = &spans.rows[g as usize];
                let out = group_data(&p.db, g);
                let unchanged = rows.is_empty() && beta == Some(1.0);
                let dc = row_factor(&p.dc, rows, None, true);
                let a = row_factor(&p.a, rows, sources.as_deref(), true);
                let (m, n) = p.layout.shape(p.n, p.k);
                let (lhs, rhs) = if p.layout == WeightLayout::OutIn { (dc, a) } else { (a, dc) };
                (!out.is_null() && !unchanged).then_some(Product {
                    m,
                    n,
                    k: rows.end - rows.start,
                    lhs,
                    rhs,
                    out,
                    bias: std::ptr::null(),
                })
            })
            .collect();
        run(
            p.dc.dtype,
            &products,
            &Epilogue { alpha: p.alpha, beta, out_dtype: p.db.dtype, out_pitch: p.db.pitch, bias_dtype: Dtype::Fp32 },
        );
    }
    Ok(())
}

/// Sums in f64: a group's rows may be many.
pub fn bias_grad(p: &BiasGrad, report: &Report) -> Result<()> {
    const COLUMNS: i64 = 256;
    // SAFETY: as above.
    let (spans, beta) = unsafe { (Spans::read(&p.groups, report), old_factor(&p.output)) };
    let sources = p.gather.as_ref().map(|gather| unsafe { spans.sources(gather, report) });
    let weights = unsafe { spans.weights(&p.weights, report) };
    let strips = (p.n + COLUMNS - 1) / COLUMNS;
    (0..p.groups.count * strips).into_par_iter().for_each(|task| {
        let (g, begin) = (task / strips, task % strips * COLUMNS);
        let mut sums = [0.0; COLUMNS as usize];
        let sums = &mut sums[..COLUMNS.min(p.n - begin) as usize];
        for row in spans.rows[g as usize].clone() {
            let weight = weights.as_ref().map_or(1.0, |weights| weights[row as usize]);
            let row = sources.as_ref().map_or(row, |sources| sources[row as usize]);
            if row < 0 {
                continue;
            }
            with_element!(p.dc.dtype, E => {
                let line = (p.dc.data as *const E).wrapping_offset((row * p.dc.pitch + begin) as isize);
                // SAFETY: as above.
                let line = unsafe { std::slice::from_raw_parts(line, sums.len()) };
                sums.iter_mut().zip(line).for_each(|(sum, v)| *sum += weight * v.to_real().to_f64());
            });
        }
        for (sum, column) in sums.iter().zip(begin..) {
            let place = g * p.dbias.pitch + column;
            // SAFETY: as above; each task has columns of its own.
            unsafe {
                let old = beta.map_or(0.0, |beta| beta * load(p.dbias.dtype, p.dbias.data, place));
                store(p.dbias.dtype, p.dbias.data, place, sum + old);
            }
        }
    });
    Ok(())
}

/// What multiplies the old output; None where it is overwritten.
///
/// # Safety
/// A device flag that is given is live.
unsafe fn old_factor(output: &Output) -> Option<f64> {
    unsafe { adds(&output.mode) }.then_some(output.beta)
}

/// The matrix of group g; NULL where the group has none.
///
/// # Safety
/// Pointers that are given are live.
unsafe fn group_data(tensor: &Grouped, g: i64) -> *mut u8 {
    let (data, stride) = match tensor.pointers.is_null() {
        true => (tensor.data, g * tensor.group_stride),
        false => (unsafe { tensor.pointers.offset(g as isize).read() }, 0),
    };
    if data.is_null() { data } else { data.wrapping_offset(((stride + tensor.offset) * tensor.dtype.size()) as isize) }
}

/// The first element of a row.
fn element(matrix: &Matrix, row: i64) -> *mut u8 {
    matrix.data.wrapping_offset((row * matrix.pitch * matrix.dtype.size()) as isize)
}

/// A group's rows, or the source rows that stand for them.
fn row_factor<'a>(
    matrix: &Matrix,
    rows: &std::ops::Range<i64>,
    sources: Option<&'a [i64]>,
    reduced_rows: bool,
) -> Factor<'a> {
    let from = match sources {
        Some(sources) => Rows::List(&sources[rows.start as usize..rows.end as usize]),
        None => Rows::From(rows.start),
    };
    Factor { data: matrix.data, pitch: matrix.pitch, rows: from, reduced_rows }
}
