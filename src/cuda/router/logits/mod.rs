//! The router's GEMM on a GPU: tensor cores for 16-bit operands with 16-byte rows, Hopper's own where they serve, plain
//! multiplication for all others.
//!
//! Sums are split where there are too few tiles for all multiprocessors, into parts that depend on the sizes and the
//! device alone, and joined in their order.

use crate::abi::types::*;
use crate::check::{Count, OutputMode};
use crate::cuda::{Device, Launch, Launcher};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::router::logits::{Backward, Forward, Gate};
use crate::tensor::Matrix;
use crate::workspace::{Layout, Part, Workspace};

use self::hopper_gate::Dealt;
use self::logits_parts::{BwdParts, RouterJoinParams, dbias_blocks, gradient, join, no_parts};
use super::ceil_div;

pub use self::logits_parts::bwd_layout;

pub mod hopper_gate;
pub mod logits_parts;

/// Tokens of a tile of the tensor cores, and elements of a step along the sum.
pub const GATE_TOKENS: i64 = 128;
pub const GATE_STEP: i64 = 64;
/// Columns of x that a block of the gradient of the weights has.
pub const GATE_COLUMNS: i64 = 128;
/// Rows and columns of a tile of plain multiplication.
pub const GATE_PLAIN: i64 = 64;
/// Tokens of a stage of Hopper's gradient of the weights: what its sums are dealt by.
pub const GATE_SHARE: i64 = 32;
/// Bytes in which a warp of Hopper's kernels lays its outputs out.
pub const GATE_STAGING: i64 = 2048;
/// The least that a part of a split sum has.
const LEAST_SPAN: i64 = 256;

/// Of every kernel that multiplies. Data is NULL where a tensor is absent.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterGateParams {
    pub tokens: Count,
    pub hidden: i64,
    pub experts: i32,
    pub jitter: bool,
    pub eps: f32,
    pub random: moe_random_t,
    pub x: Matrix,
    pub weight: Matrix,
    pub bias: Matrix,
    pub logits: Matrix,
    pub jittered_x: Matrix,
    pub dlogits: Matrix,
    pub dx: Matrix,
    pub dx_mode: OutputMode,
    /// [splits, rows, columns] of sums of so many elements each; NULL: the sum is whole.
    pub partials: *mut u8,
    pub span: i64,
    /// Of the weights, in the gradient of x: 2 to 4.
    pub stages: i32,
    pub report: *mut moe_device_report_t,
}

/// How a sum is split.
#[derive(Clone, Copy)]
pub struct Split {
    parts: i64,
    /// Elements of a part.
    span: i64,
}

impl Split {
    /// Enough parts that `tiles` of them occupy `blocks` blocks.
    fn new(length: i64, tiles: i64, blocks: i64, least: i64) -> Self {
        let parts = (blocks / tiles.max(1)).clamp(1, ceil_div(length, least).max(1));
        let span = ceil_div(ceil_div(length, parts).max(1), GATE_STEP) * GATE_STEP;
        Split { parts: ceil_div(length, span).max(1), span }
    }
}

/// Experts of a tile of the forward.
fn tile_experts(device: &Device, experts: i64) -> i64 {
    let wanted = [16, 64, 128, 256].into_iter().find(|&tile| experts <= tile).unwrap_or(256);
    if fits(device, fwd_shared(wanted)) { wanted } else { 64 }
}

/// Stages of the pipeline of kernels/router_logits_fwd.cu, times their bytes.
fn fwd_shared(tile: i64) -> i64 {
    let stages = if tile == 64 || tile == 256 { 4 } else { 5 };
    stages * (GATE_TOKENS + tile) * GATE_STEP * 2
}

/// Whether tensor cores may do it; whether they can is up to the tensors.
fn matrix_cores(gate: &Gate) -> bool {
    !gate.wide && matches!(gate.dtype, Dtype::Fp16 | Dtype::Bf16)
}

/// Whether they may do it for gradients: a fp32 gradient is split in two, which fp16's range is too small for.
fn matrix_cores_take(gate: &Gate) -> bool {
    matrix_cores(gate) && (gate.dtype == Dtype::Bf16 || gate.logits == gate.dtype)
}

