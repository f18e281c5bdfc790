//! router: scores, selection, weights and losses: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::check::{self, Count, OutputMode};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::dtype::{Dtype, FLOATS, INDICES};
use crate::error::{Error, Result};
use crate::philox::{self, Source};
use crate::tensor::{Matrix, matrix, optional_matrix};
#[cfg(feature = "cuda")]
use crate::workspace::Workspace;

use super::loss::{LossGrads, LossInputs, LossOutputs, Losses, bwd_workspace, fwd_workspace};

/// How the chosen experts' logits become weights.
#[derive(Clone, Copy, Debug)]
pub struct Weighting {
    /// MOE_SCORE_*.
    pub score: i32,
    /// Softmax over the chosen alone: after top-k, or before it and renormalised, which is the same.
    pub over_chosen: bool,
    /// Experts are compared by their logits (after a softmax over the chosen there are no other scores).
    pub compares_logits: bool,
    /// Divided by their sum + 1e-20.
    pub divided: bool,
    pub scale: f64,
}

/// Groups of consecutive experts, of which a token may use the best few.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    pub count: i64,
    pub kept: i64,
    /// A group's score is the sum of its so many best.
    pub terms: i64,
}

/// What is compared when experts are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// MOE_SELECT_*.
    pub rule: i32,
    /// The bias goes to the logits, not to the scores.
    pub bias_on_logit: bool,
    pub groups: Option<Groups>,
}

/// A checked description.
#[derive(Clone, Copy, Debug)]
pub struct Router {
    pub weighting: Weighting,
    pub selection: Selection,
    /// Also holds the sizes.
    pub losses: Losses,
}

/// moe_router_fwd, checked.
pub struct Forward {
    pub router: Router,
    pub tokens: Count,
    pub logits: Matrix,
    pub ids: Option<Matrix>,
    pub weights: Option<Matrix>,
    pub dense: Option<Matrix>,
    pub byte_mask: Option<Matrix>,
    pub bit_mask: Option<Matrix>,
    /// Present with MOE_SELECT_GIVEN alone.
    pub given: Option<Matrix>,
    /// NULL: none.
    pub bias: *const f32,
    /// NULL: not asked for.
    pub tokens_per_expert: *mut i64,
    pub inputs: LossInputs,
    pub outputs: LossOutputs,
    pub random: Source,
}

/// moe_router_bwd, checked.
pub struct Backward {
    pub router: Router,
    pub tokens: Count,
    pub logits: Matrix,
    /// Present with a gradient of the weights.
    pub ids: Option<Matrix>,
    pub dweights: Option<Matrix>,
    pub ddense: Option<Matrix>,
    pub dlogits: Matrix,
    pub mode: OutputMode,
    pub inputs: LossInputs,
    pub grads: LossGrads,
}

// SAFETY: addresses; what is done with them is each backend's own proof.
unsafe impl Send for Forward {}
unsafe impl Sync for Forward {}

impl Router {
    pub fn check(desc: &moe_router_desc_t) -> Result<Self> {
        let losses = Losses::check(&loss_desc(desc))?;
        let (experts, top_k) = (losses.experts, check::range("desc.top_k", desc.top_k, 1..=losses.experts.min(64))?);
        let order = check::mode("desc.softmax_order", desc.softmax_order, MOE_SOFTMAX_AFTER_TOPK)?;
        let renormalize = check::switch("desc.renormalize", desc.renormalize)?;
        let softmax = losses.score == MOE_SCORE_SOFTMAX;
        let weighting = Weighting {
            score: losses.score,
            over_chosen: softmax && (order == MOE_SOFTMAX_AFTER_TOPK || renormalize),
            compares_logits: softmax && order == MOE_SOFTMAX_AFTER_TOPK,
            divided: !softmax && renormalize && top_k > 1,
            scale: check::coefficient("desc.scaling_factor", desc.scaling_factor, 1.0)?,
        };
        let selection = Selection {
            rule: check::mode("desc.selection", desc.selection, MOE_SELECT_BALANCED)?,
            bias_on_logit: check::mode("desc.selection_bias_target", desc.selection_bias_target, MOE_BIAS_ON_LOGIT)?
                == MOE_BIAS_ON_LOGIT,
            groups: Groups::check(desc, experts, top_k)?,
        };
        check::range("desc.reserved", desc.reserved.into(), 0..=0)?;
        Ok(Router { weighting, selection, losses })
    }

