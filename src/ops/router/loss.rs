//! router: the losses: checks, workspace, and which backend. The router's own forward and backward take them along.

use crate::abi::router::*;
use crate::abi::types::*;
use crate::check::{self, Count, OutputMode};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::dtype::{Dtype, FLOATS, INDICES};
use crate::error::{Error, Result};
use crate::tensor::{Matrix, matrix, optional_matrix};
#[cfg(feature = "cuda")]
use crate::workspace::Workspace;

/// Which losses, and how they are normalised: a checked description.
#[derive(Clone, Copy, Debug)]
pub struct Losses {
    /// Upper bound of the tokens.
    pub tokens: i64,
    pub experts: i64,
    pub top_k: i64,
    /// MOE_SCORE_*.
    pub score: i32,
    /// Mathematics in fp64.
    pub wide: bool,
    pub aux: bool,
    /// Loss of a sequence of n tokens: aux_scale / n^2 * sum_e (sum_t s_te) * n_e.
    pub aux_scale: f64,
    /// How many of a token's choices n_e counts.
    pub counted: i64,
    pub scope: i32,
    pub layout: i32,
    /// 1 for a loss over all tokens.
    pub sequences: i64,
    pub z: bool,
    pub z_scale: f64,
}

/// What the losses read besides the logits, in both directions.
#[derive(Clone, Copy, Debug)]
pub struct LossInputs {
    pub padding_mask: *const u8,
    pub sequence_offsets: *const i64,
    pub global_counts: *const f32,
    /// NULL: the true count.
    pub global_tokens: *const f32,
}

/// Where the losses go; each may be NULL.
#[derive(Clone, Copy, Debug)]
pub struct LossOutputs {
    pub aux_counts: *mut i64,
    pub aux: *mut f32,
    pub z: *mut f32,
}

/// What the gradient of the losses reads.
#[derive(Clone, Copy, Debug)]
pub struct LossGrads {
    pub aux_counts: *const i64,
    /// NULL: 1.
    pub aux: *const f32,
    pub z: *const f32,
}

/// moe_router_loss_fwd, checked.
pub struct Forward {
    pub losses: Losses,
    pub tokens: Count,
    pub logits: Matrix,
    /// None: the plain top-k of the scores.
    pub ids: Option<Matrix>,
    pub inputs: LossInputs,
    pub outputs: LossOutputs,
}

/// moe_router_loss_bwd, checked.
pub struct Backward {
    pub losses: Losses,
    pub tokens: Count,
    pub logits: Matrix,
    pub dlogits: Matrix,
    pub mode: OutputMode,
    pub inputs: LossInputs,
    pub grads: LossGrads,
}

// SAFETY: addresses; what is done with them is each backend's own proof.
unsafe impl Send for LossInputs {}
unsafe impl Sync for LossInputs {}
unsafe impl Send for LossOutputs {}
unsafe impl Sync for LossOutputs {}
unsafe impl Send for LossGrads {}
unsafe impl Sync for LossGrads {}

pub const MAX_EXPERTS: i64 = 1024;
pub const MAX_TOP_K: i64 = 64;

/// Router mathematics: fp32, or fp64 on request and for fp64 logits.
pub fn wide(argument: &str, math: i32, logits: Dtype) -> Result<bool> {
    match check::mode(argument, math, MOE_MATH_FP64)? {
        MOE_MATH_TF32 => Err(Error::argument(argument, "MOE_MATH_TF32", "MOE_MATH_DEFAULT or MOE_MATH_FP64")),
        math => Ok(math == MOE_MATH_FP64 || logits == Dtype::Fp64),
    }
}

