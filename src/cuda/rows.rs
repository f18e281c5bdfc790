//! How kernels that take rows one by one are launched (kernels/rows.cuh).

use super::Device;

/// Threads a block of such kernels.
pub const ROW_THREADS: u32 = 256;

/// Blocks that a multiprocessor holds at once, at least.
const BLOCKS: i64 = 6;

/// Threads a row: a warp, or a whole block for wide rows. Not by the number of rows, on which sums must not depend.
pub fn row_team(columns: i64) -> i32 {
    if columns > 2048 { ROW_THREADS as i32 } else { 32 }
}

/// Enough blocks for each team to have a row, at most as many as are resident.
pub fn row_grid(device: &Device, rows: i64, team: i32) -> [u32; 3] {
    let rows_a_block = ROW_THREADS as i64 / team as i64;
    let blocks = (rows / rows_a_block + (rows % rows_a_block != 0) as i64).min(device.multiprocessors as i64 * BLOCKS);
    [blocks as u32, 1, 1]
}
