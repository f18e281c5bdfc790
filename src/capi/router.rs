//! The header's router section.

use std::ffi::c_void;

use crate::abi::router::*;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::context::{Call, moe_context_t};
use crate::ops::router as ops;

use super::{call, query};

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

/// The router's losses alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_loss_fwd(
    ctx: *const moe_context_t,
    desc: *const moe_router_loss_desc_t,
    args: *const moe_router_loss_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_router_loss_fwd", ctx, desc, args, tail, ops::router_loss_fwd) }
}

/// Bytes of workspace that moe_router_loss_fwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_loss_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_router_loss_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_router_loss_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::router_loss_fwd_workspace) }
}

/// The gradient of moe_router_loss_fwd.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_loss_bwd(
    ctx: *const moe_context_t,
    desc: *const moe_router_loss_desc_t,
    args: *const moe_router_loss_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_router_loss_bwd", ctx, desc, args, tail, ops::router_loss_bwd) }
}

/// Bytes of workspace that moe_router_loss_bwd needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_loss_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_router_loss_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_router_loss_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::router_loss_bwd_workspace) }
}

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

/// Updates the selection bias from the load of the experts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_bias_update(
    ctx: *const moe_context_t,
    desc: *const moe_router_bias_update_desc_t,
    args: *const moe_router_bias_update_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    unsafe { call("moe_router_bias_update", ctx, desc, args, tail, ops::router_bias_update) }
}

/// Bytes of workspace that moe_router_bias_update needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_router_bias_update_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_router_bias_update_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe {
        query("moe_router_bias_update_workspace_size", ctx, desc, ("bytes", bytes), ops::router_bias_update_workspace)
    }
}

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
