//! router: capacity and dropping: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::check::{self, Count, OutputMode};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda::router::capacity as cuda;
use crate::dtype::{FLOATS, INDICES};
use crate::error::{Error, Result};
use crate::philox::{self, Source};
use crate::tensor::{Matrix, is_absent, matrix};
#[cfg(feature = "cuda")]
use crate::workspace::Workspace;

use super::loss::{MAX_EXPERTS, MAX_TOP_K};

/// A checked description.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// MOE_CAPACITY_*.
    pub formula: i32,
    /// Upper bound of the tokens.
    pub bound: i64,
    pub experts: i64,
    pub top_k: i64,
    pub explicit: i64,
    pub least: i64,
    pub factor: f64,
    /// MOE_DROP_*.
    pub policy: i32,
    /// MOE_SECOND_EXPERT_*.
    pub second: i32,
    /// MOE_DROP_KEEP_WEIGHTS, MOE_DROP_RENORMALIZE_*.
    pub renormalize: i32,
}

/// moe_capacity_fwd, checked.
pub struct Forward {
    pub desc: Capacity,
    pub tokens: Count,
    pub ids: Matrix,
    pub weights: Matrix,
    pub kept_ids: Matrix,
    pub kept_weights: Matrix,
    /// These may be NULL: not wanted.
    pub tokens_per_expert: *mut i64,
    pub dropped_per_expert: *mut i64,
    /// NULL: all tokens are real.
    pub padding_mask: *const u8,
    /// With MOE_SECOND_EXPERT_SAMPLING.
    pub sampling: Option<Sampling>,
    pub random: Source,
}

// SAFETY: addresses; what is done with them is each backend's own proof.
unsafe impl Sync for Forward {}

/// What drawing the second expert reads and writes.
pub struct Sampling {
    pub logits: Matrix,
    pub routed_ids: Matrix,
    pub routed_weights: Matrix,
}

/// moe_capacity_bwd, checked.
pub struct Backward {
    pub desc: Capacity,
    pub tokens: Count,
    /// Present with MOE_DROP_RENORMALIZE_*.
    pub weights: Option<Matrix>,
    /// Present with MOE_DROP_RENORMALIZE_BEFORE.
    pub ids: Option<Matrix>,
    pub kept_ids: Matrix,
    pub dkept_weights: Matrix,
    pub dweights: Matrix,
    pub mode: OutputMode,
}

impl Capacity {
    fn check(desc: &moe_capacity_desc_t) -> Result<Self> {
        let experts = check::range("desc.num_experts", desc.num_experts, 1..=MAX_EXPERTS)?;
        let factor = check::coefficient("desc.capacity_factor", desc.capacity_factor, 1.0)?;
        if factor < 0.0 {
            return Err(Error::argument("desc.capacity_factor", factor, "not negative"));
        }
        let capacity = Capacity {
            formula: check::mode("desc.formula", desc.formula, MOE_CAPACITY_TOKEN_FRACTION)?,
            bound: check::rows("desc.num_tokens", desc.num_tokens)?,
            experts,
            top_k: check::range("desc.top_k", desc.top_k, 1..=experts.min(MAX_TOP_K))?,
            explicit: check::rows("desc.capacity", desc.capacity)?,
            least: check::rows("desc.min_capacity", desc.min_capacity)?,
            factor,
            policy: check::mode("desc.policy", desc.policy, MOE_DROP_BY_CHOICE)?,
            second: check::mode("desc.second_expert", desc.second_expert, MOE_SECOND_EXPERT_RANDOM)?,
            renormalize: check::mode("desc.renormalize", desc.renormalize, MOE_DROP_RENORMALIZE_BEFORE)?,
        };
        check::range("desc.reserved", desc.reserved.into(), 0..=0)?;
        if capacity.second != MOE_SECOND_EXPERT_ALL && capacity.top_k != 2 {
            return Err(Error::argument(
                "desc.top_k",
                capacity.top_k,
                "2 where second_expert is not MOE_SECOND_EXPERT_ALL",
            ));
        }
        Ok(capacity)
    }

    /// C for so many tokens.
    pub fn value(&self, tokens: i64) -> i64 {
        let (t, k, e) = (tokens as f64, self.top_k as f64, self.experts as f64);
        match self.formula {
            MOE_CAPACITY_MEGATRON => ((t * k / e * self.factor).ceil() as i64).max(self.least).min(tokens),
            MOE_CAPACITY_DEEPSPEED => ((t / e * self.factor * k).ceil() as i64).max(self.least),
            MOE_CAPACITY_MEGABLOCKS => (t * k / e * self.factor).floor() as i64,
            MOE_CAPACITY_NLLB => 2 * ((tokens + self.experts - 1) / self.experts),
            MOE_CAPACITY_TOKEN_FRACTION => (self.factor * t).ceil() as i64,
            _ => self.explicit,
        }
    }

    /// Whether weight `slot` of a token is left as it is where the others are renormalised.
    pub fn spares(&self, slot: i64) -> bool {
        self.second == MOE_SECOND_EXPERT_RANDOM && self.renormalize == MOE_DROP_RENORMALIZE_BEFORE && slot == 1
    }
}