impl Losses {
    pub fn check(desc: &moe_router_loss_desc_t) -> Result<Self> {
        let logits = Dtype::check("desc.logits_dtype", desc.logits_dtype, FLOATS)?;
        let tokens = check::rows("desc.num_tokens", desc.num_tokens)?;
        let experts = check::range("desc.num_experts", desc.num_experts, 1..=MAX_EXPERTS)?;
        let score = check::mode("desc.score_function", desc.score_function, MOE_SCORE_SQRTSOFTPLUS)?;
        let wide = wide("desc.math", desc.math, logits)?;
        let aux = check::mode("desc.aux_loss", desc.aux_loss, MOE_AUX_LOSS_MEGABLOCKS)?;
        let scope = check::mode("desc.aux_scope", desc.aux_scope, MOE_AUX_SCOPE_GLOBAL)?;
        let layout = check::mode("desc.sequence_layout", desc.sequence_layout, MOE_SEQUENCE_OFFSETS)?;
        let z = check::switch("desc.z_loss", desc.z_loss)?;
        let aux_coeff = check::coefficient("desc.aux_loss_coeff", desc.aux_loss_coeff, 0.0)?;
        let z_scale = check::coefficient("desc.z_loss_coeff", desc.z_loss_coeff, 0.0)?;
        let layers = check::range("desc.num_layers", desc.num_layers, 0..=check::MAX_WIDTH)?.max(1);
        let on = aux != MOE_AUX_LOSS_OFF;
        // The z-loss alone has no use for K.
        let top_k = check::range("desc.top_k", desc.top_k, on.into()..=experts.min(MAX_TOP_K))?;
        let sequences = match scope {
            MOE_AUX_SCOPE_SEQUENCE if on => {
                check::range("desc.num_sequences", desc.num_sequences, 1..=check::MAX_WIDTH)?
            }
            _ => {
                check::range("desc.num_sequences", desc.num_sequences, 0..=check::MAX_WIDTH)?;
                1
            }
        };
        if layout == MOE_SEQUENCE_MAJOR && tokens % sequences != 0 {
            let limit = format!("a divisor of desc.num_tokens ({tokens}) with MOE_SEQUENCE_MAJOR");
            return Err(Error::argument("desc.num_sequences", sequences, limit));
        }
        check::elements("desc.num_sequences x desc.num_experts", &[sequences, experts])?;
        let per_choice = match aux {
            MOE_AUX_LOSS_MEGATRON => top_k,
            MOE_AUX_LOSS_MEGABLOCKS => top_k * layers,
            _ => 1,
        };
        let aux_scale = aux_coeff * experts as f64 / (per_choice.max(1) * sequences) as f64;
        let counted = if aux == MOE_AUX_LOSS_DEEPSPEED { 1 } else { top_k };
        #[rustfmt::skip]
        return Ok(Losses { tokens, experts, top_k, score, wide, aux: on, aux_scale, counted, scope, layout, sequences, z, z_scale });
    }

    pub fn any(&self) -> bool {
        self.aux || self.z
    }

    pub fn global(&self) -> bool {
        self.aux && self.scope == MOE_AUX_SCOPE_GLOBAL
    }
}

impl LossInputs {
    /// `counts`: whether the caller's counts will be read.
    pub fn check(
        losses: &Losses,
        padding_mask: *const u8,
        sequence_offsets: *const i64,
        global_counts: *const f32,
        global_tokens: *const f32,
        counts: bool,
    ) -> Result<Self> {
        check::aligned("args.sequence_offsets", sequence_offsets)?;
        if losses.aux && losses.scope == MOE_AUX_SCOPE_SEQUENCE && losses.layout == MOE_SEQUENCE_OFFSETS {
            check::present("args.sequence_offsets", sequence_offsets)?;
        }
        check::aligned("args.global_tokens_per_expert", global_counts)?;
        if losses.global() && counts {
            check::present("args.global_tokens_per_expert", global_counts)?;
        }
        check::aligned("args.global_num_tokens", global_tokens)?;
        Ok(LossInputs { padding_mask, sequence_offsets, global_counts, global_tokens })
    }
}

impl LossOutputs {
    pub fn check(aux_counts: *mut i64, aux: *mut f32, z: *mut f32) -> Result<Self> {
        check::aligned("args.aux_counts", aux_counts)?;
        check::aligned("args.aux_loss", aux)?;
        check::aligned("args.z_loss", z)?;
        Ok(LossOutputs { aux_counts, aux, z })
    }
}

impl LossGrads {
    pub fn check(losses: &Losses, aux_counts: *const i64, aux: *const f32, z: *const f32) -> Result<Self> {
        check::aligned("args.aux_counts", aux_counts)?;
        if losses.aux && !losses.global() {
            check::present("args.aux_counts", aux_counts)?;
        }
        check::aligned("args.aux_loss_grad", aux)?;
        check::aligned("args.z_loss_grad", z)?;
        Ok(LossGrads { aux_counts, aux, z })
    }
}

