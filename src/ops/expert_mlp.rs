//! expert_mlp: the checks of its arguments, its workspace, and which backend.

use crate::abi::expert_mlp::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn expert_mlp_fwd(
    _: &moe_context_t,
    _: &moe_expert_mlp_desc_t,
    _: &moe_expert_mlp_fwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_expert_mlp_fwd is not built yet"))
}

pub fn expert_mlp_fwd_workspace(_: &moe_context_t, _: &moe_expert_mlp_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_expert_mlp_fwd is not built yet"))
}

pub fn expert_mlp_bwd(
    _: &moe_context_t,
    _: &moe_expert_mlp_desc_t,
    _: &moe_expert_mlp_bwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_expert_mlp_bwd is not built yet"))
}

pub fn expert_mlp_bwd_workspace(_: &moe_context_t, _: &moe_expert_mlp_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_expert_mlp_bwd is not built yet"))
}

pub fn expert_mlp_wgrad(
    _: &moe_context_t,
    _: &moe_expert_mlp_desc_t,
    _: &moe_expert_mlp_wgrad_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_expert_mlp_wgrad is not built yet"))
}

pub fn expert_mlp_wgrad_workspace(_: &moe_context_t, _: &moe_expert_mlp_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_expert_mlp_wgrad is not built yet"))
}
