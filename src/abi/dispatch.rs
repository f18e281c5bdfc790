//! Dispatch plan, permute and unpermute, chunk sort.
#![allow(non_camel_case_types)]

use super::types::*;

/// ids or a mask -> group sizes, group offsets and the maps between slots and rows (CSR).
///
/// A slot is one chosen expert of a token. From ids, slot t*K + k is token t's k-th; from a mask, slots are
/// counted in token order, then ascending expert, and slot_offsets says where each token's begin.
/// Rows are sorted by expert, then by token, then by slot; each group is padded to a multiple of `alignment`.
/// An id below 0 or >= num_experts, or of an expert that is not local, is skipped: its slot's row is -1.
/// S, the slots there is room for, is T*K. A mask's token with more than K experts keeps its first K; that is reported.
/// Slots and rows beyond the true counts are not written. Group starts are multiples of `alignment`; where rows_max is
/// too small, groups end at its last such multiple and the slots behind are dropped and reported.
/// ids: INT32 or INT64; maps: INT32 or INT64, all of one dtype.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_dispatch_desc_t {
    pub struct_size: u32,
    /// MOE_ON: ids other than -1 that are outside 0 .. num_experts-1 are reported (they are skipped all the same).
    pub strict_ids: i32,
    /// Upper bound of the tokens, T.
    pub num_tokens: i64,
    /// E, all experts; at least 1.
    pub num_experts: i64,
    /// K, slots a token; with a mask, the most slots a token can have (0: E).
    pub top_k: i64,
    /// First local expert.
    pub expert_begin: i64,
    /// E_local; 0: from expert_begin to the last (with expert_map: E).
    pub num_local_experts: i64,
    /// Group sizes are rounded up to a multiple of this power of two, 1 to 256; 0 means 1.
    pub alignment: i64,
    /// Every group gets exactly so many rows (pad to capacity), rounded up to `alignment`; 0: as many as it has.
    /// A group's slots beyond these are dropped, the last ones first; that is no fault.
    pub rows_per_group: i64,
    /// R, rows that the caller has allocated; 0: moe_dispatch_rows_max.
    pub rows_max: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_dispatch_plan_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, K]; or one of the masks.
    pub ids: moe_tensor_t,
    /// UINT8 [T, E].
    pub byte_mask: moe_tensor_t,
    /// UINT32 [T, ceil(E/32)].
    pub bit_mask: moe_tensor_t,
    /// int32[E], local index of each expert or -1; optional. Replaces expert_begin, which is 0 then.
    pub expert_map: *const i32,
    /// Out: int64[E_local + 1], where each group starts; the last is the number of rows.
    pub group_offsets: *mut i64,
    /// Out: int64[E_local], rows of each group without padding and without what was dropped; optional.
    pub group_sizes: *mut i64,
    /// Out: [T + 1], where each token's slots begin and the last ones end; optional with ids, where it is t*K.
    pub slot_offsets: moe_tensor_t,
    /// Out: [S]: the row of each slot, -1 where it is not here or was dropped.
    pub row_of_slot: moe_tensor_t,
    /// Out: [R]: the slot of each row, -1 for padding; optional. Written up to the last group's end.
    pub slot_of_row: moe_tensor_t,
    /// Out: [R]: the token of each row, -1 for padding; optional.
    pub token_of_row: moe_tensor_t,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// Sizes of permute, unpermute. Rows: [R, d]; tokens: [T, d].
/// Maps: INT32 or INT64, each its own; weights and their gradients: FP32, FP16 or BF16 (FP64 on the CPU), whatever
/// `dtype` is; slots: at most S = T*K.
///
/// Maps are never trusted: a token, slot or row that is out of range is skipped and reported, its row is zero and
/// its weight's gradient 0; a token has at most K slots. Rows from group_offsets[num_groups] on, tokens from
/// num_tokens on and their slots are neither read nor written.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_permute_desc_t {
    pub struct_size: u32,
    /// FP32, FP16, BF16 (FP64 on the CPU); any dtype in moe_dispatch_fwd, which copies.
    pub dtype: moe_dtype_t,
    /// Upper bound of the tokens, T.
    pub num_tokens: i64,
    /// d.
    pub hidden_size: i64,
    /// Most slots a token has, K.
    pub top_k: i64,
    /// Upper bound of the rows, R.
    pub rows_max: i64,
    /// Experts of dense weights [T, E]; read when they are given.
    pub num_experts: i64,
    /// Groups of group_offsets.
    pub num_groups: i64,
    /// The expert of group 0, for dense weights.
    pub expert_begin: i64,
}

