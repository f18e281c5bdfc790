//! The fused expert MLP: gather, fc1, activation, fc2, combine.
#![allow(non_camel_case_types)]

use super::types::*;

/// Tokens: gathered inside (input), combined inside (output).
pub const MOE_LAYOUT_TOKENS: i32 = 0;
/// Rows that are already permuted: no gather, no combine.
pub const MOE_LAYOUT_ROWS: i32 = 1;

/// Router weights multiply the expert's output.
pub const MOE_WEIGHTS_AT_COMBINE: i32 = 0;
/// Router weights multiply the activation (and fc2's bias): Megatron's memory-efficient order.
pub const MOE_WEIGHTS_AT_ACTIVATION: i32 = 1;
/// Router weights multiply the expert's input (Llama-4).
pub const MOE_WEIGHTS_AT_INPUT: i32 = 2;

/// y = sum_k w_tk * (W2_e act(W1_e x_t + b1_e) + b2_e).
/// x, W1, W2, h, dh, weighted_act, dy: one of FP32, FP16, BF16 (FP64 on the CPU); y, dx: that or FP32; router
/// weights and their gradients: any of them; biases: that of x or FP32; dW, db: that of x or FP32.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_expert_mlp_desc_t {
    pub struct_size: u32,
    /// Dtype of x, W1, W2, h.
    pub dtype: moe_dtype_t,
    /// Upper bound of the tokens, T; read where a layout is MOE_LAYOUT_TOKENS or weights are a slot's.
    pub num_tokens: i64,
    /// Upper bound of the rows, R.
    pub rows_max: i64,
    /// Most slots a token has, K.
    pub top_k: i64,
    /// E: the experts of W1 and W2, that is the local ones.
    pub num_experts: i64,
    /// d.
    pub hidden_size: i64,
    /// f.
    pub ffn_size: i64,
    /// MOE_LAYOUT_*.
    pub input_layout: i32,
    /// MOE_LAYOUT_*.
    pub output_layout: i32,
    /// MOE_WEIGHTS_AT_*.
    pub weights_at: i32,
    /// MOE_MATH_DEFAULT or MOE_MATH_TF32.
    pub math: i32,
    /// MOE_WEIGHT_OUT_IN (W1 is [E, 2f, d]) or MOE_WEIGHT_IN_OUT ([E, d, 2f]).
    pub w1_layout: i32,
    /// MOE_WEIGHT_OUT_IN (W2 is [E, d, f]) or MOE_WEIGHT_IN_OUT ([E, f, d]).
    pub w2_layout: i32,
    /// MOE_ACTIVATION_*.
    pub activation: i32,
    /// MOE_GATE_*, MOE_UP_FIRST: the order of W1's 2f outputs and of h.
    pub gate_order: i32,
    /// For MOE_GATE_INTERLEAVED; 0 means 1.
    pub gate_block: i64,
    /// For MOE_ACTIVATION_CLAMPED_SWIGLU; 0 means 7.
    pub clamp_limit: f64,
    /// For MOE_ACTIVATION_CLAMPED_SWIGLU; 0 means 1.702.
    pub clamp_alpha: f64,
    /// MOE_ON: a token's result has the same bits whatever the batch (the CPU backend answers UNSUPPORTED).
    pub batch_invariant: i32,
    pub reserved: i32,
}

/// The maps of moe_dispatch_plan. Needed: group_offsets always; token_of_row with input TOKENS; row_of_slot
/// with output TOKENS; slot_of_row where weights a slot go to rows (all but the combine of output TOKENS).
/// An expert is absent where W1 or W2 has a NULL entry: it contributes nothing and its rows are not read. Rows of y
/// that belong to absent experts, or to padding that group_sizes tells of, are written as zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_expert_mlp_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, d] or [R, d].
    pub x: moe_tensor_t,
    /// [E, 2f, d] or [E, d, 2f]; without a gate f for 2f; with w1_up: the gate alone.
    pub w1: moe_tensor_t,
    /// [E, d, f] or [E, f, d].
    pub w2: moe_tensor_t,
    /// Out: [T, d] or [R, d].
    pub y: moe_tensor_t,
    pub y_mode: moe_output_mode_t,
    /// int64[E + 1].
    pub group_offsets: *const i64,
    /// int64[E], true rows of padded groups; optional.
    pub group_sizes: *const i64,
    pub token_of_row: moe_tensor_t,
    pub slot_of_row: moe_tensor_t,
    pub row_of_slot: moe_tensor_t,
    /// [T + 1]; absent: token t has slots t*K .. t*K + K-1.
    pub slot_offsets: moe_tensor_t,
    /// A weight a slot, [S]; optional.
    pub weights: moe_tensor_t,
    /// A weight a row, [R]; optional, instead of weights.
    pub row_weights: moe_tensor_t,
    /// The up half of W1 as a tensor of its own, [E, f, d] or [E, d, f]; optional, not with MOE_GATE_INTERLEAVED.
    pub w1_up: moe_tensor_t,
    /// [E, 2f], in the order of h; optional.
    pub b1: moe_tensor_t,
    /// [E, d]; optional.
    pub b2: moe_tensor_t,
    /// Out: fc1's output, [R, 2f]: what backward needs; absent: inference.
    pub h: moe_tensor_t,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// Each output but dh is optional. Without dw1, dw2, db1, db2 and with weighted_act: delayed wgrad.
