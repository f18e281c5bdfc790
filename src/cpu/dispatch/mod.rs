//! Dispatch on the CPU. Here: how maps are read; what they hold is never trusted.

mod combine;
mod permute;
mod plan;
mod sort_chunks;

pub use combine::{combine_bwd, combine_fwd};
pub use permute::{dispatch_bwd, dispatch_fwd};
pub use plan::{plan, plan_layout};
pub use sort_chunks::sort_chunks;

use std::ops::Range;

use rayon::prelude::*;

use super::element::{load, load_index, true_count};
use crate::abi::types::*;
use crate::ops::dispatch::{Maps, Weights};
use crate::report::Report;
use crate::tensor::Matrix;

/// 0 .. count-1 on all cores, for rows or tokens: a task takes several.
fn parallel(count: i64) -> impl IndexedParallelIterator<Item = i64> {
    (0..count as usize).into_par_iter().with_min_len(16).map(|index| index as i64)
}

/// Maps, with the true counts that bound them.
struct Reader<'a> {
    maps: &'a Maps,
    report: &'a Report,
    /// The true T.
    tokens: i64,
    /// Rows in use.
    rows: i64,
}

impl<'a> Reader<'a> {
    /// # Safety
    /// The contract of the header for the maps.
    unsafe fn new(maps: &'a Maps, report: &'a Report) -> Self {
        let tokens = unsafe { true_count(&maps.tokens, report) };
        let mut reader = Reader { maps, report, tokens, rows: maps.rows };
        if !maps.group_offsets.is_null() {
            let mut before = 0;
            for group in 0..=maps.groups {
                let offset = unsafe { reader.offset(group) };
                if !(before..=maps.rows).contains(&offset) {
                    report.record(MOE_FAULT_GROUP_OFFSET, group, offset);
                }
                before = before.max(offset);
            }
            reader.rows = unsafe { reader.offset(maps.groups) }.clamp(0, maps.rows);
        }
        reader
    }

    unsafe fn offset(&self, group: i64) -> i64 {
        unsafe { self.maps.group_offsets.offset(group as isize).read() }
    }

    /// Entry `index` of a map, if it is below `limit`; entries other than -1 that are out of range are reported.
    unsafe fn entry(&self, map: &Option<Matrix>, index: i64, limit: i64, fault: i32) -> Option<i64> {
        let entry = unsafe { load_index(map.as_ref()?, index) };
        if (0..limit).contains(&entry) {
            return Some(entry);
        }
        if entry != -1 {
            self.report.record(fault, index, entry);
        }
        None
    }

    /// The token of a row; None for padding.
    unsafe fn token(&self, row: i64) -> Option<i64> {
        unsafe { self.entry(&self.maps.token_of_row, row, self.tokens, MOE_FAULT_TOKEN_INDEX) }
    }

    /// The slot of a row; None for padding.
    unsafe fn slot(&self, row: i64) -> Option<i64> {
        let slots = self.tokens * self.maps.top_k;
        unsafe { self.entry(&self.maps.slot_of_row, row, slots, MOE_FAULT_SLOT_INDEX) }
    }

    /// The row of a slot; None where it is not here.
    unsafe fn row(&self, slot: i64) -> Option<i64> {
        unsafe { self.entry(&self.maps.row_of_slot, slot, self.rows, MOE_FAULT_ROW_INDEX) }
    }

    /// A token's slots, at most K.
    unsafe fn slots(&self, token: i64) -> Range<i64> {
        let k = self.maps.top_k;
        let Some(offsets) = &self.maps.slot_offsets else { return token * k..(token + 1) * k };
        let [begin, end] = unsafe { [load_index(offsets, token), load_index(offsets, token + 1)] };
        let last = self.tokens * k;
        if !(0..=last).contains(&begin) {
            self.report.record(MOE_FAULT_SLOT_INDEX, token, begin);
            return 0..0;
        }
        let limit = last.min(begin + k);
        if !(begin..=limit).contains(&end) {
            self.report.record(MOE_FAULT_SLOT_INDEX, token, end);
        }
        begin..end.clamp(begin, limit)
    }

    /// The column of a row's expert in dense weights.
    unsafe fn expert(&self, row: i64) -> i64 {
        let [mut low, mut high] = [0, self.maps.groups];
        while high - low > 1 {
            let middle = (low + high) / 2;
            if unsafe { self.offset(middle) } <= row { low = middle } else { high = middle }
        }
        self.maps.expert_begin + low
    }

    /// The weight of a row of `token`, found through the slot that is known, or else through slot_of_row.
    unsafe fn weight(&self, weights: &Weights, token: i64, row: i64, slot: Option<i64>) -> f64 {
        unsafe {
            match weights {
                Weights::None => 1.0,
                Weights::Row(weights) => load(weights.dtype, weights.data, row),
                Weights::Slot(weights) => match slot.or_else(|| self.slot(row)) {
                    Some(slot) => load(weights.dtype, weights.data, slot),
                    None => 0.0,
                },
                Weights::Dense(weights) => load(weights.dtype, weights.data, token * weights.pitch + self.expert(row)),
            }
        }
    }
}

/// Row `index` of a matrix of `E`.
///
/// # Safety
/// The matrix has such a row of `columns` elements of `E`, which nobody writes.
unsafe fn row_of<'a, E>(matrix: &Matrix, index: i64, columns: i64) -> &'a [E] {
    unsafe { std::slice::from_raw_parts(matrix.row(index), columns as usize) }
}

/// Row `index` of a matrix of `E`, to be written.
///
/// # Safety
/// The matrix has such a row of `columns` elements of `E`, which nobody else accesses.
unsafe fn row_of_mut<'a, E>(matrix: &Matrix, index: i64, columns: i64) -> &'a mut [E] {
    unsafe { std::slice::from_raw_parts_mut(matrix.row(index), columns as usize) }
}
