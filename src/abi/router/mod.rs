//! Routers: one file an operation.

mod bias_update;
mod capacity;
mod expert_choice;
mod logits;
mod loss;
mod sinkhorn;
mod topk;

pub use bias_update::*;
pub use capacity::*;
pub use expert_choice::*;
pub use logits::*;
pub use loss::*;
pub use sinkhorn::*;
pub use topk::*;
