//! Routers: logits, top-k selection, losses, Sinkhorn, expert choice, capacity.
#![allow(non_camel_case_types)]

use super::types::*;

/// s = softmax(L) over the experts.
pub const MOE_SCORE_SOFTMAX: i32 = 0;
/// s = sigmoid(L) (DeepSeek-V3, Llama-4).
pub const MOE_SCORE_SIGMOID: i32 = 1;
/// s = sqrt(softplus(L)) (DeepSeek-V4).
pub const MOE_SCORE_SQRTSOFTPLUS: i32 = 2;

/// Softmax over all experts, then top-k of it (Mixtral, Qwen3-MoE, OLMoE).
pub const MOE_SOFTMAX_BEFORE_TOPK: i32 = 0;
/// Top-k of the logits, then softmax over the k (GPT-OSS, Megatron's default).
pub const MOE_SOFTMAX_AFTER_TOPK: i32 = 1;

/// A switch that is off.
pub const MOE_OFF: i32 = 0;
/// A switch that is on.
pub const MOE_ON: i32 = 1;

/// Experts are chosen by score (plus bias, within group limits).
pub const MOE_SELECT_TOPK: i32 = 0;
/// The caller gives the ids (router replay, hash routing); weights are computed for them.
pub const MOE_SELECT_GIVEN: i32 = 1;
/// Uniformly spread Philox-random ids that ignore the logits, for benchmarks.
pub const MOE_SELECT_BALANCED: i32 = 2;

/// The selection bias is added to the scores (DeepSeek-V3).
pub const MOE_BIAS_ON_SCORE: i32 = 0;
/// The selection bias is added to the logits (Sinkhorn's log d1).
pub const MOE_BIAS_ON_LOGIT: i32 = 1;

/// Score of a group of experts: sum of its top (top_k/top_groups) biased scores (Megatron).
pub const MOE_GROUP_SCORE_TOPK_SUM: i32 = 0;
/// Sum of its two best biased scores (DeepSeek-V3, vLLM, Transformers).
pub const MOE_GROUP_SCORE_TOP2_SUM: i32 = 1;
/// Its best biased score (DeepSeek-V2).
pub const MOE_GROUP_SCORE_MAX: i32 = 2;

/// No auxiliary loss.
pub const MOE_AUX_LOSS_OFF: i32 = 0;
/// coeff * E/(K*T^2) * sum_e (sum_t s_te) * n_e (Switch, GShard, Megatron-Core).
pub const MOE_AUX_LOSS_MEGATRON: i32 = 1;
/// K times Megatron's (load_balancing_loss_func of Transformers).
pub const MOE_AUX_LOSS_TRANSFORMERS: i32 = 2;
/// E * sum_e mean_t(gate) * mean_t(mask of the first choice) (DeepSpeed top-1 and top-2).
pub const MOE_AUX_LOSS_DEEPSPEED: i32 = 3;
/// Megatron's, divided by num_layers (MegaBlocks).
pub const MOE_AUX_LOSS_MEGABLOCKS: i32 = 4;

/// One loss over all tokens.
pub const MOE_AUX_SCOPE_BATCH: i32 = 0;
/// One loss a sequence, averaged over the sequences.
pub const MOE_AUX_SCOPE_SEQUENCE: i32 = 1;
/// n_e and T are given by the caller, summed over ranks or averaged over micro-batches.
pub const MOE_AUX_SCOPE_GLOBAL: i32 = 2;

/// Token t belongs to sequence t / (num_tokens/num_sequences) (Transformers: b*S+s).
pub const MOE_SEQUENCE_MAJOR: i32 = 0;
/// Token t belongs to sequence t % num_sequences (Megatron: s*B+b).
pub const MOE_SEQUENCE_MINOR: i32 = 1;
/// sequence_offsets says.
pub const MOE_SEQUENCE_OFFSETS: i32 = 2;

