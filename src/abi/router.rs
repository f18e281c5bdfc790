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

/// d1 started at 1, relative stopping test, tolerance 1e-4, at most 100 iterations.
pub const MOE_SINKHORN_DEFAULT: i32 = 0;
/// Megatron-Core: d1 started at 1, absolute test, tolerance 1e-4; at most 1000 iterations (Megatron has no bound).
pub const MOE_SINKHORN_MEGATRON: i32 = 1;
/// GPT-NeoX: d1 started at 1/(E * column sums of exp(L)), absolute test, tolerance 1e-4, at most 3 iterations.
pub const MOE_SINKHORN_NEOX: i32 = 2;

/// The preset's.
pub const MOE_SINKHORN_START_DEFAULT: i32 = 0;
/// d1 = 1.
pub const MOE_SINKHORN_START_ONES: i32 = 1;
/// d1 = 1/(E * column sums of exp(L)); where such a sum is 0, 1/(E * 1e-8).
pub const MOE_SINKHORN_START_COLUMN_SUMS: i32 = 2;

/// The preset's.
pub const MOE_SINKHORN_STOP_DEFAULT: i32 = 0;
/// mean_e |d1_old - d1| <= tolerance.
pub const MOE_SINKHORN_STOP_ABSOLUTE: i32 = 1;
/// max_e |d1_old/d1 - 1| <= tolerance.
pub const MOE_SINKHORN_STOP_RELATIVE: i32 = 2;

/// Sinkhorn normalisation of C = exp(logits) (S-BASE, Clark et al. 2022). An iteration is
/// d0_t = 1/(T*(sum_e d1_e*C_te + 1e-8)), then d1_e = 1/(E*(sum_t d0_t*C_te + 1e-8)). It works on shifted logits, so that
/// none of them overflows; with infinite ones, +inf and what exceeds FP32 counts as FP32's largest number.
/// logits: FP32, FP16, BF16 (FP64 on the CPU); probs: any of them. No tokens: log_d1 = 0, no iterations, error 0.
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
    /// Out: one int32, iterations done; optional.
    pub iterations: *mut i32,
    /// Out: one float, the stopping test's last value: above the tolerance where max_iterations ended it; optional.
    pub error: *mut f32,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// Sinkhorn over the tokens of several ranks: max_iterations + 1 calls on each rank, with an all-reduce between them.
///
/// For round = 0 to max_iterations:
/// - moe_sinkhorn_step with this round;
/// - if round < max_iterations: all-reduce column_mass, E floats, by sum.
///
/// Round 0 starts log_d1 and writes this rank's column_mass. Round r > 0 takes the summed column_mass, does iteration r
/// of log_d1 and writes the column_mass for the next; the last round writes none. Once the stopping test holds, which all
/// ranks find in the same round, done is set and the rounds that are left write zeros to column_mass and nothing else: the
/// loop needs no look at the device and can be captured. Then top-k of logits + log_d1 is the choice, as after moe_sinkhorn.
///
/// Started from column sums (MOE_SINKHORN_NEOX) the loop begins at round -2, and it is the maximum over the ranks that
/// column_mass is all-reduced to after round -2; the sum after all others.
///
/// All ranks give the same description but for num_tokens. log_d1, column_mass and done are the state: leave them alone
/// between the calls.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_sinkhorn_step_args_t {
    pub struct_size: u32,
    /// 0 (started from column sums: -2) to max_iterations.
    pub round: i32,
    /// [T, E], this rank's.
    pub logits: moe_tensor_t,
    /// One device float: the tokens of all ranks; NULL: this rank's are all.
    pub total_tokens: *const f32,
    /// In and out: float[E], the state; round 0 starts it.
    pub log_d1: *mut f32,
    /// In and out: float[E]. Out: the part of P's column sums before the columns are scaled that this rank's tokens
    /// have; in: all ranks' parts.
    pub column_mass: *mut f32,
    /// In and out: one int32, not 0 once converged; round 0 starts it.
    pub done: *mut i32,
    /// Out: float[T], log d0, so that P = exp(L + log d0 + log d1) in the end; optional.
    pub log_d0: *mut f32,
    /// Out: one int32, iterations done; optional.
    pub iterations: *mut i32,
    /// Out: one float, the stopping test's last value, 0 before round 1; optional.
    pub error: *mut f32,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// Expert choice (Zhou et al. 2022): each expert takes its top-C tokens by score, s = softmax(L) over the experts; ties:
