//! The header's router section: one file an operation.

pub mod bias_update;
pub mod capacity;
pub mod expert_choice;
pub mod logits;
pub mod loss;
pub mod sinkhorn;
pub mod topk;
