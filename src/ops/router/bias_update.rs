//! router: the aux-loss-free bias: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn router_bias_update(
    _: &moe_context_t,
    _: &moe_router_bias_update_desc_t,
    _: &moe_router_bias_update_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_router_bias_update is not built yet"))
}

pub fn router_bias_update_workspace(_: &moe_context_t, _: &moe_router_bias_update_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_router_bias_update is not built yet"))
}
