//! Dispatch: the plan, permute and unpermute, the chunk sort. Here: what permute and unpermute share.

mod combine;
mod permute;
mod plan;
mod sort_chunks;

pub use combine::{CombineBwd, CombineFwd, combine_bwd, combine_bwd_workspace, combine_fwd, combine_fwd_workspace};
pub use permute::{
    DispatchBwd, DispatchFwd, dispatch_bwd, dispatch_bwd_workspace, dispatch_fwd, dispatch_fwd_workspace,
};
pub use plan::{Choice, Plan, Sizes as PlanSizes, dispatch_plan, dispatch_plan_workspace, dispatch_rows_max};
pub use sort_chunks::{SortChunks, sort_chunks, sort_chunks_workspace};

use crate::abi::dispatch::moe_permute_desc_t;
use crate::abi::types::*;
use crate::check::{self, Count};
use crate::context::moe_context_t;
use crate::dtype::{Dtype, FLOATS, INDICES};
use crate::error::{Error, Result};
use crate::tensor::{Matrix, matrix, optional_matrix, optional_vector};

/// A plan's maps as permute and unpermute read them, and the bounds that keep what they hold in check.
#[derive(Clone, Copy, Debug)]
pub struct Maps {
    pub tokens: Count,
    /// K, the most slots of a token.
    pub top_k: i64,
    /// R.
    pub rows: i64,
    pub groups: i64,
    pub expert_begin: i64,
    /// [R], as slot_of_row.
    pub token_of_row: Option<Matrix>,
    pub slot_of_row: Option<Matrix>,
    /// [T*K].
    pub row_of_slot: Option<Matrix>,
    /// [T + 1]; without it token t has the slots t*K .. t*K + K-1.
    pub slot_offsets: Option<Matrix>,
    /// int64[groups + 1], or NULL: all of the R rows are in use.
    pub group_offsets: *const i64,
}

// SAFETY: addresses; what is done with them is each backend's own proof.
unsafe impl Send for Maps {}
unsafe impl Sync for Maps {}

/// Router weights.
#[derive(Clone, Copy, Debug)]
pub enum Weights {
    None,
    /// [T*K].
    Slot(Matrix),
    /// [R].
    Row(Matrix),
    /// [T, E].
    Dense(Matrix),
}

impl Weights {
    fn matrix(&self) -> Option<Matrix> {
        match *self {
            Weights::None => None,
            Weights::Slot(weights) | Weights::Row(weights) | Weights::Dense(weights) => Some(weights),
        }
    }
}

/// The description, checked.
struct Sizes {
    dtype: Dtype,
    tokens: i64,
    hidden: i64,
    top_k: i64,
    rows: i64,
    experts: i64,
    groups: i64,
    expert_begin: i64,
    slots: i64,
}

impl Sizes {
    fn new(desc: &moe_permute_desc_t) -> Result<Self> {
        let tokens = check::rows("desc.num_tokens", desc.num_tokens)?;
        let top_k = check::range("desc.top_k", desc.top_k, 1..=check::MAX_WIDTH)?;
        Ok(Sizes {
            dtype: Dtype::check("desc.dtype", desc.dtype, Dtype::ALL)?,
            tokens,
            hidden: check::width("desc.hidden_size", desc.hidden_size)?,
            top_k,
            rows: check::rows("desc.rows_max", desc.rows_max)?,
            experts: check::range("desc.num_experts", desc.num_experts, 0..=check::MAX_EXPERTS)?,
            groups: check::range("desc.num_groups", desc.num_groups, 0..=check::MAX_EXPERTS)?,
            expert_begin: check::range("desc.expert_begin", desc.expert_begin, 0..=check::MAX_EXPERTS)?,
            slots: check::elements("desc.num_tokens x desc.top_k", &[tokens, top_k])?,
        })
    }

    /// For the operations that calculate with rows.
    fn arithmetic(desc: &moe_permute_desc_t) -> Result<Self> {
        Dtype::check("desc.dtype", desc.dtype, FLOATS)?;
        Self::new(desc)
    }

    fn tokens_of(&self, argument: &str, tensor: &moe_tensor_t) -> Result<Matrix> {
        matrix(argument, tensor, &[self.dtype], self.tokens, self.hidden)
    }

    fn rows_of(&self, argument: &str, tensor: &moe_tensor_t) -> Result<Matrix> {
        matrix(argument, tensor, &[self.dtype], self.rows, self.hidden)
    }

