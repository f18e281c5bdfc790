//! Routers: one file an operation.

pub mod bias_update;
pub mod capacity;
pub mod expert_choice;
pub mod logits;
pub mod loss;
pub mod sinkhorn;
pub mod topk;

pub use bias_update::{router_bias_update, router_bias_update_workspace};
pub use capacity::{capacity_bwd, capacity_bwd_workspace, capacity_fwd, capacity_fwd_workspace, capacity_value};
pub use expert_choice::{
    expert_choice_bwd, expert_choice_bwd_workspace, expert_choice_fwd, expert_choice_fwd_workspace,
};
pub use logits::{router_logits_bwd, router_logits_bwd_workspace, router_logits_fwd, router_logits_fwd_workspace};
pub use loss::{router_loss_bwd, router_loss_bwd_workspace, router_loss_fwd, router_loss_fwd_workspace};
pub use sinkhorn::{sinkhorn, sinkhorn_step, sinkhorn_step_workspace, sinkhorn_workspace};
pub use topk::{router_bwd, router_bwd_workspace, router_fwd, router_fwd_workspace};
