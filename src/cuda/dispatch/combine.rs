//! Unpermute: some blocks a token forward, a block a token backward.

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
        parts: 1,
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

/// With as many parts a token as its columns ask for.
pub fn sum(launcher: &Launcher, params: &CombineFwdParams) -> Result<()> {
    const MANY: [&str; 3] = ["combine_fwd_fp32", "combine_fwd_fp16", "combine_fwd_bf16"];
    const FEW: [&str; 3] = ["combine_fwd_few_fp32", "combine_fwd_few_fp16", "combine_fwd_few_bf16"];
    // Rows of so many blocks, for more than a grid has in a row.
    const ROW: i64 = 1 << 30;
    let (kernels, columns) = if params.maps.top_k <= 2 { (FEW, COMBINE_FEW_COLUMNS) } else { (MANY, 1) };
    let accesses = params.hidden / step(params.packs, params.rows.dtype);
    let threads_of_all = (accesses + columns - 1) / columns;
    let parts = if params.y.data.is_null() { 1 } else { (threads_of_all as u32).div_ceil(COMBINE_FWD_THREADS as u32) };
    let params = CombineFwdParams { parts, ..*params };
    let blocks = params.maps.tokens.bound.saturating_mul(parts.into());
    let launch = Launch {
        kernel: instance(params.rows.dtype, kernels),
        grid: [blocks.min(ROW) as u32, (blocks as u64).div_ceil(ROW as u64).clamp(1, 65535) as u32, 1],
        block: threads(threads_of_all, COMBINE_FWD_THREADS),
        overlap: true,
        ..Default::default()
    };
    launcher.launch(&launch, &params)
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
