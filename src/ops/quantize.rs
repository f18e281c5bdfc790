//! quantize: the checks of its arguments, its workspace, and which backend.

use crate::abi::quantize::*;
use crate::context::{Call, moe_context_t};
use crate::error::{Error, Result};

pub fn quantize(_: &moe_context_t, _: &moe_quantize_desc_t, _: &moe_quantize_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_quantize is not built yet"))
}

pub fn quantize_workspace(_: &moe_context_t, _: &moe_quantize_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_quantize is not built yet"))
}

pub fn dequantize(_: &moe_context_t, _: &moe_quantize_desc_t, _: &moe_dequantize_args_t, _: Call) -> Result<()> {
    Err(Error::unsupported("moe_dequantize is not built yet"))
}

pub fn dequantize_workspace(_: &moe_context_t, _: &moe_quantize_desc_t) -> Result<u64> {
    Err(Error::unsupported("moe_dequantize is not built yet"))
}