/// The router's GEMM: logits[T, E] = x[T, d] * weight[E, d]^T (+ bias[E]), with optional input jitter.
/// x, weight, bias, dx: one of FP32, FP16, BF16 (FP64 on the CPU); logits, dlogits: that or FP32;
/// dweight, dbias: any of them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_logits_desc_t {
    pub struct_size: u32,
    /// Dtype of x and weight.
    pub dtype: moe_dtype_t,
    /// Dtype of the logits.
    pub logits_dtype: moe_dtype_t,
    /// MOE_MATH_DEFAULT (fp32 accumulation), MOE_MATH_TF32 or MOE_MATH_FP64.
    pub math: i32,
    /// Upper bound of the tokens, T.
    pub num_tokens: i64,
    /// d.
    pub hidden_size: i64,
    /// E, 1 to 1024.
    pub num_experts: i64,
    /// MOE_ON: x is multiplied by uniform(1 - jitter_eps, 1 + jitter_eps) (Switch). Random element: t*d + column.
    pub jitter: i32,
    pub reserved: i32,
    pub jitter_eps: f64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_logits_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, d].
    pub x: moe_tensor_t,
    /// [E, d].
    pub weight: moe_tensor_t,
    /// Out: [T, E].
    pub logits: moe_tensor_t,
    /// [E]; optional.
    pub bias: moe_tensor_t,
    /// Out: x after jitter, [T, d]; optional (Mixtral's experts read it too).
    pub jittered_x: moe_tensor_t,
    /// True T; optional.
    pub num_tokens: moe_count_t,
    pub random: moe_random_t,
    pub report: *mut moe_device_report_t,
}

/// dx = dlogits * weight (times the jitter), dweight = dlogits^T * x, dbias = sum_t dlogits. Each output is optional.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_logits_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, E].
    pub dlogits: moe_tensor_t,
    /// [T, d], before jitter; needed for dweight.
    pub x: moe_tensor_t,
    /// [E, d]; needed for dx.
    pub weight: moe_tensor_t,
    /// Out: [T, d]; optional.
    pub dx: moe_tensor_t,
    /// Out: [E, d]; optional.
    pub dweight: moe_tensor_t,
    /// Out: [E]; optional.
    pub dbias: moe_tensor_t,
    pub dx_mode: moe_output_mode_t,
    pub dweight_mode: moe_output_mode_t,
    pub dbias_mode: moe_output_mode_t,
    pub num_tokens: moe_count_t,
    /// The forward's.
    pub random: moe_random_t,
    pub report: *mut moe_device_report_t,
}

