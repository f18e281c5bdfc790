//! Element types on the CPU: what is stored, and what arithmetic is done in.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::check::{Count, OutputMode};
use crate::dtype::Dtype;
use crate::report::Report;
use crate::tensor::Matrix;

/// What sums are kept in: fp32, or fp64 for fp64 elements and on request.
pub trait Real:
    Copy
    + Send
    + Sync
    + PartialOrd
    + Default
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + std::iter::Sum
    + 'static
{
    const NEG_INFINITY: Self;
    /// The largest finite number.
    const MAX: Self;
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn ln_1p(self) -> Self;
    fn sqrt(self) -> Self;
    fn erfc(self) -> Self;
    fn is_nan(self) -> bool;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
}

// The C library's, which std is linked with and does not export.
unsafe extern "C" {
    safe fn erfc(value: f64) -> f64;
    safe fn erfcf(value: f32) -> f32;
}

macro_rules! real {
    ($kind:ident, $erfc:ident) => {
        impl Real for $kind {
            const NEG_INFINITY: Self = $kind::NEG_INFINITY;
            const MAX: Self = $kind::MAX;
            fn from_f64(value: f64) -> Self {
                value as $kind
            }
            fn to_f64(self) -> f64 {
                self as f64
            }
            fn exp(self) -> Self {
                $kind::exp(self)
            }
            fn ln(self) -> Self {
                $kind::ln(self)
            }
            fn ln_1p(self) -> Self {
                $kind::ln_1p(self)
            }
            fn sqrt(self) -> Self {
                $kind::sqrt(self)
            }
            fn erfc(self) -> Self {
                $erfc(self)
            }
            fn is_nan(self) -> bool {
                $kind::is_nan(self)
            }
            fn max(self, other: Self) -> Self {
                $kind::max(self, other)
            }
            fn min(self, other: Self) -> Self {
                $kind::min(self, other)
            }
        }
    };
}

real!(f32, erfcf);
real!(f64, erfc);

/// A stored floating-point element.
pub trait Element: Copy + Send + Sync + Default + 'static {
    const DTYPE: Dtype;
    /// What sums over such elements are kept in.
    type Real: Real;
    fn to_real(self) -> Self::Real;
    fn from_real(value: Self::Real) -> Self;
    /// Many at once: `to` is as long as `from`.
    fn widen(from: &[Self], to: &mut [Self::Real]);
    /// Many at once, each rounded to nearest even: `to` is as long as `from`.
    fn round(from: &[Self::Real], to: &mut [Self]);
}

macro_rules! element {
    ($kind:ty, $dtype:ident, $real:ident, $to:expr, $from:expr, $widen:expr, $round:expr) => {
        impl Element for $kind {
            const DTYPE: Dtype = Dtype::$dtype;
            type Real = $real;
            #[inline(always)]
            fn to_real(self) -> $real {
                $to(self)
            }
            #[inline(always)]
            fn from_real(value: $real) -> Self {
                $from(value)
            }
            fn widen(from: &[Self], to: &mut [$real]) {
                $widen(from, to)
            }
            fn round(from: &[$real], to: &mut [Self]) {
                $round(from, to)
            }
        }
    };
}

element!(f32, Fp32, f32, |v| v, |v| v, copy, copy);
element!(f64, Fp64, f64, |v| v, |v| v, copy, copy);
element!(f16, Fp16, f32, f16::to_f32, f16::from_f32, widen_f16, round_f16);
element!(bf16, Bf16, f32, bf16::to_f32, bf16::from_f32, widen_bf16, round_bf16);

fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    to.copy_from_slice(from);
}

fn widen_f16(from: &[f16], to: &mut [f32]) {
    from.convert_to_f32_slice(to);
}

fn round_f16(from: &[f32], to: &mut [f16]) {
    to.convert_from_f32_slice(from);
}

