//! Sinkhorn on CUDA: how rows are spread over lanes, blocks and shared memory.

use crate::abi::types::*;
use crate::check::Count;
use crate::cuda::{Device, Launch};
use crate::error::Result;
use crate::ops::router::sinkhorn::{Run, Start, Step, Stop};
use crate::tensor::Matrix;
use crate::workspace::{Layout, Part, Workspace};

use super::ceil_div;

/// Bits of the fraction of a sum over the grid; one more for a sum just above 1; the rest counts blocks.
pub const GRID_SUM_FRACTION: i32 = 55;
/// Rows that a thread's registers keep, of 4 columns and of 16.
pub const SINKHORN_KEPT_4: i32 = 4;
pub const SINKHORN_KEPT_16: i32 = 2;

const MOST_BLOCKS: i64 = (1 << (63 - GRID_SUM_FRACTION)) - 1;
/// Threads a block of the step's small kernels.
const STEP_THREADS: i64 = 512;

/// The logits, and the lanes that share a row of them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SinkhornRows {
    pub logits: Matrix,
    pub tokens: Count,
    pub experts: i32,
    /// Lanes that share a row: a power of two up to 32.
    pub lanes: i32,
    /// Rows can be read by four elements at a time.
    pub quads: bool,
}

/// Of the kernels sinkhorn_<columns a lane>_<lanes a row>.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SinkhornParams {
    pub rows: SinkhornRows,
    /// Data is NULL where it is not wanted.
    pub probs: Matrix,
    pub probs_quads: bool,
    pub column_sums: bool,
    pub relative: bool,
    /// Rows of a block that stay in shared memory, a multiple of those that it handles at once.
    pub resident: i32,
    /// Floats from one such row to the next.
    pub pitch: i32,
    pub max_iterations: i32,
    pub tolerance: f32,
    /// What the blocks share of the columns.
    pub shared: *mut SharedColumns,
    /// The rest may be NULL: not wanted.
    pub log_d0: *mut f32,
    pub log_d1: *mut f32,
    pub iterations: *mut i32,
    pub error: *mut f32,
    pub report: *mut moe_device_report_t,
}

/// What all blocks share of four columns: a line of the L2 cache, so that additions to different ones hardly wait for each other.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SharedColumns {
    /// The sums of even and of odd rounds.
    pub totals: [[u64; 4]; 2],
    pub maxima: [u32; 4],
    pub unused: [u32; 12],
}

/// Of the kernels sinkhorn_step_*.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SinkhornStepParams {
    pub rows: SinkhornRows,
    pub round: i32,
    /// Blocks of the masses' launch.
    pub blocks: i32,
    /// No masses are wanted any more.
    pub last: bool,
    pub column_sums: bool,
    pub relative: bool,
    pub tolerance: f32,
    /// NULL: the true T.
    pub total_tokens: *const f32,
    pub log_d1: *mut f32,
    pub column_mass: *mut f32,
    pub done: *mut i32,
    pub log_d0: *mut f32,
    pub iterations: *mut i32,
    pub error: *mut f32,
    /// [blocks, E].
    pub partials: *mut f32,
    pub report: *mut moe_device_report_t,
}

/// How a block lies over rows.
#[derive(Clone, Copy)]
struct Shape {
    /// Of a lane: which instance of the kernels.
    columns: i64,
    /// That share a row.
    lanes: i64,
    threads: i64,
}

impl Shape {
    fn new(experts: i64) -> Self {
        let (columns, threads) = match experts {
            ..=32 => (4, 512),
            33..=512 => (16, 512),
            _ => (32, 256),
        };
        let lanes = ceil_div(experts, columns) as u64;
        Shape { columns, lanes: lanes.next_power_of_two() as i64, threads }
    }

    /// Rows that a block handles at once.
    fn rows(&self) -> i64 {
        self.threads / self.lanes
    }

    /// Floats of a row of columns.
    fn width(&self) -> i64 {
        self.lanes * self.columns
    }

    /// Floats of a row of columns for each warp.
    fn scratch(&self) -> i64 {
        self.threads / 32 * self.width()
    }

    /// Rows that the registers of a block keep.
    fn kept(&self) -> i64 {
        self.rows() * i64::from([SINKHORN_KEPT_4, SINKHORN_KEPT_16, 0][self.columns as usize / 16])
    }

    fn kernel(&self) -> &'static str {
        match (self.columns, self.lanes) {
            (4, 1) => "sinkhorn_4_1",
            (4, 2) => "sinkhorn_4_2",
            (4, 4) => "sinkhorn_4_4",
            (4, _) => "sinkhorn_4_8",
            (16, 4) => "sinkhorn_16_4",
            (16, 8) => "sinkhorn_16_8",
            (16, 16) => "sinkhorn_16_16",
            (16, _) => "sinkhorn_16_32",
            _ => "sinkhorn_32_32",
        }
    }
}

fn rows(logits: Matrix, tokens: Count, experts: i64) -> SinkhornRows {
    let lanes = Shape::new(experts).lanes as i32;
    SinkhornRows { logits, tokens, experts: experts as i32, lanes, quads: quads(&logits, experts) }
}

/// Whether a matrix can be accessed by four elements at a time.
fn quads(matrix: &Matrix, experts: i64) -> bool {
    let bytes = 4 * matrix.dtype.size();
    matrix.data.addr() as i64 % bytes == 0 && matrix.pitch % 4 == 0 && experts % 4 == 0
}

/// Blocks for so many tokens: each handles two rows with every lane, as far as there are multiprocessors.
fn blocks(device: &Device, tokens: i64, experts: i64) -> i64 {
    ceil_div(tokens, 2 * Shape::new(experts).rows()).clamp(1, device.multiprocessors.into())
}

