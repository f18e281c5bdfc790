//! Few rows through many weights on CUDA: products that are bound by reading the weights, each of them once.

use super::activation::Formula;
use super::grouped_gemm::hopper::is_hopper;
use super::grouped_gemm::tensor_map::{Boxes, TensorMap};
use super::{Device, Launch, Launcher};
use crate::abi::types::*;
use crate::check::OutputMode;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::groups::{Gather, Groups, RowWeights};
use crate::ops::activation::Activation;
use crate::ops::expert_mlp::LinearActivate;
use crate::ops::grouped_gemm::{Linear, WeightLayout};
use crate::tensor::{Grouped, Matrix};

/// Threads of a block: warps that multiply, and behind them warps that load.
pub const DECODE_MULTIPLIERS: i32 = 128;
pub const DECODE_LOADERS: i32 = 64;
/// Bytes of weights that a slot of the pipeline holds; of a token's row as many as DECODE_TOKEN at least.
pub const DECODE_WEIGHTS: i32 = 16384;
pub const DECODE_TOKEN: i32 = 128;
/// Sizes of boxes.
pub const DECODE_BOXES: usize = 4;
/// The most slots.
pub const DECODE_SLOTS: i32 = 10;

/// c[r] = alpha * a[r] * op(w_g)^T + bias[g] (+ beta * c[r]), or weight[r] * act of such a sum.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DecodeParams {
    /// Of `weight` and of `up`, where `boxed`: boxes of 8 rows, of 16, 32 and 64.
    pub boxes: [[TensorMap; DECODE_BOXES]; 2],
    pub boxed: bool,
    pub groups: Groups,
    pub a: Matrix,
    /// Index data is NULL where rows are taken as they are.
    pub gather: Gather,
    /// The gate's alone where `up` is there.
    pub weight: Grouped,
    /// Data and pointers are NULL where `weight` is all.
    pub up: Grouped,
    /// Data is NULL without a bias. Of an activation it is h's.
    pub bias: Matrix,
    /// Of an activation alone.
    pub formula: Formula,
    pub row_weights: RowWeights,
    pub c: Matrix,
    /// Of a plain product alone.
    pub mode: OutputMode,
    pub alpha: f32,
    pub beta: f32,
    /// Columns of c, and of a.
    pub n: i32,
    pub k: i32,
    /// h holds so many columns of one half, then as many of the other.
    pub block: i32,
    pub up_first: bool,
    /// Weights, groups and the gather are older than the launch before this one: they may be read while that still runs.
    pub early: bool,
    /// The most rows that go through weights at a time.
    pub tokens: i32,
    /// Bytes of shared memory: of the table of groups, and of the slots behind it.
    pub table: i32,
    pub room: i32,
    pub report: *mut moe_device_report_t,
}

/// The most groups whose table a block keeps, and the most rows of all groups together.
const MAX_GROUPS: i64 = 1024;
const MAX_ROWS: i64 = 2048;
/// The widest rows: granules of all groups are counted in 32 bits.
const MAX_WIDTH: i64 = 1 << 20;
/// The most rows a group, on average, for which reading weights is all that counts.
const ROWS_A_GROUP: i64 = 32;
/// The same where weights are so many that tiles of 128 rows, which begin and end more slowly, read them no worse: outputs
/// times inputs of all groups.
const ROWS_OF_MANY: i64 = 8;
const MANY: i64 = 1 << 27;

/// Bytes of shared memory that kernels have besides, at most.
const STATIC: i32 = 1024;

/// Blocks that share a multiprocessor: while a tile of one ends, the weights of the other stream.
const BLOCKS: u32 = 2;

/// Rows of the smallest box.
const BOX_ROWS: u32 = 8;

/// Kernels for more rows at a time are wide.
const WIDE: i32 = 32;

/// Sizes and layouts of a product, which alone decide whether it is taken.
struct Extent<'a> {
    groups: &'a Groups,
    a: &'a Matrix,
    weights: [Option<&'a Grouped>; 2],
    n: i64,
    k: i64,
}

