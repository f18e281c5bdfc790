//! activation: the checks of its arguments, its workspace, and which backend.

use crate::abi::activation::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn activation_fwd(
    _: &moe_context_t,
    _: &moe_activation_desc_t,
    _: &moe_activation_fwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_activation_fwd is not built yet"))
}

pub fn activation_fwd_workspace(_: &moe_context_t, _: &moe_activation_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_activation_fwd is not built yet"))
}

pub fn activation_bwd(
    _: &moe_context_t,
    _: &moe_activation_desc_t,
    _: &moe_activation_bwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_activation_bwd is not built yet"))
}

pub fn activation_bwd_workspace(_: &moe_context_t, _: &moe_activation_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_activation_bwd is not built yet"))
}