/// The workspace of one launch: what its blocks share.
pub fn run_layout(experts: i64) -> (Layout, Part) {
    let mut layout = Layout::default();
    let shared = layout.part(ceil_div(experts, 4) * size_of::<SharedColumns>() as i64);
    (layout, shared)
}

/// The workspace of a step: partial masses.
pub fn step_layout(device: &Device, tokens: i64, experts: i64) -> (Layout, Part) {
    let mut layout = Layout::default();
    let partials = layout.part(blocks(device, tokens, experts) * experts * size_of::<f32>() as i64);
    (layout, partials)
}

/// The dynamic shared memory of a block.
struct Memory {
    resident: i64,
    pitch: i64,
    bytes: i64,
}

impl Memory {
    fn new(device: &Device, shape: Shape, experts: i64, tokens: i64) -> Self {
        // Eight lanes read from eight different quads of banks: an odd multiple of a row's lanes where these are fewer.
        let quads = ceil_div(experts, 4);
        let pitch = 4 * if shape.lanes < 8 { (ceil_div(quads, shape.lanes) | 1) * shape.lanes } else { quads };
        // Two totals and three numbers of a column, an error a warp, the warps' sums, and two numbers of each row.
        let fixed = 4 * shape.width().max(32) + 3 * shape.width() + 16 + shape.scratch() + 2 * shape.kept();
        let most = ((i64::from(device.shared_memory) / 4 - fixed) / (pitch + 2)).max(0) / shape.rows() * shape.rows();
        let wanted = ceil_div(tokens, shape.rows()) * shape.rows() - shape.kept();
        let resident = wanted.clamp(0, most);
        Memory { resident, pitch, bytes: 4 * (fixed + resident * (pitch + 2)) }
    }
}

/// Blocks for so many tokens, which run at once: each handles a row with every lane, as far as there are multiprocessors.
fn run_blocks(device: &Device, tokens: i64, shape: Shape) -> i64 {
    ceil_div(tokens, shape.rows()).clamp(1, i64::from(device.multiprocessors).min(MOST_BLOCKS))
}

pub fn run(
    device: &Device,
    problem: &Run,
    report: *mut moe_device_report_t,
    (workspace, shared): (Workspace, Part),
    stream: moe_stream_t,
) -> Result<()> {
    let (desc, experts) = (&problem.desc, problem.desc.experts);
    let shape = Shape::new(experts);
    let blocks = run_blocks(device, desc.bound, shape);
    let memory = Memory::new(device, shape, experts, ceil_div(desc.bound, blocks));
    device.run(report, stream, |launcher| {
        let params = SinkhornParams {
            rows: rows(problem.logits, problem.tokens, experts),
            probs: problem.probs.unwrap_or(Matrix::ABSENT),
            probs_quads: problem.probs.is_some_and(|probs| quads(&probs, experts)),
            column_sums: desc.start == Start::ColumnSums,
            relative: desc.stop == Stop::Relative,
            resident: memory.resident as i32,
            pitch: memory.pitch as i32,
            max_iterations: desc.max_iterations,
            tolerance: desc.tolerance as f32,
            shared: workspace.at(shared),
            log_d0: problem.log_d0,
            log_d1: problem.log_d1,
            iterations: problem.iterations,
            error: problem.error,
            report: launcher.report,
        };
        let launch = Launch {
            kernel: shape.kernel(),
            grid: [blocks as u32, 1, 1],
            block: shape.threads as u32,
            shared: memory.bytes as u32,
            cooperative: true,
            ..Default::default()
        };
        launcher.launch(&launch, &params)
    })
}

pub fn step(
    device: &Device,
    problem: &Step,
    report: *mut moe_device_report_t,
    (workspace, partials): (Workspace, Part),
    stream: moe_stream_t,
) -> Result<()> {
    let (desc, experts) = (&problem.desc, problem.desc.experts);
    let shape = Shape::new(experts);
    let blocks = blocks(device, desc.bound, experts);
    device.run(report, stream, |launcher| {
        let params = SinkhornStepParams {
            rows: rows(problem.logits, problem.tokens, experts),
            round: problem.round,
            blocks: blocks as i32,
            last: problem.round == desc.max_iterations,
            column_sums: desc.start == Start::ColumnSums,
            relative: desc.stop == Stop::Relative,
            tolerance: desc.tolerance as f32,
            total_tokens: problem.total_tokens,
            log_d1: problem.log_d1,
            column_mass: problem.column_mass,
            done: problem.done,
            log_d0: problem.log_d0,
            iterations: problem.iterations,
            error: problem.error,
            partials: workspace.at(partials),
            report: launcher.report,
        };
        let launch = |kernel, grid: i64, block: i64, shared: i64| {
            let (grid, block, shared) = ([grid as u32, 1, 1], block as u32, shared as u32);
            launcher.launch(&Launch { kernel, grid, block, shared, ..Default::default() }, &params)
        };
        if problem.round > -2 {
            launch("sinkhorn_step_columns", 1, STEP_THREADS, 0)?;
        }
        let masses = ["sinkhorn_step_masses_4", "sinkhorn_step_masses_16", "sinkhorn_step_masses_32"];
        // The gauge, the sums, and a row a warp.
        let shared = 4 * (2 * shape.width() + shape.scratch());
        launch(masses[shape.columns as usize / 16], blocks, shape.threads, shared)?;
        launch("sinkhorn_step_join", ceil_div(experts, STEP_THREADS), STEP_THREADS, 0)
    })
}
