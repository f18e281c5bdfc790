//! Scores, selection, weights and losses: one launch forward, one backward (two where sequences have padding).

use crate::abi::router::*;
use crate::abi::types::*;
use crate::check::{Count, OutputMode};
use crate::cuda::{Device, Launch};
use crate::error::Result;
use crate::ops::router::loss::{self, LossInputs, Losses};
use crate::ops::router::topk::{Backward, Forward, Router};
use crate::tensor::Matrix;
use crate::workspace::{Layout, Part, Workspace};

use super::quick;

/// Threads of a block.
pub const ROUTER_THREADS: i64 = 256;
/// Slots that a lane of the backward takes.
pub const ROUTER_SLOTS: i64 = 8;
/// Blocks of a multiprocessor at most, where blocks wait for each other.
pub const ROUTER_BLOCKS: i64 = 4;

/// What the losses are and read.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterLosses {
    pub aux: bool,
    pub z: bool,
    /// Counts come from the caller.
    pub global: bool,
    /// MOE_SCORE_*.
    pub score: i32,
    /// How many of a token's choices are counted.
    pub counted: i32,
    /// MOE_SEQUENCE_*.
    pub layout: i32,
    pub sequences: i64,
    /// Tokens a sequence, for MOE_SEQUENCE_MAJOR.
    pub length: i64,
    /// Loss of a sequence of n tokens: aux_scale / n^2 * sum_e (sum_t s_te) * n_e.
    pub aux_scale: f64,
    pub z_scale: f64,
    pub padding_mask: *const u8,
    pub sequence_offsets: *const i64,
    pub global_counts: *const f32,
    pub global_tokens: *const f32,
}

/// How the chosen experts' logits become weights.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterWeighting {
    /// MOE_SCORE_*.
    pub score: i32,
    pub over_chosen: bool,
    pub divided: bool,
    pub scale: f64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterFwdParams {
    pub tokens: Count,
    pub experts: i32,
    pub top_k: i32,
    pub logits: Matrix,
    pub weighting: RouterWeighting,
    /// MOE_SELECT_*.
    pub selection: i32,
    /// Experts are compared by their logits, not by their scores.
    pub by_logit: bool,
    /// 0: no limits.
    pub groups: i32,
    pub kept_groups: i32,
    /// A group's score is the sum of its so many best.
    pub group_terms: i32,
    /// NULL: none.
    pub bias: *const f32,
    /// Outputs; data is NULL where one is absent.
    pub ids: Matrix,
    pub weights: Matrix,
    pub dense: Matrix,
    pub byte_mask: Matrix,
    pub bit_mask: Matrix,
    pub given: Matrix,
    pub random: moe_random_t,
    pub losses: RouterLosses,
    /// The aux loss counts the choices themselves, not the plain top-k.
    pub count_choices: bool,
    /// Something is summed over tokens: blocks wait for each other.
    pub sums: bool,
    /// NULL: not wanted.
    pub tokens_per_expert: *mut i64,
    /// [sequences, experts]; NULL without aux loss.
    pub aux_counts: *mut i64,
    /// [sequences, experts]: sums of scores in fixed point; NULL without aux loss.
    pub score_sums: *mut i64,
    /// What 1 is in it.
    pub one: f64,
    /// [sequences]: real tokens; NULL without aux loss.
    pub lengths: *mut i64,
    /// [blocks, 3]: parts of the aux loss, of the z-loss, and of the real tokens.
    pub parts: *mut f64,
    /// NULL: not wanted.
    pub aux_loss: *mut f32,
    pub z_loss: *mut f32,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterBwdParams {
    pub tokens: Count,
    pub experts: i32,
    pub top_k: i32,
    /// Lanes of a token, and each lane's groups of four experts.
    pub lanes: i32,
    pub quads: i32,
    pub logits: Matrix,
    pub weighting: RouterWeighting,
    /// Without data there is no gradient of weights.
    pub ids: Matrix,
    pub dweights: Matrix,
    pub ddense: Matrix,
    pub dlogits: Matrix,
    pub mode: OutputMode,
    pub losses: RouterLosses,
    pub aux_counts: *const i64,
    /// [sequences]: real tokens, where padding makes them differ; else NULL.
    pub lengths: *const i64,
    /// NULL: 1.
    pub aux_grad: *const f32,
    pub z_grad: *const f32,
    pub report: *mut moe_device_report_t,
}

/// Counts the real tokens of each sequence.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouterLengthsParams {
    pub tokens: Count,
    pub losses: RouterLosses,
    pub lengths: *mut i64,
    pub report: *mut moe_device_report_t,
}

