//! Operations: one file a section. Each checks its arguments, lays out its workspace and picks the backend.

pub mod activation;
pub mod dispatch;
pub mod expert_mlp;
pub mod grouped_gemm;
pub mod parallel;
pub mod quantize;
pub mod router;
