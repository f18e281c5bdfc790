//! Activations on CUDA: one launch each.

use super::Launcher;
use super::rows::{launch_rows, packs, row_team};
use crate::abi::types::*;
use crate::check::Count;
use crate::error::Result;
use crate::groups::{Groups, RowWeights};
use crate::ops::activation::{Activation, Backward, Curve, Extent, Forward};
use crate::tensor::Matrix;

pub const CURVE_SWISH: i32 = 0;
pub const CURVE_GELU_ERF: i32 = 1;
pub const CURVE_GELU_TANH: i32 = 2;
pub const CURVE_RELU: i32 = 3;
pub const CURVE_RELU2: i32 = 4;

/// `Activation` of src/ops/activation.rs, but for where the halves lie.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Formula {
    /// CURVE_*.
    pub curve: i32,
    pub gated: bool,
    pub alpha: f32,
    /// Infinite where nothing is clamped.
    pub limit: f32,
    pub shift: f32,
    /// f: columns of act.
    pub ffn: i32,
}

/// Element by element.
pub const ACCESS_ELEMENTS: i32 = 0;
/// 16 bytes of each half at a time.
pub const ACCESS_PACKS: i32 = 1;
/// Gate and up by turns, 32 bytes at a time.
pub const ACCESS_PAIRS: i32 = 2;

/// How h holds the halves, and how rows are read and written.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HalvesLayout {
    /// ACCESS_*.
    pub access: i32,
    /// So many columns of one half, then as many of the other.
    pub block: i32,
    pub up_first: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ActivationFwdParams {
    pub formula: Formula,
    pub halves: HalvesLayout,
    /// Threads a row: 32 or ROW_THREADS.
    pub team: i32,
    /// Read where there are no groups (count 0).
    pub rows: Count,
    pub groups: Groups,
    pub row_weights: RowWeights,
    pub h: Matrix,
    pub y: Matrix,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ActivationBwdParams {
    pub formula: Formula,
    pub halves: HalvesLayout,
    /// Threads a row: 32 or ROW_THREADS.
    pub team: i32,
    /// Read where there are no groups (count 0).
    pub rows: Count,
    pub groups: Groups,
    pub row_weights: RowWeights,
    pub h: Matrix,
    pub dy: Matrix,
    pub dh: Matrix,
    /// Of these three, data is NULL for what is not there.
    pub drow_weights: Matrix,
    pub dot_start: Matrix,
    pub weighted_act: Matrix,
    pub report: *mut moe_device_report_t,
}

impl Formula {
    pub fn new(activation: &Activation) -> Self {
        Formula {
            curve: match activation.curve {
                Curve::Swish => CURVE_SWISH,
                Curve::GeluErf => CURVE_GELU_ERF,
                Curve::GeluTanh => CURVE_GELU_TANH,
                Curve::Relu => CURVE_RELU,
                Curve::Relu2 => CURVE_RELU2,
            },
            gated: activation.gated,
            alpha: activation.alpha as f32,
            limit: activation.limit as f32,
            shift: activation.shift as f32,
            ffn: activation.ffn as i32,
        }
    }
}

impl HalvesLayout {
    /// Rows of all `matrices` are read and written alike.
    fn new(activation: &Activation, matrices: &[Matrix]) -> Self {
        let Activation { ffn, block, gated, up_first, .. } = *activation;
        let packs = packs(matrices, ffn);
        let pack = matrices.first().map_or(1, |m| 16 / m.dtype.size());
        let access = match () {
            _ if packs && block % pack == 0 => ACCESS_PACKS,
            _ if packs && gated && block == 1 => ACCESS_PAIRS,
            _ => ACCESS_ELEMENTS,
        };
        HalvesLayout { access, block: block as i32, up_first }
    }
}

/// The true count, and the groups; the one that is not there is empty.
fn extent(extent: &Extent) -> (Count, Groups) {
    match *extent {
        Extent::Count(rows) => {
            let none = Groups { count: 0, rows_max: rows.bound, offsets: std::ptr::null(), sizes: std::ptr::null() };
            (rows, none)
        }
        Extent::Groups(groups) => (Count { bound: groups.rows_max, device: std::ptr::null(), wide: false }, groups),
    }
}

pub fn forward(launcher: &Launcher, p: &Forward) -> Result<()> {
    let (rows, groups) = extent(&p.extent);
    let team = row_team(p.activation.ffn);
    let params = ActivationFwdParams {
        formula: Formula::new(&p.activation),
        halves: HalvesLayout::new(&p.activation, &[p.h, p.y]),
        team,
        rows,
        groups,
        row_weights: p.row_weights,
        h: p.h,
        y: p.y,
        report: launcher.report,
    };
    let kernels = ["activation_fwd_fp32", "activation_fwd_fp16", "activation_fwd_bf16"];
    launch_rows(launcher, kernels, p.h.dtype, rows.bound, team, &params)
}

pub fn backward(launcher: &Launcher, p: &Backward) -> Result<()> {
    let (rows, groups) = extent(&p.extent);
    let team = row_team(p.activation.ffn);
    let optional = |matrix: Option<Matrix>| matrix.unwrap_or(Matrix::ABSENT);
    let weighted_act = optional(p.weighted_act);
    let params = ActivationBwdParams {
        formula: Formula::new(&p.activation),
        halves: HalvesLayout::new(&p.activation, &[p.h, p.dy, p.dh, weighted_act]),
        team,
        rows,
        groups,
        row_weights: p.row_weights,
        h: p.h,
        dy: p.dy,
        dh: p.dh,
        drow_weights: optional(p.drow_weights),
        dot_start: optional(p.dot_start),
        weighted_act,
        report: launcher.report,
    };
    let kernels = ["activation_bwd_fp32", "activation_bwd_fp16", "activation_bwd_bf16"];
    launch_rows(launcher, kernels, p.h.dtype, rows.bound, team, &params)
}
