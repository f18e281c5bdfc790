//! Unpermute: a block a token.

use super::*;
use crate::cuda::{Launch, Launcher};
use crate::error::Result;
use crate::ops::dispatch::{CombineBwd, CombineFwd};

/// `early`: maps and weights are older than the launch before.
pub fn combine_fwd(launcher: &Launcher, problem: &CombineFwd, early: bool) -> Result<()> {
    let params = CombineFwdParams {
        maps: DispatchMaps::new(&problem.maps, launcher.report),
        rows: problem.rows,
        y: problem.y,
        y_mode: problem.y_mode,
        hidden: problem.hidden,
        early,
        packs: packs(&[&problem.rows, &problem.y], problem.hidden),
        weights: problem.weights.into(),
        drow_weights: Matrix::ABSENT,
        dweights: gradients(None, None, None, 0),
    };
    sum(launcher, &params)
}

pub fn gradients(
    slot: Option<Matrix>,
    row: Option<Matrix>,
    dense: Option<Matrix>,
    experts: i64,
) -> DispatchWeightGradients {
    let given = |gradient: Option<Matrix>| gradient.unwrap_or(Matrix::ABSENT);
    DispatchWeightGradients { slot: given(slot), row: given(row), dense: given(dense), experts }
}

/// Elements that a thread accesses at once.
fn step(packs: bool, dtype: Dtype) -> i64 {
    if packs { 16 / dtype.size() } else { 1 }
}

pub fn sum(launcher: &Launcher, params: &CombineFwdParams) -> Result<()> {
    let launch = Launch {
        kernel: instance(params.rows.dtype, ["combine_fwd_fp32", "combine_fwd_fp16", "combine_fwd_bf16"]),
        grid: [params.maps.tokens.bound.clamp(0, i32::MAX.into()) as u32, 1, 1],
        block: threads(params.hidden / step(params.packs, params.rows.dtype), COMBINE_THREADS),
        overlap: true,
        ..Default::default()
    };
    launcher.launch(&launch, params)
}

pub fn combine_bwd(launcher: &Launcher, problem: &CombineBwd) -> Result<()> {
    let dweights = gradients(problem.dweights, problem.drow_weights, problem.dweights_dense, problem.experts);
    let wanted = [dweights.slot, dweights.row, dweights.dense].iter().any(|gradient| !gradient.data.is_null());
    let rows = problem.rows.filter(|_| wanted).unwrap_or(Matrix::ABSENT);
    let drows = problem.drows.unwrap_or(Matrix::ABSENT);
    let params = CombineBwdParams {
        maps: DispatchMaps::new(&problem.maps, launcher.report),
        dy: problem.dy,
        rows,
        drows,
        hidden: problem.hidden,
        packs: packs(&[&problem.dy, &rows, &drows], problem.hidden),
        weights: problem.weights.into(),
        dweights,
    };
    let launch = Launch {
        kernel: instance(params.dy.dtype, ["combine_bwd_fp32", "combine_bwd_fp16", "combine_bwd_bf16"]),
        grid: [params.maps.blocks(), 1, 1],
        block: threads(params.hidden / step(params.packs, params.dy.dtype), COMBINE_THREADS),
        ..Default::default()
    };
    launcher.launch(&launch, &params)
}
