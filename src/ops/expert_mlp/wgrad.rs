//! The gradients of weights and biases: a part of backward, or delayed and on their own.

use crate::check::OutputMode;
use crate::error::Result;
use crate::groups::{Groups, RowWeights};
use crate::ops::grouped_gemm::{self, BiasGrad, Output};
use crate::tensor::{Grouped, Matrix};
use crate::workspace::{Layout, Part, Workspace};

use super::fc1::{Input, halves};
use super::{Operation, Routing, Shape, Steps, WeightsAt};

/// The wanted ones, in the layouts of what they belong to.
pub struct Grads {
    /// The gate's alone where `split`.
    pub dw1: Option<Grouped>,
    pub dw1_up: Option<Grouped>,
    pub dw2: Option<Grouped>,
    pub db1: Option<Matrix>,
    pub db2: Option<Matrix>,
    pub dw_mode: OutputMode,
    pub db_mode: OutputMode,
    /// W1's halves are tensors of their own.
    pub split: bool,
}

impl Grads {
    pub fn of_w1(&self) -> bool {
        self.dw1.is_some() || self.dw1_up.is_some()
    }

    /// dW1 = dh^T x, db1 = sum of dh. `input` is needed for dW1.
    pub fn fc1(
        &self,
        shape: &Shape,
        groups: Groups,
        input: Option<&Input>,
        dh: Matrix,
        steps: &impl Steps,
    ) -> Result<()> {
        for (db, half) in [self.dw1, self.dw1_up].into_iter().zip(halves(&shape.activation, self.split)) {
            let (Some(db), Some(input)) = (db, input) else { continue };
            steps.wgrad(&grouped_gemm::Wgrad {
                groups,
                n: half.end - half.start,
                k: shape.hidden,
                dc: dh.columns_from(half.start),
                a: input.x,
                gather: input.gather,
                db,
                layout: shape.w1_layout,
                output: Output { mode: self.dw_mode, beta: 1.0 },
                alpha: 1.0,
                tf32: shape.tf32,
            })?;
        }
        let Some(dbias) = self.db1 else { return Ok(()) };
        let (n, output) = (shape.activation.hidden(), Output { mode: self.db_mode, beta: 1.0 });
        steps.bias_grad(&BiasGrad { groups, n, dc: dh, gather: None, weights: RowWeights::one(), dbias, output })
    }

    /// dW2 = dy^T (weight * act), db2 = sum of weight * dy. `weighted_act` is needed for dW2.
    pub fn fc2(
        &self,
        shape: &Shape,
        routing: &Routing,
        groups: Groups,
        dy: Matrix,
        weighted_act: Option<Matrix>,
        steps: &impl Steps,
    ) -> Result<()> {
        let gather = routing.gather(shape.combines);
        if let (Some(db), Some(weighted_act)) = (self.dw2, weighted_act) {
            // The gathered rows are dy's: the product is taken as that of W2's transpose.
            steps.wgrad(&grouped_gemm::Wgrad {
                groups,
                n: shape.activation.ffn,
                k: shape.hidden,
                dc: weighted_act,
                a: dy,
                gather,
                db,
                layout: shape.w2_layout.transposed(),
                output: Output { mode: self.dw_mode, beta: 1.0 },
                alpha: 1.0,
                tf32: shape.tf32,
            })?;
        }
        let Some(dbias) = self.db2 else { return Ok(()) };
        let (weights, output) = (shape.output_weights(routing), Output { mode: self.db_mode, beta: 1.0 });
        steps.bias_grad(&BiasGrad { groups, n: shape.hidden, dc: dy, gather, weights, dbias, output })
    }
}

/// The delayed gradients; each operand is there where an output needs it.
pub struct Wgrad {
    pub shape: Shape,
    pub routing: Routing,
    pub dy: Option<Matrix>,
    pub x: Option<Matrix>,
    pub dh: Option<Matrix>,
    pub weighted_act: Option<Matrix>,
    pub grads: Grads,
}

pub struct Scratch {
    /// [R, d]: x with its weights.
    input: Part,
}

impl Operation for Wgrad {
    type Scratch = Scratch;

    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn plan(shape: &Shape) -> (Layout, Scratch) {
        let mut layout = Layout::default();
        let columns = if shape.weights_at == WeightsAt::Input { shape.hidden } else { 0 };
        let input = layout.part(shape.rows * columns * shape.dtype.size());
        (layout, Scratch { input })
    }

    fn run(&self, scratch: &Scratch, workspace: &Workspace, steps: &impl Steps) -> Result<()> {
        let Wgrad { shape, routing, grads, .. } = self;
        let groups = routing.groups;
        if let Some(dy) = self.dy {
            grads.fc2(shape, routing, groups, dy, self.weighted_act, steps)?;
        }
        let Some(dh) = self.dh else { return Ok(()) };
        let room = Matrix { dtype: shape.dtype, data: workspace.at(scratch.input), pitch: shape.hidden };
        let input = match self.x {
            Some(x) if grads.of_w1() => Some(Input::new(shape, routing, groups, x, room, steps)?),
            _ => None,
        };
        grads.fc1(shape, groups, input.as_ref(), dh, steps)
    }
}
