//! The expert MLP on the CPU: its steps, most of them other operations.

use rayon::prelude::*;

use crate::cpu::element::{Element, Real, adds, store, with_element};
use crate::cpu::groups::Spans;
use crate::cpu::{activation, dispatch, grouped_gemm};
use crate::error::Result;
use crate::ops::activation::{Backward, Forward};
use crate::ops::dispatch::{CombineFwd, DispatchBwd};
use crate::ops::expert_mlp::{PresentSizes, RowDots, ScaleRows, Steps, ZeroGaps};
use crate::ops::grouped_gemm::{BiasGrad, Linear, Wgrad};
use crate::report::Report;
use crate::tensor::Matrix;

pub struct CpuSteps<'a> {
    pub report: &'a Report,
}

impl Steps for CpuSteps<'_> {
    fn linear(&self, step: &Linear) -> Result<()> {
        grouped_gemm::linear(step, self.report)
    }

    fn wgrad(&self, step: &Wgrad) -> Result<()> {
        grouped_gemm::wgrad(step, self.report)
    }

    fn bias_grad(&self, step: &BiasGrad) -> Result<()> {
        grouped_gemm::bias_grad(step, self.report)
    }

    fn activate(&self, step: &Forward) -> Result<()> {
        activation::forward(step, self.report);
        Ok(())
    }

    fn activate_backward(&self, step: &Backward) -> Result<()> {
        activation::backward(step, self.report);
        Ok(())
    }

    fn combine(&self, step: &CombineFwd) -> Result<()> {
        dispatch::combine_fwd(step, self.report);
        Ok(())
    }

    fn slot_gradients(&self, step: &DispatchBwd) -> Result<()> {
        dispatch::dispatch_bwd(step, self.report);
        Ok(())
    }

    fn scale_rows(&self, p: &ScaleRows) -> Result<()> {
        // SAFETY: the caller of the C function vouches for its tensors; spans and sources stay within them.
        unsafe {
            let spans = Spans::read(&p.groups, self.report);
            let sources = p.gather.as_ref().map(|gather| spans.sources(gather, self.report));
            let weights = spans.weights(&p.weights, self.report);
            let add = adds(&p.mode);
            for_rows(&spans, |_, row, is_gap| {
                let source = source_of(&sources, row);
                if is_gap || source < 0 {
                    if !add {
                        zero_row(&p.to, row, p.columns);
                    }
                    return;
                }
                let weight = weights.as_ref().map_or(1.0, |weights| weights[row as usize]);
                with_element!(p.from.dtype, E => with_element!(p.to.dtype, O => {
                    let (from, to) = (p.from.row::<E>(source), p.to.row::<O>(row));
                    for column in 0..p.columns as usize {
                        let old = if add { to.add(column).read().to_real().to_f64() } else { 0.0 };
                        let value = old + weight * from.add(column).read().to_real().to_f64();
                        to.add(column).write(O::from_real(Real::from_f64(value)));
                    }
                }));
            });
        }
        Ok(())
    }

    fn row_dots(&self, p: &RowDots) -> Result<()> {
        // SAFETY: as above.
        unsafe {
            let spans = Spans::read(&p.groups, self.report);
            let sources = p.gather.as_ref().map(|gather| spans.sources(gather, self.report));
            for_rows(&spans, |group, row, is_gap| {
                let source = source_of(&sources, row);
                let mut dot = 0.0;
                if !is_gap && source >= 0 {
                    with_element!(p.a.dtype, A => with_element!(p.b.dtype, B => {
                        let (a, b) = (p.a.row::<A>(source), p.b.row::<B>(if p.b_by_group { group } else { row }));
                        for column in 0..p.columns as usize {
                            dot += a.add(column).read().to_real().to_f64() * b.add(column).read().to_real().to_f64();
                        }
                    }));
                }
                store(p.dots.dtype, p.dots.data, row, dot);
            });
        }
        Ok(())
    }

    fn zero_gaps(&self, p: &ZeroGaps) -> Result<()> {
        // SAFETY: as above.
        unsafe {
            if adds(&p.mode) {
                return Ok(());
            }
            for_rows(&Spans::read(&p.groups, self.report), |_, row, is_gap| {
                if is_gap {
                    zero_row(&p.matrix, row, p.columns);
                }
            });
        }
        Ok(())
    }

    fn present_sizes(&self, p: &PresentSizes) -> Result<()> {
        // SAFETY: as above; there is room for a size a group.
        unsafe {
            let spans = Spans::read(&p.groups, self.report);
            for (g, rows) in spans.rows.iter().enumerate() {
                let by_pointers = p.weights.iter().flatten().filter(|weight| !weight.pointers.is_null());
                let present = by_pointers.into_iter().all(|weight| !weight.pointers.add(g).read().is_null());
                p.sizes.add(g).write(if present { rows.end - rows.start } else { 0 });
            }
        }
        Ok(())
    }
}

/// Runs `body` with the group of each row, the row, and whether it lies in a gap between groups; on all cores.
fn for_rows(spans: &Spans, body: impl Fn(i64, i64, bool) + Sync) {
    spans.rows.par_iter().zip(&spans.ends).enumerate().for_each(|(group, (rows, &end))| {
        (rows.start as usize..end as usize).into_par_iter().with_min_len(8).for_each(|row| {
            let row = row as i64;
            body(group as i64, row, !rows.contains(&row))
        })
    });
}

/// The source row of a row; -1: zeros.
fn source_of(sources: &Option<Vec<i64>>, row: i64) -> i64 {
    sources.as_ref().map_or(row, |sources| sources[row as usize])
}

/// # Safety
/// The matrix has such a row, which nobody else accesses.
unsafe fn zero_row(matrix: &Matrix, row: i64, columns: i64) {
    let size = matrix.dtype.size();
    let start = matrix.data.wrapping_offset((row * matrix.pitch * size) as isize);
    unsafe { start.write_bytes(0, (columns * size) as usize) };
}
