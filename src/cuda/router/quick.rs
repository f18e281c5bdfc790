//! The common cases of routing on a GPU, in kernels of their own: at most eight slots a token and 512 experts, fp32, losses
//! over the whole batch or over a few sequences of one length.

use crate::abi::router::*;
use crate::abi::types::*;
use crate::check::{Count, OutputMode};
use crate::cuda::{Device, Launch};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::tensor::Matrix;

use super::ceil_div;
use super::topk::{RouterBwdParams, RouterFwdParams, RouterLosses, RouterWeighting};

/// The most threads of a block: forward, of bf16 logits and of others; backward.
pub const QUICK_THREADS: i64 = 768;
pub const QUICK_WIDE_THREADS: i64 = 512;
pub const QUICK_BWD_THREADS: i64 = 256;
/// What joins sums: threads of a team, the most teams of a block, bytes of its shared memory; blocks of the cluster.
pub const QUICK_JOIN_TEAM: i64 = 256;
pub const QUICK_JOIN_TEAMS: i64 = 4;
pub const QUICK_JOIN_SHARED: i64 = 17408;
const JOIN_BLOCKS: i64 = 8;
/// Experts of a team.
const JOIN_EXPERTS: i64 = 16;
/// The most sequences: what joins sums takes one after the other.
const SEQUENCES: i64 = 16;
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
    /// Words of a block's record, and of each of its tables, which are padded to four.
    pub columns: i32,
    pub padded: i32,
    /// The tokens of each sequence are shared among so many blocks, each of which hands over a record.
    pub sequences: i32,
    pub shares: i32,
    /// Tokens from one of a sequence to the next, and from a warp's tokens to its next.
    pub step: i32,
    pub stride: i32,
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
    /// The aux loss counts the plain top-k, which is another choice.
    pub counts_plain: bool,
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
    /// [sequences, shares, columns]: sums of scores (with an aux loss) and counts (of each table); [sequences, shares, 2]:
    /// parts of the z-loss and of the real tokens.
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
    /// Tokens from one of a sequence to the next, and from a warp's tokens to its next.
    pub step: i32,
    pub stride: i32,
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
    let limit = i64::from(i32::MAX) / (tokens.bound + (SEQUENCES << 17));
    matrices.iter().all(|matrix| matrix.pitch <= limit) && limit > 0
}

/// How many sequences sums are kept of, where they are few of one length.
fn sequences(losses: &RouterLosses) -> Option<i64> {
    match losses.layout {
        _ if !losses.aux => Some(1),
        MOE_SEQUENCE_OFFSETS => None,
        _ => (losses.sequences <= SEQUENCES).then_some(losses.sequences),
    }
}

/// Tokens from one of a sequence to the next.
fn step(losses: &RouterLosses) -> i64 {
    match losses.layout {
        MOE_SEQUENCE_MINOR => sequences(losses).unwrap_or(1),
        _ => 1,
    }
}

