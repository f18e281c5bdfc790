//! Grouped GEMM by Hopper's wgmma and TMA (kernels/hopper_gemm.cuh): which problems it takes, and its launches.

use super::shapes::{SHAPES, Shape, Sizes, boxes_allowed, row_tiles};
use super::tensor_map::{BoxSource, Boxes, TensorMap};
use super::{LinearParams, WgradParams, linear_params};
use crate::cuda::device::Device;
use crate::cuda::fatbins::HOPPER;
use crate::cuda::launch::{Launch, Launcher};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::groups::{Gather, Groups};
use crate::ops::grouped_gemm::{Linear, WeightLayout};
use crate::tensor::{Grouped, Matrix};

/// The kernels of a stem, in the order of SHAPES.
macro_rules! widths {
    ($($part:literal),+) => {
        [
            concat!($($part,)+ "_128"),
            concat!($($part,)+ "_176"),
            concat!($($part,)+ "_192"),
            concat!($($part,)+ "_256"),
        ]
    };
}

/// The kernels of a stem by dtype, gathered or not, and layout; `of` makes one entry of a name.
macro_rules! kernels {
    ($stem:literal, $of:ident) => {
        [
            [
                [$of!($stem, "out_in_bf16"), $of!($stem, "in_out_bf16")],
                [$of!($stem, "gathered_out_in_bf16"), $of!($stem, "gathered_in_out_bf16")],
            ],
            [
                [$of!($stem, "out_in_fp16"), $of!($stem, "in_out_fp16")],
                [$of!($stem, "gathered_out_in_fp16"), $of!($stem, "gathered_in_out_fp16")],
            ],
        ]
    };
}

