//! The checks of the expert MLP's arguments: all of them, before anything is enqueued.

use crate::abi::expert_mlp::*;
use crate::abi::types::*;
use crate::check::{self, MAX_EXPERTS, MAX_WIDTH};
use crate::context::{Backend, moe_context_t};
use crate::dtype::{Dtype, FLOATS, INDICES};
use crate::error::{Error, Result};
use crate::groups::{RowWeights, groups};
use crate::ops::activation::Activation;
use crate::ops::dispatch::Weights;
use crate::ops::grouped_gemm::WeightLayout;
use crate::tensor::{Grouped, Matrix, is_absent, matrix, optional_grouped, optional_matrix, optional_vector};

use super::fc1::Fc1;
use super::wgrad::{Grads, Wgrad};
use super::{Backward, Forward, Routing, Shape, WeightsAt};

pub fn shape(ctx: &moe_context_t, desc: &moe_expert_mlp_desc_t) -> Result<Shape> {
    let dtype = Dtype::check("desc.dtype", desc.dtype, FLOATS)?;
    ctx.serves("desc.dtype", dtype)?;
    let (block, limit, alpha) = (desc.gate_block, desc.clamp_limit, desc.clamp_alpha);
    let shape = Shape {
        dtype,
        tokens: check::rows("desc.num_tokens", desc.num_tokens)?,
        rows: check::rows("desc.rows_max", desc.rows_max)?,
        top_k: check::range("desc.top_k", desc.top_k, 1..=MAX_WIDTH)?,
        experts: check::range("desc.num_experts", desc.num_experts, 1..=MAX_EXPERTS)?,
        hidden: check::width("desc.hidden_size", desc.hidden_size)?,
        activation: Activation::check(desc.activation, desc.gate_order, block, limit, alpha, desc.ffn_size)?,
        gathers: check::mode("desc.input_layout", desc.input_layout, MOE_LAYOUT_ROWS)? == MOE_LAYOUT_TOKENS,
        combines: check::mode("desc.output_layout", desc.output_layout, MOE_LAYOUT_ROWS)? == MOE_LAYOUT_TOKENS,
        weights_at: match check::mode("desc.weights_at", desc.weights_at, MOE_WEIGHTS_AT_INPUT)? {
            MOE_WEIGHTS_AT_COMBINE => WeightsAt::Combine,
            MOE_WEIGHTS_AT_ACTIVATION => WeightsAt::Activation,
            _ => WeightsAt::Input,
        },
        tf32: check::mode("desc.math", desc.math, MOE_MATH_TF32)? == MOE_MATH_TF32,
        batch_invariant: check::switch("desc.batch_invariant", desc.batch_invariant)?,
        w1_layout: WeightLayout::check("desc.w1_layout", desc.w1_layout)?,
        w2_layout: WeightLayout::check("desc.w2_layout", desc.w2_layout)?,
    };
    check::range("desc.reserved", desc.reserved.into(), 0..=0)?;
    check::elements("desc.num_tokens x desc.top_k", &[shape.tokens, shape.top_k])?;
    // The widest thing that the workspace holds for a row.
    let widest = shape.hidden.max(2 * shape.activation.ffn);
    check::elements("desc.rows_max x the larger of hidden_size and 2 * ffn_size", &[shape.rows, widest, 4])?;
    if shape.batch_invariant && matches!(ctx.backend, Backend::Cpu) {
        return Err(Error::unsupported("desc.batch_invariant is MOE_ON; the CPU backend does not promise it"));
    }
    Ok(shape)
}

/// The maps and weights of a call as the caller gives them, and what the call needs of them.
struct Maps<'a> {
    offsets: *const i64,
    sizes: *const i64,
    token_of_row: &'a moe_tensor_t,
    slot_of_row: &'a moe_tensor_t,
    row_of_slot: &'a moe_tensor_t,
    slot_offsets: &'a moe_tensor_t,
    weights: &'a moe_tensor_t,
    row_weights: &'a moe_tensor_t,
    tokens: &'a moe_count_t,
    needs_tokens: bool,
    needs_rows: bool,
    /// Weights, where they are a slot's, go to rows.
    weighs_rows: bool,
}

