//! router: its GEMM: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::abi::types::*;
use crate::check::{self, Count, OutputMode};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda::router::logits as cuda;
use crate::dtype::{Dtype, FLOATS};
use crate::error::{Error, Result};
use crate::philox::{self, Source};
use crate::tensor::{Matrix, matrix, optional_matrix, optional_vector};
#[cfg(feature = "cuda")]
use crate::workspace::Workspace;

use super::loss::MAX_EXPERTS;

/// A checked description: logits[T, E] = x[T, d] * weight[E, d]^T.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Upper bound of the tokens.
    pub tokens: i64,
    pub hidden: i64,
    pub experts: i64,
    pub dtype: Dtype,
    pub logits: Dtype,
    /// Sums in fp64.
    pub wide: bool,
    /// x is multiplied by uniform(1 - eps, 1 + eps), and rounded to its dtype.
    pub jitter: Option<f64>,
}

/// moe_router_logits_fwd, checked.
pub struct Forward {
    pub gate: Gate,
    pub tokens: Count,
    pub x: Matrix,
    pub weight: Matrix,
    pub bias: Option<Matrix>,
    pub logits: Matrix,
    pub jittered_x: Option<Matrix>,
    pub random: Source,
}

/// moe_router_logits_bwd, checked. What an output is made from is there with it.
pub struct Backward {
    pub gate: Gate,
    pub tokens: Count,
    pub dlogits: Matrix,
    pub x: Option<Matrix>,
    pub weight: Option<Matrix>,
    pub dx: Option<Matrix>,
    pub dweight: Option<Matrix>,
    pub dbias: Option<Matrix>,
    pub dx_mode: OutputMode,
    pub dweight_mode: OutputMode,
    pub dbias_mode: OutputMode,
    pub random: Source,
}

impl Gate {
    pub fn check(desc: &moe_router_logits_desc_t) -> Result<Self> {
        let dtype = Dtype::check("desc.dtype", desc.dtype, FLOATS)?;
        let logits = Dtype::check("desc.logits_dtype", desc.logits_dtype, &[Dtype::Fp32, dtype])?;
        let math = check::mode("desc.math", desc.math, MOE_MATH_FP64)?;
        let jitter = check::switch("desc.jitter", desc.jitter)?;
        let eps = check::coefficient("desc.jitter_eps", desc.jitter_eps, 0.0)?;
        if eps < 0.0 {
            return Err(Error::argument("desc.jitter_eps", eps, "at least 0"));
        }
        check::range("desc.reserved", desc.reserved.into(), 0..=0)?;
        Ok(Gate {
            tokens: check::rows("desc.num_tokens", desc.num_tokens)?,
            hidden: check::width("desc.hidden_size", desc.hidden_size)?,
            experts: check::range("desc.num_experts", desc.num_experts, 1..=MAX_EXPERTS)?,
            dtype,
            logits,
            wide: math == MOE_MATH_FP64 || dtype == Dtype::Fp64,
            jitter: jitter.then_some(eps),
        })
    }
}

pub fn router_logits_fwd(
    ctx: &moe_context_t,
    desc: &moe_router_logits_desc_t,
    args: &moe_router_logits_fwd_args_t,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] call: Call,
) -> Result<()> {
    let gate = Gate::check(desc)?;
    ctx.serves("desc.dtype", gate.dtype)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let (tokens, hidden, experts) = (gate.tokens, gate.hidden, gate.experts);
    let problem = Forward {
        gate,
        tokens: check::count("args.num_tokens", &args.num_tokens, tokens)?,
        x: matrix("args.x", &args.x, &[gate.dtype], tokens, hidden)?,
        weight: matrix("args.weight", &args.weight, &[gate.dtype], experts, hidden)?,
        bias: optional_vector("args.bias", &args.bias, FLOATS, experts, experts)?,
        logits: matrix("args.logits", &args.logits, &[gate.logits], tokens, experts)?,
        jittered_x: optional_matrix("args.jittered_x", &args.jittered_x, &[gate.dtype], tokens, hidden)?,
        random: philox::source("args.random", &args.random)?,
    };
    problem.bias.map_or(Ok(()), |vector| ctx.serves("args.bias", vector.dtype))?;
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| cpu::router::logits_fwd(&problem, report)),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, part) = cuda::fwd_layout(device, &gate);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::fwd(device, &problem, (workspace, part), args.report, call.stream)
        }
    }
}

pub fn router_logits_fwd_workspace(ctx: &moe_context_t, desc: &moe_router_logits_desc_t) -> Result<u64> {
    let _gate = Gate::check(desc)?;
    match &ctx.backend {
        Backend::Cpu => Ok(0),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => Ok(cuda::fwd_layout(device, &_gate).0.bytes()),
    }
}

pub fn router_logits_bwd(
    ctx: &moe_context_t,
    desc: &moe_router_logits_desc_t,
    args: &moe_router_logits_bwd_args_t,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] call: Call,
) -> Result<()> {
    let gate = Gate::check(desc)?;
    ctx.serves("desc.dtype", gate.dtype)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let (tokens, hidden, experts) = (gate.tokens, gate.hidden, gate.experts);
    let dx = optional_matrix("args.dx", &args.dx, &[gate.dtype], tokens, hidden)?;
    let dweight = optional_matrix("args.dweight", &args.dweight, FLOATS, experts, hidden)?;
    // An input is looked at where an output needs it.
    let weight = dx.map(|_| matrix("args.weight", &args.weight, &[gate.dtype], experts, hidden)).transpose()?;
    let x = dweight.map(|_| matrix("args.x", &args.x, &[gate.dtype], tokens, hidden)).transpose()?;
    let problem = Backward {
        gate,
        tokens: check::count("args.num_tokens", &args.num_tokens, tokens)?,
        dlogits: matrix("args.dlogits", &args.dlogits, &[gate.logits], tokens, experts)?,
        x,
        weight,
        dx,
        dweight,
        dbias: optional_vector("args.dbias", &args.dbias, FLOATS, experts, experts)?,
        dx_mode: check::output_mode("args.dx_mode", &args.dx_mode)?,
        dweight_mode: check::output_mode("args.dweight_mode", &args.dweight_mode)?,
        dbias_mode: check::output_mode("args.dbias_mode", &args.dbias_mode)?,
        random: philox::source("args.random", &args.random)?,
    };
    for (argument, output) in [("args.dweight", problem.dweight), ("args.dbias", problem.dbias)] {
        output.map_or(Ok(()), |tensor| ctx.serves(argument, tensor.dtype))?;
    }
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| cpu::router::logits_bwd(&problem, report)),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, parts) = cuda::bwd_layout(device, &gate);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::bwd(device, &problem, (workspace, &parts), args.report, call.stream)
        }
    }
}

pub fn router_logits_bwd_workspace(ctx: &moe_context_t, desc: &moe_router_logits_desc_t) -> Result<u64> {
    let _gate = Gate::check(desc)?;
    match &ctx.backend {
        Backend::Cpu => Ok(0),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => Ok(cuda::bwd_layout(device, &_gate).0.bytes()),
    }
}
