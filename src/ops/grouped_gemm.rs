//! grouped_gemm: the checks of its arguments, its workspace, and which backend.

use crate::abi::grouped_gemm::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn grouped_gemm_fwd(
    _: &moe_context_t,
    _: &moe_grouped_gemm_desc_t,
    _: &moe_grouped_gemm_fwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_grouped_gemm_fwd is not built yet"))
}

pub fn grouped_gemm_fwd_workspace(_: &moe_context_t, _: &moe_grouped_gemm_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_grouped_gemm_fwd is not built yet"))
}

pub fn grouped_gemm_bwd(
    _: &moe_context_t,
    _: &moe_grouped_gemm_desc_t,
    _: &moe_grouped_gemm_bwd_args_t,
    _: Call,
) -> Result<()> {
    Err(Error::unsupported("moe_grouped_gemm_bwd is not built yet"))
}

pub fn grouped_gemm_bwd_workspace(_: &moe_context_t, _: &moe_grouped_gemm_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_grouped_gemm_bwd is not built yet"))
}