/// Whether a block can have so many bytes of shared memory.
fn fits(device: &Device, shared: i64) -> bool {
    shared <= i64::from(device.shared_memory) - 1024
}

/// Rows can be copied by 16 bytes.
fn packed(matrix: &Matrix) -> bool {
    matrix.data.addr().is_multiple_of(16) && matrix.pitch % 8 == 0
}

fn fwd_tiles(device: &Device, gate: &Gate) -> (i64, i64) {
    match matrix_cores(gate) {
        true => (GATE_TOKENS, tile_experts(device, gate.experts)),
        false => (GATE_PLAIN, GATE_PLAIN),
    }
}

fn fwd_split(device: &Device, gate: &Gate) -> Split {
    let (rows, columns) = fwd_tiles(device, gate);
    let tiles = ceil_div(gate.tokens, rows) * ceil_div(gate.experts, columns);
    Split::new(gate.hidden, tiles, device.multiprocessors.into(), LEAST_SPAN)
}

fn real(gate: &Gate) -> i64 {
    if gate.wide { 8 } else { 4 }
}

/// Parts of logits.
pub fn fwd_layout(device: &Device, gate: &Gate) -> (Layout, Part) {
    // The fewer parts the more tokens, so that this is the most that any number of tokens up to the bound needs.
    let (rows, _) = fwd_tiles(device, gate);
    let most = ceil_div(gate.hidden, LEAST_SPAN).min(device.multiprocessors.into());
    let parts = (gate.tokens.saturating_mul(most)).min(rows * i64::from(device.multiprocessors));
    let mut layout = Layout::default();
    let part = layout.part(if most > 1 { parts * gate.experts * real(gate) } else { 0 });
    (layout, part)
}

fn dweight_split(device: &Device, gate: &Gate) -> Split {
    let (rows, columns) = match matrix_cores(gate) {
        true => (dweight_experts(gate.experts), GATE_COLUMNS),
        false => (GATE_PLAIN, GATE_PLAIN),
    };
    let tiles = ceil_div(gate.experts, rows) * ceil_div(gate.hidden, columns);
    // Two blocks of few experts share a multiprocessor.
    let blocks = i64::from(device.multiprocessors) * if matrix_cores(gate) && rows <= 64 { 2 } else { 1 };
    Split::new(gate.tokens, tiles, blocks, LEAST_SPAN)
}

/// Experts of a tile of the weights' gradient.
fn dweight_experts(experts: i64) -> i64 {
    if experts <= 16 {
        16
    } else if experts <= 64 {
        64
    } else {
        128
    }
}

fn params(gate: &Gate, tokens: Count, random: moe_random_t, launcher: &Launcher) -> RouterGateParams {
    RouterGateParams {
        tokens,
        hidden: gate.hidden,
        experts: gate.experts as i32,
        jitter: gate.jitter.is_some(),
        eps: gate.jitter.unwrap_or(0.0) as f32,
        random,
        x: Matrix::ABSENT,
        weight: Matrix::ABSENT,
        bias: Matrix::ABSENT,
        logits: Matrix::ABSENT,
        jittered_x: Matrix::ABSENT,
        dlogits: Matrix::ABSENT,
        dx: Matrix::ABSENT,
        dx_mode: OutputMode { add: false, device: std::ptr::null() },
        partials: std::ptr::null_mut(),
        span: 0,
        stages: 2,
        report: launcher.report,
    }
}