/// rows[r] = x[token_of_row[r]]; padding rows become zero. Rows from group_offsets[num_groups] on are not written.
/// FP8 rows take their scales with them where these are one a row or one for every 128 columns of it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_dispatch_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, d].
    pub x: moe_tensor_t,
    /// Out: [R, d].
    pub rows: moe_tensor_t,
    /// [R].
    pub token_of_row: moe_tensor_t,
    /// int64[num_groups + 1].
    pub group_offsets: *const i64,
    /// [R]; needed for weights a slot.
    pub slot_of_row: moe_tensor_t,
    /// [S]; optional: with it a GPU reads each token once, not once for every row.
    pub row_of_slot: moe_tensor_t,
    /// [T + 1], beside row_of_slot; absent: token t has slots t*K .. t*K + K-1.
    pub slot_offsets: moe_tensor_t,
    /// In: a weight a slot, [S] (of ids: [T, K]); optional.
    pub weights: moe_tensor_t,
    /// In: [T, E]; optional, instead of weights.
    pub weights_dense: moe_tensor_t,
    /// Out: the weight of each row, [R], 0 for padding; needed with weights; without them each weight is 1.
    pub row_weights: moe_tensor_t,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// dx[t] = sum of drows over the token's rows, in slot order.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_dispatch_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [R, d].
    pub drows: moe_tensor_t,
    /// [S].
    pub row_of_slot: moe_tensor_t,
    /// [T + 1]; absent: token t has slots t*K .. t*K + K-1.
    pub slot_offsets: moe_tensor_t,
    /// Out: [T, d]; optional.
    pub dx: moe_tensor_t,
    pub dx_mode: moe_output_mode_t,
    /// In: the gradient of row_weights, [R]; optional.
    pub drow_weights: moe_tensor_t,
    /// Out: [S], 0 where the slot is not here; optional, with drow_weights.
    pub dweights: moe_tensor_t,
    /// Out: [T, E], 0 where not chosen; optional, with drow_weights and group_offsets.
    pub dweights_dense: moe_tensor_t,
    /// int64[num_groups + 1]; needed for dweights_dense.
    pub group_offsets: *const i64,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// y[t] = sum over the token's slots, in order, of weight * rows[row_of_slot]; plain sum without weights.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_combine_fwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [R, d].
    pub rows: moe_tensor_t,
    /// [S].
    pub row_of_slot: moe_tensor_t,
    /// Out: [T, d].
    pub y: moe_tensor_t,
    pub y_mode: moe_output_mode_t,
    /// [T + 1]; absent: token t has slots t*K .. t*K + K-1.
    pub slot_offsets: moe_tensor_t,
    /// A weight a slot, [S]; optional.
    pub weights: moe_tensor_t,
    /// A weight a row, [R]; optional, instead of weights.
    pub row_weights: moe_tensor_t,
    /// [T, E]; optional, instead of weights. Needs group_offsets.
    pub weights_dense: moe_tensor_t,
    /// int64[num_groups + 1]; needed for weights_dense.
    pub group_offsets: *const i64,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// drows[r] = weight * dy[token], padding rows zero; dweight = <dy[token], rows[r]>.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_combine_bwd_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, d].
    pub dy: moe_tensor_t,
    /// [R].
    pub token_of_row: moe_tensor_t,
    /// [R]; needed for weights a slot.
    pub slot_of_row: moe_tensor_t,
    /// int64[num_groups + 1].
    pub group_offsets: *const i64,
    /// [R, d], the forward's; needed for the weights' gradient.
    pub rows: moe_tensor_t,
    /// [S]; needed for dweights.
    pub row_of_slot: moe_tensor_t,
    /// [T + 1]; absent: token t has slots t*K .. t*K + K-1.
    pub slot_offsets: moe_tensor_t,
    /// The forward's: one of the three, or none.
    pub weights: moe_tensor_t,
    pub row_weights: moe_tensor_t,
    pub weights_dense: moe_tensor_t,
    /// Out: [R, d]; optional.
    pub drows: moe_tensor_t,
    /// Out: [S], 0 where the slot is not here; optional.
    pub dweights: moe_tensor_t,
    /// Out: [R]; optional.
    pub drow_weights: moe_tensor_t,
    /// Out: [T, E], 0 where not chosen; optional.
    pub dweights_dense: moe_tensor_t,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// Rows come chunk by chunk; output chunk i is input chunk order[i] (rank-major <-> expert-major). Rows beyond the
/// chunks are not written. Sizes and entries that are out of range are clamped or skipped, and reported.
pub const MOE_SORT_FORWARD: i32 = 0;
/// The backward of MOE_SORT_FORWARD: input chunk i goes to the place of chunk order[i].
pub const MOE_SORT_INVERSE: i32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_sort_chunks_desc_t {
    pub struct_size: u32,
    /// Any dtype: rows are copied.
    pub dtype: moe_dtype_t,
    /// Upper bound of the rows, R.
    pub rows_max: i64,
    pub hidden_size: i64,
    pub num_chunks: i64,
    /// MOE_SORT_*.
    pub direction: i32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_sort_chunks_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [R, d].
    pub x: moe_tensor_t,
    /// Out: [R, d].
    pub y: moe_tensor_t,
    /// int64[num_chunks], rows of each chunk in the unsorted order (that of MOE_SORT_FORWARD's input).
    pub chunk_sizes: *const i64,
    /// int32[num_chunks], a permutation.
    pub order: *const i32,
    /// [R], moved along; optional.
    pub row_weights: moe_tensor_t,
    /// Out: [R]; with row_weights.
    pub sorted_row_weights: moe_tensor_t,
    pub report: *mut moe_device_report_t,
}
