//! moe_combine_fwd and _bwd: the weighted sum of a token's rows (unpermute).

use crate::abi::dispatch::*;
use crate::check::{self, OutputMode};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::Result;
use crate::tensor::{Matrix, optional_matrix};

use super::{Maps, Sizes, Weights, needed, needed_offsets, serves};

/// y[t] = sum of weight * rows over the token's slots.
pub struct CombineFwd {
    pub maps: Maps,
    pub hidden: i64,
    pub rows: Matrix,
    /// Its dtype may differ from that of the rows.
    pub y: Matrix,
    pub y_mode: OutputMode,
    pub weights: Weights,
}

/// drows[r] = weight * dy[token], dweight = <dy[token], rows[r]>.
pub struct CombineBwd {
    pub maps: Maps,
    pub hidden: i64,
    pub dy: Matrix,
    /// Given where a gradient of weights is wanted.
    pub rows: Option<Matrix>,
    pub weights: Weights,
    pub drows: Option<Matrix>,
    pub dweights: Option<Matrix>,
    pub drow_weights: Option<Matrix>,
    pub dweights_dense: Option<Matrix>,
    pub experts: i64,
}

fn combine_fwd_problem(desc: &moe_permute_desc_t, args: &moe_combine_fwd_args_t) -> Result<CombineFwd> {
    let sizes = Sizes::arithmetic(desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let given = [None, None, Some(&args.row_of_slot), Some(&args.slot_offsets)];
    let maps = sizes.maps(&args.num_tokens, args.group_offsets, given)?;
    needed("args.row_of_slot", maps.row_of_slot, sizes.slots, "here")?;
    let weights = sizes.weights(&args.weights, &args.row_weights, &args.weights_dense)?;
    if matches!(weights, Weights::Dense(_)) {
        needed_offsets(maps.group_offsets, "with args.weights_dense")?;
    }
    Ok(CombineFwd {
        maps,
        hidden: sizes.hidden,
        rows: sizes.rows_of("args.rows", &args.rows)?,
        y: sizes.tokens_of("args.y", &args.y)?,
        y_mode: check::output_mode("args.y_mode", &args.y_mode)?,
        weights,
    })
}

fn combine_bwd_problem(desc: &moe_permute_desc_t, args: &moe_combine_bwd_args_t) -> Result<CombineBwd> {
    let sizes = Sizes::arithmetic(desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let given = [&args.token_of_row, &args.slot_of_row, &args.row_of_slot, &args.slot_offsets];
    let maps = sizes.maps(&args.num_tokens, args.group_offsets, given.map(Some))?;
    needed("args.token_of_row", maps.token_of_row, sizes.rows, "here")?;
    needed_offsets(maps.group_offsets, "here")?;
    let weights = sizes.weights(&args.weights, &args.row_weights, &args.weights_dense)?;
    let [experts, hidden] = [sizes.experts, sizes.hidden];
    let problem = CombineBwd {
        maps,
        hidden,
        dy: sizes.tokens_of("args.dy", &args.dy)?,
        rows: optional_matrix("args.rows", &args.rows, &[sizes.dtype], sizes.rows, hidden)?,
        weights,
        drows: optional_matrix("args.drows", &args.drows, &[sizes.dtype], sizes.rows, hidden)?,
        dweights: sizes.per_slot("args.dweights", &args.dweights)?,
        drow_weights: sizes.per_row("args.drow_weights", &args.drow_weights)?,
        dweights_dense: sizes.dense("args.dweights_dense", &args.dweights_dense)?,
        experts,
    };
    if matches!(weights, Weights::Slot(_)) && problem.drows.is_some() {
        needed("args.slot_of_row", maps.slot_of_row, sizes.rows, "with args.weights")?;
    }
    if problem.dweights.is_some() || problem.dweights_dense.is_some() {
        needed("args.row_of_slot", maps.row_of_slot, sizes.slots, "for the gradient of weights")?;
    }
    if problem.dweights.is_some() || problem.dweights_dense.is_some() || problem.drow_weights.is_some() {
        needed("args.rows", problem.rows, sizes.rows, "for the gradient of weights")?;
    }
    Ok(problem)
}

pub fn combine_fwd(
    ctx: &moe_context_t,
    desc: &moe_permute_desc_t,
    args: &moe_combine_fwd_args_t,
    call: Call,
) -> Result<()> {
    let problem = combine_fwd_problem(desc, args)?;
    serves(ctx, problem.rows.dtype, &[problem.weights.matrix()])?;
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::dispatch::combine_fwd(&problem, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            device.run(args.report, call.stream, |launcher| cuda::dispatch::combine_fwd(launcher, &problem, false))
        }
    }
}

pub fn combine_fwd_workspace(_: &moe_context_t, desc: &moe_permute_desc_t) -> Result<u64> {
    Sizes::arithmetic(desc).map(|_| 0)
}

pub fn combine_bwd(
    ctx: &moe_context_t,
    desc: &moe_permute_desc_t,
    args: &moe_combine_bwd_args_t,
    call: Call,
) -> Result<()> {
    let problem = combine_bwd_problem(desc, args)?;
    let weights = [problem.weights.matrix(), problem.dweights, problem.drow_weights, problem.dweights_dense];
    serves(ctx, problem.dy.dtype, &weights)?;
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::dispatch::combine_bwd(&problem, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            device.run(args.report, call.stream, |launcher| cuda::dispatch::combine_bwd(launcher, &problem))
        }
    }
}

pub fn combine_bwd_workspace(_: &moe_context_t, desc: &moe_permute_desc_t) -> Result<u64> {
    Sizes::arithmetic(desc).map(|_| 0)
}
