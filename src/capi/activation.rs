//! The header's activation section.

use std::ffi::c_void;

use crate::abi::activation::*;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::context::{Call, moe_context_t};
use crate::ops::activation as ops;

use super::{call, query};

/// y = act(h), times a weight a row if given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_activation_fwd(
    ctx: *const moe_context_t,
    desc: *const moe_activation_desc_t,
    args: *const moe_activation_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_activation_fwd", ctx, desc, args, tail, ops::activation_fwd) }
}

/// Bytes of workspace that moe_activation_fwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_activation_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_activation_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_activation_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::activation_fwd_workspace) }
}

/// The gradient of moe_activation_fwd.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_activation_bwd(
    ctx: *const moe_context_t,
    desc: *const moe_activation_desc_t,
    args: *const moe_activation_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_activation_bwd", ctx, desc, args, tail, ops::activation_bwd) }
}

/// Bytes of workspace that moe_activation_bwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_activation_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_activation_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_activation_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::activation_bwd_workspace) }
}
