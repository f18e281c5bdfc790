//! grouped_gemm: the checks of its arguments, its workspace, and which backend.

use crate::abi::grouped_gemm::*;
use crate::abi::types::*;
use crate::check::{MAX_EXPERTS, OutputMode, coefficient, mode, output_mode, range, rows, width};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::dtype::{Dtype, FLOATS};
use crate::error::{Error, Result};
use crate::groups::{Gather, Groups, RowWeights, groups, optional_gather};
use crate::tensor::{Grouped, Matrix, grouped, matrix, optional_grouped, optional_matrix};
use crate::workspace::{Layout, Part, Workspace};

/// How a group's weight [out, in] lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightLayout {
    /// [out, in].
    OutIn,
    /// [in, out].
    InOut,
}

impl WeightLayout {
    pub fn check(argument: &str, value: i32) -> Result<Self> {
        Ok(if mode(argument, value, MOE_WEIGHT_IN_OUT)? == MOE_WEIGHT_OUT_IN { Self::OutIn } else { Self::InOut })
    }

    /// The same memory read as the transposed weight: what dgrad multiplies by.
    pub fn transposed(self) -> Self {
        if self == Self::OutIn { Self::InOut } else { Self::OutIn }
    }

    /// Rows and columns in memory.
    pub fn shape(self, out: i64, input: i64) -> (i64, i64) {
        if self == Self::OutIn { (out, input) } else { (input, out) }
    }
}

/// What becomes of an output's old content.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub mode: OutputMode,
    /// Multiplies the old content where it is added to.
    pub beta: f64,
}

/// c[r, :n] = alpha * a[r, :k] * op(b_g)^T (+ bias[g]) (+ beta * c[r]) for the rows r of each group g: the forward,
/// and, with dC for A and the transposed layout, dgrad.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub groups: Groups,
    pub n: i64,
    pub k: i64,
    pub a: Matrix,
    pub gather: Option<Gather>,
    /// [out = n, in = k] in `layout`; a's dtype.
    pub b: Grouped,
    pub layout: WeightLayout,
    /// [groups, n].
    pub bias: Option<Matrix>,
    pub c: Matrix,
    pub output: Output,
    pub alpha: f64,
    pub tf32: bool,
}

/// db_g[out = n, in = k] = alpha * sum over the group's rows of dc[r, :n]^T * a[r, :k] (+ beta * db_g).
#[derive(Clone, Copy, Debug)]
pub struct Wgrad {
    pub groups: Groups,
    pub n: i64,
    pub k: i64,
    pub dc: Matrix,
    /// dc's dtype.
    pub a: Matrix,
    pub gather: Option<Gather>,
    pub db: Grouped,
    pub layout: WeightLayout,
    pub output: Output,
    pub alpha: f64,
    pub tf32: bool,
}

/// dbias[g, :n] = sum over the group's rows of weight * dc[r, :n] (+ beta * dbias[g]).
#[derive(Clone, Copy, Debug)]
pub struct BiasGrad {
    pub groups: Groups,
    pub n: i64,
    pub dc: Matrix,
    /// The rows of dc.
    pub gather: Option<Gather>,
    pub weights: RowWeights,
    /// [groups, n].
    pub dbias: Matrix,
    pub output: Output,
}

/// Steps along the rows, at least 16 each, are counted in 32 bits.
const CUDA_MAX_ROWS: i64 = 1 << 35;

/// The checked description.
struct Shape {
    dtype: Dtype,
    /// Dtypes of bias and of outputs.
    outputs: [Dtype; 2],
    rows_max: i64,
    n: i64,
    k: i64,
    num_groups: i64,
    layout: WeightLayout,
    tf32: bool,
    alpha: f64,
    beta: f64,
}