/// Scores, selection, weights and losses of a router.
/// logits, dlogits: FP32, FP16, BF16 (FP64 on the CPU); ids: INT32 or INT64; weights: FP32, FP16, BF16 (FP64 on
/// the CPU), whatever the logits are; masks: UINT8 or UINT32.
/// Ties: the higher value, then the lower expert. NaN counts as -inf, with gradient 0, and is reported.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_desc_t {
    pub struct_size: u32,
    pub logits_dtype: moe_dtype_t,
    /// Upper bound of the tokens, T.
    pub num_tokens: i64,
    /// E, 1 to 1024.
    pub num_experts: i64,
    /// K, 1 to min(E, 64).
    pub top_k: i64,
    /// MOE_SCORE_*.
    pub score_function: i32,
    /// MOE_SOFTMAX_*; read for MOE_SCORE_SOFTMAX alone.
    pub softmax_order: i32,
    /// MOE_ON: the K weights are divided by their sum (+ 1e-20; for K > 1 with sigmoid and sqrtsoftplus).
    pub renormalize: i32,
    /// MOE_MATH_DEFAULT (fp32) or MOE_MATH_FP64.
    pub math: i32,
    /// Multiplies the weights; 0 means 1.
    pub scaling_factor: f64,
    /// MOE_SELECT_*.
    pub selection: i32,
    /// MOE_BIAS_*; read when selection_bias is given.
    pub selection_bias_target: i32,
    /// G, groups of consecutive experts; 0: no group limit. Divides E.
    pub num_groups: i64,
    /// g, how many groups a token may choose from.
    pub top_groups: i64,
    /// MOE_GROUP_SCORE_*.
    pub group_score: i32,
    /// MOE_AUX_LOSS_*.
    pub aux_loss: i32,
    /// MOE_AUX_SCOPE_*.
    pub aux_scope: i32,
    /// MOE_SEQUENCE_*.
    pub sequence_layout: i32,
    /// Sequences, for MOE_AUX_SCOPE_SEQUENCE.
    pub num_sequences: i64,
    /// Layers, for MOE_AUX_LOSS_MEGABLOCKS; 0 means 1.
    pub num_layers: i64,
    pub aux_loss_coeff: f64,
    /// MOE_ON: z-loss, coeff * mean_t logsumexp(L_t)^2.
    pub z_loss: i32,
    pub reserved: i32,
    pub z_loss_coeff: f64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, E].
    pub logits: moe_tensor_t,
    /// Out: [T, K]; optional.
    pub ids: moe_tensor_t,
    /// Out: [T, K]; optional.
    pub weights: moe_tensor_t,
    /// Out: [T, E], zero where not chosen; optional.
    pub weights_dense: moe_tensor_t,
    /// Out: UINT8 [T, E]; optional.
    pub byte_mask: moe_tensor_t,
    /// Out: UINT32 [T, ceil(E/32)]; optional.
    pub bit_mask: moe_tensor_t,
    /// In, for MOE_SELECT_GIVEN: [T, K]; -1 or >= E: an empty slot.
    pub given_ids: moe_tensor_t,
    /// In: float[E]; optional. Changes the choice, never the weights.
    pub selection_bias: *const f32,
    /// In: uint8[T], 1 = a real token; optional. Masked tokens count in no loss and no count.
    pub padding_mask: *const u8,
    /// In: int64[num_sequences + 1], for MOE_SEQUENCE_OFFSETS.
    pub sequence_offsets: *const i64,
    /// In: float[E], for MOE_AUX_SCOPE_GLOBAL: tokens an expert.
    pub global_tokens_per_expert: *const f32,
    /// In: one float, for MOE_AUX_SCOPE_GLOBAL: the tokens they come from; NULL: the true T.
    pub global_num_tokens: *const f32,
    /// Out: int64[E], tokens of each expert; optional.
    pub tokens_per_expert: *mut i64,
    /// Out: int64[S, E], S = num_sequences or 1: the counts of the aux loss, before dropping; backward needs
    /// them when aux_loss is on.
    pub aux_counts: *mut i64,
    /// Out: one float; optional.
    pub aux_loss: *mut f32,
    /// Out: one float; optional.
    pub z_loss: *mut f32,
    /// True T; optional.
    pub num_tokens: moe_count_t,
    /// For MOE_SELECT_BALANCED: random element t draws token t's choice.
    pub random: moe_random_t,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, E], the forward's.
    pub logits: moe_tensor_t,
    /// [T, K], the forward's.
    pub ids: moe_tensor_t,
    /// [T, K]; this or dweights_dense; both absent: the losses' gradient alone.
    pub dweights: moe_tensor_t,
    /// [T, E].
    pub dweights_dense: moe_tensor_t,
    /// Out: [T, E].
    pub dlogits: moe_tensor_t,
    pub dlogits_mode: moe_output_mode_t,
    pub padding_mask: *const u8,
    pub sequence_offsets: *const i64,
    pub global_tokens_per_expert: *const f32,
    pub global_num_tokens: *const f32,
    /// The forward's aux_counts.
    pub aux_counts: *const i64,
    /// One device float: the gradient of aux_loss; NULL means 1.
    pub aux_loss_grad: *const f32,
    /// One device float: the gradient of z_loss; NULL means 1.
    pub z_loss_grad: *const f32,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// The losses alone, on given logits, ids and mask. The fields mean what they mean in moe_router_desc_t.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_loss_desc_t {
    pub struct_size: u32,
    pub logits_dtype: moe_dtype_t,
    pub num_tokens: i64,
    pub num_experts: i64,
    pub top_k: i64,
    pub score_function: i32,
    pub math: i32,
    pub aux_loss: i32,
    pub aux_scope: i32,
    pub sequence_layout: i32,
    pub z_loss: i32,
    pub num_sequences: i64,
    pub num_layers: i64,
    pub aux_loss_coeff: f64,
    pub z_loss_coeff: f64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_loss_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, E].
    pub logits: moe_tensor_t,
    /// [T, K]; absent: the plain top-k of the scores.
    pub ids: moe_tensor_t,
    pub padding_mask: *const u8,
    pub sequence_offsets: *const i64,
    pub global_tokens_per_expert: *const f32,
    pub global_num_tokens: *const f32,
    /// Out: int64[S, E]; backward needs it when aux_loss is on.
    pub aux_counts: *mut i64,
    /// Out: one float; optional.
    pub aux_loss: *mut f32,
    /// Out: one float; optional.
    pub z_loss: *mut f32,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_loss_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, E].
    pub logits: moe_tensor_t,
    /// Out: [T, E].
    pub dlogits: moe_tensor_t,
    pub dlogits_mode: moe_output_mode_t,
    pub padding_mask: *const u8,
    pub sequence_offsets: *const i64,
    pub global_tokens_per_expert: *const f32,
    pub global_num_tokens: *const f32,
    pub aux_counts: *const i64,
    pub aux_loss_grad: *const f32,
    pub z_loss_grad: *const f32,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// tolerance 1e-4 and max_iterations 100 with the relative stopping test, d1 started at 1.
