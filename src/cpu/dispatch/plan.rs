//! The plan: a counting sort. Tokens are split into chunks; each counts, then each knows where its slots go.

use std::ops::Range;

use rayon::prelude::*;

use crate::abi::types::*;
use crate::cpu::element::{load_index, store_index, true_count};
use crate::error::Result;
use crate::ops::dispatch::{Choice, Plan, PlanSizes};
use crate::report::Report;
use crate::workspace::{Layout, Part, Workspace};

pub struct Parts {
    chunks: i64,
    /// int64[chunks][groups]: a chunk's slots in each group, then its first row in it.
    counts: Part,
    /// int64[chunks]: a chunk's slots, then its first slot.
    slots: Part,
    /// int64[groups]: rows of each group that are not dropped.
    kept: Part,
}

pub fn plan_layout(sizes: &PlanSizes) -> (Layout, Parts) {
    let most = sizes.slots() / sizes.groups.max(4096);
    let chunks = most.clamp(1, rayon::current_num_threads() as i64);
    let mut layout = Layout::default();
    let counts = layout.part(chunks * sizes.groups * 8);
    let slots = layout.part(chunks * 8);
    let kept = layout.part(sizes.groups * 8);
    (layout, Parts { chunks, counts, slots, kept })
}

pub fn plan(plan: &Plan, parts: &Parts, workspace: Workspace, report: Report) -> Result<()> {
    // SAFETY: the contract of the header for the arguments; the layout has room for the parts.
    unsafe {
        let sizes = &plan.sizes;
        let tokens = true_count(&plan.tokens, &report);
        let chunk = |index: i64| -> Range<i64> {
            let cut = |i: i64| (tokens as i128 * i as i128 / parts.chunks as i128) as i64;
            cut(index)..cut(index + 1)
        };
        let groups = sizes.groups as usize;
        let slice = |part| workspace.at::<i64>(part);
        let counts = std::slice::from_raw_parts_mut(slice(parts.counts), parts.chunks as usize * groups);
        let slots = std::slice::from_raw_parts_mut(slice(parts.slots), parts.chunks as usize);
        let kept = std::slice::from_raw_parts_mut(slice(parts.kept), groups);

        report_map(plan, &report);
        counts.par_chunks_mut(groups).zip(&mut *slots).enumerate().for_each(|(index, (counts, slots))| {
            counts.fill(0);
            *slots = 0;
            for token in chunk(index as i64) {
                *slots += visit(plan, token, Some(&report), |_, group| {
                    if let Some(group) = group {
                        counts[group as usize] += 1;
                    }
                });
            }
        });
        place_groups(plan, counts, kept, &report);
        let mut before = 0;
        for slots in &mut *slots {
            (*slots, before) = (before, before + *slots);
        }
        counts.par_chunks_mut(groups).zip(&*slots).enumerate().for_each(|(index, (next, &first))| {
            let mut slot = first;
            for token in chunk(index as i64) {
                if let Some(offsets) = &plan.slot_offsets {
                    store_index(offsets, token, slot);
                }
                slot += visit(plan, token, None, |k, group| {
                    let row = group.and_then(|group| {
                        let place = next[group as usize];
                        next[group as usize] += 1;
                        let start = plan.group_offsets.offset(group as isize).read();
                        (place < kept[group as usize]).then_some(start + place)
                    });
                    store_index(&plan.row_of_slot, slot + k, row.unwrap_or(-1));
                    if let Some(row) = row {
                        store_row(plan, row, slot + k, token);
                    }
                });
            }
        });
        if let Some(offsets) = &plan.slot_offsets {
            store_index(offsets, tokens, before);
        }
        kept.par_iter().enumerate().for_each(|(group, kept)| {
            let [start, end] = [group, group + 1].map(|g| plan.group_offsets.add(g).read());
            (start + kept..end).for_each(|row| store_row(plan, row, -1, -1));
        });
    }
    Ok(())
}

