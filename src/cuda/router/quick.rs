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

/// The most threads of a block: forward, of bf16 logits and of others; joining its sums; backward.
pub const QUICK_THREADS: i64 = 768;
pub const QUICK_WIDE_THREADS: i64 = 512;
pub const QUICK_JOIN_THREADS: i64 = 1024;
pub const QUICK_BWD_THREADS: i64 = 256;
/// The most experts and slots.
pub const QUICK_EXPERTS: i64 = 512;
const SLOTS: i32 = 8;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterQuickParams {
    pub tokens: Count,
    pub experts: i32,
    pub top_k: i32,
    /// Bytes of a warp's room in shared memory.
    pub room_bytes: i32,
    /// Tables of counts that a block hands over: of all choices, and of those that the aux loss counts.
    pub tables: i32,
    /// Words of a block's record, and of each of its tables, which are padded to four; how many blocks hand one over.
    pub columns: i32,
    pub padded: i32,
    pub blocks: i32,
    pub logits: Matrix,
    /// 0: no limits; else how many groups, how many are kept, terms of their scores, and fours of experts of each.
    pub groups: i32,
    pub kept_groups: i32,
    pub group_terms: i32,
    pub group_fours: i32,
    /// Logits can be read by 16 bytes.
    pub packed: bool,
    /// Ids are int32, weights fp32, and so many of both can be written at a time; 0: they are something else.
    pub width: i32,
    /// Of weights.
    pub scale: f32,
    /// The softmax over all experts is needed.
    pub exponentials: bool,
    /// Something is summed over tokens: a launch behind joins the blocks' sums.
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
    /// [blocks, columns]: sums of scores (with an aux loss) and counts (of each table); [blocks, 2]: parts of the z-loss and
    /// of the real tokens.
    pub records: *mut u32,
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
    pub logits: Matrix,
    /// Logits, gradients of logits can be accessed by 16 bytes.
    pub packed: bool,
    pub packed_out: bool,
    /// Of weights.
    pub scale: f32,
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

/// The kernels of each shape.
const FWD: [&str; 5] = [
    "router_quick_fwd_8",
    "router_quick_fwd_64",
    "router_quick_fwd_128",
    "router_quick_fwd_256",
    "router_quick_fwd_512",
];
const FWD_WIDE: [&str; 5] = [
    "router_quick_fwd_8_wide",
    "router_quick_fwd_64_wide",
    "router_quick_fwd_128_wide",
    "router_quick_fwd_256_wide",
    "router_quick_fwd_512_wide",
];
const FWD_OTHER: [&str; 5] = [
    "router_quick_fwd_8_other",
    "router_quick_fwd_64_other",
    "router_quick_fwd_128_other",
    "router_quick_fwd_256_other",
    "router_quick_fwd_512_other",
];
const BWD: [&str; 5] = [
    "router_quick_bwd_8",
    "router_quick_bwd_64",
    "router_quick_bwd_128",
    "router_quick_bwd_256",
    "router_quick_bwd_512",
];
const BWD_WIDE: [&str; 5] = [
    "router_quick_bwd_8_wide",
    "router_quick_bwd_64_wide",
    "router_quick_bwd_128_wide",
    "router_quick_bwd_256_wide",
    "router_quick_bwd_512_wide",
];
const BWD_OTHER: [&str; 5] = [
    "router_quick_bwd_8_other",
    "router_quick_bwd_64_other",
    "router_quick_bwd_128_other",
    "router_quick_bwd_256_other",
    "router_quick_bwd_512_other",
];

/// How the kernels lay out a token, by the number of experts: the place among them, and lanes of a token.
fn shape(experts: i32) -> (usize, i64) {
    match experts {
        ..=8 => (0, 1),
        9..=64 => (1, 4),
        65..=128 => (2, 8),
        129..=256 => (3, 32),
        _ => (4, 32),
    }
}

fn rows_of_16_bytes(matrix: &Matrix, experts: i32) -> bool {
    matrix.data.addr() % 16 == 0 && matrix.pitch * matrix.dtype.size() % 16 == 0 && experts % 8 == 0
}

/// Elements of 32 bits that can be written at a time.
fn width(matrix: &Matrix, dtype: Dtype, columns: i32) -> i32 {
    let whole = |&width: &i32| {
        matrix.data.addr() % (4 * width as usize) == 0 && matrix.pitch % i64::from(width) == 0 && columns % width == 0
    };
    let plain = !matrix.data.is_null() && matrix.dtype == dtype;
    if plain { [4, 2].into_iter().find(whole).unwrap_or(1) } else { 0 }
}

/// Places of elements fit in 31 bits.
fn is_short(tokens: &Count, matrices: &[&Matrix]) -> bool {
    // Loops go one step beyond the last token.
    let limit = i64::from(i32::MAX) / (tokens.bound + (1 << 17));
    matrices.iter().all(|matrix| matrix.pitch <= limit) && limit > 0
}

fn whole_batch(losses: &RouterLosses) -> bool {
    losses.sequences == 1 && losses.layout != MOE_SEQUENCE_OFFSETS
}

/// Bytes of the workspace for so many blocks.
pub fn scratch(blocks: i64, experts: i64) -> i64 {
    if experts <= QUICK_EXPERTS { blocks * (4 * 3 * (experts + 3) + 8) } else { 0 }
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
        && is_short(
            &params.tokens,
            &[&params.logits, &params.ids, &params.weights, &params.dense, &params.byte_mask, &params.bit_mask],
        )
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
        let (shape, lanes) = shape(params.experts);
        let (experts, losses) = (i64::from(params.experts), &params.losses);
        let softmax = params.weighting.score == MOE_SCORE_SOFTMAX;
        let narrow = softmax && params.logits.dtype == Dtype::Bf16 && params.bias.is_null();
        // Where each multiprocessor has tokens enough for all of its warps, fewer lanes a token do less.
        let kernel = match (narrow, softmax) {
            (true, _) => FWD,
            (_, true) => FWD_WIDE,
            _ => FWD_OTHER,
        }[shape];
        let many = params.tokens.bound * lanes / 32 > 40 * i64::from(device.multiprocessors);
        let (kernel, lanes, threads) = match shape {
            1 if narrow && many && params.groups == 0 => ("router_quick_fwd_64_many", 2, QUICK_WIDE_THREADS),
            2 if narrow && many && params.groups == 0 => ("router_quick_fwd_128_many", 4, QUICK_WIDE_THREADS),
            _ => (kernel, lanes, if narrow { QUICK_THREADS } else { QUICK_WIDE_THREADS }),
        };
        let tables = if losses.aux && losses.counted < params.top_k { 2 } else { 1 };
        let padded = ceil_div(experts, 4) * 4;
        let columns = padded * (i64::from(losses.aux) + tables);
        // Best and second best of each four experts, and sums of groups, of each of a warp's tokens; later a sum an expert.
        let groups = if params.groups > 0 { 32 / lanes * (2 * experts + 4 * i64::from(params.groups)) } else { 0 };
        let room_bytes = ceil_div(groups.max(4 * experts), 16) * 16;
        let shared = |warps: i64| ceil_div(tables * experts, 4) * 16 + warps * room_bytes;
        // A multiprocessor is left for the launch that joins; its others have a block each, since each hands over a record.
        let most = i64::from(device.multiprocessors - 1).max(1);
        let room = i64::from(device.shared_memory) - 1024 - ceil_div(tables * experts, 4) * 16;
        let limit = (room / room_bytes).min(threads / 32);
        // As many warps as give each the same number of passes; a few at least.
        let passes = ceil_div(params.tokens.bound, 32 / lanes);
        let rounds = ceil_div(passes, most * limit).max(1);
        let warps = ceil_div(passes, most * rounds).clamp(4.min(limit), limit);
        let blocks = ceil_div(passes, warps).clamp(1, most);
        let weighting = params.weighting;
        let by_score = softmax && !params.by_logit && (!params.bias.is_null() || params.groups > 0);
        let records: *mut u32 = scratch.cast();
        let quick = RouterQuickParams {
            tokens: params.tokens,
            experts: params.experts,
            top_k: params.top_k,
            room_bytes: room_bytes as i32,
            tables: tables as i32,
            columns: columns as i32,
            padded: padded as i32,
            blocks: blocks as i32,
            groups: params.groups,
            kept_groups: params.kept_groups,
            group_terms: if params.groups > 0 { params.group_terms } else { 0 },
            group_fours: fours(params).unwrap_or(0),
            logits: params.logits,
            packed: rows_of_16_bytes(&params.logits, params.experts),
            width: width(&params.ids, Dtype::Int32, params.top_k).min(width(
                &params.weights,
                Dtype::Fp32,
                params.top_k,
            )),
            scale: weighting.scale as f32,
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
            records,
            parts: records.wrapping_add((blocks * columns) as usize).cast(),
            tokens_per_expert: params.tokens_per_expert,
            aux_counts: params.aux_counts,
            aux_loss: params.aux_loss,
            z_loss: params.z_loss,
            report: launcher.report,
        };
        let launch = Launch {
            kernel,
            grid: [blocks as u32, 1, 1],
            block: (32 * warps) as u32,
            shared: shared(warps) as u32,
            overlap: true,
            ..Default::default()
        };
        launcher.launch(&launch, &quick)?;
        if !params.sums {
            return Ok(());
        }
        let join = Launch {
            kernel: "router_quick_join",
            grid: [1, 1, 1],
            block: QUICK_JOIN_THREADS as u32,
            overlap: true,
            ..Default::default()
        };
        launcher.launch(&join, &quick)
    })
}

