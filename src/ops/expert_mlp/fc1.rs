//! fc1: h = x W1^T + b1, of W1 as one tensor or as two, whole or some columns at a time.

use std::ops::Range;

use crate::error::Result;
use crate::groups::{Gather, Groups, RowWeights};
use crate::ops::activation::{self, Activation, Extent};
use crate::ops::grouped_gemm::{Linear, Output, WeightLayout};
use crate::tensor::{Grouped, Matrix};

use super::fc2::outputs_at_once;
use super::{OVERWRITE, Routing, ScaleRows, Shape, Steps, WeightsAt};

/// W1 and what goes with it.
#[derive(Clone, Copy, Debug)]
pub struct Fc1 {
    /// [E, 2f or f, d] in w1_layout; the gate alone where `up` is given.
    pub w1: Grouped,
    pub up: Option<Grouped>,
    /// [E, 2f or f].
    pub bias: Option<Matrix>,
}

/// What fc1 reads a row of: x, gathered or not, or a weighted copy of it.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    pub x: Matrix,
    pub gather: Option<Gather>,
}

impl Input {
    /// x as fc1 reads it. Weights that belong here go into a copy, made in `room` [R, d].
    pub fn new(
        shape: &Shape,
        routing: &Routing,
        groups: Groups,
        x: Matrix,
        room: Matrix,
        steps: &impl Steps,
    ) -> Result<Self> {
        let gather = routing.gather(shape.gathers);
        if shape.weights_at != WeightsAt::Input || !routing.weighted() {
            return Ok(Input { x, gather });
        }
        let (columns, weights) = (shape.hidden, routing.row_weights);
        steps.scale_rows(&ScaleRows { groups, columns, from: x, gather, weights, to: room, mode: OVERWRITE })?;
        Ok(Input { x: room, gather: None })
    }
}

/// act[R, f] = weight * act(x W1^T + b1) for each row of the groups; h = x W1^T + b1 too where it is kept.
#[derive(Clone, Copy, Debug)]
pub struct LinearActivate {
    pub shape: Shape,
    pub groups: Groups,
    pub input: Input,
    pub fc1: Fc1,
    /// [R, 2f or f].
    pub h: Option<Matrix>,
    /// [R, 2 * columns_at_once] where h is not kept: for parts of it.
    pub room: *mut u8,
    pub act: Matrix,
    /// Of act.
    pub weights: RowWeights,
}

impl LinearActivate {
    /// The same as steps of their own.
    pub fn by_parts(&self, steps: &impl Steps) -> Result<()> {
        let LinearActivate { shape, groups, input, fc1, act, weights, .. } = self;
        let Some(h) = self.h else {
            return fc1.act_by_parts(shape, *groups, input, self.room, *act, *weights, steps);
        };
        fc1.whole(shape, *groups, input, h, steps)?;
        let (activation, extent) = (shape.activation, Extent::Groups(*groups));
        steps.activate(&activation::Forward { activation, extent, h, y: *act, row_weights: *weights })
    }
}

/// Columns of h that W1 yields or, where it is two tensors, that each of them yields.
pub fn halves(activation: &Activation, split: bool) -> [Range<i64>; 2] {
    let Activation { ffn, up_first, .. } = *activation;
    match (split, up_first) {
        (false, _) => [0..activation.hidden(), 0..0],
        (true, false) => [0..ffn, ffn..2 * ffn],
        (true, true) => [ffn..2 * ffn, 0..ffn],
    }
}

/// Columns of act that are made from a part of h at a time where h is not kept: so many that this part needs about
/// the room of fc2's output, if the gate's blocks allow it.
pub fn columns_at_once(shape: &Shape) -> i64 {
    let Activation { ffn, block, .. } = shape.activation;
    let limit = (outputs_at_once(shape) / 2).max(256).min(ffn);
    if block < ffn { (limit / block).max(1) * block } else { limit }
}