/// Bytes of the workspace.
pub fn scratch(device: &Device, experts: i64) -> i64 {
    let records = i64::from(device.multiprocessors).max(SEQUENCES);
    if experts <= QUICK_EXPERTS { records * (4 * 3 * (experts + 3) + 8) } else { 0 }
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

/// Whether the forward is one of the common cases.
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
        && sequences(&params.losses).is_some()
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
        let counts_plain = losses.aux && (!params.bias.is_null() || params.groups > 0);
        let narrow = softmax && params.logits.dtype == Dtype::Bf16 && params.bias.is_null() && !counts_plain;
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
        let tables = if counts_plain || (losses.aux && losses.counted < params.top_k) { 2 } else { 1 };
        let padded = ceil_div(experts, 4) * 4;
        let columns = padded * (i64::from(losses.aux) + tables);
        // Best and second best of each four experts, and sums of groups, of each of a warp's tokens; later a sum an expert.
        let groups = if params.groups > 0 { 32 / lanes * (2 * experts + 4 * i64::from(params.groups)) } else { 0 };
        let room_bytes = ceil_div(groups.max(4 * experts), 16) * 16;
        let shared = |warps: i64| ceil_div(tables * experts, 4) * 16 + warps * room_bytes;
        // Each multiprocessor has one block, since each hands over a record.
        let most = i64::from(device.multiprocessors);
        let sequences = sequences(losses).unwrap_or(1);
        let most_shares = (most / sequences).max(1);
        let room = i64::from(device.shared_memory) - 1024 - ceil_div(tables * experts, 4) * 16;
        let limit = (room / room_bytes).min(threads / 32);
        // As many warps as give each the same number of passes; a few at least.
        let passes = ceil_div(ceil_div(params.tokens.bound, sequences), 32 / lanes);
        let rounds = ceil_div(passes, most_shares * limit).max(1);
        let warps = ceil_div(passes, most_shares * rounds).clamp(4.min(limit), limit);
        let shares = ceil_div(passes, warps).clamp(1, most_shares);
        let records = sequences * shares;
        let weighting = params.weighting;
        let by_score = softmax && !params.by_logit && (!params.bias.is_null() || params.groups > 0);
        let scratch: *mut u32 = scratch.cast();
        let quick = RouterQuickParams {
            tokens: params.tokens,
            experts: params.experts,
            top_k: params.top_k,
            room_bytes: room_bytes as i32,
            tables: tables as i32,
            columns: columns as i32,
            padded: padded as i32,
            sequences: sequences as i32,
            shares: shares as i32,
            step: step(losses) as i32,
            stride: (shares * warps * (32 / lanes) * step(losses)) as i32,
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
            counts_plain,
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
            records: scratch,
            parts: scratch.wrapping_add((records * columns) as usize).cast(),
            tokens_per_expert: params.tokens_per_expert,
            aux_counts: params.aux_counts,
            aux_loss: params.aux_loss,
            z_loss: params.z_loss,
            report: launcher.report,
        };
        let launch = Launch {
            kernel,
            grid: [shares as u32, sequences as u32, 1],
            block: (32 * warps) as u32,
            shared: shared(warps) as u32,
            overlap: true,
            ..Default::default()
        };
        launcher.launch(&launch, &quick)?;
        if !params.sums {
            return Ok(());
        }
        // A cluster of blocks where there are clusters, else a block of teams.
        let teams = (ceil_div(experts, JOIN_EXPERTS) as u64).next_power_of_two() as i64;
        let cluster = if device.capability >= 90 { teams.min(JOIN_BLOCKS) } else { 1 };
        let join = Launch {
            kernel: "router_quick_join",
            grid: [cluster as u32, 1, 1],
            block: (QUICK_JOIN_TEAM * (teams / cluster).min(QUICK_JOIN_TEAMS)) as u32,
            shared: QUICK_JOIN_SHARED as u32,
            cluster: if cluster > 1 { cluster as u32 } else { 0 },
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
        && sequences(&params.losses).is_some()
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
        let sequences = sequences(&params.losses).unwrap_or(1);
        let kernels = match (params.weighting.score, params.logits.dtype) {
            (MOE_SCORE_SOFTMAX, Dtype::Fp16 | Dtype::Bf16) if sequences == 1 => BWD,
            (MOE_SCORE_SOFTMAX, _) => BWD_WIDE,
            _ => BWD_OTHER,
        };
        // Few tokens are spread over all multiprocessors.
        let multiprocessors = i64::from(device.multiprocessors);
        let most_shares = |at_once: i64| (at_once * multiprocessors / sequences).max(1);
        let passes = ceil_div(ceil_div(params.tokens.bound, sequences), 32 / lanes);
        let warps = ceil_div(passes, most_shares(1)).clamp(1, QUICK_BWD_THREADS / 32);
        let at_once = if kernels == BWD { 3 } else { 2 };
        let shares = ceil_div(passes, warps).clamp(1, most_shares(at_once));
        let quick = RouterQuickBwdParams {
            tokens: params.tokens,
            experts: params.experts,
            top_k: params.top_k,
            step: step(&params.losses) as i32,
            stride: (shares * warps * (32 / lanes) * step(&params.losses)) as i32,
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
        let launch = Launch {
            kernel: kernels[shape],
            grid: [shares as u32, sequences as u32, 1],
            block: (32 * warps) as u32,
            overlap: true,
            ..Default::default()
        };
        launcher.launch(&launch, &quick)
    })
}
