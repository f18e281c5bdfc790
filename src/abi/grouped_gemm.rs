//! Grouped GEMM.
#![allow(non_camel_case_types)]

use super::types::*;

/// C_g[M_g, N] = alpha * A_g[M_g, K] * op(B_g) (+ bias_g[N]) (+ beta * C_g), rows of A sorted by group.
/// A, B: FP32, FP16 or BF16, both the same (FP64 on the CPU); bias, C, dA, dB, dbias: that or FP32, each its own.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_grouped_gemm_desc_t {
    pub struct_size: u32,
    /// Dtype of A and B.
    pub dtype: moe_dtype_t,
    /// Upper bound of the rows of A, all groups together.
    pub rows_max: i64,
    /// N.
    pub n: i64,
    /// K.
    pub k: i64,
    /// E.
    pub num_groups: i64,
    /// MOE_WEIGHT_OUT_IN (B is [E, N, K]) or MOE_WEIGHT_IN_OUT ([E, K, N]).
    pub b_layout: i32,
    /// MOE_MATH_DEFAULT or MOE_MATH_TF32.
    pub math: i32,
    /// 0 means 1.
    pub alpha: f64,
    /// Multiplies what an output holds when its mode is ADD; 0 means 1.
    pub beta: f64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_grouped_gemm_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [R, K]; or, with row_index, [any, K].
    pub a: moe_tensor_t,
    /// [E, N, K] or [E, K, N]; stacked or by pointers. Rows of a NULL expert are not written.
    pub b: moe_tensor_t,
    /// Out: [R, N].
    pub c: moe_tensor_t,
    pub c_mode: moe_output_mode_t,
    /// int64[E + 1], where each group starts; this or group_sizes.
    pub group_offsets: *const i64,
    /// int64[E]: without group_offsets, groups lie one behind the other; with them, the true rows of
    /// padded groups: rows beyond them are neither read nor written.
    pub group_sizes: *const i64,
    /// [E, N]; optional.
    pub bias: moe_tensor_t,
    /// INT32 or INT64 [R]: row r of A is a[row_index[r]]; a negative one is a row of zeros, and so is one that
    /// is out of range, which is reported; optional.
    pub row_index: moe_tensor_t,
    /// Rows of `a` where row_index is given.
    pub a_rows: i64,
    pub report: *mut moe_device_report_t,
}

/// dA = alpha * dC * op(B)^T; dB = alpha * A^T * dC in B's layout; dbias = sum of dC's rows. Each output is optional.
/// dB and dbias of an empty group are written as zeros (or kept, with ADD).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_grouped_gemm_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [R, N].
    pub dc: moe_tensor_t,
    /// [R, K], or [any, K] with row_index; needed for dB.
    pub a: moe_tensor_t,
    /// Needed for dA.
    pub b: moe_tensor_t,
    /// Out: [R, K]; optional.
    pub da: moe_tensor_t,
    /// Out: B's layout; optional; stacked or by pointers (NULL: skipped).
    pub db: moe_tensor_t,
    /// Out: [E, N]; optional.
    pub dbias: moe_tensor_t,
    pub da_mode: moe_output_mode_t,
    pub db_mode: moe_output_mode_t,
    pub dbias_mode: moe_output_mode_t,
    pub group_offsets: *const i64,
    pub group_sizes: *const i64,
    /// The forward's; dA has one row for each r, ungathered.
    pub row_index: moe_tensor_t,
    pub a_rows: i64,
    pub report: *mut moe_device_report_t,
}