pub const MOE_SINKHORN_DEFAULT: i32 = 0;
/// Megatron-Core: d1 = 1, absolute test at 1e-4; max_iterations 1000.
pub const MOE_SINKHORN_MEGATRON: i32 = 1;
/// GPT-NeoX: d1 = 1/(E * column sums of exp(L)), absolute test at 1e-4, 3 iterations.
pub const MOE_SINKHORN_NEOX: i32 = 2;

/// The preset's.
pub const MOE_SINKHORN_START_DEFAULT: i32 = 0;
/// d1 = 1.
pub const MOE_SINKHORN_START_ONES: i32 = 1;
/// d1 = 1/(E * column sums of exp(L)).
pub const MOE_SINKHORN_START_COLUMN_SUMS: i32 = 2;

/// The preset's.
pub const MOE_SINKHORN_STOP_DEFAULT: i32 = 0;
/// mean_e |d1_old - d1| <= tolerance.
pub const MOE_SINKHORN_STOP_ABSOLUTE: i32 = 1;
/// max_e |d1_old/d1 - 1| <= tolerance.
pub const MOE_SINKHORN_STOP_RELATIVE: i32 = 2;

/// Sinkhorn normalisation of exp(logits) (S-BASE, Clark et al. 2022). logits: FP32, FP16, BF16 (FP64 on the CPU).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_sinkhorn_desc_t {
    pub struct_size: u32,
    pub logits_dtype: moe_dtype_t,
    /// Upper bound of the tokens of this rank, T.
    pub num_tokens: i64,
    /// E, 1 to 1024.
    pub num_experts: i64,
    /// MOE_SINKHORN_*.
    pub preset: i32,
    /// MOE_SINKHORN_START_*.
    pub start: i32,
    /// MOE_SINKHORN_STOP_*.
    pub stop: i32,
    /// At most so many rounds; 0: the preset's. Always finite.
    pub max_iterations: i32,
    /// 0: the preset's.
    pub tolerance: f64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_sinkhorn_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, E].
    pub logits: moe_tensor_t,
    /// Out: P = diag(d0) exp(L) diag(d1), [T, E]; optional.
    pub probs: moe_tensor_t,
    /// Out: float[T], log d0; optional.
    pub log_d0: *mut f32,
    /// Out: float[E], log d1; optional. As a selection bias on the logits it gives the top-k of P.
    pub log_d1: *mut f32,
    /// Out: one int32, rounds done; optional.
    pub iterations: *mut i32,
    /// Out: one float, the stopping test's last value; optional.
    pub error: *mut f32,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// One round of Sinkhorn over several ranks. Round r = 0 .. max_iterations: call with round = r, then sum
