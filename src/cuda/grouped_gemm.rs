//! Grouped GEMM on CUDA: forward, dgrad, wgrad and the gradient of the bias.

use super::{Device, Launch, Launcher};
use crate::abi::types::*;
use crate::check::OutputMode;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::groups::{Gather, Groups, RowWeights};
use crate::ops::grouped_gemm::{BiasGrad, Linear, WeightLayout, Wgrad};
use crate::tensor::{Grouped, Matrix};

/// Forward and dgrad: `Linear` of src/ops/grouped_gemm.rs.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LinearParams {
    pub groups: Groups,
    pub a: Matrix,
    /// Index data is NULL where rows are taken as they are.
    pub gather: Gather,
    pub b: Grouped,
    /// Data is NULL without a bias.
    pub bias: Matrix,
    pub c: Matrix,
    pub mode: OutputMode,
    pub n: i64,
    pub k: i64,
    pub alpha: f32,
    pub beta: f32,
    pub report: *mut moe_device_report_t,
}

/// out_g[rows, columns] = alpha * left_g^T * right_g (+ beta * out_g).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WgradParams {
    pub groups: Groups,
    pub left: Matrix,
    pub right: Matrix,
    /// Index data is NULL where rows are taken as they are.
    pub left_gather: Gather,
    pub right_gather: Gather,
    pub out: Grouped,
    pub mode: OutputMode,
    pub rows: i64,
    pub columns: i64,
    pub alpha: f32,
    pub beta: f32,
    pub report: *mut moe_device_report_t,
}
