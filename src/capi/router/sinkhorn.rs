//! router: Sinkhorn.

use std::ffi::c_void;

use crate::abi::router::*;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::capi::{call, query};
use crate::context::{Call, moe_context_t};
use crate::ops::router as ops;

/// Sinkhorn normalisation, to convergence in one launch.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_sinkhorn(
    ctx: *const moe_context_t,
    desc: *const moe_sinkhorn_desc_t,
    args: *const moe_sinkhorn_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_sinkhorn", ctx, desc, args, tail, ops::sinkhorn) }
}

/// Bytes of workspace that moe_sinkhorn needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_sinkhorn_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_sinkhorn_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_sinkhorn_workspace_size", ctx, desc, ("bytes", bytes), ops::sinkhorn_workspace) }
}

/// One round of Sinkhorn, for reductions over ranks between the rounds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_sinkhorn_step(
    ctx: *const moe_context_t,
    desc: *const moe_sinkhorn_desc_t,
    args: *const moe_sinkhorn_step_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_sinkhorn_step", ctx, desc, args, tail, ops::sinkhorn_step) }
}

/// Bytes of workspace that moe_sinkhorn_step needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_sinkhorn_step_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_sinkhorn_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_sinkhorn_step_workspace_size", ctx, desc, ("bytes", bytes), ops::sinkhorn_step_workspace) }
}
