//! activation: the checks of its arguments, its workspace, and which backend.

use crate::abi::activation::*;
use crate::abi::types::moe_tensor_t;
use crate::check::{self, Count, MAX_WIDTH};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::dtype::{Dtype, FLOATS};
use crate::error::{Error, Result};
use crate::groups::{Groups, RowWeights};
use crate::tensor::{Matrix, matrix, optional_matrix, optional_vector};
use crate::workspace::{Layout, Workspace};

/// The one-dimensional function that an activation is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Curve {
    /// x * sigmoid(alpha x).
    Swish,
    GeluErf,
    GeluTanh,
    Relu,
    Relu2,
}

/// act = curve(min(gate, limit)) * (clamp(up, -limit, limit) + shift); without a gate: curve(h).
#[derive(Clone, Copy, Debug)]
pub struct Activation {
    pub curve: Curve,
    pub gated: bool,
    pub alpha: f64,
    /// Infinite where nothing is clamped.
    pub limit: f64,
    pub shift: f64,
    /// f: columns of act.
    pub ffn: i64,
    /// h holds so many columns of one half, then as many of the other.
    pub block: i64,
    pub up_first: bool,
}

impl Activation {
    /// From the fields that describe it in `moe_activation_desc_t` and `moe_expert_mlp_desc_t` alike.
    pub fn check(kind: i32, order: i32, block: i64, limit: f64, alpha: f64, ffn: i64) -> Result<Self> {
        let ffn = check::range("desc.ffn_size", ffn, 1..=MAX_WIDTH / 2)?;
        let kind = check::mode("desc.activation", kind, MOE_ACTIVATION_RELU2)?;
        let order = check::mode("desc.gate_order", order, MOE_GATE_INTERLEAVED)?;
        let block = check::range("desc.gate_block", block, 0..=MAX_WIDTH)?.max(1);
        let limit = check::coefficient("desc.clamp_limit", limit, 7.0)?;
        let alpha = check::coefficient("desc.clamp_alpha", alpha, 1.702)?;
        if limit < 0.0 {
            return Err(Error::argument("desc.clamp_limit", limit, "at least 0"));
        }
        if order == MOE_GATE_INTERLEAVED && ffn % block != 0 {
            return Err(Error::argument("desc.gate_block", block, format!("a divisor of ffn_size ({ffn})")));
        }
        let (curve, gated, slope) = match kind {
            MOE_ACTIVATION_SWIGLU => (Curve::Swish, true, 1.0),
            MOE_ACTIVATION_GEGLU_ERF => (Curve::GeluErf, true, 1.0),
            MOE_ACTIVATION_GEGLU_TANH => (Curve::GeluTanh, true, 1.0),
            MOE_ACTIVATION_QUICK_GEGLU => (Curve::Swish, true, 1.702),
            MOE_ACTIVATION_REGLU => (Curve::Relu, true, 1.0),
            MOE_ACTIVATION_CLAMPED_SWIGLU => (Curve::Swish, true, alpha),
            MOE_ACTIVATION_SILU => (Curve::Swish, false, 1.0),
            MOE_ACTIVATION_GELU_ERF => (Curve::GeluErf, false, 1.0),
            MOE_ACTIVATION_GELU_TANH => (Curve::GeluTanh, false, 1.0),
            MOE_ACTIVATION_RELU => (Curve::Relu, false, 1.0),
            _ => (Curve::Relu2, false, 1.0),
        };
        let clamped = kind == MOE_ACTIVATION_CLAMPED_SWIGLU;
        Ok(Activation {
            curve,
            gated,
            alpha: slope,
            limit: if clamped { limit } else { f64::INFINITY },
            shift: if clamped { 1.0 } else { 0.0 },
            ffn,
            block: if gated && order == MOE_GATE_INTERLEAVED { block } else { ffn },
            up_first: gated && order == MOE_UP_FIRST,
        })
    }

    /// Columns of h.
    pub fn hidden(&self) -> i64 {
        if self.gated { 2 * self.ffn } else { self.ffn }
    }
}

/// Which rows there are.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    Count(Count),
    /// Those of the groups; gaps between groups become zero.
    Groups(Groups),
}

/// y[R, f] = weight * act(h[R, 2f or f]).
pub struct Forward {
    pub activation: Activation,
    pub extent: Extent,
    pub h: Matrix,
    pub y: Matrix,
    pub row_weights: RowWeights,
}

