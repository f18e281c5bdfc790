//! moe_dispatch_fwd and _bwd: tokens to rows (permute).

use crate::abi::dispatch::*;
use crate::abi::types::*;
use crate::check::{self, OutputMode};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::tensor::{Matrix, matrix, optional_matrix};

use super::{Maps, Sizes, Weights, needed, needed_offsets, serves};

/// Scales that go with FP8 rows.
#[derive(Clone, Copy, Debug)]
pub struct Scales {
    pub tokens: Matrix,
    pub rows: Matrix,
    /// Scales a row.
    pub columns: i64,
}

/// rows[r] = x[token_of_row[r]].
pub struct DispatchFwd {
    pub maps: Maps,
    pub hidden: i64,
    pub x: Matrix,
    pub rows: Matrix,
    pub scales: Option<Scales>,
    pub weights: Weights,
    /// Out: the weight of each row; without weights 1.
    pub row_weights: Option<Matrix>,
}

/// dx[t] = sum of drows over the token's slots.
pub struct DispatchBwd {
    pub maps: Maps,
    pub hidden: i64,
    pub drows: Matrix,
    pub dx: Option<Matrix>,
    pub dx_mode: OutputMode,
    pub drow_weights: Option<Matrix>,
    pub dweights: Option<Matrix>,
    pub dweights_dense: Option<Matrix>,
    pub experts: i64,
}

/// The scales of x and of the rows: none, one a row, or one for every 128 columns.
fn scales(sizes: &Sizes, x: &moe_tensor_t, rows: &moe_tensor_t) -> Result<Option<Scales>> {
    if x.scale_kind != rows.scale_kind {
        let limit = format!("{}, as args.x", x.scale_kind);
        return Err(Error::argument("args.rows.scale_kind", rows.scale_kind, limit));
    }
    let columns = match x.scale_kind {
        MOE_SCALE_NONE | MOE_SCALE_TENSOR => return Ok(None),
        MOE_SCALE_ROW => 1,
        MOE_SCALE_BLOCK_1X128 => (sizes.hidden + 127) / 128,
        other => {
            let limit = "MOE_SCALE_NONE, _TENSOR, _ROW or _BLOCK_1X128: others do not go with a row";
            return Err(Error::argument("args.x.scale_kind", other, limit));
        }
    };
    let part = |argument: &str, tensor: &moe_tensor_t, count: i64, allowed: &[Dtype]| {
        let plain = moe_tensor_t {
            dtype: tensor.scale_dtype,
            data: tensor.scale,
            row_pitch: tensor.scale_row_pitch,
            scale_kind: MOE_SCALE_NONE,
            ..*tensor
        };
        matrix(argument, &plain, allowed, count, columns)
    };
    let from = part("args.x.scale", x, sizes.tokens, &[Dtype::Fp32, Dtype::E8m0])?;
    let to = part("args.rows.scale", rows, sizes.rows, &[from.dtype])?;
    Ok(Some(Scales { tokens: from, rows: to, columns }))
}

fn dispatch_fwd_problem(desc: &moe_permute_desc_t, args: &moe_dispatch_fwd_args_t) -> Result<DispatchFwd> {
    let sizes = Sizes::new(desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let given = [&args.token_of_row, &args.slot_of_row, &args.row_of_slot, &args.slot_offsets];
    let maps = sizes.maps(&args.num_tokens, args.group_offsets, given.map(Some))?;
    needed("args.token_of_row", maps.token_of_row, sizes.rows, "here")?;
    needed_offsets(maps.group_offsets, "here")?;
    let none = moe_tensor_t { data: std::ptr::null_mut(), pointers: std::ptr::null(), ..args.weights };
    let weights = sizes.weights(&args.weights, &none, &args.weights_dense)?;
    let row_weights = sizes.per_row("args.row_weights", &args.row_weights)?;
    if !matches!(weights, Weights::None) {
        needed("args.row_weights", row_weights, sizes.rows, "with weights")?;
    }
    if matches!(weights, Weights::Slot(_)) {
        needed("args.slot_of_row", maps.slot_of_row, sizes.rows, "with args.weights")?;
    }
    Ok(DispatchFwd {
        maps,
        hidden: sizes.hidden,
        x: sizes.tokens_of("args.x", &args.x)?,
        rows: sizes.rows_of("args.rows", &args.rows)?,
        scales: scales(&sizes, &args.x, &args.rows)?,
        weights,
        row_weights,
    })
}

fn dispatch_bwd_problem(desc: &moe_permute_desc_t, args: &moe_dispatch_bwd_args_t) -> Result<DispatchBwd> {
    let sizes = Sizes::arithmetic(desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let given = [None, None, Some(&args.row_of_slot), Some(&args.slot_offsets)];
    let maps = sizes.maps(&args.num_tokens, args.group_offsets, given)?;
    needed("args.row_of_slot", maps.row_of_slot, sizes.slots, "here")?;
    let dx = optional_matrix("args.dx", &args.dx, &[sizes.dtype], sizes.tokens, sizes.hidden)?;
    let drows = match dx {
        Some(_) => sizes.rows_of("args.drows", &args.drows)?,
        None => Matrix { dtype: sizes.dtype, data: std::ptr::null_mut(), pitch: sizes.hidden },
    };
    let drow_weights = sizes.per_row("args.drow_weights", &args.drow_weights)?;
    let dweights = sizes.per_slot("args.dweights", &args.dweights)?;
    let dweights_dense = sizes.dense("args.dweights_dense", &args.dweights_dense)?;
    if dweights.is_some() || dweights_dense.is_some() {
        needed("args.drow_weights", drow_weights, sizes.rows, "for the gradient of weights")?;
    }
    if dweights_dense.is_some() {
        needed_offsets(maps.group_offsets, "for args.dweights_dense")?;
    }
    let dx_mode = check::output_mode("args.dx_mode", &args.dx_mode)?;
    let experts = sizes.experts;
    let hidden = sizes.hidden;
    Ok(DispatchBwd { maps, hidden, drows, dx, dx_mode, drow_weights, dweights, dweights_dense, experts })
}

pub fn dispatch_fwd(
    ctx: &moe_context_t,
    desc: &moe_permute_desc_t,
    args: &moe_dispatch_fwd_args_t,
    call: Call,
) -> Result<()> {
    let problem = dispatch_fwd_problem(desc, args)?;
    // The rows are copied, whatever they are.
    serves(ctx, Dtype::Uint8, &[problem.weights.matrix(), problem.row_weights])?;
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::dispatch::dispatch_fwd(&problem, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            device.run(args.report, call.stream, |launcher| cuda::dispatch::dispatch_fwd(launcher, &problem))
        }
    }
}

pub fn dispatch_fwd_workspace(_: &moe_context_t, desc: &moe_permute_desc_t) -> Result<u64> {
    Sizes::new(desc).map(|_| 0)
}

pub fn dispatch_bwd(
    ctx: &moe_context_t,
    desc: &moe_permute_desc_t,
    args: &moe_dispatch_bwd_args_t,
    call: Call,
) -> Result<()> {
    let problem = dispatch_bwd_problem(desc, args)?;
    serves(ctx, problem.drows.dtype, &[problem.drow_weights, problem.dweights, problem.dweights_dense])?;
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::dispatch::dispatch_bwd(&problem, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            device.run(args.report, call.stream, |launcher| cuda::dispatch::dispatch_bwd(launcher, &problem))
        }
    }
}

pub fn dispatch_bwd_workspace(_: &moe_context_t, desc: &moe_permute_desc_t) -> Result<u64> {
    Sizes::arithmetic(desc).map(|_| 0)
}
