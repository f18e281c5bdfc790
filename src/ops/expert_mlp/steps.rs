//! What the expert MLP is made of: problems of other operations, and four small ones of its own. The order of the
//! steps is written once, for all backends.

use crate::check::OutputMode;
use crate::error::Result;
use crate::groups::{Gather, Groups, RowWeights};
use crate::ops::activation;
use crate::ops::dispatch::{CombineFwd, DispatchBwd};
use crate::ops::grouped_gemm::{BiasGrad, Linear, Wgrad};
use crate::tensor::{Grouped, Matrix};

use super::{LinearActivate, LinearActivateBackward};

/// A backend: each step is done, or enqueued, behind the one before it.
pub trait Steps: Sized {
    fn linear(&self, step: &Linear) -> Result<()>;

    /// fc1 and the activation: in one where a backend can.
    fn linear_activate(&self, step: &LinearActivate) -> Result<()> {
        step.by_parts(self)
    }

    /// Back through fc2 and the activation: in one where a backend can.
    fn linear_activate_backward(&self, step: &LinearActivateBackward) -> Result<()> {
        step.by_parts(self)
    }

    /// A product right behind `linear_activate`, whose weights and groups are older than that step.
    fn linear_behind_activation(&self, step: &Linear) -> Result<()> {
        self.linear(step)
    }

    fn wgrad(&self, step: &Wgrad) -> Result<()>;
    fn bias_grad(&self, step: &BiasGrad) -> Result<()>;
    fn activate(&self, step: &activation::Forward) -> Result<()>;
    fn activate_backward(&self, step: &activation::Backward) -> Result<()>;
    fn combine(&self, step: &CombineFwd) -> Result<()>;
    fn slot_gradients(&self, step: &DispatchBwd) -> Result<()>;
    fn scale_rows(&self, step: &ScaleRows) -> Result<()>;
    fn row_dots(&self, step: &RowDots) -> Result<()>;
    fn zero_gaps(&self, step: &ZeroGaps) -> Result<()>;
    fn present_sizes(&self, step: &PresentSizes) -> Result<()>;
}

/// to[r, :columns] = weight * from[source of r] (+ to[r]) for each true row; gaps between groups become zero.
#[derive(Clone, Copy, Debug)]
pub struct ScaleRows {
    pub groups: Groups,
    pub columns: i64,
    pub from: Matrix,
    pub gather: Option<Gather>,
    pub weights: RowWeights,
    /// Its dtype may differ from that of `from`.
    pub to: Matrix,
    pub mode: OutputMode,
}

/// dots[r] = <a[source of r], b[r]>, or <a[source of r], b[group of r]>, for each true row; 0 in gaps.
#[derive(Clone, Copy, Debug)]
pub struct RowDots {
    pub groups: Groups,
    pub columns: i64,
    pub a: Matrix,
    pub gather: Option<Gather>,
    /// Its dtype may differ from that of `a`.
    pub b: Matrix,
    pub b_by_group: bool,
    /// [R].
    pub dots: Matrix,
}

/// Rows between a group's true rows and the next group become zero, except where the output is added to.
#[derive(Clone, Copy, Debug)]
pub struct ZeroGaps {
    pub groups: Groups,
    pub columns: i64,
    pub matrix: Matrix,
    pub mode: OutputMode,
}

/// sizes[g] = the true rows of group g, none where one of its weights is absent.
#[derive(Clone, Copy, Debug)]
pub struct PresentSizes {
    pub groups: Groups,
    pub weights: [Option<Grouped>; 3],
    pub sizes: *mut i64,
}