impl Maps<'_> {
    fn check(&self, ctx: &moe_context_t, shape: &Shape) -> Result<Routing> {
        check::present("args.group_offsets", self.offsets)?;
        let groups = groups(shape.experts, shape.rows, self.offsets, self.sizes)?;
        let map = |argument, tensor, length, row| optional_vector(argument, tensor, INDICES, length, row);
        let token_of_row = map("args.token_of_row", self.token_of_row, shape.rows, 1)?;
        let slot_of_row = map("args.slot_of_row", self.slot_of_row, shape.rows, 1)?;
        let row_of_slot = map("args.row_of_slot", self.row_of_slot, shape.slots(), shape.top_k)?;
        let slot_offsets = map("args.slot_offsets", self.slot_offsets, shape.tokens + 1, 1)?;
        let slot_weights = optional_vector("args.weights", self.weights, FLOATS, shape.slots(), shape.top_k)?;
        let row_weights = optional_vector("args.row_weights", self.row_weights, FLOATS, shape.rows, 1)?;
        if slot_weights.is_some() && row_weights.is_some() {
            return Err(Error::argument("args.row_weights", "given", "absent where args.weights is given"));
        }
        serve(ctx, "args.weights", slot_weights)?;
        serve(ctx, "args.row_weights", row_weights)?;
        need("args.token_of_row", token_of_row, self.needs_tokens && shape.rows > 0, "tokens go to rows")?;
        need("args.row_of_slot", row_of_slot, self.needs_rows && shape.slots() > 0, "rows go to tokens")?;
        let weighs_rows = self.weighs_rows && slot_weights.is_some() && shape.rows > 0;
        need("args.slot_of_row", slot_of_row, weighs_rows, "weights a slot go to rows")?;
        let (weights, row_weights) = match (slot_weights, row_weights) {
            (Some(weights), _) => {
                let of_rows = slot_of_row.map(|slot_of_row| RowWeights::of_slots(weights, slot_of_row, shape.slots()));
                (Weights::Slot(weights), of_rows.unwrap_or(RowWeights::one()))
            }
            (_, Some(weights)) => (Weights::Row(weights), RowWeights::of_rows(weights)),
            _ => (Weights::None, RowWeights::one()),
        };
        let tokens = check::count("args.num_tokens", self.tokens, shape.tokens)?;
        Ok(Routing { groups, tokens, token_of_row, row_of_slot, slot_offsets, weights, row_weights })
    }
}

fn need(argument: &str, given: Option<Matrix>, needed: bool, why: &str) -> Result<()> {
    if given.is_some() || !needed {
        return Ok(());
    }
    Err(Error::argument(format!("{argument}.data"), "NULL", format!("required here: {why}")))
}

fn serve(ctx: &moe_context_t, argument: &str, given: Option<Matrix>) -> Result<()> {
    given.map_or(Ok(()), |given| ctx.serves(argument, given.dtype))
}

impl Shape {
    /// Dtypes of biases and of outputs that may be wider than the rest.
    fn wide(&self) -> [Dtype; 2] {
        [self.dtype, Dtype::Fp32]
    }

    /// Tokens or rows.
    fn length(&self, tokens: bool) -> i64 {
        if tokens { self.tokens } else { self.rows }
    }

    /// [R, 2f or f].
    fn h_tensor(&self, argument: &str, tensor: &moe_tensor_t) -> Result<Option<Matrix>> {
        optional_matrix(argument, tensor, &[self.dtype], self.rows, self.activation.hidden())
    }

    /// An input [rows, columns] that must be there where `needed` says for what. Without rows it may be NULL.
    fn operand(
        &self,
        argument: &str,
        tensor: &moe_tensor_t,
        (rows, columns): (i64, i64),
        needed: Option<&str>,
    ) -> Result<Option<Matrix>> {
        if is_absent(tensor) && rows == 0 {
            return Ok(Some(Matrix { dtype: self.dtype, data: std::ptr::null_mut(), pitch: columns }));
        }
        let given = optional_matrix(argument, tensor, &[self.dtype], rows, columns)?;
        need(argument, given, needed.is_some(), needed.unwrap_or_default())?;
        Ok(given)
    }

    /// W1 or its gradient: `outputs` of 2f or f.
    fn w1_tensor(
        &self,
        argument: &str,
        tensor: &moe_tensor_t,
        outputs: i64,
        dtypes: &[Dtype],
    ) -> Result<Option<Grouped>> {
        let (rows, columns) = self.w1_layout.shape(outputs, self.hidden);
        optional_grouped(argument, tensor, dtypes, self.experts, rows, columns)
    }

    fn w2_tensor(&self, argument: &str, tensor: &moe_tensor_t, dtypes: &[Dtype]) -> Result<Option<Grouped>> {
        let (rows, columns) = self.w2_layout.shape(self.hidden, self.activation.ffn);
        optional_grouped(argument, tensor, dtypes, self.experts, rows, columns)
    }

    /// A bias or its gradient, [E, columns].
    fn bias(&self, argument: &str, tensor: &moe_tensor_t, columns: i64) -> Result<Option<Matrix>> {
        optional_matrix(argument, tensor, &self.wide(), self.experts, columns)
    }

