//! router: Sinkhorn.
#![allow(non_camel_case_types)]

use crate::abi::types::*;

/// d1 started at 1, relative stopping test, tolerance 1e-4, at most 100 iterations.
pub const MOE_SINKHORN_DEFAULT: i32 = 0;
/// Megatron-Core: d1 started at 1, absolute test, tolerance 1e-4; at most 1000 iterations (Megatron has no bound).
pub const MOE_SINKHORN_MEGATRON: i32 = 1;
/// GPT-NeoX: d1 started at 1/(E * column sums of exp(L)), absolute test, tolerance 1e-4, at most 3 iterations.
pub const MOE_SINKHORN_NEOX: i32 = 2;

/// The preset's.
pub const MOE_SINKHORN_START_DEFAULT: i32 = 0;
/// d1 = 1.
pub const MOE_SINKHORN_START_ONES: i32 = 1;
/// d1 = 1/(E * column sums of exp(L)); where such a sum is 0, 1/(E * 1e-8).
pub const MOE_SINKHORN_START_COLUMN_SUMS: i32 = 2;

/// The preset's.
pub const MOE_SINKHORN_STOP_DEFAULT: i32 = 0;
/// mean_e |d1_old - d1| <= tolerance.
pub const MOE_SINKHORN_STOP_ABSOLUTE: i32 = 1;
/// max_e |d1_old/d1 - 1| <= tolerance.
pub const MOE_SINKHORN_STOP_RELATIVE: i32 = 2;

/// Sinkhorn normalisation of C = exp(logits) (S-BASE, Clark et al. 2022). An iteration is
/// d0_t = 1/(T*(sum_e d1_e*C_te + 1e-8)), then d1_e = 1/(E*(sum_t d0_t*C_te + 1e-8)). It works on shifted logits, so that
/// none of them overflows; with infinite ones, +inf and what exceeds FP32 counts as FP32's largest number.
/// logits: FP32, FP16, BF16 (FP64 on the CPU); probs: any of them. No tokens: log_d1 = 0, no iterations, error 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_sinkhorn_desc_t {
    pub struct_size: u32,
    pub logits_dtype: moe_dtype_t,
    /// Upper bound of the tokens of this rank, T.
    pub num_tokens: i64,
    /// E, 1 to 1024.
    pub num_experts: i64,
    /// MOE_SINKHORN_*.
    pub preset: i32,
    /// MOE_SINKHORN_START_*.
    pub start: i32,
    /// MOE_SINKHORN_STOP_*.
    pub stop: i32,
    /// At most so many rounds; 0: the preset's. Always finite.
    pub max_iterations: i32,
    /// 0: the preset's.
    pub tolerance: f64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_sinkhorn_args_t {
    pub struct_size: u32,
    pub reserved: u32,
    /// [T, E].
    pub logits: moe_tensor_t,
    /// Out: P = diag(d0) exp(L) diag(d1), [T, E]; optional.
    pub probs: moe_tensor_t,
    /// Out: float[T], log d0; optional.
    pub log_d0: *mut f32,
    /// Out: float[E], log d1; optional. As a selection bias on the logits it gives the top-k of P.
    pub log_d1: *mut f32,
    /// Out: one int32, iterations done; optional.
    pub iterations: *mut i32,
    /// Out: one float, the stopping test's last value: above the tolerance where max_iterations ended it; optional.
    pub error: *mut f32,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}

/// Sinkhorn over the tokens of several ranks: max_iterations + 1 calls on each rank, with an all-reduce between them.
///
/// For round = 0 to max_iterations:
/// - moe_sinkhorn_step with this round;
/// - if round < max_iterations: all-reduce column_mass, E floats, by sum.
///
/// Round 0 starts log_d1 and writes this rank's column_mass. Round r > 0 takes the summed column_mass, does iteration r
/// of log_d1 and writes the column_mass for the next; the last round writes none. Once the stopping test holds, which all
/// ranks find in the same round, done is set and the rounds that are left write zeros to column_mass and nothing else: the
/// loop needs no look at the device and can be captured. Then top-k of logits + log_d1 is the choice, as after moe_sinkhorn.
///
/// Started from column sums (MOE_SINKHORN_NEOX) the loop begins at round -2, and it is the maximum over the ranks that
/// column_mass is all-reduced to after round -2; the sum after all others.
///
/// All ranks give the same description but for num_tokens. log_d1, column_mass and done are the state: leave them alone
/// between the calls.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct moe_sinkhorn_step_args_t {
    pub struct_size: u32,
    /// 0 (started from column sums: -2) to max_iterations.
    pub round: i32,
    /// [T, E], this rank's.
    pub logits: moe_tensor_t,
    /// One device float: the tokens of all ranks; NULL: this rank's are all.
    pub total_tokens: *const f32,
    /// In and out: float[E], the state; round 0 starts it.
    pub log_d1: *mut f32,
    /// In and out: float[E]. Out: the part of P's column sums before the columns are scaled that this rank's tokens
    /// have; in: all ranks' parts.
    pub column_mass: *mut f32,
    /// In and out: one int32, not 0 once converged; round 0 starts it.
    pub done: *mut i32,
    /// Out: float[T], log d0, so that P = exp(L + log d0 + log d1) in the end; optional.
    pub log_d0: *mut f32,
    /// Out: one int32, iterations done; optional.
    pub iterations: *mut i32,
    /// Out: one float, the stopping test's last value, 0 before round 1; optional.
    pub error: *mut f32,
    pub num_tokens: moe_count_t,
    pub report: *mut moe_device_report_t,
}
