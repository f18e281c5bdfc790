//! The plan: slots are counted and placed, in one launch of one block or in two of several.

use super::*;
use crate::abi::types::moe_stream_t;
use crate::cuda::{Device, Launch};
use crate::error::Result;
use crate::ops::dispatch::{Choice, Plan, PlanSizes};
use crate::workspace::{Layout, Part, Workspace};

/// How the kernel is laid out for sizes and a device; nothing but the description matters.
pub struct Shape {
    blocks: u32,
    warps: i64,
    columns: i64,
    /// Bytes; 0: there is too little of it for so many groups.
    shared: u32,
    counts: Part,
    histogram: Part,
    places: Part,
}

/// Bytes of shared memory beside what kernels have of fixed size.
fn dynamic_memory(device: &Device) -> i64 {
    i64::from(device.shared_memory) - 1024
}

pub fn plan_layout(device: &Device, sizes: &PlanSizes) -> (Layout, Shape) {
    let columns = (sizes.groups + 1 + 3) / 4 * 4;
    let fits = |warps: &i64| shared_bytes(*warps, columns) <= dynamic_memory(device);
    let warps = (0..5).map(|halvings| DISPATCH_PLAN_WARPS >> halvings).find(fits);
    let shared = warps.map_or(0, |warps| shared_bytes(warps, columns) as u32);
    // Every block reads the counts of all: their number is such that this stays cheap beside the slots themselves.
    let slots = sizes.slots();
    let readers = (slots.saturating_mul(4).max(1 << 22) / columns).isqrt();
    let wanted = (slots / 256).min(readers).clamp(1, device.multiprocessors.into());
    // Of fewer one launch of one block is faster than two.
    let blocks = if slots < 1024 { 1 } else { wanted };
    let mut layout = Layout::default();
    let counts = layout.part(blocks * columns * 4);
    let spilled = if shared == 0 { blocks * columns } else { 0 };
    let histogram = layout.part(spilled * 4);
    let places = layout.part(spilled * 16);
    (layout, Shape { blocks: blocks as u32, warps: warps.unwrap_or(1), columns, shared, counts, histogram, places })
}

/// kernels/dispatch_plan.cu: a histogram a warp, and the first and last rows, for which threads first add up.
fn shared_bytes(warps: i64, columns: i64) -> i64 {
    let adders = (32 * warps / (columns / 4)).max(1);
    warps * columns * 4 + adders * columns * 16
}

/// How kernels/dispatch_plan_ids.cu takes ids of few enough groups: threads of a block, and slots of a warp.
struct ByIds {
    threads: i64,
    run: i64,
}

impl ByIds {
    /// None: another kernel takes the choice. `memory`: bytes of shared memory that a block may have.
    fn new(sizes: &PlanSizes, choice: &Choice, blocks: i64, memory: i64) -> Option<Self> {
        let (slots, groups) = (sizes.slots(), sizes.groups);
        // What a warp does but once takes longer than a few slots: warps are no more than many slots need.
        let most = match slots / blocks {
            ..=2048 => 256,
            2049..=8192 => 512,
            _ => DISPATCH_PLAN_THREADS,
        };
        let threads = (slots.min(most).max(groups) + 31) / 32 * 32;
        let threads = threads.clamp(32, DISPATCH_PLAN_THREADS);
        let warps = blocks * threads / 32;
        let run = ((slots + warps - 1) / warps + 31) / 32 * 32;
        // Places in a block are counted in 16 bits, slots in 32.
        let counts_fit = groups <= DISPATCH_PLAN_THREADS && run * threads / 32 < 1 << 16 && slots < 1 << 31;
        let by_ids = ByIds { threads, run };
        let fits = counts_fit && i64::from(by_ids.shared(groups)) <= memory;
        (matches!(choice, Choice::Ids(_)) && fits).then_some(by_ids)
    }

    /// The block's first and last rows of each group, sums of blocks, and counts of warps.
    fn shared(&self, groups: i64) -> u32 {
        (16 * groups + 32 * self.threads + 2 * self.threads / 32 * groups) as u32
    }
}

pub fn plan(
    device: &Device,
    plan: &Plan,
    shape: &Shape,
    workspace: Workspace,
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    device.run(report, stream, |launcher| {
        let sizes = &plan.sizes;
        let (choice, chosen) = match plan.choice {
            Choice::Ids(ids) => (DISPATCH_IDS, ids),
            Choice::ByteMask(mask) => (DISPATCH_BYTE_MASK, mask),
            Choice::BitMask(mask) => (DISPATCH_BIT_MASK, mask),
        };
        let by_ids = ByIds::new(sizes, &plan.choice, shape.blocks.into(), dynamic_memory(device));
        let params = DispatchPlanParams {
            tokens: plan.tokens,
            experts: sizes.experts,
            top_k: sizes.top_k,
            expert_begin: sizes.expert_begin,
            groups: sizes.groups,
            alignment: sizes.alignment,
            rows_per_group: sizes.rows_per_group,
            rows: sizes.rows,
            choice,
            strict_ids: plan.strict_ids,
            chosen,
            expert_map: plan.expert_map,
            group_offsets: plan.group_offsets,
            group_sizes: plan.group_sizes,
            slot_offsets: plan.slot_offsets.unwrap_or(Matrix::ABSENT),
            row_of_slot: plan.row_of_slot,
            slot_of_row: plan.slot_of_row.unwrap_or(Matrix::ABSENT),
            token_of_row: plan.token_of_row.unwrap_or(Matrix::ABSENT),
            columns: shape.columns,
            run: by_ids.as_ref().map_or(0, |by_ids| by_ids.run),
            step_tokens: (32 / sizes.top_k) as u32,
            step_k: (32 % sizes.top_k) as u32,
            counts: workspace.at(shape.counts),
            histogram: if shape.shared == 0 { workspace.at(shape.histogram) } else { std::ptr::null_mut() },
            places: if shape.shared == 0 { workspace.at(shape.places) } else { std::ptr::null_mut() },
            report: launcher.report,
        };
        let (kernels, block, shared) = match &by_ids {
            Some(by_ids) => {
                let kernels = ["dispatch_plan_ids_count", "dispatch_plan_ids_place"];
                (kernels, by_ids.threads as u32, by_ids.shared(sizes.groups))
            }
            None => (["dispatch_plan_count", "dispatch_plan_place"], (32 * shape.warps) as u32, shape.shared),
        };
        for kernel in if shape.blocks > 1 { &kernels[..] } else { &kernels[1..] } {
            let grid = [shape.blocks, 1, 1];
            launcher.launch(&Launch { kernel, grid, block, shared, overlap: true, ..Default::default() }, &params)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_block_has_no_room_for_is_left_to_another_kernel() {
        let sizes = PlanSizes {
            tokens: 1 << 18,
            experts: 1024,
            top_k: 8,
            expert_begin: 0,
            groups: 1024,
            alignment: 1,
            rows_per_group: 0,
            rows: 1 << 21,
        };
        let choice = Choice::Ids(Matrix::ABSENT);
        assert!(ByIds::new(&sizes, &choice, 100, 226 << 10).is_some());
        assert!(ByIds::new(&sizes, &choice, 100, 98 << 10).is_none());
    }
}
