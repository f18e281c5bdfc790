//! Stages of the expert MLP in one Hopper kernel each: a grouped GEMM and what its epilogue does with the activation.

use super::activation::Formula;
use super::grouped_gemm::hopper::{SHAPES, Shape, best_shape, counts_fit, gathers, is_hopper, is_narrow, launch, row_boxes, tiles_of};
use super::grouped_gemm::tensor_map::{Boxes, TensorMap};
use super::{Device, Launcher};
use crate::abi::types::moe_device_report_t;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::groups::{Gather, Groups, RowWeights};
use crate::ops::expert_mlp::LinearActivate;
use crate::ops::grouped_gemm::WeightLayout;
use crate::tensor::{Grouped, Matrix};

/// act = weight * act(x W1^T + b1), and h where it is kept (kernels/hopper_glu.cuh).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HopperGluParams {
    /// Unused where x is gathered.
    pub a_map: TensorMap,
    pub gate_map: TensorMap,
    pub up_map: TensorMap,
    pub groups: Groups,
    pub a: Matrix,
    /// Index data is NULL where rows are taken as they are.
    pub gather: Gather,
    pub formula: Formula,
    pub k: i32,
    /// Where the halves begin in their maps.
    pub gate_outer: i32,
    pub up_outer: i32,
    /// Where they begin in the bias and in h.
    pub gate_at: i32,
    pub up_at: i32,
    /// Of the ring of copies.
    pub stages: i32,
    /// Data is NULL without a bias.
    pub bias: Matrix,
    pub row_weights: RowWeights,
    /// Data is NULL where h is not kept.
    pub h: Matrix,
    pub act: Matrix,
    pub report: *mut moe_device_report_t,
}

/// One half of W1 [E, 2f or f, d], or all of it.
fn weight_boxes(p: &LinearActivate, weight: &Grouped, rows: i64, columns: i64) -> Boxes {
    let layout = p.shape.w1_layout;
    let (rows, width) = layout.shape(rows, p.shape.hidden);
    Boxes {
        dtype: weight.dtype,
        data: weight.data.wrapping_offset((weight.offset * 2) as isize),
        groups: p.groups.count,
        rows,
        columns: width,
        pitch: weight.pitch,
        group_stride: weight.group_stride,
        box_rows: if layout == WeightLayout::OutIn { columns as u32 / 2 } else { 32 },
        grouped: true,
    }
}

fn aligned(matrix: &Matrix) -> bool {
    matrix.data.addr() % 16 == 0 && matrix.pitch % 8 == 0
}

/// Whether halves of so many columns can be written 16 bytes at a time.
fn halves_are_aligned(p: &LinearActivate) -> bool {
    p.shape.activation.ffn % 8 == 0 && aligned(&p.act) && p.h.as_ref().is_none_or(aligned)
}

pub fn takes_linear_activate(device: &Device, p: &LinearActivate) -> bool {
    let activation = &p.shape.activation;
    let rows = match &p.input.gather {
        Some(gather) => gathers(&p.input.x, gather.rows.bound),
        None => row_boxes(&p.input.x, p.groups.rows_max, p.shape.hidden, 64, false).fits(),
    };
    let outputs = if p.fc1.up.is_some() { activation.ffn } else { 2 * activation.ffn };
    is_hopper(device)
        && is_narrow(p.shape.dtype)
        && activation.gated
        && activation.block == activation.ffn
        && p.shape.hidden < 1 << 30
        && counts_fit(p.groups.rows_max, p.groups.count, p.groups.rows_max, 2 * activation.ffn)
        && rows
        && halves_are_aligned(p)
        && [Some(p.fc1.w1), p.fc1.up]
            .iter()
            .flatten()
            .all(|weight| weight.pointers.is_null() && weight_boxes(p, weight, outputs, 128).fits())
}

pub fn linear_activate(launcher: &Launcher, p: &LinearActivate) -> Result<()> {
    let activation = &p.shape.activation;
    let out_in = p.shape.w1_layout == WeightLayout::OutIn;
    let (ffn, split) = (activation.ffn, p.fc1.up.is_some());
    // A block of 64 columns across is of one half alone; the widest by turns has no room for a bias (BIASED).
    let shape = best_shape(2 * ffn, p.shape.hidden, 2.0, |shape| {
        shape.columns != 192 || out_in && p.fc1.bias.is_none()
    });
    let Shape { columns, .. } = SHAPES[shape];
    let outputs = if split { ffn } else { 2 * ffn };
    let gate_map = weight_boxes(p, &p.fc1.w1, outputs, columns).map(launcher)?;
    let up_map = match &p.fc1.up {
        Some(up) => weight_boxes(p, up, outputs, columns).map(launcher)?,
        None => gate_map,
    };
    let (gate_at, up_at) = if activation.up_first { (ffn as i32, 0) } else { (0, ffn as i32) };
    let gather = p.input.gather.unwrap_or(Gather::ABSENT);
    let a_map = match p.input.gather {
        None => row_boxes(&p.input.x, p.groups.rows_max, p.shape.hidden, 64, false).map(launcher)?,
        Some(_) => TensorMap { words: [0; 16] },
    };
    let params = |stages| HopperGluParams {
        a_map,
        gate_map,
        up_map,
        groups: p.groups,
        a: p.input.x,
        gather,
        formula: Formula::new(activation),
        k: p.shape.hidden as i32,
        gate_outer: if split { 0 } else { gate_at },
        up_outer: if split { 0 } else { up_at },
        gate_at,
        up_at,
        stages,
        bias: p.fc1.bias.unwrap_or(Matrix::ABSENT),
        row_weights: p.weights,
        h: p.h.unwrap_or(Matrix::ABSENT),
        act: p.act,
        report: launcher.report,
    };
    const KERNELS: [[[[&str; 3]; 2]; 2]; 2] = [
        [
            [widths!("hopper_glu_out_in_bf16"), widths!("hopper_glu_in_out_bf16")],
            [widths!("hopper_glu_gathered_out_in_bf16"), widths!("hopper_glu_gathered_in_out_bf16")],
        ],
        [
            [widths!("hopper_glu_out_in_fp16"), widths!("hopper_glu_in_out_fp16")],
            [widths!("hopper_glu_gathered_out_in_fp16"), widths!("hopper_glu_gathered_in_out_fp16")],
        ],
    ];
    let of_dtype = &KERNELS[usize::from(p.shape.dtype == Dtype::Fp16)];
    let kernel = of_dtype[usize::from(p.input.gather.is_some())][usize::from(!out_in)][shape];
    launch(launcher, kernel, p.groups.count, columns, tiles_of(&p.groups, 2 * ffn, columns), params)
}