/// the lower token. A token may have 0 to E experts. A token is taken even with score 0 (logit -inf), unless masked.
/// logits, dlogits: FP32, FP16, BF16 (FP64 on the CPU); token_ids: INT32 or INT64; weights and their gradients: FP32,
/// FP16, BF16 (FP64 on the CPU), whatever the logits are. Among infinite logits +inf counts as FP32's largest number.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_expert_choice_desc_t {
    pub struct_size: u32,
    pub logits_dtype: moe_dtype_t,
    pub num_tokens: i64,
    /// E, 1 to 1024.
    pub num_experts: i64,
    /// C, at least 0; where an expert has fewer tokens to choose from, its last places hold token -1 and weight 0.
    pub capacity: i64,
    /// MOE_MATH_DEFAULT (scores are fp32) or MOE_MATH_FP64.
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
    /// Out: [E, C], the tokens of each expert in ascending order, as dispatch orders its rows; optional.
    pub token_ids: moe_tensor_t,
    /// Out: [E, C], their scores; optional.
    pub weights: moe_tensor_t,
    /// Out: [T, E], zero where not chosen; optional. With a mask, the input of moe_dispatch_plan.
    pub weights_dense: moe_tensor_t,
    /// Out: UINT8 [T, E]; optional.
    pub byte_mask: moe_tensor_t,
    /// Out: UINT32 [T, ceil(E/32)]; optional.
    pub bit_mask: moe_tensor_t,
    /// In: uint8[T], 1 = a real token; optional. Masked tokens are never chosen.
    pub padding_mask: *const u8,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// dlogits_te = s_te * (g_te - sum_i s_ti*g_ti), where g is the gradient of the weights that were chosen, 0 elsewhere.
/// Given as dweights with token_ids, or as dweights_dense with byte_mask.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_expert_choice_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, E].
    pub logits: moe_tensor_t,
    /// [E, C], the forward's; with dweights.
    pub token_ids: moe_tensor_t,
    /// [E, C].
    pub dweights: moe_tensor_t,
    /// UINT8 [T, E], the forward's; with dweights_dense.
    pub byte_mask: moe_tensor_t,
    /// [T, E].
    pub dweights_dense: moe_tensor_t,
    /// Out: [T, E].
    pub dlogits: moe_tensor_t,
    pub dlogits_mode: moe_output_mode_t,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// bias_e += rate * sign(mean(n) - n_e), sign(0) = 0 (DeepSeek-V3, Megatron-Core's get_updated_expert_bias).
pub const MOE_BIAS_UPDATE_SIGN: i32 = 0;
/// Quantile balancing (Megatron-Core's qb_dual_update, whose beta is our -bias): with a_t the (K+1)-th largest of
/// s_te + bias_e over the experts and q_e the (floor(T*K/E) + 1)-th largest of s_te - a_t over the tokens,
/// bias_e = ema_decay * bias_e - (1 - ema_decay) * q_e. A q_e that is not finite leaves bias_e as it is.
pub const MOE_BIAS_UPDATE_QUANTILE: i32 = 1;

/// The aux-loss-free selection bias. Over ranks: sum tokens_per_expert first (SIGN), or average the biases afterwards
/// (QUANTILE, as Megatron-Core does).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_bias_update_desc_t {
    pub struct_size: u32,
    /// MOE_BIAS_UPDATE_*.
    pub rule: i32,
    /// E, 1 to 1024.
    pub num_experts: i64,
    /// 0 means 1e-3; for MOE_BIAS_UPDATE_SIGN.
    pub rate: f64,
    /// How much of the old bias stays, 0 to 1 (Megatron-Core: 0); for MOE_BIAS_UPDATE_QUANTILE.
    pub ema_decay: f64,
    /// Upper bound of the tokens, T; for MOE_BIAS_UPDATE_QUANTILE.
    pub num_tokens: i64,
    /// K, 1 to E - 1; for MOE_BIAS_UPDATE_QUANTILE.
    pub top_k: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_router_bias_update_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// In and out: float[E].
    pub bias: *mut f32,
    /// In: int64[E], for MOE_BIAS_UPDATE_SIGN.
    pub tokens_per_expert: *const i64,
    /// In: FP32 [T, E], for MOE_BIAS_UPDATE_QUANTILE. NaN counts as -inf and is reported.
    pub scores: moe_tensor_t,
    /// In: uint8[T], 1 = a real token; optional, for MOE_BIAS_UPDATE_QUANTILE: T and the quantiles are of real tokens.
    pub padding_mask: *const u8,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// The desc's `capacity`.
pub const MOE_CAPACITY_EXPLICIT: i32 = 0;
/// ceil((T*K/E) * factor), at least min_capacity, then at most T (Megatron-Core).
pub const MOE_CAPACITY_MEGATRON: i32 = 1;
/// ceil(T/E * factor * K), at least min_capacity (DeepSpeed).
pub const MOE_CAPACITY_DEEPSPEED: i32 = 2;
/// floor(T*K/E * factor) (MegaBlocks).
pub const MOE_CAPACITY_MEGABLOCKS: i32 = 3;
/// 2 * ceil(T/E) (NLLB-MoE).
pub const MOE_CAPACITY_NLLB: i32 = 4;
/// ceil(factor * T) (NLLB-MoE's moe_eval_capacity_token_fraction).
pub const MOE_CAPACITY_TOKEN_FRACTION: i32 = 5;