impl RouterLosses {
    fn new(losses: &Losses, inputs: &LossInputs) -> Self {
        let sequential = losses.aux && losses.scope == MOE_AUX_SCOPE_SEQUENCE;
        RouterLosses {
            aux: losses.aux,
            z: losses.z,
            global: losses.global(),
            score: losses.score,
            counted: losses.counted as i32,
            layout: if sequential { losses.layout } else { MOE_SEQUENCE_MAJOR },
            sequences: losses.sequences,
            length: (losses.tokens / losses.sequences).max(1),
            aux_scale: losses.aux_scale,
            z_scale: losses.z_scale,
            padding_mask: inputs.padding_mask,
            sequence_offsets: inputs.sequence_offsets,
            global_counts: inputs.global_counts,
            global_tokens: inputs.global_tokens,
        }
    }
}

impl RouterWeighting {
    fn new(router: &Router) -> Self {
        let w = &router.weighting;
        RouterWeighting { score: w.score, over_chosen: w.over_chosen, divided: w.divided, scale: w.scale }
    }
}

/// What the forward sums into.
pub struct Sums {
    counts: Part,
    scores: Part,
    lengths: Part,
    parts: Part,
    /// Of the common cases.
    quick: Part,
}

/// What the backward counts: real tokens of sequences.
pub struct Lengths(Part);

pub fn bwd_layout(losses: &Losses) -> (Layout, Lengths) {
    let mut layout = Layout::default();
    let lengths = layout.part(if losses.aux { losses.sequences * 8 } else { 0 });
    (layout, Lengths(lengths))
}

pub fn fwd_layout(device: &Device, losses: &Losses) -> (Layout, Sums) {
    let mut layout = Layout::default();
    let table = if losses.aux { losses.sequences * losses.experts * 8 } else { 0 };
    let sums = Sums {
        counts: layout.part(table),
        scores: layout.part(table),
        lengths: layout.part(if losses.aux { losses.sequences * 8 } else { 0 }),
        parts: layout.part(if losses.any() { blocks_at_once(device) * 24 } else { 0 }),
        quick: layout.part(quick::scratch(device, losses.experts)),
    };
    (layout, sums)
}

fn blocks_at_once(device: &Device) -> i64 {
    ROUTER_BLOCKS * i64::from(device.multiprocessors)
}

/// The parameters of a forward that only computes losses.
fn plain(losses: &Losses, inputs: &LossInputs, tokens: Count, logits: Matrix) -> RouterFwdParams {
    RouterFwdParams {
        tokens,
        experts: losses.experts as i32,
        top_k: losses.top_k as i32,
        logits,
        weighting: RouterWeighting { score: losses.score, over_chosen: false, divided: false, scale: 1.0 },
        selection: MOE_SELECT_TOPK,
        by_logit: false,
        groups: 0,
        kept_groups: 0,
        group_terms: 0,
        bias: std::ptr::null(),
        ids: Matrix::ABSENT,
        weights: Matrix::ABSENT,
        dense: Matrix::ABSENT,
        byte_mask: Matrix::ABSENT,
        bit_mask: Matrix::ABSENT,
        given: Matrix::ABSENT,
        random: moe_random_t { seed: 0, offset: 0, seed_device: std::ptr::null(), offset_device: std::ptr::null() },
        losses: RouterLosses::new(losses, inputs),
        count_choices: false,
        sums: false,
        tokens_per_expert: std::ptr::null_mut(),
        aux_counts: std::ptr::null_mut(),
        score_sums: std::ptr::null_mut(),
        // Sums of scores up to 1 must not overflow.
        one: (1u64 << (61 - (64 - losses.tokens.leading_zeros())).min(32)) as f64,
        lengths: std::ptr::null_mut(),
        parts: std::ptr::null_mut(),
        aux_loss: std::ptr::null_mut(),
        z_loss: std::ptr::null_mut(),
        report: std::ptr::null_mut(),
    }
}

