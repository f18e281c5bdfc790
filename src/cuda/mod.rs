//! The CUDA backend.

use crate::abi::context::moe_context_info_t;
use crate::error::{Error, Result};

pub struct Device {
    info: moe_context_info_t,
}

impl Device {
    pub fn open(_: i32) -> Result<Self> {
        Err(Error::NoDriver("the CUDA backend is not built yet".into()))
    }

    pub fn info(&self) -> moe_context_info_t {
        self.info
    }
}
