//! The common cases of routing on a GPU, in kernels of their own: at most eight slots a token and 512 experts, fp32, losses
//! over the whole batch.

use crate::abi::router::*;
use crate::abi::types::*;
use crate::check::{Count, OutputMode};
use crate::cuda::{Device, Launch};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::tensor::Matrix;

use super::ceil_div;
use super::topk::{RouterBwdParams, RouterFwdParams, RouterLosses, RouterWeighting};

/// The most threads of a block, forward and backward.
pub const QUICK_THREADS: i64 = 512;
pub const QUICK_BWD_THREADS: i64 = 256;
/// The most experts and slots.
pub const QUICK_EXPERTS: i64 = 512;
const SLOTS: i32 = 8;
/// Tokens of a warp of the forward.
const TOKENS: i64 = 32;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterQuickParams {
    pub tokens: Count,
    pub experts: i32,
    pub top_k: i32,
    /// Lanes of a token.
    pub lanes: i32,
    /// Bytes of a warp's lists.
    pub list_bytes: i32,
    /// Tables of counts that a block hands over: of all choices, and of those that the aux loss counts.
    pub tables: i32,
    pub logits: Matrix,
    /// 0: no limits; else how many groups, how many are kept, terms of their scores, and fours of experts of each.
    pub groups: i32,
    pub kept_groups: i32,
    pub group_terms: i32,
    pub group_fours: i32,
    /// Logits can be read by 16 bytes; ids are int32, weights fp32, and both can be written by four.
    pub packed: bool,
    pub quads: bool,
    /// The softmax over all experts is needed.
    pub exponentials: bool,
    /// Something is summed over tokens: the first block waits for all.
    pub sums: bool,
    /// Experts are compared by their logits, not by their scores.
    pub by_logit: bool,
    pub weighting: RouterWeighting,
    /// NULL: none.
    pub bias: *const f32,
    pub ids: Matrix,
    pub weights: Matrix,
    /// Outputs with a column an expert: whether there are any, and whether weights can be written by 16 bytes.
    pub spread: bool,
    pub packed_dense: bool,
    pub dense: Matrix,
    pub byte_mask: Matrix,
    pub bit_mask: Matrix,
    pub losses: RouterLosses,
    /// [blocks, E], [blocks, tables, E], [blocks, 2]: sums of scores, counts, parts of the z-loss and of the real tokens.
    pub scores: *mut f32,
    pub counts: *mut u32,
    pub parts: *mut f32,
    /// The rest may be NULL: not wanted.
    pub tokens_per_expert: *mut i64,
    pub aux_counts: *mut i64,
    pub aux_loss: *mut f32,
    pub z_loss: *mut f32,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterQuickBwdParams {
    pub tokens: Count,
    pub experts: i32,
    pub top_k: i32,
    /// Lanes of a token, tokens of a warp at a time, and floats from one of their rows to the next.
    pub lanes: i32,
    pub tile: i32,
    pub pitch: i32,
    pub logits: Matrix,
    /// Logits, gradients of logits can be accessed by 16 bytes; ids are int32 and dweights fp32, to be read by four.
    pub packed: bool,
    pub packed_out: bool,
    pub quads: bool,
    pub weighting: RouterWeighting,
    /// Without data there is no gradient of weights.
    pub ids: Matrix,
    /// `dense`: a column an expert, else a slot.
    pub dweights: Matrix,
    pub dense: bool,
    pub dlogits: Matrix,
    pub mode: OutputMode,
    pub losses: RouterLosses,
    pub aux_counts: *const i64,
    /// NULL: 1.
    pub aux_grad: *const f32,
    pub z_grad: *const f32,
    pub report: *mut moe_device_report_t,
}

/// Experts of a lane, and lanes of a token.
fn lanes(experts: i32) -> (i32, i32) {
    let own = if experts <= 8 { 8 } else { 16 };
    (own, ((experts + own - 1) / own).cast_unsigned().next_power_of_two().cast_signed())
}

fn rows_of_16_bytes(matrix: &Matrix, experts: i32) -> bool {
    matrix.data.addr() % 16 == 0 && matrix.pitch * matrix.dtype.size() % 16 == 0 && experts % 8 == 0
}

/// Four of 32 bits at a time.
fn rows_of_four(matrix: &Matrix, dtype: Dtype, columns: i32) -> bool {
    let whole = matrix.data.addr() % 16 == 0 && matrix.pitch % 4 == 0 && columns % 4 == 0;
    matrix.data.is_null() || (matrix.dtype == dtype && whole)
}

fn whole_batch(losses: &RouterLosses) -> bool {
    losses.sequences == 1 && losses.layout != MOE_SEQUENCE_OFFSETS
}

/// Bytes of the workspace for so many blocks.
pub fn scratch(blocks: i64, experts: i64) -> i64 {
    if experts <= QUICK_EXPERTS { blocks * (12 * experts + 8) + 3 * 16 } else { 0 }
}

/// Fours of experts of a group, where groups are made of them and few enough for a bit each; 0 without groups.
fn fours(params: &RouterFwdParams) -> Option<i32> {
    match params.groups {
        0 => Some(0),
        groups
            if groups > 32 || params.group_terms > 2 || params.experts % (4 * groups) != 0 || params.experts <= 8 =>
        {
            None
        }
        groups => Some(params.experts / groups / 4),
    }
}

/// Whether the forward is one of the common cases. With a bias or groups the choice is not the plain
/// top-k that the aux loss counts.
pub fn takes_fwd(params: &RouterFwdParams, wide: bool) -> bool {
    !wide
        && params.selection == MOE_SELECT_TOPK
        && fours(params).is_some()
        && !params.count_choices
        && (1..=SLOTS).contains(&params.top_k)
        && i64::from(params.experts) <= QUICK_EXPERTS
        && whole_batch(&params.losses)
        && ((params.bias.is_null() && params.groups == 0) || !params.losses.aux)
}

pub fn fwd(
    device: &Device,
    params: &RouterFwdParams,
    scratch: *mut u8,
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    device.run(report, stream, |launcher| {
        let (own, lanes) = lanes(params.experts);
        let (experts, losses) = (i64::from(params.experts), &params.losses);
        let softmax = params.weighting.score == MOE_SCORE_SOFTMAX;
        let narrow = softmax && params.logits.dtype != Dtype::Fp32 && params.bias.is_null();
        let key = if narrow { 4 } else { 8 };
        let seconds = if params.groups > 0 { 4 } else { 0 };
        let lists = if own == 8 { 0 } else { ceil_div(experts, 4) * (TOKENS + 1) * (key + seconds) };
        let list_bytes = ceil_div(lists.max(4 * experts), 16) * 16;
        let shared = |warps: i64| ceil_div(2 * experts, 4) * 16 + warps * (8 * TOKENS + list_bytes);
        // A warp a tile as far as there are multiprocessors for blocks of a few; the static part is 12 KiB at most.
        let room = i64::from(device.shared_memory) - (13 << 10);
        let tiles = ceil_div(params.tokens.bound, TOKENS);
        let wanted = ceil_div(tiles, device.multiprocessors.into()).clamp(4, QUICK_THREADS / 32);
        let fits = |&warps: &i64| warps / 2 < wanted && shared(warps) <= room;
        let warps = [16, 8, 4, 2].into_iter().find(fits).unwrap_or(1);
        let blocks = ceil_div(tiles, warps).clamp(1, device.multiprocessors.into());
        let weighting = params.weighting;
        let by_score = softmax && !params.by_logit && (!params.bias.is_null() || params.groups > 0);
        let tables = if params.losses.aux && params.losses.counted < params.top_k { 2 } else { 1 };
        let scores: *mut f32 = scratch.cast();
        let counts: *mut u32 = scores.wrapping_add((blocks * experts) as usize).cast();
        let parts = counts.wrapping_add((blocks * tables * experts) as usize).cast::<f32>();
        let quick = RouterQuickParams {
            tokens: params.tokens,
            experts: params.experts,
            top_k: params.top_k,
            lanes,
            list_bytes: list_bytes as i32,
            tables: tables as i32,
            groups: params.groups,
            kept_groups: params.kept_groups,
            group_terms: if params.groups > 0 { params.group_terms } else { 0 },
            group_fours: fours(params).unwrap_or(0),
            logits: params.logits,
            packed: rows_of_16_bytes(&params.logits, params.experts),
            quads: rows_of_four(&params.ids, Dtype::Int32, params.top_k)
                && rows_of_four(&params.weights, Dtype::Fp32, params.top_k),
            exponentials: losses.z || by_score || (softmax && (losses.aux || !weighting.over_chosen)),
            sums: params.sums,
            by_logit: params.by_logit,
            weighting,
            bias: params.bias,
            ids: params.ids,
            weights: params.weights,
            spread: [&params.dense, &params.byte_mask, &params.bit_mask].iter().any(|matrix| !matrix.data.is_null()),
            packed_dense: rows_of_16_bytes(&params.dense, params.experts),
            dense: params.dense,
            byte_mask: params.byte_mask,
            bit_mask: params.bit_mask,
            losses: params.losses,
            scores,
            counts,
            // float2 apart.
            parts: parts.wrapping_add((blocks * (tables + 1) * experts % 2) as usize),
            tokens_per_expert: params.tokens_per_expert,
            aux_counts: params.aux_counts,
            aux_loss: params.aux_loss,
            z_loss: params.z_loss,
            report: launcher.report,
        };
        let kernel = match (own, softmax, narrow) {
            (8, false, _) => "router_quick_fwd_8_other",
            (8, _, true) => "router_quick_fwd_8",
            (8, _, false) => "router_quick_fwd_8_wide",
            (_, false, _) => "router_quick_fwd_16_other",
            (_, _, true) => "router_quick_fwd_16",
            (_, _, false) => "router_quick_fwd_16_wide",
        };
        let launch = Launch {
            kernel,
            grid: [blocks as u32, 1, 1],
            block: (32 * warps) as u32,
            shared: shared(warps) as u32,
            cooperative: params.sums && blocks > 1,
            ..Default::default()
        };
        launcher.launch(&launch, &quick)
    })
}

/// Whether the backward is one of the common cases.
pub fn takes_bwd(params: &RouterBwdParams, wide: bool) -> bool {
    !wide && params.top_k <= SLOTS && i64::from(params.experts) <= QUICK_EXPERTS && whole_batch(&params.losses)
}

pub fn bwd(
    device: &Device,
    params: &RouterBwdParams,
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    device.run(report, stream, |launcher| {
        let (own, lanes) = lanes(params.experts);
        // A warp's rows take 8 KiB or so; it has as many tokens at a time as lanes let it, at least.
        let pitch = (params.experts + 3) / 4 * 4 + 4;
        let tile = [32, 16, 8, 4, 2].into_iter().find(|&tile| tile * pitch <= 2200).unwrap_or(1).max(32 / lanes);
        let bytes = 4 * tile * pitch;
        let room = device.shared_memory - 1024;
        let warps = (1..=QUICK_BWD_THREADS as i32 / 32).rev().find(|&warps| warps * bytes <= room).unwrap_or(1);
        let dense = !params.ddense.data.is_null();
        let quick = RouterQuickBwdParams {
            tokens: params.tokens,
            experts: params.experts,
            top_k: params.top_k,
            lanes,
            tile,
            pitch,
            logits: params.logits,
            packed: rows_of_16_bytes(&params.logits, params.experts),
            packed_out: rows_of_16_bytes(&params.dlogits, params.experts),
            quads: !dense
                && rows_of_four(&params.ids, Dtype::Int32, params.top_k)
                && rows_of_four(&params.dweights, Dtype::Fp32, params.top_k),
            weighting: params.weighting,
            ids: params.ids,
            dweights: if dense { params.ddense } else { params.dweights },
            dense,
            dlogits: params.dlogits,
            mode: params.mode,
            losses: params.losses,
            aux_counts: params.aux_counts,
            aux_grad: params.aux_grad,
            z_grad: params.z_grad,
            report: launcher.report,
        };
        let kernel = match (own, params.weighting.score) {
            (8, MOE_SCORE_SOFTMAX) => "router_quick_bwd_8",
            (8, _) => "router_quick_bwd_8_other",
            (_, MOE_SCORE_SOFTMAX) => "router_quick_bwd_16",
            _ => "router_quick_bwd_16_other",
        };
        let tiles = ceil_div(params.tokens.bound, tile.into());
        let most = 2 * i64::from(device.multiprocessors);
        // Few tiles are spread over all multiprocessors.
        let warps = i64::from(warps).min((tiles / i64::from(device.multiprocessors)).max(1));
        let blocks = ceil_div(tiles, warps).min(most);
        let launch = Launch {
            kernel,
            grid: [blocks as u32, 1, 1],
            block: (32 * warps) as u32,
            shared: if params.ids.data.is_null() { 0 } else { warps as u32 * bytes as u32 },
            ..Default::default()
        };
        launcher.launch(&launch, &quick)
    })
}