macro_rules! name {
    ($stem:literal, $name:literal) => {
        concat!($stem, $name)
    };
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct HopperLinearParams {
    /// Unused where A is gathered.
    pub a_boxes: BoxSource,
    pub b_boxes: BoxSource,
    /// By which whole rows of C are stored, if they are.
    pub c_boxes: TensorMap,
    pub boxed: bool,
    /// Of the ring of copies.
    pub stages: i32,
    pub linear: LinearParams,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct HopperWgradParams {
    /// Unused where `left` is gathered.
    pub a_boxes: BoxSource,
    pub b_boxes: BoxSource,
    pub wgrad: WgradParams,
    /// Of the ring of copies.
    pub stages: i32,
    /// `out` is written with rows and columns swapped.
    pub transposed: bool,
}

/// The most stages of the ring of copies.
pub const HOPPER_STAGES: i32 = 8;
/// Tiles that are found ahead, and bytes of each.
pub const HOPPER_HANDED: i32 = 8;
pub const HOPPER_HANDED_BYTES: i32 = 32;
/// Bytes in which a warp lays 16 rows out; and so many times as many where old values of gradients are copied ahead.
pub const HOPPER_STAGING: i32 = 2048;
pub const HOPPER_PLACES: i32 = 3;
/// The same where outputs are stored by boxes, but for tiles of 192 columns.
pub const HOPPER_BOX_PLACES: i32 = 2;

/// As kernels/hopper_gemm.cuh says.
const THREADS: u32 = 384;
const CLUSTER: i64 = 2;
pub(crate) const TILE_ROWS: i64 = 128;
/// Warps that have an epilogue.
const WARPS: i64 = 8;
pub(crate) const STAGING: i64 = HOPPER_STAGING as i64;
const PLACES: i64 = HOPPER_PLACES as i64;
/// Rows a group up to which that is faster, of rows as they lie and of rows that an index names.
const FETCH_DEPTH: [i64; 2] = [1024, 768];
/// Bytes of all else that does not depend on the problem: barriers, and tiles that are found ahead.
const BARRIERS: i64 = 16 * HOPPER_STAGES as i64 + 32 + HOPPER_HANDED as i64 * (16 + HOPPER_HANDED_BYTES as i64);
/// Bytes of a group in the schedule; while that is built, twice as many more are lent from the stages.
const WORK: i64 = 16;
/// Groups whose schedule leaves every kernel stages enough.
const MAX_GROUPS: i64 = 2048;

pub fn is_hopper(device: &Device) -> bool {
    HOPPER && device.capability == 90
}

pub fn is_narrow(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Bf16 | Dtype::Fp16)
}

/// Groups that the schedule has room for, and sizes that the kernels count in 32 bits.
pub fn counts_fit(rows_max: i64, groups: i64, rows: i64, columns: i64) -> bool {
    const LIMIT: i64 = 1 << 31;
    let tiles = (rows / TILE_ROWS + groups).saturating_mul(columns / 128 + 1);
    groups <= MAX_GROUPS && rows_max < LIMIT - 256 && rows < LIMIT - 256 && columns < LIMIT - 256 && tiles < LIMIT
}

/// The boxes of rows of A: 64 elements of the reduction of 64 rows.
pub fn row_boxes(a: &Matrix, rows: i64, columns: i64, box_rows: u32, grouped: bool) -> Boxes {
    let (dtype, data, pitch) = (a.dtype, a.data, a.pitch);
    Boxes { dtype, data, groups: 1, rows, columns, pitch, group_stride: 0, box_rows, grouped }
}

/// The boxes of a weight [E, n, k] in its layout, for tiles of `columns`.
pub fn weight_boxes(weight: &Grouped, groups: i64, layout: WeightLayout, n: i64, k: i64, columns: i64) -> Boxes {
    let (rows, width) = layout.shape(n, k);
    Boxes {
        dtype: weight.dtype,
        data: weight.data.wrapping_offset((weight.offset * 2) as isize),
        groups,
        rows,
        columns: width,
        pitch: weight.pitch,
        group_stride: weight.group_stride,
        box_rows: if layout == WeightLayout::OutIn { columns as u32 / 2 } else { 32 },
        grouped: true,
    }
}

/// Whether C is of 16 bits and nothing is added to (kernels/hopper_linear.cuh: NARROW).
fn narrow(p: &Linear) -> bool {
    p.c.dtype != Dtype::Fp32 && !p.output.mode.add && p.output.mode.device.is_null()
}

/// The boxes of whole rows of C, if it can be stored by them: what is stored ends at a multiple of 16 bytes.
fn output_boxes(p: &Linear) -> Option<Boxes> {
    let boxes = row_boxes(&p.c, p.groups.rows_max, p.n, 16, false);
    (narrow(p) && p.n % 8 == 0 && boxes.fits() && boxes_allowed()).then_some(boxes)
}

/// Places of 16 rows from which a warp stores boxes (kernels/hopper_linear.cuh).
fn box_places(columns: i64) -> i64 {
    if columns == 192 { 1 } else { HOPPER_BOX_PLACES.into() }
}

fn boxes_of(p: &Linear, columns: i64) -> Boxes {
    weight_boxes(&p.b, p.groups.count, p.layout, p.n, p.k, columns)
}

/// Whether rows of so many columns can be fetched 16 bytes at a time, and their places counted so in 32 bits.
pub fn gathers(source: &Matrix, rows: i64, columns: i64) -> bool {
    source.data.addr() % 16 == 0 && (source.pitch | columns) % 8 == 0 && rows.saturating_mul(source.pitch / 8) < 1 << 32
}

/// What rows of `columns` are copied from; nothing where an index names them.
pub fn row_source(
    launcher: &Launcher,
    matrix: &Matrix,
    gather: &Option<Gather>,
    rows: i64,
    columns: i64,
) -> Result<BoxSource> {
    match gather {
        None => row_boxes(matrix, rows, columns, 64, false).source(launcher),
        Some(_) => Ok(BoxSource::ABSENT),
    }
}

/// Whether rows of `columns` can be copied, by boxes or by an index.
pub fn rows_fit(matrix: &Matrix, gather: &Option<Gather>, rows: i64, columns: i64) -> bool {
    match gather {
        Some(gather) => gathers(matrix, gather.rows.bound, columns),
        None => row_boxes(matrix, rows, columns, 64, false).fits(),
    }
}

/// Whether a weight can be copied by such boxes; by pointers it takes room.
pub fn weight_fits(weight: &Grouped, boxes: Boxes, room: *mut TensorMap) -> bool {
    boxes.fits() && (weight.pointers.is_null() || !room.is_null())
}

/// Bytes of the room in which a step on weights by pointers makes its maps: two for each group.
pub fn room(device: &Device, groups: i64) -> i64 {
    if is_hopper(device) { 2 * groups * size_of::<TensorMap>() as i64 } else { 0 }
}

pub fn takes_linear(device: &Device, p: &Linear, room: *mut TensorMap) -> bool {
    is_hopper(device)
        && is_narrow(p.a.dtype)
        && p.k < 1 << 30
        && counts_fit(p.groups.rows_max, p.groups.count, p.groups.rows_max, p.n)
        && rows_fit(&p.a, &p.gather, p.groups.rows_max, p.k)
        && weight_fits(&p.b, boxes_of(p, 128), room)
}

pub fn linear(launcher: &Launcher, p: &Linear, room: *mut TensorMap) -> Result<()> {
    let narrow = narrow(p);
    let c_boxes = output_boxes(p);
    let across = p.layout == WeightLayout::InOut;
    let sizes = Sizes {
        row_tiles: row_tiles(&p.groups),
        columns: p.n,
        depth: p.k,
        epilogue: 1.0,
        gathered: p.gather.is_some(),
        boxed: c_boxes.is_some(),
    };
    let shape = sizes.best_shape(launcher.device.multiprocessors, |shape| {
        (narrow || !shape.crowded()) && (!across || shape.of_blocks())
    });
    let Shape { columns, .. } = SHAPES[shape];
    let mut params = HopperLinearParams {
        a_boxes: row_source(launcher, &p.a, &p.gather, p.groups.rows_max, p.k)?,
        b_boxes: boxes_of(p, columns).source_of(launcher, &p.b, room)?,
        c_boxes: TensorMap { words: [0; 16] },
        boxed: false,
        stages: 0,
        linear: linear_params(launcher, p),
    };
    if let Some(boxes) = c_boxes {
        params.c_boxes = boxes.map(launcher)?;
        params.boxed = true;
    }
    const KERNELS: [[[[&str; 4]; 2]; 2]; 2] = kernels!("hopper_linear_", widths);
    let kernel = pick(&KERNELS, p.a.dtype, &p.gather, across)[shape];
    launch(
        launcher,
        kernel,
        p.groups.count,
        columns,
        tiles_of(&p.groups, p.n, columns),
        box_places(columns) * STAGING,
        |stages| {
            params.stages = stages;
            params
        },
    )
}

/// Of kernels by dtype, gathered or not, and layout.
pub fn pick<'a, T>(kernels: &'a [[[T; 2]; 2]; 2], dtype: Dtype, gather: &Option<Gather>, across: bool) -> &'a T {
    &kernels[usize::from(dtype == Dtype::Fp16)][usize::from(gather.is_some())][usize::from(across)]
}

