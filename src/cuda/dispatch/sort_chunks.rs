//! The chunk sort: where the chunks lie, then copies.

use super::*;
use crate::abi::types::moe_stream_t;
use crate::cuda::{Device, Launch};
use crate::error::Result;
use crate::ops::dispatch::SortChunks;

const COPY: [&str; 5] = ["sort_chunks_1", "sort_chunks_2", "sort_chunks_4", "sort_chunks_8", "sort_chunks_16"];

/// `unsorted` and `sorted` are the parts of the workspace, int64[chunks + 1] each.
pub fn sort_chunks(
    device: &Device,
    problem: &SortChunks,
    [unsorted, sorted]: [*mut i64; 2],
    report: *mut moe_device_report_t,
    stream: moe_stream_t,
) -> Result<()> {
    device.run(report, stream, |launcher| {
        let bytes = access(&[problem.x, problem.y], problem.hidden);
        let (row_weights, sorted_row_weights) = problem.row_weights.unwrap_or((Matrix::ABSENT, Matrix::ABSENT));
        let params = SortChunksParams {
            rows: problem.rows,
            chunks: problem.chunks,
            inverse: problem.inverse,
            chunk_sizes: problem.chunk_sizes,
            order: problem.order,
            unsorted,
            sorted,
            x: in_chunks(&problem.x, bytes),
            y: in_chunks(&problem.y, bytes),
            columns: problem.hidden * problem.x.dtype.size() / bytes,
            row_weights,
            sorted_row_weights,
            report: launcher.report,
        };
        let place = Launch { kernel: "sort_chunks_place", grid: [1, 1, 1], block: 1024, ..Default::default() };
        launcher.launch(&place, &params)?;
        let units = (problem.rows + DISPATCH_UNIT - 1) / DISPATCH_UNIT;
        let copy = Launch {
            kernel: instance_of_chunk(bytes, COPY),
            grid: [units.min(i32::MAX.into()) as u32, 1, 1],
            block: threads(params.columns, DISPATCH_THREADS),
            ..Default::default()
        };
        launcher.launch(&copy, &params)
    })
}
