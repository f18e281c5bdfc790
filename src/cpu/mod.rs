//! The CPU backend: the same operations on host pointers. Right first, and on all cores.

pub mod activation;
pub mod dispatch;
pub mod element;
pub mod expert_mlp;
mod gemm;
pub mod grouped_gemm;
pub mod groups;
pub mod router;

/// Threads that operations run on.
pub fn threads() -> i32 {
    rayon::current_num_threads() as i32
}