pub fn takes_wgrad(device: &Device, p: &WgradParams) -> bool {
    let fits = |matrix: &Matrix, gather: &Gather, columns: i64| match gather.index.data.is_null() {
        true => row_boxes(matrix, p.groups.rows_max, columns, 64, false).fits(),
        false => gathers(matrix, gather.rows.bound, columns),
    };
    let both = !p.left_gather.index.data.is_null() && !p.right_gather.index.data.is_null();
    is_hopper(device)
        && is_narrow(p.left.dtype)
        && counts_fit(p.groups.rows_max, p.groups.count, p.rows * p.groups.count, p.columns)
        && !both
        && fits(&p.left, &p.left_gather, p.rows)
        && fits(&p.right, &p.right_gather, p.columns)
}

pub fn wgrad(launcher: &Launcher, p: WgradParams) -> Result<()> {
    // What is gathered is A; the output is written transposed where that is the right operand.
    let gathered = !p.left_gather.index.data.is_null();
    let transposed = !p.right_gather.index.data.is_null();
    let p = if transposed {
        WgradParams {
            left: p.right,
            right: p.left,
            left_gather: p.right_gather,
            right_gather: p.left_gather,
            rows: p.columns,
            columns: p.rows,
            ..p
        }
    } else {
        p
    };
    let depth = p.groups.rows_max / p.groups.count;
    let indexed = gathered || transposed;
    let row_tiles = [(p.groups.count * ceil(p.rows, TILE_ROWS)) as f64; 2];
    let sizes = Sizes { row_tiles, columns: p.columns, depth, epilogue: 1.0, gathered: indexed, boxed: false };
    let shape = sizes.best_shape(launcher.device.multiprocessors, Shape::of_blocks);
    let Shape { columns, .. } = SHAPES[shape];
    let adds = p.out.dtype == Dtype::Fp32 && (p.mode.add || !p.mode.device.is_null());
    let ahead = adds && fetches(launcher, p.groups.count, columns, depth, indexed);
    let mut params = HopperWgradParams {
        a_boxes: BoxSource::ABSENT,
        b_boxes: row_boxes(&p.right, p.groups.rows_max, p.columns, 32, true).source(launcher)?,
        wgrad: p,
        stages: 0,
        transposed,
    };
    if !indexed {
        params.a_boxes = row_boxes(&p.left, p.groups.rows_max, p.rows, 64, false).source(launcher)?;
    }
    const KERNELS: [[[&str; 4]; 2]; 2] = [
        [widths!("hopper_wgrad_bf16"), widths!("hopper_wgrad_gathered_bf16")],
        [widths!("hopper_wgrad_fp16"), widths!("hopper_wgrad_gathered_fp16")],
    ];
    const AHEAD: [[&str; 2]; 2] = [
        ["hopper_wgrad_ahead_bf16_192", "hopper_wgrad_ahead_gathered_bf16_192"],
        ["hopper_wgrad_ahead_fp16_192", "hopper_wgrad_ahead_gathered_fp16_192"],
    ];
    let (dtype, form) = (usize::from(p.left.dtype == Dtype::Fp16), usize::from(indexed));
    let (kernel, places) = if ahead { (AHEAD[dtype][form], PLACES) } else { (KERNELS[dtype][form][shape], 1) };
    let tiles = p.groups.count * ceil(p.rows, TILE_ROWS) * ceil(p.columns, columns);
    launch(launcher, kernel, p.groups.count, columns, tiles, places * STAGING, |stages| {
        params.stages = stages;
        params
    })
}

