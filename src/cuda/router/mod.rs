//! Routers on a GPU.

pub mod sinkhorn;
mod topk;

pub use topk::{bwd, bwd_layout, fwd, fwd_layout, loss_bwd, loss_fwd};
