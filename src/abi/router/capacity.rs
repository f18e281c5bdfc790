//! router: capacity and dropping.
#![allow(non_camel_case_types)]

use crate::abi::types::*;

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
