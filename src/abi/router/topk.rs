//! router: scores, selection, weights and losses.
#![allow(non_camel_case_types)]

use crate::abi::types::*;

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
