//! router: the update of the selection bias.
#![allow(non_camel_case_types)]

use crate::abi::types::*;

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