fn shape(ctx: &moe_context_t, desc: &moe_grouped_gemm_desc_t) -> Result<Shape> {
    let dtype = Dtype::check("desc.dtype", desc.dtype, FLOATS)?;
    let shape = Shape {
        dtype,
        outputs: [dtype, Dtype::Fp32],
        rows_max: rows("desc.rows_max", desc.rows_max)?,
        n: width("desc.n", desc.n)?,
        k: width("desc.k", desc.k)?,
        num_groups: range("desc.num_groups", desc.num_groups, 1..=MAX_EXPERTS)?,
        layout: WeightLayout::check("desc.b_layout", desc.b_layout)?,
        tf32: mode("desc.math", desc.math, MOE_MATH_TF32)? == MOE_MATH_TF32,
        alpha: coefficient("desc.alpha", desc.alpha, 1.0)?,
        beta: coefficient("desc.beta", desc.beta, 1.0)?,
    };
    if !matches!(ctx.backend, Backend::Cpu) {
        if dtype == Dtype::Fp64 {
            return Err(Error::unsupported("grouped GEMM in FP64 runs on the CPU alone"));
        }
        if shape.rows_max > CUDA_MAX_ROWS {
            return Err(Error::unsupported(format!("grouped GEMM of more than {CUDA_MAX_ROWS} rows on CUDA")));
        }
    }
    Ok(shape)
}

pub fn grouped_gemm_fwd(
    ctx: &moe_context_t,
    desc: &moe_grouped_gemm_desc_t,
    args: &moe_grouped_gemm_fwd_args_t,
    call: Call,
) -> Result<()> {
    let s = shape(ctx, desc)?;
    range("args.reserved", args.reserved.into(), 0..=0)?;
    let groups = groups(s.num_groups, s.rows_max, args.group_offsets, args.group_sizes)?;
    let gather = row_gather(&s, &args.row_index, args.a_rows)?;
    let (b_rows, b_columns) = s.layout.shape(s.n, s.k);
    let problem = Linear {
        groups,
        n: s.n,
        k: s.k,
        a: matrix("a", &args.a, &[s.dtype], source_rows(&s, &gather), s.k)?,
        gather,
        b: grouped("b", &args.b, &[s.dtype], s.num_groups, b_rows, b_columns)?,
        layout: s.layout,
        bias: optional_matrix("bias", &args.bias, &s.outputs, s.num_groups, s.n)?,
        c: matrix("c", &args.c, &s.outputs, s.rows_max, s.n)?,
        output: Output { mode: output_mode("c_mode", &args.c_mode)?, beta: s.beta },
        alpha: s.alpha,
        tf32: s.tf32,
    };
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| cpu::grouped_gemm::linear(&problem, &report)),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let room = room_beside(ctx, &s, Some(&problem.b), &call)?;
            device.run(args.report, call.stream, |launcher| cuda::grouped_gemm::linear(launcher, &problem, room))
        }
    }
}

pub fn grouped_gemm_fwd_workspace(ctx: &moe_context_t, desc: &moe_grouped_gemm_desc_t) -> Result<u64> {
    shape(ctx, desc).map(|s| plan(ctx, &s).0.bytes())
}

/// Bytes that a backend wants beside weights that are given by pointers.
pub fn room(ctx: &moe_context_t, groups: i64) -> i64 {
    match &ctx.backend {
        Backend::Cpu => 0,
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => cuda::grouped_gemm::hopper::room(device, groups),
    }
}

fn plan(ctx: &moe_context_t, s: &Shape) -> (Layout, Part) {
    let mut layout = Layout::default();
    let room = layout.part(room(ctx, s.num_groups));
    (layout, room)
}

/// The room beside `weight`; stacked ones need none, and no workspace.
fn room_beside<T>(ctx: &moe_context_t, s: &Shape, weight: Option<&Grouped>, call: &Call) -> Result<*mut T> {
    if weight.is_none_or(|weight| weight.pointers.is_null()) {
        return Ok(std::ptr::null_mut());
    }
    let (layout, room) = plan(ctx, s);
    Ok(Workspace::new(call.workspace, call.workspace_size, &layout)?.at(room))
}

