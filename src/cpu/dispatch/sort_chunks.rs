//! Chunk sort: copies of runs of rows.

use rayon::prelude::*;

use super::{parallel, row_of, row_of_mut};
use crate::abi::types::*;
use crate::ops::dispatch::SortChunks;
use crate::report::Report;
use crate::tensor::Matrix;

/// `unsorted` and `sorted` are the parts of the workspace, int64[chunks] and int64[chunks + 1].
pub fn sort_chunks(problem: &SortChunks, unsorted: *mut i64, sorted: *mut i64, report: &Report) {
    // SAFETY: the contract of the header; `place` keeps all chunks within the R rows.
    let (unsorted, sorted) = unsafe {
        (
            std::slice::from_raw_parts_mut(unsorted, problem.chunks as usize),
            std::slice::from_raw_parts_mut(sorted, problem.chunks as usize + 1),
        )
    };
    unsafe { place(problem, unsorted, sorted, report) };
    unsorted.par_iter().zip(sorted.par_windows(2)).for_each(|(&unsorted, ends)| {
        parallel(ends[1] - ends[0]).for_each(|row| unsafe {
            let [mut from, mut to] = [unsorted + row, ends[0] + row];
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

/// Where the chunks begin in both orders. A total above R ends at R; a chunk that is skipped has no rows.
unsafe fn place(problem: &SortChunks, unsorted: &mut [i64], sorted: &mut [i64], report: &Report) {
    let chunks = unsorted.len();
    let mut starts = vec![0; chunks + 1];
    for chunk in 0..chunks {
        let size = unsafe { problem.chunk_sizes.add(chunk).read() };
        let room = problem.rows - starts[chunk];
        if !(0..=room).contains(&size) {
            report.record(MOE_FAULT_GROUP_SIZE, chunk as i64, size);
        }
        starts[chunk + 1] = starts[chunk] + size.clamp(0, room);
    }
    sorted[0] = 0;
    for place in 0..chunks {
        let entry = unsafe { problem.order.add(place).read() };
        let chunk = usize::try_from(entry).ok().filter(|&chunk| chunk < chunks);
        if chunk.is_none() {
            report.record(MOE_FAULT_MAP_ENTRY, place as i64, entry.into());
        }
        let size = chunk.map_or(0, |chunk| starts[chunk + 1] - starts[chunk]);
        unsorted[place] = chunk.map_or(0, |chunk| starts[chunk]);
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
