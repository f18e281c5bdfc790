//! router: the router's GEMM: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn router_logits_fwd(
    _: &moe_context_t,
    _: &moe_router_logits_desc_t,
    _: &moe_router_logits_fwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_router_logits_fwd is not built yet"))
}

pub fn router_logits_fwd_workspace(_: &moe_context_t, _: &moe_router_logits_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_router_logits_fwd is not built yet"))
}

pub fn router_logits_bwd(
    _: &moe_context_t,
    _: &moe_router_logits_desc_t,
    _: &moe_router_logits_bwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_router_logits_bwd is not built yet"))
}

pub fn router_logits_bwd_workspace(_: &moe_context_t, _: &moe_router_logits_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_router_logits_bwd is not built yet"))
}