    /// Whether a token's weights are the same whatever its logits.
    fn constant_weights(&self) -> bool {
        self.losses.top_k == 1 && self.weighting.over_chosen
    }
}

impl Groups {
    fn check(desc: &moe_router_desc_t, experts: i64, top_k: i64) -> Result<Option<Self>> {
        let rule = check::mode("desc.group_score", desc.group_score, MOE_GROUP_SCORE_MAX)?;
        let count = check::range("desc.num_groups", desc.num_groups, 0..=experts)?;
        let kept = check::range("desc.top_groups", desc.top_groups, 0..=experts)?;
        if count == 0 {
            return Ok(None);
        }
        check::range("desc.top_groups", kept, 1..=count)?;
        if experts % count != 0 {
            let limit = format!("a divisor of desc.num_experts ({experts})");
            return Err(Error::argument("desc.num_groups", count, limit));
        }
        let size = experts / count;
        if top_k > kept * size {
            let limit = format!("at most {}, the experts of {kept} groups of {size}", kept * size);
            return Err(Error::argument("desc.top_k", top_k, limit));
        }
        if rule == MOE_GROUP_SCORE_TOPK_SUM && top_k % kept != 0 {
            let limit = format!("a divisor of desc.top_k ({top_k}) with MOE_GROUP_SCORE_TOPK_SUM");
            return Err(Error::argument("desc.top_groups", kept, limit));
        }
        let terms = match rule {
            MOE_GROUP_SCORE_TOPK_SUM => top_k / kept,
            MOE_GROUP_SCORE_TOP2_SUM => size.min(2),
            _ => 1,
        };
        Ok(Some(Groups { count, kept, terms }))
    }
}

/// The losses' part of a router's description.
fn loss_desc(desc: &moe_router_desc_t) -> moe_router_loss_desc_t {
    moe_router_loss_desc_t {
        struct_size: size_of::<moe_router_loss_desc_t>() as u32,
        logits_dtype: desc.logits_dtype,
        num_tokens: desc.num_tokens,
        num_experts: desc.num_experts,
        top_k: desc.top_k,
        score_function: desc.score_function,
        math: desc.math,
        aux_loss: desc.aux_loss,
        aux_scope: desc.aux_scope,
        sequence_layout: desc.sequence_layout,
        z_loss: desc.z_loss,
        num_sequences: desc.num_sequences,
        num_layers: desc.num_layers,
        aux_loss_coeff: desc.aux_loss_coeff,
        z_loss_coeff: desc.z_loss_coeff,
    }
}

pub fn router_fwd(
    ctx: &moe_context_t,
    desc: &moe_router_desc_t,
    args: &moe_router_fwd_args_t,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] call: Call,
) -> Result<()> {
    let router = Router::check(desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let losses = &router.losses;
    let (tokens, experts, top_k) = (losses.tokens, losses.experts, losses.top_k);
    let logits = [Dtype::check("desc.logits_dtype", desc.logits_dtype, FLOATS)?];
    let given = match router.selection.rule {
        MOE_SELECT_GIVEN => Some(matrix("args.given_ids", &args.given_ids, INDICES, tokens, top_k)?),
        _ => None,
    };
    check::aligned("args.tokens_per_expert", args.tokens_per_expert)?;
    let problem = Forward {
        router,
        tokens: check::count("args.num_tokens", &args.num_tokens, tokens)?,
        logits: matrix("args.logits", &args.logits, &logits, tokens, experts)?,
        ids: optional_matrix("args.ids", &args.ids, INDICES, tokens, top_k)?,
        weights: optional_matrix("args.weights", &args.weights, FLOATS, tokens, top_k)?,
        dense: optional_matrix("args.weights_dense", &args.weights_dense, FLOATS, tokens, experts)?,
        byte_mask: optional_matrix("args.byte_mask", &args.byte_mask, &[Dtype::Uint8], tokens, experts)?,
        bit_mask: optional_matrix("args.bit_mask", &args.bit_mask, &[Dtype::Uint32], tokens, (experts + 31) / 32)?,
        given,
        bias: check::aligned("args.selection_bias", args.selection_bias)?,
        tokens_per_expert: args.tokens_per_expert,
        inputs: LossInputs::check(
            losses,
            args.padding_mask,
            args.sequence_offsets,
            args.global_tokens_per_expert,
            args.global_num_tokens,
            !args.aux_loss.is_null(),
        )?,
        outputs: LossOutputs::check(args.aux_counts, args.aux_loss, args.z_loss)?,
        random: philox::source("args.random", &args.random)?,
    };
    ctx.serves("desc.logits_dtype", problem.logits.dtype)?;
    for (argument, output) in [("args.weights", &problem.weights), ("args.weights_dense", &problem.dense)] {
        output.map_or(Ok(()), |matrix| ctx.serves(argument, matrix.dtype))?;
    }
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| cpu::router::fwd(&problem, report)),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, sums) = cuda::router::fwd_layout(device, losses);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::router::fwd(device, &problem, &sums, workspace, args.report, call.stream)
        }
    }
}