/// column_mass over the ranks; after the last sum, call once more with round = max_iterations + 1 ... and P from
/// log_d1. Rounds after convergence do nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_sinkhorn_step_args_t {
    pub struct_size: u32,
    /// 0 for the first call.
    pub round: i32,
    /// [T, E], this rank's.
    pub logits: moe_tensor_t,
    /// One device float: the tokens of all ranks.
    pub total_tokens: *const f32,
    /// In and out: float[E], the state; written by round 0.
    pub log_d1: *mut f32,
    /// In (rounds > 0): float[E], summed over the ranks; out: this rank's part for the next sum.
    pub column_mass: *mut f32,
    /// In and out: one int32, not 0 once converged; written by round 0.
    pub done: *mut i32,
    /// Out: one int32, rounds done; optional.
    pub iterations: *mut i32,
    /// Out: one float; optional.
    pub error: *mut f32,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// Expert choice (Zhou et al. 2022): each expert takes its top-C tokens by softmax score; ties: the lower token.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_expert_choice_desc_t {
    pub struct_size: u32,
    pub logits_dtype: moe_dtype_t,
    pub num_tokens: i64,
    /// E, 1 to 1024.
    pub num_experts: i64,
    /// C; where the true T is smaller, the places beyond it hold token -1 and weight 0.
    pub capacity: i64,
    /// MOE_MATH_DEFAULT or MOE_MATH_FP64.
    pub math: i32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_expert_choice_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, E].
    pub logits: moe_tensor_t,
    /// Out: INT32 or INT64 [E, C], best first; optional.
    pub token_ids: moe_tensor_t,
    /// Out: [E, C]; optional.
    pub weights: moe_tensor_t,
    /// Out: [T, E], zero where not chosen; optional. With a mask, the input of moe_dispatch_plan.
    pub weights_dense: moe_tensor_t,
    /// Out: UINT8 [T, E]; optional.
    pub byte_mask: moe_tensor_t,
    /// Out: UINT32 [T, ceil(E/32)]; optional.
    pub bit_mask: moe_tensor_t,
    pub padding_mask: *const u8,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_expert_choice_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, E].
    pub logits: moe_tensor_t,
    /// [E, C]; with dweights.
    pub token_ids: moe_tensor_t,
    /// [E, C]; this or dweights_dense.
    pub dweights: moe_tensor_t,
    /// UINT8 [T, E]; with dweights_dense.
    pub byte_mask: moe_tensor_t,
    /// [T, E].
    pub dweights_dense: moe_tensor_t,
    /// Out: [T, E].
    pub dlogits: moe_tensor_t,
    pub dlogits_mode: moe_output_mode_t,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// bias += rate * sign(mean(n) - n_e), sign(0) = 0 (DeepSeek-V3).
pub const MOE_BIAS_UPDATE_SIGN: i32 = 0;
/// bias moves towards the quantile of the expert's scores at rank T*K/E, with an EMA (Megatron-Core).
pub const MOE_BIAS_UPDATE_QUANTILE: i32 = 1;

/// The aux-loss-free bias. Sum tokens_per_expert over the ranks first.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_bias_update_desc_t {
    pub struct_size: u32,
    /// MOE_BIAS_UPDATE_*.
    pub rule: i32,
    pub num_experts: i64,
    /// 0 means 1e-3.
    pub rate: f64,
    /// Weight of the old bias, for MOE_BIAS_UPDATE_QUANTILE; 0 means 0.9.
    pub ema_decay: f64,
    /// T and K, for MOE_BIAS_UPDATE_QUANTILE.
    pub num_tokens: i64,
    pub top_k: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_bias_update_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// In and out: float[E].
    pub bias: *mut f32,
    /// int64[E], for MOE_BIAS_UPDATE_SIGN.
    pub tokens_per_expert: *const i64,
    /// FP32 [T, E], for MOE_BIAS_UPDATE_QUANTILE.
    pub scores: moe_tensor_t,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// The desc's `capacity`.