/// Turns the counts of chunks into each chunk's first place in each group, and writes the groups' offsets and sizes.
unsafe fn place_groups(plan: &Plan, counts: &mut [i64], kept: &mut [i64], report: &Report) {
    let sizes = &plan.sizes;
    let groups = kept.len();
    let room = sizes.room();
    let mut rows = 0;
    for group in 0..groups {
        let mut count = 0;
        for chunk in counts.chunks_mut(groups) {
            (chunk[group], count) = (count, count + chunk[group]);
        }
        let limit = if sizes.rows_per_group > 0 { sizes.rows_per_group } else { count };
        let start = rows.min(room);
        rows += sizes.padded(count);
        kept[group] = count.min(limit).min(rows.min(room) - start);
        unsafe {
            plan.group_offsets.add(group).write(start);
            if !plan.group_sizes.is_null() {
                plan.group_sizes.add(group).write(kept[group]);
            }
        }
    }
    unsafe { plan.group_offsets.add(groups).write(rows.min(room)) };
    if rows > room {
        report.record(MOE_FAULT_OVERFLOW, sizes.rows, rows);
    }
}

unsafe fn store_row(plan: &Plan, row: i64, slot: i64, token: i64) {
    for (map, value) in [(&plan.slot_of_row, slot), (&plan.token_of_row, token)] {
        if let Some(map) = map {
            unsafe { store_index(map, row, value) };
        }
    }
}

/// Calls back for each slot of a token with its place among them and its group, if that is here; returns their number.
unsafe fn visit(plan: &Plan, token: i64, report: Option<&Report>, mut slot: impl FnMut(i64, Option<i64>)) -> i64 {
    let sizes = &plan.sizes;
    let record = |what, place, value| {
        if let Some(report) = report {
            report.record(what, place, value);
        }
    };
    let mut count = 0;
    let mut chosen = |expert: i64| {
        if count < sizes.top_k {
            slot(count, unsafe { group(plan, expert) });
        }
        count += 1;
    };
    match &plan.choice {
        Choice::Ids(ids) => {
            for k in 0..sizes.top_k {
                let id = unsafe { load_index(ids, token * ids.pitch + k) };
                if plan.strict_ids && id != -1 && !(0..sizes.experts).contains(&id) {
                    record(MOE_FAULT_EXPERT_ID, token * sizes.top_k + k, id);
                }
                chosen(id);
            }
        }
        Choice::ByteMask(mask) => {
            let bytes = unsafe { mask.data.offset((token * mask.pitch) as isize) };
            for expert in 0..sizes.experts {
                if unsafe { bytes.offset(expert as isize).read() } != 0 {
                    chosen(expert);
                }
            }
        }
        Choice::BitMask(mask) => {
            let words = unsafe { mask.data.cast::<u32>().offset((token * mask.pitch) as isize) };
            for word in 0..(sizes.experts + 31) / 32 {
                let mut bits = unsafe { words.offset(word as isize).read() };
                while bits != 0 {
                    let expert = word * 32 + i64::from(bits.trailing_zeros());
                    if expert < sizes.experts {
                        chosen(expert);
                    }
                    bits &= bits - 1;
                }
            }
        }
    }
    if count > sizes.top_k {
        record(MOE_FAULT_OVERFLOW, sizes.top_k, count);
    }
    count.min(sizes.top_k)
}

/// The local index of an expert that is here.
unsafe fn group(plan: &Plan, expert: i64) -> Option<i64> {
    let sizes = &plan.sizes;
    if !(0..sizes.experts).contains(&expert) {
        return None;
    }
    let group = if plan.expert_map.is_null() {
        expert - sizes.expert_begin
    } else {
        unsafe { plan.expert_map.offset(expert as isize).read() }.into()
    };
    (0..sizes.groups).contains(&group).then_some(group)
}

/// Reports an entry of the expert map that is neither -1 nor a group.
unsafe fn report_map(plan: &Plan, report: &Report) {
    if plan.expert_map.is_null() {
        return;
    }
    for expert in 0..plan.sizes.experts {
        let group = unsafe { plan.expert_map.offset(expert as isize).read() }.into();
        if !(-1..plan.sizes.groups).contains(&group) {
            report.record(MOE_FAULT_MAP_ENTRY, expert, group);
        }
    }
}