/// dh = act'(h) * weight * dy; drow_weights = <dy, act(h)> (+ dot_start); weighted_act = weight * act(h).
pub struct Backward {
    pub activation: Activation,
    pub extent: Extent,
    pub h: Matrix,
    pub dy: Matrix,
    /// May be h.
    pub dh: Matrix,
    pub row_weights: RowWeights,
    /// [R].
    pub drow_weights: Option<Matrix>,
    /// [R]; may be drow_weights.
    pub dot_start: Option<Matrix>,
    /// May be dy.
    pub weighted_act: Option<Matrix>,
}

/// The description's dtype and function; R is at most `rows_max`.
fn describe(ctx: &moe_context_t, desc: &moe_activation_desc_t) -> Result<(Dtype, Activation)> {
    let dtype = Dtype::check("desc.dtype", desc.dtype, FLOATS)?;
    ctx.serves("desc.dtype", dtype)?;
    check::rows("desc.rows_max", desc.rows_max)?;
    let (block, limit, alpha) = (desc.gate_block, desc.clamp_limit, desc.clamp_alpha);
    let activation = Activation::check(desc.activation, desc.gate_order, block, limit, alpha, desc.ffn_size)?;
    check::elements("desc.rows_max x ffn_size", &[desc.rows_max, activation.hidden()])?;
    Ok((dtype, activation))
}

/// A vector of router weights, or of their gradients.
fn weights(ctx: &moe_context_t, argument: &str, tensor: &moe_tensor_t, rows: i64) -> Result<Option<Matrix>> {
    let vector = optional_vector(argument, tensor, FLOATS, rows, 1)?;
    vector.map_or(Ok(()), |vector| ctx.serves(argument, vector.dtype))?;
    Ok(vector)
}

pub fn activation_fwd(
    ctx: &moe_context_t,
    desc: &moe_activation_desc_t,
    args: &moe_activation_fwd_args_t,
    call: Call,
) -> Result<()> {
    let (dtype, activation) = describe(ctx, desc)?;
    let rows = desc.rows_max;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let row_weights = weights(ctx, "args.row_weights", &args.row_weights, rows)?;
    let problem = Forward {
        activation,
        extent: Extent::Count(check::count("args.num_rows", &args.num_rows, rows)?),
        h: matrix("args.h", &args.h, &[dtype], rows, activation.hidden())?,
        y: matrix("args.y", &args.y, &[dtype], rows, activation.ffn)?,
        row_weights: row_weights.map_or(RowWeights::one(), RowWeights::of_rows),
    };
    check::aligned("args.report", args.report)?;
    Workspace::new(call.workspace, call.workspace_size, &Layout::default())?;
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::activation::forward(&problem, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            device.run(args.report, call.stream, |launcher| cuda::activation::forward(launcher, &problem))
        }
    }
}

/// Nothing is kept outside registers.
pub fn activation_fwd_workspace(ctx: &moe_context_t, desc: &moe_activation_desc_t) -> Result<u64> {
    describe(ctx, desc).map(|_| 0)
}

pub fn activation_bwd(
    ctx: &moe_context_t,
    desc: &moe_activation_desc_t,
    args: &moe_activation_bwd_args_t,
    call: Call,
) -> Result<()> {
    let (dtype, activation) = describe(ctx, desc)?;
    let rows = desc.rows_max;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let row_weights = weights(ctx, "args.row_weights", &args.row_weights, rows)?;
    let problem = Backward {
        activation,
        extent: Extent::Count(check::count("args.num_rows", &args.num_rows, rows)?),
        h: matrix("args.h", &args.h, &[dtype], rows, activation.hidden())?,
        dy: matrix("args.dy", &args.dy, &[dtype], rows, activation.ffn)?,
        dh: matrix("args.dh", &args.dh, &[dtype], rows, activation.hidden())?,
        row_weights: row_weights.map_or(RowWeights::one(), RowWeights::of_rows),
        drow_weights: weights(ctx, "args.drow_weights", &args.drow_weights, rows)?,
        dot_start: None,
        weighted_act: optional_matrix("args.weighted_act", &args.weighted_act, &[dtype], rows, activation.ffn)?,
    };
    if problem.drow_weights.is_some() && row_weights.is_none() {
        return Err(Error::argument("args.drow_weights", "given", "absent where row_weights is absent"));
    }
    check::aligned("args.report", args.report)?;
    Workspace::new(call.workspace, call.workspace_size, &Layout::default())?;
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::activation::backward(&problem, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            device.run(args.report, call.stream, |launcher| cuda::activation::backward(launcher, &problem))
        }
    }
}

/// Nothing is kept outside registers.
pub fn activation_bwd_workspace(ctx: &moe_context_t, desc: &moe_activation_desc_t) -> Result<u64> {
    describe(ctx, desc).map(|_| 0)
}
