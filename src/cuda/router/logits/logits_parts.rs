//! What the router's GEMM makes on its way: gradients made ready, and parts of sums, which are joined in their order.

use super::hopper_gate::{Dealt, Gradient};
use super::{ceil_div, dweight_split, real};
use crate::abi::types::*;
use crate::check::{Count, OutputMode};
use crate::cuda::{Device, Launch, Launcher};
use crate::error::Result;
use crate::ops::router::logits::{Backward, Gate};
use crate::tensor::Matrix;
use crate::workspace::{Layout, Part, Workspace};

/// Tokens that a block sums for the bias' gradient, at least.
const BIAS_TOKENS: i64 = 64;

/// Gradients made ready for kernels/hopper_gate.cuh, and summed for the bias.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterSplitParams {
    pub tokens: Count,
    pub experts: i32,
    pub dlogits: Matrix,
    /// [1 or 2, T, pitch] of bf16: each, and its rest if that is wanted. NULL: not wanted.
    pub parts: *mut u8,
    pub pitch: i64,
    pub rest: bool,
    /// [blocks, E], sums of `span` tokens each; NULL: not wanted.
    pub dbias_parts: *mut f64,
    pub span: i64,
    pub report: *mut moe_device_report_t,
}

/// Joins parts: out[rows, columns] = sum of the parts (+ bias); dbias[experts] = sum of its parts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterJoinParams {
    pub partials: *const u8,
    /// Parts are fp64.
    pub wide: bool,
    pub splits: i32,
    pub rows: Count,
    pub columns: i64,
    pub bias: Matrix,
    pub out: Matrix,
    pub mode: OutputMode,
    /// Not 0: so many columns are a tile, which has a part for each cluster with a share of it (kernels/router_shares.cuh).
    pub tile: i64,
    pub tiles: i32,
    pub clusters: i32,
    pub tokens: Count,
    /// NULL: there are none.
    pub dbias_parts: *const f64,
    pub dbias_splits: i32,
    pub experts: i32,
    pub dbias: Matrix,
    pub dbias_mode: OutputMode,
    pub report: *mut moe_device_report_t,
}

/// What the backward makes on its way.
pub struct BwdParts {
    pub dweight: Part,
    pub dbias: Part,
    pub gradient: Part,
}

pub fn dbias_blocks(device: &Device, gate: &Gate) -> i64 {
    ceil_div(gate.tokens, BIAS_TOKENS).clamp(1, 2 * i64::from(device.multiprocessors))
}

pub fn bwd_layout(device: &Device, gate: &Gate) -> (Layout, BwdParts) {
    let mut layout = Layout::default();
    let parts = dweight_split(device, gate).parts.max(Dealt::most(device, gate));
    let dweight = layout.part(parts * gate.experts * gate.hidden * real(gate));
    let dbias = layout.part(dbias_blocks(device, gate) * gate.experts * 8);
    let gradient = layout.part(Gradient::copy_bytes(device, gate));
    (layout, BwdParts { dweight, dbias, gradient })
}

/// The gradient as Hopper's kernels read it, if one does; parts of the bias' gradient, if that is wanted.
pub fn gradient(
    launcher: &Launcher,
    problem: &Backward,
    (workspace, parts): (Workspace, &BwdParts),
    hopper: bool,
) -> Result<Gradient> {
    let gate = &problem.gate;
    let in_place = Gradient::in_place(gate, &problem.dlogits);
    let copied = hopper && in_place.is_none();
    let data: *mut u8 = workspace.at(parts.gradient);
    let gradient =
        in_place.unwrap_or(Gradient { data, pitch: Gradient::copy_pitch(gate), parts: Gradient::parts(gate) });
    if !copied && problem.dbias.is_none() {
        return Ok(gradient);
    }
    let blocks = dbias_blocks(launcher.device, gate);
    let params = RouterSplitParams {
        tokens: problem.tokens,
        experts: gate.experts as i32,
        dlogits: problem.dlogits,
        parts: if copied { data } else { std::ptr::null_mut() },
        pitch: gradient.pitch,
        rest: gradient.parts == 2,
        dbias_parts: if problem.dbias.is_some() { workspace.at(parts.dbias) } else { std::ptr::null_mut() },
        span: ceil_div(gate.tokens, blocks),
        report: launcher.report,
    };
    let launch = Launch {
        kernel: "router_logits_split",
        grid: [blocks as u32, 1, 1],
        block: 256,
        overlap: true,
        ..Default::default()
    };
    launcher.launch(&launch, &params)?;
    Ok(gradient)
}

/// Nothing to join.
pub fn no_parts(launcher: &Launcher, gate: &Gate) -> RouterJoinParams {
    let none = Count { bound: 0, device: std::ptr::null(), wide: false };
    let overwrite = OutputMode { add: false, device: std::ptr::null() };
    RouterJoinParams {
        partials: std::ptr::null(),
        wide: gate.wide,
        splits: 0,
        rows: none,
        columns: 0,
        bias: Matrix::ABSENT,
        out: Matrix::ABSENT,
        mode: overwrite,
        tile: 0,
        tiles: 0,
        clusters: 0,
        tokens: none,
        dbias_parts: std::ptr::null(),
        dbias_splits: 0,
        experts: gate.experts as i32,
        dbias: Matrix::ABSENT,
        dbias_mode: overwrite,
        report: launcher.report,
    }
}

pub fn join(launcher: &Launcher, joined: RouterJoinParams) -> Result<()> {
    const THREADS: i64 = 256;
    // A thread has four columns, or one.
    let tiles = i64::from(joined.tiles.max(1));
    let columns = if joined.tile > 0 { joined.tile } else { joined.columns };
    let elements = joined.rows.bound.saturating_mul(columns);
    let most = ceil_div(8 * i64::from(launcher.device.multiprocessors), tiles);
    let per_bias = if joined.dbias_parts.is_null() { 0 } else { ceil_div(joined.experts.into(), THREADS / 32) };
    let across = ceil_div(elements, 4 * THREADS).min(most).max(per_bias);
    let down = if elements > 0 { tiles } else { 0 } + i64::from(per_bias > 0);
    let grid = [across as u32, down as u32, 1];
    let kernel = "router_logits_join";
    launcher.launch(&Launch { kernel, grid, block: THREADS as u32, overlap: true, ..Default::default() }, &joined)
}