/// Outputs of a weight tensor, and where they go.
struct Piece {
    weight: Grouped,
    /// The first output of `weight`, and how many there are.
    first: i64,
    columns: i64,
    /// Their place in the bias, and in what is written.
    in_bias: i64,
    to: i64,
}

impl Fc1 {
    /// h[R, 2f or f].
    pub fn whole(&self, shape: &Shape, groups: Groups, input: &Input, h: Matrix, steps: &impl Steps) -> Result<()> {
        let halves = halves(&shape.activation, self.up.is_some());
        [Some(self.w1), self.up].into_iter().zip(halves).try_for_each(|(weight, at)| {
            let Some(weight) = weight else { return Ok(()) };
            let piece = Piece { weight, first: 0, columns: at.end - at.start, in_bias: at.start, to: at.start };
            self.linear(shape, groups, input, &piece, h, steps)
        })
    }

    /// act[R, f] without h: some columns at a time by way of `room`.
    #[allow(clippy::too_many_arguments)]
    fn act_by_parts(
        &self,
        shape: &Shape,
        groups: Groups,
        input: &Input,
        room: *mut u8,
        act: Matrix,
        weights: RowWeights,
        steps: &impl Steps,
    ) -> Result<()> {
        let whole = shape.activation;
        let columns = columns_at_once(shape) as usize;
        for start in (0..whole.ffn).step_by(columns) {
            let ffn = (whole.ffn - start).min(columns as i64);
            let (pieces, activation) = self.part(&whole, start, ffn);
            let h = Matrix { dtype: shape.dtype, data: room, pitch: activation.hidden() };
            for piece in pieces.iter().flatten() {
                self.linear(shape, groups, input, piece, h, steps)?;
            }
            let (extent, y) = (Extent::Groups(groups), act.columns_from(start));
            steps.activate(&activation::Forward { activation, extent, h, y, row_weights: weights })?;
        }
        Ok(())
    }

    /// What columns start .. start + ffn of act are made from, and the activation that makes them.
    fn part(&self, whole: &Activation, start: i64, ffn: i64) -> ([Option<Piece>; 2], Activation) {
        let piece = |weight, first, columns, in_bias, to| Some(Piece { weight, first, columns, in_bias, to });
        if !whole.gated {
            return ([piece(self.w1, start, ffn, start, 0), None], Activation { ffn, block: ffn, ..*whole });
        }
        if whole.block < whole.ffn {
            return ([piece(self.w1, 2 * start, 2 * ffn, 2 * start, 0), None], Activation { ffn, ..*whole });
        }
        let [gate, up] = halves(whole, true).map(|half| half.start + start);
        let pieces = match self.up {
            Some(w1_up) => [piece(self.w1, start, ffn, gate, 0), piece(w1_up, start, ffn, up, ffn)],
            None => [piece(self.w1, gate, ffn, gate, 0), piece(self.w1, up, ffn, up, ffn)],
        };
        (pieces, Activation { ffn, block: ffn, up_first: false, ..*whole })
    }

    fn linear(
        &self,
        shape: &Shape,
        groups: Groups,
        input: &Input,
        piece: &Piece,
        h: Matrix,
        steps: &impl Steps,
    ) -> Result<()> {
        let stride = if shape.w1_layout == WeightLayout::OutIn { piece.weight.pitch } else { 1 };
        steps.linear(&Linear {
            groups,
            n: piece.columns,
            k: shape.hidden,
            a: input.x,
            gather: input.gather,
            b: Grouped { offset: piece.weight.offset + piece.first * stride, ..piece.weight },
            layout: shape.w1_layout,
            bias: self.bias.map(|bias| bias.columns_from(piece.in_bias)),
            c: h.columns_from(piece.to),
            output: Output { mode: OVERWRITE, beta: 1.0 },
            alpha: 1.0,
            tf32: shape.tf32,
        })
    }
}
