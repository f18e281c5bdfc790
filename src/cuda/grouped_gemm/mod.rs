//! Grouped GEMM on CUDA: forward, dgrad, wgrad and the gradient of the bias.

#[macro_use]
pub mod hopper;
pub mod shapes;
pub mod tensor_map;

use super::{Launch, Launcher};
use crate::abi::types::*;
use crate::check::OutputMode;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::groups::{Gather, Groups, RowWeights};
use crate::ops::grouped_gemm::{BiasGrad, Linear, WeightLayout, Wgrad};
use crate::tensor::{Grouped, Matrix};
use tensor_map::TensorMap;

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

#[repr(C)]
#[derive(Clone, Copy)]
pub struct BiasGradParams {
    pub groups: Groups,
    pub dc: Matrix,
    /// Index data is NULL where rows are taken as they are.
    pub gather: Gather,
    pub weights: RowWeights,
    pub dbias: Matrix,
    pub mode: OutputMode,
    pub n: i64,
    pub beta: f32,
    pub report: *mut moe_device_report_t,
}

/// Rows and columns of a tile, threads of a block, bytes of its shared memory: as kernels/gemm_fragments.cuh says.
pub const TILE_ROWS: i64 = 128;
pub const TILE_COLUMNS: i64 = 256;
pub const THREADS: u32 = 256;
pub const SHARED: u32 = 4 * (128 + 256) * 64;
/// Columns that a block of the bias' gradient sums at a time.
const STRIP: i64 = 64;

/// What kernels are called, by how operands are multiplied.
struct Names {
    out_in: &'static str,
    in_out: &'static str,
    wgrad: &'static str,
}

macro_rules! names {
    ($math:literal) => {
        Names {
            out_in: concat!("grouped_gemm_out_in_", $math),
            in_out: concat!("grouped_gemm_in_out_", $math),
            wgrad: concat!("grouped_gemm_wgrad_", $math),
        }
    };
}

/// FP64 was refused before.
fn names(dtype: Dtype, tf32: bool) -> Names {
    match dtype {
        Dtype::Bf16 => names!("bf16"),
        Dtype::Fp16 => names!("fp16"),
        _ if tf32 => names!("tf32"),
        _ => names!("fp32"),
    }
}

/// `room`: for maps of weights that are given by pointers, as `hopper::room` says, or NULL.
pub fn linear(launcher: &Launcher, p: &Linear, room: *mut TensorMap) -> Result<()> {
    if hopper::takes_linear(launcher.device, p, room) {
        return hopper::linear(launcher, p, room);
    }
    let names = names(p.a.dtype, p.tf32);
    let kernel = if p.layout == WeightLayout::OutIn { names.out_in } else { names.in_out };
    launch_tiles(launcher, kernel, linear_tiles(&p.groups, p.n), &linear_params(launcher, p))
}

fn linear_params(launcher: &Launcher, p: &Linear) -> LinearParams {
    LinearParams {
        groups: p.groups,
        a: p.a,
        gather: p.gather.unwrap_or(Gather::ABSENT),
        b: p.b,
        bias: p.bias.unwrap_or(Matrix::ABSENT),
        c: p.c,
        mode: p.output.mode,
        n: p.n,
        k: p.k,
        alpha: p.alpha as f32,
        beta: p.output.beta as f32,
        report: launcher.report,
    }
}

pub fn wgrad(launcher: &Launcher, p: &Wgrad) -> Result<()> {
    let params = wgrad_params(launcher, p);
    if hopper::takes_wgrad(launcher.device, &params) {
        return hopper::wgrad(launcher, params);
    }
    let tiles = p.groups.count * blocks(params.rows, TILE_ROWS) * blocks(params.columns, TILE_COLUMNS);
    launch_tiles(launcher, names(p.dc.dtype, p.tf32).wgrad, tiles, &params)
}

fn wgrad_params(launcher: &Launcher, p: &Wgrad) -> WgradParams {
    let gather = p.gather.unwrap_or(Gather::ABSENT);
    let out_in = p.layout == WeightLayout::OutIn;
    let (rows, columns) = p.layout.shape(p.n, p.k);
    WgradParams {
        groups: p.groups,
        left: if out_in { p.dc } else { p.a },
        right: if out_in { p.a } else { p.dc },
        left_gather: if out_in { Gather::ABSENT } else { gather },
        right_gather: if out_in { gather } else { Gather::ABSENT },
        out: p.db,
        mode: p.output.mode,
        rows,
        columns,
        alpha: p.alpha as f32,
        beta: p.output.beta as f32,
        report: launcher.report,
    }
}

pub fn bias_grad(launcher: &Launcher, p: &BiasGrad) -> Result<()> {
    let params = BiasGradParams {
        groups: p.groups,
        dc: p.dc,
        gather: p.gather.unwrap_or(Gather::ABSENT),
        weights: p.weights,
        dbias: p.dbias,
        mode: p.output.mode,
        n: p.n,
        beta: p.output.beta as f32,
        report: launcher.report,
    };
    let strips = p.groups.count * blocks(p.n, STRIP);
    let grid = strips.min(8 * i64::from(launcher.device.multiprocessors)) as u32;
    launcher.launch(
        &Launch { kernel: "grouped_gemm_bias_grad", grid: [grid, 1, 1], block: 256, ..Default::default() },
        &params,
    )
}

/// The most tiles that rows through weights of `n` outputs can make: each group may end within one.
pub fn linear_tiles(groups: &Groups, n: i64) -> i64 {
    (groups.rows_max / TILE_ROWS + groups.count.min(groups.rows_max)) * blocks(n, TILE_COLUMNS)
}

/// Launches a kernel of kernels/gemm_portable.cuh: as many blocks as run at once, if there are so many tiles.
pub fn launch_tiles<P: Copy>(launcher: &Launcher, kernel: &'static str, tiles: i64, params: &P) -> Result<()> {
    let resident = launcher.device.max_blocks(kernel, THREADS, SHARED)?;
    let grid = tiles.min(resident.into()) as u32;
    launcher
        .launch(&Launch { kernel, grid: [grid, 1, 1], block: THREADS, shared: SHARED, ..Default::default() }, params)
}

fn blocks(length: i64, size: i64) -> i64 {
    (length + size - 1) / size
}