    /// A weight or a gradient a slot.
    fn per_slot(&self, argument: &str, tensor: &moe_tensor_t) -> Result<Option<Matrix>> {
        optional_vector(argument, tensor, FLOATS, self.slots, self.top_k)
    }

    fn per_row(&self, argument: &str, tensor: &moe_tensor_t) -> Result<Option<Matrix>> {
        optional_vector(argument, tensor, FLOATS, self.rows, 1)
    }

    /// [T, E]; the groups' experts must be among the E.
    fn dense(&self, argument: &str, tensor: &moe_tensor_t) -> Result<Option<Matrix>> {
        let dense = optional_matrix(argument, tensor, FLOATS, self.tokens, self.experts)?;
        if dense.is_some() {
            check::range("desc.num_experts", self.experts, 1..=check::MAX_EXPERTS)?;
            check::range("desc.expert_begin + desc.num_groups", self.expert_begin + self.groups, 1..=self.experts)?;
        }
        Ok(dense)
    }

    /// The forward's weights: at most one of the three.
    fn weights(&self, slot: &moe_tensor_t, row: &moe_tensor_t, dense: &moe_tensor_t) -> Result<Weights> {
        let slot = self.per_slot("args.weights", slot)?;
        let row = self.per_row("args.row_weights", row)?;
        let dense = self.dense("args.weights_dense", dense)?;
        match (slot, row, dense) {
            (None, None, None) => Ok(Weights::None),
            (Some(weights), None, None) => Ok(Weights::Slot(weights)),
            (None, Some(weights), None) => Ok(Weights::Row(weights)),
            (None, None, Some(weights)) => Ok(Weights::Dense(weights)),
            (slot, row, dense) => {
                let number = [slot, row, dense].iter().flatten().count();
                let what = "the number of args.weights, args.row_weights, args.weights_dense";
                Err(Error::argument(what, number, "at most one"))
            }
        }
    }

    /// Maps that a function has; what it needs of them is for `needed` to say.
    fn maps(&self, tokens: &moe_count_t, group_offsets: *const i64, maps: [Option<&moe_tensor_t>; 4]) -> Result<Maps> {
        let lengths = [
            ("args.token_of_row", self.rows, 1),
            ("args.slot_of_row", self.rows, 1),
            ("args.row_of_slot", self.slots, self.top_k),
            ("args.slot_offsets", self.tokens + 1, 1),
        ];
        let mut checked = [None; 4];
        for (slot, (tensor, (argument, length, row))) in checked.iter_mut().zip(maps.into_iter().zip(lengths)) {
            if let Some(tensor) = tensor {
                *slot = optional_vector(argument, tensor, INDICES, length, row)?;
            }
        }
        let [token_of_row, slot_of_row, row_of_slot, slot_offsets] = checked;
        if !check::aligned("args.group_offsets", group_offsets)?.is_null() {
            check::range("desc.num_groups", self.groups, 1..=check::MAX_EXPERTS)?;
        }
        Ok(Maps {
            tokens: check::count("args.num_tokens", tokens, self.tokens)?,
            top_k: self.top_k,
            rows: self.rows,
            groups: self.groups,
            expert_begin: self.expert_begin,
            token_of_row,
            slot_of_row,
            row_of_slot,
            slot_offsets,
            group_offsets,
        })
    }
}

/// FP64 is the CPU's: rows that are calculated with, weights and their gradients.
fn serves(ctx: &moe_context_t, rows: Dtype, weights: &[Option<Matrix>]) -> Result<()> {
    ctx.serves("desc.dtype", rows)?;
    weights.iter().flatten().try_for_each(|weights| ctx.serves("the dtype of weights or gradients", weights.dtype))
}

/// A map that this call cannot do without; of no elements, it may be NULL.
fn needed(argument: &str, map: Option<Matrix>, length: i64, why: &str) -> Result<()> {
    if map.is_some() || length == 0 {
        return Ok(());
    }
    Err(Error::argument(format!("{argument}.data"), "NULL", format!("required {why}")))
}

fn needed_offsets(group_offsets: *const i64, why: &str) -> Result<()> {
    if group_offsets.is_null() {
        return Err(Error::argument("args.group_offsets", "NULL", format!("required {why}")));
    }
    Ok(())
}
