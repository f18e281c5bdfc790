//! Rows sorted by group: where each group lies, and rows that are gathered.

use crate::abi::types::*;
use crate::check::{Count, address, rows};
use crate::dtype::INDICES;
use crate::error::{Error, Result};
use crate::tensor::{Matrix, optional_vector};

/// `group_offsets` and `group_sizes` as the caller gave them, at least one; each backend reads and clamps them.
///
/// Group g begins at offsets[g]; its true rows end after sizes[g] of them, or at offsets[g + 1]. Without offsets
/// groups lie one behind the other. Rows between a group's true rows and the next group are padding.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    pub count: i64,
    pub rows_max: i64,
    pub offsets: *const i64,
    pub sizes: *const i64,
}

// SAFETY: addresses; reading them is each backend's own proof.
unsafe impl Send for Groups {}
unsafe impl Sync for Groups {}

pub fn groups(count: i64, rows_max: i64, offsets: *const i64, sizes: *const i64) -> Result<Groups> {
    address("group_offsets", offsets.cast(), 8)?;
    address("group_sizes", sizes.cast(), 8)?;
    if offsets.is_null() && sizes.is_null() {
        return Err(Error::argument("group_offsets", "NULL", "group_offsets or group_sizes is required"));
    }
    Ok(Groups { count, rows_max, offsets, sizes })
}

/// Row r stands for source row index[r]; a negative index is a row of zeros, and so is one out of range, which is
/// reported.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    pub index: Matrix,
    /// Rows of the source.
    pub rows: Count,
    /// MOE_FAULT_* of an index that is out of range.
    pub fault: i32,
}

#[cfg(feature = "cuda")]
impl Gather {
    /// Each row stands for itself, for kernels.
    pub const ABSENT: Gather = Gather {
        index: Matrix::ABSENT,
        rows: Count { bound: 0, device: std::ptr::null(), wide: false },
        fault: MOE_FAULT_NONE,
    };
}

/// What each row is multiplied by.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RowWeights {
    /// [R], or with slot_of_row a weight a slot; without data 1 each.
    pub weights: Matrix,
    /// Row r has the weight of slot slot_of_row[r], 0 where there is none or it is out of range (reported).
    /// Without data row r has weights[r].
    pub slot_of_row: Matrix,
    pub slots: i64,
}

impl RowWeights {
    /// 1 each.
    pub const fn one() -> Self {
        RowWeights { weights: Matrix::ABSENT, slot_of_row: Matrix::ABSENT, slots: 0 }
    }

    /// [R].
    pub fn of_rows(weights: Matrix) -> Self {
        RowWeights { weights, ..Self::one() }
    }

    pub fn of_slots(weights: Matrix, slot_of_row: Matrix, slots: i64) -> Self {
        RowWeights { weights, slot_of_row, slots }
    }
}

/// An optional index vector of `length` rows over a source of `source_rows`.
pub fn optional_gather(
    (argument, index): (&str, &moe_tensor_t),
    length: i64,
    (bound_argument, source_rows): (&str, i64),
    fault: i32,
) -> Result<Option<Gather>> {
    let Some(index) = optional_vector(argument, index, INDICES, length, 1)? else { return Ok(None) };
    let source = Count { bound: rows(bound_argument, source_rows)?, device: std::ptr::null(), wide: false };
    Ok(Some(Gather { index, rows: source, fault }))
}
