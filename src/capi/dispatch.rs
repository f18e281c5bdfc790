//! The header's dispatch section.

use std::ffi::c_void;

use crate::abi::dispatch::*;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::context::{Call, moe_context_t};
use crate::ops::dispatch as ops;

use super::{call, query};

/// Ids or a mask to group sizes, group offsets and maps.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_dispatch_plan(
    ctx: *const moe_context_t,
    desc: *const moe_dispatch_desc_t,
    args: *const moe_dispatch_plan_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_dispatch_plan", ctx, desc, args, tail, ops::dispatch_plan) }
}

/// Bytes of workspace that moe_dispatch_plan needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_dispatch_plan_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_dispatch_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_dispatch_plan_workspace_size", ctx, desc, ("bytes", bytes), ops::dispatch_plan_workspace) }
}

/// Permute: tokens to rows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_dispatch_fwd(
    ctx: *const moe_context_t,
    desc: *const moe_permute_desc_t,
    args: *const moe_dispatch_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_dispatch_fwd", ctx, desc, args, tail, ops::dispatch_fwd) }
}

/// Bytes of workspace that moe_dispatch_fwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_dispatch_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_permute_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_dispatch_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::dispatch_fwd_workspace) }
}

/// The gradient of moe_dispatch_fwd.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_dispatch_bwd(
    ctx: *const moe_context_t,
    desc: *const moe_permute_desc_t,
    args: *const moe_dispatch_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_dispatch_bwd", ctx, desc, args, tail, ops::dispatch_bwd) }
}

/// Bytes of workspace that moe_dispatch_bwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_dispatch_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_permute_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_dispatch_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::dispatch_bwd_workspace) }
}

/// Unpermute: the weighted or plain sum of a token's rows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_combine_fwd(
    ctx: *const moe_context_t,
    desc: *const moe_permute_desc_t,
    args: *const moe_combine_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_combine_fwd", ctx, desc, args, tail, ops::combine_fwd) }
}

/// Bytes of workspace that moe_combine_fwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_combine_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_permute_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_combine_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::combine_fwd_workspace) }
}

/// The gradient of moe_combine_fwd.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_combine_bwd(
    ctx: *const moe_context_t,
    desc: *const moe_permute_desc_t,
    args: *const moe_combine_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_combine_bwd", ctx, desc, args, tail, ops::combine_bwd) }
}

/// Bytes of workspace that moe_combine_bwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_combine_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_permute_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_combine_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::combine_bwd_workspace) }
}

/// Reorders chunks of rows whose sizes are on the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_sort_chunks(
    ctx: *const moe_context_t,
    desc: *const moe_sort_chunks_desc_t,
    args: *const moe_sort_chunks_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_sort_chunks", ctx, desc, args, tail, ops::sort_chunks) }
}

/// Bytes of workspace that moe_sort_chunks needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_sort_chunks_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_sort_chunks_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_sort_chunks_workspace_size", ctx, desc, ("bytes", bytes), ops::sort_chunks_workspace) }
}

/// Rows to allocate for a plan: an upper bound of group_offsets' last entry.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_dispatch_rows_max(
    ctx: *const moe_context_t,
    desc: *const moe_dispatch_desc_t,
    rows: *mut i64,
) -> moe_status_t {
    unsafe { query("moe_dispatch_rows_max", ctx, desc, ("rows", rows), ops::dispatch_rows_max) }
}
