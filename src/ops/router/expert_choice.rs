//! router: expert choice: checks, workspace, and which backend.

use crate::abi::router::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn expert_choice_fwd(
    _: &moe_context_t,
    _: &moe_expert_choice_desc_t,
    _: &moe_expert_choice_fwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_expert_choice_fwd is not built yet"))
}

pub fn expert_choice_fwd_workspace(_: &moe_context_t, _: &moe_expert_choice_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_expert_choice_fwd is not built yet"))
}

pub fn expert_choice_bwd(
    _: &moe_context_t,
    _: &moe_expert_choice_desc_t,
    _: &moe_expert_choice_bwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_expert_choice_bwd is not built yet"))
}

pub fn expert_choice_bwd_workspace(_: &moe_context_t, _: &moe_expert_choice_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_expert_choice_bwd is not built yet"))
}
