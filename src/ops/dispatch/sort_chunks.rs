//! moe_sort_chunks: whole chunks of rows change places.

use crate::abi::dispatch::*;
use crate::check;
use crate::context::{Backend, Call, moe_context_t};
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::dtype::{Dtype, FLOATS};
use crate::error::Result;
use crate::tensor::{Matrix, is_absent, matrix, vector};
use crate::workspace::{Layout, Part, Workspace};

/// A checked call.
pub struct SortChunks {
    /// R.
    pub rows: i64,
    pub hidden: i64,
    pub chunks: i64,
    pub inverse: bool,
    pub x: Matrix,
    pub y: Matrix,
    pub chunk_sizes: *const i64,
    pub order: *const i32,
    /// From, to: [R] of one dtype.
    pub row_weights: Option<(Matrix, Matrix)>,
}

// SAFETY: addresses; what is done with them is each backend's own proof.
unsafe impl Send for SortChunks {}
unsafe impl Sync for SortChunks {}

/// int64[chunks + 1] each: where the chunks begin in either order.
#[derive(Clone, Copy)]
struct Parts {
    unsorted: Part,
    sorted: Part,
}

fn layout(desc: &moe_sort_chunks_desc_t) -> Result<(Layout, Parts)> {
    Dtype::check("desc.dtype", desc.dtype, Dtype::ALL)?;
    check::rows("desc.rows_max", desc.rows_max)?;
    check::width("desc.hidden_size", desc.hidden_size)?;
    check::mode("desc.direction", desc.direction, MOE_SORT_INVERSE)?;
    check::range("desc.reserved", desc.reserved.into(), 0..=0)?;
    let chunks = check::range("desc.num_chunks", desc.num_chunks, 0..=check::MAX_EXPERTS)?;
    let mut layout = Layout::default();
    let parts = Parts { unsorted: layout.part((chunks + 1) * 8), sorted: layout.part((chunks + 1) * 8) };
    Ok((layout, parts))
}

fn problem(desc: &moe_sort_chunks_desc_t, args: &moe_sort_chunks_args_t) -> Result<SortChunks> {
    let dtype = Dtype::check("desc.dtype", desc.dtype, Dtype::ALL)?;
    let [rows, hidden, chunks] = [desc.rows_max, desc.hidden_size, desc.num_chunks];
    check::range("args.reserved", args.reserved.into(), 0..=0)?;
    check::aligned("args.chunk_sizes", args.chunk_sizes)?;
    check::aligned("args.order", args.order)?;
    if chunks > 0 {
        check::present("args.chunk_sizes", args.chunk_sizes)?;
        check::present("args.order", args.order)?;
    }
    let row_weights = match (is_absent(&args.row_weights), is_absent(&args.sorted_row_weights)) {
        (true, true) => None,
        _ => {
            let from = vector("args.row_weights", &args.row_weights, FLOATS, rows, 1)?;
            let to = vector("args.sorted_row_weights", &args.sorted_row_weights, &[from.dtype], rows, 1)?;
            Some((from, to))
        }
    };
    Ok(SortChunks {
        rows,
        hidden,
        chunks,
        inverse: desc.direction == MOE_SORT_INVERSE,
        x: matrix("args.x", &args.x, &[dtype], rows, hidden)?,
        y: matrix("args.y", &args.y, &[dtype], rows, hidden)?,
        chunk_sizes: args.chunk_sizes,
        order: args.order,
        row_weights,
    })
}

pub fn sort_chunks(
    ctx: &moe_context_t,
    desc: &moe_sort_chunks_desc_t,
    args: &moe_sort_chunks_args_t,
    call: Call,
) -> Result<()> {
    let (layout, parts) = layout(desc)?;
    let problem = problem(desc, args)?;
    let workspace = Workspace::new(call.workspace, call.workspace_size, &layout)?;
    if let Some((weights, _)) = problem.row_weights {
        ctx.serves("args.row_weights.dtype", weights.dtype)?;
    }
    let starts = [workspace.at(parts.unsorted), workspace.at(parts.sorted)];
    match &ctx.backend {
        Backend::Cpu => ctx.with_report(args.report, |report| {
            cpu::dispatch::sort_chunks(&problem, starts, &report);
            Ok(())
        }),
        #[cfg(feature = "cuda")]
        Backend::Cuda(device) => cuda::dispatch::sort_chunks(device, &problem, starts, args.report, call.stream),
    }
}

pub fn sort_chunks_workspace(_: &moe_context_t, desc: &moe_sort_chunks_desc_t) -> Result<u64> {
    layout(desc).map(|(layout, _)| layout.bytes())
}