    /// Outputs of W1 where its up half is, or is not, a tensor of its own (named by `argument`).
    fn w1_outputs(&self, argument: &str, split: bool) -> Result<i64> {
        let Activation { ffn, block, gated, .. } = self.activation;
        if split && !gated {
            return Err(Error::argument(argument, "given", "absent: the activation has no gate"));
        }
        if split && block < ffn {
            return Err(Error::argument(argument, "given", "absent with MOE_GATE_INTERLEAVED: the halves are apart"));
        }
        Ok(if split { ffn } else { self.activation.hidden() })
    }

    fn fc1(&self, w1: &moe_tensor_t, up: &moe_tensor_t, bias: &moe_tensor_t) -> Result<Fc1> {
        let outputs = self.w1_outputs("args.w1_up", !is_absent(up))?;
        Ok(Fc1 {
            w1: self.w1_tensor("args.w1", w1, outputs, &[self.dtype])?.ok_or_else(|| absent("args.w1"))?,
            up: self.w1_tensor("args.w1_up", up, outputs, &[self.dtype])?,
            bias: self.bias("args.b1", bias, self.activation.hidden())?,
        })
    }

    fn w2(&self, w2: &moe_tensor_t) -> Result<Grouped> {
        self.w2_tensor("args.w2", w2, &[self.dtype])?.ok_or_else(|| absent("args.w2"))
    }

    /// The gradients of weights and biases; with `split`, dw1 is the gate's alone.
    fn grads(
        &self,
        [dw1, dw1_up, dw2, db1, db2]: [&moe_tensor_t; 5],
        dw_mode: &moe_output_mode_t,
        db_mode: &moe_output_mode_t,
        split: bool,
    ) -> Result<Grads> {
        let outputs = self.w1_outputs("args.dw1_up", split)?;
        Ok(Grads {
            dw1: self.w1_tensor("args.dw1", dw1, outputs, &self.wide())?,
            dw1_up: self.w1_tensor("args.dw1_up", dw1_up, outputs, &self.wide())?,
            dw2: self.w2_tensor("args.dw2", dw2, &self.wide())?,
            db1: self.bias("args.db1", db1, self.activation.hidden())?,
            db2: self.bias("args.db2", db2, self.hidden)?,
            dw_mode: check::output_mode("args.dw_mode", dw_mode)?,
            db_mode: check::output_mode("args.db_mode", db_mode)?,
            split,
        })
    }
}

fn absent(argument: &str) -> Error {
    Error::argument(format!("{argument}.data"), "NULL", "data or pointers, required here")
}

