//! The header's parallel section.

use std::ffi::c_void;

use crate::abi::parallel::*;
use crate::abi::read;
use crate::abi::status::moe_status_t;
use crate::abi::types::moe_stream_t;
use crate::check::present;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result, boundary};
use crate::ops::parallel::{self as ops, moe_comm_t};

use super::{call, context, query};

/// A caller's communicator.
///
/// # Safety
/// NULL, or from moe_comm_from_nccl or moe_comm_from_callbacks and not destroyed.
unsafe fn communicator<'a>(comm: *const moe_comm_t) -> Result<&'a moe_comm_t> {
    unsafe { comm.as_ref() }.ok_or_else(|| Error::argument("comm", "NULL", "a communicator"))
}

/// Wraps the caller's ncclComm_t, which must outlive the communicator.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_comm_from_nccl(
    ctx: *const moe_context_t,
    nccl_comm: *mut c_void,
    comm: *mut *mut moe_comm_t,
) -> moe_status_t {
    boundary("moe_comm_from_nccl", || {
        let (ctx, comm) = (unsafe { context(ctx)? }, present("comm", comm)?.cast_mut());
        let nccl_comm = present("nccl_comm", nccl_comm.cast::<u8>())?;
        let wrapped = Box::new(ops::comm_from_nccl(ctx, nccl_comm.cast_mut().cast())?);
        unsafe { comm.write(Box::into_raw(wrapped)) };
        Ok(())
    })
}

/// A communicator over the caller's own transport.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_comm_from_callbacks(
    ctx: *const moe_context_t,
    callbacks: *const moe_comm_callbacks_t,
    comm: *mut *mut moe_comm_t,
) -> moe_status_t {
    boundary("moe_comm_from_callbacks", || {
        let (ctx, callbacks) = unsafe { (context(ctx)?, read(callbacks, "callbacks")?) };
        let comm = present("comm", comm)?.cast_mut();
        let wrapped = Box::new(ops::comm_from_callbacks(ctx, &callbacks)?);
        unsafe { comm.write(Box::into_raw(wrapped)) };
        Ok(())
    })
}

/// Registers a buffer that peers may write to: every rank calls it in the same order with the same size.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_comm_register(comm: *mut moe_comm_t, buffer: *mut c_void, bytes: u64) -> moe_status_t {
    boundary("moe_comm_register", || {
        let comm = unsafe { communicator(comm)? };
        let buffer = present("buffer", buffer.cast::<u8>())?;
        ops::comm_register(comm, buffer.cast_mut().cast(), bytes)
    })
}

/// Frees a communicator, not what it wraps. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_comm_destroy(comm: *mut moe_comm_t) -> moe_status_t {
    boundary("moe_comm_destroy", || {
        if !comm.is_null() {
            drop(unsafe { Box::from_raw(comm) });
        }
        Ok(())
    })
}

/// Bytes of the handle that carries state from moe_ep_dispatch_fwd to the other calls.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_ep_handle_size(
    ctx: *const moe_context_t,
    desc: *const moe_ep_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_ep_handle_size", ctx, desc, ("bytes", bytes), ops::ep_handle_size) }
}

/// Rows to the ranks of their experts, sorted by expert.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_ep_dispatch_fwd(
    ctx: *const moe_context_t,
    comm: *const moe_comm_t,
    desc: *const moe_ep_desc_t,
    args: *const moe_ep_dispatch_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    let op =
        |ctx: &_, desc: &_, args: &_, tail| ops::ep_dispatch_fwd(ctx, unsafe { communicator(comm)? }, desc, args, tail);
    unsafe { call("moe_ep_dispatch_fwd", ctx, desc, args, tail, op) }
}

/// Bytes of workspace that moe_ep_dispatch_fwd needs.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_ep_dispatch_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_ep_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_ep_dispatch_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::ep_dispatch_fwd_workspace) }
}

/// The gradient of moe_ep_dispatch_fwd.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_ep_dispatch_bwd(
    ctx: *const moe_context_t,
    comm: *const moe_comm_t,
    desc: *const moe_ep_desc_t,
    args: *const moe_ep_dispatch_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    let op =
        |ctx: &_, desc: &_, args: &_, tail| ops::ep_dispatch_bwd(ctx, unsafe { communicator(comm)? }, desc, args, tail);
    unsafe { call("moe_ep_dispatch_bwd", ctx, desc, args, tail, op) }
}

/// Bytes of workspace that moe_ep_dispatch_bwd needs.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_ep_dispatch_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_ep_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_ep_dispatch_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::ep_dispatch_bwd_workspace) }
}

/// Rows back to their ranks, and the weighted sum.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_ep_combine_fwd(
    ctx: *const moe_context_t,
    comm: *const moe_comm_t,
    desc: *const moe_ep_desc_t,
    args: *const moe_ep_combine_fwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    let op =
        |ctx: &_, desc: &_, args: &_, tail| ops::ep_combine_fwd(ctx, unsafe { communicator(comm)? }, desc, args, tail);
    unsafe { call("moe_ep_combine_fwd", ctx, desc, args, tail, op) }
}

/// Bytes of workspace that moe_ep_combine_fwd needs.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_ep_combine_fwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_ep_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_ep_combine_fwd_workspace_size", ctx, desc, ("bytes", bytes), ops::ep_combine_fwd_workspace) }
}

/// The gradient of moe_ep_combine_fwd.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_ep_combine_bwd(
    ctx: *const moe_context_t,
    comm: *const moe_comm_t,
    desc: *const moe_ep_desc_t,
    args: *const moe_ep_combine_bwd_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    let op =
        |ctx: &_, desc: &_, args: &_, tail| ops::ep_combine_bwd(ctx, unsafe { communicator(comm)? }, desc, args, tail);
    unsafe { call("moe_ep_combine_bwd", ctx, desc, args, tail, op) }
}

/// Bytes of workspace that moe_ep_combine_bwd needs.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_ep_combine_bwd_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_ep_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_ep_combine_bwd_workspace_size", ctx, desc, ("bytes", bytes), ops::ep_combine_bwd_workspace) }
}

/// The reduction after the combine of tensor-parallel experts.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_tp_reduce(
    ctx: *const moe_context_t,
    comm: *const moe_comm_t,
    desc: *const moe_tp_reduce_desc_t,
    args: *const moe_tp_reduce_args_t,
    workspace: *mut c_void,
    workspace_size: u64,
    stream: moe_stream_t,
) -> moe_status_t {
    let tail = Call { workspace, workspace_size, stream };
    let op = |ctx: &_, desc: &_, args: &_, tail| ops::tp_reduce(ctx, unsafe { communicator(comm)? }, desc, args, tail);
    unsafe { call("moe_tp_reduce", ctx, desc, args, tail, op) }
}

/// Bytes of workspace that moe_tp_reduce needs.
///
/// Not built yet: answers MOE_STATUS_UNSUPPORTED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moe_tp_reduce_workspace_size(
    ctx: *const moe_context_t,
    desc: *const moe_tp_reduce_desc_t,
    bytes: *mut u64,
) -> moe_status_t {
    unsafe { query("moe_tp_reduce_workspace_size", ctx, desc, ("bytes", bytes), ops::tp_reduce_workspace) }
}