pub fn fwd(
    device: &Device,
    problem: &Forward,
    (workspace, part): (Workspace, Part),
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    let gate = &problem.gate;
    if gate.tokens == 0 {
        return Ok(());
    }
    device.run(report, stream, |launcher| {
        let split = fwd_split(device, gate);
        let mut params = RouterGateParams {
            x: problem.x,
            weight: problem.weight,
            bias: problem.bias.unwrap_or(Matrix::ABSENT),
            logits: problem.logits,
            jittered_x: problem.jittered_x.unwrap_or(Matrix::ABSENT),
            span: split.span,
            ..params(gate, problem.tokens, problem.random.0, launcher)
        };
        if split.parts > 1 {
            params.partials = workspace.at(part);
        }
        if hopper_gate::takes_fwd(device, problem) {
            hopper_gate::fwd(launcher, gate, &split, &params)?;
        } else if matrix_cores(gate) && packed(&problem.x) && packed(&problem.weight) {
            let tile = tile_experts(device, gate.experts);
            let kernel = match (gate.dtype, tile) {
                (Dtype::Fp16, 16) => "router_logits_fwd_fp16_16",
                (Dtype::Fp16, 64) => "router_logits_fwd_fp16_64",
                (Dtype::Fp16, 128) => "router_logits_fwd_fp16_128",
                (Dtype::Fp16, _) => "router_logits_fwd_fp16_256",
                (_, 16) => "router_logits_fwd_bf16_16",
                (_, 64) => "router_logits_fwd_bf16_64",
                (_, 128) => "router_logits_fwd_bf16_128",
                _ => "router_logits_fwd_bf16_256",
            };
            let grid = [ceil_div(gate.tokens, GATE_TOKENS), ceil_div(gate.experts, tile), split.parts];
            launch(launcher, kernel, grid, 512, fwd_shared(tile), &params)?;
        } else {
            let kernel = if gate.wide { "router_logits_fwd_plain_fp64" } else { "router_logits_fwd_plain" };
            let grid = [ceil_div(gate.tokens, GATE_PLAIN), ceil_div(gate.experts, GATE_PLAIN), split.parts];
            launch(launcher, kernel, grid, 256, 0, &params)?;
        }
        if split.parts == 1 {
            return Ok(());
        }
        join(
            launcher,
            RouterJoinParams {
                partials: params.partials,
                splits: split.parts as i32,
                rows: problem.tokens,
                columns: gate.experts,
                bias: params.bias,
                out: problem.logits,
                ..no_parts(launcher, gate)
            },
        )
    })
}

fn launch(
    launcher: &Launcher,
    kernel: &'static str,
    grid: [i64; 3],
    block: u32,
    shared: i64,
    params: &RouterGateParams,
) -> Result<()> {
    let grid = grid.map(|size| size as u32);
    launcher.launch(&Launch { kernel, grid, block, shared: shared as u32, ..Default::default() }, params)
}

pub fn bwd(
    device: &Device,
    problem: &Backward,
    (workspace, parts): (Workspace, &BwdParts),
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    let gate = &problem.gate;
    device.run(report, stream, |launcher| {
        let given = |matrix: Option<Matrix>| matrix.unwrap_or(Matrix::ABSENT);
        let params = RouterGateParams {
            x: given(problem.x),
            weight: given(problem.weight),
            dlogits: problem.dlogits,
            dx: given(problem.dx),
            dx_mode: problem.dx_mode,
            partials: workspace.at(parts.dweight),
            ..params(gate, problem.tokens, problem.random.0, launcher)
        };
        let takes = |wanted: bool, operand: &Matrix, rows: i64| {
            wanted && hopper_gate::takes_gradient(device, gate, operand, rows)
        };
        let hopper_dx = takes(problem.dx.is_some(), &params.weight, gate.experts);
        let hopper_dweight = takes(problem.dweight.is_some(), &params.x, gate.tokens);
        let gradient = gradient(launcher, problem, (workspace, parts), hopper_dx || hopper_dweight)?;
        if hopper_dx {
            hopper_gate::dx(launcher, gate, &gradient, &params)?;
        } else if problem.dx.is_some() && gate.tokens > 0 {
            dx(launcher, gate, &params)?;
        }
        let mut joined = no_parts(launcher, gate);
        if let Some(out) = problem.dweight {
            joined.partials = params.partials;
            joined.rows.bound = gate.experts;
            joined.columns = gate.hidden;
            joined.out = out;
            joined.mode = problem.dweight_mode;
            if hopper_dweight {
                let dealt = Dealt::new(device, gate);
                hopper_gate::dweight(launcher, gate, &gradient, &dealt, &params, hopper_dx)?;
                joined.tile = dealt.width;
                joined.tiles = dealt.tiles as i32;
                joined.clusters = dealt.clusters as i32;
                joined.tokens = problem.tokens;
            } else {
                let split = dweight_split(device, gate);
                dweight(launcher, gate, split, &RouterGateParams { span: split.span, ..params })?;
                joined.splits = split.parts as i32;
            }
        }
        if let Some(out) = problem.dbias {
            joined.dbias_parts = workspace.at(parts.dbias);
            joined.dbias_splits = dbias_blocks(device, gate) as i32;
            joined.dbias = out;
            joined.dbias_mode = problem.dbias_mode;
        }
        join(launcher, joined)
    })
}

