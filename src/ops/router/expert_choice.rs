//! router: expert choice: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::check::{self, Count, OutputMode};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda::router::expert_choice as cuda;
use crate::dtype::{Dtype, FLOATS, INDICES};
use crate::error::{Error, Result};
use crate::tensor::{Matrix, matrix, optional_matrix};
#[cfg(feature = "cuda")]
use crate::workspace::Workspace;

use super::loss::{MAX_EXPERTS, wide};

/// A checked description.
#[derive(Clone, Copy, Debug)]
pub struct ExpertChoice {
    pub logits: Dtype,
    /// Upper bound of the tokens.
    pub bound: i64,
    pub experts: i64,
    pub capacity: i64,
    /// Scores in fp64.
    pub wide: bool,
}

/// moe_expert_choice_fwd, checked.
pub struct Forward {
    pub desc: ExpertChoice,
    pub tokens: Count,
    pub logits: Matrix,
    pub token_ids: Option<Matrix>,
    pub weights: Option<Matrix>,
    pub dense: Option<Matrix>,
    pub byte_mask: Option<Matrix>,
    pub bit_mask: Option<Matrix>,
    /// NULL: all tokens are real.
    pub padding_mask: *const u8,
}

/// The gradient of the weights: compact with the chosen tokens, or dense with the mask.
pub enum Gradient {
    Compact { token_ids: Matrix, dweights: Matrix },
    Dense { byte_mask: Matrix, dweights: Matrix },
}

/// moe_expert_choice_bwd, checked.
pub struct Backward {
    pub desc: ExpertChoice,
    pub tokens: Count,
    pub logits: Matrix,
    pub gradient: Gradient,
    pub dlogits: Matrix,
    pub mode: OutputMode,
}

// SAFETY: addresses; what is done with them is each backend's own proof.
unsafe impl Sync for Forward {}

fn describe(ctx: &moe_context_t, desc: &moe_expert_choice_desc_t) -> Result<ExpertChoice> {
    let logits = Dtype::check("desc.logits_dtype", desc.logits_dtype, FLOATS)?;
    ctx.serves("desc.logits_dtype", logits)?;
    let described = ExpertChoice {
        logits,
        bound: check::rows("desc.num_tokens", desc.num_tokens)?,
        experts: check::range("desc.num_experts", desc.num_experts, 1..=MAX_EXPERTS)?,
        capacity: check::rows("desc.capacity", desc.capacity)?,
        wide: wide("desc.math", desc.math, logits)?,
    };
    check::range("desc.reserved", desc.reserved.into(), 0..=0)?;
    Ok(described)
}

pub fn expert_choice_fwd(
    ctx: &moe_context_t,
    desc: &moe_expert_choice_desc_t,
    args: &moe_expert_choice_fwd_args_t,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] call: Call,
) -> Result<()> {
    let desc = describe(ctx, desc)?;
    let ExpertChoice { bound, experts, capacity, .. } = desc;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let problem = Forward {
        desc,
        tokens: check::count("args.num_tokens", &args.num_tokens, bound)?,
        logits: matrix("args.logits", &args.logits, &[desc.logits], bound, experts)?,
        token_ids: optional_matrix("args.token_ids", &args.token_ids, INDICES, experts, capacity)?,
        weights: optional_matrix("args.weights", &args.weights, FLOATS, experts, capacity)?,
        dense: optional_matrix("args.weights_dense", &args.weights_dense, FLOATS, bound, experts)?,
        byte_mask: optional_matrix("args.byte_mask", &args.byte_mask, &[Dtype::Uint8], bound, experts)?,
        bit_mask: optional_matrix("args.bit_mask", &args.bit_mask, &[Dtype::Uint32], bound, (experts + 31) / 32)?,
        padding_mask: args.padding_mask,
    };
    for (argument, output) in [("args.weights", problem.weights), ("args.weights_dense", problem.dense)] {
        output.map_or(Ok(()), |matrix| ctx.serves(argument, matrix.dtype))?;
    }
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| cpu::router::expert_choice_fwd(&problem, report)),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, parts) = cuda::fwd_layout(&problem.desc);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::fwd(device, &problem, (workspace, &parts), args.report, call.stream)
        }
    }
}

pub fn expert_choice_fwd_workspace(ctx: &moe_context_t, desc: &moe_expert_choice_desc_t) -> Result<u64> {
    let _desc = describe(ctx, desc)?;
    match &ctx.backend {
        Backend::Cpu => Ok(0),
        #[cfg(feature = "cuda")]
        Backend::Cuda(_) => Ok(cuda::fwd_layout(&_desc).0.bytes()),
    }
}

pub fn expert_choice_bwd(
    ctx: &moe_context_t,
    desc: &moe_expert_choice_desc_t,
    args: &moe_expert_choice_bwd_args_t,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] call: Call,
) -> Result<()> {
    let desc = describe(ctx, desc)?;
    let ExpertChoice { bound, experts, capacity, .. } = desc;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let problem = Backward {
        desc,
        tokens: check::count("args.num_tokens", &args.num_tokens, bound)?,
        logits: matrix("args.logits", &args.logits, &[desc.logits], bound, experts)?,
        gradient: gradient(ctx, args, bound, experts, capacity)?,
        dlogits: matrix("args.dlogits", &args.dlogits, FLOATS, bound, experts)?,
        mode: check::output_mode("args.dlogits_mode", &args.dlogits_mode)?,
    };
    ctx.serves("args.dlogits", problem.dlogits.dtype)?;
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| cpu::router::expert_choice_bwd(&problem, report)),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, chains) = cuda::bwd_layout(&problem.desc);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::bwd(device, &problem, (workspace, &chains), args.report, call.stream)
        }
    }
}

fn gradient(
    ctx: &moe_context_t,
    args: &moe_expert_choice_bwd_args_t,
    bound: i64,
    experts: i64,
    capacity: i64,
) -> Result<Gradient> {
    let compact = optional_matrix("args.dweights", &args.dweights, FLOATS, experts, capacity)?;
    let dense = optional_matrix("args.dweights_dense", &args.dweights_dense, FLOATS, bound, experts)?;
    match (compact, dense) {
        (Some(_), Some(_)) => {
            Err(Error::argument("args.dweights_dense", "given", "absent where args.dweights is given"))
        }
        (None, Some(dweights)) => {
            ctx.serves("args.dweights_dense", dweights.dtype)?;
            let byte_mask = matrix("args.byte_mask", &args.byte_mask, &[Dtype::Uint8], bound, experts)?;
            Ok(Gradient::Dense { byte_mask, dweights })
        }
        _ => {
            let dweights = matrix("args.dweights", &args.dweights, FLOATS, experts, capacity)?;
            ctx.serves("args.dweights", dweights.dtype)?;
            let token_ids = matrix("args.token_ids", &args.token_ids, INDICES, experts, capacity)?;
            Ok(Gradient::Compact { token_ids, dweights })
        }
    }
}

pub fn expert_choice_bwd_workspace(ctx: &moe_context_t, desc: &moe_expert_choice_desc_t) -> Result<u64> {
    let _desc = describe(ctx, desc)?;
    match &ctx.backend {
        Backend::Cpu => Ok(0),
        #[cfg(feature = "cuda")]
        Backend::Cuda(_) => Ok(cuda::bwd_layout(&_desc).0.bytes()),
    }
}
