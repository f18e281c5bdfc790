//! The expert MLP: the checks of its arguments, its workspace, its steps and which backend takes them.

mod backward;
mod check;
mod fc1;
mod fc2;
mod forward;
mod steps;
mod wgrad;

pub use fc1::{Fc1, Input, LinearActivate};
pub use fc2::{DOT_COLUMNS, LinearActivateBackward};
pub use steps::{PresentSizes, RowDots, ScaleRows, Steps, ZeroGaps};

use crate::abi::expert_mlp::*;
use crate::abi::types::{MOE_FAULT_TOKEN_INDEX, moe_device_report_t};
use crate::check::{Count, OutputMode};
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::groups::{Gather, Groups, RowWeights};
use crate::ops::activation::Activation;
use crate::ops::dispatch::{Maps, Weights};
use crate::ops::grouped_gemm::{self, WeightLayout};
use crate::tensor::{Grouped, Matrix};
use crate::workspace::{Layout, Part, Workspace};

use backward::Backward;
use forward::Forward;
use wgrad::Wgrad;

/// Where router weights multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsAt {
    Combine,
    Activation,
    Input,
}

/// The checked description.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub dtype: Dtype,
    /// T, R, K, E, d.
    pub tokens: i64,
    pub rows: i64,
    pub top_k: i64,
    pub experts: i64,
    pub hidden: i64,
    pub activation: Activation,
    /// Rows of x are gathered from tokens.
    pub gathers: bool,
    /// Rows of y are combined into tokens.
    pub combines: bool,
    pub weights_at: WeightsAt,
    pub tf32: bool,
    /// A row's result has the same bits whatever the other rows are.
    pub batch_invariant: bool,
    pub w1_layout: WeightLayout,
    pub w2_layout: WeightLayout,
}

impl Shape {
    /// T*K.
    pub fn slots(&self) -> i64 {
        self.tokens * self.top_k
    }

    /// What small sums a row are kept in.
    pub fn real(&self) -> Dtype {
        if self.dtype == Dtype::Fp64 { Dtype::Fp64 } else { Dtype::Fp32 }
    }

    /// The weights of rows of y: none where weights multiply the input.
    fn output_weights(&self, routing: &Routing) -> RowWeights {
        if self.weights_at == WeightsAt::Input { RowWeights::one() } else { routing.row_weights }
    }
}

/// The maps and router weights of a call.
#[derive(Clone, Copy, Debug)]
pub struct Routing {
    pub groups: Groups,
    pub tokens: Count,
    pub token_of_row: Option<Matrix>,
    pub row_of_slot: Option<Matrix>,
    pub slot_offsets: Option<Matrix>,
    /// As the combine takes them.
    pub weights: Weights,
    /// The same for rows. Not to be used where a map that this needs was not asked for.
    pub row_weights: RowWeights,
}

impl Routing {
    /// The source rows of x or dy where that holds tokens.
    fn gather(&self, from_tokens: bool) -> Option<Gather> {
        let index = self.token_of_row.filter(|_| from_tokens)?;
        Some(Gather { index, rows: self.tokens, fault: MOE_FAULT_TOKEN_INDEX })
    }

    /// The maps between tokens and rows.
    fn maps(&self, shape: &Shape) -> Maps {
        Maps {
            tokens: self.tokens,
            top_k: shape.top_k,
            rows: shape.rows,
            groups: shape.experts,
            expert_begin: 0,
            token_of_row: self.token_of_row,
            slot_of_row: None,
            row_of_slot: self.row_of_slot,
            slot_offsets: self.slot_offsets,
            group_offsets: self.groups.offsets,
        }
    }
}

impl Routing {
    fn weighted(&self) -> bool {
        !matches!(self.weights, Weights::None)
    }
}

pub const OVERWRITE: OutputMode = OutputMode { add: false, device: std::ptr::null() };
const ADD: OutputMode = OutputMode { add: true, device: std::ptr::null() };

/// The groups as steps see them: those with an absent weight are empty. `room` holds E sizes.
fn present_groups(groups: Groups, fc1: &Fc1, w2: Grouped, room: *mut i64, steps: &impl Steps) -> Result<Groups> {
    let weights = [Some(fc1.w1), fc1.up, Some(w2)];
    if weights.iter().flatten().all(|weight| weight.pointers.is_null()) {
        return Ok(groups);
    }
    steps.present_sizes(&PresentSizes { groups, weights, sizes: room })?;
    Ok(Groups { sizes: room, ..groups })
}

/// A checked call: its workspace, and its steps.
trait Operation {
    /// Where things lie in the workspace.
    type Scratch;
    fn shape(&self) -> &Shape;
    fn plan(shape: &Shape) -> (Layout, Self::Scratch);
    fn run(&self, scratch: &Self::Scratch, workspace: &Workspace, steps: &impl Steps) -> Result<()>;
}

/// An operation's workspace: its own parts, and the backend's.
fn plan<O: Operation>(ctx: &moe_context_t, shape: &Shape) -> (Layout, O::Scratch, Part) {
    let (mut layout, scratch) = O::plan(shape);
    let room = layout.part(grouped_gemm::room(ctx, shape.experts));
    (layout, scratch, room)
}

fn start<O: Operation>(ctx: &moe_context_t, op: O, report: *mut moe_device_report_t, call: Call) -> Result<()> {
    let (layout, scratch, room) = plan::<O>(ctx, op.shape());
    let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
    match &ctx.backend {
        Backend::Cpu => ctx
            .with_report(report, |report| op.run(&scratch, &workspace, &cpu::expert_mlp::CpuSteps { report: &report })),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => device.run(report, call.stream, |launcher| {
            let batch_invariant = op.shape().batch_invariant;
            let room = workspace.at(room);
            op.run(&scratch, &workspace, &cuda::expert_mlp::CudaSteps { launcher, batch_invariant, room })
        }),
    }
}

fn workspace<O: Operation>(ctx: &moe_context_t, desc: &moe_expert_mlp_desc_t) -> Result<u64> {
    check::shape(ctx, desc).map(|shape| plan::<O>(ctx, &shape).0.bytes())
}

pub fn expert_mlp_fwd(
    ctx: &moe_context_t,
    desc: &moe_expert_mlp_desc_t,
    args: &moe_expert_mlp_fwd_args_t,
    call: Call,
) -> Result<()> {
    start(ctx, check::forward(ctx, desc, args)?, args.report, call)
}

pub fn expert_mlp_fwd_workspace(ctx: &moe_context_t, desc: &moe_expert_mlp_desc_t) -> Result<u64> {
    workspace::<Forward>(ctx, desc)
}

pub fn expert_mlp_bwd(
    ctx: &moe_context_t,
    desc: &moe_expert_mlp_desc_t,
    args: &moe_expert_mlp_bwd_args_t,
    call: Call,
) -> Result<()> {
    start(ctx, check::backward(ctx, desc, args)?, args.report, call)
}

pub fn expert_mlp_bwd_workspace(ctx: &moe_context_t, desc: &moe_expert_mlp_desc_t) -> Result<u64> {
    workspace::<Backward>(ctx, desc)
}

pub fn expert_mlp_wgrad(
    ctx: &moe_context_t,
    desc: &moe_expert_mlp_desc_t,
    args: &moe_expert_mlp_wgrad_args_t,
    call: Call,
) -> Result<()> {
    start(ctx, check::wgrad(ctx, desc, args)?, args.report, call)
}

pub fn expert_mlp_wgrad_workspace(ctx: &moe_context_t, desc: &moe_expert_mlp_desc_t) -> Result<u64> {
    workspace::<Wgrad>(ctx, desc)
}