/// Whether the backward is one of the common cases.
pub fn takes_bwd(params: &RouterBwdParams, wide: bool) -> bool {
    !wide
        && params.top_k <= SLOTS
        && i64::from(params.experts) <= QUICK_EXPERTS
        && is_short(&params.tokens, &[&params.logits, &params.ids, &params.dweights, &params.ddense, &params.dlogits])
        && whole_batch(&params.losses)
}

pub fn bwd(
    device: &Device,
    params: &RouterBwdParams,
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    device.run(report, stream, |launcher| {
        let (shape, lanes) = shape(params.experts);
        let dense = !params.ddense.data.is_null();
        let quick = RouterQuickBwdParams {
            tokens: params.tokens,
            experts: params.experts,
            top_k: params.top_k,
            logits: params.logits,
            packed: rows_of_16_bytes(&params.logits, params.experts),
            packed_out: rows_of_16_bytes(&params.dlogits, params.experts),
            scale: params.weighting.scale as f32,
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
        let kernels = match (params.weighting.score, params.logits.dtype) {
            (MOE_SCORE_SOFTMAX, Dtype::Fp32) => BWD_WIDE,
            (MOE_SCORE_SOFTMAX, _) => BWD,
            _ => BWD_OTHER,
        };
        // Few tokens are spread over all multiprocessors.
        let passes = ceil_div(params.tokens.bound, 32 / lanes);
        let multiprocessors = i64::from(device.multiprocessors);
        let warps = ceil_div(passes, multiprocessors).clamp(1, QUICK_BWD_THREADS / 32);
        let at_once = if kernels == BWD { 3 } else { 2 };
        let blocks = ceil_div(passes, warps).min(at_once * multiprocessors);
        let launch = Launch {
            kernel: kernels[shape],
            grid: [blocks as u32, 1, 1],
            block: (32 * warps) as u32,
            overlap: true,
            ..Default::default()
        };
        launcher.launch(&launch, &quick)
    })
}