/// The most tiles that rows through weights of `n` outputs can make: each group may end within one.
pub fn tiles_of(groups: &Groups, n: i64, columns: i64) -> i64 {
    (groups.rows_max / TILE_ROWS + groups.count.min(groups.rows_max)) * ceil(n, columns)
}

/// Launches clusters for so many tiles at most, with as many stages as there is room for beside the warps' `staging`.
pub fn launch<P: Copy>(
    launcher: &Launcher,
    kernel: &'static str,
    groups: i64,
    columns: i64,
    tiles: i64,
    staging: i64,
    params: impl FnOnce(i32) -> P,
) -> Result<()> {
    let (fixed, stage) = (fixed_bytes(groups, staging), stage_bytes(columns));
    let stages = stages_of(launcher, groups, columns, staging);
    let shared = (fixed + stages * stage) as u32;
    let grid = (ceil(tiles, CLUSTER) * CLUSTER).min(i64::from(launcher.device.multiprocessors) / CLUSTER * CLUSTER);
    let launch = Launch {
        kernel,
        grid: [grid as u32, 1, 1],
        block: THREADS,
        shared,
        cluster: CLUSTER as u32,
        ..Default::default()
    };
    launcher.launch(&launch, &params(stages as i32))
}

/// Bytes of shared memory beside the stages, and of a stage.
fn fixed_bytes(groups: i64, staging: i64) -> i64 {
    WARPS * staging + BARRIERS + groups * WORK
}

fn stage_bytes(columns: i64) -> i64 {
    (TILE_ROWS + columns) * 128
}

/// Stages that there is room for beside the warps' `staging`.
fn stages_of(launcher: &Launcher, groups: i64, columns: i64, staging: i64) -> i64 {
    let room = i64::from(launcher.device.shared_memory) - fixed_bytes(groups, staging);
    (room / stage_bytes(columns)).min(HOPPER_STAGES.into())
}

/// Whether old values are copied ahead (kernels/hopper_accumulate.cuh): where groups have few rows additions set the pace,
/// not products, and there has to be room.
fn fetches(launcher: &Launcher, groups: i64, columns: i64, depth: i64, gathered: bool) -> bool {
    columns == 192
        && depth <= FETCH_DEPTH[usize::from(gathered)]
        && stages_of(launcher, groups, columns, PLACES * STAGING) >= 4
}

fn ceil(length: i64, size: i64) -> i64 {
    (length + size - 1) / size
}
