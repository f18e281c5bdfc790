//! Dispatch on a GPU. Here: what its kernels take, and how rows are divided among threads.

mod combine;
mod permute;
mod plan;
mod sort_chunks;

pub use combine::{combine_bwd, combine_fwd};
pub use permute::{dispatch_bwd, dispatch_fwd};
pub use plan::{plan, plan_layout};
pub use sort_chunks::sort_chunks;

use crate::abi::types::moe_device_report_t;
use crate::check::{Count, OutputMode};
use crate::cuda::rows::{access, instance, packs};
use crate::dtype::Dtype;
use crate::ops::dispatch::{Maps, Weights};
use crate::tensor::Matrix;

/// Rows that a block takes at a time where rows, not tokens, are handed out.
pub const DISPATCH_UNIT: i64 = 8;
/// The most threads of a block that copies rows, of one that sums a part of a token's, and of one that hands a token on to
/// its rows.
pub const DISPATCH_THREADS: i64 = 512;
pub const COMBINE_FWD_THREADS: i64 = 128;
pub const COMBINE_FEW_COLUMNS: i64 = 2;
pub const COMBINE_THREADS: i64 = 256;
/// The most warps of a block that plans, and the most threads of one that plans by ids.
pub const DISPATCH_PLAN_WARPS: i64 = 16;
pub const DISPATCH_PLAN_THREADS: i64 = 1024;

pub const DISPATCH_IDS: i32 = 0;
pub const DISPATCH_BYTE_MASK: i32 = 1;
pub const DISPATCH_BIT_MASK: i32 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct DispatchPlanParams {
    pub tokens: Count,
    pub experts: i64,
    pub top_k: i64,
    pub expert_begin: i64,
    pub groups: i64,
    pub alignment: i64,
    pub rows_per_group: i64,
    pub rows: i64,
    /// DISPATCH_IDS, DISPATCH_BYTE_MASK or DISPATCH_BIT_MASK.
    pub choice: i32,
    pub strict_ids: bool,
    pub chosen: Matrix,
    pub expert_map: *const i32,
    pub group_offsets: *mut i64,
    pub group_sizes: *mut i64,
    pub slot_offsets: Matrix,
    pub row_of_slot: Matrix,
    pub slot_of_row: Matrix,
    pub token_of_row: Matrix,
    /// Slots of a warp, a multiple of 32, and how many tokens and slots of a token 32 slots are; by ids alone.
    pub run: i64,
    pub step_tokens: u32,
    pub step_k: u32,
    /// Columns of a row of counts: one a group, one for slots, and up to a multiple of four.
    pub columns: i64,
    /// [blocks, columns]: slots of each block in each group; in the column behind the groups, all its slots. By ids
    /// columns are the groups, up to a multiple of four.
    pub counts: *mut u32,
    /// [blocks, columns] and twice as many: what stands in shared memory where there is enough; else NULL.
    pub histogram: *mut u32,
    pub places: *mut i64,
    pub report: *mut moe_device_report_t,
}

/// Maps; data is NULL where one is absent.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DispatchMaps {
    pub tokens: Count,
    pub top_k: i64,
    pub rows: i64,
    pub groups: i64,
    pub expert_begin: i64,
    pub token_of_row: Matrix,
    pub slot_of_row: Matrix,
    pub row_of_slot: Matrix,
    pub slot_offsets: Matrix,
    pub group_offsets: *const i64,
    pub report: *mut moe_device_report_t,
}

impl DispatchMaps {
    fn new(maps: &Maps, report: *mut moe_device_report_t) -> Self {
        let given = |map: Option<Matrix>| map.unwrap_or(Matrix::ABSENT);
        DispatchMaps {
            tokens: maps.tokens,
            top_k: maps.top_k,
            rows: maps.rows,
            groups: maps.groups,
            expert_begin: maps.expert_begin,
            token_of_row: given(maps.token_of_row),
            slot_of_row: given(maps.slot_of_row),
            row_of_slot: given(maps.row_of_slot),
            slot_offsets: given(maps.slot_offsets),
            group_offsets: maps.group_offsets,
            report,
        }
    }

    /// Whether blocks take tokens, each with its slots: it is read once.
    fn by_token(&self) -> bool {
        !self.row_of_slot.data.is_null()
    }

