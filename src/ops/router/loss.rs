//! router: the losses alone: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn router_loss_fwd(
    _: &moe_context_t,
    _: &moe_router_loss_desc_t,
    _: &moe_router_loss_fwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_router_loss_fwd is not built yet"))
}

pub fn router_loss_fwd_workspace(_: &moe_context_t, _: &moe_router_loss_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_router_loss_fwd is not built yet"))
}

pub fn router_loss_bwd(
    _: &moe_context_t,
    _: &moe_router_loss_desc_t,
    _: &moe_router_loss_bwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_router_loss_bwd is not built yet"))
}

pub fn router_loss_bwd_workspace(_: &moe_context_t, _: &moe_router_loss_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_router_loss_bwd is not built yet"))
}
