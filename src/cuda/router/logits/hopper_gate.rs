//! The router's GEMM by Hopper's wgmma and TMA (kernels/hopper_gate.cuh): bf16, without jitter, rows of 16 bytes;
//! gradients of up to 256 experts.

use super::{GATE_SHARE, GATE_STAGING, GATE_TOKENS, RouterGateParams, Split, ceil_div, tile_experts};
use crate::cuda::grouped_gemm::hopper::{is_hopper, row_boxes};
use crate::cuda::grouped_gemm::tensor_map::{BoxSource, Boxes};
use crate::cuda::{Device, Launch, Launcher};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::router::logits::{Forward, Gate};
use crate::tensor::Matrix;

/// Blocks of a cluster, bytes of a line, and elements in it.
const CLUSTER: i64 = 2;
const LINE: i64 = 128;
const DEPTH: i64 = 64;
/// Logits of up to so many experts: tiles of 64 would be mostly padding, and took longer than kernels/router_logits_fwd.cu.
const FEW_EXPERTS: i64 = 16;
/// The most experts of a gradient, and stages of a ring.
const MAX_EXPERTS: i64 = 256;
const MAX_STAGES: i64 = 8;
const THREADS: u32 = 384;
/// Columns of a tile of dx.
const DX_COLUMNS: i64 = 128;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct HopperGateParams {
    pub x: BoxSource,
    pub weight: BoxSource,
    pub gradient: BoxSource,
    /// Of the gradient: bf16 numbers that each is the sum of.
    pub parts: i32,
    /// Of the ring of copies.
    pub stages: i32,
    pub gate: RouterGateParams,
}

/// The gradient of the logits as the kernels read it: [parts, T, E] in bf16.
#[derive(Clone, Copy)]
pub struct Gradient {
    pub data: *mut u8,
    pub pitch: i64,
    pub parts: i64,
}

impl Gradient {
    /// Elements of a row of a copy.
    pub fn copy_pitch(gate: &Gate) -> i64 {
        ceil_div(gate.experts, 8) * 8
    }

    /// Numbers that a gradient is the sum of.
    pub fn parts(gate: &Gate) -> i64 {
        if gate.logits == Dtype::Fp32 { 2 } else { 1 }
    }

    /// Bytes of a copy.
    pub fn copy_bytes(device: &Device, gate: &Gate) -> i64 {
        if is_hopper(device) && serves_gradients(gate) {
            (Self::parts(gate) * Self::copy_pitch(gate) * 2).saturating_mul(gate.tokens)
        } else {
            0
        }
    }

    /// Of gradients that can be read where they are.
    pub fn in_place(gate: &Gate, dlogits: &Matrix) -> Option<Self> {
        let gradient = Gradient { data: dlogits.data, pitch: dlogits.pitch, parts: 1 };
        (gate.logits == Dtype::Bf16 && gradient.boxes(gate, 64).fits()).then_some(gradient)
    }

    fn boxes(&self, gate: &Gate, box_rows: u32) -> Boxes {
        Boxes {
            dtype: Dtype::Bf16,
            data: self.data,
            groups: self.parts,
            rows: gate.tokens,
            columns: gate.experts,
            pitch: self.pitch,
            group_stride: gate.tokens * self.pitch,
            box_rows,
            grouped: true,
        }
    }
}

/// Whether the kernels may compute it; whether they can is up to the device and the tensors.
fn serves(gate: &Gate) -> bool {
    gate.dtype == Dtype::Bf16 && !gate.wide && gate.jitter.is_none()
}

fn serves_gradients(gate: &Gate) -> bool {
    serves(gate) && gate.experts <= MAX_EXPERTS
}

fn rows_of(matrix: &Matrix, rows: i64, gate: &Gate, box_rows: i64) -> Boxes {
    row_boxes(matrix, rows, gate.hidden, box_rows as u32, false)
}

pub fn takes_fwd(device: &Device, problem: &Forward) -> bool {
    let gate = &problem.gate;
    is_hopper(device)
        && serves(gate)
        && gate.experts > FEW_EXPERTS
        && rows_of(&problem.x, gate.tokens, gate, 64).fits()
        && rows_of(&problem.weight, gate.experts, gate, 32).fits()
}

/// Whether a gradient can be computed that reads x, of T rows, or the weights, of E.
pub fn takes_gradient(device: &Device, gate: &Gate, operand: &Matrix, rows: i64) -> bool {
    is_hopper(device)
        && serves_gradients(gate)
        && gate.tokens > 0
        // Steps and columns are counted in 32 bits.
        && gate.tokens < 1 << 30
        && gate.hidden < 1 << 30
        && ceil_div(gate.tokens, GATE_SHARE).saturating_mul(ceil_div(gate.hidden, 256) + 1) < 1 << 30
        && rows_of(operand, rows, gate, 32).fits()
}

/// Experts of a tile: what the kernels are made for.
fn tile(experts: i64) -> i64 {
    (experts as u64).next_power_of_two().clamp(64, 256) as i64
}

