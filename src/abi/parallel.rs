//! Expert and tensor parallelism.
#![allow(non_camel_case_types)]

use std::ffi::c_void;

use super::types::*;

/// A transport of the caller's own. Each function enqueues on the stream (or is done on return) and gives 0, or
/// another number for failure. bytes are those a rank sends to each rank.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_comm_callbacks_t {
    pub struct_size: u32,
    pub rank: i32,
    pub num_ranks: i32,
    pub reserved: i32,
    /// Passed to each function.
    pub user: *mut c_void,
    /// Rank r's block i of `send` becomes rank i's block r of `recv`; all blocks have `bytes` bytes.
    pub all_to_all: Option<
        unsafe extern "C" fn(
            user: *mut c_void,
            send: *const c_void,
            recv: *mut c_void,
            bytes: i64,
            stream: moe_stream_t,
        ) -> i32,
    >,
    /// In place sum of `count` elements.
    pub all_reduce: Option<
        unsafe extern "C" fn(
            user: *mut c_void,
            data: *mut c_void,
            count: i64,
            dtype: moe_dtype_t,
            stream: moe_stream_t,
        ) -> i32,
    >,
    /// recv[count] = this rank's part of the sum of all ranks' send[num_ranks*count].
    pub reduce_scatter: Option<
        unsafe extern "C" fn(
            user: *mut c_void,
            send: *const c_void,
            recv: *mut c_void,
            count: i64,
            dtype: moe_dtype_t,
            stream: moe_stream_t,
        ) -> i32,
    >,
}

/// Sizes stay on the device; buffers are bounded by max_tokens_per_rank.
pub const MOE_EP_SIZES_ON_DEVICE: i32 = 0;
/// Exact sizes: the host synchronises once.
pub const MOE_EP_SIZES_EXACT: i32 = 1;

/// Expert parallelism: rows to the ranks of their experts and back.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_ep_desc_t {
    pub struct_size: u32,
    pub dtype: moe_dtype_t,
    /// Upper bound of this rank's tokens.
    pub num_tokens: i64,
    /// Upper bound of the rows that this rank receives from each rank; more are dropped and reported.
    pub max_tokens_per_rank: i64,
    pub hidden_size: i64,
    /// All experts.
    pub num_experts: i64,
    pub num_local_experts: i64,
    pub top_k: i64,
    pub alignment: i64,
    /// MOE_EP_SIZES_*.
    pub sizes: i32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_ep_dispatch_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, d].
    pub x: moe_tensor_t,
    /// [T, K].
    pub ids: moe_tensor_t,
    /// [T, K]; optional.
    pub weights: moe_tensor_t,
    /// int32[num_experts]; NULL: contiguous ranges.
    pub rank_of_expert: *const i32,
    /// int32[num_experts]; NULL: contiguous ranges.
    pub local_of_expert: *const i32,
    /// Out: expert-major rows, [R, d].
    pub rows: moe_tensor_t,
    /// Out: [R]; with weights.
    pub row_weights: moe_tensor_t,
    /// Out: int64[num_local_experts + 1].
    pub group_offsets: *mut i64,
    /// State for combine and the backwards; moe_ep_handle_size bytes on the device.
    pub handle: *mut c_void,
    pub handle_size: u64,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_ep_dispatch_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [R, d].
    pub drows: moe_tensor_t,
    /// [R]; optional.
    pub drow_weights: moe_tensor_t,
    /// Out: [T, d].
    pub dx: moe_tensor_t,
    pub dx_mode: moe_output_mode_t,
    /// Out: [T, K]; with drow_weights.
    pub dweights: moe_tensor_t,
    /// The forward's.
    pub handle: *const c_void,
    pub handle_size: u64,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_ep_combine_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [R, d].
    pub rows: moe_tensor_t,
    /// [T, K]; optional.
    pub weights: moe_tensor_t,
    /// Out: [T, d].
    pub y: moe_tensor_t,
    pub y_mode: moe_output_mode_t,
    /// The dispatch's.
    pub handle: *const c_void,
    pub handle_size: u64,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_ep_combine_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, d].
    pub dy: moe_tensor_t,
    /// [T, K]; optional.
    pub weights: moe_tensor_t,
    /// [R, d], the forward's; needed for dweights.
    pub rows: moe_tensor_t,
    /// Out: [R, d].
    pub drows: moe_tensor_t,
    /// Out: [T, K]; optional.
    pub dweights: moe_tensor_t,
    pub handle: *const c_void,
    pub handle_size: u64,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// Every rank gets the sum.
pub const MOE_TP_ALL_REDUCE: i32 = 0;
/// Every rank gets its share of the tokens (sequence parallelism).
pub const MOE_TP_REDUCE_SCATTER: i32 = 1;

/// Tensor parallelism of each expert: one reduction after the combine.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_tp_reduce_desc_t {
    pub struct_size: u32,
    pub dtype: moe_dtype_t,
    pub num_tokens: i64,
    pub hidden_size: i64,
    /// MOE_TP_*.
    pub mode: i32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_tp_reduce_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, d].
    pub x: moe_tensor_t,
    /// Out: [T, d] or [T/num_ranks, d]; may be x for MOE_TP_ALL_REDUCE.
    pub y: moe_tensor_t,
    pub report: *mut moe_device_report_t,
}
