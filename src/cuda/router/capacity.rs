//! Capacity and dropping on a GPU: lists of slots by expert, each expert's cut, and the tokens' rows.

use crate::abi::types::*;
use crate::check::{Count, OutputMode};
use crate::cuda::{Device, Launch, Launcher};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::router::capacity::{Backward, Capacity, Forward, Sampling};
use crate::tensor::Matrix;
use crate::workspace::{Layout, Part, Workspace};

use super::ceil_div;

/// Threads of a block that takes slots, and how many slots it takes at a time.
pub const CAPACITY_THREADS: i64 = 512;
pub const CAPACITY_UNIT: i64 = 4096;
/// Threads of a block that takes an expert: as many as there can be experts.
pub const CAPACITY_EXPERTS: i64 = 1024;
/// Threads of a block that takes tokens.
pub const CAPACITY_ROW_THREADS: i64 = 256;

/// What drawing the second expert reads and writes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CapacitySampleParams {
    pub tokens: Count,
    pub experts: i32,
    pub ids: Matrix,
    pub weights: Matrix,
    pub logits: Matrix,
    pub routed_ids: Matrix,
    pub routed_weights: Matrix,
    pub random: moe_random_t,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct CapacityParams {
    pub tokens: Count,
    pub experts: i32,
    pub top_k: i32,
    /// MOE_CAPACITY_*, and what they read.
    pub formula: i32,
    pub factor: f64,
    pub least: i64,
    pub fixed: i64,
    /// MOE_DROP_*, MOE_SECOND_EXPERT_*.
    pub policy: i32,
    pub second: i32,
    pub renormalize: i32,
    /// The slot whose weight is left as it is; -1: none.
    pub spared: i32,
    /// What a sum of weights counts as at least.
    pub epsilon: f64,
    /// As routed.
    pub ids: Matrix,
    pub weights: Matrix,
    pub kept_ids: Matrix,
    pub kept_weights: Matrix,
    pub padding_mask: *const u8,
    pub random: moe_random_t,
    /// NULL: not wanted.
    pub tokens_per_expert: *mut i64,
    pub dropped_per_expert: *mut i64,
    /// [E]: lengths of the lists, and where they end.
    pub counts: *mut u64,
    pub cursors: *mut u64,
    /// [T*K]: slots and keys, list after list; and whether a slot stays.
    pub slots: *mut i64,
    pub keys: *mut u64,
    pub kept: *mut u8,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct CapacityBwdParams {
    pub tokens: Count,
    pub experts: i32,
    pub top_k: i32,
    pub spared: i32,
    pub epsilon: f64,
    /// Without data weights are not divided.
    pub weights: Matrix,
    /// With data weights are divided by the sum of all of them, else of those that are kept.
    pub ids: Matrix,
    pub kept_ids: Matrix,
    pub dkept_weights: Matrix,
    pub dweights: Matrix,
    pub mode: OutputMode,
    pub report: *mut moe_device_report_t,
}

pub struct Parts {
    counts: Part,
    cursors: Part,
    slots: Part,
    keys: Part,
    kept: Part,
}

pub fn fwd_layout(desc: &Capacity) -> (Layout, Parts) {
    let slots = desc.bound * desc.top_k;
    let mut layout = Layout::default();
    let parts = Parts {
        counts: layout.part(desc.experts * 8),
        cursors: layout.part(desc.experts * 8),
        slots: layout.part(slots * 8),
        keys: layout.part(slots * 8),
        kept: layout.part(slots),
    };
    (layout, parts)
}

/// What a sum of weights counts as at least, where they are divided by it.
fn epsilon(weights: Dtype) -> f64 {
    match weights {
        Dtype::Fp16 => 1.0 / (1 << 10) as f64,
        Dtype::Bf16 => 1.0 / (1 << 7) as f64,
        _ => f32::EPSILON.into(),
    }
}

fn spared(desc: &Capacity) -> i32 {
    if desc.spares(1) { 1 } else { -1 }
}

pub fn fwd(
    device: &Device,
    problem: &Forward,
    (workspace, parts): (Workspace, &Parts),
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    let desc = &problem.desc;
    device.run(report, stream, |launcher| {
        if let Some(sampling) = &problem.sampling {
            sample(launcher, problem, sampling)?;
        }
        let (ids, weights) = match &problem.sampling {
            Some(sampling) => (sampling.routed_ids, sampling.routed_weights),
            None => (problem.ids, problem.weights),
        };
        let params = CapacityParams {
            tokens: problem.tokens,
            experts: desc.experts as i32,
            top_k: desc.top_k as i32,
            formula: desc.formula,
            factor: desc.factor,
            least: desc.least,
            fixed: desc.explicit,
            policy: desc.policy,
            second: desc.second,
            renormalize: desc.renormalize,
            spared: spared(desc),
            epsilon: epsilon(weights.dtype),
            ids,
            weights,
            kept_ids: problem.kept_ids,
            kept_weights: problem.kept_weights,
            padding_mask: problem.padding_mask,
            random: problem.random.0,
            tokens_per_expert: problem.tokens_per_expert,
            dropped_per_expert: problem.dropped_per_expert,
            counts: workspace.at(parts.counts),
            cursors: workspace.at(parts.cursors),
            slots: workspace.at(parts.slots),
            keys: workspace.at(parts.keys),
            kept: workspace.at(parts.kept),
            report: launcher.report,
        };
        let launch = |kernel, blocks: i64, block: i64, shared: i64| {
            let (grid, block, shared) = ([blocks as u32, 1, 1], block as u32, shared as u32);
            launcher.launch(&Launch { kernel, grid, block, shared, ..Default::default() }, &params)
        };
        let most = 4 * i64::from(device.multiprocessors);
        let units = ceil_div(desc.bound * desc.top_k, CAPACITY_UNIT).min(most);
        launcher.clear(params.counts, (desc.experts * 8) as usize)?;
        launch("router_capacity_count", units, CAPACITY_THREADS, desc.experts * 4)?;
        launch("router_capacity_offsets", 1, CAPACITY_EXPERTS, 0)?;
        launch("router_capacity_place", units, CAPACITY_THREADS, desc.experts * 12)?;
        launch("router_capacity_cut", desc.experts, CAPACITY_EXPERTS, 0)?;
        let rows = ceil_div(desc.bound, CAPACITY_ROW_THREADS).min(2 * most);
        launch("router_capacity_write", rows, CAPACITY_ROW_THREADS, 0)
    })
}

fn sample(launcher: &Launcher, problem: &Forward, sampling: &Sampling) -> Result<()> {
    let params = CapacitySampleParams {
        tokens: problem.tokens,
        experts: problem.desc.experts as i32,
        ids: problem.ids,
        weights: problem.weights,
        logits: sampling.logits,
        routed_ids: sampling.routed_ids,
        routed_weights: sampling.routed_weights,
        random: problem.random.0,
        report: launcher.report,
    };
    let blocks =
        ceil_div(problem.desc.bound, CAPACITY_ROW_THREADS / 32).min(8 * i64::from(launcher.device.multiprocessors));
    let (kernel, grid, block) = ("router_capacity_sample", [blocks as u32, 1, 1], CAPACITY_ROW_THREADS as u32);
    launcher.launch(&Launch { kernel, grid, block, ..Default::default() }, &params)
}

pub fn bwd(device: &Device, problem: &Backward, report: *mut moe_device_report_t, stream: moe_stream_t) -> Result<()> {
    let desc = &problem.desc;
    device.run(report, stream, |launcher| {
        let given = |matrix: Option<Matrix>| matrix.unwrap_or(Matrix::ABSENT);
        let params = CapacityBwdParams {
            tokens: problem.tokens,
            experts: desc.experts as i32,
            top_k: desc.top_k as i32,
            spared: spared(desc),
            epsilon: problem.weights.map_or(0.0, |weights| epsilon(weights.dtype)),
            weights: given(problem.weights),
            ids: given(problem.ids),
            kept_ids: problem.kept_ids,
            dkept_weights: problem.dkept_weights,
            dweights: problem.dweights,
            mode: problem.mode,
            report: launcher.report,
        };
        let rows = ceil_div(desc.bound, CAPACITY_ROW_THREADS).min(8 * i64::from(device.multiprocessors));
        let (kernel, grid, block) = ("router_capacity_bwd", [rows as u32, 1, 1], CAPACITY_ROW_THREADS as u32);
        launcher.launch(&Launch { kernel, grid, block, ..Default::default() }, &params)
    })
}
