//! router: its GEMM.
#![allow(non_camel_case_types)]

use crate::abi::types::*;

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