/// bf16 is the upper half of an f32: a shift, which vectorises where bf16::to_f32's look at NaN does not.
fn widen_bf16(from: &[bf16], to: &mut [f32]) {
    for (wide, narrow) in to.iter_mut().zip(from) {
        *wide = f32::from_bits(u32::from(narrow.to_bits()) << 16);
    }
}

fn round_bf16(from: &[f32], to: &mut [bf16]) {
    for (narrow, wide) in to.iter_mut().zip(from) {
        *narrow = bf16::from_f32(*wide);
    }
}

/// Runs a body with `$element` bound to the Rust type of a floating-point dtype. Checks have excluded all others.
macro_rules! with_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::Dtype::Fp32 => {
                type $element = f32;
                $body
            }
            $crate::dtype::Dtype::Fp16 => {
                type $element = half::f16;
                $body
            }
            $crate::dtype::Dtype::Bf16 => {
                type $element = half::bf16;
                $body
            }
            $crate::dtype::Dtype::Fp64 => {
                type $element = f64;
                $body
            }
            other => unreachable!("{other:?} is no element type of the CPU backend"),
        }
    };
}
pub(crate) use with_element;

/// Element `index` of floating-point data, widened.
///
/// # Safety
/// `index` lies within the data.
pub unsafe fn load(dtype: Dtype, data: *const u8, index: i64) -> f64 {
    with_element!(dtype, E => unsafe { data.cast::<E>().offset(index as isize).read() }.to_real().to_f64())
}

/// Writes element `index`, rounded once from f64.
///
/// # Safety
/// `index` lies within the data, which nobody else accesses there.
pub unsafe fn store(dtype: Dtype, data: *mut u8, index: i64, value: f64) {
    let index = index as isize;
    unsafe {
        match dtype {
            Dtype::Fp32 => data.cast::<f32>().offset(index).write(value as f32),
            Dtype::Fp16 => data.cast::<f16>().offset(index).write(f16::from_f64(value)),
            Dtype::Bf16 => data.cast::<bf16>().offset(index).write(bf16::from_f64(value)),
            Dtype::Fp64 => data.cast::<f64>().offset(index).write(value),
            other => unreachable!("{other:?} is no element type of the CPU backend"),
        }
    }
}

/// Element `index` of an INT32 or INT64 vector.
///
/// # Safety
/// `index` lies within the data.
pub unsafe fn load_index(vector: &Matrix, index: i64) -> i64 {
    let index = index as isize;
    unsafe {
        match vector.dtype {
            Dtype::Int64 => vector.data.cast::<i64>().offset(index).read(),
            _ => vector.data.cast::<i32>().offset(index).read().into(),
        }
    }
}

/// Writes element `index` of an INT32 or INT64 vector.
///
/// # Safety
/// `index` lies within the data, which nobody else accesses there.
pub unsafe fn store_index(vector: &Matrix, index: i64, value: i64) {
    let index = index as isize;
    unsafe {
        match vector.dtype {
            Dtype::Int64 => vector.data.cast::<i64>().offset(index).write(value),
            _ => vector.data.cast::<i32>().offset(index).write(value as i32),
        }
    }
}

/// The true count: clamped to its bound, and reported, where it lies outside.
///
/// # Safety
/// A count that is given points to a live integer.
pub unsafe fn true_count(count: &Count, report: &Report) -> i64 {
    if count.device.is_null() {
        return count.bound;
    }
    let given = unsafe {
        if count.wide { count.device.cast::<i64>().read() } else { count.device.cast::<i32>().read().into() }
    };
    if !(0..=count.bound).contains(&given) {
        report.record(crate::abi::types::MOE_FAULT_COUNT, count.bound, given);
    }
    given.clamp(0, count.bound)
}

/// Whether an output is added to, now.
///
/// # Safety
/// A device flag that is given points to a live integer.
pub unsafe fn adds(mode: &OutputMode) -> bool {
    if mode.device.is_null() { mode.add } else { unsafe { mode.device.read() != 0 } }
}
