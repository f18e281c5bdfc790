//! The types that all sections of the header share.
#![allow(non_camel_case_types)]

use std::ffi::c_void;

/// Element type of a tensor; 0 is invalid, never a default.
pub type moe_dtype_t = i32;

pub const MOE_DTYPE_FP32: i32 = 1;
pub const MOE_DTYPE_FP16: i32 = 2;
pub const MOE_DTYPE_BF16: i32 = 3;
/// CPU backend only: for gradient checks.
pub const MOE_DTYPE_FP64: i32 = 4;
pub const MOE_DTYPE_FP8_E4M3: i32 = 5;
pub const MOE_DTYPE_FP8_E5M2: i32 = 6;
pub const MOE_DTYPE_INT32: i32 = 7;
pub const MOE_DTYPE_INT64: i32 = 8;
/// Byte masks: zero or not zero.
pub const MOE_DTYPE_UINT8: i32 = 9;
/// Bit masks: expert e is bit e % 32 of word e / 32.
pub const MOE_DTYPE_UINT32: i32 = 10;
/// Power-of-two scales: value = 2^(byte - 127).
pub const MOE_DTYPE_E8M0: i32 = 11;

/// How FP32 operands are multiplied, and what routers accumulate in.
pub const MOE_MATH_DEFAULT: i32 = 0;
/// FP32 GEMMs may round their operands to TF32.
pub const MOE_MATH_TF32: i32 = 1;
/// Router mathematics in fp64.
pub const MOE_MATH_FP64: i32 = 2;

/// Which elements share a scale.
pub const MOE_SCALE_NONE: i32 = 0;
/// One scale a tensor, or one a group of a grouped tensor.
pub const MOE_SCALE_TENSOR: i32 = 1;
/// One scale a row.
pub const MOE_SCALE_ROW: i32 = 2;
/// One scale for every 128 consecutive elements of a row.
pub const MOE_SCALE_BLOCK_1X128: i32 = 3;
/// One scale for every block of 128 rows by 128 columns.
pub const MOE_SCALE_BLOCK_128X128: i32 = 4;

/// A matrix, a vector, or E of them. Absent where an argument is optional: data and pointers both NULL.
///
/// Element (row, column) of group g lies at data + g*group_stride + row*row_pitch + column, or, when
/// `pointers` is given, at pointers[g] + row*row_pitch + column. Pitches and strides count elements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_tensor_t {
    /// sizeof(moe_tensor_t).
    pub struct_size: u32,
    /// MOE_DTYPE_*.
    pub dtype: moe_dtype_t,
    /// The data, or NULL when `pointers` is given.
    pub data: *mut c_void,
    /// Elements from one row to the next; 0: rows are contiguous.
    pub row_pitch: i64,
    /// Elements from one group to the next; 0: groups are contiguous.
    pub group_stride: i64,
    /// A device array of E device pointers; a NULL entry is an absent or frozen expert and is skipped. Pointers to 16-bit
    /// weights are multiples of 16 bytes: on Hopper others are reported (MOE_FAULT_POINTER) and skipped.
    pub pointers: *const *mut c_void,
    /// Scales of an FP8 tensor.
    pub scale: *mut c_void,
    /// MOE_SCALE_*.
    pub scale_kind: i32,
    /// Element type of the scales: MOE_DTYPE_FP32 or MOE_DTYPE_E8M0.
    pub scale_dtype: moe_dtype_t,
    /// Scales from one row of scales to the next; 0: contiguous.
    pub scale_row_pitch: i64,
    /// Scales from one group to the next; 0: contiguous.
    pub scale_group_stride: i64,
    /// A device array of E pointers to scales, beside `pointers`.
    pub scale_pointers: *const *mut c_void,
    /// Zero; room for zero points.
    pub reserved: [u64; 4],
}