pub fn forward(ctx: &moe_context_t, desc: &moe_expert_mlp_desc_t, args: &moe_expert_mlp_fwd_args_t) -> Result<Forward> {
    let shape = shape(ctx, desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    check::aligned("args.report", args.report)?;
    let routing = Maps {
        offsets: args.group_offsets,
        sizes: args.group_sizes,
        token_of_row: &args.token_of_row,
        slot_of_row: &args.slot_of_row,
        row_of_slot: &args.row_of_slot,
        slot_offsets: &args.slot_offsets,
        weights: &args.weights,
        row_weights: &args.row_weights,
        tokens: &args.num_tokens,
        needs_tokens: shape.gathers,
        needs_rows: shape.combines,
        weighs_rows: !shape.combines || shape.weights_at != WeightsAt::Combine,
    }
    .check(ctx, &shape)?;
    let Shape { hidden: d, gathers, combines, .. } = shape;
    Ok(Forward {
        x: matrix("args.x", &args.x, &[shape.dtype], shape.length(gathers), d)?,
        fc1: shape.fc1(&args.w1, &args.w1_up, &args.b1)?,
        w2: shape.w2(&args.w2)?,
        b2: shape.bias("args.b2", &args.b2, d)?,
        y: matrix("args.y", &args.y, &shape.wide(), shape.length(combines), d)?,
        y_mode: check::output_mode("args.y_mode", &args.y_mode)?,
        h: shape.h_tensor("args.h", &args.h)?,
        shape,
        routing,
    })
}

pub fn backward(
    ctx: &moe_context_t,
    desc: &moe_expert_mlp_desc_t,
    args: &moe_expert_mlp_bwd_args_t,
) -> Result<Backward> {
    let shape = shape(ctx, desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    check::aligned("args.report", args.report)?;
    let Shape { rows, hidden: d, gathers, combines, activation, .. } = shape;
    let routing = Maps {
        offsets: args.group_offsets,
        sizes: args.group_sizes,
        token_of_row: &args.token_of_row,
        slot_of_row: &args.slot_of_row,
        row_of_slot: &args.row_of_slot,
        slot_offsets: &args.slot_offsets,
        weights: &args.weights,
        row_weights: &args.row_weights,
        tokens: &args.num_tokens,
        needs_tokens: gathers || combines,
        needs_rows: !is_absent(&args.dweights) || (gathers && !is_absent(&args.dx)),
        weighs_rows: true,
    }
    .check(ctx, &shape)?;
    let dweights = optional_vector("args.dweights", &args.dweights, FLOATS, shape.slots(), shape.top_k)?;
    let drow_weights = optional_vector("args.drow_weights", &args.drow_weights, FLOATS, rows, 1)?;
    serve(ctx, "args.dweights", dweights)?;
    serve(ctx, "args.drow_weights", drow_weights)?;
    let weights = routing.weights;
    belongs("args.dweights", dweights.is_some(), "args.weights", matches!(weights, Weights::Slot(_)))?;
    belongs("args.drow_weights", drow_weights.is_some(), "args.row_weights", matches!(weights, Weights::Row(_)))?;
    let fc1 = shape.fc1(&args.w1, &args.w1_up, &args.b1)?;
    belongs("args.dw1_up", !is_absent(&args.dw1_up), "args.w1_up", fc1.up.is_some())?;
    let gradients = [&args.dw1, &args.dw1_up, &args.dw2, &args.db1, &args.db2];
    let grads = shape.grads(gradients, &args.dw_mode, &args.db_mode, fc1.up.is_some())?;
    let h = shape.h_tensor("args.h", &args.h)?;
    let x_for = match () {
        _ if h.is_none() => Some("fc1 is computed again where args.h is absent"),
        _ if grads.of_w1() => Some("for the gradient of W1"),
        _ if shape.weights_at == WeightsAt::Input && (dweights.or(drow_weights)).is_some() => {
            Some("for the gradient of weights at the input")
        }
        _ => None,
    };
    Ok(Backward {
        dy: matrix("args.dy", &args.dy, &[shape.dtype], shape.length(combines), d)?,
        x: shape.operand("args.x", &args.x, (shape.length(gathers), d), x_for)?,
        fc1,
        w2: shape.w2(&args.w2)?,
        b2: shape.bias("args.b2", &args.b2, d)?,
        h,
        dh: matrix("args.dh", &args.dh, &[shape.dtype], rows, activation.hidden())?,
        weighted_act: optional_matrix("args.weighted_act", &args.weighted_act, &[shape.dtype], rows, activation.ffn)?,
        dx: optional_matrix("args.dx", &args.dx, &shape.wide(), shape.length(gathers), d)?,
        dx_mode: check::output_mode("args.dx_mode", &args.dx_mode)?,
        dweights,
        drow_weights,
        grads,
        shape,
        routing,
    })
}

/// A gradient is given only where what it belongs to is.
fn belongs(argument: &str, given: bool, owner: &str, owner_given: bool) -> Result<()> {
    if !given || owner_given {
        return Ok(());
    }
    Err(Error::argument(argument, "given", format!("absent where {owner} is absent")))
}

pub fn wgrad(ctx: &moe_context_t, desc: &moe_expert_mlp_desc_t, args: &moe_expert_mlp_wgrad_args_t) -> Result<Wgrad> {
    let shape = shape(ctx, desc)?;
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    check::aligned("args.report", args.report)?;
    let Shape { rows, hidden: d, gathers, combines, activation, .. } = shape;
    let gradients = [&args.dw1, &args.dw1_up, &args.dw2, &args.db1, &args.db2];
    let grads = shape.grads(gradients, &args.dw_mode, &args.db_mode, !is_absent(&args.dw1_up))?;
    let at_input = shape.weights_at == WeightsAt::Input;
    let of_fc2 = grads.dw2.is_some() || grads.db2.is_some();
    let routing = Maps {
        offsets: args.group_offsets,
        sizes: args.group_sizes,
        token_of_row: &args.token_of_row,
        slot_of_row: &args.slot_of_row,
        row_of_slot: &args.row_of_slot,
        slot_offsets: &args.slot_offsets,
        weights: &args.weights,
        row_weights: &args.row_weights,
        tokens: &args.num_tokens,
        needs_tokens: (gathers && grads.of_w1()) || (combines && of_fc2),
        needs_rows: false,
        weighs_rows: if at_input { grads.of_w1() } else { grads.db2.is_some() },
    }
    .check(ctx, &shape)?;
    let for_w1 = grads.of_w1().then_some("for the gradient of W1");
    let for_fc1 = (grads.of_w1() || grads.db1.is_some()).then_some("for the gradients of fc1");
    let for_w2 = grads.dw2.is_some().then_some("for the gradient of W2");
    let for_fc2 = of_fc2.then_some("for the gradients of fc2");
    Ok(Wgrad {
        dy: shape.operand("args.dy", &args.dy, (shape.length(combines), d), for_fc2)?,
        x: shape.operand("args.x", &args.x, (shape.length(gathers), d), for_w1)?,
        dh: shape.operand("args.dh", &args.dh, (rows, activation.hidden()), for_fc1)?,
        weighted_act: shape.operand("args.weighted_act", &args.weighted_act, (rows, activation.ffn), for_w2)?,
        grads,
        shape,
        routing,
    })
}