pub fn grouped_gemm_bwd(
    ctx: &moe_context_t,
    desc: &moe_grouped_gemm_desc_t,
    args: &moe_grouped_gemm_bwd_args_t,
    call: Call,
) -> Result<()> {
    let s = shape(ctx, desc)?;
    range("args.reserved", args.reserved.into(), 0..=0)?;
    let groups = groups(s.num_groups, s.rows_max, args.group_offsets, args.group_sizes)?;
    let output = |argument, mode| Ok(Output { mode: output_mode(argument, mode)?, beta: s.beta });
    let dc = matrix("dc", &args.dc, &[s.dtype], s.rows_max, s.n)?;
    let (b_rows, b_columns) = s.layout.shape(s.n, s.k);
    let gather = row_gather(&s, &args.row_index, args.a_rows)?;

    let dgrad = match optional_matrix("da", &args.da, &s.outputs, s.rows_max, s.k)? {
        Some(da) => Some(Linear {
            groups,
            n: s.k,
            k: s.n,
            a: dc,
            gather: None,
            b: grouped("b", &args.b, &[s.dtype], s.num_groups, b_rows, b_columns)?,
            layout: s.layout.transposed(),
            bias: None,
            c: da,
            output: output("da_mode", &args.da_mode)?,
            alpha: s.alpha,
            tf32: s.tf32,
        }),
        None => None,
    };
    let wgrad = match optional_grouped("db", &args.db, &s.outputs, s.num_groups, b_rows, b_columns)? {
        Some(db) => Some(Wgrad {
            groups,
            n: s.n,
            k: s.k,
            dc,
            a: matrix("a", &args.a, &[s.dtype], source_rows(&s, &gather), s.k)?,
            gather,
            db,
            layout: s.layout,
            output: output("db_mode", &args.db_mode)?,
            alpha: s.alpha,
            tf32: s.tf32,
        }),
        None => None,
    };
    let bias_grad = match optional_matrix("dbias", &args.dbias, &s.outputs, s.num_groups, s.n)? {
        Some(dbias) => Some(BiasGrad {
            groups,
            n: s.n,
            dc,
            gather: None,
            weights: RowWeights::one(),
            dbias,
            output: output("dbias_mode", &args.dbias_mode)?,
        }),
        None => None,
    };

    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            dgrad.map_or(Ok(()), |p| cpu::grouped_gemm::linear(&p, &report))?;
            wgrad.map_or(Ok(()), |p| cpu::grouped_gemm::wgrad(&p, &report))?;
            bias_grad.map_or(Ok(()), |p| cpu::grouped_gemm::bias_grad(&p, &report))
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let room = room_beside(ctx, &s, dgrad.as_ref().map(|p| &p.b), &call)?;
            device.run(args.report, call.stream, |launcher| {
                dgrad.map_or(Ok(()), |p| cuda::grouped_gemm::linear(launcher, &p, room))?;
                wgrad.map_or(Ok(()), |p| cuda::grouped_gemm::wgrad(launcher, &p))?;
                bias_grad.map_or(Ok(()), |p| cuda::grouped_gemm::bias_grad(launcher, &p))
            })
        }
    }
}

pub fn grouped_gemm_bwd_workspace(ctx: &moe_context_t, desc: &moe_grouped_gemm_desc_t) -> Result<u64> {
    grouped_gemm_fwd_workspace(ctx, desc)
}

fn row_gather(s: &Shape, row_index: &moe_tensor_t, a_rows: i64) -> Result<Option<Gather>> {
    optional_gather(("row_index", row_index), s.rows_max, ("a_rows", a_rows), MOE_FAULT_ROW_INDEX)
}

fn source_rows(s: &Shape, gather: &Option<Gather>) -> i64 {
    gather.as_ref().map_or(s.rows_max, |g| g.rows.bound)
}
