//! Statuses. Their numbers never change and are never reused.
#![allow(non_camel_case_types)]

/// What a call returned; MOE_STATUS_SUCCESS is 0. The thread's message is moe_last_error_message().
pub type moe_status_t = i32;

pub const MOE_STATUS_SUCCESS: i32 = 0;
/// An argument is wrong. Nothing was enqueued, no output was touched.
pub const MOE_STATUS_INVALID_ARGUMENT: i32 = 1;
/// A valid request that this build, backend or version does not serve. Nothing was enqueued.
pub const MOE_STATUS_UNSUPPORTED: i32 = 2;
/// libcuda.so.1 is missing, unusable or too old.
pub const MOE_STATUS_NO_DRIVER: i32 = 3;
/// There is no such device, or it is older than compute capability 8.0.
pub const MOE_STATUS_UNSUPPORTED_DEVICE: i32 = 4;
/// A CUDA driver call failed, perhaps from an earlier fault of the caller's. Outputs are undefined.
pub const MOE_STATUS_DRIVER_ERROR: i32 = 5;
/// libnccl.so.2 is missing or unusable.
pub const MOE_STATUS_NO_NCCL: i32 = 6;
/// An NCCL call failed. Outputs are undefined.
pub const MOE_STATUS_NCCL_ERROR: i32 = 7;
/// MOE_CHECK=1 only: a kernel reported a fault (see moe_device_report_t).
pub const MOE_STATUS_DEVICE_FAULT: i32 = 8;
/// A defect of libmoe. Nothing unwinds into the caller.
pub const MOE_STATUS_INTERNAL_ERROR: i32 = 9;
