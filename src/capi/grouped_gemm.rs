//! The header's grouped_gemm section.

use std::ffi::c_void;

use crate::abi::grouped_gemm::*;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::context::{Call, moe_context_t};
use crate::ops::grouped_gemm as ops;

use super::{call, query};

/// C_g = alpha * A_g * op(B_g) (+ bias_g) (+ beta * C_g).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_grouped_gemm_fwd(
    ctx: *const moe_context_t,
    desc: *const moe_grouped_gemm_desc_t,
    args: *const moe_grouped_gemm_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_grouped_gemm_fwd", ctx, desc, args, tail, ops::grouped_gemm_fwd) }
}

/// Bytes of workspace that moe_grouped_gemm_fwd needs where b is given by pointers; stacked weights need none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_grouped_gemm_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_grouped_gemm_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe {
        query("moe_grouped_gemm_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::grouped_gemm_fwd_workspace)
    }
}

/// dgrad and wgrad.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_grouped_gemm_bwd(
    ctx: *const moe_context_t,
    desc: *const moe_grouped_gemm_desc_t,
    args: *const moe_grouped_gemm_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_grouped_gemm_bwd", ctx, desc, args, tail, ops::grouped_gemm_bwd) }
}

/// Bytes of workspace that moe_grouped_gemm_bwd needs where b is given by pointers; stacked weights need none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_grouped_gemm_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_grouped_gemm_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe {
        query("moe_grouped_gemm_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::grouped_gemm_bwd_workspace)
    }
}