pub const MOE_CAPACITY_EXPLICIT: i32 = 0;
/// ceil((T*K/E) * factor), at least min_capacity, at most T (Megatron-Core).
pub const MOE_CAPACITY_MEGATRON: i32 = 1;
/// ceil(T/E * factor * K), at least min_capacity (DeepSpeed).
pub const MOE_CAPACITY_DEEPSPEED: i32 = 2;
/// floor(T*K/E * factor) (MegaBlocks).
pub const MOE_CAPACITY_MEGABLOCKS: i32 = 3;
/// 2 * ceil(T/E) (NLLB-MoE).
pub const MOE_CAPACITY_NLLB: i32 = 4;

/// Each expert keeps its C slots of the largest weight; ties: the lower token.
pub const MOE_DROP_BY_PROBS: i32 = 0;
/// Each expert keeps its first C slots in token order.
pub const MOE_DROP_BY_POSITION: i32 = 1;
/// Each expert keeps C random slots (DeepSpeed's random token selection). Random element: the slot.
pub const MOE_DROP_RANDOM: i32 = 2;
/// First choices before second ones, tokens in order of their largest weight (NLLB-MoE, batch-prioritised).
pub const MOE_DROP_BATCH_PRIORITIZED: i32 = 3;
/// First choices before second ones, tokens in order (GShard, NLLB-MoE).
pub const MOE_DROP_BY_CHOICE: i32 = 4;

/// Every choice beyond the first is routed.
pub const MOE_SECOND_EXPERT_ALL: i32 = 0;
/// The second expert is sampled with Gumbel noise on the logits (NLLB-MoE).
pub const MOE_SECOND_EXPERT_SAMPLING: i32 = 1;
/// The second expert is kept with a probability of twice its weight (NLLB-MoE).
pub const MOE_SECOND_EXPERT_RANDOM: i32 = 2;

/// Weights after dropping are left as they are (Megatron-Core).
pub const MOE_DROP_KEEP_WEIGHTS: i32 = 0;
/// The remaining weights of a token are divided by their sum (DeepSpeed).
pub const MOE_DROP_RENORMALIZE_AFTER: i32 = 1;
/// The weights are divided by their sum before dropping (NLLB-MoE's default).
pub const MOE_DROP_RENORMALIZE_BEFORE: i32 = 2;

/// Expert capacity and token dropping. ids: INT32 or INT64; weights: FP32, FP16, BF16 (FP64 on the CPU).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_capacity_desc_t {
    pub struct_size: u32,
    /// MOE_CAPACITY_*.
    pub formula: i32,
    /// Upper bound of the tokens, T; the capacity is computed from the true T.
    pub num_tokens: i64,
    pub num_experts: i64,
    pub top_k: i64,
    /// C, for MOE_CAPACITY_EXPLICIT.
    pub capacity: i64,
    pub min_capacity: i64,
    /// 0 means 1.
    pub capacity_factor: f64,
    /// MOE_DROP_BY_*, MOE_DROP_RANDOM, MOE_DROP_BATCH_PRIORITIZED.
    pub policy: i32,
    /// MOE_SECOND_EXPERT_*.
    pub second_expert: i32,
    /// MOE_DROP_KEEP_WEIGHTS, MOE_DROP_RENORMALIZE_*.
    pub renormalize: i32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_capacity_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, K].
    pub ids: moe_tensor_t,
    /// [T, K].
    pub weights: moe_tensor_t,
    /// Out: [T, K], -1 where dropped; may be `ids`.
    pub kept_ids: moe_tensor_t,
    /// Out: [T, K], 0 where dropped; may be `weights`.
    pub kept_weights: moe_tensor_t,
    /// Out: int64[E], after dropping; optional.
    pub tokens_per_expert: *mut i64,
    /// Out: int64[E], dropped slots; optional.
    pub dropped_per_expert: *mut i64,
    pub padding_mask: *const u8,
    pub num_tokens: moe_count_t,
    pub random: moe_random_t,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_capacity_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, K], before dropping.
    pub weights: moe_tensor_t,
    /// [T, K], the forward's ids, before dropping.
    pub ids: moe_tensor_t,
    /// [T, K], the forward's.
    pub kept_ids: moe_tensor_t,
    /// [T, K].
    pub dkept_weights: moe_tensor_t,
    /// Out: [T, K].
    pub dweights: moe_tensor_t,
    pub dweights_mode: moe_output_mode_t,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}