/// logits, or parts of them, as `split` says.
pub fn fwd(launcher: &Launcher, gate: &Gate, split: &Split, params: &RouterGateParams) -> Result<()> {
    let tile = tile_experts(launcher.device, gate.experts).max(64);
    let kernel = match tile {
        64 => "hopper_gate_fwd_64",
        128 => "hopper_gate_fwd_128",
        _ => "hopper_gate_fwd_256",
    };
    let hopper = HopperGateParams {
        x: rows_of(&params.x, gate.tokens, gate, 64).source(launcher)?,
        weight: rows_of(&params.weight, gate.experts, gate, tile / CLUSTER).source(launcher)?,
        ..plain(params)
    };
    let tokens = ceil_div(gate.tokens, CLUSTER * GATE_TOKENS) * CLUSTER;
    let grid = [tokens, ceil_div(gate.experts, tile), split.parts];
    launch(launcher, kernel, grid, (0, (GATE_TOKENS + tile) * LINE), true, hopper)
}

/// dx = dlogits * weight.
pub fn dx(launcher: &Launcher, gate: &Gate, gradient: &Gradient, params: &RouterGateParams) -> Result<()> {
    let lines = (ceil_div(gate.experts, 16) * 16).min(DEPTH);
    let hopper = HopperGateParams {
        weight: rows_of(&params.weight, gate.experts, gate, lines).source(launcher)?,
        gradient: gradient.boxes(gate, 64).source(launcher)?,
        parts: gradient.parts as i32,
        ..plain(params)
    };
    let units = ceil_div(gate.tokens, CLUSTER * GATE_TOKENS) * ceil_div(gate.hidden, DX_COLUMNS);
    let kept = gradient.parts * ceil_div(gate.experts, DEPTH) * GATE_TOKENS * LINE;
    let blocks = units.min(clusters(launcher.device)) * CLUSTER;
    launch(launcher, "hopper_gate_dx", [blocks, 1, 1], (kept, DX_COLUMNS * LINE), true, hopper)
}

/// How the sum over tokens is dealt to clusters.
#[derive(Clone, Copy)]
pub struct Dealt {
    /// Columns of a cluster's tile.
    pub width: i64,
    pub tiles: i64,
    pub clusters: i64,
    /// The most parts of a tile.
    pub parts: i64,
}

impl Dealt {
    pub fn new(device: &Device, gate: &Gate) -> Self {
        let width = CLUSTER * block_columns(gate);
        let (tiles, clusters) = (ceil_div(gate.hidden, width), clusters(device));
        Dealt { width, tiles, clusters, parts: ceil_div(clusters, tiles) + 1 }
    }

    /// Parts to plan for.
    pub fn most(device: &Device, gate: &Gate) -> i64 {
        if is_hopper(device) && serves_gradients(gate) { Self::new(device, gate).parts } else { 0 }
    }
}

/// Columns of x of a block of the gradient of the weights: 128 where there are so many experts that no more fit its registers.
fn block_columns(gate: &Gate) -> i64 {
    if tile(gate.experts) == 256 { 128 } else { 256 }
}

fn clusters(device: &Device) -> i64 {
    (i64::from(device.multiprocessors) / CLUSTER).max(1)
}

/// Parts of dweight = dlogits^T * x. It may begin while dx ends, if that is the launch ahead.
pub fn dweight(
    launcher: &Launcher,
    gate: &Gate,
    gradient: &Gradient,
    dealt: &Dealt,
    params: &RouterGateParams,
    behind_dx: bool,
) -> Result<()> {
    let tile = tile(gate.experts);
    let kernel = match tile {
        64 => "hopper_gate_dweight_64",
        128 => "hopper_gate_dweight_128",
        _ => "hopper_gate_dweight_256",
    };
    let hopper = HopperGateParams {
        x: rows_of(&params.x, gate.tokens, gate, GATE_SHARE).source(launcher)?,
        gradient: gradient.boxes(gate, (GATE_SHARE / CLUSTER) as u32).source(launcher)?,
        parts: gradient.parts as i32,
        ..plain(params)
    };
    let stage = (block_columns(gate) + gradient.parts * tile) / DEPTH * GATE_SHARE * LINE;
    launch(launcher, kernel, [dealt.clusters * CLUSTER, 1, 1], (0, stage), behind_dx, hopper)
}

fn plain(params: &RouterGateParams) -> HopperGateParams {
    let absent = BoxSource::ABSENT;
    HopperGateParams { x: absent, weight: absent, gradient: absent, parts: 1, stages: 0, gate: *params }
}

/// Launches with as many stages as there is room for beside what is kept.
fn launch(
    launcher: &Launcher,
    kernel: &'static str,
    grid: [i64; 3],
    (kept, stage): (i64, i64),
    overlap: bool,
    params: HopperGateParams,
) -> Result<()> {
    const WARPS: i64 = 8;
    let fixed = 1024 + kept + WARPS * GATE_STAGING + 16 * (MAX_STAGES + 1);
    let stages = ((i64::from(launcher.device.shared_memory) - fixed) / stage).min(MAX_STAGES);
    let launch = Launch {
        kernel,
        grid: grid.map(|size| size as u32),
        block: THREADS,
        shared: (fixed + stages * stage) as u32,
        cluster: CLUSTER as u32,
        overlap,
        ..Default::default()
    };
    launcher.launch(&launch, &HopperGateParams { stages: stages as i32, ..params })
}