pub fn router_fwd_workspace(ctx: &moe_context_t, desc: &moe_router_desc_t) -> Result<u64> {
    fwd_workspace(ctx, &Router::check(desc)?.losses)
}

pub fn router_bwd(
    ctx: &moe_context_t,
    desc: &moe_router_desc_t,
    args: &moe_router_bwd_args_t,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] call: Call,
) -> Result<()> {
    let router = Router::check(desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let losses = &router.losses;
    let (tokens, experts, top_k) = (losses.tokens, losses.experts, losses.top_k);
    let logits = [Dtype::check("desc.logits_dtype", desc.logits_dtype, FLOATS)?];
    let dweights = optional_matrix("args.dweights", &args.dweights, FLOATS, tokens, top_k)?;
    let ddense = optional_matrix("args.dweights_dense", &args.dweights_dense, FLOATS, tokens, experts)?;
    let weighted = dweights.is_some() || ddense.is_some();
    if dweights.is_some() && ddense.is_some() {
        return Err(Error::argument("args.dweights_dense", "given", "absent where args.dweights is given"));
    }
    if router.constant_weights() && (weighted || !losses.any()) {
        let limit = "2 or more in backward: one weight normalised by itself is always 1, its gradient always 0 \
                     (use the softmax before top-k without renormalising, or another score function)";
        return Err(Error::argument("desc.top_k", top_k, limit));
    }
    if !weighted && !losses.any() && tokens > 0 {
        let limit = "this, args.dweights_dense or a loss must be given: the gradient would be zero";
        return Err(Error::argument("args.dweights", "absent", limit));
    }
    let ids = match weighted {
        true => Some(matrix("args.ids", &args.ids, INDICES, tokens, top_k)?),
        false => None,
    };
    let problem = Backward {
        router,
        tokens: check::count("args.num_tokens", &args.num_tokens, tokens)?,
        logits: matrix("args.logits", &args.logits, &logits, tokens, experts)?,
        ids,
        dweights,
        ddense,
        dlogits: matrix("args.dlogits", &args.dlogits, FLOATS, tokens, experts)?,
        mode: check::output_mode("args.dlogits_mode", &args.dlogits_mode)?,
        inputs: LossInputs::check(
            losses,
            args.padding_mask,
            args.sequence_offsets,
            args.global_tokens_per_expert,
            args.global_num_tokens,
            true,
        )?,
        grads: LossGrads::check(losses, args.aux_counts, args.aux_loss_grad, args.z_loss_grad)?,
    };
    ctx.serves("desc.logits_dtype", problem.logits.dtype)?;
    ctx.serves("args.dlogits", problem.dlogits.dtype)?;
    for (argument, grad) in [("args.dweights", &problem.dweights), ("args.dweights_dense", &problem.ddense)] {
        grad.map_or(Ok(()), |matrix| ctx.serves(argument, matrix.dtype))?;
    }
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| cpu::router::bwd(&problem, report)),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, lengths) = cuda::router::bwd_layout(losses);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::router::bwd(device, &problem, &lengths, workspace, args.report, call.stream)
        }
    }
}

pub fn router_bwd_workspace(ctx: &moe_context_t, desc: &moe_router_desc_t) -> Result<u64> {
    bwd_workspace(ctx, &Router::check(desc)?.losses)
}
