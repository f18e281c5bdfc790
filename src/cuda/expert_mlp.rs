//! The expert MLP on CUDA: its steps, most of them other operations.

use super::grouped_gemm::tensor_map::TensorMap;
use super::rows::{ROW_THREADS, launch_rows, packs, row_grid, row_team};
use super::{Launch, Launcher, activation, decode, dispatch, fused, grouped_gemm};
use crate::abi::types::*;
use crate::check::OutputMode;
use crate::error::Result;
use crate::groups::{Gather, Groups, RowWeights};
use crate::ops::activation::{Backward, Forward};
use crate::ops::dispatch::{CombineFwd, DispatchBwd};
use crate::ops::expert_mlp::{
    LinearActivate, LinearActivateBackward, OVERWRITE, PresentSizes, RowDots, ScaleRows, Steps, ZeroGaps,
};
use crate::ops::grouped_gemm::{BiasGrad, Linear, Wgrad};
use crate::tensor::Matrix;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ScaleRowsParams {
    pub groups: Groups,
    pub columns: i64,
    pub from: Matrix,
    /// Index data is NULL where rows are taken as they are.
    pub gather: Gather,
    pub row_weights: RowWeights,
    pub to: Matrix,
    pub mode: OutputMode,
    /// Threads a row: 32 or ROW_THREADS.
    pub team: i32,
    /// Rows are read and written by 16 bytes.
    pub packed: bool,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RowDotsParams {
    pub groups: Groups,
    pub columns: i64,
    pub a: Matrix,
    /// Index data is NULL where rows are taken as they are.
    pub gather: Gather,
    pub b: Matrix,
    pub dots: Matrix,
    pub b_by_group: bool,
    /// Rows are read by 16 bytes.
    pub packed: bool,
    /// Threads a row: 32 or ROW_THREADS.
    pub team: i32,
    pub report: *mut moe_device_report_t,
}

/// sums[r] = start[r] + parts[r, 0] + parts[r, 1] + ..., for each true row; 0 in gaps.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RowSumsParams {
    pub groups: Groups,
    /// [R, count].
    pub parts: *const f32,
    pub count: i64,
    /// Data is NULL where sums begin at 0; may be `sums`.
    pub start: Matrix,
    pub sums: Matrix,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ZeroGapsParams {
    pub groups: Groups,
    pub data: *mut u8,
    /// Bytes from one row to the next, and of a row.
    pub pitch: i64,
    pub bytes: i64,
    pub mode: OutputMode,
    pub report: *mut moe_device_report_t,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PresentSizesParams {
    pub groups: Groups,
    /// E pointers each; NULL for weights that are not given by pointers.
    pub pointers: [*const *mut u8; 3],
    pub sizes: *mut i64,
}

pub struct CudaSteps<'a> {
    pub launcher: &'a Launcher<'a>,
    /// Kernels that sum differently for other sizes of groups are left alone.
    pub batch_invariant: bool,
    /// Room for maps of weights that are given by pointers.
    pub room: *mut TensorMap,
}

impl Steps for CudaSteps<'_> {
    fn linear(&self, step: &Linear) -> Result<()> {
        if !self.batch_invariant && decode::linear(self.launcher, step, false)? {
            return Ok(());
        }
        grouped_gemm::linear(self.launcher, step, self.room)
    }

    fn linear_activate(&self, step: &LinearActivate) -> Result<()> {
        if !self.batch_invariant && decode::linear_activate(self.launcher, step)? {
            return Ok(());
        }
        if fused::takes_linear_activate(self.launcher.device, step, self.room) {
            return fused::linear_activate(self.launcher, step, self.room);
        }
        step.by_parts(self)
    }

    fn linear_activate_backward(&self, step: &LinearActivateBackward) -> Result<()> {
        if !fused::takes_linear_activate_backward(self.launcher.device, step, self.room) {
            return step.by_parts(self);
        }
        fused::linear_activate_backward(self.launcher, step, self.room)?;
        if let Some(sums) = step.dots {
            let start = step.dots_of_bias(self)?.unwrap_or(Matrix::ABSENT);
            self.row_sums(step.groups, step.dot_parts, step.shape.dot_parts(), start, sums)?;
        }
        if step.groups.sizes.is_null() {
            return Ok(());
        }
        let (groups, activation) = (step.groups, &step.shape.activation);
        let written = [(Some(step.dh), activation.hidden()), (step.weighted_act, activation.ffn)];
        written.into_iter().try_for_each(|(matrix, columns)| match matrix {
            Some(matrix) => self.zero_gaps(&ZeroGaps { groups, columns, matrix, mode: OVERWRITE }),
            None => Ok(()),
        })
    }

    fn linear_behind_activation(&self, step: &Linear) -> Result<()> {
        if !self.batch_invariant && decode::linear(self.launcher, step, true)? {
            return Ok(());
        }
        self.linear(step)
    }

    fn wgrad(&self, step: &Wgrad) -> Result<()> {
        grouped_gemm::wgrad(self.launcher, step)
    }

    fn bias_grad(&self, step: &BiasGrad) -> Result<()> {
        grouped_gemm::bias_grad(self.launcher, step)
    }

    fn activate(&self, step: &Forward) -> Result<()> {
        activation::forward(self.launcher, step)
    }

    fn activate_backward(&self, step: &Backward) -> Result<()> {
        activation::backward(self.launcher, step)
    }

    fn combine(&self, step: &CombineFwd) -> Result<()> {
        // A product lies between whatever made the maps and this.
        dispatch::combine_fwd(self.launcher, step, true)
    }

    fn slot_gradients(&self, step: &DispatchBwd) -> Result<()> {
        dispatch::dispatch_bwd(self.launcher, step)
    }

    fn scale_rows(&self, p: &ScaleRows) -> Result<()> {
        let team = row_team(p.columns);
        let params = ScaleRowsParams {
            groups: p.groups,
            columns: p.columns,
            from: p.from,
            gather: p.gather.unwrap_or(Gather::ABSENT),
            row_weights: p.weights,
            to: p.to,
            mode: p.mode,
            team,
            packed: packs(&[p.from, p.to], p.columns),
            report: self.launcher.report,
        };
        let kernels = ["expert_mlp_scale_rows_fp32", "expert_mlp_scale_rows_fp16", "expert_mlp_scale_rows_bf16"];
        launch_rows(self.launcher, kernels, p.from.dtype, p.groups.rows_max, team, &params)
    }

    fn row_dots(&self, p: &RowDots) -> Result<()> {
        let team = row_team(p.columns);
        let params = RowDotsParams {
            groups: p.groups,
            columns: p.columns,
            a: p.a,
            gather: p.gather.unwrap_or(Gather::ABSENT),
            b: p.b,
            dots: p.dots,
            b_by_group: p.b_by_group,
            packed: packs(&[p.a, p.b], p.columns),
            team,
            report: self.launcher.report,
        };
        let kernels = ["expert_mlp_row_dots_fp32", "expert_mlp_row_dots_fp16", "expert_mlp_row_dots_bf16"];
        launch_rows(self.launcher, kernels, p.a.dtype, p.groups.rows_max, team, &params)
    }

    fn zero_gaps(&self, p: &ZeroGaps) -> Result<()> {
        let size = p.matrix.dtype.size();
        let params = ZeroGapsParams {
            groups: p.groups,
            data: p.matrix.data,
            pitch: p.matrix.pitch * size,
            bytes: p.columns * size,
            mode: p.mode,
            report: self.launcher.report,
        };
        let grid = row_grid(self.launcher.device, p.groups.rows_max, 32);
        let launch = Launch { kernel: "expert_mlp_zero_gaps", grid, block: ROW_THREADS, ..Default::default() };
        self.launcher.launch(&launch, &params)
    }

    fn present_sizes(&self, p: &PresentSizes) -> Result<()> {
        let pointers = p.weights.map(|weight| weight.map_or(std::ptr::null(), |weight| weight.pointers));
        let params = PresentSizesParams { groups: p.groups, pointers, sizes: p.sizes };
        let grid = [(p.groups.count as u32).div_ceil(ROW_THREADS), 1, 1];
        let launch = Launch { kernel: "expert_mlp_present_sizes", grid, block: ROW_THREADS, ..Default::default() };
        self.launcher.launch(&launch, &params)
    }
}

impl CudaSteps<'_> {
    fn row_sums(&self, groups: Groups, parts: *const f32, count: i64, start: Matrix, sums: Matrix) -> Result<()> {
        let params = RowSumsParams { groups, parts, count, start, sums, report: self.launcher.report };
        // A thread a row, a warp 32 rows of one group.
        let warps = groups.rows_max / 32 + groups.count.min(groups.rows_max);
        let grid = row_grid(self.launcher.device, warps, 32);
        self.launcher
            .launch(&Launch { kernel: "expert_mlp_row_sums", grid, block: ROW_THREADS, ..Default::default() }, &params)
    }
}
