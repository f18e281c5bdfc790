//! FP8.
#![allow(non_camel_case_types)]

use super::types::*;

/// Scales are amax / (largest finite value).
pub const MOE_SCALE_ROUNDING_EXACT: i32 = 0;
/// Scales are rounded up to a power of two.
pub const MOE_SCALE_ROUNDING_POWER_OF_TWO: i32 = 1;

/// x[R, C] <-> q[R, C] with scales (the tensor's scale_kind), and q's transpose with scales of its own.
/// x: FP32, FP16 or BF16; q: FP8_E4M3 or FP8_E5M2.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_quantize_desc_t {
    pub struct_size: u32,
    /// Dtype of x.
    pub dtype: moe_dtype_t,
    /// Upper bound of the rows, R.
    pub rows_max: i64,
    /// C.
    pub columns: i64,
    /// Groups whose scales are separate; 0 means 1.
    pub num_groups: i64,
    /// MOE_SCALE_ROUNDING_*.
    pub scale_rounding: i32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_quantize_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [R, C].
    pub x: moe_tensor_t,
    /// Out: [R, C] and its scales; optional.
    pub q: moe_tensor_t,
    /// Out: [C, R] and its scales; optional.
    pub q_transposed: moe_tensor_t,
    /// int64[num_groups + 1]; optional.
    pub group_offsets: *const i64,
    pub num_rows: moe_count_t,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_dequantize_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [R, C] and its scales.
    pub q: moe_tensor_t,
    /// Out: [R, C].
    pub x: moe_tensor_t,
    /// int64[num_groups + 1]; optional.
    pub group_offsets: *const i64,
    pub num_rows: moe_count_t,
    pub report: *mut moe_device_report_t,
}