/// dx = dlogits * weight.
fn dx(launcher: &Launcher, gate: &Gate, params: &RouterGateParams) -> Result<()> {
    let split = gate.logits != gate.dtype;
    let depth = ceil_div(gate.experts, 16) * 16;
    // The gradient's rows, twice where they are split, and stages of the weights.
    let shared =
        |stages: i64| (GATE_TOKENS * (depth + 8) * if split { 2 } else { 1 } + stages * depth * (GATE_STEP + 8)) * 2;
    let stages = (2..=4).rev().find(|&stages| fits(launcher.device, shared(stages)));
    let Some(stages) = stages.filter(|_| matrix_cores_take(gate) && packed(&params.weight)) else {
        let kernel = if gate.wide { "router_logits_dx_plain_fp64" } else { "router_logits_dx_plain" };
        let grid = [ceil_div(gate.tokens, GATE_PLAIN), ceil_div(gate.hidden, GATE_PLAIN).min(1024), 1];
        return launch(launcher, kernel, grid, 256, 0, params);
    };
    let kernel = match (gate.dtype, split) {
        (Dtype::Fp16, _) => "router_logits_dx_fp16",
        (_, true) => "router_logits_dx_bf16_split",
        (_, false) => "router_logits_dx_bf16",
    };
    let tiles = ceil_div(gate.tokens, GATE_TOKENS);
    let spread = Split::new(gate.hidden, tiles, 2 * i64::from(launcher.device.multiprocessors), GATE_STEP);
    let params = RouterGateParams { span: spread.span, stages: stages as i32, ..*params };
    launch(launcher, kernel, [tiles, spread.parts, 1], 256, shared(stages), &params)
}

/// Parts of dweight = dlogits^T * x.
fn dweight(launcher: &Launcher, gate: &Gate, split: Split, params: &RouterGateParams) -> Result<()> {
    let tile = dweight_experts(gate.experts);
    let halves = gate.logits != gate.dtype;
    // Three stages of x, and two of the gradient.
    let shared = 2 * GATE_STEP * (3 * (GATE_COLUMNS + 8) + 2 * (tile + 8) * if halves { 2 } else { 1 });
    if !(matrix_cores_take(gate) && packed(&params.x) && fits(launcher.device, shared)) {
        let kernel = if gate.wide { "router_logits_dweight_plain_fp64" } else { "router_logits_dweight_plain" };
        let grid = [ceil_div(gate.hidden, GATE_PLAIN), ceil_div(gate.experts, GATE_PLAIN), split.parts];
        return launch(launcher, kernel, grid, 256, 0, params);
    }
    let kernel = match (gate.dtype, tile, halves) {
        (Dtype::Fp16, 16, _) => "router_logits_dweight_fp16_16",
        (Dtype::Fp16, 64, _) => "router_logits_dweight_fp16_64",
        (Dtype::Fp16, _, _) => "router_logits_dweight_fp16_128",
        (_, 16, true) => "router_logits_dweight_bf16_16_split",
        (_, 64, true) => "router_logits_dweight_bf16_64_split",
        (_, _, true) => "router_logits_dweight_bf16_128_split",
        (_, 16, false) => "router_logits_dweight_bf16_16",
        (_, 64, false) => "router_logits_dweight_bf16_64",
        _ => "router_logits_dweight_bf16_128",
    };
    let grid = [ceil_div(gate.hidden, GATE_COLUMNS), ceil_div(gate.experts, tile), split.parts];
    launch(launcher, kernel, grid, 256, shared, params)
}
