//! Products of matrices that lie in memory as rows of any element type, gathered or not, on all cores.
//!
//! The `gemm` crate multiplies f32 and f64. Narrower elements are widened block by block into scratch of the
//! thread; sums stay in f32 (f64) until the whole reduction is done, and are rounded once.

use std::any::TypeId;
use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::cpu::element::{Element, Real, with_element};
use crate::dtype::Dtype;

/// A block of the result, and the part of the reduction that is widened at a time.
const BLOCK: i64 = 512;
const DEPTH: i64 = 512;
/// Blocks that each thread should find, so that uneven groups spread.
const BLOCKS_A_THREAD: i64 = 4;

/// One factor of a product: [outer, reduced], or its transpose, as rows in memory.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    /// Row 0, from which `rows` counts.
    pub data: *const u8,
    pub pitch: i64,
    pub rows: Rows<'a>,
    /// The rows run along the reduction, not along the result.
    pub reduced_rows: bool,
}

/// Which rows of memory a factor is made of.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    From(i64),
    /// A list of rows; -1 is a row of zeros.
    List(&'a [i64]),
}

/// out[m, n] = alpha * lhs[m, k] * rhs[n, k]^T (+ bias[n]) (+ beta * out).
pub struct Product<'a> {
    pub m: i64,
    pub n: i64,
    pub k: i64,
    pub lhs: Factor<'a>,
    pub rhs: Factor<'a>,
    pub out: *mut u8,
    /// NULL: none.
    pub bias: *const u8,
}

// SAFETY: addresses that `run` is promised to be live; products and blocks write apart.
unsafe impl Send for Product<'_> {}
unsafe impl Sync for Product<'_> {}

/// What the products of a call share.
pub struct Epilogue {
    pub alpha: f64,
    /// Multiplies the old output; None: it is not read.
    pub beta: Option<f64>,
    pub out_dtype: Dtype,
    pub out_pitch: i64,
    pub bias_dtype: Dtype,
}

/// Runs products of factors whose elements are `dtype`.
///
/// # Safety
/// All matrices are live, and outputs overlap neither one another nor the factors.
pub unsafe fn run(dtype: Dtype, products: &[Product], epilogue: &Epilogue) {
    with_element!(dtype, E => unsafe { run_as::<E>(products, epilogue) })
}

struct Block {
    product: usize,
    rows: Range<i64>,
    columns: Range<i64>,
}

unsafe fn run_as<E: Element>(products: &[Product], epilogue: &Epilogue) {
    blocks(products).into_par_iter().with_max_len(1).for_each(|block| {
        with_scratch(|scratch| unsafe { compute::<E>(&products[block.product], &block, epilogue, scratch) });
    });
}

/// Splits the results; blocks shrink until there are enough of them.
fn blocks(products: &[Product]) -> Vec<Block> {
    let wanted = BLOCKS_A_THREAD * rayon::current_num_threads() as i64;
    let count = |size: i64| products.iter().map(|p| blocks_along(p.m, BLOCK) * blocks_along(p.n, size)).sum::<i64>();
    let mut width = BLOCK;
    while width > 64 && count(width) < wanted {
        width /= 2;
    }
    let split = |length: i64, size: i64| (0..length).step_by(size as usize).map(move |i| i..length.min(i + size));
    let mut blocks = Vec::with_capacity(count(width) as usize);
    for (product, p) in products.iter().enumerate() {
        for rows in split(p.m, BLOCK) {
            blocks.extend(split(p.n, width).map(|columns| Block { product, rows: rows.clone(), columns }));
        }
    }
    blocks
}

fn blocks_along(length: i64, size: i64) -> i64 {
    (length + size - 1) / size
}

unsafe fn compute<E: Element>(p: &Product, block: &Block, epilogue: &Epilogue, scratch: &mut Vec<f64>) {
    let (m, n) = ((block.rows.end - block.rows.start) as usize, (block.columns.end - block.columns.start) as usize);
    let depth = DEPTH.min(p.k) as usize;
    let parts = split_scratch::<E::Real, 4>(scratch, [m * n, m * depth, n * depth, 2 * n]);
    let [sums, left, right, line] = parts;
    if p.k == 0 {
        sums.fill(E::Real::default());
    }
    for begin in (0..p.k).step_by(DEPTH as usize) {
        let reduced = begin..p.k.min(begin + DEPTH);
        let k = (reduced.end - reduced.start) as usize;
        unsafe {
            let (lhs, lhs_outer, lhs_reduced) = p.lhs.view::<E>(&block.rows, &reduced, left);
            let (rhs, rhs_outer, rhs_reduced) = p.rhs.view::<E>(&block.columns, &reduced, right);
            let one = E::Real::from_f64(1.0);
            #[rustfmt::skip]
            gemm::gemm(
                m, n, k,
                sums.as_mut_ptr(), 1, n as isize, begin > 0,
                lhs, lhs_reduced, lhs_outer,
                rhs, rhs_outer, rhs_reduced,
                one, one, false, false, false, gemm::Parallelism::None,
            );
        }
    }
    let (bias, old) = line.split_at_mut(n);
    let column = block.columns.start as isize;
    with_element!(epilogue.out_dtype, O => unsafe {
        if !p.bias.is_null() {
            with_element!(epilogue.bias_dtype, B => load_line(p.bias.cast::<B>().offset(column), bias));
        }
        let bias = (!p.bias.is_null()).then_some(&*bias);
        for (row, sums) in block.rows.clone().zip(sums.chunks_exact_mut(n)) {
            let out = p.out.cast::<O>().offset((row * epilogue.out_pitch) as isize + column);
            finish(sums, epilogue, bias, old, out);
        }
    });
}