/// Each expert keeps its C slots of the largest weight; ties: the lower token.
pub const MOE_DROP_BY_PROBS: i32 = 0;
/// Each expert keeps its first C slots in token order.
pub const MOE_DROP_BY_POSITION: i32 = 1;
/// Each expert keeps C random slots (DeepSpeed's random token selection): those with the largest random bits; ties: the
/// lower token. Random element: the slot, t*K + k.
pub const MOE_DROP_RANDOM: i32 = 2;
/// First choices before second ones, tokens in order of their largest weight (NLLB-MoE, batch-prioritised); ties: the
/// lower token.
pub const MOE_DROP_BATCH_PRIORITIZED: i32 = 3;
/// First choices before second ones, tokens in order (GShard, NLLB-MoE).
pub const MOE_DROP_BY_CHOICE: i32 = 4;

/// Every choice beyond the first is routed.
pub const MOE_SECOND_EXPERT_ALL: i32 = 0;
/// The second expert is drawn anew: the highest logit + Gumbel noise, -log(-log(u)), among all but the first; its weight
/// is softmax(logits) there (NLLB-MoE; K = 2). Random element: num_tokens*K + t*E + expert, num_tokens the desc's.
pub const MOE_SECOND_EXPERT_SAMPLING: i32 = 1;
/// The second expert stays where twice its weight exceeds u (NLLB-MoE; K = 2). Random element: num_tokens*K + t,
/// num_tokens the desc's.
pub const MOE_SECOND_EXPERT_RANDOM: i32 = 2;

/// Weights after dropping are left as they are (Megatron-Core).
pub const MOE_DROP_KEEP_WEIGHTS: i32 = 0;
/// The weights that a token keeps are divided by their sum, which counts as at least the machine epsilon of the weights'
/// dtype (DeepSpeed, Transformers' NLLB-MoE).
pub const MOE_DROP_RENORMALIZE_AFTER: i32 = 1;
/// The same with all K weights, before dropping (NLLB-MoE's default). With MOE_SECOND_EXPERT_RANDOM the second weight is
/// left as it is, as Transformers has it.
pub const MOE_DROP_RENORMALIZE_BEFORE: i32 = 2;

/// Expert capacity and token dropping. ids: INT32 or INT64; weights: FP32, FP16, BF16 (FP64 on the CPU), all of one dtype.
/// An id of -1 or >= E is an empty slot: it stays empty, and its weight counts nowhere. A NaN weight counts as -inf where
/// weights are compared. To pad to capacity, give C to moe_dispatch_desc_t's rows_per_group.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_capacity_desc_t {
    pub struct_size: u32,
    /// MOE_CAPACITY_*.
    pub formula: i32,
    /// Upper bound of the tokens, T; the capacity is computed from the true T, padding tokens included.
    pub num_tokens: i64,
    /// E, 1 to 1024.
    pub num_experts: i64,
    /// K, 1 to min(E, 64).
    pub top_k: i64,
    /// C, for MOE_CAPACITY_EXPLICIT; at least 0.
    pub capacity: i64,
    /// At least 0; for MOE_CAPACITY_MEGATRON, MOE_CAPACITY_DEEPSPEED.
    pub min_capacity: i64,
    /// Not negative; 0 means 1. All formulas are computed in double, from left to right.
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
    /// Out: int64[E], slots dropped for want of capacity; optional.
    pub dropped_per_expert: *mut i64,
    /// In: uint8[T], 1 = a real token; optional. The slots of the others become empty and count nowhere.
    pub padding_mask: *const u8,
    /// In, for MOE_SECOND_EXPERT_SAMPLING: FP32, FP16, BF16 (FP64 on the CPU) [T, E]. NaN counts as -inf and is reported.
    pub logits: moe_tensor_t,
    /// Out, for MOE_SECOND_EXPERT_SAMPLING: [T, K], ids with the second expert drawn; the ids of the router's backward.
    pub routed_ids: moe_tensor_t,
    /// Out, for MOE_SECOND_EXPERT_SAMPLING: [T, K], their weights. Backward takes both in place of ids and weights.
    pub routed_weights: moe_tensor_t,
    pub num_tokens: moe_count_t,
    pub random: moe_random_t,
    pub report: *mut moe_device_report_t,
}

/// The gradient of kept_weights; the choice has none.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_capacity_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, K], before dropping; needed for MOE_DROP_RENORMALIZE_*.
    pub weights: moe_tensor_t,
    /// [T, K], the forward's ids, before dropping; needed for MOE_DROP_RENORMALIZE_BEFORE.
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