/// A count that only the device knows. NULL: the host's upper bound is the count.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_count_t {
    /// One device integer; values below 0 count as 0, values above the bound as the bound (and are reported).
    pub device: *const c_void,
    /// MOE_DTYPE_INT32 or MOE_DTYPE_INT64; ignored when `device` is NULL.
    pub dtype: moe_dtype_t,
    pub reserved: i32,
}

/// The output is written.
pub const MOE_OUTPUT_OVERWRITE: i32 = 0;
/// The result is added to what the output holds.
pub const MOE_OUTPUT_ADD: i32 = 1;
/// ADD where *add is not 0 when the operation runs, else OVERWRITE: changes between replays of a CUDA graph.
pub const MOE_OUTPUT_FROM_DEVICE: i32 = 2;

/// Whether an output is overwritten or added to.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_output_mode_t {
    /// MOE_OUTPUT_*.
    pub mode: i32,
    pub reserved: i32,
    /// One device integer, for MOE_OUTPUT_FROM_DEVICE.
    pub add: *const i32,
}

/// Philox4x32-10 (Salmon et al. 2011). Element i uses counter offset + i/4 and lane i%4.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_random_t {
    pub seed: u64,
    pub offset: u64,
    /// Device values that replace `seed` and `offset`, so that each replay of a CUDA graph draws anew.
    pub seed_device: *const u64,
    pub offset_device: *const u64,
}

/// What a kernel clamped or skipped.
pub const MOE_FAULT_NONE: i32 = 0;
/// An expert id outside -1 .. num_experts-1 (strict ids only). place: slot; value: the id.
pub const MOE_FAULT_EXPERT_ID: i32 = 1;
/// A token index of a map is outside the tokens. place: row; value: the index.
pub const MOE_FAULT_TOKEN_INDEX: i32 = 2;
/// A row index of a map is outside the rows. place: slot; value: the index.
pub const MOE_FAULT_ROW_INDEX: i32 = 3;
/// A group offset is negative, above the rows, or below its predecessor. place: group; value: the offset.
pub const MOE_FAULT_GROUP_OFFSET: i32 = 4;
/// A group size is negative or larger than its group. place: group; value: the size.
pub const MOE_FAULT_GROUP_SIZE: i32 = 5;
/// A device count is outside 0 .. bound. place: the bound; value: the count.
pub const MOE_FAULT_COUNT: i32 = 6;
/// More slots or rows than the caller made room for. place: the room; value: how many there are.
pub const MOE_FAULT_OVERFLOW: i32 = 7;
/// A logit is NaN. place: token*num_experts + expert.
pub const MOE_FAULT_NAN_LOGIT: i32 = 8;
/// A slot index of a map is outside the slots. place: row or token; value: the index.
pub const MOE_FAULT_SLOT_INDEX: i32 = 9;
/// An entry of a chunk order, a rank map or an expert map is out of range. place: its place; value: the entry.
pub const MOE_FAULT_MAP_ENTRY: i32 = 10;
/// A pointer to a group's matrix is no multiple of 16 bytes where a kernel copies by tensor maps. place: group; value: the address.
pub const MOE_FAULT_POINTER: i32 = 11;

/// In device memory (host memory for the CPU backend), zeroed by the caller. The first fault wins; read it
/// after your own synchronisation. moe_device_report_message() turns it into words.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct moe_device_report_t {
    /// MOE_FAULT_*.
    pub what: i32,
    pub reserved: i32,
    /// Which element: see the fault.
    pub place: i64,
    pub value: i64,
}

/// Weight matrices [E, out, in] (row-major, as nn.Linear holds them).
pub const MOE_WEIGHT_OUT_IN: i32 = 0;
/// Weight matrices [E, in, out] (row-major).
pub const MOE_WEIGHT_IN_OUT: i32 = 1;

/// A CUDA stream: `cudaStream_t` and `CUstream` alike.
#[allow(non_camel_case_types)]
pub type moe_stream_t = *mut c_void;

/// A CUDA event: `cudaEvent_t` and `CUevent` alike.
#[allow(non_camel_case_types)]
pub type moe_event_t = *mut c_void;
