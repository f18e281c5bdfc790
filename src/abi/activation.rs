//! Activations.
#![allow(non_camel_case_types)]

use super::types::*;

/// silu(gate) * up.
pub const MOE_ACTIVATION_SWIGLU: i32 = 0;
/// gelu(gate) * up, exact (erf).
pub const MOE_ACTIVATION_GEGLU_ERF: i32 = 1;
/// gelu(gate) * up, tanh approximation.
pub const MOE_ACTIVATION_GEGLU_TANH: i32 = 2;
/// gate * sigmoid(1.702 gate) * up.
pub const MOE_ACTIVATION_QUICK_GEGLU: i32 = 3;
/// relu(gate) * up.
pub const MOE_ACTIVATION_REGLU: i32 = 4;
/// gate = min(gate, limit), up = clamp(up, -limit, limit), (up + 1) * gate * sigmoid(alpha gate) (GPT-OSS).
pub const MOE_ACTIVATION_CLAMPED_SWIGLU: i32 = 5;
/// Without a gate.
pub const MOE_ACTIVATION_SILU: i32 = 6;
pub const MOE_ACTIVATION_GELU_ERF: i32 = 7;
pub const MOE_ACTIVATION_GELU_TANH: i32 = 8;
pub const MOE_ACTIVATION_RELU: i32 = 9;
/// relu(h)^2.
pub const MOE_ACTIVATION_RELU2: i32 = 10;

/// h = [gate | up].
pub const MOE_GATE_FIRST: i32 = 0;
/// h = [up | gate].
pub const MOE_UP_FIRST: i32 = 1;
/// h = gate, up, gate, up ... in blocks of gate_block columns (1: GPT-OSS).
pub const MOE_GATE_INTERLEAVED: i32 = 2;

/// y = act(h) (* row weight). h: [R, 2f] gated, [R, f] not; y: [R, f].
/// h, y: FP32, FP16 or BF16 (FP64 on the CPU); row weights: any of them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_activation_desc_t {
    pub struct_size: u32,
    pub dtype: moe_dtype_t,
    /// Upper bound of the rows.
    pub rows_max: i64,
    /// f.
    pub ffn_size: i64,
    /// MOE_ACTIVATION_*.
    pub activation: i32,
    /// MOE_GATE_*, MOE_UP_FIRST.
    pub gate_order: i32,
    /// For MOE_GATE_INTERLEAVED; 0 means 1. Divides f.
    pub gate_block: i64,
    /// For MOE_ACTIVATION_CLAMPED_SWIGLU; 0 means 7.
    pub clamp_limit: f64,
    /// For MOE_ACTIVATION_CLAMPED_SWIGLU; 0 means 1.702.
    pub clamp_alpha: f64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_activation_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [R, 2f] or [R, f].
    pub h: moe_tensor_t,
    /// Out: [R, f].
    pub y: moe_tensor_t,
    /// [R]; optional.
    pub row_weights: moe_tensor_t,
    /// True R; optional.
    pub num_rows: moe_count_t,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_activation_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [R, 2f] or [R, f], the forward's.
    pub h: moe_tensor_t,
    /// [R, f].
    pub dy: moe_tensor_t,
    /// Out: like h; may be h itself.
    pub dh: moe_tensor_t,
    /// [R]; optional.
    pub row_weights: moe_tensor_t,
    /// Out: [R], <dy, act(h)>; optional, with row_weights.
    pub drow_weights: moe_tensor_t,
    /// Out: weight * act(h), [R, f]: the forward's y again; optional.
    pub weighted_act: moe_tensor_t,
    pub num_rows: moe_count_t,
    pub report: *mut moe_device_report_t,
}
