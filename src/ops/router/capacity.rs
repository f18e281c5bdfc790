//! router: expert capacity and token dropping: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn capacity_fwd(_: &moe_context_t, _: &moe_capacity_desc_t, _: &moe_capacity_fwd_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_capacity_fwd is not built yet"))
}

pub fn capacity_fwd_workspace(_: &moe_context_t, _: &moe_capacity_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_capacity_fwd is not built yet"))
}

pub fn capacity_bwd(_: &moe_context_t, _: &moe_capacity_desc_t, _: &moe_capacity_bwd_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_capacity_bwd is not built yet"))
}

pub fn capacity_bwd_workspace(_: &moe_context_t, _: &moe_capacity_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_capacity_bwd is not built yet"))
}

pub fn capacity_value(_: &moe_context_t, _: &moe_capacity_desc_t) -> Result<i64> {
    Err(Error::unsupported("moe_capacity_value is not built yet"))
}