impl Extent<'_> {
    fn is_taken(&self, device: &Device) -> bool {
        let Groups { count, rows_max, offsets, .. } = *self.groups;
        let many = is_hopper(device) && self.n.saturating_mul(self.k).saturating_mul(count) >= MANY;
        let rows = if many { ROWS_OF_MANY } else { ROWS_A_GROUP };
        let few = rows_max <= (rows * count).min(MAX_ROWS) && count <= MAX_GROUPS && !offsets.is_null();
        let by_packs = |pitch: i64, data: *mut u8| pitch % 8 == 0 && data.addr() % 16 == 0;
        let aligned = by_packs(self.a.pitch, self.a.data)
            && self.weights.iter().flatten().all(|w| {
                let strides = w.pitch | w.offset | if w.pointers.is_null() { w.group_stride } else { 0 };
                by_packs(strides, w.data)
            });
        few && aligned
            && matches!(self.a.dtype, Dtype::Bf16 | Dtype::Fp16)
            && (self.n | self.k) % 8 == 0
            && self.n.max(self.k) < MAX_WIDTH
    }
}

/// What kernels are called: for fp16 and bf16, each for up to 32 rows at a time and for up to 64.
struct Names {
    fp16: [&'static str; 2],
    bf16: [&'static str; 2],
}

macro_rules! names {
    ($name:literal) => {
        Names {
            fp16: [concat!("decode_", $name, "_fp16"), concat!("decode_wide_", $name, "_fp16")],
            bf16: [concat!("decode_", $name, "_bf16"), concat!("decode_wide_", $name, "_bf16")],
        }
    };
}

/// Takes a plain product if it is one of few rows; false: it is not, and nothing was enqueued. `early`: weights, groups and
/// the gather are older than the launch before this one.
pub fn linear(launcher: &Launcher, p: &Linear, early: bool) -> Result<bool> {
    let weights = [Some(&p.b), None];
    let extent = Extent { groups: &p.groups, a: &p.a, weights, n: p.n, k: p.k };
    if !extent.is_taken(launcher.device) {
        return Ok(false);
    }
    let names = if p.layout == WeightLayout::OutIn { names!("linear_out_in") } else { names!("linear_in_out") };
    let params = DecodeParams {
        bias: p.bias.unwrap_or(Matrix::ABSENT),
        c: p.c,
        mode: p.output.mode,
        alpha: p.alpha as f32,
        beta: p.output.beta as f32,
        n: p.n as i32,
        early,
        ..params(launcher, &p.groups, &p.a, p.gather, p.b, p.k)
    };
    let rows = (p.layout == WeightLayout::OutIn).then_some(p.n);
    launch(launcher, names, params, rows).map(|()| true)
}

/// The same for a product and its activation.
pub fn linear_activate(launcher: &Launcher, p: &LinearActivate) -> Result<bool> {
    let Activation { ffn, block, gated, .. } = p.shape.activation;
    let layout = p.shape.w1_layout;
    let weights = [Some(&p.fc1.w1), p.fc1.up.as_ref()];
    let extent = Extent { groups: &p.groups, a: &p.input.x, weights, n: ffn, k: p.shape.hidden };
    // Eight outputs at a time are of one half, or alternate.
    let blocks = !gated || block % 8 == 0 || block == 1;
    let pitches = layout == WeightLayout::OutIn || p.fc1.up.is_none_or(|up| up.pitch == p.fc1.w1.pitch);
    if p.h.is_some() || !blocks || !pitches || !extent.is_taken(launcher.device) {
        return Ok(false);
    }
    let names = if layout == WeightLayout::OutIn { names!("activate_out_in") } else { names!("activate_in_out") };
    let params = DecodeParams {
        up: p.fc1.up.unwrap_or(Grouped::ABSENT),
        bias: p.fc1.bias.unwrap_or(Matrix::ABSENT),
        formula: Formula::new(&p.shape.activation),
        row_weights: p.weights,
        c: p.act,
        n: ffn as i32,
        block: block as i32,
        up_first: p.shape.activation.up_first,
        ..params(launcher, &p.groups, &p.input.x, p.input.gather, p.fc1.w1, p.shape.hidden)
    };
    let rows = if gated && p.fc1.up.is_none() { 2 * ffn } else { ffn };
    launch(launcher, names, params, (layout == WeightLayout::OutIn).then_some(rows)).map(|()| true)
}

/// What both have, and how the pipeline is laid out: by sizes alone.
fn params(
    launcher: &Launcher,
    groups: &Groups,
    a: &Matrix,
    gather: Option<Gather>,
    weight: Grouped,
    k: i64,
) -> DecodeParams {
    // Four times the average of a group: more rows than that seldom choose one expert, and read its weights again.
    let usual = (4 * groups.rows_max / groups.count.max(1)).max(1) as u64;
    let bound = gather.map_or(groups.rows_max, |gather| gather.rows.bound.max(1)) as u64;
    let tokens = usual.next_power_of_two().min(bound.next_power_of_two()).clamp(8, 64) as i32;
    let table = (16 * groups.count.min(groups.rows_max) + 1023) as i32 & -1024;
    let slot = DECODE_WEIGHTS + DECODE_TOKEN * tokens.max(16);
    // Of a multiprocessor, of which the system takes 1 KiB for each block.
    let shared = (launcher.device.shared_memory + 1024) / BLOCKS as i32 - 1024;
    DecodeParams {
        boxes: [[TensorMap { words: [0; 16] }; DECODE_BOXES]; 2],
        boxed: false,
        groups: *groups,
        a: *a,
        gather: gather.unwrap_or(Gather::ABSENT),
        weight,
        up: Grouped::ABSENT,
        bias: Matrix::ABSENT,
        formula: Formula { curve: 0, gated: false, alpha: 1.0, limit: f32::INFINITY, shift: 0.0, ffn: 0 },
        row_weights: RowWeights::one(),
        c: Matrix::ABSENT,
        mode: OutputMode { add: false, device: std::ptr::null() },
        alpha: 1.0,
        beta: 0.0,
        n: 0,
        k: k as i32,
        block: 0,
        up_first: false,
        early: false,
        tokens,
        table,
        room: (shared - table - STATIC).clamp(3 * slot, DECODE_SLOTS * slot),
        report: launcher.report,
    }
}

fn launch(launcher: &Launcher, names: Names, mut params: DecodeParams, rows: Option<i64>) -> Result<()> {
    let kernels = if params.a.dtype == Dtype::Fp16 { names.fp16 } else { names.bf16 };
    let blocks = if params.groups.rows_max == 0 { 0 } else { BLOCKS * launcher.device.multiprocessors as u32 };
    if let (Some(rows), true) = (rows, blocks > 0) {
        box_weights(launcher, &mut params, rows)?;
    }
    let launch = Launch {
        kernel: kernels[usize::from(params.tokens > WIDE)],
        grid: [blocks, 1, 1],
        block: (DECODE_MULTIPLIERS + DECODE_LOADERS) as u32,
        shared: (params.table + params.room) as u32,
        overlap: true,
        ..Default::default()
    };
    launcher.launch(&launch, &params)
}

/// Has Hopper's copy engine fetch weights [E, rows, k], if they are stacked.
fn box_weights(launcher: &Launcher, params: &mut DecodeParams, rows: i64) -> Result<()> {
    let boxes = |weight: &Grouped, box_rows: u32| Boxes {
        dtype: weight.dtype,
        data: weight.data.wrapping_offset((weight.offset * 2) as isize),
        groups: params.groups.count,
        rows,
        columns: params.k.into(),
        pitch: weight.pitch,
        group_stride: weight.group_stride,
        box_rows,
        grouped: true,
    };
    let weights = [params.weight, params.up].map(|weight| (!weight.data.is_null()).then_some(weight));
    let by_pointers = !params.weight.pointers.is_null() || !params.up.pointers.is_null();
    if !is_hopper(launcher.device)
        || by_pointers
        || !weights.iter().flatten().all(|weight| boxes(weight, BOX_ROWS).fits())
    {
        return Ok(());
    }
    let mut maps = params.boxes;
    for (maps, weight) in maps.iter_mut().zip(weights.iter().flatten()) {
        for (size, map) in maps.iter_mut().enumerate() {
            *map = boxes(weight, BOX_ROWS << size).map(launcher)?;
        }
    }
    params.boxes = maps;
    params.boxed = true;
    Ok(())
}
