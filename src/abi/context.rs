//! Contexts.
#![allow(non_camel_case_types)]

/// The CPU backend: the same functions on host pointers.
pub const MOE_DEVICE_CPU: i32 = -1;

/// What a context runs on.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_context_info_t {
    /// sizeof(moe_context_info_t), set by the caller.
    pub struct_size: u32,
    /// The ordinal given to moe_context_create, or MOE_DEVICE_CPU.
    pub device: i32,
    /// Streaming multiprocessors; on the CPU, threads.
    pub multiprocessors: i32,
    /// Compute capability, 10*major + minor; 0 on the CPU.
    pub compute_capability: i32,
    /// CUDA version of the driver, 1000*major + 10*minor; 0 on the CPU.
    pub driver_version: i32,
    pub reserved: i32,
}
