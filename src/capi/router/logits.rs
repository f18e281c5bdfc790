//! router: its GEMM.

use std::ffi::c_void;

use crate::abi::router::*;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::capi::{call, query};
use crate::context::{Call, moe_context_t};
use crate::ops::router as ops;

/// The router's GEMM, forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_logits_fwd(
    ctx: *const moe_context_t,
    desc: *const moe_router_logits_desc_t,
    args: *const moe_router_logits_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_router_logits_fwd", ctx, desc, args, tail, ops::router_logits_fwd) }
}

/// Bytes of workspace that moe_router_logits_fwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_logits_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_router_logits_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe {
        query("moe_router_logits_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::router_logits_fwd_workspace)
    }
}

/// The router's GEMM, backward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_logits_bwd(
    ctx: *const moe_context_t,
    desc: *const moe_router_logits_desc_t,
    args: *const moe_router_logits_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_router_logits_bwd", ctx, desc, args, tail, ops::router_logits_bwd) }
}

/// Bytes of workspace that moe_router_logits_bwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_logits_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_router_logits_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe {
        query("moe_router_logits_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::router_logits_bwd_workspace)
    }
}
