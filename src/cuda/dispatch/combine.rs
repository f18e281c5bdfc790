//! Unpermute: some blocks a token forward, a block a token backward.

use super::*;
use crate::cuda::{Launch, Launcher};
use crate::error::Result;
use crate::ops::dispatch::{CombineBwd, CombineFwd};

/// `early`: maps and weights are older than the launch before.
pub fn combine_fwd(launcher: &Launcher, problem: &CombineFwd, early: bool) -> Result<()> {
    let of_tokens = Sum {
        maps: &problem.maps,
        rows: problem.rows,
        y: problem.y,
        y_mode: problem.y_mode,
        hidden: problem.hidden,
        early,
        weights: problem.weights,
        drow_weights: Matrix::ABSENT,
        dweights: gradients(None, None, None, 0),
    };
    of_tokens.launch(launcher)
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

/// Shared memory for a token's sums of dense gradients, in bytes.
fn sums_of_experts(to: &DispatchWeightGradients) -> u32 {
    if to.dense.data.is_null() { 0 } else { to.experts as u32 * size_of::<f32>() as u32 }
}

/// Elements that a thread accesses at once.
fn step(packs: bool, dtype: Dtype) -> i64 {
    if packs { 16 / dtype.size() } else { 1 }
}

/// A token's rows added up, and the gradients of its weights gathered: CombineFwdParams before the launch is laid out.
pub struct Sum<'a> {
    pub maps: &'a Maps,
    pub rows: Matrix,
    pub y: Matrix,
    pub y_mode: OutputMode,
    pub hidden: i64,
    pub early: bool,
    pub weights: Weights,
    pub drow_weights: Matrix,
    pub dweights: DispatchWeightGradients,
}

impl Sum<'_> {
    /// With as many parts a token as its columns ask for.
    pub fn launch(&self, launcher: &Launcher) -> Result<()> {
        const MANY: [&str; 3] = ["combine_fwd_fp32", "combine_fwd_fp16", "combine_fwd_bf16"];
        const FEW: [&str; 3] = ["combine_fwd_few_fp32", "combine_fwd_few_fp16", "combine_fwd_few_bf16"];
        // Rows of so many blocks, for more than a grid has in a row.
        const ROW: i64 = 1 << 30;
        let (kernels, columns) = if self.maps.top_k <= 2 { (FEW, COMBINE_FEW_COLUMNS) } else { (MANY, 1) };
        let packs = packs(&[self.rows, self.y], self.hidden);
        let accesses = self.hidden / step(packs, self.rows.dtype);
        let threads_of_all = (accesses + columns - 1) / columns;
        let most = COMBINE_FWD_THREADS as u32;
        let parts = if self.y.data.is_null() { 1 } else { (threads_of_all as u32).div_ceil(most) };
        let params = CombineFwdParams {
            maps: DispatchMaps::new(self.maps, launcher.report),
            rows: self.rows,
            y: self.y,
            y_mode: self.y_mode,
            hidden: self.hidden,
            early: self.early,
            packs,
            parts,
            weights: self.weights.into(),
            drow_weights: self.drow_weights,
            dweights: self.dweights,
        };
        let blocks = self.maps.tokens.bound.saturating_mul(parts.into());
        let launch = Launch {
            kernel: instance(self.rows.dtype, kernels),
            grid: [blocks.min(ROW) as u32, (blocks as u64).div_ceil(ROW as u64).clamp(1, 65535) as u32, 1],
            block: threads(threads_of_all, COMBINE_FWD_THREADS),
            shared: sums_of_experts(&params.dweights),
            overlap: true,
            ..Default::default()
        };
        launcher.launch(&launch, &params)
    }
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
        packs: packs(&[problem.dy, rows, drows], problem.hidden),
        weights: problem.weights.into(),
        dweights,
    };
    let launch = Launch {
        kernel: instance(params.dy.dtype, ["combine_bwd_fp32", "combine_bwd_fp16", "combine_bwd_bf16"]),
        grid: [params.maps.blocks(), 1, 1],
        block: threads(params.hidden / step(params.packs, params.dy.dtype), COMBINE_THREADS),
        shared: sums_of_experts(&params.dweights),
        ..Default::default()
    };
    launcher.launch(&launch, &params)
}