/// Losses that nobody asked for are not computed.
fn set_outputs(params: &mut RouterFwdParams, outputs: &loss::LossOutputs, sums: &Sums, workspace: Workspace) {
    let losses = &mut params.losses;
    losses.aux &= !(outputs.aux.is_null() && outputs.aux_counts.is_null());
    losses.z &= !outputs.z.is_null();
    if losses.aux {
        let counts = outputs.aux_counts;
        params.aux_counts = if counts.is_null() { workspace.at(sums.counts) } else { counts };
        params.score_sums = workspace.at(sums.scores);
        params.lengths = workspace.at(sums.lengths);
        params.aux_loss = outputs.aux;
    }
    if losses.z {
        params.z_loss = outputs.z;
    }
    if losses.aux || losses.z {
        params.parts = workspace.at(sums.parts);
    }
    params.sums = losses.aux || losses.z || !params.tokens_per_expert.is_null();
}

pub fn fwd(
    device: &Device,
    problem: &Forward,
    sums: &Sums,
    workspace: Workspace,
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    let Router { weighting, selection, losses } = &problem.router;
    let mut params = plain(losses, &problem.inputs, problem.tokens, problem.logits);
    params.weighting = RouterWeighting::new(&problem.router);
    params.selection = selection.rule;
    params.bias = problem.bias;
    params.by_logit = weighting.compares_logits || (selection.bias_on_logit && !problem.bias.is_null());
    if let Some(groups) = &selection.groups {
        params.groups = groups.count as i32;
        params.kept_groups = groups.kept as i32;
        params.group_terms = groups.terms as i32;
    }
    let given = |matrix: Option<Matrix>| matrix.unwrap_or(Matrix::ABSENT);
    params.ids = given(problem.ids);
    params.weights = given(problem.weights);
    params.dense = given(problem.dense);
    params.byte_mask = given(problem.byte_mask);
    params.bit_mask = given(problem.bit_mask);
    params.given = given(problem.given);
    params.random = problem.random.0;
    params.tokens_per_expert = problem.tokens_per_expert;
    set_outputs(&mut params, &problem.outputs, sums, workspace);
    launch_fwd(device, losses.wide, params, workspace.at(sums.quick), report, stream)
}

pub fn loss_fwd(
    device: &Device,
    problem: &loss::Forward,
    sums: &Sums,
    workspace: Workspace,
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    let losses = &problem.losses;
    let mut params = plain(losses, &problem.inputs, problem.tokens, problem.logits);
    if let Some(ids) = problem.ids {
        params.selection = MOE_SELECT_GIVEN;
        params.given = ids;
        params.count_choices = true;
    }
    set_outputs(&mut params, &problem.outputs, sums, workspace);
    if !params.sums {
        return Ok(());
    }
    launch_fwd(device, losses.wide, params, workspace.at(sums.quick), report, stream)
}

fn launch_fwd(
    device: &Device,
    wide: bool,
    params: RouterFwdParams,
    scratch: *mut u8,
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    if quick::takes_fwd(&params, wide) {
        return quick::fwd(device, &params, scratch, report, stream);
    }
    device.run(report, stream, |launcher| {
        let params = RouterFwdParams { report: launcher.report, ..params };
        let kernel = if wide { "router_fwd_fp64" } else { "router_fwd" };
        let tables = if params.groups > 0 { 4 } else { 3 };
        let bytes = tables * params.experts as u32 * if wide { 8 } else { 4 };
        let threads = threads_that_fit(device, 32, bytes);
        let (warps, shared) = (i64::from(threads / 32), threads / 32 * bytes);
        let wanted = ((params.tokens.bound + warps - 1) / warps).max(1);
        let limit = match params.sums {
            true => i64::from(device.max_blocks(kernel, threads, shared)?).min(blocks_at_once(device)),
            false => 16 * i64::from(device.multiprocessors),
        };
        let launch = Launch {
            kernel,
            grid: [wanted.min(limit) as u32, 1, 1],
            block: threads,
            shared,
            cooperative: params.sums,
            ..Default::default()
        };
        launcher.launch(&launch, &params)
    })
}

/// Threads of a block, each `unit` of which need so many bytes of shared memory.
fn threads_that_fit(device: &Device, unit: u32, bytes: u32) -> u32 {
    let room = device.shared_memory as u32 - 1024;
    let fits = |threads: &u32| threads / unit * bytes <= room;
    (0..3).map(|halvings| ROUTER_THREADS as u32 >> halvings).find(fits).unwrap_or(32)
}

