//! router: scores, selection, weights and losses: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn router_fwd(_: &moe_context_t, _: &moe_router_desc_t, _: &moe_router_fwd_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_router_fwd is not built yet"))
}

pub fn router_fwd_workspace(_: &moe_context_t, _: &moe_router_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_router_fwd is not built yet"))
}

pub fn router_bwd(_: &moe_context_t, _: &moe_router_desc_t, _: &moe_router_bwd_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_router_bwd is not built yet"))
}

pub fn router_bwd_workspace(_: &moe_context_t, _: &moe_router_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_router_bwd is not built yet"))
}
