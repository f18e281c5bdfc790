//! Stages of the expert MLP in one Hopper kernel each: a grouped GEMM and what its epilogue does with the activation.

use super::activation::Formula;
use super::grouped_gemm::hopper::{
    STAGING, counts_fit, is_hopper, is_narrow, launch, pick, row_source, rows_fit, tiles_of, weight_boxes, weight_fits,
};
use super::grouped_gemm::shapes::{SHAPES, Sizes, row_tiles};
use super::grouped_gemm::tensor_map::{BoxSource, Boxes, TensorMap};
use super::{Device, Launcher};
use crate::abi::types::moe_device_report_t;
use crate::error::Result;
use crate::groups::{Gather, Groups, RowWeights};
use crate::ops::activation::Activation;
use crate::ops::expert_mlp::{DOT_COLUMNS, LinearActivate, LinearActivateBackward, Shape};
use crate::ops::grouped_gemm::WeightLayout;
use crate::tensor::{Grouped, Matrix};

/// act = weight * act(x W1^T + b1), and h where it is kept (kernels/hopper_glu.cuh).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HopperGluParams {
    /// Unused where x is gathered.
    pub a_boxes: BoxSource,
    pub gate_boxes: BoxSource,
    pub up_boxes: BoxSource,
    pub groups: Groups,
    pub a: Matrix,
    /// Index data is NULL where rows are taken as they are.
    pub gather: Gather,
    pub formula: Formula,
    pub k: i32,
    /// Where the halves begin in their weights.
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

/// Back through fc2 and the activation (kernels/hopper_glu_bwd.cuh).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HopperGluBwdParams {
    /// Unused where dy is gathered.
    pub a_boxes: BoxSource,
    /// Of W2.
    pub b_boxes: BoxSource,
    pub groups: Groups,
    pub a: Matrix,
    /// Index data is NULL where rows are taken as they are.
    pub gather: Gather,
    pub formula: Formula,
    /// d.
    pub k: i32,
    /// Where the halves begin in h and in dh.
    pub gate_at: i32,
    pub up_at: i32,
    /// Of the ring of copies.
    pub stages: i32,
    pub row_weights: RowWeights,
    pub h: Matrix,
    pub dh: Matrix,
    /// Data is NULL where it is not wanted.
    pub weighted_act: Matrix,
    /// [R, dots_of_row]: <dact, act> by parts; NULL where it is not wanted.
    pub dots: *mut f32,
    pub dots_of_row: i64,
    pub report: *mut moe_device_report_t,
}

/// Columns of act that a tile of the backward has, and bytes in which each warp lays out what it reads of h.
const BWD_COLUMNS: i64 = DOT_COLUMNS;
const BWD_STAGING: i64 = 8192;

/// One half of W1 [E, 2f or f, d], or all of it.
fn w1_boxes(p: &LinearActivate, weight: &Grouped, outputs: i64, columns: i64) -> Boxes {
    weight_boxes(weight, p.groups.count, p.shape.w1_layout, outputs, p.shape.hidden, columns)
}

fn w2_boxes(p: &LinearActivateBackward) -> Boxes {
    let Shape { w2_layout, hidden, .. } = &p.shape;
    weight_boxes(&p.w2, p.groups.count, w2_layout.transposed(), p.shape.activation.ffn, *hidden, BWD_COLUMNS)
}

/// How h holds what the kernels take: GluForm of kernels/hopper_glu.cuh.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Halves,
    Pairs,
    Single,
}

/// None: by blocks that are no halves.
fn form(activation: &Activation) -> Option<Form> {
    match activation {
        Activation { gated: false, .. } => Some(Form::Single),
        Activation { ffn, block, .. } if block == ffn => Some(Form::Halves),
        Activation { block: 1, up_first: false, .. } => Some(Form::Pairs),
        _ => None,
    }
}

/// Where the gate's and up's columns of h begin.
fn halves_at(activation: &Activation) -> (i32, i32) {
    let ffn = activation.ffn as i32;
    match (activation.gated, activation.up_first) {
        (false, _) => (0, 0),
        (true, false) => (0, ffn),
        (true, true) => (ffn, 0),
    }
}

fn aligned(matrix: &Matrix) -> bool {
    matrix.data.addr() % 16 == 0 && matrix.pitch % 8 == 0
}

/// Whether halves of so many columns can be read and written 16 bytes at a time.
fn halves_are_aligned<const N: usize>(activation: &Activation, matrices: [Option<&Matrix>; N]) -> bool {
    activation.ffn % 8 == 0 && matrices.into_iter().flatten().all(aligned)
}

pub fn takes_linear_activate(device: &Device, p: &LinearActivate, room: *mut TensorMap) -> bool {
    let activation = &p.shape.activation;
    is_hopper(device)
        && is_narrow(p.shape.dtype)
        && form(activation).is_some()
        && p.shape.hidden < 1 << 30
        && counts_fit(p.groups.rows_max, p.groups.count, p.groups.rows_max, activation.hidden())
        && rows_fit(&p.input.x, &p.input.gather, p.groups.rows_max, p.shape.hidden)
        && halves_are_aligned(activation, [Some(&p.act), p.h.as_ref()])
        && [Some(p.fc1.w1), p.fc1.up]
            .iter()
            .flatten()
            .all(|weight| weight_fits(weight, w1_boxes(p, weight, w1_outputs(p), 128), room))
}

