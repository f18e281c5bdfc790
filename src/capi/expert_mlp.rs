//! The header's expert_mlp section.

use std::ffi::c_void;

use crate::abi::expert_mlp::*;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::context::{Call, moe_context_t};
use crate::ops::expert_mlp as ops;

use super::{call, query};

/// Gather, fc1, activation, fc2, combine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_expert_mlp_fwd(
    ctx: *const moe_context_t,
    desc: *const moe_expert_mlp_desc_t,
    args: *const moe_expert_mlp_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_expert_mlp_fwd", ctx, desc, args, tail, ops::expert_mlp_fwd) }
}

/// Bytes of workspace that moe_expert_mlp_fwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_expert_mlp_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_expert_mlp_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_expert_mlp_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::expert_mlp_fwd_workspace) }
}

/// The gradients of moe_expert_mlp_fwd.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_expert_mlp_bwd(
    ctx: *const moe_context_t,
    desc: *const moe_expert_mlp_desc_t,
    args: *const moe_expert_mlp_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_expert_mlp_bwd", ctx, desc, args, tail, ops::expert_mlp_bwd) }
}

/// Bytes of workspace that moe_expert_mlp_bwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_expert_mlp_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_expert_mlp_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_expert_mlp_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::expert_mlp_bwd_workspace) }
}

/// Delayed weight gradients, from what moe_expert_mlp_bwd left in dh and weighted_act.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_expert_mlp_wgrad(
    ctx: *const moe_context_t,
    desc: *const moe_expert_mlp_desc_t,
    args: *const moe_expert_mlp_wgrad_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_expert_mlp_wgrad", ctx, desc, args, tail, ops::expert_mlp_wgrad) }
}

/// Bytes of workspace that moe_expert_mlp_wgrad needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_expert_mlp_wgrad_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_expert_mlp_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe {
        query("moe_expert_mlp_wgrad_workspace_size", ctx, desc, ("bytes", bytes), ops::expert_mlp_wgrad_workspace)
    }
}
