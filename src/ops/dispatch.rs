//! dispatch: the checks of its arguments, its workspace, and which backend.

use crate::abi::dispatch::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn dispatch_plan(_: &moe_context_t, _: &moe_dispatch_desc_t, _: &moe_dispatch_plan_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_dispatch_plan is not built yet"))
}

pub fn dispatch_plan_workspace(_: &moe_context_t, _: &moe_dispatch_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_dispatch_plan is not built yet"))
}

pub fn dispatch_fwd(_: &moe_context_t, _: &moe_permute_desc_t, _: &moe_dispatch_fwd_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_dispatch_fwd is not built yet"))
}

pub fn dispatch_fwd_workspace(_: &moe_context_t, _: &moe_permute_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_dispatch_fwd is not built yet"))
}

pub fn dispatch_bwd(_: &moe_context_t, _: &moe_permute_desc_t, _: &moe_dispatch_bwd_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_dispatch_bwd is not built yet"))
}

pub fn dispatch_bwd_workspace(_: &moe_context_t, _: &moe_permute_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_dispatch_bwd is not built yet"))
}

pub fn combine_fwd(_: &moe_context_t, _: &moe_permute_desc_t, _: &moe_combine_fwd_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_combine_fwd is not built yet"))
}

pub fn combine_fwd_workspace(_: &moe_context_t, _: &moe_permute_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_combine_fwd is not built yet"))
}

pub fn combine_bwd(_: &moe_context_t, _: &moe_permute_desc_t, _: &moe_combine_bwd_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_combine_bwd is not built yet"))
}

pub fn combine_bwd_workspace(_: &moe_context_t, _: &moe_permute_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_combine_bwd is not built yet"))
}

pub fn sort_chunks(_: &moe_context_t, _: &moe_sort_chunks_desc_t, _: &moe_sort_chunks_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_sort_chunks is not built yet"))
}

pub fn sort_chunks_workspace(_: &moe_context_t, _: &moe_sort_chunks_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_sort_chunks is not built yet"))
}

pub fn dispatch_rows_max(_: &moe_context_t, _: &moe_dispatch_desc_t) -> Result<i64> {
    Err(Error::unsupported("moe_dispatch_rows_max is not built yet"))
}
