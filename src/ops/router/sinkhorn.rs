//! router: Sinkhorn: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::check::{self, Count};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::dtype::{Dtype, FLOATS};
use crate::error::{Error, Result};
use crate::tensor::{self, Matrix};
#[cfg(feature = "cuda")]
use crate::workspace::Workspace;

use super::loss::MAX_EXPERTS;

/// The value that the columns' scaling begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Ones,
    ColumnSums,
}

/// The stopping test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Absolute,
    Relative,
}

/// A checked description.
#[derive(Clone, Copy, Debug)]
pub struct Sinkhorn {
    pub dtype: Dtype,
    pub bound: i64,
    pub experts: i64,
    pub start: Start,
    pub stop: Stop,
    pub max_iterations: i32,
    pub tolerance: f64,
}

impl Sinkhorn {
    fn check(desc: &moe_sinkhorn_desc_t) -> Result<Self> {
        let dtype = Dtype::check("desc.logits_dtype", desc.logits_dtype, FLOATS)?;
        let bound = check::rows("desc.num_tokens", desc.num_tokens)?;
        let experts = check::range("desc.num_experts", desc.num_experts, 1..=MAX_EXPERTS)?;
        let (start, stop, iterations) = match check::mode("desc.preset", desc.preset, MOE_SINKHORN_NEOX)? {
            MOE_SINKHORN_MEGATRON => (Start::Ones, Stop::Absolute, 1000),
            MOE_SINKHORN_NEOX => (Start::ColumnSums, Stop::Absolute, 3),
            _ => (Start::Ones, Stop::Relative, 100),
        };
        let start = match check::mode("desc.start", desc.start, MOE_SINKHORN_START_COLUMN_SUMS)? {
            MOE_SINKHORN_START_ONES => Start::Ones,
            MOE_SINKHORN_START_COLUMN_SUMS => Start::ColumnSums,
            _ => start,
        };
        let stop = match check::mode("desc.stop", desc.stop, MOE_SINKHORN_STOP_RELATIVE)? {
            MOE_SINKHORN_STOP_ABSOLUTE => Stop::Absolute,
            MOE_SINKHORN_STOP_RELATIVE => Stop::Relative,
            _ => stop,
        };
        let given = check::range("desc.max_iterations", desc.max_iterations.into(), 0..=i32::MAX.into())? as i32;
        let max_iterations = if given == 0 { iterations } else { given };
        let tolerance = check::coefficient("desc.tolerance", desc.tolerance, 1e-4)?;
        if tolerance < 0.0 {
            return Err(Error::argument("desc.tolerance", tolerance, "not negative"));
        }
        Ok(Sinkhorn { dtype, bound, experts, start, stop, max_iterations, tolerance })
    }

    fn logits(&self, tensor: &crate::abi::types::moe_tensor_t) -> Result<Matrix> {
        tensor::matrix("args.logits", tensor, &[self.dtype], self.bound, self.experts)
    }
}

/// To convergence.
pub struct Run {
    pub desc: Sinkhorn,
    pub logits: Matrix,
    pub probs: Option<Matrix>,
    /// The addresses may be NULL: not wanted.
    pub log_d0: *mut f32,
    pub log_d1: *mut f32,
    pub iterations: *mut i32,
    pub error: *mut f32,
    pub tokens: Count,
}

/// One round of several ranks' iteration.
pub struct Step {
    pub desc: Sinkhorn,
    pub round: i32,
    pub logits: Matrix,
    /// NULL: the true T.
    pub total_tokens: *const f32,
    pub log_d1: *mut f32,
    pub column_mass: *mut f32,
    pub done: *mut i32,
    /// These may be NULL: not wanted.
    pub log_d0: *mut f32,
    pub iterations: *mut i32,
    pub error: *mut f32,
    pub tokens: Count,
}

// SAFETY: addresses; what is done with them is each backend's own proof.
unsafe impl Sync for Run {}
unsafe impl Sync for Step {}

