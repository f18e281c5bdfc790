//! How rows are accessed, and how kernels that take them one by one are launched (kernels/rows.cuh).

use super::{Device, Launch, Launcher};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::tensor::Matrix;

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

/// One launch over rows, of the kernel for `dtype`.
pub fn launch_rows<P: Copy>(
    launcher: &Launcher,
    kernels: [&'static str; 3],
    dtype: Dtype,
    rows: i64,
    team: i32,
    params: &P,
) -> Result<()> {
    let grid = row_grid(launcher.device, rows, team);
    let launch = Launch { kernel: instance(dtype, kernels), grid, block: ROW_THREADS, ..Default::default() };
    launcher.launch(&launch, params)
}

/// The instance of a kernel for a floating-point dtype.
pub fn instance(dtype: Dtype, [fp32, fp16, bf16]: [&'static str; 3]) -> &'static str {
    match dtype {
        Dtype::Fp16 => fp16,
        Dtype::Bf16 => bf16,
        _ => fp32,
    }
}

/// Whether rows of `columns` elements can be accessed 16 bytes at a time in all of the matrices that are there.
pub fn packs(matrices: &[Matrix], columns: i64) -> bool {
    access(matrices, columns) == 16
}

/// The most bytes, a power of two up to 16, by which all rows of `columns` elements can be accessed.
pub fn access(matrices: &[Matrix], columns: i64) -> i64 {
    matrices.iter().fold(16, |bytes, matrix| {
        let size = matrix.dtype.size();
        let all = bytes | matrix.data.addr() as i64 | (matrix.pitch * size) | (columns * size);
        all & -all
    })
}
