//! router: Sinkhorn: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn sinkhorn(_: &moe_context_t, _: &moe_sinkhorn_desc_t, _: &moe_sinkhorn_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_sinkhorn is not built yet"))
}

pub fn sinkhorn_workspace(_: &moe_context_t, _: &moe_sinkhorn_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_sinkhorn is not built yet"))
}

pub fn sinkhorn_step(_: &moe_context_t, _: &moe_sinkhorn_desc_t, _: &moe_sinkhorn_step_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_sinkhorn_step is not built yet"))
}

pub fn sinkhorn_step_workspace(_: &moe_context_t, _: &moe_sinkhorn_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_sinkhorn_step is not built yet"))
}
