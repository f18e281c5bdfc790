//! The groups of a call, read from the caller's memory once, clamped and reported.

use std::ops::Range;

use crate::abi::types::{MOE_FAULT_GROUP_OFFSET, MOE_FAULT_GROUP_SIZE, MOE_FAULT_SLOT_INDEX};
use crate::cpu::element::{load, load_index, true_count};
use crate::groups::{Gather, Groups, RowWeights};
use crate::report::Report;

/// Where each group lies. Ranges ascend, do not overlap and stay within the rows.
#[derive(Debug)]
pub struct Spans {
    /// The true rows of each group.
    pub rows: Vec<Range<i64>>,
    /// Where each group ends, its padding included.
    pub ends: Vec<i64>,
}

impl Spans {
    /// One group of so many rows.
    pub fn one(rows: i64) -> Self {
        Self { rows: vec![0..rows], ends: vec![rows] }
    }

    /// # Safety
    /// Offsets and sizes that are given are live for count + 1 and count elements.
    pub unsafe fn read(groups: &Groups, report: &Report) -> Self {
        let count = groups.count as usize;
        let mut spans = Self { rows: Vec::with_capacity(count), ends: Vec::with_capacity(count) };
        // A bound below its predecessor is raised to it, one above the rows lowered to them.
        let clamp = |place: i64, value: i64, low: i64, high: i64, fault: i32| {
            if !(low..=high).contains(&value) {
                report.record(fault, place, value);
            }
            value.clamp(low, high)
        };
        let offset = |g: i64, low: i64| {
            let value = unsafe { groups.offsets.offset(g as isize).read() };
            clamp(g, value, low, groups.rows_max, MOE_FAULT_GROUP_OFFSET)
        };
        let size = |g: i64, room: i64| {
            let value = unsafe { groups.sizes.offset(g as isize).read() };
            clamp(g, value, 0, room, MOE_FAULT_GROUP_SIZE)
        };
        let mut begin = if groups.offsets.is_null() { 0 } else { offset(0, 0) };
        for g in 0..groups.count {
            let (rows, end) = if groups.offsets.is_null() {
                let rows = size(g, groups.rows_max - begin);
                (rows, begin + rows)
            } else {
                let end = offset(g + 1, begin);
                (if groups.sizes.is_null() { end - begin } else { size(g, end - begin) }, end)
            };
            spans.rows.push(begin..begin + rows);
            spans.ends.push(end);
            begin = end;
        }
        spans
    }

    /// Rows of all groups, padding included: where the last group ends.
    pub fn end(&self) -> i64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The source row of each row, -1 where it is a row of zeros. Rows outside the groups' true rows are not read.
    ///
    /// # Safety
    /// The index is live for the groups' rows, and so is a count of the source.
    pub unsafe fn sources(&self, gather: &Gather, report: &Report) -> Vec<i64> {
        let bound = unsafe { true_count(&gather.rows, report) };
        let mut sources = vec![-1; self.end() as usize];
        for r in self.rows.iter().cloned().flatten() {
            let source = unsafe { load_index(&gather.index, r) };
            if source >= bound {
                report.record(gather.fault, r, source);
            } else {
                sources[r as usize] = source.max(-1);
            }
        }
        sources
    }

    /// The weight of each row, 1 each if None. Those of rows outside the groups' true rows are not read.
    ///
    /// # Safety
    /// Weights and map are live for the groups' rows and for the slots.
    pub unsafe fn weights(&self, weights: &RowWeights, report: &Report) -> Option<Vec<f64>> {
        let RowWeights { weights, slot_of_row, slots } = weights;
        if weights.data.is_null() {
            return None;
        }
        let weight = |row| unsafe {
            if slot_of_row.data.is_null() {
                return load(weights.dtype, weights.data, row);
            }
            match load_index(slot_of_row, row) {
                slot if (0..*slots).contains(&slot) => load(weights.dtype, weights.data, slot),
                slot => {
                    if slot != -1 {
                        report.record(MOE_FAULT_SLOT_INDEX, row, slot);
                    }
                    0.0
                }
            }
        };
        let mut of_rows = vec![0.0; self.end() as usize];
        for row in self.rows.iter().cloned().flatten() {
            of_rows[row as usize] = weight(row);
        }
        Some(of_rows)
    }
}
