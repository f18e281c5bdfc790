//! Chunk sort: copies of runs of rows.

use rayon::prelude::*;

use super::{parallel, row_of, row_of_mut};
use crate::abi::types::*;
use crate::ops::dispatch::SortChunks;
use crate::report::Report;
use crate::tensor::Matrix;

/// `unsorted` and `sorted` are the parts of the workspace, int64[chunks + 1] each.
pub fn sort_chunks(problem: &SortChunks, [unsorted, sorted]: [*mut i64; 2], report: &Report) {
    let starts = problem.chunks as usize + 1;
    // SAFETY: the contract of the header; `place` keeps all chunks within the R rows.
    let [unsorted, sorted] = [unsorted, sorted].map(|part| unsafe { std::slice::from_raw_parts_mut(part, starts) });
    unsafe { place(problem, unsorted, sorted, report) };
    (0..problem.chunks as usize).into_par_iter().for_each(|place| {
        let Some(chunk) = (unsafe { chunk_at(problem, place) }) else { return };
        parallel(sorted[place + 1] - sorted[place]).for_each(|row| unsafe {
            let [mut from, mut to] = [unsorted[chunk] + row, sorted[place] + row];
            if problem.inverse {
                (from, to) = (to, from);
            }
            copy_row(&problem.x, from, &problem.y, to, problem.hidden);
            if let Some((weights, sorted)) = &problem.row_weights {
                copy_row(weights, from, sorted, to, 1);
            }
        });
    });
}

/// Entry `place` of the order, if there is such a chunk.
unsafe fn chunk_at(problem: &SortChunks, place: usize) -> Option<usize> {
    let chunk = usize::try_from(unsafe { problem.order.add(place).read() }).ok()?;
    (chunk < problem.chunks as usize).then_some(chunk)
}

/// Where the chunks begin in both orders. A total above R ends at R; a chunk that is skipped has no rows.
unsafe fn place(problem: &SortChunks, unsorted: &mut [i64], sorted: &mut [i64], report: &Report) {
    unsorted[0] = 0;
    sorted[0] = 0;
    for chunk in 0..problem.chunks as usize {
        let size = unsafe { problem.chunk_sizes.add(chunk).read() };
        let room = problem.rows - unsorted[chunk];
        if !(0..=room).contains(&size) {
            report.record(MOE_FAULT_GROUP_SIZE, chunk as i64, size);
        }
        unsorted[chunk + 1] = unsorted[chunk] + size.clamp(0, room);
    }
    for place in 0..problem.chunks as usize {
        let chunk = unsafe { chunk_at(problem, place) };
        if chunk.is_none() {
            report.record(MOE_FAULT_MAP_ENTRY, place as i64, unsafe { problem.order.add(place).read() }.into());
        }
        let size = chunk.map_or(0, |chunk| unsorted[chunk + 1] - unsorted[chunk]);
        // Only an order that names a chunk twice runs out of room here.
        sorted[place + 1] = (sorted[place] + size).min(problem.rows);
    }
}

unsafe fn copy_row(from: &Matrix, from_row: i64, to: &Matrix, to_row: i64, columns: i64) {
    let size = to.dtype.size();
    let bytes = |matrix: &Matrix| Matrix { pitch: matrix.pitch * size, ..*matrix };
    unsafe {
        row_of_mut::<u8>(&bytes(to), to_row, columns * size).copy_from_slice(row_of(
            &bytes(from),
            from_row,
            columns * size,
        ));
    }
}
