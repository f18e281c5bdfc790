//! The backward's steps. With dy a row's gradient of y, w its weight and dact = dy W2:
//! dw = <dact, act> + <dy, b2>, dh = act'(h) * w * dact, dW2 = dy^T (w * act), dW1 = dh^T x, dx = dh W1.
//! Expert outputs are neither kept nor computed again.

use crate::check::OutputMode;
use crate::error::Result;
use crate::ops::dispatch::{CombineFwd, DispatchBwd, Weights};
use crate::ops::grouped_gemm::{Linear, Output};
use crate::tensor::{Grouped, Matrix};
use crate::workspace::{Layout, Part, Workspace};

use super::fc1::{Fc1, Input, halves};
use super::wgrad::Grads;
use super::{
    ADD, LinearActivateBackward, OVERWRITE, Operation, Routing, RowDots, ScaleRows, Shape, Steps, WeightsAt, ZeroGaps,
    present_groups,
};

pub struct Backward {
    pub shape: Shape,
    pub routing: Routing,
    pub dy: Matrix,
    /// There where something needs it.
    pub x: Option<Matrix>,
    pub fc1: Fc1,
    pub w2: Grouped,
    pub b2: Option<Matrix>,
    /// None: fc1 is computed again.
    pub h: Option<Matrix>,
    pub dh: Matrix,
    pub weighted_act: Option<Matrix>,
    pub dx: Option<Matrix>,
    pub dx_mode: OutputMode,
    pub dweights: Option<Matrix>,
    pub drow_weights: Option<Matrix>,
    pub grads: Grads,
}

/// The backward's workspace.
pub struct Scratch {
    /// x with its weights [R, d]; then dact, which becomes weight * act [R, f]; then the rows of dx [R, d].
    rows: Part,
    /// [R].
    dots: Part,
    /// [R, parts].
    dot_parts: Part,
    /// [E].
    sizes: Part,
}

impl Operation for Backward {
    type Scratch = Scratch;

    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn plan(shape: &Shape) -> (Layout, Scratch) {
        let mut layout = Layout::default();
        let columns = shape.hidden.max(shape.activation.ffn);
        let rows = layout.part(shape.rows * columns * shape.dtype.size());
        let dots = layout.part(shape.rows * shape.real().size());
        let dot_parts = layout.part(shape.rows * shape.dot_parts() * 4);
        let sizes = layout.part(shape.experts * 8);
        (layout, Scratch { rows, dots, dot_parts, sizes })
    }

    fn run(&self, scratch: &Scratch, workspace: &Workspace, steps: &impl Steps) -> Result<()> {
        let Backward { shape, routing, fc1, grads, .. } = self;
        let Shape { dtype, hidden, activation, .. } = *shape;
        let rows = Matrix { dtype, data: workspace.at(scratch.rows), pitch: hidden };
        let dots = Matrix { dtype: shape.real(), data: workspace.at(scratch.dots), pitch: 1 };
        let groups = present_groups(routing.groups, fc1, self.w2, workspace.at(scratch.sizes), steps)?;
        let input = |x| Input::new(shape, routing, groups, x, rows, steps);

        let h = match (self.h, self.x) {
            (None, Some(x)) => {
                fc1.whole(shape, groups, &input(x)?, self.dh, steps)?;
                self.dh
            }
            (h, _) => h.unwrap_or(self.dh),
        };
        let dact = self.weighted_act.unwrap_or(Matrix { pitch: activation.ffn, ..rows });
        let weighs_input = shape.weights_at == WeightsAt::Input && routing.weighted();
        let wanted = self.drow_weights.or(self.dweights.map(|_| dots));
        steps.linear_activate_backward(&LinearActivateBackward {
            shape: *shape,
            groups,
            dy: self.dy,
            gather: routing.gather(shape.combines),
            w2: self.w2,
            b2: self.b2,
            h,
            dh: self.dh,
            weighted_act: (self.weighted_act.is_some() || grads.dw2.is_some()).then_some(dact),
            weights: shape.output_weights(routing),
            dots: wanted.filter(|_| !weighs_input),
            dact,
            dot_start: dots,
            dot_parts: workspace.at(scratch.dot_parts),
        })?;

        grads.fc2(shape, routing, groups, self.dy, Some(dact), steps)?;
        let again = self.x.filter(|_| grads.of_w1()).map(input).transpose()?;
        grads.fc1(shape, groups, again.as_ref(), self.dh, steps)?;
        if self.dx.is_some() || (wanted.is_some() && weighs_input) {
            input_gradient(self, rows, wanted.filter(|_| weighs_input), weighs_input, groups, steps)?;
        }
        if let Some(dweights) = self.dweights {
            steps.slot_gradients(&DispatchBwd {
                maps: routing.maps(shape),
                hidden: 1,
                drows: dots,
                dx: None,
                dx_mode: OVERWRITE,
                drow_weights: Some(dots),
                dweights: Some(dweights),
                dweights_dense: None,
                experts: 0,
            })?;
        }
        Ok(())
    }
}

/// dx, and <x, dh W1> of each row where weights multiply the input.
fn input_gradient(
    p: &Backward,
    rows: Matrix,
    dots: Option<Matrix>,
    weighs_input: bool,
    groups: crate::groups::Groups,
    steps: &impl Steps,
) -> Result<()> {
    let Backward { shape, routing, fc1, .. } = p;
    let columns = shape.hidden;
    let (c, mode) = match p.dx {
        Some(dx) if !shape.gathers && !weighs_input => (dx, p.dx_mode),
        _ => (rows, OVERWRITE),
    };
    let halves = halves(&shape.activation, fc1.up.is_some());
    for ((weight, half), mode) in [Some(fc1.w1), fc1.up].into_iter().zip(halves).zip([mode, ADD]) {
        let Some(b) = weight else { continue };
        steps.linear(&Linear {
            groups,
            n: columns,
            k: half.end - half.start,
            a: p.dh.columns_from(half.start),
            gather: None,
            b,
            layout: shape.w1_layout.transposed(),
            bias: None,
            c,
            output: Output { mode, beta: 1.0 },
            alpha: 1.0,
            tf32: shape.tf32,
        })?;
    }
    if !groups.sizes.is_null() {
        steps.zero_gaps(&ZeroGaps { groups, columns, matrix: c, mode })?;
    }
    if let (Some(dots), Some(a)) = (dots, p.x) {
        let gather = routing.gather(shape.gathers);
        steps.row_dots(&RowDots { groups, columns, a, gather, b: rows, b_by_group: false, dots })?;
    }
    let Some(dx) = p.dx else { return Ok(()) };
    if shape.gathers {
        let weights = if weighs_input { routing.weights } else { Weights::None };
        let maps = routing.maps(shape);
        steps.combine(&CombineFwd { maps, hidden: columns, rows, y: dx, y_mode: p.dx_mode, weights })?;
    } else if weighs_input {
        let (from, weights, to, mode) = (rows, routing.row_weights, dx, p.dx_mode);
        steps.scale_rows(&ScaleRows { groups, columns, from, gather: None, weights, to, mode })?;
    }
    Ok(())
}
