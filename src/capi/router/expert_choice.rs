//! router: expert choice.

use std::ffi::c_void;

use crate::abi::router::*;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::capi::{call, query};
use crate::context::{Call, moe_context_t};
use crate::ops::router as ops;

/// Expert choice.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_expert_choice_fwd(
    ctx: *const moe_context_t,
    desc: *const moe_expert_choice_desc_t,
    args: *const moe_expert_choice_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_expert_choice_fwd", ctx, desc, args, tail, ops::expert_choice_fwd) }
}

/// Bytes of workspace that moe_expert_choice_fwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_expert_choice_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_expert_choice_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe {
        query("moe_expert_choice_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::expert_choice_fwd_workspace)
    }
}

/// The gradient of moe_expert_choice_fwd's weights.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_expert_choice_bwd(
    ctx: *const moe_context_t,
    desc: *const moe_expert_choice_desc_t,
    args: *const moe_expert_choice_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_expert_choice_bwd", ctx, desc, args, tail, ops::expert_choice_bwd) }
}

/// Bytes of workspace that moe_expert_choice_bwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_expert_choice_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_expert_choice_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe {
        query("moe_expert_choice_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::expert_choice_bwd_workspace)
    }
}
