//! Expert choice on a GPU: scores by expert, each expert's cut, and the tokens' rows; backward a token's row at a time.

use crate::abi::types::*;
use crate::check::{Count, OutputMode};
use crate::cuda::{Device, Launch};
use crate::error::{Error, Result};
use crate::ops::router::expert_choice::{Backward, ExpertChoice, Forward, Gradient};
use crate::tensor::Matrix;
use crate::workspace::{Layout, Part, Workspace};

use super::{ceil_div, key_tile, tile_bytes};

/// Threads of a block that takes tokens, and of one that takes an expert.
pub const CHOICE_ROW_THREADS: i64 = 256;
pub const CHOICE_COLUMN_THREADS: i64 = 1024;

/// Outputs' data is NULL where one is absent.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ExpertChoiceParams {
    pub tokens: Count,
    pub experts: i32,
    /// Tokens of a tile.
    pub tile: i32,
    pub capacity: i64,
    pub logits: Matrix,
    pub token_ids: Matrix,
    pub weights: Matrix,
    pub dense: Matrix,
    pub byte_mask: Matrix,
    pub bit_mask: Matrix,
    pub padding_mask: *const u8,
    /// [E, T] of 32 or, in fp64, 64 bits.
    pub keys: *mut u8,
    /// [E]: the key above which all are chosen, and the last token of those that have it.
    pub cuts: *mut u8,
    pub last_ties: *mut i64,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ExpertChoiceBwdParams {
    pub tokens: Count,
    pub experts: i32,
    pub capacity: i64,
    pub logits: Matrix,
    /// Without data the gradient is compact.
    pub byte_mask: Matrix,
    pub token_ids: Matrix,
    pub dweights: Matrix,
    pub dlogits: Matrix,
    pub mode: OutputMode,
    /// [T, E] and [E, C]: place + 1 of the first, and of the one behind each; 0: none.
    pub heads: *mut u32,
    pub links: *mut u32,
    pub report: *mut moe_device_report_t,
}

pub struct Parts {
    keys: Part,
    cuts: Part,
    last_ties: Part,
}

pub fn fwd_layout(desc: &ExpertChoice) -> (Layout, Parts) {
    let key = key_bytes(desc);
    let mut layout = Layout::default();
    let keys = layout.part(desc.experts * desc.bound * key);
    let cuts = layout.part(desc.experts * key);
    let last_ties = layout.part(desc.experts * 8);
    (layout, Parts { keys, cuts, last_ties })
}

fn key_bytes(desc: &ExpertChoice) -> i64 {
    if desc.wide { 8 } else { 4 }
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
        let given = |matrix: Option<Matrix>| matrix.unwrap_or(Matrix::ABSENT);
        let tile = key_tile(desc.experts, key_bytes(desc));
        let params = ExpertChoiceParams {
            tokens: problem.tokens,
            experts: desc.experts as i32,
            tile: tile as i32,
            capacity: desc.capacity,
            logits: problem.logits,
            token_ids: given(problem.token_ids),
            weights: given(problem.weights),
            dense: given(problem.dense),
            byte_mask: given(problem.byte_mask),
            bit_mask: given(problem.bit_mask),
            padding_mask: problem.padding_mask,
            keys: workspace.at(parts.keys),
            cuts: workspace.at(parts.cuts),
            last_ties: workspace.at(parts.last_ties),
            report: launcher.report,
        };
        let blocks = ceil_div(desc.bound, tile).min(8 * i64::from(device.multiprocessors)) as u32;
        let rows = |kernel| {
            let shared = tile_bytes(tile, desc.experts, key_bytes(desc)) as u32;
            let block = CHOICE_ROW_THREADS as u32;
            launcher.launch(&Launch { kernel, grid: [blocks, 1, 1], block, shared, ..Default::default() }, &params)
        };
        rows(if desc.wide { "expert_choice_scores_fp64" } else { "expert_choice_scores" })?;
        let kernel = if desc.wide { "expert_choice_select_fp64" } else { "expert_choice_select" };
        let (grid, block) = ([desc.experts as u32, 1, 1], CHOICE_COLUMN_THREADS as u32);
        launcher.launch(&Launch { kernel, grid, block, ..Default::default() }, &params)?;
        if problem.dense.is_none() && problem.byte_mask.is_none() && problem.bit_mask.is_none() {
            return Ok(());
        }
        rows(if desc.wide { "expert_choice_rows_fp64" } else { "expert_choice_rows" })
    })
}

pub struct Chains {
    heads: Part,
    links: Part,
}

pub fn bwd_layout(desc: &ExpertChoice) -> (Layout, Chains) {
    let mut layout = Layout::default();
    let heads = layout.part(desc.bound * desc.experts * 4);
    let links = layout.part(desc.experts * desc.capacity * 4);
    (layout, Chains { heads, links })
}

pub fn bwd(
    device: &Device,
    problem: &Backward,
    (workspace, chains): (Workspace, &Chains),
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    let desc = &problem.desc;
    if desc.capacity >= i64::from(u32::MAX) {
        return Err(Error::unsupported(format!("desc.capacity is {}: too much for a GPU's index", desc.capacity)));
    }
    let (byte_mask, token_ids, dweights) = match problem.gradient {
        Gradient::Compact { token_ids, dweights } => (Matrix::ABSENT, token_ids, dweights),
        Gradient::Dense { byte_mask, dweights } => (byte_mask, Matrix::ABSENT, dweights),
    };
    device.run(report, stream, |launcher| {
        let params = ExpertChoiceBwdParams {
            tokens: problem.tokens,
            experts: desc.experts as i32,
            capacity: desc.capacity,
            logits: problem.logits,
            byte_mask,
            token_ids,
            dweights,
            dlogits: problem.dlogits,
            mode: problem.mode,
            heads: workspace.at(chains.heads),
            links: workspace.at(chains.links),
            report: launcher.report,
        };
        let block = CHOICE_ROW_THREADS as u32;
        let launch = |kernel, units: i64, in_a_block: i64| {
            let blocks = ceil_div(units, in_a_block).min(8 * i64::from(device.multiprocessors)) as u32;
            launcher.launch(&Launch { kernel, grid: [blocks, 1, 1], block, ..Default::default() }, &params)
        };
        if byte_mask.data.is_null() {
            launcher.clear(params.heads, (desc.bound * desc.experts * 4) as usize)?;
            launch("expert_choice_link", desc.experts * desc.capacity, CHOICE_ROW_THREADS)?;
        }
        let kernel = if desc.wide { "expert_choice_bwd_fp64" } else { "expert_choice_bwd" };
        launch(kernel, desc.bound, CHOICE_ROW_THREADS / 32)
    })
}