pub fn bwd(
    device: &Device,
    problem: &Backward,
    lengths: &Lengths,
    workspace: Workspace,
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    let losses = &problem.router.losses;
    let given = |matrix: Option<Matrix>| matrix.unwrap_or(Matrix::ABSENT);
    let params = RouterBwdParams {
        weighting: RouterWeighting::new(&problem.router),
        ids: given(problem.ids),
        dweights: given(problem.dweights),
        ddense: given(problem.ddense),
        ..plain_bwd(&loss::Backward {
            losses: *losses,
            tokens: problem.tokens,
            logits: problem.logits,
            dlogits: problem.dlogits,
            mode: problem.mode,
            inputs: problem.inputs,
            grads: problem.grads,
        })
    };
    launch_bwd(device, losses, params, lengths, workspace, report, stream)
}

pub fn loss_bwd(
    device: &Device,
    problem: &loss::Backward,
    lengths: &Lengths,
    workspace: Workspace,
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    launch_bwd(device, &problem.losses, plain_bwd(problem), lengths, workspace, report, stream)
}

/// The gradient of the losses alone.
fn plain_bwd(problem: &loss::Backward) -> RouterBwdParams {
    let losses = &problem.losses;
    RouterBwdParams {
        tokens: problem.tokens,
        experts: losses.experts as i32,
        top_k: losses.top_k as i32,
        lanes: 0,
        quads: 0,
        logits: problem.logits,
        weighting: RouterWeighting { score: losses.score, over_chosen: false, divided: false, scale: 1.0 },
        ids: Matrix::ABSENT,
        dweights: Matrix::ABSENT,
        ddense: Matrix::ABSENT,
        dlogits: problem.dlogits,
        mode: problem.mode,
        losses: RouterLosses::new(losses, &problem.inputs),
        aux_counts: problem.grads.aux_counts,
        lengths: std::ptr::null(),
        aux_grad: problem.grads.aux,
        z_grad: problem.grads.z,
        report: std::ptr::null_mut(),
    }
}

fn launch_bwd(
    device: &Device,
    losses: &Losses,
    params: RouterBwdParams,
    lengths: &Lengths,
    workspace: Workspace,
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    if quick::takes_bwd(&params, losses.wide) {
        return quick::bwd(device, &params, report, stream);
    }
    device.run(report, stream, |launcher| {
        let mut params = RouterBwdParams { report: launcher.report, ..params };
        // Where all tokens are one sequence every block counts its padding by itself.
        let sequential = losses.sequences > 1 || params.losses.layout == MOE_SEQUENCE_OFFSETS;
        if sequential && !params.losses.padding_mask.is_null() {
            let lengths = workspace.at(lengths.0);
            params.lengths = lengths;
            let count =
                RouterLengthsParams { tokens: params.tokens, losses: params.losses, lengths, report: launcher.report };
            let blocks = losses.sequences.min(16 * i64::from(device.multiprocessors)) as u32;
            let launch = Launch { kernel: "router_lengths", grid: [blocks, 1, 1], block: 256, ..Default::default() };
            launcher.launch(&launch, &count)?;
        }
        let lanes = [(losses.experts + 7) / 8, (losses.top_k + ROUTER_SLOTS - 1) / ROUTER_SLOTS, 1];
        let lanes = (lanes.into_iter().max().unwrap_or(1).min(32) as u32).next_power_of_two();
        params.lanes = lanes as i32;
        params.quads = (losses.experts as u32).div_ceil(4 * lanes) as i32;
        let bytes = params.quads as u32 * if losses.wide { 64 } else { 48 };
        let threads = threads_that_fit(device, 1, bytes);
        let tokens = i64::from(threads / lanes);
        let blocks = ((params.tokens.bound + tokens - 1) / tokens).min(8 * i64::from(device.multiprocessors));
        let launch = Launch {
            kernel: if losses.wide { "router_bwd_fp64" } else { "router_bwd" },
            grid: [blocks as u32, 1, 1],
            block: threads,
            shared: threads * bytes,
            ..Default::default()
        };
        launcher.launch(&launch, &params)
    })
}
