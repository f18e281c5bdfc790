//! router: the checks of its arguments, its workspace, and which backend.

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
