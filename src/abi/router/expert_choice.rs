//! router: expert choice.
#![allow(non_camel_case_types)]

use crate::abi::types::*;

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