/// alpha * sums (+ bias) (+ beta * out) -> out.
unsafe fn finish<R: Real, O: Element>(
    sums: &mut [R],
    epilogue: &Epilogue,
    bias: Option<&[R]>,
    old: &mut [R],
    out: *mut O,
) {
    let alpha = R::from_f64(epilogue.alpha);
    if epilogue.alpha != 1.0 {
        sums.iter_mut().for_each(|v| *v = alpha * *v);
    }
    if let Some(bias) = bias {
        sums.iter_mut().zip(bias).for_each(|(v, b)| *v += *b);
    }
    if let Some(beta) = epilogue.beta {
        let beta = R::from_f64(beta);
        unsafe { load_line(out, old) };
        sums.iter_mut().zip(old).for_each(|(v, o)| *v += beta * *o);
    }
    let out = unsafe { std::slice::from_raw_parts_mut(out, sums.len()) };
    match same_slice::<R, O::Real>(sums) {
        Some(sums) => O::round(sums, out),
        None => out.iter_mut().zip(sums).for_each(|(o, v)| *o = O::from_real(O::Real::from_f64(v.to_f64()))),
    }
}

/// Widens stored elements into sums' type.
unsafe fn load_line<S: Element, R: Real>(from: *const S, to: &mut [R]) {
    let from = unsafe { std::slice::from_raw_parts(from, to.len()) };
    to.iter_mut().zip(from).for_each(|(t, f)| *t = R::from_f64(f.to_real().to_f64()));
}

/// A slice of A as one of B where these are the same type.
fn same_slice<A: 'static, B: 'static>(slice: &[A]) -> Option<&[B]> {
    // SAFETY: the types are the same.
    (TypeId::of::<A>() == TypeId::of::<B>())
        .then(|| unsafe { std::slice::from_raw_parts(slice.as_ptr().cast(), slice.len()) })
}

impl Factor<'_> {
    /// The part [outer, reduced] in sums' type, in place where it can be, with its strides along both.
    unsafe fn view<E: Element>(
        &self,
        outer: &Range<i64>,
        reduced: &Range<i64>,
        scratch: &mut [E::Real],
    ) -> (*const E::Real, isize, isize) {
        let (rows, columns) = if self.reduced_rows { (reduced, outer) } else { (outer, reduced) };
        let data = self.data.cast::<E>();
        let in_place = TypeId::of::<E>() == TypeId::of::<E::Real>();
        let (start, pitch) = match self.rows {
            Rows::From(first) if in_place => {
                let start = (first + rows.start) * self.pitch + columns.start;
                (unsafe { data.offset(start as isize) }.cast::<E::Real>(), self.pitch as isize)
            }
            _ => {
                let width = (columns.end - columns.start) as usize;
                for (row, wide) in rows.clone().zip(scratch.chunks_exact_mut(width)) {
                    let source = match self.rows {
                        Rows::From(first) => first + row,
                        Rows::List(list) => list[row as usize],
                    };
                    if source < 0 {
                        wide.fill(E::Real::default());
                        continue;
                    }
                    let start = (source * self.pitch + columns.start) as isize;
                    E::widen(unsafe { std::slice::from_raw_parts(data.offset(start), width) }, wide);
                }
                (scratch.as_ptr(), width as isize)
            }
        };
        if self.reduced_rows { (start, 1, pitch) } else { (start, pitch, 1) }
    }
}

/// Lends the thread's scratch, which keeps its memory from call to call.
fn with_scratch(body: impl FnOnce(&mut Vec<f64>)) {
    thread_local!(static SCRATCH: Cell<Vec<f64>> = const { Cell::new(Vec::new()) });
    SCRATCH.with(|slot| {
        let mut scratch = slot.take();
        body(&mut scratch);
        slot.set(scratch);
    })
}

/// Parts of the scratch as f32 or f64.
fn split_scratch<R: Real, const N: usize>(scratch: &mut Vec<f64>, lengths: [usize; N]) -> [&mut [R]; N] {
    let total: usize = lengths.iter().sum();
    let needed = (total * size_of::<R>()).div_ceil(size_of::<f64>());
    if scratch.len() < needed {
        scratch.resize(needed, 0.0);
    }
    // SAFETY: f64 memory is aligned and initialised for f32 and f64, and there is enough of it.
    let mut rest = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast::<R>(), total) };
    lengths.map(|length| {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(length);
        rest = tail;
        part
    })
}
