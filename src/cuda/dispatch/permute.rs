//! Permute: rows are copied, whatever they hold; its backward is an unweighted combine.

use super::combine::{Sum, gradients};
use super::*;
use crate::cuda::{Launch, Launcher};
use crate::error::Result;
use crate::ops::dispatch::{DispatchBwd, DispatchFwd};

const KERNELS: [&str; 5] = ["dispatch_fwd_1", "dispatch_fwd_2", "dispatch_fwd_4", "dispatch_fwd_8", "dispatch_fwd_16"];

pub fn dispatch_fwd(launcher: &Launcher, problem: &DispatchFwd) -> Result<()> {
    let none = (Weights::None, None);
    copy(launcher, problem, [&problem.x, &problem.rows], problem.hidden, (problem.weights, problem.row_weights))?;
    match &problem.scales {
        Some(scales) => copy(launcher, problem, [&scales.tokens, &scales.rows], scales.columns, none),
        None => Ok(()),
    }
}

fn copy(
    launcher: &Launcher,
    problem: &DispatchFwd,
    [x, rows]: [&Matrix; 2],
    columns: i64,
    (weights, row_weights): (Weights, Option<Matrix>),
) -> Result<()> {
    let bytes = access(&[*x, *rows], columns);
    let params = DispatchFwdParams {
        maps: DispatchMaps::new(&problem.maps, launcher.report),
        x: in_chunks(x, bytes),
        rows: in_chunks(rows, bytes),
        columns: columns * x.dtype.size() / bytes,
        weights: weights.into(),
        row_weights: row_weights.unwrap_or(Matrix::ABSENT),
    };
    let launch = Launch {
        kernel: instance_of_chunk(bytes, KERNELS),
        grid: [params.maps.blocks(), 1, 1],
        block: threads(params.columns, DISPATCH_THREADS),
        ..Default::default()
    };
    launcher.launch(&launch, &params)
}

pub fn dispatch_bwd(launcher: &Launcher, problem: &DispatchBwd) -> Result<()> {
    let of_tokens = Sum {
        maps: &problem.maps,
        rows: problem.drows,
        y: problem.dx.unwrap_or(Matrix::ABSENT),
        y_mode: problem.dx_mode,
        hidden: problem.hidden,
        early: false,
        weights: Weights::None,
        drow_weights: problem.drow_weights.unwrap_or(Matrix::ABSENT),
        dweights: gradients(problem.dweights, None, problem.dweights_dense, problem.experts),
    };
    of_tokens.launch(launcher)
}