impl Sinkhorn {
    /// The round whose call begins a loop of steps.
    pub fn first_round(&self) -> i32 {
        if self.start == Start::ColumnSums { -2 } else { 0 }
    }
}

fn describe(ctx: &moe_context_t, desc: &moe_sinkhorn_desc_t) -> Result<Sinkhorn> {
    let desc = Sinkhorn::check(desc)?;
    ctx.serves("desc.logits_dtype", desc.dtype)?;
    Ok(desc)
}

pub fn sinkhorn(ctx: &moe_context_t, desc: &moe_sinkhorn_desc_t, args: &moe_sinkhorn_args_t, call: Call) -> Result<()> {
    let desc = describe(ctx, desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let problem = Run {
        desc,
        logits: desc.logits(&args.logits)?,
        probs: tensor::optional_matrix("args.probs", &args.probs, FLOATS, desc.bound, desc.experts)?,
        log_d0: check::aligned("args.log_d0", args.log_d0)?.cast_mut(),
        log_d1: check::aligned("args.log_d1", args.log_d1)?.cast_mut(),
        iterations: check::aligned("args.iterations", args.iterations)?.cast_mut(),
        error: check::aligned("args.error", args.error)?.cast_mut(),
        tokens: check::count("args.num_tokens", &args.num_tokens, desc.bound)?,
    };
    if let Some(probs) = problem.probs {
        ctx.serves("args.probs", probs.dtype)?;
    }
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::router::sinkhorn::run(&problem, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, shared) = cuda::router::sinkhorn::run_layout(desc.experts);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::router::sinkhorn::run(device, &problem, args.report, (workspace, shared), call.stream)
        }
    }
}

pub fn sinkhorn_workspace(ctx: &moe_context_t, desc: &moe_sinkhorn_desc_t) -> Result<u64> {
    let desc = describe(ctx, desc)?;
    match &ctx.backend {
        Backend::Cpu => Ok(0),
        #[cfg(feature = "cuda")]
        Backend::Cuda(_) => Ok(cuda::router::sinkhorn::run_layout(desc.experts).0.bytes()),
    }
}

pub fn sinkhorn_step(
    ctx: &moe_context_t,
    desc: &moe_sinkhorn_desc_t,
    args: &moe_sinkhorn_step_args_t,
    call: Call,
) -> Result<()> {
    let desc = describe(ctx, desc)?;
    let rounds = desc.first_round().into()..=desc.max_iterations.into();
    let problem = Step {
        desc,
        round: check::range("args.round", args.round.into(), rounds)? as i32,
        logits: desc.logits(&args.logits)?,
        total_tokens: check::aligned("args.total_tokens", args.total_tokens)?,
        log_d1: check::present("args.log_d1", args.log_d1)?.cast_mut(),
        column_mass: check::present("args.column_mass", args.column_mass)?.cast_mut(),
        done: check::present("args.done", args.done)?.cast_mut(),
        log_d0: check::aligned("args.log_d0", args.log_d0)?.cast_mut(),
        iterations: check::aligned("args.iterations", args.iterations)?.cast_mut(),
        error: check::aligned("args.error", args.error)?.cast_mut(),
        tokens: check::count("args.num_tokens", &args.num_tokens, desc.bound)?,
    };
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::router::sinkhorn::step(&problem, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, partials) = cuda::router::sinkhorn::step_layout(device, desc.bound, desc.experts);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::router::sinkhorn::step(device, &problem, args.report, (workspace, partials), call.stream)
        }
    }
}

pub fn sinkhorn_step_workspace(ctx: &moe_context_t, desc: &moe_sinkhorn_desc_t) -> Result<u64> {
    let desc = describe(ctx, desc)?;
    match &ctx.backend {
        Backend::Cpu => Ok(0),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => Ok(cuda::router::sinkhorn::step_layout(device, desc.bound, desc.experts).0.bytes()),
    }
}