pub fn router_loss_fwd(
    ctx: &moe_context_t,
    desc: &moe_router_loss_desc_t,
    args: &moe_router_loss_fwd_args_t,
    call: Call,
) -> Result<()> {
    let losses = Losses::check(desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    let (tokens, experts) = (losses.tokens, losses.experts);
    let logits = [Dtype::check("desc.logits_dtype", desc.logits_dtype, FLOATS)?];
    let problem = Forward {
        losses,
        tokens: check::count("args.num_tokens", &args.num_tokens, tokens)?,
        logits: matrix("args.logits", &args.logits, &logits, tokens, experts)?,
        ids: optional_matrix("args.ids", &args.ids, INDICES, tokens, losses.top_k)?,
        inputs: LossInputs::check(
            &losses,
            args.padding_mask,
            args.sequence_offsets,
            args.global_tokens_per_expert,
            args.global_num_tokens,
            !args.aux_loss.is_null(),
        )?,
        outputs: LossOutputs::check(args.aux_counts, args.aux_loss, args.z_loss)?,
    };
    ctx.serves("desc.logits_dtype", problem.logits.dtype)?;
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| cpu::router::loss_fwd(&problem, report)),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, sums) = cuda::router::fwd_layout(device, &losses);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::router::loss_fwd(device, &problem, &sums, workspace, args.report, call.stream)
        }
    }
}

pub fn router_loss_fwd_workspace(ctx: &moe_context_t, desc: &moe_router_loss_desc_t) -> Result<u64> {
    fwd_workspace(ctx, &Losses::check(desc)?)
}

pub fn router_loss_bwd(
    ctx: &moe_context_t,
    desc: &moe_router_loss_desc_t,
    args: &moe_router_loss_bwd_args_t,
    call: Call,
) -> Result<()> {
    let losses = Losses::check(desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    if !losses.any() {
        return Err(Error::argument("desc.aux_loss", "MOE_AUX_LOSS_OFF", "a loss: without one the gradient is zero"));
    }
    let (tokens, experts) = (losses.tokens, losses.experts);
    let logits = [Dtype::check("desc.logits_dtype", desc.logits_dtype, FLOATS)?];
    let problem = Backward {
        losses,
        tokens: check::count("args.num_tokens", &args.num_tokens, tokens)?,
        logits: matrix("args.logits", &args.logits, &logits, tokens, experts)?,
        dlogits: matrix("args.dlogits", &args.dlogits, FLOATS, tokens, experts)?,
        mode: check::output_mode("args.dlogits_mode", &args.dlogits_mode)?,
        inputs: LossInputs::check(
            &losses,
            args.padding_mask,
            args.sequence_offsets,
            args.global_tokens_per_expert,
            args.global_num_tokens,
            true,
        )?,
        grads: LossGrads::check(&losses, args.aux_counts, args.aux_loss_grad, args.z_loss_grad)?,
    };
    ctx.serves("desc.logits_dtype", problem.logits.dtype)?;
    ctx.serves("args.dlogits", problem.dlogits.dtype)?;
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| cpu::router::loss_bwd(&problem, report)),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => {
            let (layout, lengths) = cuda::router::bwd_layout(&losses);
            let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
            cuda::router::loss_bwd(device, &problem, &lengths, workspace, args.report, call.stream)
        }
    }
}

pub fn router_loss_bwd_workspace(ctx: &moe_context_t, desc: &moe_router_loss_desc_t) -> Result<u64> {
    bwd_workspace(ctx, &Losses::check(desc)?)
}

/// Of any forward that has losses.
pub fn fwd_workspace(ctx: &moe_context_t, _losses: &Losses) -> Result<u64> {
    match &ctx.backend {
        Backend::Cpu => Ok(0),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => Ok(cuda::router::fwd_layout(device, _losses).0.bytes()),
    }
}

/// Of any backward that has losses.
pub fn bwd_workspace(ctx: &moe_context_t, _losses: &Losses) -> Result<u64> {
    match &ctx.backend {
        Backend::Cpu => Ok(0),
        #[cfg(feature = "cuda")]
        Backend::Cuda(_) => Ok(cuda::router::bwd_layout(_losses).0.bytes()),
    }
}
