//! The forward's steps: fc1, activation, fc2, combine.

use crate::check::OutputMode;
use crate::error::Result;
use crate::groups::RowWeights;
use crate::ops::dispatch::{CombineFwd, Weights};
use crate::ops::grouped_gemm::{Linear, Output};
use crate::tensor::{Grouped, Matrix};
use crate::workspace::{Layout, Part, Workspace};

use super::fc1::columns_at_once;
use super::fc2::{outputs_at_once, outputs_of};
use super::{
    Fc1, Input, LinearActivate, OVERWRITE, Operation, Routing, ScaleRows, Shape, Steps, WeightsAt, ZeroGaps,
    present_groups,
};

pub struct Forward {
    pub shape: Shape,
    pub routing: Routing,
    pub x: Matrix,
    pub fc1: Fc1,
    pub w2: Grouped,
    /// [E, d].
    pub b2: Option<Matrix>,
    pub y: Matrix,
    pub y_mode: OutputMode,
    /// [R, 2f or f].
    pub h: Option<Matrix>,
}

/// The forward's workspace.
pub struct Scratch {
    /// [R, d]: x with its weights.
    input: Part,
    /// [R, f].
    act: Part,
    /// A part of h, later fc2's output [R, d] or a half of its columns.
    rows: Part,
    /// [E].
    sizes: Part,
}

impl Operation for Forward {
    type Scratch = Scratch;

    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn plan(shape: &Shape) -> (Layout, Scratch) {
        let mut layout = Layout::default();
        let mut rows = |columns| layout.part(shape.rows * columns * shape.dtype.size());
        let input = rows(if shape.weights_at == WeightsAt::Input { shape.hidden } else { 0 });
        let act = rows(shape.activation.ffn);
        let rows = rows(outputs_at_once(shape).max(2 * columns_at_once(shape)));
        let sizes = layout.part(shape.experts * 8);
        (layout, Scratch { input, act, rows, sizes })
    }

    fn run(&self, scratch: &Scratch, workspace: &Workspace, steps: &impl Steps) -> Result<()> {
        let Forward { shape, routing, fc1, .. } = self;
        let Shape { dtype, hidden, combines, activation, .. } = *shape;
        let room = |part, pitch| Matrix { dtype, data: workspace.at(part), pitch };
        let at_once = outputs_at_once(shape);
        let (act, rows) = (room(scratch.act, activation.ffn), room(scratch.rows, at_once));
        let groups = present_groups(routing.groups, fc1, self.w2, workspace.at(scratch.sizes), steps)?;

        // fc2's bias is weighted too: then weights wait for fc2's output.
        let weighted = routing.weighted() && shape.weights_at != WeightsAt::Input;
        let weigh_output = weighted && (self.b2.is_some() || (shape.weights_at == WeightsAt::Combine && combines));
        let act_weights = if weighted && !weigh_output { routing.row_weights } else { RowWeights::one() };

        let input = Input::new(shape, routing, groups, self.x, room(scratch.input, hidden), steps)?;
        let (fc1, room) = (*fc1, rows.data);
        steps.linear_activate(&LinearActivate {
            shape: *shape,
            groups,
            input,
            fc1,
            h: self.h,
            room,
            act,
            weights: act_weights,
        })?;
        let direct = !combines && !weigh_output;
        let mode = if direct { self.y_mode } else { OVERWRITE };
        // The combine reads rows of absent experts; rows that are given back have no gaps.
        let absent = groups.sizes != routing.groups.sizes;
        let zeroes_gaps = if direct { !groups.sizes.is_null() } else { combines && absent };
        for first in (0..hidden).step_by(at_once as usize) {
            let columns = at_once.min(hidden - first);
            let y = self.y.columns_from(first);
            let c = if direct { y } else { rows };
            steps.linear_behind_activation(&Linear {
                groups,
                n: columns,
                k: activation.ffn,
                a: act,
                gather: None,
                b: outputs_of(self.w2, shape.w2_layout, first),
                layout: shape.w2_layout,
                bias: self.b2.map(|bias| bias.columns_from(first)),
                c,
                output: Output { mode, beta: 1.0 },
                alpha: 1.0,
                tf32: shape.tf32,
            })?;
            if zeroes_gaps {
                steps.zero_gaps(&ZeroGaps { groups, columns, matrix: c, mode })?;
            }
            let y_mode = self.y_mode;
            if combines {
                let weights = if weigh_output { routing.weights } else { Weights::None };
                steps.combine(&CombineFwd { maps: routing.maps(shape), hidden: columns, rows, y, y_mode, weights })?;
            } else if weigh_output {
                let weights = routing.row_weights;
                steps.scale_rows(&ScaleRows {
                    groups,
                    columns,
                    from: c,
                    gather: None,
                    weights,
                    to: y,
                    mode: y_mode,
                })?;
            }
        }
        Ok(())
    }
}
