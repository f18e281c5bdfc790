//! router: capacity and dropping.

use std::ffi::c_void;

use crate::abi::router::*;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::capi::{call, query};
use crate::context::{Call, moe_context_t};
use crate::ops::router as ops;

/// Drops the slots that exceed the experts' capacity.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_capacity_fwd(
    ctx: *const moe_context_t,
    desc: *const moe_capacity_desc_t,
    args: *const moe_capacity_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_capacity_fwd", ctx, desc, args, tail, ops::capacity_fwd) }
}

/// Bytes of workspace that moe_capacity_fwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_capacity_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_capacity_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_capacity_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::capacity_fwd_workspace) }
}

/// The gradient of moe_capacity_fwd's weights.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_capacity_bwd(
    ctx: *const moe_context_t,
    desc: *const moe_capacity_desc_t,
    args: *const moe_capacity_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_capacity_bwd", ctx, desc, args, tail, ops::capacity_bwd) }
}

/// Bytes of workspace that moe_capacity_bwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_capacity_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_capacity_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_capacity_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::capacity_bwd_workspace) }
}

/// The capacity that a description gives for num_tokens tokens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_capacity_value(
    ctx: *const moe_context_t,
    desc: *const moe_capacity_desc_t,
    capacity: *mut i64,
) -> moe_status_t {
    unsafe { query("moe_capacity_value", ctx, desc, ("capacity", capacity), ops::capacity_value) }
}
