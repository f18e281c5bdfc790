//! libmoe: Mixture-of-Experts layers behind one C header.
//!
//! A call goes down these floors and never back up: `capi` (C arguments) -> `ops` (the validated problem)
//! -> `cpu` or `cuda` (how to compute) -> `kernels/`. The rest is ground that knows nothing above it.

// Every exported function has the contract of the header: see docs/conventions.md.
#![allow(clippy::missing_safety_doc)]
// The CPU backend alone has no use for some of the ground.
#![cfg_attr(not(feature = "cuda"), allow(unused))]

#[cfg(not(panic = "unwind"))]
compile_error!("libmoe turns panics into statuses: build it with panic = \"unwind\"");

pub mod abi;
pub mod capi;
mod check;
pub mod context;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod dtype;
mod error;
mod groups;
mod log;
mod ops;
mod philox;
mod report;
mod tensor;
mod workspace;