pub fn capacity_value(_: &moe_context_t, desc: &moe_capacity_desc_t) -> Result<i64> {
    Capacity::check(desc).map(|capacity| capacity.value(capacity.bound))
}

pub fn capacity_fwd(
    ctx: &moe_context_t,
    desc: &moe_capacity_desc_t,
    args: &moe_capacity_fwd_args_t,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] call: Call,
) -> Result<()> {
    let desc = Capacity::check(desc)?;
    let (bound, top_k) = (desc.bound, desc.top_k);
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let ids = matrix("args.ids", &args.ids, INDICES, bound, top_k)?;
    let weights = matrix("args.weights", &args.weights, FLOATS, bound, top_k)?;
    ctx.serves("args.weights", weights.dtype)?;
    let problem = Forward {
        desc,
        tokens: check::count("args.num_tokens", &args.num_tokens, bound)?,
        ids,
        weights,
        kept_ids: matrix("args.kept_ids", &args.kept_ids, &[ids.dtype], bound, top_k)?,
        kept_weights: matrix("args.kept_weights", &args.kept_weights, &[weights.dtype], bound, top_k)?,
        tokens_per_expert: check::aligned("args.tokens_per_expert", args.tokens_per_expert)?.cast_mut(),
        dropped_per_expert: check::aligned("args.dropped_per_expert", args.dropped_per_expert)?.cast_mut(),
        padding_mask: args.padding_mask,
        sampling: sampling(ctx, &desc, args, &ids, &weights)?,
        random: philox::source("args.random", &args.random)?,
    };
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::router::capacity::fwd(&problem, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, parts) = cuda::fwd_layout(&desc);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::fwd(device, &problem, (workspace, &parts), args.report, call.stream)
        }
    }
}

fn sampling(
    ctx: &moe_context_t,
    desc: &Capacity,
    args: &moe_capacity_fwd_args_t,
    ids: &Matrix,
    weights: &Matrix,
) -> Result<Option<Sampling>> {
    let arguments = [
        ("args.logits", &args.logits),
        ("args.routed_ids", &args.routed_ids),
        ("args.routed_weights", &args.routed_weights),
    ];
    if desc.second != MOE_SECOND_EXPERT_SAMPLING {
        return match arguments.iter().find(|(_, tensor)| !is_absent(tensor)) {
            Some((name, _)) => Err(Error::argument(*name, "given", "absent without MOE_SECOND_EXPERT_SAMPLING")),
            None => Ok(None),
        };
    }
    let logits = matrix("args.logits", &args.logits, FLOATS, desc.bound, desc.experts)?;
    ctx.serves("args.logits", logits.dtype)?;
    Ok(Some(Sampling {
        logits,
        routed_ids: matrix("args.routed_ids", &args.routed_ids, &[ids.dtype], desc.bound, desc.top_k)?,
        routed_weights: matrix("args.routed_weights", &args.routed_weights, &[weights.dtype], desc.bound, desc.top_k)?,
    }))
}

pub fn capacity_fwd_workspace(ctx: &moe_context_t, desc: &moe_capacity_desc_t) -> Result<u64> {
    let _desc = Capacity::check(desc)?;
    match &ctx.backend {
        Backend::Cpu => Ok(0),
        #[cfg(feature = "cuda")]
        Backend::Cuda(_) => Ok(cuda::fwd_layout(&_desc).0.bytes()),
    }
}

pub fn capacity_bwd(
    ctx: &moe_context_t,
    desc: &moe_capacity_desc_t,
    args: &moe_capacity_bwd_args_t,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] call: Call,
) -> Result<()> {
    let desc = Capacity::check(desc)?;
    let (bound, top_k) = (desc.bound, desc.top_k);
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let weights = match desc.renormalize {
        MOE_DROP_KEEP_WEIGHTS => None,
        _ => Some(matrix("args.weights", &args.weights, FLOATS, bound, top_k)?),
    };
    let ids = match desc.renormalize {
        MOE_DROP_RENORMALIZE_BEFORE => Some(matrix("args.ids", &args.ids, INDICES, bound, top_k)?),
        _ => None,
    };
    let problem = Backward {
        desc,
        tokens: check::count("args.num_tokens", &args.num_tokens, bound)?,
        weights,
        ids,
        kept_ids: matrix("args.kept_ids", &args.kept_ids, INDICES, bound, top_k)?,
        dkept_weights: matrix("args.dkept_weights", &args.dkept_weights, FLOATS, bound, top_k)?,
        dweights: matrix("args.dweights", &args.dweights, FLOATS, bound, top_k)?,
        mode: check::output_mode("args.dweights_mode", &args.dweights_mode)?,
    };
    let floats = [("args.dkept_weights", Some(problem.dkept_weights)), ("args.dweights", Some(problem.dweights))];
    for (argument, tensor) in [("args.weights", weights)].into_iter().chain(floats) {
        tensor.map_or(Ok(()), |matrix| ctx.serves(argument, matrix.dtype))?;
    }
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::router::capacity::bwd(&problem, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => cuda::bwd(device, &problem, args.report, call.stream),
    }
}

pub fn capacity_bwd_workspace(_: &moe_context_t, desc: &moe_capacity_desc_t) -> Result<u64> {
    Capacity::check(desc).map(|_| 0)
}
