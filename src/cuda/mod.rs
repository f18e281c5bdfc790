//! The CUDA backend: how each operation is computed by launches. `device` opens a GPU, `launch` is what operations use.
//!
//! An operation `X` fills one `#[repr(C)]` struct a kernel, declared in `src/cuda/X.rs`; the header test generates
//! `kernels/params/X.h` from it, and `kernels/X.cu` takes it by value. See `Device::run` for an example.

pub mod activation;
pub mod decode;
mod device;
pub mod dispatch;
mod driver;
pub mod expert_mlp;
mod fatbins;
#[macro_use]
pub mod grouped_gemm;
pub mod fused;
mod launch;
pub mod pointers;
pub mod router;
mod rows;
#[cfg(test)]
mod tests;

pub use device::Device;
pub use launch::{Launch, Launcher};
