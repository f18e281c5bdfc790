//! parallel: the checks of its arguments, its workspace, and which backend.

use std::ffi::c_void;

use crate::abi::parallel::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

/// A group of ranks that exchange rows. Made by moe_comm_from_nccl or moe_comm_from_callbacks.
#[allow(non_camel_case_types)]
pub struct moe_comm_t {
    _transport: (),
}

pub fn comm_from_nccl(_: &moe_context_t, _: *mut c_void) -> Result<moe_comm_t> {
    Err(Error::unsupported("moe_comm_from_nccl is not built yet"))
}

pub fn comm_from_callbacks(_: &moe_context_t, _: &moe_comm_callbacks_t) -> Result<moe_comm_t> {
    Err(Error::unsupported("moe_comm_from_callbacks is not built yet"))
}

pub fn comm_register(_: &moe_comm_t, _: *mut c_void, _: u64) -> Result<()> {
    Err(Error::unsupported("moe_comm_register is not built yet"))
}

pub fn ep_handle_size(_: &moe_context_t, _: &moe_ep_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_ep_handle_size is not built yet"))
}

pub fn ep_dispatch_fwd(
    _: &moe_context_t,
    _: &moe_comm_t,
    _: &moe_ep_desc_t,
    _: &moe_ep_dispatch_fwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_ep_dispatch_fwd is not built yet"))
}

pub fn ep_dispatch_fwd_workspace(_: &moe_context_t, _: &moe_ep_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_ep_dispatch_fwd is not built yet"))
}

pub fn ep_dispatch_bwd(
    _: &moe_context_t,
    _: &moe_comm_t,
    _: &moe_ep_desc_t,
    _: &moe_ep_dispatch_bwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_ep_dispatch_bwd is not built yet"))
}

pub fn ep_dispatch_bwd_workspace(_: &moe_context_t, _: &moe_ep_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_ep_dispatch_bwd is not built yet"))
}

pub fn ep_combine_fwd(
    _: &moe_context_t,
    _: &moe_comm_t,
    _: &moe_ep_desc_t,
    _: &moe_ep_combine_fwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_ep_combine_fwd is not built yet"))
}

pub fn ep_combine_fwd_workspace(_: &moe_context_t, _: &moe_ep_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_ep_combine_fwd is not built yet"))
}

pub fn ep_combine_bwd(
    _: &moe_context_t,
    _: &moe_comm_t,
    _: &moe_ep_desc_t,
    _: &moe_ep_combine_bwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_ep_combine_bwd is not built yet"))
}

pub fn ep_combine_bwd_workspace(_: &moe_context_t, _: &moe_ep_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_ep_combine_bwd is not built yet"))
}

pub fn tp_reduce(
    _: &moe_context_t,
    _: &moe_comm_t,
    _: &moe_tp_reduce_desc_t,
    _: &moe_tp_reduce_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_tp_reduce is not built yet"))
}

pub fn tp_reduce_workspace(_: &moe_context_t, _: &moe_tp_reduce_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_tp_reduce is not built yet"))
}
