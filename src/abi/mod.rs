//! What crosses the C interface: a file or folder for each section of the header, and how a caller's struct is read.

pub mod activation;
pub mod context;
pub mod dispatch;
pub mod expert_mlp;
pub mod grouped_gemm;
pub mod parallel;
pub mod quantize;
mod read;
pub mod router;
pub mod status;
pub mod types;

pub use read::{SizedStruct, read};
