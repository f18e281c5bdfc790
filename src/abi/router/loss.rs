//! router: the losses.
#![allow(non_camel_case_types)]

use crate::abi::types::*;

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
