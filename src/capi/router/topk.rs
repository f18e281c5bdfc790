//! router: scores, selection, weights and losses.

use std::ffi::c_void;

use crate::abi::router::*;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::capi::{call, query};
use crate::context::{Call, moe_context_t};
use crate::ops::router as ops;

/// Scores, top-k, weights, masks, counts and losses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_fwd(
    ctx: *const moe_context_t,
    desc: *const moe_router_desc_t,
    args: *const moe_router_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_router_fwd", ctx, desc, args, tail, ops::router_fwd) }
}

/// Bytes of workspace that moe_router_fwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_router_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_router_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::router_fwd_workspace) }
}

/// The gradient of moe_router_fwd's weights and losses with respect to the logits. Refused where it is identically zero
/// (K = 1 with weights that are always 1).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_bwd(
    ctx: *const moe_context_t,
    desc: *const moe_router_desc_t,
    args: *const moe_router_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_router_bwd", ctx, desc, args, tail, ops::router_bwd) }
}

/// Bytes of workspace that moe_router_bwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_router_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_router_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::router_bwd_workspace) }
}