    /// Blocks that have work, in each of both ways to divide it; one at least.
    fn blocks(&self) -> u32 {
        let units = if self.by_token() { self.tokens.bound } else { self.rows / DISPATCH_UNIT + 1 };
        // Blocks go on to other units, and to padding, in strides.
        units.max(self.rows / 1024).clamp(1, i32::MAX.into()) as u32
    }
}

pub const DISPATCH_WEIGHTS_NONE: i32 = 0;
pub const DISPATCH_WEIGHTS_SLOT: i32 = 1;
pub const DISPATCH_WEIGHTS_ROW: i32 = 2;
pub const DISPATCH_WEIGHTS_DENSE: i32 = 3;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct DispatchWeights {
    /// DISPATCH_WEIGHTS_*.
    pub kind: i32,
    pub values: Matrix,
}

impl From<Weights> for DispatchWeights {
    fn from(weights: Weights) -> Self {
        let (kind, values) = match weights {
            Weights::None => (DISPATCH_WEIGHTS_NONE, Matrix::ABSENT),
            Weights::Slot(values) => (DISPATCH_WEIGHTS_SLOT, values),
            Weights::Row(values) => (DISPATCH_WEIGHTS_ROW, values),
            Weights::Dense(values) => (DISPATCH_WEIGHTS_DENSE, values),
        };
        DispatchWeights { kind, values }
    }
}

/// Gradients of weights; data is NULL where one is not wanted.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DispatchWeightGradients {
    /// [S].
    pub slot: Matrix,
    /// [R].
    pub row: Matrix,
    /// [T, experts].
    pub dense: Matrix,
    pub experts: i64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct DispatchFwdParams {
    pub maps: DispatchMaps,
    /// Pitches and columns count chunks, as many bytes as a thread copies at once.
    pub x: Matrix,
    pub rows: Matrix,
    pub columns: i64,
    pub weights: DispatchWeights,
    pub row_weights: Matrix,
}

/// Also the backward of dispatch, which has no weights but may have their gradients.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CombineFwdParams {
    pub maps: DispatchMaps,
    pub rows: Matrix,
    /// Its data may be NULL.
    pub y: Matrix,
    pub y_mode: OutputMode,
    pub hidden: i64,
    /// Maps and weights are older than the launch before this one: they may be read while that still runs.
    pub early: bool,
    /// Rows and y can be accessed 16 bytes at a time.
    pub packs: bool,
    /// Blocks that have a token together, each some of its columns.
    pub parts: u32,
    pub weights: DispatchWeights,
    /// Gradients a row, that go to slots and experts.
    pub drow_weights: Matrix,
    pub dweights: DispatchWeightGradients,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct CombineBwdParams {
    pub maps: DispatchMaps,
    pub dy: Matrix,
    /// Data is NULL where no gradient of weights is wanted.
    pub rows: Matrix,
    /// Its data may be NULL.
    pub drows: Matrix,
    pub hidden: i64,
    /// dy, rows and drows can be accessed 16 bytes at a time.
    pub packs: bool,
    pub weights: DispatchWeights,
    pub dweights: DispatchWeightGradients,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct SortChunksParams {
    pub rows: i64,
    pub chunks: i64,
    pub inverse: bool,
    pub chunk_sizes: *const i64,
    pub order: *const i32,
    /// [chunks + 1]: where each chunk begins in the unsorted order.
    pub unsorted: *mut i64,
    /// [chunks + 1]: where the chunks begin in the sorted order.
    pub sorted: *mut i64,
    /// Pitches and columns count chunks of bytes, as in DispatchFwdParams.
    pub x: Matrix,
    pub y: Matrix,
    pub columns: i64,
    pub row_weights: Matrix,
    pub sorted_row_weights: Matrix,
    pub report: *mut moe_device_report_t,
}

/// Threads of a block for rows of so many accesses: whole warps, each thread with about as many accesses as the others.
fn threads(accesses: i64, most: i64) -> u32 {
    let accesses = accesses as u32;
    accesses.div_ceil(accesses.div_ceil(most as u32)).next_multiple_of(32)
}

/// A matrix whose pitch counts chunks of so many bytes.
fn in_chunks(matrix: &Matrix, bytes: i64) -> Matrix {
    Matrix { pitch: matrix.pitch * matrix.dtype.size() / bytes, ..*matrix }
}

/// The instance of a kernel for chunks of so many bytes.
fn instance_of_chunk(bytes: i64, names: [&'static str; 5]) -> &'static str {
    names[bytes.trailing_zeros() as usize]
}
