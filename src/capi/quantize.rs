//! The header's quantize section.

use std::ffi::c_void;

use crate::abi::quantize::*;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::context::{Call, moe_context_t};
use crate::ops::quantize as ops;

use super::{call, query};

/// FP32, FP16 or BF16 to FP8 with scales.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_quantize(
    ctx: *const moe_context_t,
    desc: *const moe_quantize_desc_t,
    args: *const moe_quantize_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_quantize", ctx, desc, args, tail, ops::quantize) }
}

/// Bytes of workspace that moe_quantize needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_quantize_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_quantize_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_quantize_workspace_size", ctx, desc, ("bytes", bytes), ops::quantize_workspace) }
}

/// FP8 with scales to FP32, FP16 or BF16.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_dequantize(
    ctx: *const moe_context_t,
    desc: *const moe_quantize_desc_t,
    args: *const moe_dequantize_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_dequantize", ctx, desc, args, tail, ops::dequantize) }
}

/// Bytes of workspace that moe_dequantize needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_dequantize_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_quantize_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_dequantize_workspace_size", ctx, desc, ("bytes", bytes), ops::dequantize_workspace) }
}
