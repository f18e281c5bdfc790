//! fc2 by parts of its outputs; back through fc2 and the activation, up to the gradient of h.

use crate::error::Result;
use crate::groups::{Gather, Groups, RowWeights};
use crate::ops::activation::{self, Extent};
use crate::ops::grouped_gemm::{Linear, Output, WeightLayout};
use crate::tensor::{Grouped, Matrix};

use super::{OVERWRITE, RowDots, Shape, Steps};

/// Bytes of fc2's output [R, d] from which on it is made, and combined, in two halves: it is the largest part of what a
/// forward holds, and a launch more is then nothing beside its time.
const LARGE: i64 = 256 << 20;

/// Columns of fc2's output that are made at a time. Halves are of whole tiles.
pub fn outputs_at_once(shape: &Shape) -> i64 {
    let bytes = shape.rows.saturating_mul(shape.hidden * shape.dtype.size());
    if shape.combines && bytes > LARGE && shape.hidden % 512 == 0 { shape.hidden / 2 } else { shape.hidden }
}

/// W2's outputs from `first` on.
pub fn outputs_of(w2: Grouped, layout: WeightLayout, first: i64) -> Grouped {
    let stride = if layout == WeightLayout::OutIn { w2.pitch } else { 1 };
    Grouped { offset: w2.offset + first * stride, ..w2 }
}

/// Columns of act whose dot product with dact a backend may hand on as one number.
pub const DOT_COLUMNS: i64 = 128;

impl Shape {
    /// Such numbers a row.
    pub fn dot_parts(&self) -> i64 {
        (self.activation.ffn + DOT_COLUMNS - 1) / DOT_COLUMNS
    }
}

/// With dact = dy W2: dh = weight * act'(h) * dact, weighted_act = weight * act(h), dots = <dact, act(h)> + <dy, b2>.
#[derive(Clone, Copy, Debug)]
pub struct LinearActivateBackward {
    pub shape: Shape,
    pub groups: Groups,
    pub dy: Matrix,
    pub gather: Option<Gather>,
    pub w2: Grouped,
    /// There where the dots need it.
    pub b2: Option<Matrix>,
    pub h: Matrix,
    /// May be `h`.
    pub dh: Matrix,
    pub weighted_act: Option<Matrix>,
    /// Of the activation.
    pub weights: RowWeights,
    /// [R].
    pub dots: Option<Matrix>,
    /// [R, f], room for dact; may be `weighted_act`.
    pub dact: Matrix,
    /// [R], room for <dy, b2>; may be `dots`.
    pub dot_start: Matrix,
    /// [R, dot_parts], room for the dots' parts.
    pub dot_parts: *mut f32,
}

impl LinearActivateBackward {
    /// The same as steps of their own.
    pub fn by_parts(&self, steps: &impl Steps) -> Result<()> {
        let LinearActivateBackward { shape, groups, dact, .. } = *self;
        steps.linear(&Linear {
            groups,
            n: shape.activation.ffn,
            k: shape.hidden,
            a: self.dy,
            gather: self.gather,
            b: self.w2,
            layout: shape.w2_layout.transposed(),
            bias: None,
            c: dact,
            output: Output { mode: OVERWRITE, beta: 1.0 },
            alpha: 1.0,
            tf32: shape.tf32,
        })?;
        steps.activate_backward(&activation::Backward {
            activation: shape.activation,
            extent: Extent::Groups(groups),
            h: self.h,
            dy: dact,
            dh: self.dh,
            row_weights: self.weights,
            drow_weights: self.dots,
            dot_start: self.dots_of_bias(steps)?,
            weighted_act: self.weighted_act,
        })
    }

    /// <dy, b2> of each row, where there is such a part of the dots.
    pub fn dots_of_bias(&self, steps: &impl Steps) -> Result<Option<Matrix>> {
        let (Some(b), Some(_)) = (self.b2, self.dots) else { return Ok(None) };
        let (groups, columns, dots) = (self.groups, self.shape.hidden, self.dot_start);
        let (a, gather) = (self.dy, self.gather);
        steps.row_dots(&RowDots { groups, columns, a, gather, b, b_by_group: true, dots })?;
        Ok(Some(dots))
    }
}