/// Columns of h that W1, or each of its tensors, makes.
fn w1_outputs(p: &LinearActivate) -> i64 {
    if p.fc1.up.is_some() { p.shape.activation.ffn } else { p.shape.activation.hidden() }
}

pub fn linear_activate(launcher: &Launcher, p: &LinearActivate, room: *mut TensorMap) -> Result<()> {
    let activation = &p.shape.activation;
    let out_in = p.shape.w1_layout == WeightLayout::OutIn;
    let (split, form) = (p.fc1.up.is_some(), form(activation).unwrap_or(Form::Halves));
    // A block of 64 columns across is of one half alone; the widest by turns have no room for a bias (BIASED).
    let sizes = Sizes {
        row_tiles: row_tiles(&p.groups),
        columns: activation.hidden(),
        depth: p.shape.hidden,
        epilogue: 2.0,
        gathered: p.input.gather.is_some(),
        boxed: false,
    };
    let shape = sizes.best_shape(launcher.device.multiprocessors, |shape| {
        !shape.crowded() || form == Form::Halves && out_in && p.fc1.bias.is_none()
    });
    let columns = SHAPES[shape].columns;
    let outputs = w1_outputs(p);
    let boxes = |weight| w1_boxes(p, weight, outputs, columns);
    let gate_boxes = boxes(&p.fc1.w1).source_of(launcher, &p.fc1.w1, room)?;
    let up_boxes = match &p.fc1.up {
        // Behind the gate's maps.
        Some(up) => boxes(up).source_of(launcher, up, room.wrapping_add(p.groups.count as usize))?,
        None => gate_boxes,
    };
    let (gate_at, up_at) = halves_at(activation);
    let a_boxes = row_source(launcher, &p.input.x, &p.input.gather, p.groups.rows_max, p.shape.hidden)?;
    let params = |stages| HopperGluParams {
        a_boxes,
        gate_boxes,
        up_boxes,
        groups: p.groups,
        a: p.input.x,
        gather: p.input.gather.unwrap_or(Gather::ABSENT),
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
    const KERNELS: [[[[[&str; 4]; 2]; 2]; 2]; 3] = [
        kernels!("hopper_glu_", widths),
        kernels!("hopper_glu_pairs_", widths),
        kernels!("hopper_glu_single_", widths),
    ];
    let kernel = pick(&KERNELS[form as usize], p.shape.dtype, &p.input.gather, !out_in)[shape];
    let tiles = tiles_of(&p.groups, activation.hidden(), columns);
    launch(launcher, kernel, p.groups.count, columns, tiles, STAGING, params)
}

pub fn takes_linear_activate_backward(device: &Device, p: &LinearActivateBackward, room: *mut TensorMap) -> bool {
    let activation = &p.shape.activation;
    is_hopper(device)
        && is_narrow(p.shape.dtype)
        && form(activation).is_some()
        && p.shape.hidden < 1 << 30
        && counts_fit(p.groups.rows_max, p.groups.count, p.groups.rows_max, activation.ffn)
        && rows_fit(&p.dy, &p.gather, p.groups.rows_max, p.shape.hidden)
        && halves_are_aligned(activation, [Some(&p.h), Some(&p.dh), p.weighted_act.as_ref()])
        && weight_fits(&p.w2, w2_boxes(p), room)
}

/// All but what belongs to gaps, and the sums of the dots' parts.
pub fn linear_activate_backward(launcher: &Launcher, p: &LinearActivateBackward, room: *mut TensorMap) -> Result<()> {
    let activation = &p.shape.activation;
    let (gate_at, up_at) = halves_at(activation);
    let a_boxes = row_source(launcher, &p.dy, &p.gather, p.groups.rows_max, p.shape.hidden)?;
    let b_boxes = w2_boxes(p).source_of(launcher, &p.w2, room)?;
    let params = |stages| HopperGluBwdParams {
        a_boxes,
        b_boxes,
        groups: p.groups,
        a: p.dy,
        gather: p.gather.unwrap_or(Gather::ABSENT),
        formula: Formula::new(activation),
        k: p.shape.hidden as i32,
        gate_at,
        up_at,
        stages,
        row_weights: p.weights,
        h: p.h,
        dh: p.dh,
        weighted_act: p.weighted_act.unwrap_or(Matrix::ABSENT),
        dots: if p.dots.is_some() { p.dot_parts } else { std::ptr::null_mut() },
        dots_of_row: p.shape.dot_parts(),
        report: launcher.report,
    };
    const KERNELS: [[[[&str; 2]; 2]; 2]; 2] =
        [kernels!("hopper_glu_bwd_", name), kernels!("hopper_glu_bwd_pairs_", name)];
    let across = p.shape.w2_layout.transposed() == WeightLayout::InOut;
    let pairs = form(activation) == Some(Form::Pairs);
    let kernel = pick(&KERNELS[usize::from(pairs)], p.shape.dtype, &p.gather, across);
    let tiles = tiles_of(&p.groups, activation.ffn, BWD_COLUMNS);
    launch(launcher, kernel, p.groups.count, BWD_COLUMNS, tiles, BWD_STAGING, params)
}