/// Needed: group_offsets always; token_of_row with input or output TOKENS; row_of_slot for dweights, and for dx with
/// input TOKENS; slot_of_row with weights; x for dW1, without h, and for gradients of weights at the input.
/// Rows of dx, dh and weighted_act of absent experts and of known padding are written as zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_expert_mlp_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, d] or [R, d], like y.
    pub dy: moe_tensor_t,
    /// The forward's.
    pub x: moe_tensor_t,
    pub w1: moe_tensor_t,
    pub w2: moe_tensor_t,
    /// The forward's; absent: fc1 is computed again (lower memory).
    pub h: moe_tensor_t,
    pub group_offsets: *const i64,
    pub group_sizes: *const i64,
    pub token_of_row: moe_tensor_t,
    pub slot_of_row: moe_tensor_t,
    pub row_of_slot: moe_tensor_t,
    pub slot_offsets: moe_tensor_t,
    pub weights: moe_tensor_t,
    pub row_weights: moe_tensor_t,
    pub w1_up: moe_tensor_t,
    pub b1: moe_tensor_t,
    pub b2: moe_tensor_t,
    /// Out: [T, d] or [R, d], like x.
    pub dx: moe_tensor_t,
    /// Out: W1's layout; by pointers a NULL entry is a frozen expert.
    pub dw1: moe_tensor_t,
    pub dw1_up: moe_tensor_t,
    pub dw2: moe_tensor_t,
    /// Out: [E, 2f].
    pub db1: moe_tensor_t,
    /// Out: [E, d].
    pub db2: moe_tensor_t,
    /// Out: [S], 0 where the slot is not here.
    pub dweights: moe_tensor_t,
    /// Out: [R].
    pub drow_weights: moe_tensor_t,
    /// Out: the gradient of h, [R, 2f]; required; may be h itself.
    pub dh: moe_tensor_t,
    /// Out: fc2's input as dW2 needs it, [R, f]; absent: it goes to the workspace.
    pub weighted_act: moe_tensor_t,
    pub dx_mode: moe_output_mode_t,
    /// Of dw1, dw1_up, dw2.
    pub dw_mode: moe_output_mode_t,
    /// Of db1, db2.
    pub db_mode: moe_output_mode_t,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// dW1 and db1 from x and dh; dW2 and db2 from weighted_act and dy. Each output is optional: fc1 and fc2 apart.
/// Without W1 and W2 absent experts are not known here: where their rows must not be read, give them group_sizes of 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_expert_mlp_wgrad_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// As given to moe_expert_mlp_bwd; needed for dw2, db2.
    pub dy: moe_tensor_t,
    /// Needed for dw1.
    pub x: moe_tensor_t,
    /// moe_expert_mlp_bwd's; needed for dw1, db1.
    pub dh: moe_tensor_t,
    /// moe_expert_mlp_bwd's; needed for dw2.
    pub weighted_act: moe_tensor_t,
    pub group_offsets: *const i64,
    pub group_sizes: *const i64,
    pub token_of_row: moe_tensor_t,
    pub slot_of_row: moe_tensor_t,
    pub row_of_slot: moe_tensor_t,
    pub slot_offsets: moe_tensor_t,
    pub weights: moe_tensor_t,
    pub row_weights: moe_tensor_t,
    /// Out: W1's layout; with dw1_up: the gate's alone.
    pub dw1: moe_tensor_t,
    pub dw1_up: moe_tensor_t,
    pub dw2: moe_tensor_t,
    pub db1: moe_tensor_t,
    pub db2: moe_tensor_t,
    pub dw_mode: moe_output_mode_t,
    pub db_mode: moe_output_mode_t,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}
