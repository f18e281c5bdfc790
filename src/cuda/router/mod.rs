//! Routers on a GPU.

pub mod bias_update;
pub mod capacity;
pub mod expert_choice;
pub mod logits;
mod quick;
pub mod sinkhorn;
mod topk;

pub use topk::{bwd, bwd_layout, fwd, fwd_layout, loss_bwd, loss_fwd};

/// Tokens of a tile of kernels/router_columns.cuh, whose keys have so many bytes: what fits any GPU.
fn key_tile(experts: i64, key: i64) -> i64 {
    [32, 16].into_iter().find(|&tokens| tile_bytes(tokens, experts, key) <= 48 << 10).unwrap_or(8)
}

fn tile_bytes(tokens: i64, experts: i64, key: i64) -> i64 {
    experts * (tokens + 1) * key
}

fn ceil_div(a: i64, b: i64) -> i64 {
    (a + b - 1) / b
}
